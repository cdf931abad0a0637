use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    authorizer::run().await
}

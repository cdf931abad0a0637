use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    turns::routes().run().await
}

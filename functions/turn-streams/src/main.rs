use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    turn_streams::routes().run().await
}

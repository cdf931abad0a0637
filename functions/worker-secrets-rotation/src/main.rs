use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    worker_secrets_rotation::run().await
}

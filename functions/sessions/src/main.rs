use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    sessions::routes().run().await
}

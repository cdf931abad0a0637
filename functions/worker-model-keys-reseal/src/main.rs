use std::process::ExitCode;

use karta_shared::worker;

#[tokio::main]
async fn main() -> ExitCode {
    worker::run::<worker_model_keys_reseal::ModelKeysReseal>().await
}

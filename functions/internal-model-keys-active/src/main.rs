use std::process::ExitCode;

use karta_shared::http;

#[tokio::main]
async fn main() -> ExitCode {
    http::run::<internal_model_keys_active::InternalModelKeysActive>().await
}

use std::process::ExitCode;

use karta_shared::http;

#[tokio::main]
async fn main() -> ExitCode {
    http::run::<model_keys_list::ModelKeysList>().await
}

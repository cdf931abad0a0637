use std::process::ExitCode;

use karta_shared::http;

#[tokio::main]
async fn main() -> ExitCode {
    http::run::<webhook_deliveries_replay::WebhookDeliveriesReplay>().await
}

use std::process::ExitCode;

use karta_shared::http;

#[tokio::main]
async fn main() -> ExitCode {
    http::run::<stripe_events_create::StripeEventsCreate>().await
}

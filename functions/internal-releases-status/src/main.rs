use std::process::ExitCode;

use karta_shared::http;

#[tokio::main]
async fn main() -> ExitCode {
    http::run::<internal_releases_status::InternalReleasesStatus>().await
}

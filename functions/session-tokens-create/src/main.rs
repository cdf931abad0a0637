use karta_shared::http;

#[tokio::main]
async fn main() -> Result<(), lambda_http::Error> {
    http::run::<session_tokens_create::SessionTokensCreate>().await
}

use karta_shared::http;

#[tokio::main]
async fn main() -> Result<(), lambda_http::Error> {
    http::run::<api_keys_rotate::ApiKeysRotate>().await
}

use karta_shared::http;

#[tokio::main]
async fn main() -> Result<(), lambda_http::Error> {
    http::run::<projects_whoami::ProjectsWhoami>().await
}

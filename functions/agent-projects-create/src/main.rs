use karta_shared::http;

#[tokio::main]
async fn main() -> Result<(), lambda_http::Error> {
    http::run::<agent_projects_create::AgentProjectsCreate>().await
}

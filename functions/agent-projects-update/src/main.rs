use std::process::ExitCode;

use karta_shared::http;

#[tokio::main]
async fn main() -> ExitCode {
    http::run::<agent_projects_update::AgentProjectsUpdate>().await
}

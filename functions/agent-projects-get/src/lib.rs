//! `GET /v1/agent_projects/{slug}`: one project.

use karta_shared::{
    App,
    domain::Slug,
    http::{AgentProjectResource, ApiResponse, Call, Error, NoBody, NoQuery, Read, Route},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    agent_project: AgentProjectResource,
}

#[derive(Debug)]
pub struct AgentProjectsGet;

impl Route for AgentProjectsGet {
    const NAME: &'static str = "agent-projects-get";
    type Access = Read;
    type Path = Slug;
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let project = app.store.project(call.caller.organization_id, &call.path).await?.ok_or(Error::NotFound)?;
        ApiResponse::ok(&Output { agent_project: project.into() })
    }
}

//! `GET /v1/agent_projects`: the organization's projects, newest first.

use karta_shared::{
    App,
    config::{Ring, Secret},
    http::{AgentProjectResource, ApiResponse, Call, Error, Limit, NoBody, Read, Route, cursor},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const LIST: &str = "agent_projects";

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    #[serde(default)]
    limit: Limit,
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    agent_projects: Vec<AgentProjectResource>,
    next_cursor: Option<String>,
}

#[derive(Debug)]
pub struct AgentProjectsList;

impl Route for AgentProjectsList {
    const NAME: &'static str = "agent-projects-list";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::Cursor)];
    type Access = Read;
    type Path = ();
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let below = cursor::open(app, organization, LIST, call.query.cursor.as_deref()).await?;
        let page = app.store.projects(organization, below, call.query.limit.get()).await?;
        ApiResponse::ok(&Output {
            agent_projects: page.items.into_iter().map(Into::into).collect(),
            next_cursor: cursor::seal(app, organization, LIST, page.resume_below).await?,
        })
    }
}

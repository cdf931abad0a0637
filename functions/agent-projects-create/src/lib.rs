//! `POST /v1/agent_projects`: creates a project with a unique slug.

use karta_shared::{
    App,
    domain::{Id, Name, Project, Slug},
    http::{Action, AgentProjectResource, ApiResponse, Call, Error, NewAuditEvent, NoQuery, Reveals, Route, Write},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    slug: Slug,
    name: Name,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    agent_project: AgentProjectResource,
}

#[derive(Debug)]
pub struct AgentProjectsCreate;

impl Route for AgentProjectsCreate {
    const NAME: &'static str = "agent-projects-create";
    const STATUS: u16 = 201;
    const IDEMPOTENT: bool = true;
    type Access = Write;
    type Path = ();
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        if let Some(answer) = call.replay(app).await? {
            return Ok(answer);
        }
        let organization = call.caller.organization_id;
        let Input { slug, name } = call.body.clone();
        let project = Project::new(Id::draw(call.now, &*app.entropy), slug, name, call.now);
        let answer = ApiResponse::created(&Output { agent_project: project.clone().into() })?;

        let mut transaction = app.store.transaction();
        transaction.create_project(organization, &project)?;
        let event = NewAuditEvent {
            action: Action::AgentProjectCreated,
            resource_kind: "agent_project",
            resource_id: project.id.into(),
            changes: project.creation(),
        };
        transaction.audit(organization, &call.audit_event(app, event))?;
        call.remember(app, &mut transaction, &answer, project.id, Reveals::Nothing)?;
        transaction.commit().await?;
        Ok(answer)
    }
}

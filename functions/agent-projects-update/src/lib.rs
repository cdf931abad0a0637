//! `PATCH /v1/agent_projects/{slug}`: changes a project's settings. An absent field is kept, `null`
//! clears it.

use karta_shared::{
    App,
    domain::{EndpointUrl, ModelId, Name, ProjectPatch, Slug},
    http::{Action, Admin, AgentProjectResource, ApiResponse, Call, Error, NewAuditEvent, NoQuery, Route, present},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    name: Option<Name>,
    #[serde(default, deserialize_with = "present")]
    model_id: Option<Option<ModelId>>,
    #[serde(default, deserialize_with = "present")]
    endpoint_url: Option<Option<EndpointUrl>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    agent_project: AgentProjectResource,
}

#[derive(Debug)]
pub struct AgentProjectsUpdate;

impl Route for AgentProjectsUpdate {
    const NAME: &'static str = "agent-projects-update";
    type Access = Admin;
    type Path = Slug;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        if let Some(Some(url)) = &call.body.endpoint_url {
            url.check_input(app.outbound_reach).map_err(|problem| Error::invalid("endpoint_url", problem))?;
        }
        if let Some(Some(model)) = &call.body.model_id {
            model.check_input().map_err(|problem| Error::invalid("model_id", problem))?;
        }
        let organization = call.caller.organization_id;
        // The target of model calls outlives the gateway's verdict, so the caller must still be
        // authorized.
        let (valid, project) = tokio::join!(call.reauthorize(app), app.store.project(organization, &call.path));
        valid?;
        let before = project?.ok_or(Error::NotFound)?;
        let mut project = before.clone();
        let Input { name, model_id, endpoint_url } = call.body.clone();
        // Not `call.now`: a repetition may be seconds later, and keys stored since then must not be sent to
        // the new `endpoint_url`.
        let changes = project.apply(ProjectPatch { name, model_id, endpoint_url }, app.clock.now());
        if !changes.is_empty() {
            let mut transaction = app.store.transaction();
            transaction.update_project(organization, &before, &project)?;
            let event = NewAuditEvent {
                action: Action::AgentProjectUpdated,
                resource_kind: "agent_project",
                resource_id: project.id.into(),
                changes,
            };
            transaction.audit(organization, &call.audit_event(app, event))?;
            transaction.invalidate(organization, before.cache_effect(&project), call.now)?;
            transaction.commit().await?;
        }
        ApiResponse::ok(&Output { agent_project: project.into() })
    }
}

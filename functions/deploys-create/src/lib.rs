//! `POST /v1/agent_projects/{slug}/deploys`: creates the project's next release and activates it
//! unless the request opts out.

use karta_shared::{
    App,
    domain::{ArtifactUrl, CommitSha, EventType, Id, Slug, activation},
    http::{Action, ApiResponse, Call, Error, NewAuditEvent, NoQuery, ReleaseResource, Reveals, Route, Write},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    commit_sha: CommitSha,
    artifact_url: Option<ArtifactUrl>,
    activate: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    release: ReleaseResource,
}

#[derive(Debug)]
pub struct DeploysCreate;

impl Route for DeploysCreate {
    const NAME: &'static str = "deploys-create";
    const STATUS: u16 = 201;
    const IDEMPOTENT: bool = true;
    /// Deploys of one project compete for the next number. With n concurrent deploys, the last one
    /// needs n attempts.
    const MAX_ATTEMPTS: u32 = 50;
    type Access = Write;
    type Path = Slug;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        if let Some(answer) = call.replay(app).await? {
            return Ok(answer);
        }
        if let Some(url) = &call.body.artifact_url {
            url.check_input().map_err(|problem| Error::invalid("artifact_url", problem))?;
        }
        let organization = call.caller.organization_id;
        // A release outlives the gateway's verdict, so the caller must still be authorized.
        let (valid, project) = tokio::join!(call.reauthorize(app), app.store.project(organization, &call.path));
        valid?;
        let before = project?.ok_or(Error::NotFound)?;
        let mut project = before.clone();
        let Input { commit_sha, artifact_url, activate } = call.body.clone();
        let activate = activate.unwrap_or(true);
        let id = Id::draw(call.now, &*app.entropy);
        let release = project.deploy(id, commit_sha, artifact_url, activate, call.now);
        let output = Output { release: ReleaseResource::new(release.clone(), project.current_version) };
        let answer = ApiResponse::created(&output)?;

        let mut transaction = app.store.transaction();
        transaction.create_release(organization, &before, &project, &release)?;
        let audited =
            |action, changes| NewAuditEvent { action, resource_kind: "release", resource_id: id.into(), changes };
        let created = audited(Action::ReleaseCreated, release.creation());
        transaction.audit(organization, &call.audit_event(app, created))?;
        transaction.publish(&call.event(app, organization, EventType::ReleaseCreated, &output)?)?;
        if activate {
            let activated = audited(Action::ReleaseActivated, activation(before.current_version, release.version));
            transaction.audit(organization, &call.audit_event(app, activated))?;
            transaction.publish(&call.event(app, organization, EventType::ReleaseActivated, &output)?)?;
        }
        transaction.invalidate(organization, before.cache_effect(&project), call.now)?;
        call.remember(app, &mut transaction, &answer, id, Reveals::Nothing)?;
        transaction.commit().await?;
        Ok(answer)
    }
}

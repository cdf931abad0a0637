//! `POST /v1/agent_projects/{slug}/rollback`: activates another release that is ready or was active
//! before. The first activation of a release is reported as an activation, not as a rollback.

use karta_shared::{
    App,
    domain::{EventType, Flip, NotReady, Slug, Version, activation},
    http::{Action, Admin, ApiResponse, Call, Error, NewAuditEvent, NoQuery, ReleaseResource, Route},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    version: Version,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    release: ReleaseResource,
}

#[derive(Debug)]
pub struct ReleasesRollback;

impl Route for ReleasesRollback {
    const NAME: &'static str = "releases-rollback";
    /// Same limit as deploys, so that deploys do not starve a rollback.
    const MAX_ATTEMPTS: u32 = 50;
    type Access = Admin;
    type Path = Slug;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        // The active release outlives the gateway's verdict, so the caller must still be
        // authorized.
        let (valid, project) = tokio::join!(call.reauthorize(app), app.store.project(organization, &call.path));
        valid?;
        let project_before = project?.ok_or(Error::NotFound)?;
        let release = app.store.release(organization, project_before.id, call.body.version).await?;
        let release_before = release.ok_or(Error::NotFound)?;
        let (mut project, mut release) = (project_before.clone(), release_before.clone());
        let flip = project.activate(&mut release, call.now).map_err(|NotReady| Error::Conflict {
            code: "release_not_ready",
            message: "This release cannot become active. Choose a release that is ready or was active before.",
            resource_id: Some(release_before.id),
        })?;
        let output = Output { release: ReleaseResource::new(release.clone(), project.current_version) };
        if let Some(flip) = flip {
            let (action, event_type) = match flip {
                Flip::Activation => (Action::ReleaseActivated, EventType::ReleaseActivated),
                Flip::Rollback => (Action::ReleaseRolledBack, EventType::ReleaseRolledBack),
            };
            let mut transaction = app.store.transaction();
            transaction.update_project(organization, &project_before, &project)?;
            transaction.update_release(organization, &release_before, &release)?;
            let event = NewAuditEvent {
                action,
                resource_kind: "release",
                resource_id: release.id.into(),
                changes: activation(project_before.current_version, release.version),
            };
            transaction.audit(organization, &call.audit_event(app, event))?;
            transaction.publish(&call.event(app, organization, event_type, &output)?)?;
            transaction.invalidate(organization, project_before.cache_effect(&project), call.now)?;
            transaction.commit().await?;
        }
        ApiResponse::ok(&output)
    }
}

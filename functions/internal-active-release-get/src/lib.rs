//! `GET /v1/internal/projects/{slug}/active_release`: the release that a data plane runs for a
//! project.

use karta_shared::{
    App,
    domain::{BuildKind, CommitSha, Id, ImageRef, ReleaseStatus, Slug, TemplatePath, Version},
    http::{ApiResponse, Call, Error, IdParameter, Internal, NoBody, Releases, Route},
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    organization_id: IdParameter,
}

#[derive(Debug, Serialize)]
pub struct Output {
    project_id: Id,
    version: Version,
    build_kind: Option<BuildKind>,
    template_path: Option<TemplatePath>,
    commit_sha: CommitSha,
    status: ReleaseStatus,
    image_ref: Option<ImageRef>,
}

#[derive(Debug)]
pub struct InternalActiveReleaseGet;

impl Route for InternalActiveReleaseGet {
    const NAME: &'static str = "internal-active-release-get";
    type Access = Internal<Releases>;
    type Path = Slug;
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let IdParameter(organization) = call.query.organization_id;
        let project = app.store.project(organization, &call.path).await?.ok_or(Error::NotFound)?;
        let version = project.current_version.ok_or(Error::NotFound)?;
        let release = app.store.release(organization, project.id, version).await?.ok_or(Error::NotFound)?;
        ApiResponse::ok(&Output {
            project_id: project.id,
            version,
            build_kind: release.build_kind(),
            status: release.status(project.current_version),
            template_path: release.template_path,
            commit_sha: release.commit_sha,
            image_ref: release.image_ref,
        })
    }
}

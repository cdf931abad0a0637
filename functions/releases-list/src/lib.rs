//! `GET /v1/agent_projects/{slug}/releases`: a project's releases, newest first.

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{Slug, Version},
    http::{ApiResponse, Call, Error, Limit, NoBody, Read, ReleaseResource, Route, cursor},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    #[serde(default)]
    limit: Limit,
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    releases: Vec<ReleaseResource>,
    next_cursor: Option<String>,
}

#[derive(Debug)]
pub struct ReleasesList;

impl Route for ReleasesList {
    const NAME: &'static str = "releases-list";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::Cursor)];
    type Access = Read;
    type Path = Slug;
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        // The project is read first, and newer releases are omitted. The list therefore shows one
        // active release even during concurrent changes.
        let project = app.store.project(organization, &call.path).await?.ok_or(Error::NotFound)?;
        let list = format!("releases of {}", project.id);
        let end = project.latest_version.map_or(Version::FIRST, Version::next).as_id();
        let below = cursor::open(app, organization, &list, call.query.cursor.as_deref()).await?.unwrap_or(end);
        let page = app.store.releases(organization, project.id, below, call.query.limit.get()).await?;
        let resource = |release| ReleaseResource::new(release, project.current_version);
        ApiResponse::ok(&Output {
            releases: page.items.into_iter().map(resource).collect(),
            next_cursor: cursor::seal(app, organization, &list, page.resume_below).await?,
        })
    }
}

//! `GET /v1/agent_projects/{slug}/releases/{version}/logs`: the build log of a release, oldest line
//! first.

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{Id, LogLine},
    http::{ApiResponse, Call, Error, Limit, NoBody, Read, ReleasePath, Route, cursor},
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
    logs: Vec<LogLine>,
    next_cursor: Option<String>,
}

#[derive(Debug)]
pub struct ReleaseLogsList;

impl Route for ReleaseLogsList {
    const NAME: &'static str = "release-logs-list";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::Cursor)];
    type Access = Read;
    type Path = ReleasePath;
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let project = app.store.project(organization, &call.path.slug).await?.ok_or(Error::NotFound)?;
        let release = app.store.release(organization, project.id, call.path.version).await?.ok_or(Error::NotFound)?;
        let list = format!("logs of {}", release.id);
        let after = cursor::open(app, organization, &list, call.query.cursor.as_deref()).await?.map_or(0, Id::get);
        let (logs, end) = match &release.log {
            Some(log) => {
                let lines = app.store.build_log(organization, release.id, log, after, call.query.limit.get()).await?;
                (lines.ok_or(Error::WriteConflict)?, log.last_line())
            }
            None => (Vec::new(), 0),
        };
        let resume_after = logs.last().map(|last| last.line).filter(|line| *line < end).and_then(Id::new);
        ApiResponse::ok(&Output { logs, next_cursor: cursor::seal(app, organization, &list, resume_after).await? })
    }
}

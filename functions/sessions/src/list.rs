//! `GET …/sessions`: the sessions that the caller reaches, newest first.

use std::marker::PhantomData;

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::UserId,
    http::{ApiResponse, Call, Cors, Error, Family, Limit, NoBody, Route, SessionResource, SessionsPath, cursor},
    store::SessionList,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    #[serde(default)]
    limit: Limit,
    cursor: Option<String>,
    /// Only sessions of this end user. A session token lists its own user's sessions only.
    user_id: Option<UserId>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    sessions: Vec<SessionResource>,
    next_cursor: Option<String>,
}

#[derive(Debug)]
pub struct SessionsList<F>(PhantomData<F>);

impl<F: Family> Route for SessionsList<F> {
    const NAME: &'static str = if F::IN_PROJECT { "project-sessions-list" } else { "sessions-list" };
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::Cursor)];
    const CORS: Option<Cors> = F::CORS;
    type Access = F::Read;
    type Path = SessionsPath;
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let user = user(call)?;
        let organization = call.caller.organization_id;
        let project = match (&call.path.project, call.caller.project_id) {
            (None, _) => None,
            (Some(_), Some(project)) => Some(project),
            (Some(slug), None) => Some(app.store.project(organization, slug).await?.ok_or(Error::NotFound)?.id),
        };
        let list = match (&user, project) {
            (Some(user), project) => SessionList::User { project, user },
            (None, Some(project)) => SessionList::Project(project),
            (None, None) => SessionList::Organization,
        };
        let name = format!("sessions?project={project:?}&user_id={:?}", user.as_ref().map(UserId::as_str));
        let below = cursor::open(app, organization, &name, call.query.cursor.as_deref()).await?;
        let page = app.store.sessions(organization, list, below, call.query.limit.get(), call.now).await?;
        ApiResponse::ok(&Output {
            sessions: page.items.into_iter().map(SessionResource::from).collect(),
            next_cursor: cursor::seal(app, organization, &name, page.resume_below).await?,
        })
    }
}

/// Returns the user whose sessions are listed; `None` for all.
fn user<F: Family>(call: &Call<SessionsList<F>>) -> Result<Option<UserId>, Error> {
    if !call.caller.is_token() {
        return Ok(call.query.user_id.clone());
    }
    let own = call.caller.user();
    let own = own.ok_or(Error::Forbidden(
        "a session token without sub may not list sessions: mint a token with user_id".into(),
    ))?;
    match &call.query.user_id {
        Some(user) if *user != own => {
            Err(Error::Forbidden("wrong user: user_id must be the user of the session token".into()))
        }
        _ => Ok(Some(own)),
    }
}

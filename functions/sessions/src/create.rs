//! `POST …/sessions`: creates a session, or resumes one with `session_id`.

use std::marker::PhantomData;

use karta_shared::{
    App,
    domain::{BudgetVerdict, Id, Metadata, NewSession, Session, SessionId, SessionProject, UserId},
    http::{ApiResponse, Call, Cors, Error, Family, NoQuery, Route, SessionResource, SessionsPath, null_as_default},
};
use serde::Deserialize;
use utoipa::ToSchema;

/// The metadata key that names a session's end user.
const USER_ID: &str = "user_id";

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// `user_id` names the end user that the session belongs to.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schema(value_type = Option<Metadata>)]
    metadata: Metadata,
    /// The id of a session to resume. `metadata` may then hold `user_id` only.
    session_id: Option<String>,
}

#[derive(Debug)]
pub struct SessionsCreate<F>(PhantomData<F>);

impl<F: Family> Route for SessionsCreate<F> {
    const NAME: &'static str = if F::IN_PROJECT { "project-sessions-create" } else { "sessions-create" };
    const BODY_MAY_BE_EMPTY: bool = true;
    const CORS: Option<Cors> = F::CORS;
    const STATUS: u16 = 201;
    /// A resumed session.
    const FURTHER_STATUSES: &'static [u16] = &[200];
    type Access = F::Write;
    type Path = SessionsPath;
    type Query = NoQuery;
    type Body = Input;
    type Output = SessionResource;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<SessionResource>, Error> {
        let user = user(call)?;
        let mut metadata = call.body.metadata.clone();
        if let Some(user) = &user {
            let added = metadata.insert(USER_ID.to_owned(), user.as_str().to_owned());
            added.map_err(|problem| Error::invalid("metadata", format_args!("{problem}, user_id included")))?;
        }
        let caller = &call.caller;
        let (organization, project_path) = (caller.organization_id, call.path.project.as_ref());
        let resumed = call.body.session_id.as_ref().map(|id| SessionId::parse(id));
        let wanted = resumed.as_ref().and_then(Option::as_ref);
        let state = app.store.turn_state(organization, wanted, caller.api_key_id, caller.lineage_id, call.now).await?;
        let verdict = BudgetVerdict::new(state.key.organization.subscription_status, &state.spending);
        if let BudgetVerdict::Exhausted(exhausted) = verdict {
            return Err(Error::budget_exhausted(exhausted, call.now));
        }
        if resumed.is_some() {
            let reach = caller.reach(project_path);
            let session = state.session.filter(|session| session.is_reachable(&reach, call.now));
            // Another user's session is a missing one. An absent `user_id` resumes any that the
            // caller reaches.
            let session = session.filter(|session| user.is_none() || session.user_id == user);
            return ApiResponse::ok(&session.ok_or(Error::NotFound)?.into());
        }
        let project = match project_path {
            None => None,
            Some(slug) => {
                let project = app.store.project(organization, slug).await?.ok_or(Error::NotFound)?;
                let version = project.current_version.ok_or(Error::no_active_release())?;
                Some(SessionProject { id: project.id, slug: project.slug, version })
            }
        };
        let new = NewSession {
            id: SessionId::draw(&*app.entropy),
            list_id: Id::draw(call.now, &*app.entropy),
            metadata,
            user_id: user,
            created_by_token: caller.is_token(),
            api_key_id: caller.api_key_id,
            project,
        };
        let session = Session::new(new, app.session_retention, call.now);
        let mut transaction = app.store.transaction();
        transaction.create_session(organization, &session)?;
        transaction.commit().await?;
        ApiResponse::created(&session.into())
    }
}

/// Returns the user of the new or resumed session. A session token creates sessions of its own user
/// only.
fn user<F: Family>(call: &Call<SessionsCreate<F>>) -> Result<Option<UserId>, Error> {
    let metadata = call.body.metadata.pairs();
    if call.body.session_id.is_some() && metadata.keys().any(|key| key != USER_ID) {
        let problem = "may hold user_id only, because session_id resumes a session";
        return Err(Error::invalid("metadata", problem));
    }
    let is_meant = |key: &&String| {
        *key != USER_ID && key.replace(['_', '-', ' '], "").eq_ignore_ascii_case(&USER_ID.replace('_', ""))
    };
    if let Some(key) = metadata.keys().find(is_meant) {
        return Err(Error::invalid(&format!("metadata.{key}"), "would name no user: use user_id"));
    }
    let given = metadata.get(USER_ID).map(|user| UserId::try_from(user.clone())).transpose();
    let given = given.map_err(|problem| Error::invalid("metadata.user_id", problem))?;
    if !call.caller.is_token() {
        return Ok(given);
    }
    let own = call.caller.user();
    if given.is_some() && given != own {
        return Err(Error::Forbidden("wrong user: metadata.user_id must be the user of the session token".into()));
    }
    Ok(own)
}

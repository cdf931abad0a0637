//! `POST …/sessions/{id}/cancel`: asks the running turn to end. It ends at the next renewal of its
//! lease, also in another process.

use std::marker::PhantomData;

use karta_shared::{
    App,
    domain::{Invalid, TurnId},
    http::{ApiResponse, Call, Cors, Error, Family, NoQuery, Route, SessionPath, SessionResource},
};
use serde::Deserialize;
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The turn to cancel. Without it, the one that runs.
    #[schema(value_type = Option<String>)]
    turn_id: Option<CancelledTurn>,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct CancelledTurn(TurnId);

impl TryFrom<String> for CancelledTurn {
    type Error = Invalid;

    fn try_from(id: String) -> Result<Self, Invalid> {
        TurnId::parse(&id).map(Self).ok_or(Invalid::new("must be the id of a turn: turn_…"))
    }
}

#[derive(Debug)]
pub struct SessionsCancel<F>(PhantomData<F>);

impl<F: Family> Route for SessionsCancel<F> {
    const NAME: &'static str = if F::IN_PROJECT { "project-sessions-cancel" } else { "sessions-cancel" };
    const BODY_MAY_BE_EMPTY: bool = true;
    const CORS: Option<Cors> = F::CORS;
    const STATUS: u16 = 202;
    type Access = F::Write;
    type Path = SessionPath;
    type Query = NoQuery;
    type Body = Input;
    type Output = SessionResource;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<SessionResource>, Error> {
        let session = call.session(app).await?;
        let not_running = || match &call.body.turn_id {
            Some(_) => Error::turn_not_running(),
            None => Error::no_turn_in_progress(),
        };
        let turn = session.open_turn.as_ref().ok_or_else(not_running)?;
        let is_other = call.body.turn_id.as_ref().is_some_and(|wanted| wanted.0 != *turn);
        let organization = call.caller.organization_id;
        if is_other || !app.store.request_turn_cancel(organization, &session.id, turn).await? {
            return Err(not_running());
        }
        ApiResponse::accepted(&session.into())
    }
}

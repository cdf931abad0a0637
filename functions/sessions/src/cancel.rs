//! `POST …/sessions/{id}/cancel`: asks the running turn to end. It ends at the next renewal of its
//! lease, also in another process.

use std::marker::PhantomData;

use karta_shared::{
    App,
    http::{Answer, Call, Cors, Error, Family, NoFields, NoQuery, Route, SessionPath, SessionResource},
};

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
    type Body = NoFields;
    type Output = SessionResource;

    async fn handle(app: &App, call: &Call<Self>) -> Result<Answer<SessionResource>, Error> {
        let session = call.session(app).await?;
        let turn = session.open_turn.as_ref().ok_or(Error::no_turn_in_progress())?;
        let organization = call.caller.organization_id;
        if !app.store.request_turn_cancel(organization, &session.id, turn).await? {
            return Err(Error::no_turn_in_progress());
        }
        Answer::accepted(&session.into())
    }
}

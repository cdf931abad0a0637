//! `DELETE …/sessions/{id}`: the session is gone at once, its content within an hour.

use std::marker::PhantomData;

use karta_shared::{
    App,
    http::{Action, ApiResponse, Call, Cors, Error, Family, NewAuditEvent, NoBody, NoQuery, Route, SessionPath},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {}

#[derive(Debug)]
pub struct SessionsDelete<F>(PhantomData<F>);

impl<F: Family> Route for SessionsDelete<F> {
    const NAME: &'static str = if F::IN_PROJECT { "project-sessions-delete" } else { "sessions-delete" };
    const CORS: Option<Cors> = F::CORS;
    const STATUS: u16 = 204;
    type Access = F::Write;
    type Path = SessionPath;
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let session = call.session(app).await?;
        if session.open_turn.is_some() {
            return Err(Error::turn_in_progress());
        }
        let mut transaction = app.store.transaction();
        transaction.delete_session(organization, &session, call.now)?;
        let event = NewAuditEvent {
            action: Action::SessionDeleted,
            resource_kind: "session",
            resource_id: session.id.into(),
            changes: [].into(),
        };
        transaction.audit(organization, &call.audit_event(app, event))?;
        // After a conflict the handler runs again, and finds the turn or the session gone.
        transaction.commit().await?;
        Ok(ApiResponse::no_content())
    }
}

//! Repeated requests: a request with a known `Idempotency-Key` attaches to its turn.

use karta_shared::{
    App,
    domain::{MessageRole, Turn, TurnId, TurnStatus},
    follow::{AccessCheck, Followed, follow},
    http::{
        Access, AgentName, ApiResponse, Call, Error, MessageResource, Route, SessionCaller, SessionPath,
        TurnUsageResource, open_messages, text_of,
    },
    settlement::cost,
};
use tokio::time::sleep;

use crate::messages::{Input, Output, stored_error};

/// The earlier turn of an `Idempotency-Key`.
pub(crate) enum Attached {
    Nothing,
    /// A running, completed or cancelled turn.
    To(Box<Turn>),
    /// A failed, interrupted or deleted turn. A new turn replaces it.
    Replaceable(TurnId),
}

/// Finds the turn of the request's `Idempotency-Key`. Fails with a 422 if the key was used with
/// another body.
pub(crate) async fn find<R>(app: &App, call: &Call<R>) -> Result<Attached, Error>
where
    R: Route<Path = SessionPath, Body = Input>,
    R::Access: Access<Caller = SessionCaller>,
{
    let Some(key) = call.idempotency_key() else { return Ok(Attached::Nothing) };
    let organization = call.caller.organization_id;
    let Some(record) = app.store.turn_record(organization, &key.hash, call.now).await? else {
        return Ok(Attached::Nothing);
    };
    if record.fingerprint != key.fingerprint {
        return Err(Error::IdempotencyMismatch);
    }
    let stored = app.store.turn(organization, &record.session_id, &record.turn_id).await?;
    let Some(turn) = stored.map(|stored| stored.turn) else { return Ok(Attached::Replaceable(record.turn_id)) };
    Ok(match turn.status {
        TurnStatus::Running | TurnStatus::Completed | TurnStatus::Cancelled => Attached::To(Box::new(turn)),
        TurnStatus::Failed | TurnStatus::Interrupted => Attached::Replaceable(turn.id),
    })
}

/// Returns the turn's response: streams its events, or waits for its end.
pub(crate) async fn respond<R>(app: &App, call: &Call<R>, turn: Turn) -> Result<ApiResponse<Output>, Error>
where
    R: Route<Path = SessionPath, Body = Input, Output = Output>,
    R::Access: Access<Caller = SessionCaller>,
{
    // The caller may have lost access to the session since its first request.
    let session = call.session(app).await?;
    call.require_transcript_access(app, &session).await?;
    call.audit_transcript_read(app, &session).await?;
    let organization = call.caller.organization_id;
    let caller = call.turn_caller(&session);
    if call.body.stream {
        let followed = Followed { caller, session: session.id, turn: turn.id, after: 0 };
        return Ok(ApiResponse::stream(follow(app.clone(), followed)));
    }
    let (mut turn, mut access) = (turn, AccessCheck::new(caller));
    while turn.status == TurnStatus::Running {
        sleep(app.turn_limits.poll).await;
        if let Some(error) = access.run_if_due(app).await {
            return Err(Error::turn_failed(error));
        }
        let stored = app.store.turn(organization, &session.id, &turn.id).await?;
        turn = stored.ok_or(Error::NotFound)?.turn;
    }
    if turn.status != TurnStatus::Completed {
        return Err(stored_error(&turn, app.clock.now()));
    }
    let sealed = app.store.turn_messages(organization, &session.id, &turn).await?;
    let opened = open_messages(app, organization, &session.id, sealed).await?;
    let mut text = String::new();
    let messages = opened.into_iter().map(|(message, parts)| {
        if message.role == MessageRole::Assistant {
            text = text_of(&parts);
        }
        MessageResource::new(message.id, message.turn_id, message.role, parts, message.created_at)
    });
    let messages = messages.collect();
    ApiResponse::ok(&Output {
        text,
        session_id: session.id.to_string(),
        usage: TurnUsageResource::new(&turn.usage, cost(&turn, &turn.usage)),
        stop_reason: turn.stop_reason,
        turn_id: turn.id,
        agent: AgentName::Default,
        messages,
    })
}

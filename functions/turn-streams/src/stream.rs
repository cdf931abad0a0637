//! `GET …/sessions/{id}/stream`

use std::marker::PhantomData;

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{Invalid, Timestamp, Turn, TurnId},
    follow::{Followed, follow},
    http::{ApiResponse, Call, Cors, Error, Family, NoBody, Route, SessionPath, Verbatim},
    store::TURN_EVENTS_RETENTION,
    turn_events::{Seq, parse_event_id},
};
use serde::Deserialize;
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// The id of the last event that the client has. `Last-Event-ID` means the same.
    #[schema(value_type = Option<String>)]
    after: Option<EventId>,
}

/// The id of an event: `<turn id>.<number>`.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct EventId {
    turn: TurnId,
    seq: Seq,
}

impl TryFrom<String> for EventId {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let id = parse_event_id(&text).and_then(|(turn, seq)| Some(Self { turn: TurnId::parse(turn)?, seq }));
        id.ok_or(Invalid::new("must be the id of an event: turn_….<number>"))
    }
}

#[derive(Debug)]
pub struct StreamGet<F>(PhantomData<F>);

impl<F: Family> Route for StreamGet<F> {
    const NAME: &'static str = if F::IN_PROJECT { "project-session-stream-get" } else { "session-stream-get" };
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::SealingSessions)];
    const STREAMS: bool = true;
    const CORS: Option<Cors> = F::CORS;
    const CONTENT_TYPE: &'static str = "text/event-stream";
    type Access = F::Read;
    type Path = SessionPath;
    type Query = Query;
    type Body = NoBody;
    type Output = Verbatim;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Verbatim>, Error> {
        let session = call.session(app).await?;
        call.require_transcript_access(app, &session).await?;
        let last_event = match &call.query.after {
            Some(id) => Some(id.clone()),
            None => call.meta.last_event_id.as_ref().and_then(|id| EventId::try_from(id.clone()).ok()),
        };
        let (turn, after) = match last_event {
            Some(EventId { turn, seq }) => (Some(turn), seq),
            None => (session.last_turn.as_ref().map(|turn| turn.id.clone()), 0),
        };
        let turn = turn.ok_or(Error::no_events())?;
        let organization = call.caller.organization_id;
        let stored = app.store.turn(organization, &session.id, &turn).await?;
        if !stored.is_some_and(|stored| has_events(&stored.turn, after, call.now)) {
            return Err(Error::no_events());
        }
        call.audit_transcript_read(app, &session).await?;
        let followed = Followed { caller: call.turn_caller(&session), session: session.id, turn, after };
        Ok(ApiResponse::stream(follow(app.clone(), followed)))
    }
}

/// Returns whether a turn has events after `after`, or will have. A client that asks for what follows
/// the last event gets an error, because a stream without events would make it connect again.
fn has_events(turn: &Turn, after: Seq, now: Timestamp) -> bool {
    let Some(ended) = turn.ended_at else { return true };
    let is_left = after < turn.last_seq || turn.ended_by_sweep;
    is_left && now < ended.plus(TURN_EVENTS_RETENTION)
}

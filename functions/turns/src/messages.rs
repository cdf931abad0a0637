//! `POST …/sessions/{id}/messages`

use std::{marker::PhantomData, time::Duration};

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{Invalid, MessageRole, StopReason, Timestamp, Turn, TurnError, TurnId},
    http::{
        AgentName, ApiResponse, Call, Cors, Error, Family, MessageResource, NoQuery, Route, SessionPath,
        TurnUsageResource, UncheckedText, event_channel, null_as_default, text_of,
    },
    settlement::cost,
    turn_events::{MessagePart, PartKind, json_bytes},
};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use utoipa::ToSchema;

use crate::{
    attach::{self, Attached},
    claim, provider,
    run::{BUFFERED_EVENTS, Ended, Signals},
};

/// Maximum bytes of a message's text as JSON.
const MAX_TEXT_BYTES: usize = 1_000_000;
/// Maximum body size, which leaves room for escapes.
const BODY_MAX: usize = 4 << 20;
pub(crate) const MAX_TOKENS_DEFAULT: u32 = 4_096;
/// Longer than the deadline of a turn whose answer is not streamed, and its settlement.
const DEADLINE: Duration = Duration::from_secs(330);

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The user's message: 1 byte to 1,000,000 bytes as JSON.
    #[schema(value_type = String, min_length = 1)]
    pub(crate) text: MessageText,
    /// Whether the answer is a stream of events; false by default.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schema(value_type = Option<bool>)]
    pub(crate) stream: bool,
    /// A model's name; `default` or absent for the configured one.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 128)]
    pub(crate) model: Option<ModelName>,
    /// Limit of the answer in tokens; 4096 by default.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1_000_000)]
    pub(crate) max_tokens: Option<MaxTokens>,
    /// Whether to ask for the model's reasoning and to show it; false by default.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schema(value_type = Option<bool>)]
    pub(crate) thinking: bool,
}

/// A message's text. Messages are sealed, so it may hold anything.
#[derive(Clone, Deserialize)]
#[serde(try_from = "UncheckedText")]
pub(crate) struct MessageText(pub(crate) String);

impl TryFrom<UncheckedText> for MessageText {
    type Error = Invalid;

    fn try_from(unchecked: UncheckedText) -> Result<Self, Invalid> {
        let text = unchecked.expose();
        if text.is_empty() {
            return Err(Invalid::new("must not be empty"));
        }
        if json_bytes(text) > MAX_TEXT_BYTES {
            return Err(Invalid::new("must have at most 1000000 bytes as JSON"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Prints nothing of the message.
impl std::fmt::Debug for MessageText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ModelName(pub(crate) String);

impl TryFrom<String> for ModelName {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if (1..=128).contains(&text.chars().count()) {
            Ok(Self(text))
        } else {
            Err(Invalid::new("must be 1 to 128 characters"))
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u64")]
pub(crate) struct MaxTokens(pub(crate) u32);

impl TryFrom<u64> for MaxTokens {
    type Error = Invalid;

    fn try_from(tokens: u64) -> Result<Self, Invalid> {
        let tokens = u32::try_from(tokens).ok().filter(|tokens| (1..=1_000_000).contains(tokens));
        tokens.map(Self).ok_or(Invalid::new("must be an integer from 1 to 1000000"))
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    /// The answer, without reasoning.
    pub(crate) text: String,
    pub(crate) session_id: String,
    pub(crate) turn_id: TurnId,
    pub(crate) agent: AgentName,
    /// The user's message and the answer.
    pub(crate) messages: Vec<MessageResource>,
    pub(crate) usage: TurnUsageResource,
    pub(crate) stop_reason: Option<StopReason>,
}

#[derive(Debug)]
pub struct MessagesCreate<F>(PhantomData<F>);

impl<F: Family> Route for MessagesCreate<F> {
    const NAME: &'static str = if F::IN_PROJECT { "project-messages-create" } else { "messages-create" };
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::SealingByok), Secret::Ring(Ring::SealingSessions)];
    const IDEMPOTENT: bool = true;
    const STREAMS: bool = true;
    const CORS: Option<Cors> = F::CORS;
    const BODY_MAX: usize = BODY_MAX;
    const DEADLINE: Duration = DEADLINE;
    type Access = F::Write;
    type Path = SessionPath;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let replaced = match attach::find(app, call).await? {
            Attached::To(turn) => return attach::respond(app, call, *turn).await,
            Attached::Replaceable(turn) => Some(turn),
            Attached::Nothing => None,
        };
        let mut task = match Box::pin(claim::claim(app, call, replaced.as_ref())).await {
            Ok(task) => task,
            // A concurrent request with the same `Idempotency-Key` may have started the open turn.
            Err(refused @ Error::Conflict { .. }) => match attach::find(app, call).await? {
                Attached::To(turn) => return attach::respond(app, call, *turn).await,
                Attached::Replaceable(_) | Attached::Nothing => return Err(refused),
            },
            Err(error) => return Err(error),
        };
        let user = task.user_message.clone();
        let session_id = task.session.to_string();
        let (sender, events) = event_channel(BUFFERED_EVENTS);
        task.sender = call.body.stream.then_some(sender);
        let Signals { began, ended } = task.spawn();
        if !call.body.stream {
            let ended = ended.await.map_err(|_| lost())?;
            return ApiResponse::ok(&output(ended, &session_id, user)?);
        }
        tokio::select! {
            biased;
            Ok(()) = began => Ok(ApiResponse::stream(events)),
            ended = ended => match ended.map_err(|_| lost())?.failure {
                Some(failure) => Err(failed(&failure, call.now)),
                None => Ok(ApiResponse::stream(events)),
            },
            () = sleep(app.turn_limits.status_delay) => Ok(ApiResponse::stream(events)),
        }
    }
}

/// The task of the turn panicked.
fn lost() -> Error {
    Error::Internal("the task of a turn ended early".to_owned())
}

fn failed(failure: &provider::Failure, now: Timestamp) -> Error {
    if let Some(exhausted) = failure.exhausted {
        return Error::budget_exhausted(exhausted, now);
    }
    let message = failure.message().to_owned().into();
    Error::TurnFailed { code: failure.error, message, retry_after: failure.retry_after }
}

fn output(ended: Ended, session_id: &str, user: MessageResource) -> Result<Output, Error> {
    let Ended { turn, answer, failure } = ended;
    if let Some(failure) = failure {
        return Err(failed(&failure, turn.started_at));
    }
    let usage = TurnUsageResource::new(&turn.usage, cost(&turn, &turn.usage));
    let text = text_of(&answer);
    let created_at = turn.ended_at.unwrap_or(turn.started_at);
    let assistant =
        MessageResource::new(turn.assistant_message_id, turn.id.clone(), MessageRole::Assistant, answer, created_at);
    Ok(Output {
        text,
        session_id: session_id.to_owned(),
        turn_id: turn.id,
        agent: AgentName::Default,
        messages: vec![user, assistant],
        usage,
        stop_reason: turn.stop_reason,
    })
}

/// Returns the parts of a user's message.
pub(crate) fn user_parts(text: &str) -> Vec<MessagePart> {
    vec![MessagePart { id: "part_1".to_owned(), kind: PartKind::Text, text: text.to_owned() }]
}

/// Returns why a stored turn did not complete. The provider's own message is not stored.
pub(crate) fn stored_error(turn: &Turn, now: Timestamp) -> Error {
    if let Some(exhausted) = turn.exhausted {
        return Error::budget_exhausted(exhausted, now);
    }
    let known = TurnError::ALL.into_iter().find(|error| Some(error.as_str()) == turn.error_code.as_deref());
    let code = known.unwrap_or(TurnError::Internal);
    let retry_after = turn.retry_at.map(|at| at.since(now));
    Error::TurnFailed { code, message: code.message().into(), retry_after }
}

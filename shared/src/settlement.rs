//! The end of a turn: usage, answer and last events are stored in one transaction.
//!
//! The process of a turn settles it. If the process died, the sweep does, with estimates. The ids of
//! usage events derive from the turn's id and the end is conditional on the turn still running, so
//! two settlements of one turn count once.

use crate::{
    app::App,
    config::{Ring, SecretError},
    domain::{
        Exhausted, Id, MessageRole, Quantity, Reference, Retention, SessionId, SessionUsage, StopReason, Timestamp,
        Turn, TurnError, TurnStatus, TurnUsage, UsageEvent, UsageKind,
    },
    store::{
        CommitError, Conflict, KnownCounters, Reservation, SealedEvents, SealedMessage, StoreError, TurnSettlement,
    },
    transcripts::{TranscriptContext, TranscriptPart},
    turn_events::{EventBatch, MessagePart, PartKind},
};

/// Bytes that count as one token in estimates.
const TOKEN_BYTES: usize = 4;
/// Assumed speed of hidden output, in tokens per second.
const HIDDEN_TOKENS_PER_SECOND: u128 = 100;
/// Maximum attempts while other writers change the counters.
const MAX_ATTEMPTS: usize = 8;

/// Estimates the tokens of a text from its bytes. Used for reservations, and for usage that the provider
/// did not report.
pub fn estimate_tokens(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(TOKEN_BYTES)).unwrap_or(u64::MAX)
}

/// Estimates the output of a turn that the provider did not count, in tokens. `text_began` is the time
/// of the first text; without text, the time until which the provider is known to have generated.
///
/// Reasoning counts as its text or as the time before the text, whichever is more: a provider may
/// bill much more reasoning than it shows.
pub fn estimate_output(app: &App, turn: &Turn, answer: &[MessagePart], text_began: Timestamp) -> u64 {
    let tokens_of = |kind| {
        let parts = answer.iter().filter(|part| part.kind == kind);
        estimate_tokens(parts.map(|part| part.text.len()).sum())
    };
    let reasoning = tokens_of(PartKind::Reasoning).max(estimate_hidden_tokens(app, turn, text_began));
    tokens_of(PartKind::Text).saturating_add(reasoning)
}

/// Estimates the output that a provider bills without showing it, from the start of the turn to
/// `until`.
fn estimate_hidden_tokens(app: &App, turn: &Turn, until: Timestamp) -> u64 {
    if !turn.hides_output {
        return 0;
    }
    let generated_for = until.since(turn.started_at).saturating_sub(app.turn_limits.latency);
    let tokens = generated_for.as_millis() * HIDDEN_TOKENS_PER_SECOND / 1_000;
    u64::try_from(tokens).unwrap_or(u64::MAX).min(turn.max_tokens)
}

/// A running turn whose end is to be stored.
#[derive(Debug, Clone, Copy)]
pub struct RunningTurn<'a> {
    pub organization: Id,
    pub session: &'a SessionId,
    pub turn: &'a Turn,
    pub reservation: Option<&'a Reservation>,
    /// For the sweep: the end of the lease as read. A renewal since then fails the settlement.
    pub leased_until: Option<Timestamp>,
}

/// How a turn ended.
#[derive(Debug, Clone)]
pub struct TurnEnd {
    /// `None` if the turn completed.
    pub error: Option<TurnError>,
    /// The cap that ended the turn.
    pub exhausted: Option<Exhausted>,
    /// When the provider accepts requests again, if it said so.
    pub retry_at: Option<Timestamp>,
    pub stop_reason: Option<StopReason>,
    pub usage: TurnUsage,
    pub estimated: bool,
    /// The parts of the answer so far; a turn that did not complete may have some.
    pub answer: Vec<MessagePart>,
    /// The events that are not in the log yet, at least the last one.
    pub events: EventBatch,
}

/// Why the end of a turn is not stored.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The turn has ended, also by an earlier attempt whose response was lost, or has changed: a request
    /// to cancel it was accepted, or, for the sweep, its lease was renewed.
    #[error("the turn has ended or changed")]
    TurnChanged,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("settlement cannot be encoded: {0}")]
    Encoding(String),
}

impl TurnEnd {
    /// Returns the status of a turn that ended like this.
    pub fn status(&self) -> TurnStatus {
        match self.error {
            None => TurnStatus::Completed,
            Some(TurnError::TurnCancelled) => TurnStatus::Cancelled,
            Some(TurnError::Interrupted) => TurnStatus::Interrupted,
            Some(_) => TurnStatus::Failed,
        }
    }
}

/// Returns the cost of a turn's usage in nano-cents; 0 without a price.
pub fn cost(turn: &Turn, usage: &TurnUsage) -> u128 {
    let Some(price) = turn.price else { return 0 };
    amounts(usage).map(|(kind, quantity)| price.cost(kind, quantity)).sum()
}

/// Stores the end of a turn. Returns the turn as it ended. Repeats while other writers change the
/// counters. `known` is what was read of the counters; `None` reads them.
pub async fn settle(
    app: &App,
    running: RunningTurn<'_>,
    end: &TurnEnd,
    mut known: Option<KnownCounters>,
    retention: Retention,
) -> Result<Turn, SettleError> {
    let RunningTurn { organization, session, turn, reservation, leased_until } = running;
    let now = app.clock.now();
    let ended = Turn {
        status: end.status(),
        ended_at: Some(now),
        usage: end.usage,
        estimated: end.estimated,
        stop_reason: end.stop_reason,
        error_code: end.error.map(|error| error.as_str().to_owned()),
        exhausted: end.exhausted,
        retry_at: end.retry_at,
        last_seq: end.events.next_seq() - 1,
        ended_by_sweep: leased_until.is_some(),
        ..turn.clone()
    };
    let ring = app.secrets.ring(Ring::SealingSessions).await?;
    let context = TranscriptContext { organization, session, turn: &turn.id };
    let seal = |part, content: &[u8]| context.seal(&ring, &*app.entropy, part, content);
    let message = if end.answer.is_empty() && end.error.is_some() {
        None
    } else {
        let parts = serde_json::to_vec(&end.answer).map_err(|error| SettleError::Encoding(error.to_string()))?;
        Some(SealedMessage {
            id: turn.assistant_message_id.clone(),
            turn_id: turn.id.clone(),
            turn_number: turn.number,
            role: MessageRole::Assistant,
            created_at: now,
            content: seal(TranscriptPart::Message(MessageRole::Assistant), &parts),
        })
    };
    let first_seq = end.events.first_seq();
    let encoded = end.events.encode().map_err(|error| SettleError::Encoding(error.to_string()))?;
    let sealed = seal(TranscriptPart::Events { first_seq }, &encoded);
    let events = SealedEvents::new(first_seq, ended.last_seq, sealed, now);
    let settlement = TurnSettlement {
        session,
        leased_until,
        turn: &ended,
        usage: SessionUsage::of_turn(&end.usage, cost(turn, &end.usage)),
        expires_at: retention.expires_at(now),
        message: message.as_ref(),
        events: &events,
    };
    let counted = usage_events(session, turn, &end.usage)?;
    let month = turn.started_at.month();
    for _ in 0..MAX_ATTEMPTS {
        let read = match known.take() {
            Some(known) => known,
            None => app.store.known_counters(organization, turn.lineage_id, month).await?,
        };
        let mut transaction = app.store.transaction();
        transaction.settle_turn(organization, &settlement, now)?;
        transaction.count_usage(organization, &counted, &read, reservation, now)?;
        match transaction.commit().await {
            Ok(()) => return Ok(ended),
            Err(CommitError::Conflict(Conflict::TurnSettled | Conflict::EventCounted)) => {
                return Err(SettleError::TurnChanged);
            }
            // Another writer changed the counters: read them again.
            Err(CommitError::Conflict(_)) => {}
            Err(CommitError::Store(error)) => return Err(error.into()),
        }
    }
    Err(StoreError::Unavailable("the counters of a settlement keep changing".to_owned()).into())
}

fn amounts(usage: &TurnUsage) -> impl Iterator<Item = (UsageKind, Quantity)> {
    let kinds = [
        (UsageKind::InputTokens, usage.input_tokens),
        (UsageKind::OutputTokens, usage.output_tokens),
        (UsageKind::CacheReadTokens, usage.cache_read_tokens),
        (UsageKind::CacheWriteTokens, usage.cache_write_tokens),
    ];
    kinds.into_iter().filter_map(|(kind, tokens)| Some((kind, Quantity::try_from(tokens).ok()?)))
}

/// Returns the usage events of a turn. Their ids depend on the turn only, and their time is its
/// start.
fn usage_events(session: &SessionId, turn: &Turn, usage: &TurnUsage) -> Result<Vec<UsageEvent>, SettleError> {
    let reference = |text: String| Reference::try_from(text).map_err(|error| SettleError::Encoding(error.to_string()));
    amounts(usage)
        .map(|(kind, quantity)| {
            Ok(UsageEvent {
                client_event_id: reference(format!("{}:{}", turn.id, kind.as_str()))?,
                api_key_id: turn.api_key_id,
                lineage_id: turn.lineage_id,
                kind,
                quantity,
                model: Some(turn.model.clone()),
                cost: turn.price.map(|price| price.cost(kind, quantity)),
                occurred_at: turn.started_at,
                session_id: Some(reference(session.to_string())?),
                model_key_id: Some(turn.model_key_id),
                embed_key_id: None,
            })
        })
        .collect()
}

/// Returns when a lease that starts now ends.
pub fn leased_until(app: &App, now: Timestamp) -> Timestamp {
    now.plus(app.turn_limits.lease)
}

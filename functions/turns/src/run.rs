//! Runs a turn in a task of its own: reads the provider to its end, writes the events, settles.
//!
//! A client that disconnects does not end the task. A request to cancel, a revoked credential, a
//! reached cap and the deadline do.

use std::time::Duration;

use karta_dialects::{Delta, Outcome, ReportedStop};
use karta_shared::{
    App,
    domain::{Budget, Retention, SessionId, StopReason, Timestamp, Turn, TurnCaller, TurnError, TurnStatus, TurnUsage},
    follow::{AccessCheck, SLOW_CLIENT_TIMEOUT},
    http::{EventSender, MessageResource, TurnUsageResource},
    settlement::{RunningTurn, SettleError, TurnEnd, cost, estimate_output, leased_until, settle},
    store::{Amount, KnownCounters, Reservation, StoreError, TurnLease},
    turn_events::{EventBatch, MessagePart, Part, PartKind, Seq, TurnEvent, TurnEventContext, json_bytes},
};
use reqwest::Response;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use crate::{
    event_log::{EventLog, LoggedTurn},
    provider::{Billed, Failure, PROVIDERS, Target},
};

/// Maximum events between a turn and its client.
pub(crate) const BUFFERED_EVENTS: usize = 64;
/// Output tokens that are reserved at a time, where a cap applies.
pub(crate) const SLICE: u64 = 1_024;
/// Maximum text of an event, in bytes. As JSON it may have six times as many, and its frame must fit
/// into an item of the log.
const MAX_EVENT_TEXT_BYTES: usize = 32 << 10;
/// Maximum size of an answer as JSON. A page of messages contains each text twice (`text` and `parts`).
/// The response of a function escapes it again and is limited to 6 MB.
const MAX_ANSWER_BYTES: usize = 1_400_000;
/// Maximum parts of an answer.
const MAX_PARTS: usize = 256;
/// Reported output above 2 × `max_tokens` + this is clamped.
const OUTPUT_MARGIN: u64 = 10_000;
/// Reported input above 4 × the estimate + this is clamped.
const INPUT_MARGIN: u64 = 100_000;
/// How long a stream may go on after a complete answer, before usage or its end.
const TIME_AFTER_ANSWER: Duration = Duration::from_secs(10);
/// Pause between attempts to reserve or to settle.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// A claimed turn.
pub(crate) struct TurnTask {
    pub(crate) app: App,
    pub(crate) caller: TurnCaller,
    pub(crate) session: SessionId,
    pub(crate) turn: Turn,
    /// The end of the lease that the claim took.
    pub(crate) leased_until: Timestamp,
    /// The user's message, as responses show it.
    pub(crate) user_message: MessageResource,
    pub(crate) retention: Retention,
    /// The counters as read; `None` after a failed reservation, because the stored hold is then
    /// unknown.
    pub(crate) known: Option<KnownCounters>,
    pub(crate) reservation: Option<Reservation>,
    /// The budgets of the organization and of the key, for further slices.
    pub(crate) budgets: (Option<Budget>, Option<Budget>),
    /// Output tokens that the reservation covers.
    pub(crate) reserved_output: u64,
    pub(crate) target: Target,
    pub(crate) body: Vec<u8>,
    /// `None` for an answer that is not streamed.
    pub(crate) sender: Option<EventSender>,
}

/// How a turn ended, for the response.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) turn: Turn,
    pub(crate) answer: Vec<MessagePart>,
    pub(crate) failure: Option<Failure>,
}

/// Signals that the handler waits for.
pub(crate) struct Signals {
    /// Resolves when the provider's stream begins.
    pub(crate) began: oneshot::Receiver<()>,
    pub(crate) ended: oneshot::Receiver<Ended>,
}

/// Progress of the provider's stream.
struct Progress {
    outcome: Outcome,
    billed: Billed,
    parts: Vec<ProgressPart>,
    /// Maximum tokens of the output so far, in half tokens. For reservations.
    half_tokens: usize,
    /// Size of the answer as JSON.
    json_bytes: usize,
    seq: Seq,
    log: EventLog,
    sender: Option<EventSender>,
    /// Time of the first increment of text.
    first_text_at: Option<Timestamp>,
    /// Whether the client has not read for a time. It gets no further events, and can follow the turn
    /// from the log.
    is_client_slow: bool,
}

struct ProgressPart {
    /// The part's number in the provider's stream.
    provider_part: u32,
    part: MessagePart,
}

impl TurnTask {
    /// Runs the turn in a task of its own.
    pub(crate) fn spawn(self) -> Signals {
        let (began_tx, began_rx) = oneshot::channel();
        let (ended_tx, ended_rx) = oneshot::channel();
        tokio::spawn(async move {
            let ended = Box::pin(self.run(began_tx)).await;
            // The client may have left.
            ended_tx.send(ended).ok();
        });
        Signals { began: began_rx, ended: ended_rx }
    }

    async fn run(mut self, began_tx: oneshot::Sender<()>) -> Ended {
        let mut progress = Progress::start(&mut self);
        let (app, session, turn) = (self.app.clone(), self.session.clone(), self.turn.clone());
        let early_end = watch_for_end(&app, self.caller, &session, &turn, self.leased_until);
        let ended = tokio::select! {
            ended = self.read(&mut progress, began_tx) => ended,
            early_end = early_end => Err(early_end),
        };
        match ended {
            Err(EarlyEnd::Settled) => {
                tracing::error!(turn_id = %self.turn.id, "turn settled by another process");
                self.release_reservation().await;
                self.abandon(progress).await
            }
            // Boxed, like all calls of the store during a turn: a stream needs no memory for them while it
            // waits for the provider.
            Err(EarlyEnd::Failed(failure)) => Box::pin(self.settle(progress, Some(failure))).await,
            Ok(()) => Box::pin(self.settle(progress, None)).await,
        }
    }

    /// Ends a claimed turn without calling the provider.
    pub(crate) async fn end_unsent(mut self, failure: Failure) {
        let progress = Progress::start(&mut self);
        self.settle(progress, Some(failure)).await;
    }

    /// Reads the provider's stream to its end. Fails if the turn must end without an answer.
    async fn read(&mut self, progress: &mut Progress, began_tx: oneshot::Sender<()>) -> Result<(), EarlyEnd> {
        let body = std::mem::take(&mut self.body);
        let mut response = PROVIDERS.call(&self.app, &self.turn.id, &self.target, &body, &mut progress.billed).await?;
        // The conversation may have megabytes, and the answer may take minutes.
        drop(body);
        began_tx.send(()).ok();
        let (mut decoder, mut deltas) = (self.target.dialect.decoder(), Vec::new());
        let mut complete_at = None;
        while let Some(bytes) = self.next_chunk(&mut response, complete_at).await? {
            decoder.push(bytes.as_ref(), &mut deltas);
            progress.outcome.clone_from(decoder.outcome());
            complete_at = complete_at.or_else(|| progress.outcome.is_complete.then(Instant::now));
            for delta in deltas.drain(..) {
                self.forward(progress, delta).await?;
            }
            if decoder.has_ended() {
                break;
            }
        }
        progress.outcome = decoder.finish(&mut deltas);
        for delta in deltas.drain(..) {
            self.forward(progress, delta).await?;
        }
        if progress.outcome.skipped_frames > 0 {
            let skipped_frames = progress.outcome.skipped_frames;
            tracing::warn!(turn_id = %self.turn.id, skipped_frames, "provider sent unreadable events");
        }
        match &progress.outcome.error {
            Some(fault) => Err(Failure::from_fault(fault.clone(), &self.target.key).into()),
            None if progress.outcome.is_complete => Ok(()),
            None => Err(Failure::from(TurnError::ProviderError).into()),
        }
    }

    /// Reads from the provider's stream. A broken connection counts as its end, because the decoder
    /// knows whether the answer was complete. After a complete answer, reading continues for at most
    /// [`TIME_AFTER_ANSWER`], because usage may follow.
    async fn next_chunk(
        &self,
        response: &mut Response,
        complete_at: Option<Instant>,
    ) -> Result<Option<impl AsRef<[u8]> + use<>>, Failure> {
        let silence = self.app.turn_limits.silence;
        let remaining = complete_at.map(|at| silence.min(TIME_AFTER_ANSWER).saturating_sub(at.elapsed()));
        match timeout(remaining.unwrap_or(silence), response.chunk()).await {
            Err(_) if complete_at.is_some() => Ok(None),
            Err(_) => Err(TurnError::ProviderTimeout.into()),
            Ok(Err(error)) => {
                let (provider, fault) = (self.target.provider.as_str(), error.without_url());
                tracing::warn!(turn_id = %self.turn.id, provider, %fault, "provider stream broken");
                Ok(None)
            }
            Ok(Ok(chunk)) => Ok(chunk),
        }
    }

    /// Sends an increment of the answer as events, after reserving what it may cost.
    async fn forward(&mut self, progress: &mut Progress, delta: Delta) -> Result<(), EarlyEnd> {
        let (kind, provider_part, text) = match delta {
            Delta::Text { part, text } => (PartKind::Text, part, text),
            Delta::Reasoning { part, text } => (PartKind::Reasoning, part, text),
        };
        progress.json_bytes += json_bytes(&text);
        if progress.json_bytes > MAX_ANSWER_BYTES {
            tracing::warn!(turn_id = %self.turn.id, limit = "bytes", "provider sent an answer that is too large to store");
            return Err(Failure::from(TurnError::ProviderError).into());
        }
        progress.half_tokens += text.chars().map(max_half_tokens).sum::<usize>();
        self.extend_reservation(progress.half_tokens.div_ceil(2)).await?;
        for text in pieces(&text) {
            self.send(progress, kind, provider_part, text).await?;
        }
        Ok(())
    }

    /// Sends one event to the client and to the log.
    async fn send(
        &self,
        progress: &mut Progress,
        kind: PartKind,
        provider_part: u32,
        text: &str,
    ) -> Result<(), EarlyEnd> {
        let slot = progress.log.slot().await.ok_or(EarlyEnd::Failed(TurnError::Internal.into()))?;
        if let Some(sender) = progress.sender.as_ref().filter(|_| !progress.is_client_slow) {
            // A slow client's response stays open: Lambda freezes the function when the response ends.
            progress.is_client_slow = timeout(SLOW_CLIENT_TIMEOUT, sender.ready()).await.is_err();
        }
        // No await from here on: a turn that ends early must not log an event that it has not sent.
        let now = self.app.clock.now();
        let is_same = |known: &ProgressPart| known.provider_part == provider_part && known.part.kind == kind;
        let known = progress.parts.iter().position(is_same);
        if known.is_none() {
            if progress.parts.len() == MAX_PARTS {
                tracing::warn!(turn_id = %self.turn.id, limit = "parts", "provider sent an answer that is too large to store");
                return Err(Failure::from(TurnError::ProviderError).into());
            }
            let id = format!("part_{}", progress.parts.len() + 1);
            progress.parts.push(ProgressPart { provider_part, part: MessagePart { id, kind, text: String::new() } });
        }
        let at = known.unwrap_or(progress.parts.len() - 1);
        let part = &mut progress.parts[at].part;
        part.text.push_str(text);
        progress.seq += 1;
        slot.append(now, MessagePart { id: part.id.clone(), kind, text: text.to_owned() });
        if kind == PartKind::Text {
            progress.first_text_at.get_or_insert(now);
        }
        if progress.seq == 1 {
            self.app.metrics.turn_first_event(now, now.since(self.turn.started_at));
        }
        if let Some(sender) = progress.sender.as_ref().filter(|_| !progress.is_client_slow) {
            let event = TurnEvent::Increment::<()> { part: Part { id: &part.id, kind, text } };
            let frame = self.context().frame(progress.seq, now, &event).map_err(|fault| {
                tracing::error!(turn_id = %self.turn.id, %fault, "event not encoded");
                Failure::from(TurnError::Internal)
            })?;
            sender.send_now(frame);
        }
        Ok(())
    }

    /// Reserves further slices when the output may exceed what is reserved.
    async fn extend_reservation(&mut self, output_tokens: usize) -> Result<(), EarlyEnd> {
        let Some(reservation) = &mut self.reservation else { return Ok(()) };
        let estimate = u64::try_from(output_tokens).unwrap_or(u64::MAX);
        let until = Instant::now() + self.app.turn_limits.reserve;
        while estimate > self.reserved_output && self.reserved_output < self.turn.max_tokens {
            let tokens = SLICE.min(self.turn.max_tokens - self.reserved_output);
            let amount = Amount { input_tokens: 0, output_tokens: tokens, cost: output_cost(&self.turn, tokens) };
            let budgets = (self.budgets.0.as_ref(), self.budgets.1.as_ref());
            match Box::pin(self.app.store.reserve(reservation, budgets, amount)).await {
                Ok(Ok(())) => self.reserved_output += tokens,
                Ok(Err(exhausted)) => {
                    let failure = Failure::from(TurnError::BudgetExhausted);
                    return Err(Failure { exhausted: Some(exhausted), ..failure }.into());
                }
                Err(fault @ StoreError::Unavailable(_)) if Instant::now() < until => {
                    tracing::warn!(turn_id = %self.turn.id, %fault, "reservation failed, retrying");
                    self.known = None;
                    sleep(RETRY_PAUSE).await;
                }
                Err(fault) => {
                    tracing::error!(turn_id = %self.turn.id, %fault, "reservation failed");
                    self.known = None;
                    return Err(Failure::from(TurnError::Internal).into());
                }
            }
        }
        Ok(())
    }

    /// Stores the end of the turn, then sends the last event.
    async fn settle(self, progress: Progress, mut failure: Option<Failure>) -> Ended {
        let Progress { outcome, billed, parts, seq, first_text_at, log, sender, is_client_slow, .. } = progress;
        let now = self.app.clock.now();
        let answer: Vec<_> = parts.into_iter().map(|part| part.part).collect();
        let tokens = estimate_output(&self.app, &self.turn, &answer, first_text_at.unwrap_or(now));
        let seen = SeenOutput { is_empty: answer.is_empty(), tokens };
        let (usage, estimated) = metered(&outcome, billed, &self.turn, seen);
        let stop_reason = stop_reason(&outcome);
        let events = log.finish().await.unwrap_or_else(|| {
            // The answer and its usage count more than the replay of its events.
            tracing::error!(turn_id = %self.turn.id, "turn events lost");
            EventBatch::new(seq + 1)
        });
        // A slow client has missed events. Its stream ends without `done` or `error`, so that it follows
        // the turn from the last event that it received.
        let sender = sender.filter(|_| !is_client_slow);
        let mut end = TurnEnd {
            error: None,
            exhausted: None,
            retry_at: None,
            stop_reason: Some(stop_reason),
            usage,
            estimated,
            answer,
            events,
        };
        if let Some(Failure { error, .. }) = &failure
            && matches!(error, TurnError::ProviderError | TurnError::ProviderTimeout | TurnError::ProviderRateLimited)
        {
            self.app.metrics.turn_provider_error(now);
        }
        loop {
            let Ok(last) = self.add_last_event(&mut end, failure.as_ref(), now, seq) else {
                return self.unsettled(end.answer, seq, sender).await;
            };
            match self.store_end(&end).await {
                StoredEnd::Stored(turn) => {
                    send_last(sender, last).await;
                    return Ended { turn: *turn, answer: end.answer, failure };
                }
                // A caller whose request to cancel was accepted must not get another answer for its
                // Idempotency-Key.
                StoredEnd::CancelRequested if end.error != Some(TurnError::TurnCancelled) => {
                    failure = Some(TurnError::TurnCancelled.into());
                }
                StoredEnd::CancelRequested | StoredEnd::NotStored => {
                    return self.unsettled(end.answer, seq, sender).await;
                }
            }
        }
    }

    /// Completes the end of a turn with its failure and its last event. Returns the frames that the
    /// client has not received.
    fn add_last_event(
        &self,
        end: &mut TurnEnd,
        failure: Option<&Failure>,
        now: Timestamp,
        sent: Seq,
    ) -> serde_json::Result<Vec<u8>> {
        if let Some(failure) = failure {
            end.error = Some(failure.error);
            end.exhausted = failure.exhausted;
            end.retry_at = failure.retry_after.map(|after| now.plus(after));
            end.stop_reason = None;
            let (code, message) = (failure.error.as_str(), failure.message());
            end.events.end(now, &TurnEvent::Error::<()> { code, message })?;
        } else {
            let usage = TurnUsageResource::new(&end.usage, cost(&self.turn, &end.usage));
            let message_id = self.turn.assistant_message_id.as_str();
            let stop_reason = end.stop_reason.unwrap_or(StopReason::EndTurn).as_str();
            end.events.end(now, &TurnEvent::Done { message_id, usage: &usage, stop_reason })?;
        }
        end.events.frames_after(self.context(), sent).map(|frames| frames.concat())
    }

    /// Retries the settlement until [`TurnLimits::settle`](karta_shared::config::TurnLimits) has passed,
    /// and renews the lease in between.
    async fn store_end(&self, end: &TurnEnd) -> StoredEnd {
        let retry_until = Instant::now() + self.app.turn_limits.settle;
        // Adds what this turn reserved after the counters were read.
        let mut known = self.known.clone().map(|known| match &self.reservation {
            Some(reservation) => known.with_holds(reservation),
            None => known,
        });
        loop {
            let running = RunningTurn {
                organization: self.caller.organization,
                session: &self.session,
                turn: &self.turn,
                reservation: self.reservation.as_ref(),
                leased_until: None,
            };
            let fault = match settle(&self.app, running, end, known.take(), self.retention).await {
                Ok(turn) => return StoredEnd::Stored(Box::new(turn)),
                Err(SettleError::TurnChanged) => match self.stored_end().await {
                    Ok(stored) => {
                        if !matches!(stored, StoredEnd::CancelRequested) {
                            // The sweep releases what the turn had reserved at that time. This process may have
                            // reserved more since then.
                            self.release_reservation().await;
                        }
                        return stored;
                    }
                    Err(fault) => fault.into(),
                },
                Err(fault) => fault,
            };
            if Instant::now() >= retry_until {
                tracing::error!(turn_id = %self.turn.id, %fault, "turn not settled");
                self.app.metrics.turn_settle_failed(self.app.clock.now());
                return StoredEnd::NotStored;
            }
            tracing::warn!(turn_id = %self.turn.id, %fault, "settlement failed, retrying");
            sleep(RETRY_PAUSE).await;
            let until = leased_until(&self.app, self.app.clock.now());
            let renewal =
                self.app.store.renew_turn_lease(self.caller.organization, &self.session, &self.turn.id, until);
            if let Err(fault) = renewal.await {
                tracing::warn!(turn_id = %self.turn.id, %fault, "lease not renewed");
            }
        }
    }

    /// Reads why a settlement failed.
    async fn stored_end(&self) -> Result<StoredEnd, StoreError> {
        Ok(match self.stored_turn().await? {
            Some(turn) if turn.status == TurnStatus::Running && turn.cancel_requested => StoredEnd::CancelRequested,
            // The response to an earlier settlement of this process was lost.
            Some(turn) if turn.status != TurnStatus::Running && !turn.ended_by_sweep => {
                StoredEnd::Stored(Box::new(turn))
            }
            _ => StoredEnd::NotStored,
        })
    }

    async fn stored_turn(&self) -> Result<Option<Turn>, StoreError> {
        let stored = self.app.store.turn(self.caller.organization, &self.session, &self.turn.id).await?;
        Ok(stored.map(|stored| stored.turn))
    }

    /// Gives up a turn that another process has settled.
    async fn abandon(self, progress: Progress) -> Ended {
        progress.log.abort();
        let answer = progress.parts.into_iter().map(|part| part.part).collect();
        self.unsettled(answer, progress.seq, progress.sender.filter(|_| !progress.is_client_slow)).await
    }

    /// Releases the reservation of a turn that another process settled.
    async fn release_reservation(&self) {
        if let Some(reservation) = &self.reservation
            && let Err(fault) = self.app.store.release_reservation(reservation).await
        {
            tracing::error!(turn_id = %self.turn.id, %fault, "reservation not released");
        }
    }

    fn context(&self) -> TurnEventContext<'_> {
        TurnEventContext { session_id: self.session.as_str(), turn_id: self.turn.id.as_str() }
    }

    /// Ends the response of a turn whose end this process could not store.
    async fn unsettled(self, answer: Vec<MessagePart>, sent: Seq, sender: Option<EventSender>) -> Ended {
        let error = match Box::pin(self.stored_turn()).await {
            Ok(Some(turn)) if turn.cancel_requested || turn.status == TurnStatus::Cancelled => TurnError::TurnCancelled,
            _ => TurnError::Interrupted,
        };
        let failure = Failure::from(error);
        // The sweep writes its own event to the log.
        if let Ok(last) = self.context().unlogged_error(sent, self.app.clock.now(), failure.error) {
            send_last(sender, last).await;
        }
        Ended { turn: self.turn, answer, failure: Some(failure) }
    }
}

impl Progress {
    fn start(task: &mut TurnTask) -> Self {
        let log = EventLog::start(LoggedTurn {
            app: task.app.clone(),
            organization: task.caller.organization,
            session: task.session.clone(),
            turn: task.turn.id.clone(),
        });
        Self {
            outcome: Outcome::default(),
            billed: Billed::Nothing,
            parts: Vec::new(),
            half_tokens: 0,
            json_bytes: 0,
            seq: 0,
            first_text_at: None,
            log,
            sender: task.sender.take(),
            is_client_slow: false,
        }
    }
}

/// What became of a turn's end.
enum StoredEnd {
    /// The turn as it ended.
    Stored(Box<Turn>),
    /// A request to cancel the turn was accepted, so it must end as cancelled.
    CancelRequested,
    /// The store failed, or the sweep was first: its end counts.
    NotStored,
}

/// Why a turn stops before the provider's end.
enum EarlyEnd {
    /// Another process has settled the turn.
    Settled,
    Failed(Failure),
}

impl From<Failure> for EarlyEnd {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Renews the turn's lease, which ends at `leased_to`, and returns when the turn must end early.
async fn watch_for_end(
    app: &App,
    caller: TurnCaller,
    session: &SessionId,
    turn: &Turn,
    mut leased_to: Timestamp,
) -> EarlyEnd {
    let mut access = AccessCheck::new(caller);
    let deadline = if turn.is_streamed { app.turn_limits.streamed } else { app.turn_limits.unary };
    // The limit counts from the request, not from the claim.
    let deadline = Instant::now() + deadline.saturating_sub(app.clock.now().since(turn.started_at));
    let renewal = app.turn_limits.renewal;
    // The reservation may have taken a part of the lease. Two more renewals must fit into the rest.
    let spare = leased_to.since(app.clock.now()).saturating_sub(2 * renewal);
    let mut renew_at = Instant::now() + renewal.min(spare);
    loop {
        tokio::time::sleep_until(renew_at.min(deadline)).await;
        if Instant::now() >= deadline {
            return Failure::from(TurnError::TurnDeadline).into();
        }
        renew_at = Instant::now() + renewal;
        let (now, until) = (app.clock.now(), leased_until(app, app.clock.now()));
        let (lease, lost_access) = tokio::join!(
            Box::pin(app.store.renew_turn_lease(caller.organization, session, &turn.id, until)),
            Box::pin(access.run(app)),
        );
        match lease {
            Ok(TurnLease::Held { cancel_requested: true }) => return Failure::from(TurnError::TurnCancelled).into(),
            Ok(TurnLease::Held { cancel_requested: false }) => leased_to = until,
            Ok(TurnLease::Ended) => return EarlyEnd::Settled,
            // The sweep may settle the turn from now on. This process knows its usage better, and tries.
            Err(fault) if leased_to <= now => {
                tracing::error!(turn_id = %turn.id, %fault, "lease expired");
                return Failure::from(TurnError::Interrupted).into();
            }
            Err(fault) => tracing::warn!(turn_id = %turn.id, %fault, "lease not renewed"),
        }
        if let Some(error) = lost_access {
            return Failure::from(error).into();
        }
    }
}

/// Splits a text into pieces that fit into events.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(MAX_EVENT_TEXT_BYTES));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

async fn send_last(sender: Option<EventSender>, frame: Vec<u8>) {
    if let Some(sender) = sender {
        timeout(SLOW_CLIENT_TIMEOUT, sender.send(frame)).await.ok();
    }
}

/// Returns the maximum tokens for a character of output, in half tokens, so that a reservation is
/// rarely too small. Tokenizers have entries for widely used scripts, and split other characters into
/// bytes.
fn max_half_tokens(character: char) -> usize {
    match character {
        '\0'..='\u{7F}' => 1,
        // Latin, Greek, Cyrillic, Hebrew, Arabic.
        '\u{80}'..='\u{6FF}' => 2,
        // Devanagari to Thai, Vietnamese and Greek with marks, kana, Han, Hangul.
        '\u{900}'..='\u{E7F}'
        | '\u{1E00}'..='\u{1FFF}'
        | '\u{2000}'..='\u{206F}'
        | '\u{3000}'..='\u{9FFF}'
        | '\u{AC00}'..='\u{D7AF}' => 3,
        _ => 2 * character.len_utf8(),
    }
}

/// Returns the cost of output tokens in nano-cents; 0 without a price.
pub(crate) fn output_cost(turn: &Turn, tokens: u64) -> u128 {
    turn.price.map_or(0, |price| u128::from(price.output) * u128::from(tokens))
}

fn stop_reason(outcome: &Outcome) -> StopReason {
    match outcome.stop {
        None | Some(ReportedStop::EndTurn) => StopReason::EndTurn,
        Some(ReportedStop::MaxTokens) => StopReason::MaxTokens,
        Some(ReportedStop::StopSequence) => StopReason::StopSequence,
        Some(ReportedStop::Refusal) => StopReason::Refusal,
        Some(ReportedStop::ToolUse) => StopReason::ToolUse,
    }
}

/// The output that reached this process.
#[derive(Clone, Copy)]
struct SeenOutput {
    is_empty: bool,
    /// Its estimate, with what the provider may have hidden.
    tokens: u64,
}

/// Returns a turn's usage, and whether it is estimated. The provider's final report counts. Without
/// one, the output is at least the estimate of what was seen, or `max_tokens` if the answer was not
/// streamed. An input that the provider never reported is the estimate too. A count of zero for
/// something that exists is no report.
fn metered(outcome: &Outcome, billed: Billed, turn: &Turn, seen: SeenOutput) -> (TurnUsage, bool) {
    let (reported, is_whole_count, seen) = match billed {
        Billed::Nothing => return (TurnUsage::default(), false),
        Billed::Possibly => (outcome.usage, outcome.is_complete && outcome.is_usage_final, seen),
        Billed::WholeAnswer(usage) => (Some(usage), true, SeenOutput { is_empty: false, tokens: turn.max_tokens }),
    };
    let reported = reported.unwrap_or_default();
    let cached = reported.cache_read_tokens.unwrap_or(0).saturating_add(reported.cache_write_tokens.unwrap_or(0));
    let reported_input = reported.input_tokens.filter(|input| input.saturating_add(cached) > 0);
    let reported_output = reported.output_tokens.filter(|output| *output > 0 || seen.is_empty);
    let is_final = is_whole_count && reported_output.is_some();
    let is_whole = is_final && reported_input.is_some();
    let at_least = if is_final { 0 } else { seen.tokens };
    let input_tokens = reported_input.unwrap_or(turn.input_estimate.saturating_sub(cached));
    let output_tokens = reported_output.unwrap_or(0).max(at_least);
    let cache_read_tokens = reported.cache_read_tokens.unwrap_or(0);
    let cache_write_tokens = reported.cache_write_tokens.unwrap_or(0);
    // Implausible counts are clamped, so that a faulty provider cannot distort the sums.
    let max_input = turn.input_estimate.saturating_mul(4).saturating_add(INPUT_MARGIN);
    let usage = TurnUsage {
        input_tokens: input_tokens.min(max_input),
        output_tokens: output_tokens.min(turn.max_tokens.saturating_mul(2).saturating_add(OUTPUT_MARGIN)),
        cache_read_tokens: cache_read_tokens.min(max_input),
        cache_write_tokens: cache_write_tokens.min(max_input),
    };
    let is_clamped = usage != TurnUsage { input_tokens, output_tokens, cache_read_tokens, cache_write_tokens };
    if is_clamped {
        tracing::warn!(turn_id = %turn.id, "provider reported impossible usage");
    }
    (usage, !is_whole || is_clamped)
}

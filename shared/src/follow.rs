//! Follows a turn through its event log: replays what is there and waits for more, in any process.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::{
    app::App,
    auth,
    config::{Ring, SecretError},
    domain::{SessionId, Turn, TurnCaller, TurnError, TurnId, TurnStatus},
    http::{EventSender, EventStream, event_channel},
    store::StoreError,
    transcripts::{TranscriptContext, TranscriptPart, TranscriptUnsealError},
    turn_events::{EventBatch, Seq, TurnEventContext},
};

/// How long a stream waits for a client that has stopped to read.
pub const SLOW_CLIENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum chunks between a follower and its client, and maximum size of a chunk in bytes. Small,
/// because buffered chunks are still delivered after access is lost.
const BUFFERED_CHUNKS: usize = 2;
const MAX_CHUNK_BYTES: usize = 16 << 10;

/// Repeated checks of a caller's access.
#[derive(Debug)]
pub struct AccessCheck {
    caller: TurnCaller,
    confirmed_at: Instant,
    checked_at: Instant,
}

impl AccessCheck {
    /// Starts with a caller that was just authorized.
    pub fn new(caller: TurnCaller) -> Self {
        let now = Instant::now();
        Self { caller, confirmed_at: now, checked_at: now }
    }

    /// Like [`run`](Self::run), at most once in an interval of the lease's renewals.
    pub async fn run_if_due(&mut self, app: &App) -> Option<TurnError> {
        let is_due = Instant::now() >= self.checked_at + app.turn_limits.renewal;
        if is_due { self.run(app).await } else { None }
    }

    /// Returns the reason why the caller's turn or stream must end, if there is one: its key, the key
    /// that minted its token or the organization lost its access, or the `transcript_access` that it
    /// needs is off. If this cannot be read for as long as a lease, access ends too.
    pub async fn run(&mut self, app: &App) -> Option<TurnError> {
        let TurnCaller { organization, api_key, needs_transcript_access } = self.caller;
        let now = Instant::now();
        self.checked_at = now;
        match app.store.access(organization, api_key).await {
            Ok(state)
                if auth::check_status(&state, app.clock.now()).is_ok()
                    && (!needs_transcript_access || state.organization.transcript_access) =>
            {
                self.confirmed_at = now;
                None
            }
            Ok(_) => Some(TurnError::CredentialRevoked),
            Err(fault) => {
                tracing::warn!(organization_id = organization.get(), %fault, "credential not checked");
                (now > self.confirmed_at + app.turn_limits.lease).then_some(TurnError::Interrupted)
            }
        }
    }
}

/// A turn, and the last event that the client has.
#[derive(Debug, Clone)]
pub struct Followed {
    pub caller: TurnCaller,
    pub session: SessionId,
    pub turn: TurnId,
    pub after: Seq,
}

#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Unseal(#[from] TranscriptUnsealError),
    #[error("events cannot be decoded: {0}")]
    Decode(#[from] serde_json::Error),
}

/// Streams a turn's events to its end.
pub fn follow(app: App, followed: Followed) -> EventStream {
    let (sender, stream) = event_channel(BUFFERED_CHUNKS);
    // Longer than the deadline that `run` has itself.
    let deadline = app.turn_limits.streamed + 2 * app.turn_limits.settle;
    let access = AccessCheck::new(followed.caller);
    let run =
        Follower { app, followed, access, fallback_error: None, last_event: None, is_at_batch: false, sender }.run();
    // The deadline also holds for a client that has stopped to read.
    tokio::spawn(timeout(deadline, run));
    stream
}

struct Follower {
    app: App,
    followed: Followed,
    access: AccessCheck,
    /// Set once the turn has ended. Sent if the log does not hold the last event.
    fallback_error: Option<TurnError>,
    /// The number of the turn's last event, once the turn has stored it.
    last_event: Option<Seq>,
    /// Whether the last event sent is the last one of its batch: one query finds the next batches.
    is_at_batch: bool,
    sender: EventSender,
}

/// The result of reading the log once.
enum ReadResult {
    Nothing,
    Events,
    /// The next events are missing or cannot be read, or the caller may not read them.
    Failed(TurnError),
    End,
}

impl Follower {
    async fn run(mut self) {
        let limits = self.app.turn_limits;
        // Longer than any turn takes, unless its process died and the sweep has not ended it.
        let deadline = Instant::now() + limits.streamed + limits.settle;
        while !self.sender.is_closed() {
            let is_late = Instant::now() >= deadline;
            // The log comes first: a replay does not depend on whether the turn still runs.
            match self.read_log().await {
                Ok(ReadResult::End) => return,
                Ok(ReadResult::Failed(error)) => return self.end(error).await,
                // A client that reads slowly can resume: its stream ends without `error`.
                Ok(ReadResult::Events) if is_late => return,
                Ok(ReadResult::Events) => continue,
                // The settlement may have replaced the batch that was read last.
                Ok(ReadResult::Nothing) if self.fallback_error.is_some() && self.is_at_batch => {
                    self.is_at_batch = false;
                    continue;
                }
                // The turn's last event is at or before `after`: the client named a number that did not exist
                // yet. Send the last event, so that the stream has its end.
                Ok(ReadResult::Nothing) if self.last_event.is_some_and(|last| last <= self.followed.after) => {
                    self.followed.after = self.last_event.take().map_or(0, |last| last.saturating_sub(1));
                    continue;
                }
                // The turn was read before the log, and a turn that has ended has written all events.
                Ok(ReadResult::Nothing) => {
                    if let Some(error) = self.fallback_error {
                        return self.end(error).await;
                    }
                }
                Err(fault) => tracing::warn!(turn_id = %self.followed.turn, %fault, "turn events not read"),
            }
            if is_late {
                return self.end(TurnError::Interrupted).await;
            }
            if let Some(error) = self.access.run_if_due(&self.app).await {
                return self.end(error).await;
            }
            sleep(limits.poll).await;
            if let Err(fault) = self.read_turn().await {
                tracing::warn!(turn_id = %self.followed.turn, %fault, "followed turn not read");
            }
        }
    }

    /// Reads whether the turn has ended. A deleted turn counts as ended.
    async fn read_turn(&mut self) -> Result<(), FollowError> {
        if self.fallback_error.is_none() {
            let Followed { caller, session, turn, .. } = &self.followed;
            let stored = self.app.store.turn(caller.organization, session, turn).await?;
            let turn = stored.map(|stored| stored.turn);
            self.fallback_error = match turn.as_ref().map(|turn| turn.status) {
                Some(TurnStatus::Running) => None,
                Some(TurnStatus::Cancelled) => Some(TurnError::TurnCancelled),
                _ => Some(TurnError::Interrupted),
            };
            let has_last_event = |turn: &Turn| turn.status != TurnStatus::Running && !turn.ended_by_sweep;
            self.last_event = turn.filter(has_last_event).map(|turn| turn.last_seq);
        }
        Ok(())
    }

    /// Sends the events that the client does not have.
    async fn read_log(&mut self) -> Result<ReadResult, FollowError> {
        let Followed { caller: TurnCaller { organization, .. }, session, turn, after } = self.followed.clone();
        let (store, now) = (&self.app.store, self.app.clock.now());
        let batches = if self.is_at_batch {
            store.next_turn_events(organization, &session, &turn, after, now).await?
        } else {
            store.turn_events(organization, &session, &turn, after, now).await?
        };
        let mut result = ReadResult::Nothing;
        for batch in batches {
            let context = TranscriptContext { organization, session: &session, turn: &turn };
            if batch.first_seq > self.followed.after + 1 {
                // A process could not write its log. The messages have what is missing.
                return Ok(ReadResult::Failed(TurnError::Internal));
            }
            let ring = self.app.secrets.ring_with(Ring::SealingSessions, &batch.content.kid).await?;
            let part = TranscriptPart::Events { first_seq: batch.first_seq };
            let event_context = TurnEventContext { session_id: session.as_str(), turn_id: turn.as_str() };
            let read = || -> Result<_, FollowError> {
                let batch = EventBatch::decode(batch.first_seq, &context.open(&ring, part, &batch.content)?)?;
                let frames = batch.frames_after(event_context, self.followed.after)?;
                Ok((batch, frames))
            };
            let (batch, frames) = match read() {
                Ok(read) => read,
                Err(fault) => {
                    tracing::error!(turn_id = %turn, %fault, "turn events cannot be opened");
                    return Ok(ReadResult::Failed(TurnError::Internal));
                }
            };
            let has_events = !frames.is_empty();
            for (chunk, events) in chunks(frames) {
                // A client that reads slowly may be here for minutes.
                if let Some(error) = self.access.run_if_due(&self.app).await {
                    return Ok(ReadResult::Failed(error));
                }
                // A client that has stopped to read can resume.
                let sent = timeout(SLOW_CLIENT_TIMEOUT, self.sender.send(chunk)).await;
                if !sent.unwrap_or(false) {
                    return Ok(ReadResult::End);
                }
                self.followed.after += events;
                result = ReadResult::Events;
            }
            self.is_at_batch |= has_events;
            if batch.is_end() {
                return Ok(ReadResult::End);
            }
        }
        Ok(result)
    }

    /// Ends the stream with an event that is not in the log.
    async fn end(&self, error: TurnError) {
        let Followed { session, turn, after, .. } = &self.followed;
        let context = TurnEventContext { session_id: session.as_str(), turn_id: turn.as_str() };
        if let Ok(frame) = context.unlogged_error(*after, self.app.clock.now(), error) {
            timeout(SLOW_CLIENT_TIMEOUT, self.sender.send(frame)).await.ok();
        }
    }
}

/// Joins frames into chunks, and counts the frames of each. A frame of more than [`MAX_CHUNK_BYTES`] is
/// a chunk.
fn chunks(frames: Vec<Vec<u8>>) -> Vec<(Vec<u8>, Seq)> {
    let mut chunks: Vec<(Vec<u8>, Seq)> = Vec::new();
    for frame in frames {
        match chunks.last_mut() {
            Some((chunk, events)) if chunk.len() + frame.len() <= MAX_CHUNK_BYTES => {
                chunk.extend(frame);
                *events += 1;
            }
            _ => chunks.push((frame, 1)),
        }
    }
    chunks
}

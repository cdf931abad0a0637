//! Follows a turn through its event log: replays what is there and waits for more, in any process.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::{
    app::App,
    auth,
    config::{Ring, SecretError},
    domain::{Id, SessionId, Turn, TurnError, TurnId, TurnStatus},
    http::{EventSender, EventStream, event_channel},
    store::StoreError,
    transcripts::{TranscriptContext, TranscriptPart, TranscriptUnsealError},
    turn_events::{EventBatch, Seq, TurnEventContext},
};

/// How long a stream waits for a client that has stopped to read.
const SLOW_CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// A turn, and the last event that the client has.
#[derive(Debug, Clone)]
pub struct Followed {
    pub organization: Id,
    /// The caller's key, or the one that minted its token: losing its access ends the stream.
    pub api_key: Id,
    pub session: SessionId,
    pub turn: TurnId,
    pub after: Seq,
    /// Whether the caller needs the organization's `transcript_access`, which may be switched off.
    pub needs_transcript_access: bool,
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
    let (sender, stream) = event_channel();
    // Longer than the deadline that `run` has itself.
    let deadline = app.turn_limits.streamed + 2 * app.turn_limits.settle;
    let run = Follower { app, followed, has_ended: false, last_event: None, is_at_batch: false, sender }.run();
    // The deadline also holds for a client that has stopped to read.
    tokio::spawn(timeout(deadline, run));
    stream
}

/// Returns whether a caller may no longer read a turn: its key, the key that minted its token or the
/// organization lost its access, or the `transcript_access` that it needs is off.
pub async fn has_lost_access(app: &App, organization: Id, api_key: Id, needs_transcript_access: bool) -> bool {
    match app.store.access(organization, api_key).await {
        Ok(state) => {
            auth::check_status(&state, app.clock.now()).is_err()
                || (needs_transcript_access && !state.organization.transcript_access)
        }
        Err(fault) => {
            tracing::warn!(organization_id = organization.get(), %fault, "credential not checked");
            false
        }
    }
}

struct Follower {
    app: App,
    followed: Followed,
    /// Whether the turn had ended when it was read last.
    has_ended: bool,
    /// The number of the turn's last event, once the turn has stored it.
    last_event: Option<Seq>,
    /// Whether the last event sent is the last one of its batch: one query finds the next batches.
    is_at_batch: bool,
    sender: EventSender,
}

/// The result of one look at the log.
enum Look {
    Nothing,
    Events,
    /// The next events are missing or cannot be read.
    Gap,
    End,
}

impl Follower {
    async fn run(mut self) {
        let limits = self.app.turn_limits;
        // Longer than any turn takes, unless its process died and the sweep has not ended it.
        let deadline = Instant::now() + limits.streamed + limits.settle;
        let mut check_at = Instant::now() + limits.renewal;
        while Instant::now() < deadline && !self.sender.is_closed() {
            // The log comes first: a replay does not depend on whether the turn still runs.
            match self.look().await {
                Ok(Look::End) => return,
                Ok(Look::Gap) => return self.end(TurnError::Internal).await,
                Ok(Look::Events) => continue,
                // The settlement may have replaced the batch that was read last.
                Ok(Look::Nothing) if self.has_ended && self.is_at_batch => {
                    self.is_at_batch = false;
                    continue;
                }
                // The client names an event that the turn never had. The last one tells how it ended.
                Ok(Look::Nothing) if self.last_event.is_some_and(|last| last <= self.followed.after) => {
                    self.followed.after = self.last_event.take().map_or(0, |last| last.saturating_sub(1));
                    continue;
                }
                // The turn was read before the log, and a turn that has ended has written all events.
                Ok(Look::Nothing) if self.has_ended => return self.end(TurnError::Interrupted).await,
                Ok(Look::Nothing) => {}
                Err(fault) => tracing::warn!(turn_id = %self.followed.turn, %fault, "turn events not read"),
            }
            if Instant::now() >= check_at {
                check_at = Instant::now() + limits.renewal;
                let Followed { organization, api_key, needs_transcript_access, .. } = self.followed;
                if has_lost_access(&self.app, organization, api_key, needs_transcript_access).await {
                    return self.end(TurnError::CredentialRevoked).await;
                }
            }
            sleep(limits.poll).await;
            if let Err(fault) = self.read_turn().await {
                tracing::warn!(turn_id = %self.followed.turn, %fault, "followed turn not read");
            }
        }
        self.end(TurnError::Interrupted).await;
    }

    /// Reads whether the turn has ended. A deleted one has.
    async fn read_turn(&mut self) -> Result<(), FollowError> {
        if !self.has_ended {
            let Followed { organization, session, turn, .. } = &self.followed;
            let stored = self.app.store.turn(*organization, session, turn).await?;
            let turn = stored.map(|stored| stored.turn);
            self.has_ended = turn.as_ref().is_none_or(|turn| turn.status != TurnStatus::Running);
            let stores_its_end = |turn: &Turn| !matches!(turn.status, TurnStatus::Running | TurnStatus::Interrupted);
            self.last_event = turn.filter(stores_its_end).map(|turn| turn.last_seq);
        }
        Ok(())
    }

    /// Sends the events that the client does not have.
    async fn look(&mut self) -> Result<Look, FollowError> {
        let Followed { organization, session, turn, after, .. } = self.followed.clone();
        let (store, now) = (&self.app.store, self.app.clock.now());
        let batches = if self.is_at_batch {
            store.next_turn_events(organization, &session, &turn, after, now).await?
        } else {
            store.turn_events(organization, &session, &turn, after, now).await?
        };
        let mut look = Look::Nothing;
        for batch in batches {
            let context = TranscriptContext { organization, session: &session, turn: &turn };
            if batch.first_seq > self.followed.after + 1 {
                // A process could not write its log. The messages have what is missing.
                return Ok(Look::Gap);
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
                    return Ok(Look::Gap);
                }
            };
            if !frames.is_empty() {
                // A client that has stopped to read can resume.
                let sent = timeout(SLOW_CLIENT_TIMEOUT, self.sender.send(frames)).await;
                if !sent.unwrap_or(false) {
                    return Ok(Look::End);
                }
                (self.followed.after, self.is_at_batch) = (batch.next_seq() - 1, true);
                look = Look::Events;
            }
            if batch.is_end() {
                return Ok(Look::End);
            }
        }
        Ok(look)
    }

    /// Ends the stream with an event that is not in the log.
    async fn end(&self, error: TurnError) {
        let Followed { session, turn, after, .. } = &self.followed;
        let context = TurnEventContext { session_id: session.as_str(), turn_id: turn.as_str() };
        if let Ok(frame) = context.unlogged_error(*after, self.app.clock.now(), error) {
            timeout(Duration::from_secs(5), self.sender.send(frame)).await.ok();
        }
    }
}

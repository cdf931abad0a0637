//! Follows a turn through its event log: replays what is there and waits for more, in any process.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::{
    app::App,
    auth,
    config::{Ring, SecretError},
    domain::{Id, SessionId, TurnError, TurnId, TurnStatus},
    http::{EventSender, EventStream, event_channel},
    store::StoreError,
    transcripts::{TranscriptContext, TranscriptPart, TranscriptUnsealError},
    turn_events::{Seq, TurnEvent, TurnEventContext, frames_after, is_end},
};

/// A turn, and the last event that the client has.
#[derive(Debug, Clone)]
pub struct Followed {
    pub organization: Id,
    /// The caller's key, or the one that minted its token: losing its access ends the stream.
    pub api_key: Id,
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
}

/// Streams a turn's events to its end.
pub fn follow(app: App, followed: Followed) -> EventStream {
    let (sender, stream) = event_channel();
    tokio::spawn(async move { Follower { app, followed, sender }.run().await });
    stream
}

struct Follower {
    app: App,
    followed: Followed,
    sender: EventSender,
}

/// The result of one look at the log.
enum Look {
    Nothing,
    Events,
    End,
}

impl Follower {
    async fn run(mut self) {
        let limits = self.app.turn_limits;
        let deadline = Instant::now() + limits.streamed;
        let mut check_at = Instant::now() + limits.renewal;
        while Instant::now() < deadline && !self.sender.is_closed() {
            // Read before the events: a turn that has ended has written all of them.
            let is_running = self.is_running().await;
            let look = self.look().await;
            match (look, is_running) {
                (Ok(Look::End), _) => return,
                (Ok(Look::Events), _) => continue,
                (Ok(Look::Nothing), Ok(true)) => {}
                (Ok(Look::Nothing), Ok(false)) => return self.end(TurnError::Interrupted).await,
                (Err(fault), _) | (_, Err(fault)) => {
                    tracing::warn!(turn_id = %self.followed.turn, %fault, "turn events not read");
                }
            }
            if Instant::now() >= check_at {
                check_at = Instant::now() + limits.renewal;
                if self.is_cut_off().await {
                    return self.end(TurnError::CredentialRevoked).await;
                }
            }
            sleep(limits.poll).await;
        }
    }

    async fn is_running(&self) -> Result<bool, FollowError> {
        let Followed { organization, session, turn, .. } = &self.followed;
        let stored = self.app.store.turn(*organization, session, turn).await?;
        Ok(stored.is_some_and(|stored| stored.turn.status == TurnStatus::Running))
    }

    /// Sends the events that the client does not have.
    async fn look(&mut self) -> Result<Look, FollowError> {
        let Followed { organization, session, turn, after, .. } = self.followed.clone();
        let batches = self.app.store.turn_events(organization, &session, &turn, after, self.app.clock.now()).await?;
        let mut look = Look::Nothing;
        for batch in batches {
            let context = TranscriptContext { organization, session: &session, turn: &turn };
            let mut ring = self.app.secrets.ring(Ring::SealingSessions).await?;
            if ring.get(batch.content.kid.as_str()).is_none() {
                ring = self.app.secrets.ring_refetched(Ring::SealingSessions).await?;
            }
            let part = TranscriptPart::Events { first_seq: batch.first_seq };
            let frames = context.open(&ring, part, &batch.content)?;
            if let Some((frames, last)) = frames_after(&frames, self.followed.after) {
                let ends = is_end(frames);
                self.sender.send(frames.to_vec()).await;
                self.followed.after = last;
                if ends {
                    return Ok(Look::End);
                }
                look = Look::Events;
            } else if is_end(&frames) {
                return Ok(Look::End);
            }
        }
        Ok(look)
    }

    /// Returns whether the caller lost its access.
    async fn is_cut_off(&self) -> bool {
        let Followed { organization, api_key, .. } = self.followed;
        match self.app.store.access(organization, api_key).await {
            Ok(state) => auth::check_status(&state, self.app.clock.now()).is_err(),
            Err(fault) => {
                tracing::warn!(%fault, "credential not checked");
                false
            }
        }
    }

    /// Ends the stream with an event that is not in the log.
    async fn end(&self, error: TurnError) {
        let Followed { session, turn, after, .. } = &self.followed;
        let context = TurnEventContext { session_id: session.as_str(), turn_id: turn.as_str() };
        let event: TurnEvent<'_, ()> = TurnEvent::Error { code: error.as_str(), message: error.message() };
        if let Ok(frame) = context.frame(after + 1, self.app.clock.now(), &event) {
            timeout(Duration::from_secs(5), self.sender.send(frame)).await.ok();
        }
    }
}

//! Writes the events of a turn to its log in batches, beside the stream to the client.

use std::time::Duration;

use karta_shared::{
    App,
    config::Ring,
    domain::{Id, SessionId, TurnId},
    store::SealedEvents,
    transcripts::{TranscriptContext, TranscriptPart},
    turn_events::{Seq, frames_after},
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

/// A batch is written after this time, or as soon as it has `BATCH_BYTES`.
const BATCH_TIME: Duration = Duration::from_secs(1);
const BATCH_BYTES: usize = 4 << 10;

/// The log of a running turn. [`finish`](Self::finish) returns what is not written yet.
#[derive(Debug)]
pub(crate) struct EventLog {
    frames: mpsc::UnboundedSender<(Seq, Vec<u8>)>,
    writer: JoinHandle<Batch>,
}

/// Consecutive frames.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    first_seq: Seq,
    last_seq: Seq,
    frames: Vec<u8>,
}

/// The turn whose log is written.
#[derive(Debug, Clone)]
pub(crate) struct LoggedTurn {
    pub(crate) app: App,
    pub(crate) organization: Id,
    pub(crate) session: SessionId,
    pub(crate) turn: TurnId,
}

impl EventLog {
    pub(crate) fn start(turn: LoggedTurn) -> Self {
        let (frames, received) = mpsc::unbounded_channel();
        Self { frames, writer: tokio::spawn(write(turn, received)) }
    }

    /// Appends a frame. Does not wait for its write.
    pub(crate) fn append(&self, seq: Seq, frame: &[u8]) {
        // The writer ends only after this sender.
        self.frames.send((seq, frame.to_vec())).ok();
    }

    /// Stops writing, and returns the frames that are not in the log.
    pub(crate) async fn finish(self) -> Batch {
        drop(self.frames);
        self.writer.await.unwrap_or_default()
    }
}

impl Batch {
    fn push(&mut self, seq: Seq, frame: &[u8]) {
        if self.frames.is_empty() {
            self.first_seq = seq;
        }
        self.last_seq = seq;
        self.frames.extend_from_slice(frame);
    }

    /// Appends the last frame of the turn.
    pub(crate) fn with_last(mut self, seq: Seq, frame: &[u8]) -> (Seq, Seq, Vec<u8>) {
        self.push(seq, frame);
        (self.first_seq, self.last_seq, self.frames)
    }
}

async fn write(turn: LoggedTurn, mut received: mpsc::UnboundedReceiver<(Seq, Vec<u8>)>) -> Batch {
    let mut batch = Batch::default();
    while let Some((seq, frame)) = received.recv().await {
        batch.push(seq, &frame);
        let due = Instant::now() + BATCH_TIME;
        while batch.frames.len() < BATCH_BYTES {
            match timeout_at(due, received.recv()).await {
                Ok(Some((seq, frame))) => batch.push(seq, &frame),
                // The settlement writes the rest.
                Ok(None) => return batch,
                Err(_) => break,
            }
        }
        match turn.append(&batch).await {
            Ok(rest) => batch = rest,
            // The next batch includes these frames.
            Err(fault) => tracing::warn!(turn_id = %turn.turn, %fault, "turn events not written"),
        }
    }
    batch
}

impl LoggedTurn {
    /// Writes a batch. Returns the frames that are still to be written.
    async fn append(&self, batch: &Batch) -> Result<Batch, Box<dyn std::error::Error + Send + Sync>> {
        let Self { app, organization, session, turn } = self;
        let (organization, now) = (*organization, app.clock.now());
        let ring = app.secrets.ring(Ring::SealingSessions).await?;
        let context = TranscriptContext { organization, session, turn };
        let part = TranscriptPart::Events { first_seq: batch.first_seq };
        let sealed = context.seal(&ring, &*app.entropy, part, &batch.frames);
        let events = SealedEvents::new(batch.first_seq, batch.last_seq, sealed, now);
        if app.store.append_turn_events(organization, session, turn, &events).await? {
            return Ok(Batch::default());
        }
        // An earlier write took effect although its response was lost.
        let stored = app.store.turn_events(organization, session, turn, batch.first_seq - 1, now).await?;
        let last_seq = stored.last().map_or(batch.first_seq - 1, |stored| stored.last_seq);
        Ok(match frames_after(&batch.frames, last_seq) {
            Some((frames, _)) => Batch { first_seq: last_seq + 1, last_seq: batch.last_seq, frames: frames.to_vec() },
            None => Batch::default(),
        })
    }
}

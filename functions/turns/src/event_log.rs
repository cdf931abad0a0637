//! Writes the events of a turn to its log in batches, beside the stream to the client.

use std::time::Duration;

use karta_shared::{
    App,
    config::Ring,
    domain::{Id, SessionId, TurnId},
    store::{SealedEvents, StoreError},
    transcripts::{TranscriptContext, TranscriptPart},
    turn_events::{Seq, frames_after},
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};

/// A batch is written after this time, or as soon as it has `BATCH_BYTES`.
const BATCH_TIME: Duration = Duration::from_secs(1);
const BATCH_BYTES: usize = 4 << 10;
/// A batch of this size takes no more of the frames that were queued during the last write. With one
/// frame more, which has at most 200 KB, it fits into an item of 400 KB.
const FULL_BATCH_BYTES: usize = 160 << 10;
/// Maximum frames in the queue. If the log cannot be written, the turn waits instead of filling the
/// memory.
const MAX_QUEUED_FRAMES: usize = 1_024;
/// Pause after a failed write.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How long the end of a turn waits for the log.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

type QueuedFrame = (Seq, Vec<u8>);

/// The log of a running turn. [`finish`](Self::finish) returns the frames that are not written yet.
#[derive(Debug)]
pub(crate) struct EventLog {
    frames: mpsc::Sender<QueuedFrame>,
    writer: JoinHandle<Batch>,
}

/// A place in the queue of a log.
#[derive(Debug)]
pub(crate) struct LogSlot<'a>(mpsc::Permit<'a, QueuedFrame>);

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
        let (frames, received) = mpsc::channel(MAX_QUEUED_FRAMES);
        Self { frames, writer: tokio::spawn(write(turn, received)) }
    }

    /// Waits for a place in the queue. `None` if the writer panicked.
    pub(crate) async fn slot(&self) -> Option<LogSlot<'_>> {
        self.frames.reserve().await.ok().map(LogSlot)
    }

    /// Stops writing, and returns the frames that are not in the log. `None` if frames are lost, or
    /// more are left than the settlement can write.
    pub(crate) async fn finish(self) -> Option<Batch> {
        let Self { frames, mut writer } = self;
        drop(frames);
        let finished = timeout(FINISH_TIMEOUT, &mut writer).await;
        writer.abort();
        finished.ok()?.ok()
    }

    /// Stops writing at once.
    pub(crate) fn abort(self) {
        self.writer.abort();
    }
}

impl LogSlot<'_> {
    /// Appends a frame. Does not wait for its write.
    pub(crate) fn append(self, seq: Seq, frame: &[u8]) {
        self.0.send((seq, frame.to_vec()));
    }
}

impl Batch {
    fn push(&mut self, (seq, frame): QueuedFrame) {
        if self.frames.is_empty() {
            self.first_seq = seq;
        }
        self.last_seq = seq;
        self.frames.extend_from_slice(&frame);
    }

    /// Appends the last frame of the turn.
    pub(crate) fn with_last(mut self, seq: Seq, frame: Vec<u8>) -> (Seq, Seq, Vec<u8>) {
        self.push((seq, frame));
        (self.first_seq, self.last_seq, self.frames)
    }
}

/// Writes frames in batches until the queue is closed. Returns the frames that one item can take
/// with the last frame of the turn: the settlement writes them.
async fn write(turn: LoggedTurn, mut received: mpsc::Receiver<QueuedFrame>) -> Batch {
    let mut batch = Batch::default();
    // Whether the store may have the batch, because its last write failed.
    let mut is_uncertain = false;
    loop {
        if batch.frames.is_empty() {
            match received.recv().await {
                Some(frame) => batch.push(frame),
                None => return batch,
            }
        }
        let due = Instant::now() + BATCH_TIME;
        while batch.frames.len() < BATCH_BYTES
            && let Ok(Some(frame)) = timeout_at(due, received.recv()).await
        {
            batch.push(frame);
        }
        while batch.frames.len() < FULL_BATCH_BYTES
            && let Ok(frame) = received.try_recv()
        {
            batch.push(frame);
        }
        if received.is_closed() && received.is_empty() {
            if !is_uncertain {
                return batch;
            }
            // The settlement fails if it writes a frame that the log has.
            return Box::pin(turn.unwritten(&batch)).await.unwrap_or(batch);
        }
        match Box::pin(turn.append(&batch)).await {
            Ok(rest) => (batch, is_uncertain) = (rest, false),
            // The next batch includes these frames.
            Err(fault) => {
                tracing::warn!(turn_id = %turn.turn, %fault, "turn events not written");
                is_uncertain = true;
                sleep(RETRY_PAUSE).await;
            }
        }
    }
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
        Ok(self.unwritten(batch).await?)
    }

    /// Returns the frames of a batch that the log does not have.
    async fn unwritten(&self, batch: &Batch) -> Result<Batch, StoreError> {
        let Self { app, organization, session, turn } = self;
        let (organization, now) = (*organization, app.clock.now());
        let stored = app.store.turn_events(organization, session, turn, batch.first_seq - 1, now).await?;
        let last_seq = stored.last().map_or(batch.first_seq - 1, |stored| stored.last_seq);
        Ok(match frames_after(&batch.frames, last_seq) {
            Some((frames, _)) => Batch { first_seq: last_seq + 1, last_seq: batch.last_seq, frames: frames.to_vec() },
            None => Batch::default(),
        })
    }
}

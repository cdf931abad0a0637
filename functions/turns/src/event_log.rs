//! Writes the events of a turn to its log in batches, beside the stream to the client.

use std::time::Duration;

use karta_shared::{
    App,
    config::Ring,
    domain::{Id, SessionId, Timestamp, TurnId},
    store::SealedEvents,
    transcripts::{TranscriptContext, TranscriptPart},
    turn_events::{EventBatch, MessagePart, Seq},
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};

/// A batch is written after this time, or as soon as it has `BATCH_BYTES`.
const BATCH_TIME: Duration = Duration::from_secs(1);
const BATCH_BYTES: usize = 4 << 10;
/// A batch of this size takes no more of the increments that were queued during the last write. With
/// one more, which has at most 200 KB, it fits into an item of 400 KB.
const FULL_BATCH_BYTES: usize = 160 << 10;
/// Maximum increments in the queue. If the log cannot be written, the turn waits instead of filling
/// the memory.
const MAX_QUEUED: usize = 1_024;
/// Pause after a failed write.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How long the end of a turn waits for the log.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

type Queued = (Timestamp, MessagePart);

/// The log of a running turn. [`finish`](Self::finish) returns the events that are not written yet.
#[derive(Debug)]
pub(crate) struct EventLog {
    queue: mpsc::Sender<Queued>,
    writer: JoinHandle<EventBatch>,
}

/// A slot in the queue of a log.
#[derive(Debug)]
pub(crate) struct LogSlot<'a>(mpsc::Permit<'a, Queued>);

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
        let (queue, received) = mpsc::channel(MAX_QUEUED);
        Self { queue, writer: tokio::spawn(write(turn, received)) }
    }

    /// Waits for a slot in the queue. `None` if the writer panicked.
    pub(crate) async fn slot(&self) -> Option<LogSlot<'_>> {
        self.queue.reserve().await.ok().map(LogSlot)
    }

    /// Stops writing, and returns the events that are not in the log. `None` if events are lost, or
    /// more are left than the settlement can write.
    pub(crate) async fn finish(self) -> Option<EventBatch> {
        let Self { queue, mut writer } = self;
        drop(queue);
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
    /// Appends an increment. Does not wait for its write.
    pub(crate) fn append(self, at: Timestamp, increment: MessagePart) {
        self.0.send((at, increment));
    }
}

/// Writes increments in batches until the queue is closed. Returns the unwritten events. They and the
/// turn's last event fit into one item, which the settlement writes.
async fn write(turn: LoggedTurn, mut received: mpsc::Receiver<Queued>) -> EventBatch {
    let mut batch = EventBatch::new(1);
    loop {
        if batch.is_empty() {
            match received.recv().await {
                Some((at, increment)) => batch.push(at, increment),
                None => return batch,
            }
        }
        let due = Instant::now() + BATCH_TIME;
        while batch.bytes() < BATCH_BYTES
            && let Ok(Some((at, increment))) = timeout_at(due, received.recv()).await
        {
            batch.push(at, increment);
        }
        while batch.bytes() < FULL_BATCH_BYTES
            && let Ok((at, increment)) = received.try_recv()
        {
            batch.push(at, increment);
        }
        if received.is_closed() && received.is_empty() {
            return batch;
        }
        match Box::pin(turn.append(&batch)).await {
            Ok(last_seq) => batch.drop_to(last_seq),
            // The next batch includes these events.
            Err(fault) => {
                tracing::warn!(turn_id = %turn.turn, %fault, "turn events not written");
                sleep(RETRY_PAUSE).await;
            }
        }
    }
}

impl LoggedTurn {
    /// Writes a batch. Returns the number of the last event in the log.
    async fn append(&self, batch: &EventBatch) -> Result<Seq, Box<dyn std::error::Error + Send + Sync>> {
        let Self { app, organization, session, turn } = self;
        let (organization, now) = (*organization, app.clock.now());
        let (first_seq, last_seq) = (batch.first_seq(), batch.next_seq() - 1);
        let ring = app.secrets.ring(Ring::SealingSessions).await?;
        let context = TranscriptContext { organization, session, turn };
        let sealed = context.seal(&ring, &*app.entropy, TranscriptPart::Events { first_seq }, &batch.encode()?);
        let events = SealedEvents::new(first_seq, last_seq, sealed, now);
        if app.store.append_turn_events(organization, session, turn, &events).await? {
            return Ok(last_seq);
        }
        // An earlier write took effect although its response was lost.
        let stored = app.store.turn_events(organization, session, turn, first_seq - 1, now).await?;
        Ok(stored.last().map_or(first_seq - 1, |stored| stored.last_seq))
    }
}

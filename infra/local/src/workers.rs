//! Runs the workers after writes to their queues, when queued items are due, and on their
//! schedules.
//!
//! A worker's queue is the index that its policies in `template.yaml` allow it to query. Waiting
//! workers watch for writes instead of polling, so an idle runner sends few queries to the store.

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use karta_shared::{clock::Clock, domain::Timestamp};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    emulator::{Emulator, WatchedIndex},
    registry::RunWorker,
    template::{Function, Template},
};

/// Maximum concurrent runs of a worker that reads a stream. As with Lambda, a slow run does not
/// delay the next one.
const MAX_CONCURRENT_RUNS: usize = 8;
/// Pause after the start of a run. The next run covers all writes of this window.
const BATCH_WINDOW: Duration = Duration::from_millis(20);
/// Pause between a write and the index lookup, so that one lookup covers a burst of writes.
const SETTLE_TIME: Duration = Duration::from_millis(100);
/// Pause between two runs of a worker whose last run left due items. It doubles up to `MAX_PAUSE`
/// while nothing is written.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// How often a waiting worker reads the clock, which a test or a sleeping machine can move.
const CLOCK_READ_INTERVAL: Duration = Duration::from_secs(1);

/// Starts the template's workers. Dropping the returned set aborts them. Fails if the template and
/// `workers` name different functions.
pub fn start(
    mut workers: BTreeMap<&'static str, RunWorker>,
    template: &Template,
    emulator: &Emulator,
    clock: &Arc<dyn Clock>,
) -> Result<JoinSet<()>> {
    let mut running = JoinSet::new();
    // Functions without a schedule are not started here: the gateway calls the authorizer, and only
    // Secrets Manager in AWS starts the secrets rotation.
    for (function, period) in template.functions.iter().filter_map(|function| Some((function, function.schedule?))) {
        let worker = workers.remove(function.binary.as_str());
        let run_worker = worker
            .with_context(|| format!("template.yaml lists {}, which has no worker in registry.rs", function.binary))?;
        let queue = queue(function, emulator).with_context(|| function.binary.clone())?;
        let (stream, clock) = (emulator.outbox_writes(&function.outbox_prefixes), Arc::clone(clock));
        running.spawn(WorkerLoop { run_worker, period, stream, queue, clock }.run());
    }
    ensure!(workers.is_empty(), "workers missing in template.yaml: {:?}", workers.keys());
    Ok(running)
}

/// Returns the queue of a worker: the index that the worker's policies allow it to query. `None` if
/// items appear in the index only after a restart.
fn queue(function: &Function, emulator: &Emulator) -> Result<Option<WakeQueue>> {
    let [index] = &function.indexes[..] else { bail!("a worker must query exactly one index") };
    let (key, due_attribute) = match index.name.as_str() {
        "due" => ("due_shard", Some("due_at")),
        // Every item is due at once.
        "unchained" => ("unchained", None),
        // Items need resealing only after a rotation of the key ring. A local ring changes only
        // between runs, and every worker runs once at the start of a run.
        "sealed" => return Ok(None),
        other => bail!("unknown index {other}"),
    };
    Ok(Some(WakeQueue { index: emulator.index(index)?, key, due_attribute }))
}

/// An index whose items wake a worker.
struct WakeQueue {
    index: WatchedIndex,
    key: &'static str,
    /// The attribute with the time at which an item is due. Without it, items are due at once.
    due_attribute: Option<&'static str>,
}

impl WakeQueue {
    /// Returns the time at which the first item is due, or `now` if the lookup fails, so that the
    /// worker runs and reports the fault.
    async fn next(&self, now: Timestamp) -> Option<Timestamp> {
        match self.index.first(self.key, self.due_attribute).await {
            Ok(first) => first.map(|at| at.parse().unwrap_or(now)),
            Err(fault) => {
                tracing::error!(index = self.key, %fault, "index lookup failed");
                Some(now)
            }
        }
    }
}

struct WorkerLoop {
    run_worker: RunWorker,
    /// Interval of the schedule.
    period: Duration,
    stream: Option<watch::Receiver<()>>,
    queue: Option<WakeQueue>,
    clock: Arc<dyn Clock>,
}

impl WorkerLoop {
    async fn run(mut self) {
        let max_running = if self.stream.is_some() { MAX_CONCURRENT_RUNS } else { 1 };
        let (mut running, mut pause) = (JoinSet::new(), MIN_PAUSE);
        let mut stream = self.stream.take();
        loop {
            running.spawn(self.run_once());
            if running.len() >= max_running {
                running.join_next().await;
            }
            while running.try_join_next().is_some() {}
            let until = Deadline { at: self.clock.now().plus(self.period), latest: Instant::now() + self.period };
            sleep(BATCH_WINDOW).await;
            pause = tokio::select! {
                () = changed(stream.as_mut()) => MIN_PAUSE,
                pause = self.until_due(until, pause) => pause,
            };
        }
    }

    /// Runs the worker, which logs its failures. Without a queue, repeats a failed run until it
    /// succeeds.
    fn run_once(&self) -> impl Future<Output = ()> + use<> {
        let (run_worker, has_queue) = (Arc::clone(&self.run_worker), self.queue.is_some());
        async move {
            let mut pause = MIN_PAUSE;
            while run_worker().await.is_err() && !has_queue {
                sleep(pause).await;
                pause = MAX_PAUSE.min(pause * 2);
            }
        }
    }

    /// Waits until an item in the queue is due, or until the scheduled time. First waits for
    /// `pause`, which a write to the queue cuts short after `MIN_PAUSE`. Returns the next pause.
    async fn until_due(&mut self, scheduled: Deadline, pause: Duration) -> Duration {
        let Some(queue) = &mut self.queue else {
            scheduled.wait(&*self.clock).await;
            return MIN_PAUSE;
        };
        let next_write = async {
            sleep(MIN_PAUSE).await;
            changed(Some(&mut queue.index.writes)).await;
        };
        let mut was_written = tokio::select! {
            () = sleep(pause) => queue.index.writes.has_changed().unwrap_or(false),
            () = next_write => true,
        };
        loop {
            queue.index.writes.mark_unchanged();
            let now = self.clock.now();
            let next = queue.next(now).await.map_or(scheduled.at, |next| next.min(scheduled.at));
            if next <= now {
                return if was_written { MIN_PAUSE } else { MAX_PAUSE.min(pause * 2) };
            }
            tokio::select! {
                () = Deadline { at: next, ..scheduled }.wait(&*self.clock) => return MIN_PAUSE,
                () = changed(Some(&mut queue.index.writes)) => sleep(SETTLE_TIME).await,
            }
            was_written = true;
        }
    }
}

/// A time by the injected clock, or by the machine's if the injected one goes back or stops.
#[derive(Clone, Copy)]
struct Deadline {
    at: Timestamp,
    latest: Instant,
}

impl Deadline {
    async fn wait(self, clock: &dyn Clock) {
        loop {
            let left = self.at.since(clock.now());
            if left.is_zero() || Instant::now() >= self.latest {
                return;
            }
            sleep(left.min(CLOCK_READ_INTERVAL)).await;
        }
    }
}

/// Waits for the next change; without a receiver, forever.
async fn changed(receiver: Option<&mut watch::Receiver<()>>) {
    let Some(receiver) = receiver else { return pending().await };
    if receiver.changed().await.is_err() {
        pending::<()>().await;
    }
}

//! Runs the workers after writes to their queues, at due times and on their schedules. An idle runner sends few queries to the store.

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
    registry::Tick,
    template::{Function, Template},
};

/// Maximum runs of a worker with a stream at once, as Lambda reads it: a run that waits does not hold up the next one.
const AT_ONCE: usize = 8;
/// The pause before the next run of a worker with a stream: one run takes all that is written meanwhile.
const REST: Duration = Duration::from_millis(20);
/// The time from a write to the look at the index: one look covers a burst of writes.
const SETTLES: Duration = Duration::from_millis(100);
/// The pause between two runs of a worker that finds what it left. It doubles up to the longest while nothing changes.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The clock may be moved, by a test or after the machine has slept, so the time is read this often. Nothing else is done then.
const CLOCK_READ_EVERY: Duration = Duration::from_secs(1);

/// Starts the template's workers; they end with the set. Fails where template and workers do not name the same functions.
pub fn start(
    mut workers: BTreeMap<&'static str, Tick>,
    template: &Template,
    emulator: &Emulator,
    clock: &Arc<dyn Clock>,
) -> Result<JoinSet<()>> {
    let mut running = JoinSet::new();
    // The authorizer is woken by the gateway, and the rotation of secrets by Secrets Manager, which is not here.
    for (function, period) in template.functions.iter().filter_map(|function| Some((function, function.schedule?))) {
        let worker = workers.remove(function.binary.as_str());
        let tick =
            worker.with_context(|| format!("template.yaml lists {}, which has no worker here", function.binary))?;
        let queue = queue(function, emulator).with_context(|| function.binary.clone())?;
        let (stream, clock) = (emulator.outbox_written(&function.reads_outbox), Arc::clone(clock));
        running.spawn(Employed { tick, period, stream, queue, clock }.keep_working());
    }
    ensure!(workers.is_empty(), "not in template.yaml: {:?}", workers.keys());
    Ok(running)
}

/// The queue of a worker: the index that its policies let it query.
fn queue(function: &Function, emulator: &Emulator) -> Result<Option<WakeQueue>> {
    let [index] = &function.indexes[..] else { bail!("a worker must query exactly one index") };
    let (key, by) = match index.name.as_str() {
        "due" => ("due_shard", Some("due_at")),
        // All of it is due.
        "unchained" => ("unchained", None),
        // Also lists items sealed under the current key. Only a new ring needs work, and a local ring changes only with a restart.
        "sealed" => return Ok(None),
        other => bail!("the index {other} is not known here"),
    };
    Ok(Some(WakeQueue { index: emulator.index(index)?, key, by }))
}

/// An index whose items make work.
struct WakeQueue {
    index: WatchedIndex,
    key: &'static str,
    /// The attribute with the time at which an item is due. Without it, an item is due at once.
    by: Option<&'static str>,
}

impl WakeQueue {
    /// The earliest time at which something is due; now if that is unknown, so that the worker reports the fault.
    async fn next(&self, now: Timestamp) -> Option<Timestamp> {
        match self.index.first(self.key, self.by).await {
            Ok(first) => first.map(|at| at.parse().unwrap_or(now)),
            Err(error) => {
                tracing::error!(%error, "index lookup failed");
                Some(now)
            }
        }
    }
}

struct Employed {
    tick: Tick,
    /// Of the schedule.
    period: Duration,
    stream: Option<watch::Receiver<()>>,
    queue: Option<WakeQueue>,
    clock: Arc<dyn Clock>,
}

impl Employed {
    async fn keep_working(mut self) {
        let at_once = if self.stream.is_some() { AT_ONCE } else { 1 };
        let (mut running, mut pause) = (JoinSet::new(), PAUSE);
        let mut stream = self.stream.take();
        loop {
            running.spawn(self.run());
            if running.len() >= at_once {
                running.join_next().await;
            }
            while running.try_join_next().is_some() {}
            let until = Until { at: self.clock.now().plus(self.period), latest: Instant::now() + self.period };
            sleep(REST).await;
            pause = tokio::select! {
                () = changed(stream.as_mut()) => PAUSE,
                pause = self.until_due(until, pause) => pause,
            };
        }
    }

    /// Runs the worker once; the worker logs a failure. Without a queue, a failed run is repeated until it succeeds.
    fn run(&self) -> impl Future<Output = ()> + use<> {
        let (tick, has_queue) = (Arc::clone(&self.tick), self.queue.is_some());
        async move {
            let mut pause = PAUSE;
            while tick().await.is_err() && !has_queue {
                sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }

    /// Waits for the time of the schedule, or until something in the queue is due; at least for `pause`. Returns the next pause.
    async fn until_due(&mut self, scheduled: Until, pause: Duration) -> Duration {
        let Some(queue) = &mut self.queue else {
            scheduled.come(&*self.clock).await;
            return PAUSE;
        };
        let early = async {
            sleep(PAUSE).await;
            changed(Some(&mut queue.index.written)).await;
        };
        let mut stirred = tokio::select! {
            () = sleep(pause) => queue.index.written.has_changed().unwrap_or(false),
            () = early => true,
        };
        loop {
            queue.index.written.mark_unchanged();
            let now = self.clock.now();
            let next = queue.next(now).await.map_or(scheduled.at, |next| next.min(scheduled.at));
            if next <= now {
                return if stirred { PAUSE } else { LONGEST_PAUSE.min(pause * 2) };
            }
            tokio::select! {
                () = Until { at: next, ..scheduled }.come(&*self.clock) => return PAUSE,
                () = changed(Some(&mut queue.index.written)) => sleep(SETTLES).await,
            }
            stirred = true;
        }
    }
}

/// A time by the clock, or by the machine if the clock goes back or stands still.
#[derive(Clone, Copy)]
struct Until {
    at: Timestamp,
    latest: Instant,
}

impl Until {
    async fn come(self, clock: &dyn Clock) {
        loop {
            let left = self.at.since(clock.now());
            if left.is_zero() || Instant::now() >= self.latest {
                return;
            }
            sleep(left.min(CLOCK_READ_EVERY)).await;
        }
    }
}

/// Returns at the next change; never without a receiver.
async fn changed(receiver: Option<&mut watch::Receiver<()>>) {
    let Some(receiver) = receiver else { return pending().await };
    if receiver.changed().await.is_err() {
        pending::<()>().await;
    }
}

//! What wakes the workers here: the clock, and writes to the outbox, as its stream would.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{emulator::Emulator, registry::Tick, template::Template};

/// A schedule's minute is a second here, so that nobody waits for it.
const SCHEDULE: Duration = Duration::from_secs(1);
/// How many runs of a worker that the outbox wakes are under way at once, as Lambda reads a stream: one that waits holds up no other.
const AT_ONCE: usize = 8;
/// How long such a worker rests before the next run: what is written meanwhile is done at once.
const REST: Duration = Duration::from_millis(20);

/// Starts the template's workers; they end with the set. Fails where template and workers do not name the same functions.
pub fn start(
    mut workers: BTreeMap<&'static str, Tick>,
    template: &Template,
    emulator: &Emulator,
) -> Result<JoinSet<()>> {
    let mut running = JoinSet::new();
    // The authorizer is woken by the gateway, and the rotation of secrets by Secrets Manager, which is not here.
    for function in template.functions.iter().filter(|function| function.is_scheduled) {
        let worker = workers.remove(function.binary.as_str());
        let tick =
            worker.with_context(|| format!("template.yaml lists {}, which has no worker here", function.binary))?;
        running.spawn(keep_working(tick, emulator.outbox_written(&function.reads_outbox)));
    }
    ensure!(workers.is_empty(), "not in template.yaml: {:?}", workers.keys());
    Ok(running)
}

/// A fault is in the log, and the next tick tries again.
async fn keep_working(tick: Tick, written: Option<watch::Receiver<()>>) {
    let Some(mut written) = written else {
        loop {
            tick().await.ok();
            sleep(SCHEDULE).await;
        }
    };
    let mut running = JoinSet::new();
    loop {
        running.spawn(tick());
        sleep(REST).await;
        timeout(SCHEDULE, written.changed()).await.ok();
        while running.try_join_next().is_some() {}
        if running.len() == AT_ONCE {
            running.join_next().await;
        }
    }
}

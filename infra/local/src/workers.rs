//! What wakes the workers here: the clock, and every write to the outbox, as its stream would.

use std::time::Duration;

use anyhow::{Result, ensure};
use karta_shared::App;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    registry::{self, Tick},
    template::Template,
};

/// A schedule's minute is a second here, so that nobody waits for it.
const SCHEDULE: Duration = Duration::from_secs(1);
/// How long a worker rests after it was at work: what is written meanwhile is done at once.
const REST: Duration = Duration::from_millis(20);

/// Starts the template's workers; they end with the set. Fails where template and workers do not name the same functions.
pub fn start(app: &App, template: &Template, written: &watch::Receiver<()>) -> Result<JoinSet<()>> {
    let mut workers = registry::workers(app);
    let mut running = JoinSet::new();
    let listed = template.functions.iter().filter(|function| function.routes.is_empty());
    for function in listed.filter(|function| function.binary != template.authorizer.binary) {
        let worker = workers.remove(function.binary.as_str());
        ensure!(worker.is_some(), "template.yaml lists {}, which has no worker here", function.binary);
        if let Some(tick) = worker {
            running.spawn(keep_working(tick, function.reads_outbox.then(|| written.clone())));
        }
    }
    ensure!(workers.is_empty(), "not in template.yaml: {:?}", workers.keys());
    Ok(running)
}

async fn keep_working(tick: Tick, mut written: Option<watch::Receiver<()>>) {
    loop {
        // A fault is in the log, and the next tick tries again.
        tick().await.ok();
        sleep(REST).await;
        match &mut written {
            Some(written) => {
                timeout(SCHEDULE, written.changed()).await.ok();
            }
            None => sleep(SCHEDULE).await,
        }
    }
}

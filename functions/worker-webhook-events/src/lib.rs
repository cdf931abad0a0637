//! Fans out events to the webhook endpoints that subscribe to them, and wakes the worker that
//! serves each endpoint.
//!
//! It does not wait for receivers: another worker sends, so that a receiver that hangs delays no
//! other endpoint.

mod fan_out;
mod recovery;
mod waker;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use karta_shared::{
    App, config,
    domain::Id,
    join_bounded::join_bounded,
    store::{OutboxKey, Queue},
    worker::{Fault, Wake, Worker, due, of_organization},
};
use tokio::time::Instant;

pub use self::waker::Waker;

/// Maximum rounds of a sweep, which ends when nothing is due.
const MAX_ROUNDS: usize = 20;
/// Maximum events of one organization per round, so that one organization cannot delay the others.
const MAX_EVENTS_PER_ORGANIZATION: usize = 200;
/// Time limit for starting new work. It leaves enough of the function's time limit for the longest
/// work.
const START_TIME_LIMIT: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub struct WebhookEvents {
    app: App,
    waker: Arc<Waker>,
}

impl WebhookEvents {
    pub fn new(app: App, waker: Waker) -> Self {
        Self { app, waker: Arc::new(waker) }
    }

    /// Fans out the due events of each organization. The fault of one does not affect the others.
    async fn fan_out_due(&self, due: impl IntoIterator<Item = OutboxKey>) -> Result<(), Fault> {
        let mut by_organization: BTreeMap<Id, Vec<OutboxKey>> = BTreeMap::new();
        for due in due {
            by_organization.entry(due.organization_id).or_default().push(due);
        }
        let fanned_out = by_organization.into_iter().map(|(organization, mut due)| {
            let (app, waker) = (self.app.clone(), Arc::clone(&self.waker));
            due.truncate(MAX_EVENTS_PER_ORGANIZATION);
            async move {
                let (touched, outcome) = fan_out::fan_out(&app, organization, &due).await;
                let woken = waker.wake_each(touched.into_iter().map(|endpoint| (organization, endpoint))).await;
                outcome.map_err(of_organization(organization)).and(woken)
            }
        });
        first_fault(join_bounded(fanned_out).await)
    }

    async fn fan_out_all(&self, deadline: Instant) -> Result<(), Fault> {
        let mut outcome = Ok(());
        for _ in 0..MAX_ROUNDS {
            let due = due(&self.app, Queue::Events).await?;
            if due.is_empty() || Instant::now() >= deadline {
                break;
            }
            outcome = outcome.and(self.fan_out_due(due).await);
        }
        outcome
    }

    async fn recover(&self, deadline: Instant) -> Result<(), Fault> {
        let due = due(&self.app, Queue::Recoveries).await?;
        let recovered = due.into_iter().map(|due| {
            let (app, waker) = (self.app.clone(), Arc::clone(&self.waker));
            async move {
                let recovered = recovery::run_or_postpone(&app, &due, deadline).await;
                let endpoint = recovered.map_err(of_organization(due.organization_id))?;
                waker.wake_each(endpoint.map(|endpoint| (due.organization_id, endpoint))).await
            }
        });
        first_fault(join_bounded(recovered).await)
    }

    /// Wakes the worker for every endpoint with due deliveries, because earlier wake-ups may have
    /// been lost.
    async fn wake_all(&self) -> Result<(), Fault> {
        let due = due(&self.app, Queue::Deliveries).await?;
        let woken = due.into_iter().map(|due| {
            let waker = Arc::clone(&self.waker);
            async move { waker.wake_each(due.endpoint().map(|endpoint| (due.organization_id, endpoint))).await }
        });
        first_fault(join_bounded(woken).await)
    }
}

fn first_fault(outcomes: Vec<Result<(), Fault>>) -> Result<(), Fault> {
    outcomes.into_iter().fold(Ok(()), Result::and)
}

impl Worker for WebhookEvents {
    const NAME: &'static str = "worker-webhook-events";

    async fn deployed(app: App) -> Result<Self, Fault> {
        let function = config::webhook_deliveries_function()?;
        Ok(Self::new(app, Waker::lambda(&config::deployed_sdk()?, function)))
    }

    async fn work(&self, wake: &Wake) -> Result<(), Fault> {
        if let Wake::Written(written) = wake {
            // The index may not show the items of the stream yet.
            return Box::pin(self.fan_out_due(written.iter().cloned())).await;
        }
        // These run concurrently and do not stop at each other's faults.
        let deadline = Instant::now() + START_TIME_LIMIT;
        let (fanned_out, recovered, woken) = tokio::join!(
            Box::pin(self.fan_out_all(deadline)),
            Box::pin(self.recover(deadline)),
            Box::pin(self.wake_all()),
        );
        fanned_out.and(recovered).and(woken)
    }
}

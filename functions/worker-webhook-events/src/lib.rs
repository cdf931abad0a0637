//! Finds out which webhook endpoints want what happened, and has each of them served.
//!
//! It waits for no receiver: sending is another worker's, so that one that hangs holds up nobody else's events.

mod fan_out;
mod recovery;
mod waker;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use karta_shared::{
    App, config,
    domain::Id,
    join_bounded::join_bounded,
    store::{DueItem, Queue},
    worker::{Fault, Wake, Worker, due},
};
use tokio::time::Instant;

pub use self::waker::Waker;

/// How often a sweep looks again while it finds something.
const LOOKS: usize = 20;
/// How many events of an organization one look fans out: those whom the look found beside do not wait for a flood.
const OF_ONE_AT_MOST: usize = 200;
/// How long a sweep begins new things: less than its function's time limit by more than the longest of them takes.
const WORKS_FOR: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub struct WebhookEvents {
    app: App,
    waker: Arc<Waker>,
}

impl WebhookEvents {
    pub fn new(app: App, waker: Waker) -> Self {
        Self { app, waker: Arc::new(waker) }
    }

    /// Fans out what waits, each organization for itself: the fault of one is not another's.
    async fn tell(&self, due: impl IntoIterator<Item = DueItem>) -> Result<(), Fault> {
        let mut of_organizations: BTreeMap<Id, Vec<DueItem>> = BTreeMap::new();
        for due in due {
            of_organizations.entry(due.organization_id).or_default().push(due);
        }
        let told = of_organizations.into_iter().map(|(organization, mut due)| {
            let (app, waker) = (self.app.clone(), Arc::clone(&self.waker));
            due.truncate(OF_ONE_AT_MOST);
            async move {
                let (touched, told) = fan_out::fan_out(&app, organization, &due).await;
                let woken = waker.wake_each(touched.into_iter().map(|endpoint| (organization, endpoint))).await;
                told.and(woken)
            }
        });
        all(join_bounded(told).await)
    }

    async fn tell_all(&self, ends: Instant) -> Result<(), Fault> {
        let mut outcome = Ok(());
        for _ in 0..LOOKS {
            let due = due(&self.app, Queue::Events).await?;
            if due.is_empty() || Instant::now() >= ends {
                break;
            }
            outcome = outcome.and(self.tell(due).await);
        }
        outcome
    }

    async fn recover(&self, ends: Instant) -> Result<(), Fault> {
        let due = due(&self.app, Queue::Recoveries).await?;
        let recovered = due.into_iter().map(|due| {
            let (app, waker) = (self.app.clone(), Arc::clone(&self.waker));
            async move {
                let endpoint = recovery::walk(&app, &due, ends).await?;
                waker.wake_each(endpoint.map(|endpoint| (due.organization_id, endpoint))).await
            }
        });
        all(join_bounded(recovered).await)
    }

    /// Has every endpoint served that something is due for: what woke for it before may have been lost.
    async fn wake_all(&self) -> Result<(), Fault> {
        let due = due(&self.app, Queue::Deliveries).await?;
        let woken = due.into_iter().map(|due| {
            let waker = Arc::clone(&self.waker);
            async move { waker.wake_each(due.endpoint().map(|endpoint| (due.organization_id, endpoint))).await }
        });
        all(join_bounded(woken).await)
    }
}

/// Everything was done; the first fault is told of otherwise.
fn all(outcomes: Vec<Result<(), Fault>>) -> Result<(), Fault> {
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
            // The index may not show yet what the stream tells of.
            return Box::pin(self.tell(written.iter().cloned())).await;
        }
        // None of these waits for another, nor for its faults.
        let ends = Instant::now() + WORKS_FOR;
        let (told, recovered, woken) =
            tokio::join!(Box::pin(self.tell_all(ends)), Box::pin(self.recover(ends)), Box::pin(self.wake_all()));
        told.and(recovered).and(woken)
    }
}

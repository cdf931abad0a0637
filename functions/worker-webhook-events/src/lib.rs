//! Finds out which webhook endpoints want what happened, and has each of them served.
//!
//! It waits for no receiver: sending is another worker's, so that one that hangs holds up nobody else's events.

mod recovery;
mod waker;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use karta_shared::{
    App, config,
    domain::{Id, Timestamp},
    store::{Due, Queue, StoreError},
    together::together,
    worker::{Fault, Wake, Worker},
};

pub use self::waker::Waker;

/// How often a sweep looks again while it finds something.
const LOOKS: usize = 20;

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
    async fn tell(&self, due: impl IntoIterator<Item = Due>) -> Result<(), Fault> {
        let mut of_organizations: BTreeMap<Id, Vec<Due>> = BTreeMap::new();
        for due in due {
            of_organizations.entry(due.organization_id).or_default().push(due);
        }
        let told = of_organizations.into_iter().map(|(organization, due)| {
            let (app, waker) = (self.app.clone(), Arc::clone(&self.waker));
            async move {
                for endpoint in fan_out(&app, organization, &due).await? {
                    waker.wake(organization, endpoint).await?;
                }
                Ok(())
            }
        });
        together(told).await.into_iter().fold(Ok(()), Result::and)
    }

    async fn tell_all(&self) -> Result<(), Fault> {
        for _ in 0..LOOKS {
            let due = self.app.store.due(Queue::Events, self.app.clock.now()).await?;
            if due.is_empty() {
                break;
            }
            self.tell(due).await?;
        }
        Ok(())
    }

    async fn recover(&self, now: Timestamp) -> Result<(), Fault> {
        let recovered = self.app.store.due(Queue::Recoveries, now).await?.into_iter().map(|due| {
            let (app, waker) = (self.app.clone(), Arc::clone(&self.waker));
            async move {
                match recovery::walk(&app, &due).await? {
                    Some(endpoint) => waker.wake(due.organization_id, endpoint).await,
                    None => Ok(()),
                }
            }
        });
        together(recovered).await.into_iter().fold(Ok(()), Result::and)
    }

    /// Has every endpoint served that something is due for: what woke for it before may have been lost.
    async fn wake_all(&self, now: Timestamp) -> Result<(), Fault> {
        let woken = self.app.store.due(Queue::Deliveries, now).await?.into_iter().map(|due| {
            let waker = Arc::clone(&self.waker);
            async move {
                let endpoint = due.endpoint().ok_or("a queue is no endpoint's")?;
                waker.wake(due.organization_id, endpoint).await
            }
        });
        together(woken).await.into_iter().fold(Ok(()), Result::and)
    }
}

/// Says which endpoints have something new.
async fn fan_out(app: &App, organization: Id, due: &[Due]) -> Result<BTreeSet<Id>, StoreError> {
    let events = app.store.untold_events(due).await?;
    if events.is_empty() {
        return Ok(BTreeSet::new());
    }
    let endpoints = app.store.all_webhook_endpoints(organization).await?;
    app.store.fan_out(organization, events, &endpoints, app.clock.now()).await
}

impl Worker for WebhookEvents {
    const NAME: &'static str = "worker-webhook-events";

    async fn deployed(app: App) -> Result<Self, Fault> {
        let function = config::webhook_deliveries_function()?;
        Ok(Self::new(app, Waker::lambda(&config::deployed_sdk().await, function)))
    }

    async fn work(&self, wake: &Wake) -> Result<(), Fault> {
        if let Wake::Written(written) = wake {
            // The index may not show yet what the stream tells of.
            return self.tell(written.iter().cloned()).await;
        }
        let now = self.app.clock.now();
        // One that fails does not keep the others from being done.
        let (told, recovered) = (self.tell_all().await, self.recover(now).await);
        told.and(recovered).and(self.wake_all(now).await)
    }
}

//! Delivers events to webhook endpoints, one endpoint at a time.
//!
//! Whoever holds the lease of an endpoint's queue serves it: at most five attempts at once, each written down when it has ended. If the worker
//! dies, the lease ends and what was not written down is sent again.
//!
//! As it is the one that opens their secrets, its schedule has those sealed anew that are not under their ring's current key.

mod attempt;
mod endpoint_queue;
mod reseal;
pub mod wire;

use std::{sync::Arc, time::Duration};

use karta_shared::{
    App,
    config::{self, Ring, Secret},
    domain::Id,
    reseal::sweep,
    worker::{Fault, Wake, Worker},
};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep},
};

use self::{
    endpoint_queue::{EndpointQueue, Served},
    wire::{SystemLookup, Wire},
};

/// How long a run goes on: less than its function's time limit by more than an attempt takes.
const WORKS_FOR: Duration = Duration::from_mins(4);
/// For how long a run waits for the next attempt that is due: longer than the pause before a first retry.
const PATIENCE: Duration = Duration::from_secs(8);

#[derive(Debug, Clone)]
pub struct WebhookDeliveries {
    app: App,
    own_hosts: Vec<String>,
    /// Made with the first delivery: the system's certificates are read for it, which a run without endpoints may lack.
    wire: Arc<OnceCell<Arc<Wire>>>,
    patience: Duration,
}

impl WebhookDeliveries {
    /// `own_hosts` are the names under which this stack is called.
    pub fn new(app: App, own_hosts: Vec<String>) -> Self {
        Self { app, own_hosts, wire: Arc::default(), patience: PATIENCE }
    }

    /// Sends over another wire than the system's.
    #[must_use]
    pub fn over(self, wire: Wire) -> Self {
        Self { wire: Arc::new(OnceCell::new_with(Some(Arc::new(wire)))), ..self }
    }

    /// For how long a run waits for the next attempt that is due, instead of 8 s.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    async fn wire(&self) -> Result<&Arc<Wire>, Fault> {
        let made = self.wire.get_or_try_init(async || {
            let (own_hosts, clock) = (self.own_hosts.clone(), Arc::clone(&self.app.clock));
            Wire::new(self.app.webhooks, own_hosts, Arc::new(SystemLookup), clock).map(Arc::new)
        });
        Ok(made.await?)
    }

    /// Serves an endpoint until nothing is due there soon, somebody else serves it, or the run's time is over.
    async fn serve(&self, organization: Id, endpoint: Id) -> Result<(), Fault> {
        let (wire, ends) = (self.wire().await?, Instant::now() + WORKS_FOR);
        while let Some(line) = EndpointQueue::take(&self.app, wire, organization, endpoint).await? {
            let Served::Until(next) = line.serve(ends).await? else {
                return Ok(());
            };
            // The queue is free meanwhile: what joins does not wait for this.
            let pause = next.since(self.app.clock.now());
            if pause > self.patience || Instant::now() + pause >= ends {
                return Ok(());
            }
            sleep(pause).await;
        }
        Ok(())
    }
}

impl Worker for WebhookDeliveries {
    const NAME: &'static str = "worker-webhook-deliveries";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::SealingWebhooks)];

    async fn deployed(app: App) -> Result<Self, Fault> {
        let worker = Self::new(app, config::own_hosts()?);
        worker.wire().await?;
        Ok(worker)
    }

    async fn work(&self, wake: &Wake) -> Result<(), Fault> {
        match wake {
            Wake::Endpoint { organization_id, webhook_endpoint_id } => {
                self.serve(*organization_id, *webhook_endpoint_id).await
            }
            // What is due is found by the worker that wakes this one, for one endpoint at a time.
            Wake::Sweep | Wake::Written(_) => sweep::<Self>(&self.app).await,
        }
    }
}

//! Delivers events to webhook endpoints, one endpoint at a time.
//!
//! The worker that holds the lease of an endpoint's queue serves it. It makes at most five attempts
//! at once and stores the result of each. If the worker dies, the lease expires, and deliveries
//! without a stored result are sent again.
//!
//! The schedule of this worker also reseals the endpoints' secrets with their ring's current key,
//! because no other worker opens them.

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
    worker::{Fault, Wake, Worker, of_organization},
};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep},
};

use self::{
    endpoint_queue::{EndpointQueue, Served},
    wire::{SystemLookup, Wire},
};

/// Time limit for starting attempts. It leaves enough of the function's time limit for one attempt.
const RUN_TIME_LIMIT: Duration = Duration::from_mins(4);
/// Maximum time that a run waits for the next attempt, longer than the pause before a first retry.
const MAX_WAIT: Duration = Duration::from_secs(8);

#[derive(Debug, Clone)]
pub struct WebhookDeliveries {
    app: App,
    own_hosts: Vec<String>,
    /// Created for the first delivery, because it reads the system's certificates, which may be
    /// missing in a run without endpoints.
    wire: Arc<OnceCell<Arc<Wire>>>,
    max_wait: Duration,
}

impl WebhookDeliveries {
    /// `own_hosts` are the host names of this stack.
    pub fn new(app: App, own_hosts: Vec<String>) -> Self {
        Self { app, own_hosts, wire: Arc::default(), max_wait: MAX_WAIT }
    }

    /// Replaces the default wire.
    #[must_use]
    pub fn with_wire(self, wire: Wire) -> Self {
        Self { wire: Arc::new(OnceCell::new_with(Some(Arc::new(wire)))), ..self }
    }

    /// Sets the maximum time that a run waits for the next attempt; 8 s by default.
    #[must_use]
    pub fn with_max_wait(self, max_wait: Duration) -> Self {
        Self { max_wait, ..self }
    }

    async fn wire(&self) -> Result<&Arc<Wire>, Fault> {
        let wire = self.wire.get_or_try_init(async || {
            let (own_hosts, clock) = (self.own_hosts.clone(), Arc::clone(&self.app.clock));
            Wire::new(self.app.outbound_reach, own_hosts, Arc::new(SystemLookup), clock).map(Arc::new)
        });
        Ok(wire.await?)
    }

    /// Serves an endpoint until no delivery is due soon, another worker holds its lease, or the
    /// time limit is reached.
    async fn serve(&self, organization: Id, endpoint: Id) -> Result<(), Fault> {
        let (wire, deadline) = (self.wire().await?, Instant::now() + RUN_TIME_LIMIT);
        while let Some(queue) = EndpointQueue::take(&self.app, wire, organization, endpoint).await? {
            let Served::Until(next) = queue.serve(deadline).await? else {
                return Ok(());
            };
            // The lease is released during the pause, so that new deliveries do not wait.
            let pause = next.since(self.app.clock.now());
            if pause > self.max_wait || Instant::now() + pause >= deadline {
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
                let served = self.serve(*organization_id, *webhook_endpoint_id).await;
                served.map_err(of_organization(*organization_id))
            }
            // `worker-webhook-events` finds due deliveries and wakes this worker once per endpoint.
            Wake::Sweep | Wake::Written(_) => sweep::<Self>(&self.app).await,
        }
    }
}

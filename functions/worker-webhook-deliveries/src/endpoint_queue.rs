use std::{sync::Arc, time::Duration};

use karta_shared::{
    App,
    config::Ring,
    domain::{Id, Timestamp, WebhookEndpoint},
    store::{DELIVERY_RETENTION, DueDeliveries, Lease, PendingDelivery},
    webhook_secrets::{WebhookSecretContext, WebhookSecrets},
    worker::{Fault, Worker},
};
use tokio::{sync::Mutex, task::JoinSet, time::Instant};

use crate::{
    WebhookDeliveries,
    attempt::{AttemptEnd, EndpointSender},
    wire::Wire,
};

/// Duration of a lease without renewal, longer than an attempt and its write take.
const LEASE_DURATION: Duration = Duration::from_mins(1);
const RENEW_AFTER: Duration = Duration::from_secs(20);
/// Maximum concurrent attempts of an endpoint.
const MAX_CONCURRENT_ATTEMPTS: usize = 5;
/// Deliveries per read.
const BATCH: i32 = 50;
/// Consecutive failures within one lease after which the queue pauses. A failing receiver then costs
/// little, and a recovering one is not flooded.
const MAX_FAILURES_IN_LEASE: u32 = 10;
const FAILURE_PAUSE: Duration = Duration::from_secs(30);

/// An endpoint's queue while this worker holds its lease.
pub(crate) struct EndpointQueue {
    app: App,
    wire: Arc<Wire>,
    organization: Id,
    endpoint: Id,
    lease: Arc<Mutex<Lease>>,
    renewed_at: Instant,
    /// Consecutive failures since the queue was leased.
    failures_in_lease: u32,
}

/// The result of serving a queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// The next delivery is due at this time.
    Until(Timestamp),
    /// The run leaves this queue: it is empty, paused, deleted, leased by another worker, or out of time.
    Done,
}

impl EndpointQueue {
    /// Leases the queue if a delivery is due and no other worker holds the lease.
    pub(crate) async fn take(
        app: &App,
        wire: &Arc<Wire>,
        organization: Id,
        endpoint: Id,
    ) -> Result<Option<Self>, Fault> {
        let now = app.clock.now();
        let lease = app.store.lease_queue(organization, endpoint, now, now.plus(LEASE_DURATION)).await?;
        Ok(lease.map(|lease| Self {
            app: app.clone(),
            wire: Arc::clone(wire),
            organization,
            endpoint,
            lease: Arc::new(Mutex::new(lease)),
            renewed_at: Instant::now(),
            failures_in_lease: 0,
        }))
    }

    pub(crate) async fn serve(mut self, deadline: Instant) -> Result<Served, Fault> {
        let store = self.app.store.clone();
        let mut is_first = true;
        loop {
            // Renewing also reads the queue's version. It comes before the read of the deliveries, so that
            // the release fails if a delivery was added after that read. In the first iteration, the new
            // lease has the version.
            if !is_first && !self.renew().await? {
                return Ok(Served::Done);
            }
            is_first = false;
            let Some(endpoint) = store.webhook_endpoint(self.organization, self.endpoint).await? else {
                store.delete_queue(&*self.lease.lock().await).await?;
                return Ok(Served::Done);
            };
            let now = self.app.clock.now();
            if self.failures_in_lease >= MAX_FAILURES_IN_LEASE {
                store.pause_queue(&*self.lease.lock().await, now.plus(FAILURE_PAUSE)).await?;
                return Ok(Served::Done);
            }
            let is_over = Instant::now() >= deadline;
            let found = match endpoint.is_enabled() {
                true if is_over => DueDeliveries { due: Vec::new(), next: Some(now) },
                true => store.due_deliveries(self.organization, self.endpoint, now, BATCH).await?,
                // Pending deliveries are kept until the endpoint is enabled again.
                false => DueDeliveries::default(),
            };
            if !found.due.is_empty() {
                self.deliver(endpoint, found.due, deadline).await?;
            } else if store.release_queue(&*self.lease.lock().await, found.next).await? {
                return Ok(found.next.filter(|_| !is_over).map_or(Served::Done, Served::Until));
            }
        }
    }

    async fn renew(&mut self) -> Result<bool, Fault> {
        let until = self.app.clock.now().plus(LEASE_DURATION);
        self.renewed_at = Instant::now();
        Ok(self.app.store.renew_lease(&mut *self.lease.lock().await, until).await?)
    }

    /// Attempts these deliveries, up to five at a time, until a result requires the queue to be
    /// read again.
    async fn deliver(
        &mut self,
        endpoint: WebhookEndpoint,
        due: Vec<PendingDelivery>,
        deadline: Instant,
    ) -> Result<(), Fault> {
        let mut events = self.app.store.events(self.organization, &due).await?;
        let sender = Arc::new(EndpointSender {
            app: self.app.clone(),
            wire: Arc::clone(&self.wire),
            secrets: self.secrets().await?,
            endpoint,
            lease: Arc::clone(&self.lease),
        });
        let (mut running, mut must_reload, mut fault) = (JoinSet::new(), false, None);
        for pending in due {
            if running.len() == MAX_CONCURRENT_ATTEMPTS {
                must_reload |= self.count(running.join_next().await, &mut fault);
            }
            let is_failing = self.failures_in_lease >= MAX_FAILURES_IN_LEASE;
            let must_stop = must_reload || is_failing || Instant::now() >= deadline;
            if must_stop || fault.is_some() || self.renewed_at.elapsed() >= RENEW_AFTER {
                break;
            }
            let is_current = self.app.clock.now().since(pending.id.drawn_at()) < DELIVERY_RETENTION;
            let started = match events.remove(&pending.id).filter(|_| is_current) {
                // Changes of the endpoint or its secrets apply to every later attempt.
                Some(event) => sender.is_unchanged().await.map(|is_unchanged| {
                    must_reload |= !is_unchanged;
                    if is_unchanged {
                        let sender = Arc::clone(&sender);
                        running.spawn(async move { sender.attempt(pending, &event).await });
                    }
                }),
                None => self.app.store.delete_pending_delivery(self.organization, self.endpoint, pending).await,
            };
            fault = started.err().map(Fault::from).or(fault);
        }
        while let Some(ended) = running.join_next().await {
            self.count(Some(ended), &mut fault);
        }
        fault.map_or(Ok(()), Err)
    }

    /// Counts a result. Returns whether the queue must be read again.
    fn count(
        &mut self,
        ended: Option<Result<Result<AttemptEnd, Fault>, tokio::task::JoinError>>,
        fault: &mut Option<Fault>,
    ) -> bool {
        match ended {
            Some(Ok(Ok(AttemptEnd::Delivered))) => self.failures_in_lease = 0,
            Some(Ok(Ok(AttemptEnd::Failed))) => self.failures_in_lease += 1,
            Some(Ok(Ok(AttemptEnd::Stop))) => return true,
            Some(Ok(Err(error))) => *fault = Some(error),
            Some(Err(error)) => *fault = Some(error.into()),
            None => {}
        }
        false
    }

    /// Opens the current secrets.
    async fn secrets(&self) -> Result<WebhookSecrets, Fault> {
        let context = WebhookSecretContext { organization: self.organization, endpoint: self.endpoint };
        let sealed = self.app.store.webhook_secrets(self.organization, self.endpoint).await?;
        let sealed = sealed.ok_or_else(|| format!("endpoint {} has no secrets", self.endpoint))?;
        let ring = self.app.secrets.ring_with(Ring::SealingWebhooks, &sealed.kid).await?;
        context.open(&ring, &sealed).map_err(|fault| {
            let (organization_id, webhook_endpoint_id) = (self.organization.get(), self.endpoint.get());
            let worker = WebhookDeliveries::NAME;
            tracing::error!(worker, organization_id, webhook_endpoint_id, %fault, "webhook secrets not opened");
            format!("endpoint {}: {fault}", self.endpoint).into()
        })
    }
}

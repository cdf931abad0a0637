use std::{sync::Arc, time::Duration};

use karta_shared::{
    App,
    config::Ring,
    domain::{Id, Timestamp, WebhookEndpoint},
    store::{DELIVERIES_KEPT, DueDeliveries, Lease, PendingDelivery},
    webhook_secrets::{WebhookSecretContext, WebhookSecretUnsealError, WebhookSecrets},
    worker::{Fault, Worker},
};
use tokio::{sync::Mutex, task::JoinSet, time::Instant};

use crate::{
    WebhookDeliveries,
    attempt::{AttemptEnd, Receiver},
    wire::Wire,
};

/// How long a lease holds without being renewed: longer than an attempt and what is written after it.
const LEASE: Duration = Duration::from_mins(1);
const RENEWED_AFTER: Duration = Duration::from_secs(20);
/// How many attempts an endpoint gets at once.
const AT_ONCE: usize = 5;
/// How many deliveries are read at once.
const BATCH: i32 = 50;
/// After so many failures in a row a run rests: a receiver that is down costs little, and one that comes back is not met with a wall.
const RESTS_AFTER: u32 = 10;
const REST: Duration = Duration::from_secs(30);

/// An endpoint's queue, while it is served.
pub(crate) struct EndpointQueue {
    app: App,
    wire: Arc<Wire>,
    organization: Id,
    endpoint: Id,
    lease: Arc<Mutex<Lease>>,
    renewed: Instant,
    failed_in_a_row: u32,
}

/// How serving ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// Nothing is due until then.
    Until(Timestamp),
    /// There is nothing to wait for.
    Done,
}

impl EndpointQueue {
    /// Takes the queue, if something is due and nobody else has it.
    pub(crate) async fn take(
        app: &App,
        wire: &Arc<Wire>,
        organization: Id,
        endpoint: Id,
    ) -> Result<Option<Self>, Fault> {
        let now = app.clock.now();
        let lease = app.store.lease_queue(organization, endpoint, now, now.plus(LEASE)).await?;
        Ok(lease.map(|lease| Self {
            app: app.clone(),
            wire: Arc::clone(wire),
            organization,
            endpoint,
            lease: Arc::new(Mutex::new(lease)),
            renewed: Instant::now(),
            failed_in_a_row: 0,
        }))
    }

    pub(crate) async fn serve(mut self, ends: Instant) -> Result<Served, Fault> {
        let store = self.app.store.clone();
        let mut was_read = true;
        loop {
            // Its version is read before the look, so that a queue is let go of only as it was seen: at first with the lease itself.
            if !was_read && !self.renew().await? {
                return Ok(Served::Done);
            }
            was_read = false;
            let Some(endpoint) = store.webhook_endpoint(self.organization, self.endpoint).await? else {
                store.drop_queue(&*self.lease.lock().await).await?;
                return Ok(Served::Done);
            };
            let now = self.app.clock.now();
            if self.failed_in_a_row >= RESTS_AFTER {
                store.rest_queue(&*self.lease.lock().await, now.plus(REST)).await?;
                return Ok(Served::Done);
            }
            let is_over = Instant::now() >= ends;
            let found = match endpoint.is_enabled() {
                true if is_over => DueDeliveries { due: Vec::new(), next: Some(now) },
                true => store.due_deliveries(self.organization, self.endpoint, now, BATCH).await?,
                // What waits is kept until it is enabled again.
                false => DueDeliveries::default(),
            };
            if !found.due.is_empty() {
                self.deliver(endpoint, found.due, ends).await?;
            } else if store.release_queue(&*self.lease.lock().await, found.next).await? {
                return Ok(found.next.filter(|_| !is_over).map_or(Served::Done, Served::Until));
            }
        }
    }

    async fn renew(&mut self) -> Result<bool, Fault> {
        let until = self.app.clock.now().plus(LEASE);
        self.renewed = Instant::now();
        Ok(self.app.store.renew_lease(&mut *self.lease.lock().await, until).await?)
    }

    /// Attempts these, five at a time, until one result says that it is better to look again.
    async fn deliver(
        &mut self,
        endpoint: WebhookEndpoint,
        due: Vec<PendingDelivery>,
        ends: Instant,
    ) -> Result<(), Fault> {
        let mut events = self.app.store.events(self.organization, &due).await?;
        let receiver = Arc::new(Receiver {
            app: self.app.clone(),
            wire: Arc::clone(&self.wire),
            secrets: self.secrets().await?,
            endpoint,
            lease: Arc::clone(&self.lease),
        });
        let (mut running, mut look_again, mut fault) = (JoinSet::new(), false, None);
        for waiting in due {
            if running.len() == AT_ONCE {
                look_again |= self.count(running.join_next().await, &mut fault);
            }
            let is_over = look_again || self.failed_in_a_row >= RESTS_AFTER || Instant::now() >= ends;
            if is_over || fault.is_some() || self.renewed.elapsed() >= RENEWED_AFTER {
                break;
            }
            let is_kept = self.app.clock.now().since(waiting.id.drawn_at()) < DELIVERIES_KEPT;
            let begun = match events.remove(&waiting.id).filter(|_| is_kept) {
                // A change of the endpoint, its secrets included, holds for whatever is sent after it.
                Some(event) => receiver.is_as_read().await.map(|is_as_read| {
                    look_again |= !is_as_read;
                    if is_as_read {
                        let receiver = Arc::clone(&receiver);
                        running.spawn(async move { receiver.attempt(waiting, &event).await });
                    }
                }),
                None => self.app.store.forget_delivery(self.organization, self.endpoint, waiting).await,
            };
            fault = begun.err().map(Fault::from).or(fault);
        }
        while let Some(ended) = running.join_next().await {
            self.count(Some(ended), &mut fault);
        }
        fault.map_or(Ok(()), Err)
    }

    /// Takes a result in; says whether the queue is to be looked at again.
    fn count(
        &mut self,
        ended: Option<Result<Result<AttemptEnd, Fault>, tokio::task::JoinError>>,
        fault: &mut Option<Fault>,
    ) -> bool {
        match ended {
            Some(Ok(Ok(AttemptEnd::Delivered))) => self.failed_in_a_row = 0,
            Some(Ok(Ok(AttemptEnd::Failed))) => self.failed_in_a_row += 1,
            Some(Ok(Ok(AttemptEnd::Stop))) => return true,
            Some(Ok(Err(error))) => *fault = Some(error),
            Some(Err(error)) => *fault = Some(error.into()),
            None => {}
        }
        false
    }

    /// What signs now. A kid that is not at hand may have joined the ring since it was fetched.
    async fn secrets(&self) -> Result<WebhookSecrets, Fault> {
        let place = WebhookSecretContext { organization: self.organization, endpoint: self.endpoint };
        let sealed = self.app.store.webhook_secrets(self.organization, self.endpoint).await?;
        let sealed = sealed.ok_or("an endpoint has no secrets")?;
        let (secrets, organization_id) = (&self.app.secrets, self.organization.get());
        let opened = match place.open(&*secrets.ring(Ring::SealingWebhooks).await?, &sealed) {
            Err(WebhookSecretUnsealError::UnknownKid(_)) => {
                place.open(&*secrets.ring_refetched(Ring::SealingWebhooks).await?, &sealed)
            }
            opened => opened,
        };
        opened.map_err(|problem| {
            let webhook_endpoint_id = self.endpoint.get();
            tracing::error!(worker = WebhookDeliveries::NAME, organization_id, webhook_endpoint_id, %problem, "not served");
            problem.into()
        })
    }
}

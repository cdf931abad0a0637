use std::sync::Arc;

use karta_shared::{
    App,
    domain::{
        Action, Actor, ActorKind, Attempt, AuditEvent, DisabledReason, Event, EventType, Failing, Id, ResourceRef,
        ScopeSet, Signatures, Timestamp, WebhookEndpoint, next_attempt,
    },
    http::WebhookEndpointResource,
    store::{Lease, PendingDelivery, Settled, Settlement, StoreError, Transaction},
    telemetry,
    webhook_secrets::WebhookSecrets,
    worker::{Fault, Worker},
};
use serde_json::json;
use tokio::sync::Mutex;

use crate::{
    WebhookDeliveries,
    wire::{Outcome, Wire},
};

/// How much of an answer is kept, in bytes.
const BODY_MAX: usize = 1024;
/// How often a result is written anew when the endpoint was changed meanwhile.
const WRITTEN_AT_MOST: usize = 5;
const GONE: u16 = 410;

/// An endpoint as it was read, and what it is served with.
pub(crate) struct Receiver {
    pub(crate) app: App,
    pub(crate) wire: Arc<Wire>,
    pub(crate) endpoint: WebhookEndpoint,
    pub(crate) secrets: WebhookSecrets,
    pub(crate) lease: Arc<Mutex<Lease>>,
}

/// How an attempt ended, for whoever makes the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptEnd {
    Delivered,
    Failed,
    /// The endpoint takes no more, or is somebody else's to serve.
    Stop,
}

impl Receiver {
    /// Whether the endpoint and its secrets are still what they were.
    pub(crate) async fn is_as_read(&self) -> Result<bool, StoreError> {
        let organization = self.lease.lock().await.organization_id;
        let latest = self.app.store.webhook_endpoint(organization, self.endpoint.id).await?;
        Ok(latest.is_some_and(|latest| latest.version == self.endpoint.version))
    }

    /// Sends an event and writes down what came of it.
    pub(crate) async fn attempt(&self, waiting: PendingDelivery, event: &Event) -> Result<AttemptEnd, Fault> {
        let (at, body) = (self.app.clock.now(), event.body());
        if waiting.is_first_attempt() {
            self.app.metrics.delivery_lag(at, at.since(waiting.event_at));
        }
        let secrets: Vec<_> = self.secrets.live(at).collect();
        let signatures = Signatures::sign(&secrets, &event.public_id(), at, body.as_bytes());
        let outcome = self.wire.post(&self.endpoint.url, &signatures, body).await;
        let succeeded = outcome.error.is_none();
        let retry = self.next_attempt(waiting, &outcome);
        let is_gone = outcome.response_code == Some(GONE);
        let attempt = written_down(at, outcome);

        let lease = self.lease.lock().await;
        if succeeded && lease.failing == Failing::default() {
            // There is nothing to count, so others need not wait for this.
            let read = lease.clone();
            drop(lease);
            let settled = self.settle(&read, waiting, &attempt, Settled::Succeeded, None).await?;
            return Ok(if settled { AttemptEnd::Delivered } else { AttemptEnd::Stop });
        }
        let mut lease = lease;
        let failing = if succeeded { Failing::default() } else { lease.failing.with_failure(at) };
        let reason = match () {
            () if is_gone => Some(DisabledReason::Gone),
            () if failing.should_disable(at) => Some(DisabledReason::Failing),
            () => None,
        };
        let settled = match (succeeded, retry) {
            (true, _) => Settled::Succeeded,
            (false, Some(at)) => Settled::RetryAt(at),
            (false, None) => Settled::Failed,
        };
        if !self.settle(&lease, waiting, &attempt, settled, reason).await? {
            return Ok(AttemptEnd::Stop);
        }
        lease.failing = failing;
        Ok(match reason {
            Some(_) => AttemptEnd::Stop,
            None if succeeded => AttemptEnd::Delivered,
            None => AttemptEnd::Failed,
        })
    }

    fn next_attempt(&self, waiting: PendingDelivery, outcome: &Outcome) -> Option<Timestamp> {
        let mut random = [0];
        self.app.entropy.fill(&mut random);
        next_attempt(waiting.tries, outcome.retry_after, self.app.clock.now(), random[0])
    }

    /// Writes a result down, and the endpoint's end with it if there is a reason for one. Whether it was still ours to write.
    async fn settle(
        &self,
        lease: &Lease,
        waiting: PendingDelivery,
        attempt: &Attempt,
        settled: Settled,
        reason: Option<DisabledReason>,
    ) -> Result<bool, Fault> {
        for _ in 0..WRITTEN_AT_MOST {
            let mut transaction = self.app.store.transaction();
            if let Some(reason) = reason {
                self.disable(&mut transaction, lease, reason).await?;
            }
            let written = self.app.store.settle_delivery(lease, waiting, attempt, settled, transaction).await?;
            match written {
                Settlement::Written => return Ok(true),
                Settlement::NotOurs => return Ok(false),
                Settlement::OthersChanged => {}
            }
        }
        Err("an endpoint keeps changing while it is disabled".into())
    }

    /// Stages the endpoint's end, unless it is another one by now: what came of the one that was sent to says nothing of it.
    async fn disable(
        &self,
        transaction: &mut Transaction,
        lease: &Lease,
        reason: DisabledReason,
    ) -> Result<(), StoreError> {
        let (organization, now) = (lease.organization_id, self.app.clock.now());
        let Some(before) = self.app.store.webhook_endpoint(organization, self.endpoint.id).await? else {
            return Ok(());
        };
        let is_as_read = before.version == self.endpoint.version;
        let answered = reason == DisabledReason::Gone && before.url == self.endpoint.url;
        if !before.is_enabled() || !(is_as_read || answered) {
            return Ok(());
        }
        let mut after = before.clone();
        let changes = after.disable(reason);
        transaction.update_webhook_endpoint(organization, &before, &after, now)?;
        let id = || Id::draw(now, &*self.app.entropy);
        transaction.audit(
            organization,
            &AuditEvent {
                id: id(),
                at: now,
                actor: Actor { kind: ActorKind::System, id: None, name: WebhookDeliveries::NAME.to_owned() },
                action: Action::WebhookEndpointDisabled.as_str().to_owned(),
                resource: ResourceRef { kind: "webhook_endpoint".to_owned(), id: after.id },
                changes,
                ip_address: None,
                user_agent: None,
                request_id: WebhookDeliveries::NAME.to_owned(),
            },
        )?;
        let webhook_endpoint = WebhookEndpointResource::new(after, lease.failing.with_failure(now), ScopeSet::NONE);
        transaction.announce(&Event {
            id: id(),
            event_type: EventType::WebhookEndpointDisabled,
            created_at: now,
            organization_id: organization,
            data: json!({ "webhook_endpoint": webhook_endpoint }).to_string(),
            only_endpoint: None,
        })
    }
}

/// As the delivery keeps it. A receiver may answer with what it was sent, or with secrets of its own.
fn written_down(at: Timestamp, outcome: Outcome) -> Attempt {
    let body = String::from_utf8_lossy(&outcome.response_body);
    let mut body = telemetry::scrub(&body).into_owned();
    body.truncate(body.floor_char_boundary(BODY_MAX));
    Attempt {
        at,
        response_code: outcome.response_code,
        latency_ms: outcome.latency_ms,
        response_body: outcome.response_code.map(|_| body),
        error: outcome.error,
    }
}

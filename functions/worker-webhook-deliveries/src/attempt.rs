use std::sync::Arc;

use karta_shared::{
    App,
    domain::{
        Action, Actor, ActorKind, Attempt, AuditEvent, DisabledReason, Event, EventType, FailureStreak, Id,
        ResourceRef, ScopeSet, Signatures, Timestamp, WebhookEndpoint, next_attempt,
    },
    http::WebhookEndpointResource,
    store::{DeliveryResult, Lease, PendingDelivery, RecordOutcome, StoreError, Transaction},
    telemetry,
    webhook_secrets::WebhookSecrets,
    worker::{Fault, Worker},
};
use serde_json::json;
use tokio::sync::Mutex;

use crate::{
    WebhookDeliveries,
    wire::{AttemptOutcome, Wire},
};

/// Maximum stored bytes of a response body.
const MAX_BODY_BYTES: usize = 1024;
/// Maximum attempts to store a result while the endpoint is being changed.
const MAX_RECORD_ATTEMPTS: usize = 5;
const GONE: u16 = 410;

/// Sends events to one endpoint, with the settings and secrets that were read before.
pub(crate) struct EndpointSender {
    pub(crate) app: App,
    pub(crate) wire: Arc<Wire>,
    pub(crate) endpoint: WebhookEndpoint,
    pub(crate) secrets: WebhookSecrets,
    pub(crate) lease: Arc<Mutex<Lease>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptEnd {
    Delivered,
    Failed,
    /// The endpoint was disabled or has changed, or the result was superseded.
    Stop,
}

impl EndpointSender {
    /// Returns whether the endpoint and its secrets are unchanged since they were read.
    pub(crate) async fn is_unchanged(&self) -> Result<bool, StoreError> {
        let organization = self.lease.lock().await.organization_id;
        let latest = self.app.store.webhook_endpoint(organization, self.endpoint.id).await?;
        Ok(latest.is_some_and(|latest| latest.version == self.endpoint.version))
    }

    /// Sends an event and stores the result.
    pub(crate) async fn attempt(&self, pending: PendingDelivery, event: &Event) -> Result<AttemptEnd, Fault> {
        let (at, body) = (self.app.clock.now(), event.body());
        if pending.is_first_attempt() {
            self.app.metrics.delivery_lag(at, at.since(pending.event_at));
        }
        let secrets: Vec<_> = self.secrets.live(at).collect();
        let signatures = Signatures::sign(&secrets, &event.public_id(), at, body.as_bytes());
        let outcome = self.wire.post(&self.endpoint.url, &signatures, body).await;
        let succeeded = outcome.error.is_none();
        let retry = self.next_attempt(pending, &outcome);
        let is_gone = outcome.response_code == Some(GONE);
        let attempt = to_attempt(at, outcome);

        let lease = self.lease.lock().await;
        if succeeded && lease.failures == FailureStreak::default() {
            // No failure counter changes, so other attempts need not wait for this result.
            let read = lease.clone();
            drop(lease);
            let recorded = self.record(&read, pending, &attempt, DeliveryResult::Succeeded, None).await?;
            return Ok(if recorded { AttemptEnd::Delivered } else { AttemptEnd::Stop });
        }
        let mut lease = lease;
        let failing = if succeeded { FailureStreak::default() } else { lease.failures.with_failure(at) };
        let reason = if is_gone {
            Some(DisabledReason::Gone)
        } else if failing.should_disable(at) {
            Some(DisabledReason::Failing)
        } else {
            None
        };
        let result = match (succeeded, retry) {
            (true, _) => DeliveryResult::Succeeded,
            (false, Some(at)) => DeliveryResult::RetryAt(at),
            (false, None) => DeliveryResult::Failed,
        };
        if !self.record(&lease, pending, &attempt, result, reason).await? {
            return Ok(AttemptEnd::Stop);
        }
        lease.failures = failing;
        Ok(match reason {
            Some(_) => AttemptEnd::Stop,
            None if succeeded => AttemptEnd::Delivered,
            None => AttemptEnd::Failed,
        })
    }

    fn next_attempt(&self, pending: PendingDelivery, outcome: &AttemptOutcome) -> Option<Timestamp> {
        let mut random = [0];
        self.app.entropy.fill(&mut random);
        next_attempt(pending.attempts, outcome.retry_after, self.app.clock.now(), random[0])
    }

    /// Records a result, and disables the endpoint if there is a reason. Returns false if the result
    /// was superseded.
    async fn record(
        &self,
        lease: &Lease,
        pending: PendingDelivery,
        attempt: &Attempt,
        result: DeliveryResult,
        reason: Option<DisabledReason>,
    ) -> Result<bool, Fault> {
        for _ in 0..MAX_RECORD_ATTEMPTS {
            let mut transaction = self.app.store.transaction();
            if let Some(reason) = reason {
                self.disable(&mut transaction, lease, reason).await?;
            }
            let outcome = self.app.store.record_attempt_result(lease, pending, attempt, result, transaction).await?;
            match outcome {
                RecordOutcome::Recorded => return Ok(true),
                RecordOutcome::Superseded => return Ok(false),
                RecordOutcome::CallersWriteFailed => {}
            }
        }
        Err(format!("update of endpoint {} kept conflicting", self.endpoint.id).into())
    }

    /// Stages the disabling of the endpoint, unless it was changed since it was read: the result
    /// may not apply to its new settings. A 410 still applies if the URL is the same.
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
        let is_unchanged = before.version == self.endpoint.version;
        let is_url_gone = reason == DisabledReason::Gone && before.url == self.endpoint.url;
        if !before.is_enabled() || !(is_unchanged || is_url_gone) {
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
                resource: ResourceRef { kind: "webhook_endpoint".to_owned(), id: after.id.into() },
                changes,
                ip_address: None,
                user_agent: None,
                request_id: WebhookDeliveries::NAME.to_owned(),
            },
        )?;
        let webhook_endpoint = WebhookEndpointResource::new(after, lease.failures.with_failure(now), ScopeSet::NONE);
        transaction.publish(&Event {
            id: id(),
            event_type: EventType::WebhookEndpointDisabled,
            created_at: now,
            organization_id: organization,
            data: json!({ "webhook_endpoint": webhook_endpoint }).to_string(),
            only_endpoint: None,
        })
    }
}

/// Converts an outcome to the stored attempt. The body is redacted, because a receiver may return
/// secrets.
fn to_attempt(at: Timestamp, outcome: AttemptOutcome) -> Attempt {
    let body = String::from_utf8_lossy(&outcome.response_body);
    let mut body = telemetry::scrub(&body).into_owned();
    body.truncate(body.floor_char_boundary(MAX_BODY_BYTES));
    Attempt {
        at,
        response_code: outcome.response_code,
        latency_ms: outcome.latency_ms,
        response_body: outcome.response_code.map(|_| body),
        error: outcome.error,
    }
}

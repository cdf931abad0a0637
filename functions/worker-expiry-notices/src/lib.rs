//! Publishes an `api_key.expiring` event for keys that expire soon, once for each expiry that a key
//! is given.

use std::time::Duration;

use karta_shared::{
    App,
    domain::{Event, EventType, Id, KeyStatus, Timestamp},
    http::ApiKeyResource,
    store::{CommitError, OutboxKey, Queue},
    worker::{Fault, Wake, Worker, due, of_organization},
};
use serde_json::json;

/// Maximum rounds of a sweep, which ends when nothing is due. The index may briefly show
/// deleted notices.
const MAX_ROUNDS: usize = 20;
/// Delay before a failed notice is tried again.
const RETRY_DELAY: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub struct ExpiryNotices {
    app: App,
}

impl ExpiryNotices {
    pub fn new(app: App) -> Self {
        Self { app }
    }

    /// Processes a notice. A failed one is postponed, so that it does not block others.
    async fn process_or_postpone(&self, due: OutboxKey) -> Result<(), Fault> {
        let (organization, now) = (due.organization_id, self.app.clock.now());
        let Err(fault) = self.process(&due, now).await else { return Ok(()) };
        let postponed = self.app.store.postpone(Queue::ExpiryNotices, &[due], now.plus(RETRY_DELAY)).await;
        Err(of_organization(organization)(postponed.err().map_or(fault, Fault::from)))
    }

    /// Deletes a notice, and publishes its event if the key still expires at the time of the
    /// notice.
    async fn process(&self, due: &OutboxKey, now: Timestamp) -> Result<(), Fault> {
        let store = &self.app.store;
        let organization = due.organization_id;
        let Some(notice) = store.expiry_notice(organization, &due.sk).await? else {
            return Ok(());
        };
        let mut transaction = store.transaction();
        transaction.delete_expiry_notice(&notice)?;
        let key = store.api_key(organization, notice.api_key_id).await?.filter(|key| {
            key.expires_at == Some(notice.expires_at)
                && key.expiry_notice_at().is_some()
                && key.status(now) == KeyStatus::Active
        });
        if let Some(key) = key {
            transaction.publish(&Event {
                id: Id::draw(now, &*self.app.entropy),
                event_type: EventType::ApiKeyExpiring,
                created_at: now,
                organization_id: organization,
                data: json!({ "api_key": ApiKeyResource::new(key, now) }).to_string(),
                only_endpoint: None,
            })?;
        }
        match transaction.commit().await {
            // Another run deleted the notice, or the key's expiry was just changed.
            Ok(()) | Err(CommitError::Conflict(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Worker for ExpiryNotices {
    const NAME: &'static str = "worker-expiry-notices";

    async fn deployed(app: App) -> Result<Self, Fault> {
        Ok(Self::new(app))
    }

    async fn work(&self, _: &Wake) -> Result<(), Fault> {
        // The fault of one notice must not affect the others.
        let mut outcome = Ok(());
        for _ in 0..MAX_ROUNDS {
            let due = due(&self.app, Queue::ExpiryNotices).await?;
            if due.is_empty() {
                break;
            }
            for due in due {
                outcome = self.process_or_postpone(due).await.and(outcome);
            }
        }
        outcome
    }
}

//! Recoveries: they read an organization's events in order and send an endpoint those that it
//! missed.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    CommitError, Conflict, Queue, Store, StoreError, Transaction, decode,
    deliveries::{StoredEvent, text},
    outbox::Scheduled,
    table::{Key, Table, events_partition, parse_padded},
};
use crate::domain::{Delivery, DeliveryStatus, Id, Timestamp, WebhookEndpoint};

/// How long a recovery waits for an event that is not fanned out yet.
const FAN_OUT_TIMEOUT: Duration = Duration::from_mins(10);
/// Number of events in a page of a recovery. Each may need three writes.
const PAGE_SIZE: i32 = 30;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    pub organization_id: Id,
    pub webhook_endpoint_id: Id,
    pub until: Timestamp,
    /// The sort key up to which events were processed; initially the start time.
    walked_to: String,
}

/// The progress of a recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    All,
    /// This part of the recovery remains.
    Page(Recovery),
    /// The next event is not fanned out yet. A later run continues.
    Waits,
}

impl Store {
    pub async fn recovery(&self, organization: Id, sk: &str) -> Result<Option<Recovery>, StoreError> {
        self.get(Table::Outbox, Key::due(Queue::Recoveries, organization, sk)).await
    }

    /// Schedules the missed deliveries of one page of events. Fails with [`Conflict::Changed`] if
    /// another worker processed the page.
    pub async fn recover(
        &self,
        recovery: &Recovery,
        endpoint: &WebhookEndpoint,
        now: Timestamp,
    ) -> Result<Recovered, CommitError> {
        let organization = recovery.organization_id;
        let output = self
            .client
            .query()
            .table_name(self.table(Table::Outbox))
            .key_condition_expression("pk = :pk AND sk BETWEEN :walked_to AND :until")
            .expression_attribute_values(":pk", text(events_partition(organization)))
            .expression_attribute_values(":walked_to", text(&recovery.walked_to))
            .expression_attribute_values(":until", text(recovery.until))
            .consistent_read(true)
            .limit(PAGE_SIZE)
            .send()
            .await
            .map_err(StoreError::from)?;
        let is_last = output.last_evaluated_key.is_none();
        let (mut missed, mut is_blocked, mut walked_to) = (Vec::new(), false, recovery.walked_to.clone());
        for item in output.items.unwrap_or_default() {
            let sk = super::required_text(&item, "sk")?.to_owned();
            // Sorts directly after the event.
            let position = format!("{sk}#");
            let StoredEvent { event, due_shard } = match decode::<StoredEvent>(item) {
                Ok(stored) => stored,
                Err(fault) => {
                    let organization_id = organization.get();
                    tracing::error!(organization_id, sk, %fault, "unreadable event skipped");
                    walked_to = position;
                    continue;
                }
            };
            // The fan-out decides whether the endpoint gets this event, so the recovery stops here and
            // a later run continues. After the timeout the recovery skips the event.
            if due_shard.is_some() && now.since(event.created_at) < FAN_OUT_TIMEOUT {
                is_blocked = true;
                break;
            }
            walked_to = position;
            let is_for_endpoint = due_shard.is_none() && event.only_endpoint.is_none_or(|only| only == endpoint.id);
            missed.extend((is_for_endpoint && endpoint.event_types.contain(event.event_type)).then_some(event));
        }
        let keys: Vec<_> = missed.iter().map(|event| Key::delivery(organization, endpoint.id, event.id)).collect();
        let mut known = HashMap::with_capacity(keys.len());
        let mut unreadable = HashSet::new();
        for item in self.batch_get(Table::Outbox, &keys).await? {
            let sk = super::required_text(&item, "sk")?.to_owned();
            match decode::<Delivery>(item) {
                Ok(delivery) => drop(known.insert(delivery.id, delivery)),
                Err(error) => {
                    tracing::error!(organization_id = organization.get(), sk, fault = %error, "unreadable delivery skipped");
                    unreadable.extend(parse_padded(&sk));
                }
            }
        }
        missed.retain(|event| !unreadable.contains(&event.id));
        let mut transaction = self.transaction();
        for event in missed {
            match known.get(&event.id) {
                None => {
                    let delivery = Delivery::new(event.id, event.event_type, event.created_at, now);
                    transaction.create_delivery(organization, endpoint.id, &delivery, false)?;
                }
                Some(delivery) if delivery.status == DeliveryStatus::Succeeded => {}
                Some(delivery) => transaction.resend_delivery(organization, endpoint.id, delivery, now)?,
            }
        }
        if transaction.len() > 0 {
            transaction.schedule_queue(organization, endpoint.id, now)?;
        }
        let rest = (is_blocked || !is_last).then(|| Recovery { walked_to, ..recovery.clone() });
        transaction.advance_recovery(recovery, rest.as_ref())?;
        transaction.commit().await?;
        Ok(match rest {
            None => Recovered::All,
            Some(_) if is_blocked => Recovered::Waits,
            Some(rest) => Recovered::Page(rest),
        })
    }

    /// Ends a recovery whose endpoint is deleted or disabled.
    pub async fn drop_recovery(&self, recovery: &Recovery) -> Result<(), CommitError> {
        let mut transaction = self.transaction();
        transaction.advance_recovery(recovery, None)?;
        transaction.commit().await
    }
}

impl Transaction {
    /// Starts a recovery of the events that the endpoint missed since a time.
    pub fn recover_deliveries(
        &mut self,
        organization: Id,
        endpoint: Id,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let recovery = Recovery {
            organization_id: organization,
            webhook_endpoint_id: endpoint,
            until: now,
            walked_to: since.to_string(),
        };
        let scheduled = Scheduled { item: &recovery, due_shard: Queue::Recoveries.shard(endpoint), due_at: now };
        self.insert(Table::Outbox, &Key::recovery(organization, endpoint), &scheduled, Conflict::RecoveryUnderWay)
    }

    /// Stores the progress of a recovery, or ends it.
    fn advance_recovery(&mut self, before: &Recovery, rest: Option<&Recovery>) -> Result<(), StoreError> {
        let key = Key::recovery(before.organization_id, before.webhook_endpoint_id);
        let (condition, read) = ("walked_to = :read", text(&before.walked_to));
        match rest {
            Some(rest) => self.update(Table::Outbox, &key, Conflict::Changed, |update| {
                update
                    .update_expression("SET walked_to = :walked_to")
                    .condition_expression(condition)
                    .expression_attribute_values(":walked_to", text(&rest.walked_to))
                    .expression_attribute_values(":read", read)
            }),
            None => self.delete(Table::Outbox, &key, Conflict::Changed, |delete| {
                delete.condition_expression(condition).expression_attribute_values(":read", read)
            }),
        }
    }
}

//! Recoveries: walks over an organization's events that have an endpoint sent what it missed.

use std::{collections::HashMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    CommitError, Conflict, Queue, Store, StoreError, Transaction, decode,
    deliveries::{KeptEvent, text},
    table::{Key, Table, events_partition},
};
use crate::domain::{Delivery, DeliveryStatus, Id, Timestamp, WebhookEndpoint};

/// For how long a recovery waits for an event that is not fanned out yet.
const AWAITED: Duration = Duration::from_mins(10);
/// How many events a page of a recovery looks at: each may take three writes.
const RECOVERED_AT_ONCE: i32 = 30;

/// An endpoint's wish for what it missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    pub organization_id: Id,
    pub webhook_endpoint_id: Id,
    pub until: Timestamp,
    /// After which event, by its sort key, the walk goes on; a time before the first.
    walked_to: String,
}

/// How far a recovery has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    All,
    /// This is left.
    Page(Recovery),
    /// The next event is not fanned out yet: another look is to go on.
    Waits,
}

impl Store {
    pub async fn recovery(&self, organization: Id, sk: &str) -> Result<Option<Recovery>, StoreError> {
        self.get(Table::Outbox, Key::due(Queue::Recoveries, organization, sk)).await
    }

    /// Has a page of what an endpoint missed sent; an error if another worker was quicker.
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
            .limit(RECOVERED_AT_ONCE)
            .send()
            .await
            .map_err(StoreError::from)?;
        let is_last = output.last_evaluated_key.is_none();
        let (mut missed, mut waits, mut walked_to) = (Vec::new(), false, recovery.walked_to.clone());
        for item in output.items.unwrap_or_default() {
            let place = format!("{}#", super::text(&item, "sk")?);
            let Ok(KeptEvent { event, due_shard }) = decode(item) else {
                tracing::error!(place, "an event that cannot be read is not recovered");
                walked_to = place;
                continue;
            };
            // Whether the endpoint gets it is not known before it is fanned out: the walk goes on after that.
            if due_shard.is_some() && now.since(event.created_at) < AWAITED {
                waits = true;
                break;
            }
            walked_to = place;
            let wanted = due_shard.is_none() && event.only_endpoint.is_none_or(|only| only == endpoint.id);
            missed.extend((wanted && endpoint.event_types.contain(event.event_type)).then_some(event));
        }
        let keys: Vec<_> = missed.iter().map(|event| Key::delivery(organization, endpoint.id, event.id)).collect();
        let mut known = HashMap::with_capacity(keys.len());
        for item in self.batch_get(Table::Outbox, &keys).await? {
            let delivery: Delivery = decode(item)?;
            known.insert(delivery.id, delivery);
        }
        let mut transaction = self.transaction();
        for event in missed {
            match known.get(&event.id) {
                None => {
                    let delivery = Delivery::new(event.id, event.event_type, event.created_at, now);
                    transaction.create_delivery(organization, endpoint.id, &delivery, false)?;
                }
                Some(delivery) if delivery.status == DeliveryStatus::Succeeded => {}
                Some(delivery) => transaction.send_again(organization, endpoint.id, delivery, now)?,
            }
        }
        if transaction.len() > 0 {
            transaction.join_queue(organization, endpoint.id, now)?;
        }
        let rest = (waits || !is_last).then(|| Recovery { walked_to, ..recovery.clone() });
        transaction.proceed(recovery, rest.as_ref())?;
        transaction.commit().await?;
        Ok(match rest {
            None => Recovered::All,
            Some(_) if waits => Recovered::Waits,
            Some(rest) => Recovered::Page(rest),
        })
    }

    /// Gives up a recovery whose endpoint is gone or takes nothing.
    pub async fn drop_recovery(&self, recovery: &Recovery) -> Result<(), CommitError> {
        let mut transaction = self.transaction();
        transaction.proceed(recovery, None)?;
        transaction.commit().await
    }
}

impl Transaction {
    /// Has the endpoint sent what it missed since a time.
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
        let waiting =
            super::outbox::Scheduled { item: &recovery, due_shard: Queue::Recoveries.shard(endpoint), due_at: now };
        self.insert(Table::Outbox, &Key::recovery(organization, endpoint), &waiting, Conflict::RecoveryUnderWay)
    }

    /// Remembers how far a recovery is, or ends it.
    fn proceed(&mut self, before: &Recovery, rest: Option<&Recovery>) -> Result<(), StoreError> {
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

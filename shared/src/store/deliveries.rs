//! Webhook deliveries, from the pending event to the result of each attempt.
//!
//! The worker that holds the lease of an endpoint's queue serves it. A result is written on
//! condition that its attempt is still pending, so that repeated work is recorded once.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{
    Conflict, Lease, OutboxKey, Page, Queue, Store, StoreError, Transaction, decode,
    decode::decode_or_skip,
    page::Listing,
    table::{Key, Table, deliveries_partition, padded, pending_deliveries_partition},
};
use crate::domain::{Attempt, Delivery, DeliveryStatus, Event, Id, MAX_CLOCK_SKEW, Timestamp, WebhookEndpoint};

pub const DELIVERY_RETENTION: Duration = Duration::from_hours(30 * 24);
/// How long an event is kept: longer than its deliveries, which send its bytes.
const EVENT_RETENTION: Duration = Duration::from_hours(33 * 24);
/// Maximum number of writes in a transaction, set by DynamoDB.
const MAX_WRITES: usize = 100;
/// Maximum bytes of events in a transaction. DynamoDB allows 4 MB.
const MAX_BYTES: usize = 1_000_000;
/// Maximum attempts of a fan-out that conflicts with another.
const CONFLICT_ATTEMPTS: u32 = 4;
const CONFLICT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Deserialize)]
pub(super) struct StoredEvent {
    #[serde(flatten)]
    pub(super) event: Event,
    /// Present until the event is fanned out.
    pub(super) due_shard: Option<String>,
}

/// A scheduled attempt of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingDelivery {
    /// Id of the delivery, which is its event's id.
    pub id: Id,
    pub event_at: Timestamp,
    pub at: Timestamp,
    /// Attempts since creation, or since the last replay or recovery. Stored as `tries`.
    #[serde(rename = "tries")]
    pub attempts: u32,
    /// True if the event itself caused the delivery; false for replays and recoveries. Stored as
    /// `announced`.
    #[serde(default, rename = "announced")]
    pub is_original: bool,
}

impl PendingDelivery {
    /// Returns whether the next attempt is the first since the event happened.
    pub fn is_first_attempt(&self) -> bool {
        self.is_original && self.attempts == 0
    }
}

#[derive(Debug, Default)]
pub struct DueDeliveries {
    pub due: Vec<PendingDelivery>,
    /// The time at which the first of the remaining deliveries is due.
    pub next: Option<Timestamp>,
}

/// The effect of an attempt on its delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryResult {
    Succeeded,
    RetryAt(Timestamp),
    Failed,
}

#[derive(Serialize)]
struct Expiring<'a, T> {
    #[serde(flatten)]
    item: &'a T,
    ttl: i64,
}

impl<'a, T> Expiring<'a, T> {
    /// `event` is the id of the event, which determines the expiry.
    fn new(event: Id, item: &'a T) -> Self {
        Self { item, ttl: event.drawn_at().plus(DELIVERY_RETENTION).as_seconds() }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "callers pass ids, times and borrowed texts alike")]
pub(super) fn text(text: impl ToString) -> AttributeValue {
    AttributeValue::S(text.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "callers pass ids, times and borrowed texts alike")]
pub(super) fn number(number: impl ToString) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

impl Store {
    /// Returns the events that are not fanned out yet, oldest first, and the items of unreadable
    /// events.
    pub async fn pending_events(&self, due: &[OutboxKey]) -> Result<(Vec<Event>, Vec<OutboxKey>), StoreError> {
        let keys: Vec<_> = due.iter().map(|due| Key::due(Queue::Events, due.organization_id, &due.sk)).collect();
        let (mut events, mut unreadable) = (Vec::with_capacity(keys.len()), Vec::new());
        for item in self.batch_get(Table::Outbox, &keys).await? {
            let sk = super::required_text(&item, "sk")?.to_owned();
            match decode::<StoredEvent>(item) {
                Ok(stored) => events.extend(stored.due_shard.is_some().then_some(stored.event)),
                Err(fault) => {
                    let found = due.iter().find(|due| due.sk == sk);
                    let organization_id = found.map(|due| due.organization_id.get());
                    tracing::error!(organization_id, sk, %fault, "unreadable pending event skipped");
                    unreadable.extend(found.cloned());
                }
            }
        }
        events.sort_by_key(|event| (event.created_at, event.id));
        Ok((events, unreadable))
    }

    /// Fans out events: removes them from the queue and creates a delivery for each subscribed
    /// endpoint. Adds the endpoints with new deliveries to `touched`, also before an error.
    pub async fn fan_out(
        &self,
        organization: Id,
        events: Vec<Event>,
        endpoints: &[WebhookEndpoint],
        now: Timestamp,
        touched: &mut BTreeSet<Id>,
    ) -> Result<(), StoreError> {
        let wanted_by = |event: &Event| -> Vec<Id> {
            let wants = |endpoint: &&WebhookEndpoint| match event.only_endpoint {
                Some(only) => endpoint.id == only,
                None => endpoint.wants(event.event_type, event.created_at),
            };
            endpoints.iter().filter(wants).map(|endpoint| endpoint.id).collect()
        };
        let mut events = events.into_iter().peekable();
        while events.peek().is_some() {
            let (mut batch, mut queues, mut writes, mut bytes) = (Vec::new(), BTreeSet::new(), 0, 0);
            while let Some(event) = events.next_if(|event| {
                let wanted_by = wanted_by(event);
                let joined = wanted_by.iter().filter(|id| !queues.contains(*id)).count();
                writes + 1 + 2 * wanted_by.len() + joined <= MAX_WRITES && bytes < MAX_BYTES
            }) {
                bytes += event.data.len();
                let wanted_by = wanted_by(&event);
                let before = queues.len();
                queues.extend(wanted_by.iter().copied());
                writes += 1 + 2 * wanted_by.len() + queues.len() - before;
                batch.push((event, wanted_by));
            }
            touched.extend(self.fan_out_batch(organization, batch, now).await?);
        }
        Ok(())
    }

    /// Commits one transaction. If another worker has fanned out some of the events, retries
    /// without them.
    ///
    /// A concurrent fan-out may be partly visible: its deliveries exist while its events still
    /// appear to be pending. Such a conflict is retried.
    async fn fan_out_batch(
        &self,
        organization: Id,
        mut batch: Vec<(Event, Vec<Id>)>,
        now: Timestamp,
    ) -> Result<BTreeSet<Id>, StoreError> {
        let mut conflicts = 0;
        while !batch.is_empty() {
            let mut transaction = self.transaction();
            for (event, _) in &batch {
                transaction.dequeue_event(event)?;
            }
            let (mut queues, mut created) = (BTreeSet::new(), Vec::new());
            for (event, wanted_by) in &batch {
                for endpoint in wanted_by {
                    let delivery = Delivery::new(event.id, event.event_type, event.created_at, now);
                    created.push((transaction.len(), delivery.id, *endpoint));
                    transaction.create_delivery(organization, *endpoint, &delivery, true)?;
                    queues.insert(*endpoint);
                }
            }
            for endpoint in &queues {
                transaction.schedule_queue(organization, *endpoint, now)?;
            }
            let failed: HashSet<_> = transaction.attempt().await?.into_iter().collect();
            if failed.is_empty() {
                return Ok(queues);
            }
            // If an event was fanned out already, its own write fails too. If only deliveries fail,
            // a concurrent fan-out is partly visible.
            if failed.iter().all(|index| *index >= batch.len()) {
                conflicts += 1;
                if conflicts == CONFLICT_ATTEMPTS {
                    let existing = created.iter().filter(|(index, ..)| failed.contains(index));
                    let existing: Vec<_> =
                        existing.map(|(_, delivery, endpoint)| format!("{delivery} of endpoint {endpoint}")).collect();
                    let fault = format!("deliveries exist whose events were not fanned out: {}", existing.join(", "));
                    return Err(StoreError::Fault(fault));
                }
                tokio::time::sleep(CONFLICT_PAUSE * conflicts).await;
                continue;
            }
            let mut at = 0;
            batch.retain(|_| {
                at += 1;
                !failed.contains(&(at - 1))
            });
        }
        Ok(BTreeSet::new())
    }

    /// Returns at most `limit` due deliveries of an endpoint, those due longest first.
    pub async fn due_deliveries(
        &self,
        organization: Id,
        endpoint: Id,
        now: Timestamp,
        limit: i32,
    ) -> Result<DueDeliveries, StoreError> {
        let mut items = self
            .client
            .query()
            .table_name(self.table(Table::Outbox))
            .key_condition_expression("pk = :pk")
            .expression_attribute_values(":pk", text(pending_deliveries_partition(organization, endpoint)))
            .consistent_read(true)
            .limit(limit)
            .into_paginator()
            .items()
            .send();
        let (mut found, mut examined) = (DueDeliveries::default(), 0);
        while let Some(item) = items.next().await {
            // Unreadable deliveries do not count towards the limit.
            let Some(pending) = decode_or_skip::<PendingDelivery>(item?, "pending delivery") else { continue };
            // A first attempt is due when it is scheduled, and the clock of that writer may be ahead.
            let is_due_first_attempt = pending.attempts == 0 && pending.at <= now.plus(MAX_CLOCK_SKEW);
            if pending.at <= now || is_due_first_attempt {
                found.due.push(pending);
            } else {
                found.next = found.next.or(Some(pending.at));
            }
            examined += 1;
            if examined == limit {
                break;
            }
        }
        Ok(found)
    }

    /// Returns the events of deliveries by id, without those that are no longer kept or unreadable.
    pub async fn events(
        &self,
        organization: Id,
        pending: &[PendingDelivery],
    ) -> Result<HashMap<Id, Event>, StoreError> {
        let keys: Vec<_> =
            pending.iter().map(|pending| Key::event(organization, pending.event_at, pending.id)).collect();
        let items = self.batch_get(Table::Outbox, &keys).await?;
        let mut events = HashMap::with_capacity(items.len());
        for item in items {
            let sk = super::required_text(&item, "sk")?.to_owned();
            match decode::<Event>(item) {
                Ok(event) => drop(events.insert(event.id, event)),
                Err(fault) => {
                    tracing::error!(organization_id = organization.get(), sk, %fault, "unreadable event skipped");
                }
            }
        }
        Ok(events)
    }

    /// Records the result of an attempt together with the writes in `transaction`.
    pub async fn record_attempt_result(
        &self,
        lease: &Lease,
        pending: PendingDelivery,
        attempt: &Attempt,
        result: DeliveryResult,
        mut transaction: Transaction,
    ) -> Result<RecordOutcome, StoreError> {
        let callers_writes = transaction.len();
        let (organization, endpoint) = (lease.organization_id, lease.webhook_endpoint_id);
        transaction.unschedule_delivery(organization, endpoint, pending)?;
        transaction.record_attempt(organization, endpoint, pending.id, attempt, result)?;
        if let DeliveryResult::RetryAt(at) = result {
            transaction.schedule_delivery(
                organization,
                endpoint,
                PendingDelivery { at, attempts: pending.attempts + 1, ..pending },
            )?;
        }
        transaction.update_failures(lease, result == DeliveryResult::Succeeded, attempt.at)?;
        let failed = transaction.attempt().await?;
        Ok(match failed.iter().min() {
            None => RecordOutcome::Recorded,
            Some(index) if *index < callers_writes => RecordOutcome::CallersWriteFailed,
            Some(_) => RecordOutcome::Superseded,
        })
    }

    /// Deletes the scheduled attempt of a delivery that is no longer kept.
    pub async fn delete_pending_delivery(
        &self,
        organization: Id,
        endpoint: Id,
        pending: PendingDelivery,
    ) -> Result<(), StoreError> {
        let key = Key::pending_delivery(organization, endpoint, pending.id, pending.at);
        let delete = self.client.delete_item().table_name(self.table(Table::Outbox));
        delete.set_key(Some(key.attributes())).send().await?;
        Ok(())
    }

    pub async fn delivery(&self, organization: Id, endpoint: Id, delivery: Id) -> Result<Option<Delivery>, StoreError> {
        self.get(Table::Outbox, Key::delivery(organization, endpoint, delivery)).await
    }

    /// Returns the endpoint's deliveries that match `keep`, newest first.
    pub async fn deliveries(
        &self,
        organization: Id,
        endpoint: Id,
        below: Option<Id>,
        limit: usize,
        now: Timestamp,
        keep: impl Fn(&Delivery) -> bool,
    ) -> Result<Page<Delivery>, StoreError> {
        let listing = Listing {
            table: Table::Outbox,
            partition: deliveries_partition(organization, endpoint),
            sort_key: padded,
            read: decode,
            skips_unreadable: false,
            id: |delivery: &Delivery| delivery.id,
        };
        // DynamoDB deletes expired items late.
        let kept = |delivery: &Delivery| now.since(delivery.id.drawn_at()) < DELIVERY_RETENTION;
        self.page(listing, below, limit, |delivery| kept(delivery) && keep(delivery)).await
    }
}

/// Whether the result of an attempt was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordOutcome {
    Recorded,
    /// Another worker has recorded a result, a replay has rescheduled the delivery, or another
    /// worker holds the lease.
    Superseded,
    /// A condition of the caller's own writes failed.
    CallersWriteFailed,
}

impl Transaction {
    /// Removes an event from the queue, if it is still pending. The event is kept for replays.
    fn dequeue_event(&mut self, event: &Event) -> Result<(), StoreError> {
        let key = Key::event(event.organization_id, event.created_at, event.id);
        self.update(Table::Outbox, &key, Conflict::Changed, |update| {
            update
                .update_expression("SET #ttl = :ttl REMOVE due_shard, due_at")
                .condition_expression("attribute_exists(due_shard)")
                .expression_attribute_names("#ttl", "ttl")
                .expression_attribute_values(":ttl", number(event.created_at.plus(EVENT_RETENTION).as_seconds()))
        })
    }

    pub(super) fn create_delivery(
        &mut self,
        organization: Id,
        endpoint: Id,
        delivery: &Delivery,
        is_original: bool,
    ) -> Result<(), StoreError> {
        let key = Key::delivery(organization, endpoint, delivery.id);
        self.insert(Table::Outbox, &key, &Expiring::new(delivery.id, delivery), Conflict::Changed)?;
        self.schedule_first_attempt(organization, endpoint, delivery, is_original)
    }

    /// Schedules a delivery for now, whatever its status. Does not schedule the endpoint's queue.
    pub(super) fn resend_delivery(
        &mut self,
        organization: Id,
        endpoint: Id,
        before: &Delivery,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let after = before.rescheduled(now);
        if before.next_attempt_at != after.next_attempt_at {
            if let Some(at) = before.next_attempt_at {
                // Only the key of the scheduled attempt is needed to delete it; `attempts` is not
                // part of it.
                let pending =
                    PendingDelivery { id: before.id, event_at: before.event_at, at, attempts: 0, is_original: false };
                self.unschedule_delivery(organization, endpoint, pending)?;
            }
            self.schedule_first_attempt(organization, endpoint, &after, false)?;
        }
        let key = Key::delivery(organization, endpoint, before.id);
        self.put(Table::Outbox, &key, &Expiring::new(after.id, &after), Conflict::Changed, |put| {
            put.condition_expression("revision = :read").expression_attribute_values(":read", number(before.revision))
        })
    }

    /// Schedules a delivery and its queue again at the organization's request.
    pub fn replay_delivery(
        &mut self,
        organization: Id,
        endpoint: Id,
        before: &Delivery,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.resend_delivery(organization, endpoint, before, now)?;
        self.schedule_queue(organization, endpoint, now)
    }

    fn schedule_first_attempt(
        &mut self,
        organization: Id,
        endpoint: Id,
        delivery: &Delivery,
        is_original: bool,
    ) -> Result<(), StoreError> {
        let Delivery { id, event_at, next_attempt_at, .. } = *delivery;
        let Some(at) = next_attempt_at else { return Ok(()) };
        self.schedule_delivery(organization, endpoint, PendingDelivery { id, event_at, at, attempts: 0, is_original })
    }

    fn schedule_delivery(
        &mut self,
        organization: Id,
        endpoint: Id,
        pending: PendingDelivery,
    ) -> Result<(), StoreError> {
        let key = Key::pending_delivery(organization, endpoint, pending.id, pending.at);
        self.put(Table::Outbox, &key, &Expiring::new(pending.id, &pending), Conflict::Changed, |put| put)
    }

    fn unschedule_delivery(
        &mut self,
        organization: Id,
        endpoint: Id,
        pending: PendingDelivery,
    ) -> Result<(), StoreError> {
        let key = Key::pending_delivery(organization, endpoint, pending.id, pending.at);
        self.delete(Table::Outbox, &key, Conflict::Changed, |delete| {
            delete.condition_expression("attribute_exists(pk)")
        })
    }

    fn record_attempt(
        &mut self,
        organization: Id,
        endpoint: Id,
        delivery: Id,
        attempt: &Attempt,
        result: DeliveryResult,
    ) -> Result<(), StoreError> {
        let attempt: AttributeValue = serde_dynamo::to_attribute_value(attempt)
            .map_err(|error| StoreError::Fault(format!("attempt cannot be encoded: {error}")))?;
        let (status, next) = match result {
            DeliveryResult::Succeeded => (DeliveryStatus::Succeeded, None),
            DeliveryResult::RetryAt(at) => (DeliveryStatus::Pending, Some(at)),
            DeliveryResult::Failed => (DeliveryStatus::Failed, None),
        };
        self.update(Table::Outbox, &Key::delivery(organization, endpoint, delivery), Conflict::Changed, |update| {
            let next_attempt = if next.is_some() { ", next_attempt_at = :next" } else { " REMOVE next_attempt_at" };
            let update = update
                .update_expression(format!(
                    "SET #status = :status, revision = revision + :one, attempts = list_append(attempts, :attempt)\
                     {next_attempt}"
                ))
                .condition_expression("attribute_exists(pk)")
                .expression_attribute_names("#status", "status")
                .expression_attribute_values(":status", text(status))
                .expression_attribute_values(":one", number(1))
                .expression_attribute_values(":attempt", AttributeValue::L(vec![attempt]));
            match next {
                Some(next) => update.expression_attribute_values(":next", text(next)),
                None => update,
            }
        })
    }
}

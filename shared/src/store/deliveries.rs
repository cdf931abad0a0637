//! Webhook deliveries: from events that wait to what came of sending them.
//!
//! Whoever holds the lease of an endpoint's queue serves it. A result is written on condition that the
//! attempt still waits, so that whatever is done twice is written once.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{
    Conflict, DueItem, Lease, Page, Queue, Store, StoreError, Transaction, decode,
    outbox::unless_condition_failed,
    page::Listing,
    table::{Key, Table, deliveries_partition, padded, waiting_deliveries_partition},
};
use crate::domain::{Attempt, CLOCKS_APART, Delivery, DeliveryStatus, Event, Id, Timestamp, WebhookEndpoint};

/// How long a delivery is kept.
pub const DELIVERIES_KEPT: Duration = Duration::from_hours(30 * 24);
/// Longer than deliveries, whose bytes come from them.
const EVENTS_KEPT: Duration = Duration::from_hours(33 * 24);
/// DynamoDB's own limit.
const WRITES_AT_MOST: usize = 100;
/// DynamoDB's own limit on a transaction is 4 MB.
const BYTES_AT_MOST: usize = 1_000_000;
/// How often a fan-out that another one crosses is tried.
const CONFLICT_ATTEMPTS: u32 = 4;
const CONFLICT_PAUSE: Duration = Duration::from_millis(50);

/// An event as it lies in the outbox.
#[derive(Debug, Deserialize)]
pub(super) struct KeptEvent {
    #[serde(flatten)]
    pub(super) event: Event,
    /// Only until it is fanned out.
    pub(super) due_shard: Option<String>,
}

/// A delivery that waits to be attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingDelivery {
    pub id: Id,
    pub event_at: Timestamp,
    pub at: Timestamp,
    /// How many attempts of this round were made.
    pub tries: u32,
    /// Sent because the event has happened, and not because somebody asks for it again.
    #[serde(default)]
    pub announced: bool,
}

impl PendingDelivery {
    /// Whether the next attempt is the first since the event happened.
    pub fn is_first_attempt(&self) -> bool {
        self.announced && self.tries == 0
    }
}

/// What an endpoint's queue holds.
#[derive(Debug, Default)]
pub struct DueDeliveries {
    pub due: Vec<PendingDelivery>,
    /// When the first of the rest is due.
    pub next: Option<Timestamp>,
}

/// What becomes of a delivery after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    Succeeded,
    /// The first failure of a round has the number 0.
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
    /// Of the event with this id.
    fn new(event: Id, item: &'a T) -> Self {
        Self { item, ttl: event.drawn_at().plus(DELIVERIES_KEPT).as_seconds() }
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
    /// Those of an organization's events that nobody has fanned out yet, oldest first, and the places of those that cannot be read.
    pub async fn pending_events(&self, due: &[DueItem]) -> Result<(Vec<Event>, Vec<DueItem>), StoreError> {
        let keys: Vec<_> = due.iter().map(|due| Key::due(Queue::Events, due.organization_id, &due.sk)).collect();
        let (mut events, mut unreadable) = (Vec::with_capacity(keys.len()), Vec::new());
        for item in self.batch_get(Table::Outbox, &keys).await? {
            let sk = super::text(&item, "sk")?.to_owned();
            match decode::<KeptEvent>(item) {
                Ok(kept) => events.extend(kept.due_shard.is_some().then_some(kept.event)),
                Err(error) => {
                    tracing::error!(sk, %error, "an event waits that cannot be read");
                    unreadable.extend(due.iter().find(|due| due.sk == sk).cloned());
                }
            }
        }
        events.sort_by_key(|event| (event.created_at, event.id));
        Ok((events, unreadable))
    }

    /// Has events looked at again later, where they still wait: what cannot be fanned out must not stand before everybody else's.
    pub async fn postpone_events(&self, due: &[DueItem], until: Timestamp) -> Result<(), StoreError> {
        for DueItem { organization_id, sk } in due {
            let sent = self
                .client
                .update_item()
                .table_name(self.table(Table::Outbox))
                .set_key(Some(Key::due(Queue::Events, *organization_id, sk).attributes()))
                .update_expression("SET due_at = :until")
                .condition_expression("attribute_exists(due_shard)")
                .expression_attribute_values(":until", text(until))
                .send()
                .await;
            unless_condition_failed(sent.map(drop))?;
        }
        Ok(())
    }

    /// Takes events of an organization out of the queue and has each delivered to the endpoints that want it. Adds the endpoints that have
    /// something new to `touched`, also before a fault.
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
                writes + 1 + 2 * wanted_by.len() + joined <= WRITES_AT_MOST && bytes < BYTES_AT_MOST
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

    /// One transaction, again without the events that somebody else has fanned out meanwhile.
    ///
    /// While another one is being written, its deliveries may lie there and its events be held: it is asked again, then.
    async fn fan_out_batch(
        &self,
        organization: Id,
        mut batch: Vec<(Event, Vec<Id>)>,
        now: Timestamp,
    ) -> Result<BTreeSet<Id>, StoreError> {
        let mut crossed = 0;
        while !batch.is_empty() {
            let mut transaction = self.transaction();
            for (event, _) in &batch {
                transaction.keep_event(event)?;
            }
            let mut queues = BTreeSet::new();
            for (event, wanted_by) in &batch {
                for endpoint in wanted_by {
                    let delivery = Delivery::new(event.id, event.event_type, event.created_at, now);
                    transaction.create_delivery(organization, *endpoint, &delivery, true)?;
                    queues.insert(*endpoint);
                }
            }
            for endpoint in &queues {
                transaction.join_queue(organization, *endpoint, now)?;
            }
            let failed: HashSet<_> = transaction.attempt().await?.into_iter().collect();
            if failed.is_empty() {
                return Ok(queues);
            }
            // Where an event was fanned out already, its deliveries lie there too.
            if failed.iter().all(|member| *member >= batch.len()) {
                crossed += 1;
                if crossed == CONFLICT_ATTEMPTS {
                    return Err(StoreError::Fault("a delivery lies there whose event was not fanned out".to_owned()));
                }
                tokio::time::sleep(CONFLICT_PAUSE * crossed).await;
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

    /// What an endpoint is to be sent, what waits longest first; at most `limit`.
    pub async fn due_deliveries(
        &self,
        organization: Id,
        endpoint: Id,
        now: Timestamp,
        limit: i32,
    ) -> Result<DueDeliveries, StoreError> {
        let output = self
            .client
            .query()
            .table_name(self.table(Table::Outbox))
            .key_condition_expression("pk = :pk")
            .expression_attribute_values(":pk", text(waiting_deliveries_partition(organization, endpoint)))
            .consistent_read(true)
            .limit(limit)
            .send()
            .await?;
        let mut found = DueDeliveries::default();
        for item in output.items.unwrap_or_default() {
            let waiting: PendingDelivery = decode(item)?;
            let never_tried = waiting.tries == 0 && waiting.at <= now.plus(CLOCKS_APART);
            if waiting.at <= now || never_tried {
                found.due.push(waiting);
            } else {
                found.next = found.next.or(Some(waiting.at));
            }
        }
        Ok(found)
    }

    /// The events of deliveries, by their ids; one that is kept no more is not among them.
    pub async fn events(
        &self,
        organization: Id,
        waiting: &[PendingDelivery],
    ) -> Result<HashMap<Id, Event>, StoreError> {
        let keys: Vec<_> =
            waiting.iter().map(|waiting| Key::event(organization, waiting.event_at, waiting.id)).collect();
        let items = self.batch_get(Table::Outbox, &keys).await?;
        let event = |item| decode::<Event>(item).map(|event| (event.id, event));
        items.into_iter().map(event).collect()
    }

    /// Writes down what came of an attempt, with whatever `transaction` changes besides. Says whether it did: not if somebody else has
    /// settled it, or sent it anew, meanwhile.
    pub async fn settle_delivery(
        &self,
        lease: &Lease,
        waiting: PendingDelivery,
        attempt: &Attempt,
        settled: Settled,
        mut transaction: Transaction,
    ) -> Result<Settlement, StoreError> {
        let others = transaction.len();
        let (organization, endpoint) = (lease.organization_id, lease.webhook_endpoint_id);
        transaction.unschedule_delivery(organization, endpoint, waiting)?;
        transaction.note_attempt(organization, endpoint, waiting.id, attempt, settled)?;
        if let Settled::RetryAt(at) = settled {
            transaction.wait(organization, endpoint, PendingDelivery { at, tries: waiting.tries + 1, ..waiting })?;
        }
        transaction.note_failing(lease, settled == Settled::Succeeded, attempt.at)?;
        let failed = transaction.attempt().await?;
        Ok(match failed.iter().min() {
            None => Settlement::Written,
            Some(member) if *member < others => Settlement::OthersChanged,
            Some(_) => Settlement::NotOurs,
        })
    }

    /// Takes away what points to a delivery that is kept no more.
    pub async fn forget_delivery(
        &self,
        organization: Id,
        endpoint: Id,
        waiting: PendingDelivery,
    ) -> Result<(), StoreError> {
        let key = Key::waiting_delivery(organization, endpoint, waiting.id, waiting.at);
        let delete = self.client.delete_item().table_name(self.table(Table::Outbox));
        delete.set_key(Some(key.attributes())).send().await?;
        Ok(())
    }

    pub async fn delivery(&self, organization: Id, endpoint: Id, delivery: Id) -> Result<Option<Delivery>, StoreError> {
        self.get(Table::Outbox, Key::delivery(organization, endpoint, delivery)).await
    }

    /// An endpoint's deliveries, newest first, of those that `keep` lets through.
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
            place: padded,
            read: decode,
            skips_unreadable: false,
            id: |delivery: &Delivery| delivery.id,
        };
        // DynamoDB deletes late.
        let kept = |delivery: &Delivery| now.since(delivery.id.drawn_at()) < DELIVERIES_KEPT;
        self.page(listing, below, limit, |delivery| kept(delivery) && keep(delivery)).await
    }
}

/// What became of writing a result down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    Written,
    /// Somebody else has settled the delivery or sent it anew, or holds the lease.
    NotOurs,
    /// What else the transaction was to change has changed meanwhile.
    OthersChanged,
}

impl Transaction {
    /// Takes an event out of the queue, if it still waits there; it stays for replays.
    fn keep_event(&mut self, event: &Event) -> Result<(), StoreError> {
        let key = Key::event(event.organization_id, event.created_at, event.id);
        self.update(Table::Outbox, &key, Conflict::Changed, |update| {
            update
                .update_expression("SET #ttl = :ttl REMOVE due_shard, due_at")
                .condition_expression("attribute_exists(due_shard)")
                .expression_attribute_names("#ttl", "ttl")
                .expression_attribute_values(":ttl", number(event.created_at.plus(EVENTS_KEPT).as_seconds()))
        })
    }

    pub(super) fn create_delivery(
        &mut self,
        organization: Id,
        endpoint: Id,
        delivery: &Delivery,
        announced: bool,
    ) -> Result<(), StoreError> {
        let key = Key::delivery(organization, endpoint, delivery.id);
        self.insert(Table::Outbox, &key, &Expiring::new(delivery.id, delivery), Conflict::Changed)?;
        self.await_attempt(organization, endpoint, delivery, announced)
    }

    /// Has a delivery sent at once, whatever came of it before. The endpoint's queue is not told yet.
    pub(super) fn send_again(
        &mut self,
        organization: Id,
        endpoint: Id,
        before: &Delivery,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let after = before.again(now);
        if before.next_attempt_at != after.next_attempt_at {
            if let Some(at) = before.next_attempt_at {
                // Its number of tries is the pointer's own.
                let waiting =
                    PendingDelivery { id: before.id, event_at: before.event_at, at, tries: 0, announced: false };
                self.unschedule_delivery(organization, endpoint, waiting)?;
            }
            self.await_attempt(organization, endpoint, &after, false)?;
        }
        let key = Key::delivery(organization, endpoint, before.id);
        self.put(Table::Outbox, &key, &Expiring::new(after.id, &after), Conflict::Changed, |put| {
            put.condition_expression("revision = :read").expression_attribute_values(":read", number(before.revision))
        })
    }

    /// Sends a delivery anew at an organization's wish.
    pub fn replay_delivery(
        &mut self,
        organization: Id,
        endpoint: Id,
        before: &Delivery,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.send_again(organization, endpoint, before, now)?;
        self.join_queue(organization, endpoint, now)
    }

    fn await_attempt(
        &mut self,
        organization: Id,
        endpoint: Id,
        delivery: &Delivery,
        announced: bool,
    ) -> Result<(), StoreError> {
        let Delivery { id, event_at, next_attempt_at, .. } = *delivery;
        let Some(at) = next_attempt_at else { return Ok(()) };
        self.wait(organization, endpoint, PendingDelivery { id, event_at, at, tries: 0, announced })
    }

    fn wait(&mut self, organization: Id, endpoint: Id, waiting: PendingDelivery) -> Result<(), StoreError> {
        let key = Key::waiting_delivery(organization, endpoint, waiting.id, waiting.at);
        self.put(Table::Outbox, &key, &Expiring::new(waiting.id, &waiting), Conflict::Changed, |put| put)
    }

    fn unschedule_delivery(
        &mut self,
        organization: Id,
        endpoint: Id,
        waiting: PendingDelivery,
    ) -> Result<(), StoreError> {
        let key = Key::waiting_delivery(organization, endpoint, waiting.id, waiting.at);
        self.delete(Table::Outbox, &key, Conflict::Changed, |delete| {
            delete.condition_expression("attribute_exists(pk)")
        })
    }

    fn note_attempt(
        &mut self,
        organization: Id,
        endpoint: Id,
        delivery: Id,
        attempt: &Attempt,
        settled: Settled,
    ) -> Result<(), StoreError> {
        let attempt: AttributeValue = serde_dynamo::to_attribute_value(attempt)
            .map_err(|error| StoreError::Fault(format!("an attempt does not encode: {error}")))?;
        let (status, next) = match settled {
            Settled::Succeeded => (DeliveryStatus::Succeeded, None),
            Settled::RetryAt(at) => (DeliveryStatus::Pending, Some(at)),
            Settled::Failed => (DeliveryStatus::Failed, None),
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

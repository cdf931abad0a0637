//! Webhook deliveries: from events that wait to what came of sending them.
//!
//! What is due of an endpoint is what its queue says; whoever holds the queue's lease serves it. A result is written on condition that the
//! attempt still waits, so that whatever is done twice is written once.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use aws_sdk_dynamodb::{
    error::ProvideErrorMetadata,
    operation::update_item::builders::UpdateItemFluentBuilder,
    types::{AttributeValue, ReturnValue},
};
use serde::{Deserialize, Serialize};

use super::{
    CommitError, Conflict, Due, Page, Queue, Store, StoreError, Transaction, decode,
    outbox::unless_condition_failed,
    page::Listing,
    table::{Key, Table, deliveries_partition, events_partition, padded, waiting_deliveries_partition},
};
use crate::domain::{Attempt, CLOCKS_APART, Delivery, DeliveryStatus, Event, Failing, Id, Timestamp, WebhookEndpoint};

/// How long a delivery is kept.
pub const DELIVERIES_KEPT: Duration = Duration::from_hours(30 * 24);
/// Longer than deliveries, whose bytes come from them.
const EVENTS_KEPT: Duration = Duration::from_hours(33 * 24);
/// DynamoDB's own limit.
const WRITES_AT_MOST: usize = 100;
/// DynamoDB's own limit on a transaction is 4 MB.
const BYTES_AT_MOST: usize = 1_000_000;
/// How often a fan-out that another one crosses is tried.
const CROSSED_AT_MOST: u32 = 4;
const CROSSED_PAUSE: Duration = Duration::from_millis(50);
/// For how long a recovery waits for an event that is not fanned out yet.
const AWAITED: Duration = Duration::from_mins(10);
/// How many events a page of a recovery looks at: each may take three writes.
const RECOVERED_AT_ONCE: i32 = 30;

/// An event as it lies in the outbox.
#[derive(Debug, Deserialize)]
struct KeptEvent {
    #[serde(flatten)]
    event: Event,
    /// Only until it is fanned out.
    due_shard: Option<String>,
}

/// The right to serve an endpoint until some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub organization_id: Id,
    pub webhook_endpoint_id: Id,
    token: String,
    /// Of the queue, as it was read last: whatever joined before that is seen by the next look.
    version: u64,
    pub failing: Failing,
}

/// A queue as it is read.
#[derive(Deserialize)]
struct ReadQueue {
    version: u64,
    #[serde(flatten)]
    failing: Failing,
}

/// A delivery that waits to be attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub id: Id,
    pub event_at: Timestamp,
    pub at: Timestamp,
    /// How many attempts of this round were made.
    pub tries: u32,
}

/// What an endpoint's queue holds.
#[derive(Debug, Default)]
pub struct DueDeliveries {
    pub due: Vec<Waiting>,
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

/// An endpoint's wish for what it missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    pub organization_id: Id,
    pub webhook_endpoint_id: Id,
    pub until: Timestamp,
    /// After which event, by its sort key, the walk goes on; a time before the first.
    walked_to: String,
}

#[derive(Serialize)]
struct Expiring<'a, T> {
    #[serde(flatten)]
    item: &'a T,
    ttl: i64,
}

impl<'a, T> Expiring<'a, T> {
    /// Of the event with this id.
    fn of(event: Id, item: &'a T) -> Self {
        Self { item, ttl: event.drawn_at().plus(DELIVERIES_KEPT).as_seconds() }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "callers pass ids, times and borrowed texts alike")]
fn text(text: impl ToString) -> AttributeValue {
    AttributeValue::S(text.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "callers pass ids, times and borrowed texts alike")]
fn number(number: impl ToString) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

impl Store {
    /// Those of an organization's events that nobody has fanned out yet, oldest first, and the places of those that cannot be read.
    pub async fn untold_events(&self, due: &[Due]) -> Result<(Vec<Event>, Vec<Due>), StoreError> {
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
    pub async fn postpone_events(&self, due: &[Due], until: Timestamp) -> Result<(), StoreError> {
        for Due { organization_id, sk } in due {
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
                    transaction.create_delivery(organization, *endpoint, &delivery)?;
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
                if crossed == CROSSED_AT_MOST {
                    return Err(StoreError::Fault("a delivery lies there whose event was not fanned out".to_owned()));
                }
                tokio::time::sleep(CROSSED_PAUSE * crossed).await;
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

    /// Takes the right to serve an endpoint until `until`, if something is due there and nobody else has it.
    pub async fn lease_queue(
        &self,
        organization: Id,
        endpoint: Id,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<Lease>, StoreError> {
        let mut random = [0; 16];
        self.entropy.fill(&mut random);
        let token = format!("{:032x}", u128::from_be_bytes(random));
        let sent = self
            .client
            .update_item()
            .table_name(self.table(Table::Outbox))
            .set_key(Some(Key::delivery_queue(organization, endpoint).attributes()))
            .update_expression("SET leased_until = :until, lease = :lease REMOVE rests_until")
            // The last is a repeat of this very request, whose answer was lost.
            .condition_expression(
                "due_at <= :soon AND (attribute_not_exists(rests_until) OR rests_until <= :now) \
                 AND (attribute_not_exists(leased_until) OR leased_until <= :now OR lease = :lease)",
            )
            .expression_attribute_values(":until", text(until))
            .expression_attribute_values(":lease", text(&token))
            .expression_attribute_values(":soon", text(now.plus(CLOCKS_APART)))
            .expression_attribute_values(":now", text(now))
            .return_values(ReturnValue::AllNew)
            .send()
            .await;
        match sent {
            Ok(output) => {
                let ReadQueue { version, failing } = decode(output.attributes.unwrap_or_default())?;
                let (organization_id, webhook_endpoint_id) = (organization, endpoint);
                Ok(Some(Lease { organization_id, webhook_endpoint_id, token, version, failing }))
            }
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps the lease until `until`, and learns what has joined; whether it still was ours.
    pub async fn renew_lease(&self, lease: &mut Lease, until: Timestamp) -> Result<bool, StoreError> {
        let sent = self
            .client
            .update_item()
            .table_name(self.table(Table::Outbox))
            .set_key(Some(lease.queue().attributes()))
            .update_expression("SET leased_until = :until")
            .condition_expression("lease = :lease")
            .expression_attribute_values(":until", text(until))
            .expression_attribute_values(":lease", text(&lease.token))
            .return_values(ReturnValue::AllNew)
            .send()
            .await;
        match sent {
            Ok(output) => {
                let ReadQueue { version, failing } = decode(output.attributes.unwrap_or_default())?;
                (lease.version, lease.failing) = (version, failing);
                Ok(true)
            }
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets go of a queue, until `next` or, if nothing waits, until something joins. Not if something has joined since it was read: then
    /// there is more to do. Says whether it did.
    pub async fn release_queue(&self, lease: &Lease, next: Option<Timestamp>) -> Result<bool, StoreError> {
        let update = self.let_go(lease).condition_expression("lease = :lease AND version = :read");
        let update = update.expression_attribute_values(":read", number(lease.version));
        let update = match next {
            Some(next) => update
                .update_expression("SET due_at = :next REMOVE leased_until, lease")
                .expression_attribute_values(":next", text(next)),
            None => update.update_expression("REMOVE due_shard, due_at, leased_until, lease"),
        };
        unless_condition_failed(update.send().await.map(drop))
    }

    /// Lets go of a queue that nobody is to serve before `until`, whatever joins.
    pub async fn rest_queue(&self, lease: &Lease, until: Timestamp) -> Result<(), StoreError> {
        let update = self.let_go(lease).condition_expression("lease = :lease");
        let update = update
            .update_expression("SET due_at = :until, rests_until = :until REMOVE leased_until, lease")
            .expression_attribute_values(":until", text(until));
        unless_condition_failed(update.send().await.map(drop)).map(drop)
    }

    fn let_go(&self, lease: &Lease) -> UpdateItemFluentBuilder {
        let update = self.client.update_item().table_name(self.table(Table::Outbox));
        update.set_key(Some(lease.queue().attributes())).expression_attribute_values(":lease", text(&lease.token))
    }

    /// Takes the queue of an endpoint away that is not there any more.
    pub async fn drop_queue(&self, lease: &Lease) -> Result<(), StoreError> {
        let sent = self
            .client
            .delete_item()
            .table_name(self.table(Table::Outbox))
            .set_key(Some(lease.queue().attributes()))
            .condition_expression("lease = :lease")
            .expression_attribute_values(":lease", text(&lease.token))
            .send()
            .await;
        unless_condition_failed(sent.map(drop)).map(drop)
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
            let waiting: Waiting = decode(item)?;
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
    pub async fn events(&self, organization: Id, waiting: &[Waiting]) -> Result<HashMap<Id, Event>, StoreError> {
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
        waiting: Waiting,
        attempt: &Attempt,
        settled: Settled,
        mut transaction: Transaction,
    ) -> Result<Settlement, StoreError> {
        let others = transaction.len();
        let (organization, endpoint) = (lease.organization_id, lease.webhook_endpoint_id);
        transaction.stop_waiting(organization, endpoint, waiting)?;
        transaction.note_attempt(organization, endpoint, waiting.id, attempt, settled)?;
        if let Settled::RetryAt(at) = settled {
            transaction.wait(organization, endpoint, Waiting { at, tries: waiting.tries + 1, ..waiting })?;
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
    pub async fn forget_waiting(&self, organization: Id, endpoint: Id, waiting: Waiting) -> Result<(), StoreError> {
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
                    transaction.create_delivery(organization, endpoint.id, &delivery)?;
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

/// How far a recovery has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    All,
    /// This is left.
    Page(Recovery),
    /// The next event is not fanned out yet: another look is to go on.
    Waits,
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

impl Lease {
    fn queue(&self) -> Key {
        Key::delivery_queue(self.organization_id, self.webhook_endpoint_id)
    }
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

    fn create_delivery(&mut self, organization: Id, endpoint: Id, delivery: &Delivery) -> Result<(), StoreError> {
        let key = Key::delivery(organization, endpoint, delivery.id);
        self.insert(Table::Outbox, &key, &Expiring::of(delivery.id, delivery), Conflict::Changed)?;
        self.await_attempt(organization, endpoint, delivery)
    }

    /// Has a delivery sent at once, whatever came of it before. The endpoint's queue is not told yet.
    fn send_again(
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
                let waiting = Waiting { id: before.id, event_at: before.event_at, at, tries: 0 };
                self.stop_waiting(organization, endpoint, waiting)?;
            }
            self.await_attempt(organization, endpoint, &after)?;
        }
        let key = Key::delivery(organization, endpoint, before.id);
        self.put(Table::Outbox, &key, &Expiring::of(after.id, &after), Conflict::Changed, |put| {
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

    fn await_attempt(&mut self, organization: Id, endpoint: Id, delivery: &Delivery) -> Result<(), StoreError> {
        let Delivery { id, event_at, next_attempt_at, .. } = *delivery;
        let Some(at) = next_attempt_at else { return Ok(()) };
        self.wait(organization, endpoint, Waiting { id, event_at, at, tries: 0 })
    }

    fn wait(&mut self, organization: Id, endpoint: Id, waiting: Waiting) -> Result<(), StoreError> {
        let key = Key::waiting_delivery(organization, endpoint, waiting.id, waiting.at);
        self.put(Table::Outbox, &key, &Expiring::of(waiting.id, &waiting), Conflict::Changed, |put| put)
    }

    fn stop_waiting(&mut self, organization: Id, endpoint: Id, waiting: Waiting) -> Result<(), StoreError> {
        let key = Key::waiting_delivery(organization, endpoint, waiting.id, waiting.at);
        self.delete(Table::Outbox, &key, Conflict::Changed, |delete| {
            delete.condition_expression("attribute_exists(pk)")
        })
    }

    /// Says that an endpoint has something new to be sent.
    fn join_queue(&mut self, organization: Id, endpoint: Id, now: Timestamp) -> Result<(), StoreError> {
        self.awaken_queue(organization, endpoint, now, "")
    }

    /// The same, and that its failures are forgotten.
    pub(super) fn revive_queue(&mut self, organization: Id, endpoint: Id, now: Timestamp) -> Result<(), StoreError> {
        self.awaken_queue(organization, endpoint, now, " REMOVE failures, failing_since, rests_until")
    }

    fn awaken_queue(
        &mut self,
        organization: Id,
        endpoint: Id,
        now: Timestamp,
        besides: &str,
    ) -> Result<(), StoreError> {
        self.update(Table::Outbox, &Key::delivery_queue(organization, endpoint), Conflict::Changed, |update| {
            update
                .update_expression(format!(
                    "SET organization_id = :organization, due_shard = :shard, due_at = :now ADD version :one{besides}"
                ))
                .expression_attribute_values(":organization", number(organization))
                .expression_attribute_values(":shard", text(Queue::Deliveries.shard(endpoint)))
                .expression_attribute_values(":now", text(now))
                .expression_attribute_values(":one", number(1))
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

    /// Counts a failure, or forgets those before a success; writes nothing if there is nothing to forget.
    fn note_failing(&mut self, lease: &Lease, succeeded: bool, at: Timestamp) -> Result<(), StoreError> {
        if succeeded && lease.failing == Failing::default() {
            return Ok(());
        }
        self.update(Table::Outbox, &lease.queue(), Conflict::Changed, |update| {
            let update =
                update.condition_expression("lease = :lease").expression_attribute_values(":lease", text(&lease.token));
            if succeeded {
                return update.update_expression("REMOVE failures, failing_since");
            }
            update
                .update_expression("SET failing_since = if_not_exists(failing_since, :at) ADD failures :one")
                .expression_attribute_values(":at", text(at))
                .expression_attribute_values(":one", number(1))
        })
    }

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
            super::outbox::Waiting { item: &recovery, due_shard: Queue::Recoveries.shard(endpoint), due_at: now };
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

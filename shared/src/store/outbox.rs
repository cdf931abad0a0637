use std::{collections::BTreeSet, time::Duration};

use aws_sdk_dynamodb::{
    error::{ProvideErrorMetadata, SdkError},
    operation::update_item::{UpdateItemError, builders::UpdateItemFluentBuilder},
    types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure},
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{
    BudgetCheck, Conflict, Store, StoreError, Transaction, decode,
    table::{DUE_INDEX, Key, Table, due_shards, invalidations_partition, unpadded},
};
use crate::domain::{ApiKey, CacheEffect, Event, Id, Invalidation, Timestamp};

/// How many items of a shard one look finds.
const FOUND_AT_MOST: i32 = 100;
/// With this many, a look that came upon what cannot be read ends.
const ENOUGH: usize = 100;

/// What workers wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Events that no endpoint has been looked up for yet.
    Events,
    /// Data planes and the gateway to tell that their caches are out of date.
    Invalidations,
    /// Owners to tell that a key is about to end.
    ExpiryNotices,
    /// Budgets to hold against what was spent.
    BudgetChecks,
    /// Webhook endpoints to send to.
    Deliveries,
    /// Webhook endpoints that ask for what they missed.
    Recoveries,
}

impl Queue {
    /// In metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Invalidations => "invalidations",
            Self::ExpiryNotices => "expiry_notices",
            Self::BudgetChecks => "budget_checks",
            Self::Deliveries => "deliveries",
            Self::Recoveries => "recoveries",
        }
    }
}

/// Something due, as the index knows it: an index only finds, so whoever takes it reads it afresh.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct DueItem {
    pub organization_id: Id,
    pub sk: String,
}

/// What a look into a queue found.
#[derive(Debug, Default)]
pub struct DueItems {
    /// Oldest first within a shard.
    pub items: Vec<DueItem>,
    /// Since when the oldest is due, of those that cannot be read too.
    pub oldest: Option<Timestamp>,
}

impl DueItem {
    /// The webhook endpoint whose queue this is.
    pub fn endpoint(&self) -> Option<Id> {
        unpadded(&self.sk)
    }
}

/// That a key's owner is to be told of its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiryNotice {
    pub organization_id: Id,
    pub api_key_id: Id,
    /// The end that the owner is told of; a key that ends otherwise by then has another notice, or none.
    pub expires_at: Timestamp,
}

/// An invalidation that waits, as it was read or taken last; every write to it demands that it still is so.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PendingInvalidation {
    #[serde(flatten)]
    pub invalidation: Invalidation,
    due_at: Timestamp,
}

/// The flushes of a stage's cache, numbered in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Flushes {
    /// The last that was begun.
    pub begun: u64,
    /// The last that is known to have been done.
    #[serde(default)]
    pub done: u64,
}

/// Whose turn it is to flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushTurn {
    /// This flush was begun now.
    Ours(u64),
    /// Somebody has begun one just before.
    Theirs(Flushes),
}

/// An item with the two attributes that put it into the index, as long as they are there.
#[derive(Serialize)]
pub(super) struct Scheduled<'a, T> {
    #[serde(flatten)]
    pub(super) item: &'a T,
    pub(super) due_shard: String,
    pub(super) due_at: Timestamp,
}

impl Store {
    /// What is due in a queue; of each of the 16 shards at most 100. What cannot be read is left out: it must not keep the others waiting.
    pub async fn due(&self, queue: Queue, now: Timestamp) -> Result<DueItems, StoreError> {
        let mut looks = JoinSet::new();
        for shard in due_shards(queue) {
            let store = self.clone();
            looks.spawn(async move { store.due_in_shard(shard, now).await });
        }
        let (mut found, mut unreadable) = (DueItems::default(), 0_usize);
        for shard in looks.join_all().await {
            let (due, left_out) = shard?;
            found.items.extend(due.items);
            found.oldest = found.oldest.into_iter().chain(due.oldest).min();
            unreadable += left_out;
        }
        if unreadable > 0 {
            tracing::error!(?queue, unreadable, "what is due and cannot be read is left out");
        }
        Ok(found)
    }

    /// What is due in a shard, and how much more of it cannot be read.
    async fn due_in_shard(&self, shard: String, now: Timestamp) -> Result<(DueItems, usize), StoreError> {
        let mut pages = self
            .client
            .query()
            .table_name(self.table(Table::Outbox))
            .index_name(DUE_INDEX)
            .key_condition_expression("due_shard = :pk AND due_at <= :now")
            .expression_attribute_values(":pk", AttributeValue::S(shard))
            .expression_attribute_values(":now", AttributeValue::S(now.to_string()))
            .limit(FOUND_AT_MOST)
            .into_paginator()
            .send();
        let (mut found, mut unreadable) = (DueItems::default(), 0);
        while let Some(page) = pages.next().await {
            for item in page?.items.unwrap_or_default() {
                let due_at = item.get("due_at").and_then(|at| at.as_s().ok()?.parse().ok());
                found.oldest = found.oldest.or(due_at);
                match decode(item) {
                    Ok(due) => found.items.push(due),
                    Err(_) => unreadable += 1,
                }
            }
            // What cannot be read takes nobody's place.
            if unreadable == 0 || found.items.len() >= ENOUGH {
                break;
            }
        }
        Ok((found, unreadable))
    }

    /// The organization's invalidations that are due, oldest first; read from the table itself. One that nobody has taken yet is due by any
    /// clock: the one that wrote it may be ahead.
    pub async fn due_invalidations(
        &self,
        organization: Id,
        now: Timestamp,
    ) -> Result<Vec<PendingInvalidation>, StoreError> {
        let mut pages = self
            .client
            .query()
            .table_name(self.table(Table::Outbox))
            .consistent_read(true)
            .key_condition_expression("pk = :pk")
            .filter_expression("due_at <= :now OR attempts = :none")
            .expression_attribute_values(":none", AttributeValue::N("0".to_owned()))
            .expression_attribute_values(":pk", AttributeValue::S(invalidations_partition(organization)))
            .expression_attribute_values(":now", AttributeValue::S(now.to_string()))
            .into_paginator()
            .items()
            .send();
        let mut found = Vec::new();
        while let Some(item) = pages.next().await {
            found.push(decode(item?)?);
        }
        Ok(found)
    }

    /// Takes an invalidation until `until`, unless somebody else has taken it since it was read.
    pub async fn lease_invalidation(
        &self,
        organization: Id,
        mut pending: PendingInvalidation,
        until: Timestamp,
    ) -> Result<Option<PendingInvalidation>, StoreError> {
        pending.invalidation.attempts += 1;
        let attempts = AttributeValue::N(pending.invalidation.attempts.to_string());
        let taken = self.update_pending(organization, &pending, until, |update| {
            update
                .update_expression("SET due_at = :due_at, attempts = :attempts")
                .expression_attribute_values(":attempts", attempts)
        });
        let taken = taken.await?;
        pending.due_at = until;
        Ok(taken.then_some(pending))
    }

    /// Remembers who has been told, and when to try the others again.
    pub async fn postpone_invalidation(
        &self,
        organization: Id,
        leased: &PendingInvalidation,
        due_at: Timestamp,
    ) -> Result<(), StoreError> {
        let told = leased.invalidation.told.iter().cloned().map(AttributeValue::S).collect();
        let sent = self.update_pending(organization, leased, due_at, |update| {
            update
                .update_expression("SET due_at = :due_at, told = :told")
                .expression_attribute_values(":told", AttributeValue::L(told))
        });
        sent.await.map(drop)
    }

    /// Whether it was still as it is here.
    async fn update_pending(
        &self,
        organization: Id,
        pending: &PendingInvalidation,
        due_at: Timestamp,
        change: impl FnOnce(UpdateItemFluentBuilder) -> UpdateItemFluentBuilder,
    ) -> Result<bool, StoreError> {
        let update = self
            .client
            .update_item()
            .table_name(self.table(Table::Outbox))
            .set_key(Some(pending.key(organization).attributes()))
            .condition_expression("due_at = :read")
            .expression_attribute_values(":read", AttributeValue::S(pending.due_at.to_string()))
            .expression_attribute_values(":due_at", AttributeValue::S(due_at.to_string()));
        unless_condition_failed(change(update).send().await.map(drop))
    }

    /// Takes an invalidation away that was leased, unless somebody else has taken it since.
    pub async fn settle_invalidation(&self, organization: Id, leased: &PendingInvalidation) -> Result<(), StoreError> {
        let sent = self
            .client
            .delete_item()
            .table_name(self.table(Table::Outbox))
            .set_key(Some(leased.key(organization).attributes()))
            .condition_expression("due_at = :read")
            .expression_attribute_values(":read", AttributeValue::S(leased.due_at.to_string()))
            .send()
            .await;
        unless_condition_failed(sent.map(drop)).map(drop)
    }

    /// Begins a flush of the stage's cache, unless one was begun less than `every` ago.
    pub async fn begin_flush(&self, stage: &str, now: Timestamp, every: Duration) -> Result<FlushTurn, StoreError> {
        let sent = self
            .client
            .update_item()
            .table_name(self.table(Table::Outbox))
            .set_key(Some(Key::flush(stage).attributes()))
            .update_expression("SET begun_at = :now ADD begun :one")
            .condition_expression("attribute_not_exists(begun_at) OR begun_at <= :long_ago")
            .expression_attribute_values(":now", AttributeValue::S(now.to_string()))
            .expression_attribute_values(":long_ago", AttributeValue::S(now.minus(every).to_string()))
            .expression_attribute_values(":one", AttributeValue::N("1".to_owned()))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        match sent {
            Ok(output) => Ok(FlushTurn::Ours(decode::<Flushes>(output.attributes.unwrap_or_default())?.begun)),
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(failed)) => {
                    Ok(FlushTurn::Theirs(decode(failed.item.clone().unwrap_or_default())?))
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Notes that a flush was done, by its number.
    pub async fn end_flush(&self, stage: &str, number: u64) -> Result<(), StoreError> {
        let sent = self
            .client
            .update_item()
            .table_name(self.table(Table::Outbox))
            .set_key(Some(Key::flush(stage).attributes()))
            .update_expression("SET done = :number")
            .condition_expression("attribute_not_exists(done) OR done < :number")
            .expression_attribute_values(":number", AttributeValue::N(number.to_string()))
            .send()
            .await;
        unless_condition_failed(sent.map(drop)).map(drop)
    }

    pub async fn expiry_notice(&self, organization: Id, sk: &str) -> Result<Option<ExpiryNotice>, StoreError> {
        self.get(Table::Outbox, Key::due(Queue::ExpiryNotices, organization, sk)).await
    }
}

impl PendingInvalidation {
    fn key(&self, organization: Id) -> Key {
        Key::invalidation(organization, self.invalidation.at, self.invalidation.id)
    }
}

/// Whether a conditional write was done.
pub(super) fn unless_condition_failed<E>(sent: Result<(), SdkError<E>>) -> Result<bool, StoreError>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match sent {
        Ok(()) => Ok(true),
        Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Transaction {
    /// Adds what the organization's webhook endpoints are told, together with the change that it tells of.
    pub fn announce(&mut self, event: &Event) -> Result<(), StoreError> {
        let key = Key::event(event.organization_id, event.created_at, event.id);
        self.enqueue(Queue::Events, &key, event.id, event, event.created_at)
    }

    /// Tells data planes to forget what they keep of the organization, if the change concerns it.
    pub fn invalidate(&mut self, organization: Id, effect: CacheEffect, at: Timestamp) -> Result<(), StoreError> {
        if effect == CacheEffect::None {
            return Ok(());
        }
        let id = Id::draw(at, &*self.entropy());
        let access_cut = effect == CacheEffect::AccessCut;
        let item =
            Invalidation { id, organization_id: organization, at, access_cut, told: BTreeSet::new(), attempts: 0 };
        self.enqueue(Queue::Invalidations, &Key::invalidation(organization, at, id), id, &item, at)
    }

    /// Sees to it that the owner of a key is told of its end. One notice a key: another end takes the first one's place.
    pub(super) fn notice_expiry(&mut self, organization: Id, key: &ApiKey) -> Result<(), StoreError> {
        let (Some(expires_at), Some(due_at)) = (key.expires_at, key.expiry_notice_at()) else {
            return Ok(());
        };
        let item = ExpiryNotice { organization_id: organization, api_key_id: key.id, expires_at };
        let due_shard = Queue::ExpiryNotices.shard(key.id);
        let key = Key::expiry_notice(organization, key.id);
        self.put(Table::Outbox, &key, &Scheduled { item: &item, due_shard, due_at }, Conflict::Changed, |put| put)
    }

    /// Has the budgets of an organization, and of these keys of its, held against what was spent. One wish an organization: keys gather in it.
    pub fn check_budgets(
        &mut self,
        organization: Id,
        keys: impl IntoIterator<Item = Id>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.wish_for_budget_check(organization, BudgetCheck::GATHERED, keys, now)
    }

    /// The same at a later time: one wish for each organization and time.
    pub fn check_budgets_at(
        &mut self,
        organization: Id,
        keys: impl IntoIterator<Item = Id>,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.wish_for_budget_check(organization, &format!("AT#{at}"), keys, at)
    }

    fn wish_for_budget_check(
        &mut self,
        organization: Id,
        sk: &str,
        keys: impl IntoIterator<Item = Id>,
        due_at: Timestamp,
    ) -> Result<(), StoreError> {
        let keys: Vec<_> = keys.into_iter().map(|id| id.to_string()).collect();
        let shard = Queue::BudgetChecks.shard(organization);
        let mut stamp = [0; 8];
        self.entropy().fill(&mut stamp);
        let number = |number: u64| AttributeValue::N(number.to_string());
        let added = if keys.is_empty() { "" } else { " ADD api_keys :keys" };
        let key = Key::due(Queue::BudgetChecks, organization, sk);
        self.update(Table::Outbox, &key, Conflict::Changed, |update| {
            let update = update
                .update_expression(format!(
                    "SET organization_id = :organization, due_shard = :shard, stamp = :stamp, \
                     due_at = if_not_exists(due_at, :due){added}"
                ))
                .expression_attribute_values(":organization", number(organization.get()))
                .expression_attribute_values(":shard", AttributeValue::S(shard))
                .expression_attribute_values(":stamp", number(u64::from_be_bytes(stamp)))
                .expression_attribute_values(":due", AttributeValue::S(due_at.to_string()));
            if keys.is_empty() {
                return update;
            }
            update.expression_attribute_values(":keys", AttributeValue::Ns(keys))
        })
    }

    /// Takes a notice away, if it still is the one that was read.
    pub fn settle_expiry_notice(&mut self, notice: &ExpiryNotice) -> Result<(), StoreError> {
        let key = Key::expiry_notice(notice.organization_id, notice.api_key_id);
        self.delete(Table::Outbox, &key, Conflict::Changed, |delete| {
            delete
                .condition_expression("expires_at = :read")
                .expression_attribute_values(":read", AttributeValue::S(notice.expires_at.to_string()))
        })
    }

    fn enqueue<T: Serialize>(
        &mut self,
        queue: Queue,
        key: &Key,
        id: Id,
        item: &T,
        due_at: Timestamp,
    ) -> Result<(), StoreError> {
        self.insert(Table::Outbox, key, &Scheduled { item, due_shard: queue.shard(id), due_at }, Conflict::IdTaken)
    }
}

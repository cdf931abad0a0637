//! The outbox: queues of work for the workers. A change and its work are stored in one transaction.
//! An item is in the index of due items while it has `due_shard` and `due_at`. To add a queue, add a
//! variant to [`Queue`], its name, and its prefix in `table.rs`.

use std::{collections::BTreeSet, time::Duration};

use aws_sdk_dynamodb::{
    error::{ProvideErrorMetadata, SdkError},
    operation::update_item::{UpdateItemError, builders::UpdateItemFluentBuilder},
    types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure},
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{
    BudgetCheck, Conflict, Overdue, Store, StoreError, Transaction, decode,
    decode::decode_or_skip,
    table::{DUE_INDEX, Key, Table, due_shards, invalidations_partition, parse_padded},
};
use crate::domain::{ApiKey, CacheEffect, Event, Id, Invalidation, Timestamp};

const PAGE_SIZE: i32 = 100;
/// A query that meets unreadable items stops after this many readable ones.
const ENOUGH_ITEMS: usize = 100;

/// The queues of the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Events that are not fanned out to webhook endpoints yet.
    Events,
    /// Invalidations for the caches of data planes and the gateway.
    Invalidations,
    /// Notices to owners that a key is about to expire.
    ExpiryNotices,
    /// Budgets to check against the spending.
    BudgetChecks,
    /// Webhook endpoints with due deliveries.
    Deliveries,
    /// Webhook endpoints with a running recovery.
    Recoveries,
}

impl Queue {
    /// Returns the queue's name in metrics.
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

/// Identifies an item of a queue. It comes from the index, which may be behind, so a worker reads the
/// item again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct OutboxKey {
    pub organization_id: Id,
    pub sk: String,
}

impl OutboxKey {
    /// Returns the webhook endpoint whose queue this is.
    pub fn endpoint(&self) -> Option<Id> {
        parse_padded(&self.sk)
    }
}

/// A scheduled notice of a key's expiry to its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiryNotice {
    pub organization_id: Id,
    pub api_key_id: Id,
    /// The expiry that the notice reports. The notice is outdated if the key's expiry has changed
    /// since.
    pub expires_at: Timestamp,
}

/// An invalidation and its due time, as last read or leased. Each write to its item requires that the item is
/// unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ScheduledInvalidation {
    #[serde(flatten)]
    pub invalidation: Invalidation,
    due_at: Timestamp,
}

/// The numbered flushes of a stage's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Flushes {
    /// The number of the last flush that was started.
    pub begun: u64,
    /// The number of the last flush that is known to be complete.
    #[serde(default)]
    pub done: u64,
}

/// The result of an attempt to start a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushStart {
    /// This worker started the flush with this number.
    Started(u64),
    /// Another worker started a flush recently.
    AlreadyStarted(Flushes),
}

/// An item with the two attributes that put it into the index.
#[derive(Serialize)]
pub(super) struct Scheduled<'a, T> {
    #[serde(flatten)]
    pub(super) item: &'a T,
    pub(super) due_shard: String,
    pub(super) due_at: Timestamp,
}

impl Store {
    /// Returns the due items of a queue, about 100 of each of the 16 shards. Unreadable items are
    /// omitted, so that they do not block the others.
    pub async fn due(&self, queue: Queue, now: Timestamp) -> Result<Overdue<OutboxKey>, StoreError> {
        let mut queries = JoinSet::new();
        for shard in due_shards(queue) {
            let store = self.clone();
            queries.spawn(async move { store.due_in_shard(shard, now).await });
        }
        let mut found = Overdue { items: Vec::new(), oldest: None };
        for shard in queries.join_all().await {
            let due = shard?;
            found.items.extend(due.items);
            found.oldest = found.oldest.into_iter().chain(due.oldest).min();
        }
        Ok(found)
    }

    async fn due_in_shard(&self, shard: String, now: Timestamp) -> Result<Overdue<OutboxKey>, StoreError> {
        let mut pages = self
            .client
            .query()
            .table_name(self.table(Table::Outbox))
            .index_name(DUE_INDEX)
            .key_condition_expression("due_shard = :pk AND due_at <= :now")
            .expression_attribute_values(":pk", AttributeValue::S(shard))
            .expression_attribute_values(":now", AttributeValue::S(now.to_string()))
            .limit(PAGE_SIZE)
            .into_paginator()
            .send();
        let (mut found, mut has_unreadable) = (Overdue { items: Vec::new(), oldest: None }, false);
        while let Some(page) = pages.next().await {
            for item in page?.items.unwrap_or_default() {
                let due_at = item.get("due_at").and_then(|at| at.as_s().ok()?.parse().ok());
                found.oldest = found.oldest.or(due_at);
                match decode_or_skip(item, "due item") {
                    Some(due) => found.items.push(due),
                    None => has_unreadable = true,
                }
            }
            // Unreadable items do not count towards the limit.
            if !has_unreadable || found.items.len() >= ENOUGH_ITEMS {
                break;
            }
        }
        Ok(found)
    }

    /// Postpones items that are still due before `until`, so that items whose processing fails do
    /// not block others.
    pub async fn postpone(&self, queue: Queue, due: &[OutboxKey], until: Timestamp) -> Result<(), StoreError> {
        for OutboxKey { organization_id, sk } in due {
            let sent = self
                .client
                .update_item()
                .table_name(self.table(Table::Outbox))
                .set_key(Some(Key::due(queue, *organization_id, sk).attributes()))
                .update_expression("SET due_at = :until")
                // The item may have been replaced by one that is due later.
                .condition_expression("attribute_exists(due_shard) AND due_at < :until")
                .expression_attribute_values(":until", AttributeValue::S(until.to_string()))
                .send()
                .await;
            condition_held(sent.map(drop))?;
        }
        Ok(())
    }

    /// Reads the due invalidations of the organization from the base table, oldest first, and the
    /// keys of unreadable ones. An invalidation without an attempt is always due, because its
    /// writer's clock may be ahead.
    pub async fn due_invalidations(
        &self,
        organization: Id,
        now: Timestamp,
    ) -> Result<(Vec<ScheduledInvalidation>, Vec<OutboxKey>), StoreError> {
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
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        while let Some(item) = pages.next().await {
            let item = item?;
            let sk = super::required_text(&item, "sk")?.to_owned();
            match decode_or_skip(item, "pending invalidation") {
                Some(pending) => found.push(pending),
                None => unreadable.push(OutboxKey { organization_id: organization, sk }),
            }
        }
        Ok((found, unreadable))
    }

    /// Leases an invalidation until `until`. Returns `None` if another worker leased it since it
    /// was read.
    pub async fn lease_invalidation(
        &self,
        organization: Id,
        mut pending: ScheduledInvalidation,
        until: Timestamp,
    ) -> Result<Option<ScheduledInvalidation>, StoreError> {
        pending.invalidation.attempts += 1;
        let attempts = AttributeValue::N(pending.invalidation.attempts.to_string());
        let was_leased = self.update_pending(organization, &pending, until, |update| {
            update
                .update_expression("SET due_at = :due_at, attempts = :attempts")
                .expression_attribute_values(":attempts", attempts)
        });
        let was_leased = was_leased.await?;
        pending.due_at = until;
        Ok(was_leased.then_some(pending))
    }

    /// Stores which data planes were notified, and schedules the retry for the others.
    pub async fn postpone_invalidation(
        &self,
        organization: Id,
        leased: &ScheduledInvalidation,
        due_at: Timestamp,
    ) -> Result<(), StoreError> {
        let notified = leased.invalidation.notified.iter().cloned().map(AttributeValue::S).collect();
        let sent = self.update_pending(organization, leased, due_at, |update| {
            update
                .update_expression("SET due_at = :due_at, told = :told")
                .expression_attribute_values(":told", AttributeValue::L(notified))
        });
        sent.await.map(drop)
    }

    /// Updates a pending invalidation. Returns whether it was unchanged.
    async fn update_pending(
        &self,
        organization: Id,
        pending: &ScheduledInvalidation,
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
        condition_held(change(update).send().await.map(drop))
    }

    /// Deletes a leased invalidation, unless another worker has leased it since.
    pub async fn delete_invalidation(
        &self,
        organization: Id,
        leased: &ScheduledInvalidation,
    ) -> Result<(), StoreError> {
        let sent = self
            .client
            .delete_item()
            .table_name(self.table(Table::Outbox))
            .set_key(Some(leased.key(organization).attributes()))
            .condition_expression("due_at = :read")
            .expression_attribute_values(":read", AttributeValue::S(leased.due_at.to_string()))
            .send()
            .await;
        condition_held(sent.map(drop)).map(drop)
    }

    /// Starts a flush of the stage's cache, unless another flush was started less than `every` ago.
    pub async fn begin_flush(&self, stage: &str, now: Timestamp, every: Duration) -> Result<FlushStart, StoreError> {
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
            Ok(output) => Ok(FlushStart::Started(decode::<Flushes>(output.attributes.unwrap_or_default())?.begun)),
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(failed)) => {
                    Ok(FlushStart::AlreadyStarted(decode(failed.item.clone().unwrap_or_default())?))
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Records that the flush with this number is complete.
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
        condition_held(sent.map(drop)).map(drop)
    }

    pub async fn expiry_notice(&self, organization: Id, sk: &str) -> Result<Option<ExpiryNotice>, StoreError> {
        self.get(Table::Outbox, Key::due(Queue::ExpiryNotices, organization, sk)).await
    }
}

impl ScheduledInvalidation {
    fn key(&self, organization: Id) -> Key {
        Key::invalidation(organization, self.invalidation.at, self.invalidation.id)
    }
}

/// Returns whether the condition of a write held.
pub(super) fn condition_held<E>(sent: Result<(), SdkError<E>>) -> Result<bool, StoreError>
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
    /// Publishes an event to the organization's webhook endpoints, in the transaction of its
    /// change.
    pub fn publish(&mut self, event: &Event) -> Result<(), StoreError> {
        let key = Key::event(event.organization_id, event.created_at, event.id);
        self.enqueue(Queue::Events, &key, event.id, event, event.created_at)
    }

    /// Schedules the invalidation of what data planes cache about the organization, if the change
    /// affects it.
    pub fn invalidate(&mut self, organization: Id, effect: CacheEffect, at: Timestamp) -> Result<(), StoreError> {
        if effect == CacheEffect::None {
            return Ok(());
        }
        let id = Id::draw(at, &*self.entropy());
        let access_reduced = effect == CacheEffect::AccessReduced;
        let item = Invalidation {
            id,
            organization_id: organization,
            at,
            access_reduced,
            notified: BTreeSet::new(),
            attempts: 0,
        };
        self.enqueue(Queue::Invalidations, &Key::invalidation(organization, at, id), id, &item, at)
    }

    /// Schedules a notice of a key's expiry. A key has at most one notice: a new notice replaces
    /// it.
    pub(super) fn schedule_expiry_notice(&mut self, organization: Id, key: &ApiKey) -> Result<(), StoreError> {
        let (Some(expires_at), Some(due_at)) = (key.expires_at, key.expiry_notice_at()) else {
            return Ok(());
        };
        let item = ExpiryNotice { organization_id: organization, api_key_id: key.id, expires_at };
        let due_shard = Queue::ExpiryNotices.shard(key.id);
        let key = Key::expiry_notice(organization, key.id);
        self.put(Table::Outbox, &key, &Scheduled { item: &item, due_shard, due_at }, Conflict::Changed, |put| put)
    }

    /// Schedules a check of the organization's budget and of the budgets of these keys. At most one
    /// check is pending per organization, and keys accumulate in it.
    pub fn check_budgets(
        &mut self,
        organization: Id,
        keys: impl IntoIterator<Item = Id>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.schedule_budget_check(organization, BudgetCheck::PENDING_SORT_KEY, keys, now)
    }

    /// Schedules a check for a later time. At most one check is pending per organization and time.
    pub fn check_budgets_at(
        &mut self,
        organization: Id,
        keys: impl IntoIterator<Item = Id>,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.schedule_budget_check(organization, &format!("AT#{at}"), keys, at)
    }

    fn schedule_budget_check(
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
        let add_keys = if keys.is_empty() { "" } else { " ADD api_keys :keys" };
        let key = Key::due(Queue::BudgetChecks, organization, sk);
        self.update(Table::Outbox, &key, Conflict::Changed, |update| {
            let update = update
                .update_expression(format!(
                    "SET organization_id = :organization, due_shard = :shard, stamp = :stamp, \
                     due_at = if_not_exists(due_at, :due){add_keys}"
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

    /// Deletes a notice, if its item is unchanged since it was read.
    pub fn delete_expiry_notice(&mut self, notice: &ExpiryNotice) -> Result<(), StoreError> {
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

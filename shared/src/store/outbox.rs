use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{
    Conflict, Store, StoreError, Transaction, decode,
    table::{DUE_INDEX, Key, Table, due_shards},
};
use crate::domain::{ApiKey, CacheEffect, Event, Id, Invalidation, Timestamp};

/// How many items of a shard one look finds.
const FOUND_AT_MOST: i32 = 100;

/// What workers wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Events that no endpoint has been looked up for yet.
    Events,
    /// Data planes and the gateway to tell that their caches are out of date.
    Invalidations,
    /// Owners to tell that a key is about to end.
    ExpiryNotices,
}

/// Something due, as the index knows it: an index only finds, so whoever takes it reads it afresh.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Due {
    pub organization_id: Id,
    pub sk: String,
}

/// That a key's owner is to be told of its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiryNotice {
    pub organization_id: Id,
    pub api_key_id: Id,
    /// The end that the owner is told of; a key that ends otherwise by then has another notice, or none.
    pub expires_at: Timestamp,
}

/// An item with the two attributes that put it into the index, as long as they are there.
#[derive(Serialize)]
struct Waiting<'a, T> {
    #[serde(flatten)]
    item: &'a T,
    due_shard: String,
    due_at: Timestamp,
}

impl Store {
    /// What is due in a queue, oldest first within a shard; of each of the 16 shards at most 100.
    pub async fn due(&self, queue: Queue, now: Timestamp) -> Result<Vec<Due>, StoreError> {
        let mut looks = JoinSet::new();
        for shard in due_shards(queue) {
            let store = self.clone();
            looks.spawn(async move { store.due_in_shard(shard, now).await });
        }
        looks.join_all().await.into_iter().try_fold(Vec::new(), |mut found, shard| {
            found.extend(shard?);
            Ok(found)
        })
    }

    async fn due_in_shard(&self, shard: String, now: Timestamp) -> Result<Vec<Due>, StoreError> {
        let output = self
            .client
            .query()
            .table_name(self.table(Table::Outbox))
            .index_name(DUE_INDEX)
            .key_condition_expression("due_shard = :pk AND due_at <= :now")
            .expression_attribute_values(":pk", AttributeValue::S(shard))
            .expression_attribute_values(":now", AttributeValue::S(now.to_string()))
            .limit(FOUND_AT_MOST)
            .send()
            .await?;
        output.items.unwrap_or_default().into_iter().map(decode).collect()
    }

    pub async fn expiry_notice(&self, organization: Id, sk: &str) -> Result<Option<ExpiryNotice>, StoreError> {
        self.get(Table::Outbox, Key::due(Queue::ExpiryNotices, organization, sk)).await
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
        let item = Invalidation { id, organization_id: organization, at, access_cut };
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
        self.put(Table::Outbox, &key, &Waiting { item: &item, due_shard, due_at }, Conflict::Changed, |put| put)
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
        self.insert(Table::Outbox, key, &Waiting { item, due_shard: queue.shard(id), due_at }, Conflict::IdTaken)
    }
}

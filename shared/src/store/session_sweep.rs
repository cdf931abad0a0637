//! The work that sessions leave behind: turns whose process died, and content of sessions that were
//! deleted or have expired.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::{
    error::ProvideErrorMetadata,
    types::{AttributeValue, DeleteRequest, ReturnValue, Select, WriteRequest},
};
use tokio::task::JoinSet;

use super::{
    Store, StoreError, decode,
    sessions::list_keys,
    table::{DUE_INDEX, Key, SESSION_SHARDS, TURN_SHARDS, Table, session_partition, shards},
};
use crate::domain::{Id, Session, SessionId, Timestamp, TurnId};

const PAGE_SIZE: i32 = 100;
/// Maximum number of writes in a `BatchWriteItem` call, set by DynamoDB.
const MAX_BATCH_WRITES: usize = 25;

/// A running turn whose lease has ended, according to the index. The index may be behind: read the
/// turn again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueTurn {
    pub organization_id: Id,
    pub session_id: SessionId,
    pub turn_id: TurnId,
}

/// A session whose content is due for deletion, according to the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueSession {
    pub organization_id: Id,
    pub session_id: SessionId,
}

/// Items of a queue that are due.
#[derive(Debug)]
pub struct Overdue<T> {
    /// At most 100 of each of the 16 shards, oldest first within a shard.
    pub items: Vec<T>,
    /// The time since which the oldest item is due, unreadable items included.
    pub oldest: Option<Timestamp>,
}

impl Store {
    /// Returns running turns whose lease has ended.
    pub async fn due_turns(&self, now: Timestamp) -> Result<Overdue<DueTurn>, StoreError> {
        self.overdue(TURN_SHARDS, now, |key| {
            let (organization_id, session_id) = key.parse_session()?;
            Some(DueTurn { organization_id, session_id, turn_id: key.parse_turn()? })
        })
        .await
    }

    /// Returns sessions whose content is due for deletion.
    pub async fn due_sessions(&self, now: Timestamp) -> Result<Overdue<DueSession>, StoreError> {
        self.overdue(SESSION_SHARDS, now, |key| {
            let (organization_id, session_id) = key.parse_session()?;
            Some(DueSession { organization_id, session_id })
        })
        .await
    }

    /// Counts the running turns: at most some thousands of each of the 16 shards, which fit into one
    /// page of the index.
    pub async fn open_turns(&self) -> Result<usize, StoreError> {
        let mut queries = JoinSet::new();
        for shard in shards(TURN_SHARDS) {
            let query = self
                .client
                .query()
                .table_name(self.table(Table::Sessions))
                .index_name(DUE_INDEX)
                .key_condition_expression("due_shard = :pk")
                .expression_attribute_values(":pk", AttributeValue::S(shard))
                .select(Select::Count);
            queries.spawn(query.send());
        }
        let mut open = 0;
        for output in queries.join_all().await {
            open += usize::try_from(output?.count).unwrap_or_default();
        }
        Ok(open)
    }

    async fn overdue<T>(
        &self,
        prefix: &str,
        now: Timestamp,
        parse: impl Fn(&Key) -> Option<T>,
    ) -> Result<Overdue<T>, StoreError> {
        let mut queries = JoinSet::new();
        for shard in shards(prefix) {
            let query = self
                .client
                .query()
                .table_name(self.table(Table::Sessions))
                .index_name(DUE_INDEX)
                .key_condition_expression("due_shard = :pk AND due_at <= :now")
                .expression_attribute_values(":pk", AttributeValue::S(shard))
                .expression_attribute_values(":now", AttributeValue::S(now.to_string()))
                .limit(PAGE_SIZE);
            queries.spawn(query.send());
        }
        let mut found = Overdue { items: Vec::new(), oldest: None };
        for output in queries.join_all().await {
            for item in output?.items.unwrap_or_default() {
                let due_at = item.get("due_at").and_then(|at| at.as_s().ok()?.parse().ok());
                found.oldest = found.oldest.into_iter().chain(due_at).min();
                let key = Key::of_item(&item);
                if let Some(due) = key.as_ref().and_then(&parse) {
                    found.items.push(due);
                } else {
                    tracing::error!(?key, "unreadable due item skipped");
                }
            }
        }
        Ok(found)
    }

    /// Deletes a session that was deleted or has expired, with its content and its list entries.
    /// Returns false and changes nothing if the session is not due or has a running turn. The
    /// session's own item is deleted last, so that an interrupted deletion stays due.
    pub async fn delete_session_content(
        &self,
        organization: Id,
        session: &SessionId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let key = Key::session(organization, session);
        let Some(marked) = self.mark_deleted(&key, now).await? else { return Ok(false) };
        self.batch_delete(list_keys(organization, &marked).collect()).await?;
        let mut pages = self
            .client
            .query()
            .table_name(self.table(Table::Sessions))
            .key_condition_expression("pk = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(session_partition(organization, session)))
            .projection_expression("pk, sk")
            .consistent_read(true)
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            let keys = page?.items.unwrap_or_default();
            let keys = keys.iter().filter_map(Key::of_item).filter(|found| *found != key);
            self.batch_delete(keys.collect()).await?;
        }
        self.batch_delete(vec![key]).await.map(|()| true)
    }

    /// Excludes further turns of a session that is due. Returns `None` if it is not, or if a turn
    /// runs.
    async fn mark_deleted(&self, session: &Key, now: Timestamp) -> Result<Option<Session>, StoreError> {
        let sent = self
            .client
            .update_item()
            .table_name(self.table(Table::Sessions))
            .set_key(Some(session.attributes()))
            .update_expression("SET deleted_at = if_not_exists(deleted_at, :now)")
            .condition_expression("due_at <= :now AND attribute_not_exists(open_turn)")
            .expression_attribute_values(":now", AttributeValue::S(now.to_string()))
            .return_values(ReturnValue::AllNew)
            .send()
            .await;
        match sent {
            Ok(output) => decode(output.attributes.unwrap_or_default()).map(Some),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn batch_delete(&self, keys: Vec<Key>) -> Result<(), StoreError> {
        for keys in keys.chunks(MAX_BATCH_WRITES) {
            let deletes = keys.iter().map(|key| {
                let delete = DeleteRequest::builder().set_key(Some(key.attributes())).build();
                let delete = delete.map_err(|error| StoreError::Fault(error.to_string()))?;
                Ok(WriteRequest::builder().delete_request(delete).build())
            });
            let deletes = deletes.collect::<Result<Vec<_>, StoreError>>()?;
            self.batch_write_once(HashMap::from([(self.table(Table::Sessions).to_owned(), deletes)])).await?;
        }
        Ok(())
    }

    /// `BatchWriteItem` leaves writes unprocessed when it is throttled. The SDK does not retry them.
    async fn batch_write_once(&self, mut writes: HashMap<String, Vec<WriteRequest>>) -> Result<(), StoreError> {
        for pause in [10, 40, 160, 640, 0].map(Duration::from_millis) {
            let output = self.client.batch_write_item().set_request_items(Some(writes)).send().await?;
            writes = output.unprocessed_items.unwrap_or_default();
            if writes.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
        }
        Err(StoreError::Unavailable("BatchWriteItem still leaves writes unprocessed".to_owned()))
    }
}

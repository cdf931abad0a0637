use std::{collections::HashSet, sync::Arc, time::Duration};

use aws_sdk_dynamodb::{
    operation::transact_write_items::TransactWriteItemsError,
    types::{
        AttributeValue, ConditionCheck, Delete, Put, TransactWriteItem, Update,
        builders::{ConditionCheckBuilder, DeleteBuilder, PutBuilder, UpdateBuilder},
    },
};
use serde::Serialize;

use super::{
    Store, StoreError, encode,
    table::{Key, Table},
};
use crate::domain::{Entropy, Id, Kind};

/// Maximum attempts of a transaction that conflicts with others.
const MAX_ATTEMPTS: u32 = 6;
const INITIAL_PAUSE: Duration = Duration::from_millis(10);

/// The meaning of a failed condition. The variants are ordered: if several conditions failed, the
/// first is reported, because it makes the others irrelevant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conflict {
    /// Another process has ended the turn.
    TurnSettled,
    /// Another response is stored under this idempotency key.
    Remembered,
    /// This usage event was already counted.
    EventCounted,
    /// This Stripe event was already processed.
    EventSeen,
    /// The generated id is taken: generate another.
    IdTaken,
    /// The session was deleted.
    SessionGone,
    /// Another turn of the session is running, or one has run since the session was read.
    TurnInProgress,
    /// Another writer changed an item that was read: read it again.
    Changed,
    SlugTaken,
    /// The organization has the maximum number of webhook endpoints.
    WebhookEndpointsFull,
    /// A recovery is already running for this endpoint.
    RecoveryUnderWay,
    /// Another organization has this Stripe customer.
    StripeCustomerTaken,
    /// The change would leave the organization without a usable admin key.
    LastAdminKey,
    /// The organization's only usable admin key would stop working before its holder can repeat the
    /// rotation.
    LastAdminKeyGrace,
    /// The calling key was changed: authorize it again.
    CallerChanged,
}

/// Why a transaction did not commit. Nothing was written, except that this is unknown after
/// [`StoreError::Unavailable`].
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error("condition failed: {0:?}")]
    Conflict(Conflict),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A list of writes that are committed atomically.
#[derive(Debug)]
pub struct Transaction {
    store: Store,
    writes: Vec<(TransactWriteItem, Conflict)>,
    touched: HashSet<(Table, Key)>,
    has_duplicate_key: bool,
}

impl Transaction {
    pub(super) fn new(store: Store) -> Self {
        Self { store, writes: Vec::new(), touched: HashSet::new(), has_duplicate_key: false }
    }

    pub(super) fn entropy(&self) -> Arc<dyn Entropy> {
        Arc::clone(&self.store.entropy)
    }

    /// Claims an id for its kind, over all organizations.
    pub(super) fn claim_id(&mut self, organization: Id, kind: Kind, id: Id) -> Result<(), StoreError> {
        let key = Key::claimed_id(kind, id);
        self.insert(Table::Main, &key, &IdClaim { organization_id: organization, id }, Conflict::IdTaken)
    }

    /// Inserts an item; `taken` reports that its key exists.
    pub(super) fn insert<T: Serialize>(
        &mut self,
        table: Table,
        key: &Key,
        value: &T,
        taken: Conflict,
    ) -> Result<(), StoreError> {
        self.put(table, key, value, taken, |put| put.condition_expression("attribute_not_exists(pk)"))
    }

    /// Replaces an item whose `version` was read.
    pub(super) fn replace<T: Serialize>(
        &mut self,
        table: Table,
        key: &Key,
        value: &T,
        version: u64,
    ) -> Result<(), StoreError> {
        self.put(table, key, value, Conflict::Changed, |put| {
            put.condition_expression("version = :read")
                .expression_attribute_values(":read", AttributeValue::N(version.to_string()))
        })
    }

    /// Requires that an item still has the `version` that was read.
    pub(super) fn check_version(
        &mut self,
        table: Table,
        key: &Key,
        version: u64,
        conflict: Conflict,
    ) -> Result<(), StoreError> {
        self.check(table, key, conflict, |check| {
            check
                .condition_expression("version = :read")
                .expression_attribute_values(":read", AttributeValue::N(version.to_string()))
        })
    }

    pub(super) fn check(
        &mut self,
        table: Table,
        key: &Key,
        conflict: Conflict,
        condition: impl FnOnce(ConditionCheckBuilder) -> ConditionCheckBuilder,
    ) -> Result<(), StoreError> {
        let check = ConditionCheck::builder().table_name(self.store.table(table)).set_key(Some(key.attributes()));
        let check = condition(check).build().map_err(|error| StoreError::Fault(error.to_string()))?;
        self.stage(table, key, TransactWriteItem::builder().condition_check(check).build(), conflict);
        Ok(())
    }

    pub(super) fn put<T: Serialize>(
        &mut self,
        table: Table,
        key: &Key,
        value: &T,
        conflict: Conflict,
        condition: impl FnOnce(PutBuilder) -> PutBuilder,
    ) -> Result<(), StoreError> {
        let put = Put::builder().table_name(self.store.table(table)).set_item(Some(encode(key, value)?));
        let put = condition(put).build().map_err(|error| StoreError::Fault(error.to_string()))?;
        self.stage(table, key, TransactWriteItem::builder().put(put).build(), conflict);
        Ok(())
    }

    pub(super) fn update(
        &mut self,
        table: Table,
        key: &Key,
        conflict: Conflict,
        change: impl FnOnce(UpdateBuilder) -> UpdateBuilder,
    ) -> Result<(), StoreError> {
        let update = Update::builder().table_name(self.store.table(table)).set_key(Some(key.attributes()));
        let update = change(update).build().map_err(|error| StoreError::Fault(error.to_string()))?;
        self.stage(table, key, TransactWriteItem::builder().update(update).build(), conflict);
        Ok(())
    }

    /// DynamoDB accepts one operation per item. Two writes to one item mean that a generated id
    /// collided.
    fn stage(&mut self, table: Table, key: &Key, write: TransactWriteItem, conflict: Conflict) {
        self.has_duplicate_key |= !self.touched.insert((table, key.clone()));
        self.writes.push((write, conflict));
    }

    /// Deletes an item if it still belongs to the organization.
    pub(super) fn delete_owned(&mut self, table: Table, key: &Key, organization: Id) -> Result<(), StoreError> {
        self.delete(table, key, Conflict::Changed, |delete| {
            delete
                .condition_expression("organization_id = :organization")
                .expression_attribute_values(":organization", AttributeValue::N(organization.to_string()))
        })
    }

    pub(super) fn delete(
        &mut self,
        table: Table,
        key: &Key,
        conflict: Conflict,
        condition: impl FnOnce(DeleteBuilder) -> DeleteBuilder,
    ) -> Result<(), StoreError> {
        let delete = Delete::builder().table_name(self.store.table(table)).set_key(Some(key.attributes()));
        let delete = condition(delete).build().map_err(|error| StoreError::Fault(error.to_string()))?;
        self.stage(table, key, TransactWriteItem::builder().delete(delete).build(), conflict);
        Ok(())
    }

    /// Like [`insert`](Self::insert), with an additional attribute that serde cannot encode.
    pub(super) fn put_with<T: Serialize>(
        &mut self,
        table: Table,
        key: &Key,
        value: &T,
        taken: Conflict,
        (name, extra): (&str, AttributeValue),
    ) -> Result<(), StoreError> {
        let mut item = encode(key, value)?;
        item.insert(name.to_owned(), extra);
        let put = Put::builder().table_name(self.store.table(table)).set_item(Some(item));
        let put = put.condition_expression("attribute_not_exists(pk)").build();
        let put = put.map_err(|error| StoreError::Fault(error.to_string()))?;
        self.stage(table, key, TransactWriteItem::builder().put(put).build(), taken);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.writes.len()
    }

    /// Commits all writes or none.
    pub async fn commit(self) -> Result<(), CommitError> {
        if self.has_duplicate_key {
            return Err(CommitError::Conflict(Conflict::IdTaken));
        }
        let failed = self.attempt().await?;
        let conflict = failed.into_iter().map(|index| self.writes[index].1).min();
        conflict.map_or(Ok(()), |conflict| Err(CommitError::Conflict(conflict)))
    }

    /// Commits all writes, or none and returns the indexes of the writes whose conditions failed.
    /// All retries, the SDK's included, use one request token, so that a write whose response was
    /// lost is not mistaken for another writer's.
    pub(super) async fn attempt(&self) -> Result<Vec<usize>, StoreError> {
        let store = &self.store;
        let token = request_token(store);
        let mut pause = INITIAL_PAUSE;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let sent = store
                .client
                .transact_write_items()
                .set_transact_items(Some(self.writes.iter().map(|(write, _)| write.clone()).collect()))
                .client_request_token(&token)
                .send()
                .await;
            let Err(error) = sent else {
                return Ok(Vec::new());
            };
            match error.as_service_error().map(classify) {
                Some(Cancelled::Condition(failed)) => return Ok(failed),
                Some(Cancelled::Contended) if attempt < MAX_ATTEMPTS => {
                    tokio::time::sleep(jittered(pause, store)).await;
                    pause *= 2;
                }
                Some(Cancelled::Invalid) => {
                    return Err(StoreError::Fault("a transaction write is invalid".to_owned()));
                }
                _ => return Err(error.into()),
            }
        }
    }
}

/// Returns a token of 32 hexadecimal digits. DynamoDB allows up to 36 characters.
fn request_token(store: &Store) -> String {
    let mut random = [0; 16];
    store.entropy.fill(&mut random);
    format!("{:032x}", u128::from_be_bytes(random))
}

/// Returns between one and two times `pause`, so that conflicting writers do not retry at the same
/// moment.
fn jittered(pause: Duration, store: &Store) -> Duration {
    let mut random = [0; 1];
    store.entropy.fill(&mut random);
    pause + pause.mul_f64(f64::from(random[0]) / 256.0)
}

#[derive(Serialize)]
struct IdClaim {
    organization_id: Id,
    id: Id,
}

enum Cancelled {
    /// The conditions of the writes at these indexes failed.
    Condition(Vec<usize>),
    /// Another transaction used an item, or a partition was throttled: worth a retry.
    Contended,
    /// A write can never succeed, for example because the item would be too large.
    Invalid,
    Other,
}

fn classify(error: &TransactWriteItemsError) -> Cancelled {
    let reasons = match error {
        TransactWriteItemsError::TransactionCanceledException(cancelled) => cancelled.cancellation_reasons(),
        TransactWriteItemsError::TransactionInProgressException(_) => return Cancelled::Contended,
        _ => return Cancelled::Other,
    };
    let codes = || reasons.iter().map(|reason| reason.code().unwrap_or("None"));
    let failed: Vec<_> =
        codes().enumerate().filter(|(_, code)| *code == "ConditionalCheckFailed").map(|(index, _)| index).collect();
    if !failed.is_empty() {
        return Cancelled::Condition(failed);
    }
    if codes().any(|code| code == "ValidationError") {
        return Cancelled::Invalid;
    }
    let is_transient =
        |code: &str| matches!(code, "TransactionConflict" | "ThrottlingError" | "ProvisionedThroughputExceeded");
    if codes().any(is_transient) { Cancelled::Contended } else { Cancelled::Other }
}

use std::{collections::HashSet, sync::Arc, time::Duration};

use aws_sdk_dynamodb::{
    operation::transact_write_items::TransactWriteItemsError,
    types::{AttributeValue, ConditionCheck, Delete, Put, TransactWriteItem, Update},
};
use serde::Serialize;

use super::{
    Store, StoreError, encode,
    table::{Key, Table},
};
use crate::domain::{Entropy, Id, Kind};

/// How often a transaction that another one crossed is sent again before the caller is told to come back.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// What a failed condition means. Where several failed, the first in this order is reported: what makes the rest meaningless comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conflict {
    /// Another answer is remembered under this idempotency key.
    Remembered,
    /// This event of Stripe's was taken in before.
    EventSeen,
    /// The drawn id is taken: draw again.
    IdTaken,
    /// Somebody else changed what was read: read again.
    Changed,
    SlugTaken,
    /// The organization has as many webhook endpoints as it may.
    WebhookEndpointsFull,
    /// What the endpoint missed is being recovered already.
    RecoveryUnderWay,
    /// Another organization is this Stripe customer.
    StripeCustomerTaken,
    /// The change would leave the organization without a usable admin key.
    LastAdminKey,
    /// The calling key was changed: judge it again.
    CallerChanged,
}

/// Why a transaction did not commit. Nothing of it was written, except after [`StoreError::Unavailable`], where that is unknown.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error("a condition failed: {0:?}")]
    Conflict(Conflict),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes that happen together or not at all.
#[derive(Debug)]
pub struct Transaction {
    store: Store,
    writes: Vec<(TransactWriteItem, Conflict)>,
    touched: HashSet<(Table, Key)>,
    clash: bool,
}

impl Transaction {
    pub(super) fn new(store: Store) -> Self {
        Self { store, writes: Vec::new(), touched: HashSet::new(), clash: false }
    }

    pub(super) fn entropy(&self) -> Arc<dyn Entropy> {
        Arc::clone(&self.store.entropy)
    }

    /// Claims an id for its kind over all organizations.
    pub(super) fn claim_id(&mut self, organization: Id, kind: Kind, id: Id) -> Result<(), StoreError> {
        let key = Key::claimed_id(kind, id);
        self.insert(Table::Main, &key, &IdClaim { organization_id: organization, id }, Conflict::IdTaken)
    }

    /// Puts an item where none lies yet.
    pub(super) fn insert<T: Serialize>(
        &mut self,
        table: Table,
        key: &Key,
        value: &T,
        taken: Conflict,
    ) -> Result<(), StoreError> {
        self.put(table, key, value, taken, |put| put.condition_expression("attribute_not_exists(pk)"))
    }

    /// Replaces an item of which `version` was read.
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

    /// Demands of an item that it still has the `version` that was read.
    pub(super) fn check_version(
        &mut self,
        table: Table,
        key: &Key,
        version: u64,
        conflict: Conflict,
    ) -> Result<(), StoreError> {
        let check = ConditionCheck::builder()
            .table_name(self.store.table(table))
            .set_key(Some(key.attributes()))
            .condition_expression("version = :read")
            .expression_attribute_values(":read", AttributeValue::N(version.to_string()))
            .build()
            .map_err(|error| StoreError::Fault(error.to_string()))?;
        self.stage(table, key, TransactWriteItem::builder().condition_check(check).build(), conflict);
        Ok(())
    }

    pub(super) fn put<T: Serialize>(
        &mut self,
        table: Table,
        key: &Key,
        value: &T,
        conflict: Conflict,
        condition: impl FnOnce(
            aws_sdk_dynamodb::types::builders::PutBuilder,
        ) -> aws_sdk_dynamodb::types::builders::PutBuilder,
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
        change: impl FnOnce(
            aws_sdk_dynamodb::types::builders::UpdateBuilder,
        ) -> aws_sdk_dynamodb::types::builders::UpdateBuilder,
    ) -> Result<(), StoreError> {
        let update = Update::builder().table_name(self.store.table(table)).set_key(Some(key.attributes()));
        let update = change(update).build().map_err(|error| StoreError::Fault(error.to_string()))?;
        self.stage(table, key, TransactWriteItem::builder().update(update).build(), conflict);
        Ok(())
    }

    /// DynamoDB takes one operation per item. Two can only meet where a drawn id is that of something the transaction touches anyway.
    fn stage(&mut self, table: Table, key: &Key, write: TransactWriteItem, conflict: Conflict) {
        self.clash |= !self.touched.insert((table, key.clone()));
        self.writes.push((write, conflict));
    }

    /// Takes back an item of an organization's, if it still is.
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
        condition: impl FnOnce(
            aws_sdk_dynamodb::types::builders::DeleteBuilder,
        ) -> aws_sdk_dynamodb::types::builders::DeleteBuilder,
    ) -> Result<(), StoreError> {
        let delete = Delete::builder().table_name(self.store.table(table)).set_key(Some(key.attributes()));
        let delete = condition(delete).build().map_err(|error| StoreError::Fault(error.to_string()))?;
        self.stage(table, key, TransactWriteItem::builder().delete(delete).build(), conflict);
        Ok(())
    }

    /// Like [`insert`](Self::insert), with an attribute that serde cannot write.
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

    /// How many writes it has by now.
    pub(super) fn len(&self) -> usize {
        self.writes.len()
    }

    /// Writes everything, or nothing.
    pub async fn commit(self) -> Result<(), CommitError> {
        if self.clash {
            return Err(CommitError::Conflict(Conflict::IdTaken));
        }
        let failed = self.attempt().await?;
        let conflict = failed.into_iter().map(|member| self.writes[member].1).min();
        conflict.map_or(Ok(()), |conflict| Err(CommitError::Conflict(conflict)))
    }

    /// Writes everything, or nothing: then says which members' conditions failed. One request token serves every repeat, the SDK's and ours, so
    /// that a write whose answer was lost is not taken for somebody else's.
    pub(super) async fn attempt(&self) -> Result<Vec<usize>, StoreError> {
        let store = &self.store;
        let token = request_token(store);
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
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
            match error.as_service_error().map(verdict) {
                Some(Cancelled::Condition(failed)) => return Ok(failed),
                Some(Cancelled::Contended) if attempt < ATTEMPTS => {
                    tokio::time::sleep(jittered(pause, store)).await;
                    pause *= 2;
                }
                Some(Cancelled::Refused) => {
                    return Err(StoreError::Fault("a member of a transaction was refused".to_owned()));
                }
                _ => return Err(error.into()),
            }
        }
        unreachable!("the loop returns on its last attempt")
    }
}

/// 32 hexadecimal digits; DynamoDB takes 36 characters.
fn request_token(store: &Store) -> String {
    let mut random = [0; 16];
    store.entropy.fill(&mut random);
    format!("{:032x}", u128::from_be_bytes(random))
}

/// Between one and two times `pause`, so that two crossed writers do not meet again.
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
    /// The conditions of these members failed.
    Condition(Vec<usize>),
    /// Another transaction held an item, or a partition was throttled: worth another try.
    Contended,
    /// A member can never be written: an item that would be too large.
    Refused,
    Other,
}

fn verdict(error: &TransactWriteItemsError) -> Cancelled {
    let reasons = match error {
        TransactWriteItemsError::TransactionCanceledException(cancelled) => cancelled.cancellation_reasons(),
        TransactWriteItemsError::TransactionInProgressException(_) => return Cancelled::Contended,
        _ => return Cancelled::Other,
    };
    let codes = || reasons.iter().map(|reason| reason.code().unwrap_or("None"));
    let failed: Vec<_> =
        codes().enumerate().filter(|(_, code)| *code == "ConditionalCheckFailed").map(|(member, _)| member).collect();
    if !failed.is_empty() {
        return Cancelled::Condition(failed);
    }
    if codes().any(|code| code == "ValidationError") {
        return Cancelled::Refused;
    }
    let passing =
        |code: &str| matches!(code, "TransactionConflict" | "ThrottlingError" | "ProvisionedThroughputExceeded");
    if codes().any(passing) { Cancelled::Contended } else { Cancelled::Other }
}

//! The queues of webhook endpoints: one item each, which says when something is due and who serves it.

use aws_sdk_dynamodb::{
    error::{ProvideErrorMetadata, SdkError},
    operation::update_item::{UpdateItemError, UpdateItemOutput, builders::UpdateItemFluentBuilder},
    types::ReturnValue,
};
use serde::Deserialize;

use super::{
    Conflict, Queue, Store, StoreError, Transaction, decode,
    deliveries::{number, text},
    outbox::unless_condition_failed,
    table::{Key, Table},
};
use crate::domain::{CLOCKS_APART, Failing, Id, Timestamp};

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

impl Lease {
    fn queue(&self) -> Key {
        Key::delivery_queue(self.organization_id, self.webhook_endpoint_id)
    }
}

/// The queue as it is after an update, if the update's condition held.
fn if_ours(sent: Result<UpdateItemOutput, SdkError<UpdateItemError>>) -> Result<Option<ReadQueue>, StoreError> {
    match sent {
        Ok(output) => decode(output.attributes.unwrap_or_default()).map(Some),
        Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Store {
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
        let (organization_id, webhook_endpoint_id) = (organization, endpoint);
        Ok(if_ours(sent)?.map(|ReadQueue { version, failing }| Lease {
            organization_id,
            webhook_endpoint_id,
            token,
            version,
            failing,
        }))
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
        let Some(ReadQueue { version, failing }) = if_ours(sent)? else { return Ok(false) };
        (lease.version, lease.failing) = (version, failing);
        Ok(true)
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
}

impl Transaction {
    /// Says that an endpoint has something new to be sent.
    pub(super) fn join_queue(&mut self, organization: Id, endpoint: Id, now: Timestamp) -> Result<(), StoreError> {
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

    /// Counts a failure, or forgets those before a success; writes nothing if there is nothing to forget.
    pub(super) fn note_failing(&mut self, lease: &Lease, succeeded: bool, at: Timestamp) -> Result<(), StoreError> {
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
}

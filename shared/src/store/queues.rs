//! The queues of webhook endpoints. Each is one item with the time at which something is due and
//! the lease of the worker that serves it.

use aws_sdk_dynamodb::{
    error::{ProvideErrorMetadata, SdkError},
    operation::update_item::{UpdateItemError, UpdateItemOutput, builders::UpdateItemFluentBuilder},
    types::ReturnValue,
};
use serde::Deserialize;

use super::{
    Conflict, Queue, Store, StoreError, Transaction, decode,
    deliveries::{number, text},
    outbox::condition_held,
    table::{Key, Table},
};
use crate::domain::{FailureStreak, Id, MAX_CLOCK_SKEW, Timestamp};

/// The right to serve an endpoint's queue until a point in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub organization_id: Id,
    pub webhook_endpoint_id: Id,
    token: String,
    /// The version of the queue that was read last. The next query for deliveries returns
    /// everything that was added before.
    version: u64,
    pub failures: FailureStreak,
}

#[derive(Deserialize)]
struct QueueState {
    version: u64,
    #[serde(flatten)]
    failing: FailureStreak,
}

impl Lease {
    fn queue(&self) -> Key {
        Key::delivery_queue(self.organization_id, self.webhook_endpoint_id)
    }
}

/// Returns the queue after an update, or `None` if the update's condition failed.
fn updated_queue(sent: Result<UpdateItemOutput, SdkError<UpdateItemError>>) -> Result<Option<QueueState>, StoreError> {
    match sent {
        Ok(output) => decode(output.attributes.unwrap_or_default()).map(Some),
        Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Store {
    /// Leases an endpoint's queue until `until`, if something is due and no other worker holds the
    /// lease.
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
            // The last condition accepts a retry of this request whose response was lost.
            .condition_expression(
                "due_at <= :soon AND (attribute_not_exists(rests_until) OR rests_until <= :now) \
                 AND (attribute_not_exists(leased_until) OR leased_until <= :now OR lease = :lease)",
            )
            .expression_attribute_values(":until", text(until))
            .expression_attribute_values(":lease", text(&token))
            .expression_attribute_values(":soon", text(now.plus(MAX_CLOCK_SKEW)))
            .expression_attribute_values(":now", text(now))
            .return_values(ReturnValue::AllNew)
            .send()
            .await;
        let (organization_id, webhook_endpoint_id) = (organization, endpoint);
        Ok(updated_queue(sent)?.map(|QueueState { version, failing }| Lease {
            organization_id,
            webhook_endpoint_id,
            token,
            version,
            failures: failing,
        }))
    }

    /// Renews the lease until `until` and reads the queue's version. Returns whether this worker
    /// still held the lease.
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
        let Some(QueueState { version, failing }) = updated_queue(sent)? else { return Ok(false) };
        (lease.version, lease.failures) = (version, failing);
        Ok(true)
    }

    /// Releases the lease and schedules the queue for `next`, or unschedules it if `next` is
    /// `None`. Returns false, and changes nothing, if deliveries were added since it was read or
    /// the lease was lost.
    pub async fn release_queue(&self, lease: &Lease, next: Option<Timestamp>) -> Result<bool, StoreError> {
        let update = self.release_update(lease).condition_expression("lease = :lease AND version = :read");
        let update = update.expression_attribute_values(":read", number(lease.version));
        let update = match next {
            Some(next) => update
                .update_expression("SET due_at = :next REMOVE leased_until, lease")
                .expression_attribute_values(":next", text(next)),
            None => update.update_expression("REMOVE due_shard, due_at, leased_until, lease"),
        };
        condition_held(update.send().await.map(drop))
    }

    /// Releases the lease and blocks the queue until `until`, even if deliveries are added.
    pub async fn pause_queue(&self, lease: &Lease, until: Timestamp) -> Result<(), StoreError> {
        let update = self.release_update(lease).condition_expression("lease = :lease");
        let update = update
            .update_expression("SET due_at = :until, rests_until = :until REMOVE leased_until, lease")
            .expression_attribute_values(":until", text(until));
        condition_held(update.send().await.map(drop)).map(drop)
    }

    fn release_update(&self, lease: &Lease) -> UpdateItemFluentBuilder {
        let update = self.client.update_item().table_name(self.table(Table::Outbox));
        update.set_key(Some(lease.queue().attributes())).expression_attribute_values(":lease", text(&lease.token))
    }

    /// Deletes the queue of an endpoint that no longer exists.
    pub async fn delete_queue(&self, lease: &Lease) -> Result<(), StoreError> {
        let sent = self
            .client
            .delete_item()
            .table_name(self.table(Table::Outbox))
            .set_key(Some(lease.queue().attributes()))
            .condition_expression("lease = :lease")
            .expression_attribute_values(":lease", text(&lease.token))
            .send()
            .await;
        condition_held(sent.map(drop)).map(drop)
    }
}

impl Transaction {
    /// Schedules an endpoint's queue because deliveries are added to it.
    pub(super) fn schedule_queue(&mut self, organization: Id, endpoint: Id, now: Timestamp) -> Result<(), StoreError> {
        self.schedule_queue_with(organization, endpoint, now, "")
    }

    /// Schedules an endpoint's queue and clears its failures.
    pub(super) fn reset_queue(&mut self, organization: Id, endpoint: Id, now: Timestamp) -> Result<(), StoreError> {
        self.schedule_queue_with(organization, endpoint, now, " REMOVE failures, failing_since, rests_until")
    }

    fn schedule_queue_with(
        &mut self,
        organization: Id,
        endpoint: Id,
        now: Timestamp,
        extra: &str,
    ) -> Result<(), StoreError> {
        self.update(Table::Outbox, &Key::delivery_queue(organization, endpoint), Conflict::Changed, |update| {
            update
                .update_expression(format!(
                    "SET organization_id = :organization, due_shard = :shard, due_at = :now ADD version :one{extra}"
                ))
                .expression_attribute_values(":organization", number(organization))
                .expression_attribute_values(":shard", text(Queue::Deliveries.shard(endpoint)))
                .expression_attribute_values(":now", text(now))
                .expression_attribute_values(":one", number(1))
        })
    }

    /// Counts a failure, or clears the failures after a success. Stages no write if there is
    /// nothing to clear.
    pub(super) fn update_failures(&mut self, lease: &Lease, succeeded: bool, at: Timestamp) -> Result<(), StoreError> {
        if succeeded && lease.failures == FailureStreak::default() {
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

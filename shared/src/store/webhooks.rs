use std::collections::HashMap;

use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use serde::{Deserialize, Serialize};

use super::{
    Ciphertext, Conflict, Item, Page, SealedKind, Store, StoreError, Transaction, decode,
    decode::decode_or_skip,
    outbox::condition_held,
    page::Listing,
    required_text,
    table::{ABOVE_IDS, Key, Table, delivery_queues_partition, padded, parse_padded, webhook_endpoints_partition},
};
use crate::domain::{FailureStreak, Id, Kid, Kind, Timestamp, WebhookEndpoint};

const MAX_ENDPOINTS: u32 = 20;

/// An endpoint's live secrets, sealed as one text and bound to its organization and its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedWebhookSecrets {
    pub kid: Kid,
    pub ciphertext: Ciphertext,
    /// Number of changes. A write that depends on a read is conditional on it.
    pub version: u64,
}

#[derive(Serialize)]
struct IndexedWebhookSecrets<'a> {
    #[serde(flatten)]
    item: &'a SealedWebhookSecrets,
    sealed_shard: &'static str,
}

impl<'a> IndexedWebhookSecrets<'a> {
    fn from(item: &'a SealedWebhookSecrets) -> Self {
        Self { item, sealed_shard: SealedKind::WebhookSecrets.shard() }
    }
}

impl Store {
    pub async fn webhook_endpoint(&self, organization: Id, id: Id) -> Result<Option<WebhookEndpoint>, StoreError> {
        self.get(Table::Main, Key::webhook_endpoint(organization, id)).await
    }

    /// Returns the organization's endpoints, newest first.
    pub async fn webhook_endpoints(
        &self,
        organization: Id,
        below: Option<Id>,
        limit: usize,
    ) -> Result<Page<WebhookEndpoint>, StoreError> {
        let listing = Listing {
            table: Table::Main,
            partition: webhook_endpoints_partition(organization),
            sort_key: padded,
            read: decode,
            skips_unreadable: false,
            id: |endpoint: &WebhookEndpoint| endpoint.id,
        };
        self.page(listing, below, limit, |_| true).await
    }

    /// Returns all readable endpoints of the organization. There are few.
    pub async fn all_webhook_endpoints(&self, organization: Id) -> Result<Vec<WebhookEndpoint>, StoreError> {
        let items = self.items_by_id(Table::Main, webhook_endpoints_partition(organization)).await?;
        Ok(items.into_iter().filter_map(|item| decode_or_skip(item, "webhook endpoint")).collect())
    }

    /// Returns the recent failures of the organization's endpoints. Endpoints without a readable
    /// queue are omitted.
    pub async fn failing_webhook_endpoints(&self, organization: Id) -> Result<HashMap<Id, FailureStreak>, StoreError> {
        let items = self.items_by_id(Table::Outbox, delivery_queues_partition(organization)).await?;
        let failing = |item: Item| {
            let endpoint = parse_padded(required_text(&item, "sk").ok()?);
            // An item whose sort key is no id is of no endpoint.
            Some((endpoint?, decode_or_skip(item, "delivery queue")?))
        };
        Ok(items.into_iter().filter_map(failing).collect())
    }

    pub async fn failing_webhook_endpoint(&self, organization: Id, endpoint: Id) -> Result<FailureStreak, StoreError> {
        let failing = self.get(Table::Outbox, Key::delivery_queue(organization, endpoint)).await?;
        Ok(failing.unwrap_or_default())
    }

    /// Reads the items of a partition whose sort keys are ids.
    async fn items_by_id(&self, table: Table, partition: String) -> Result<Vec<Item>, StoreError> {
        let mut pages = self
            .client
            .query()
            .table_name(self.table(table))
            .key_condition_expression("pk = :pk AND sk < :above")
            .expression_attribute_values(":pk", AttributeValue::S(partition))
            .expression_attribute_values(":above", AttributeValue::S(ABOVE_IDS.to_owned()))
            .consistent_read(true)
            .into_paginator()
            .items()
            .send();
        let mut items = Vec::new();
        while let Some(item) = pages.next().await {
            items.push(item?);
        }
        Ok(items)
    }

    pub async fn webhook_secrets(
        &self,
        organization: Id,
        endpoint: Id,
    ) -> Result<Option<SealedWebhookSecrets>, StoreError> {
        self.get(Table::Main, Key::webhook_secrets(organization, endpoint)).await
    }
}

impl Store {
    /// Replaces sealed secrets, if they are unchanged since they were read. Returns whether it
    /// wrote.
    pub async fn reseal_webhook_secrets(
        &self,
        organization: Id,
        endpoint: Id,
        before: &SealedWebhookSecrets,
        after: &SealedWebhookSecrets,
    ) -> Result<bool, StoreError> {
        let number = |number: u64| AttributeValue::N(number.to_string());
        let sent = self
            .client
            .update_item()
            .table_name(self.table(Table::Main))
            .set_key(Some(Key::webhook_secrets(organization, endpoint).attributes()))
            .update_expression("SET kid = :kid, ciphertext = :sealed, version = :version")
            .condition_expression("version = :read")
            .expression_attribute_values(":kid", AttributeValue::S(after.kid.to_string()))
            .expression_attribute_values(":sealed", AttributeValue::B(Blob::new(after.ciphertext.as_bytes())))
            .expression_attribute_values(":version", number(after.version))
            .expression_attribute_values(":read", number(before.version))
            .send()
            .await;
        condition_held(sent.map(drop))
    }
}

impl Transaction {
    /// Creates an endpoint with its first secret, if the organization has fewer endpoints than the
    /// maximum.
    pub fn create_webhook_endpoint(
        &mut self,
        organization: Id,
        endpoint: &WebhookEndpoint,
        sealed: &SealedWebhookSecrets,
    ) -> Result<(), StoreError> {
        self.claim_id(organization, Kind::WebhookEndpoint, endpoint.id)?;
        let number = |number: u32| AttributeValue::N(number.to_string());
        let count = Key::webhook_endpoint_count(organization);
        self.update(Table::Main, &count, Conflict::WebhookEndpointsFull, |update| {
            update
                .update_expression("ADD endpoints :one")
                .condition_expression("attribute_not_exists(endpoints) OR endpoints < :most")
                .expression_attribute_values(":one", number(1))
                .expression_attribute_values(":most", number(MAX_ENDPOINTS))
        })?;
        let secrets = Key::webhook_secrets(organization, endpoint.id);
        self.insert(Table::Main, &secrets, &IndexedWebhookSecrets::from(sealed), Conflict::IdTaken)?;
        self.insert(Table::Main, &Key::webhook_endpoint(organization, endpoint.id), endpoint, Conflict::IdTaken)
    }

    /// Updates an endpoint. Enabling it clears its failures and schedules its pending deliveries.
    pub fn update_webhook_endpoint(
        &mut self,
        organization: Id,
        before: &WebhookEndpoint,
        after: &WebhookEndpoint,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if after.is_enabled() && !before.is_enabled() {
            self.reset_queue(organization, after.id, now)?;
        }
        self.replace(Table::Main, &Key::webhook_endpoint(organization, after.id), after, before.version)
    }

    /// Deletes an endpoint. Its deliveries expire by their `ttl`.
    pub fn delete_webhook_endpoint(&mut self, organization: Id, before: &WebhookEndpoint) -> Result<(), StoreError> {
        self.update(Table::Main, &Key::webhook_endpoint_count(organization), Conflict::Changed, |update| {
            update
                .update_expression("ADD endpoints :minus_one")
                .expression_attribute_values(":minus_one", AttributeValue::N("-1".to_owned()))
        })?;
        for key in [Key::delivery_queue(organization, before.id), Key::recovery(organization, before.id)] {
            self.delete(Table::Outbox, &key, Conflict::Changed, |delete| delete)?;
        }
        self.delete(Table::Main, &Key::webhook_secrets(organization, before.id), Conflict::Changed, |delete| delete)?;
        self.delete(Table::Main, &Key::webhook_endpoint(organization, before.id), Conflict::Changed, |delete| {
            delete
                .condition_expression("version = :read")
                .expression_attribute_values(":read", AttributeValue::N(before.version.to_string()))
        })
    }

    /// Replaces an endpoint's secrets. This counts as a change of the endpoint, so that a worker
    /// that serves it reads the secrets again.
    pub fn replace_webhook_secrets(
        &mut self,
        organization: Id,
        endpoint: &WebhookEndpoint,
        before: &SealedWebhookSecrets,
        after: &SealedWebhookSecrets,
    ) -> Result<(), StoreError> {
        let changed = WebhookEndpoint { version: endpoint.version + 1, ..endpoint.clone() };
        self.replace(Table::Main, &Key::webhook_endpoint(organization, endpoint.id), &changed, endpoint.version)?;
        let key = Key::webhook_secrets(organization, endpoint.id);
        self.replace(Table::Main, &key, &IndexedWebhookSecrets::from(after), before.version)
    }
}

//! DynamoDB, through its own SDK. No traits in front: one store, one implementation, tested against an emulator.
//!
//! - The tenant is the first argument of every call. What has none finds out who the tenant is (credentials, the directory), or is a worker's: it
//!   looks for what is due of everybody's.
//! - Reads that decide access are strongly consistent and on the base table.
//! - A change is one [`Transaction`]: every staged write says which [`Conflict`] its failed condition means.
//! - Faults of the service come out as [`StoreError::Unavailable`]; what can only be our own mistake as [`StoreError::Fault`].
//!
//! A new aggregate gets a file of its own here, and its keys a line in [`table`].

mod access;
mod api_keys;
mod audit;
mod audit_reader;
mod batch;
mod budgets;
mod canonical;
mod chain;
mod conflict_retry;
mod counters;
mod credentials;
mod decode;
mod deliveries;
mod error;
mod idempotency;
mod model_keys;
mod organizations;
mod outbox;
mod page;
mod projects;
mod queues;
mod recoveries;
mod releases;
mod sealed;
pub mod table;
mod transaction;
mod usage;
mod webhooks;

use std::{collections::HashMap, sync::Arc};

use aws_sdk_dynamodb::{Client, config::SharedInterceptor, error::ProvideErrorMetadata, types::AttributeValue};
use serde::{Serialize, de::DeserializeOwned};

pub use self::{
    access::Access,
    audit::LoggedEvent,
    audit_reader::{AuditReader, Audited},
    budgets::{BudgetCheck, BudgetSubject, OrganizationBudget},
    chain::{PendingEvents, Sweep, UnchainedEvents},
    conflict_retry::ConflictRetry,
    credentials::{Credential, Digest},
    deliveries::{DELIVERIES_KEPT, DueDeliveries, PendingDelivery, Settled, Settlement},
    error::StoreError,
    idempotency::IdempotencyRecord,
    model_keys::{ActiveModelKey, Ciphertext, SealedModelKey},
    outbox::{DueItem, DueItems, ExpiryNotice, FlushTurn, Flushes, PendingInvalidation, Queue},
    page::Page,
    queues::Lease,
    recoveries::{Recovered, Recovery},
    releases::ReleasePlace,
    sealed::{SealedItem, SealedKind},
    transaction::{CommitError, Conflict, Transaction},
    usage::{Ingested, KeyOwner},
    webhooks::SealedWebhookSecrets,
};
use self::{
    decode::decode,
    table::{Key, Table, Tables},
};
use crate::domain::Entropy;

type Item = HashMap<String, AttributeValue>;

/// A handle to the tables; cheap to clone.
#[derive(Clone)]
pub struct Store {
    client: Client,
    tables: Arc<Tables>,
    entropy: Arc<dyn Entropy>,
}

impl Store {
    /// `entropy` makes the request tokens of transactions.
    pub fn new(client: Client, tables: Tables, entropy: Arc<dyn Entropy>) -> Self {
        Self { client, tables: Arc::new(tables), entropy }
    }

    /// The same tables through a client whose calls `watch` sees too.
    #[must_use]
    pub fn watched(&self, watch: SharedInterceptor) -> Self {
        let mut config = self.client.config().to_builder();
        config.push_interceptor(watch);
        Self { client: Client::from_conf(config.build()), ..self.clone() }
    }

    /// An empty transaction.
    pub fn transaction(&self) -> Transaction {
        Transaction::new(self.clone())
    }

    /// Opens the connection that the first request will use: TLS costs more than any read. A function that may not read what is asked for, or whose
    /// credentials are too fresh to be known yet, has opened it all the same.
    pub async fn warm_up(&self) -> Result<(), StoreError> {
        let key = Key::organization_absent();
        let asked = self.client.get_item().table_name(self.table(Table::Main)).set_key(Some(key.attributes()));
        match asked.send().await {
            Err(error) => match error.code() {
                Some("AccessDeniedException" | "UnrecognizedClientException") => Ok(()),
                _ => Err(error.into()),
            },
            Ok(_) => Ok(()),
        }
    }

    fn table(&self, table: Table) -> &str {
        self.tables.name(table)
    }

    /// One item, read consistently.
    async fn get<T: DeserializeOwned>(&self, table: Table, key: Key) -> Result<Option<T>, StoreError> {
        let output = self
            .client
            .get_item()
            .table_name(self.table(table))
            .set_key(Some(key.attributes()))
            .consistent_read(true)
            .send()
            .await?;
        output.item.map(decode).transpose()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("tables", &self.tables).finish_non_exhaustive()
    }
}

/// An attribute that every item of its kind has.
fn text<'a>(item: &'a Item, name: &str) -> Result<&'a str, StoreError> {
    let value = item.get(name).and_then(|value| value.as_s().ok());
    value.map(String::as_str).ok_or_else(|| StoreError::Fault(format!("an item has no {name}")))
}

fn encode<T: Serialize>(key: &Key, value: &T) -> Result<Item, StoreError> {
    let item: Item =
        serde_dynamo::to_item(value).map_err(|error| StoreError::Fault(format!("an item does not encode: {error}")))?;
    Ok(item.into_iter().chain(key.attributes()).collect())
}

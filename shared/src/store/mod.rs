//! Access to DynamoDB through its SDK. There is no trait in front: the store has one
//! implementation, which is tested against an emulator.
//!
//! - The organization is the first argument of every call. Exceptions are calls that find out the
//!   organization (credentials, `ID#` and `PX#` items) and calls of workers, which process items of every
//!   organization.
//! - Reads that decide access are strongly consistent and use the base table.
//! - A change is one [`Transaction`]. Each staged write names the [`Conflict`] that its failed
//!   condition means.
//! - Faults of the service become [`StoreError::Unavailable`], errors in Karta's own code or setup
//!   [`StoreError::Fault`].
//!
//! A new aggregate gets its own file here and a row in the key table of [`table`].

mod access;
mod api_keys;
mod audit;
mod audit_reader;
mod batch;
mod budgets;
mod canonical;
mod chain;
mod committed;
mod conflict_retry;
mod counters;
mod credentials;
mod decode;
mod deliveries;
mod error;
mod idempotency;
mod messages;
mod model_keys;
mod organizations;
mod outbox;
mod page;
mod projects;
mod queues;
mod recoveries;
mod releases;
mod reservations;
mod sealed;
mod session_sweep;
mod sessions;
pub mod table;
mod transaction;
mod turn_state;
mod turn_usage;
mod turns;
mod usage;
mod webhooks;

use std::{collections::HashMap, sync::Arc};

use aws_sdk_dynamodb::{Client, config::SharedInterceptor, error::ProvideErrorMetadata, types::AttributeValue};
use serde::{Serialize, de::DeserializeOwned};

pub use self::{
    access::KeyState,
    audit::LoggedEvent,
    audit_reader::{AuditReader, Audited},
    budgets::{BudgetCheck, BudgetSubject, OrganizationBudget},
    chain::{PendingEvents, Sweep, UnchainedEvents},
    committed::Amount,
    conflict_retry::ConflictRetry,
    credentials::{Credential, Digest},
    deliveries::{DELIVERY_RETENTION, DeliveryResult, DueDeliveries, PendingDelivery, RecordOutcome},
    error::StoreError,
    idempotency::IdempotencyRecord,
    messages::{MAX_HISTORY_BYTES, MAX_SEALED_MESSAGE_BYTES, MessagePage, SealedContent, SealedMessage},
    model_keys::{ActiveModelKey, Ciphertext, SealedModelKey},
    outbox::{ExpiryNotice, FlushStart, Flushes, OutboxKey, Queue, ScheduledInvalidation},
    page::Page,
    queues::Lease,
    recoveries::{Recovered, Recovery},
    releases::ReleaseLocation,
    reservations::Reservation,
    sealed::{SealedItem, SealedKind},
    session_sweep::{DueSession, DueTurn, Overdue},
    sessions::SessionList,
    transaction::{CommitError, Conflict, Transaction},
    turn_state::{TurnSettings, TurnState},
    turn_usage::KnownCounters,
    turns::{
        SealedEvents, StoredTurn, TURN_EVENTS_RETENTION, TURN_RECORD_RETENTION, TurnClaim, TurnLease, TurnRecord,
        TurnRequest, TurnSettlement,
    },
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
    /// Creates a store. `entropy` generates ids, lease tokens and the request tokens of
    /// transactions.
    pub fn new(client: Client, tables: Tables, entropy: Arc<dyn Entropy>) -> Self {
        Self { client, tables: Arc::new(tables), entropy }
    }

    /// Returns the same store with a client whose calls also go through `watch`.
    #[must_use]
    pub fn with_interceptor(&self, watch: SharedInterceptor) -> Self {
        let mut config = self.client.config().to_builder();
        config.push_interceptor(watch);
        Self { client: Client::from_conf(config.build()), ..self.clone() }
    }

    pub fn transaction(&self) -> Transaction {
        Transaction::new(self.clone())
    }

    /// Opens the connection that the first request will use: the TLS handshake takes longer than a
    /// read. It also succeeds if the function may not read the item or its credentials are not
    /// active yet, because the connection is then open.
    pub async fn warm_up(&self) -> Result<(), StoreError> {
        let key = Key::organization_absent();
        let read = self.client.get_item().table_name(self.table(Table::Main)).set_key(Some(key.attributes()));
        match read.send().await {
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

    /// Reads one item consistently.
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

/// Returns a string attribute that every item of this kind has.
fn required_text<'a>(item: &'a Item, name: &str) -> Result<&'a str, StoreError> {
    let value = item.get(name).and_then(|value| value.as_s().ok());
    value.map(String::as_str).ok_or_else(|| StoreError::Fault(format!("item has no attribute {name}")))
}

fn encode<T: Serialize>(key: &Key, value: &T) -> Result<Item, StoreError> {
    let item: Item =
        serde_dynamo::to_item(value).map_err(|error| StoreError::Fault(format!("item cannot be encoded: {error}")))?;
    Ok(item.into_iter().chain(key.attributes()).collect())
}

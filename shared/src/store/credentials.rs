use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{
    Conflict, Store, StoreError, Transaction, decode,
    table::{Key, Table, credentials_partition},
};
use crate::domain::{Id, Prefix};

/// Maximum number of keys of one prefix that are compared. It bounds the bcrypt work: among a
/// million keys, about nine pairs share a prefix.
pub(super) const MAX_CANDIDATES: i32 = 8;

/// The credential of an API key: its owner and the digest that a token is compared with. It is
/// immutable.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Credential {
    pub organization_id: Id,
    pub api_key_id: Id,
    #[serde(rename = "counted_as")]
    pub lineage_id: Id,
    pub digest: Digest,
}

/// A bcrypt digest in modular crypt format. It grants no access, but is kept out of logs.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    pub fn new(modular_crypt: String) -> Self {
        Self(modular_crypt)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Store {
    /// Returns the credentials of the keys with this prefix, in all organizations. One consistent
    /// Query.
    pub async fn credentials(&self, prefix: &Prefix) -> Result<Vec<Credential>, StoreError> {
        let output = self
            .client
            .query()
            .table_name(self.table(Table::Credentials))
            .key_condition_expression("pk = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(credentials_partition(prefix)))
            .consistent_read(true)
            .limit(MAX_CANDIDATES)
            .send()
            .await?;
        output.items.unwrap_or_default().into_iter().map(decode).collect()
    }
}

impl Transaction {
    pub(super) fn insert_credential(&mut self, prefix: &Prefix, credential: &Credential) -> Result<(), StoreError> {
        let key = Key::credential(prefix, credential.api_key_id);
        self.insert(Table::Credentials, &key, credential, Conflict::IdTaken)
    }
}

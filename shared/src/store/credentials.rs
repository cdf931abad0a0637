use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{
    Conflict, Store, StoreError, Transaction, decode,
    table::{Key, Table, credentials_partition},
};
use crate::domain::{Id, Prefix};

/// How many keys of one prefix are compared: a bound on bcrypt, not on luck (two of a million keys share a prefix about nine times).
const CANDIDATES_AT_MOST: i32 = 8;

/// What proves a token: whose key it is, and the digest to compare with. Written once, never changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Credential {
    pub organization_id: Id,
    pub api_key_id: Id,
    #[serde(rename = "counted_as")]
    pub lineage_id: Id,
    pub digest: Digest,
}

/// A bcrypt digest in its modular crypt form. Not a secret that opens anything, and still nobody's business.
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
    /// The keys that a token with this prefix may be, over all organizations. One consistent Query.
    pub async fn credentials(&self, prefix: &Prefix) -> Result<Vec<Credential>, StoreError> {
        let output = self
            .client
            .query()
            .table_name(self.table(Table::Credentials))
            .key_condition_expression("pk = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(credentials_partition(prefix)))
            .consistent_read(true)
            .limit(CANDIDATES_AT_MOST)
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

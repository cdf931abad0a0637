use std::fmt;

use aws_sdk_dynamodb::{error::ProvideErrorMetadata, primitives::Blob, types::AttributeValue};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Visitor},
};

use super::{
    Conflict, Page, SealedKind, Store, StoreError, Transaction, decode,
    page::Listing,
    table::{Key, Table, model_keys_partition, padded},
};
use crate::domain::{Id, Kid, Kind, ModelKey, Provider};

/// A sealed provider key, bound to its organization, provider and id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedModelKey {
    pub provider: Provider,
    pub kid: Kid,
    pub ciphertext: Ciphertext,
}

/// Ciphertext, stored as binary.
#[derive(Clone, PartialEq, Eq)]
pub struct Ciphertext(Vec<u8>);

impl Ciphertext {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Ciphertext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[sealed]")
    }
}

impl Serialize for Ciphertext {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Ciphertext {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        deserializer.deserialize_bytes(Bytes).map(Self)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveModelKey {
    pub model_key_id: Id,
    pub tail: String,
}

#[derive(Serialize)]
struct IndexedModelKey<'a> {
    #[serde(flatten)]
    item: &'a SealedModelKey,
    sealed_shard: &'static str,
}

impl Store {
    pub async fn model_key(&self, organization: Id, id: Id) -> Result<Option<ModelKey>, StoreError> {
        self.get(Table::Main, Key::model_key(organization, id)).await
    }

    /// Returns the organization's provider keys, newest first.
    pub async fn model_keys(
        &self,
        organization: Id,
        below: Option<Id>,
        limit: usize,
    ) -> Result<Page<ModelKey>, StoreError> {
        let partition = model_keys_partition(organization);
        let listing = Listing {
            table: Table::Main,
            partition,
            sort_key: padded,
            read: decode,
            skips_unreadable: false,
            id: |key: &ModelKey| key.id,
        };
        self.page(listing, below, limit, |_| true).await
    }

    pub async fn active_model_key(
        &self,
        organization: Id,
        provider: Provider,
    ) -> Result<Option<ActiveModelKey>, StoreError> {
        self.get(Table::Main, Key::active_model_key(organization, provider)).await
    }

    pub async fn sealed_model_key(&self, organization: Id, id: Id) -> Result<Option<SealedModelKey>, StoreError> {
        self.get(Table::Main, Key::sealed_model_key(organization, id)).await
    }

    /// Replaces a sealed key, if it is unchanged since it was read. Returns whether it wrote.
    pub async fn reseal_model_key(
        &self,
        organization: Id,
        id: Id,
        before: &SealedModelKey,
        after: &SealedModelKey,
    ) -> Result<bool, StoreError> {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let bytes = |sealed: &SealedModelKey| AttributeValue::B(Blob::new(sealed.ciphertext.as_bytes()));
        let sent = self
            .client
            .update_item()
            .table_name(self.table(Table::Main))
            .set_key(Some(Key::sealed_model_key(organization, id).attributes()))
            .update_expression("SET kid = :kid, ciphertext = :sealed")
            .condition_expression("kid = :read_kid AND ciphertext = :read_sealed")
            .expression_attribute_values(":kid", text(after.kid.as_str()))
            .expression_attribute_values(":sealed", bytes(after))
            .expression_attribute_values(":read_kid", text(before.kid.as_str()))
            .expression_attribute_values(":read_sealed", bytes(before))
            .send()
            .await;
        match sent {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Transaction {
    /// Creates a provider key and puts it into use.
    pub fn create_model_key(
        &mut self,
        organization: Id,
        key: &ModelKey,
        sealed: &SealedModelKey,
    ) -> Result<(), StoreError> {
        let pointer = Key::active_model_key(organization, key.provider);
        self.insert(Table::Main, &pointer, &ActiveModelKey::new(key), Conflict::Changed)?;
        self.add_model_key(organization, key, sealed)
    }

    /// Creates a provider key in place of the one in use, whose sealed key is deleted. `before` is
    /// the old key as read, `after` the same key revoked.
    pub fn replace_model_key(
        &mut self,
        organization: Id,
        before: &ModelKey,
        after: &ModelKey,
        key: &ModelKey,
        sealed: &SealedModelKey,
    ) -> Result<(), StoreError> {
        let pointer = Key::active_model_key(organization, key.provider);
        self.put(Table::Main, &pointer, &ActiveModelKey::new(key), Conflict::Changed, |put| {
            put.condition_expression("model_key_id = :read").expression_attribute_values(":read", number(before.id))
        })?;
        self.shred_model_key(organization, before, after)?;
        self.add_model_key(organization, key, sealed)
    }

    /// Revokes the provider key in use and deletes its sealed key.
    pub fn revoke_model_key(
        &mut self,
        organization: Id,
        before: &ModelKey,
        after: &ModelKey,
    ) -> Result<(), StoreError> {
        let pointer = Key::active_model_key(organization, before.provider);
        self.delete(Table::Main, &pointer, Conflict::Changed, |delete| {
            delete.condition_expression("model_key_id = :read").expression_attribute_values(":read", number(before.id))
        })?;
        self.shred_model_key(organization, before, after)
    }

    fn add_model_key(&mut self, organization: Id, key: &ModelKey, sealed: &SealedModelKey) -> Result<(), StoreError> {
        self.claim_id(organization, Kind::ModelKey, key.id)?;
        let indexed = IndexedModelKey { item: sealed, sealed_shard: SealedKind::ModelKeys.shard() };
        self.insert(Table::Main, &Key::sealed_model_key(organization, key.id), &indexed, Conflict::IdTaken)?;
        self.insert(Table::Main, &Key::model_key(organization, key.id), key, Conflict::IdTaken)
    }

    fn shred_model_key(&mut self, organization: Id, before: &ModelKey, after: &ModelKey) -> Result<(), StoreError> {
        self.delete(Table::Main, &Key::sealed_model_key(organization, before.id), Conflict::Changed, |delete| delete)?;
        self.replace(Table::Main, &Key::model_key(organization, before.id), after, before.version)
    }
}

impl ActiveModelKey {
    fn new(key: &ModelKey) -> Self {
        Self { model_key_id: key.id, tail: key.tail.clone() }
    }
}

fn number(id: Id) -> AttributeValue {
    AttributeValue::N(id.to_string())
}

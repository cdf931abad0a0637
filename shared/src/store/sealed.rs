use aws_sdk_dynamodb::types::AttributeValue;
use serde::Deserialize;

use super::{
    Store, StoreError,
    decode::decode_or_skip,
    table::{Key, SEALED_INDEX, Table},
};
use crate::domain::{Id, Kid};

const PAGE_SIZE: i32 = 100;

/// The kinds of sealed items. Each kind has its own ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealedKind {
    ModelKeys,
    WebhookSecrets,
}

/// A sealed item and the ring key that seals it, according to the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedItem {
    pub organization: Id,
    pub id: Id,
    pub kid: Kid,
}

#[derive(Deserialize)]
struct IndexEntry {
    #[serde(flatten)]
    key: Key,
    kid: Kid,
}

impl Store {
    /// Returns the items of all organizations that are sealed under another key than `kid`,
    /// including keys that have left the ring. The index may be slightly behind: callers read each
    /// item again.
    pub async fn not_sealed_under(&self, sealed: SealedKind, kid: &Kid) -> Result<Vec<SealedItem>, StoreError> {
        let mut found = self.sealed_where(sealed, "kid < :kid", kid).await?;
        found.append(&mut self.sealed_where(sealed, "kid > :kid", kid).await?);
        Ok(found)
    }

    async fn sealed_where(
        &self,
        sealed: SealedKind,
        condition: &str,
        kid: &Kid,
    ) -> Result<Vec<SealedItem>, StoreError> {
        let (mut found, mut start) = (Vec::new(), None);
        loop {
            let output = self
                .client
                .query()
                .table_name(self.table(Table::Main))
                .index_name(SEALED_INDEX)
                .key_condition_expression(format!("sealed_shard = :pk AND {condition}"))
                .expression_attribute_values(":pk", AttributeValue::S(sealed.shard().to_owned()))
                .expression_attribute_values(":kid", AttributeValue::S(kid.to_string()))
                .set_exclusive_start_key(start)
                .limit(PAGE_SIZE)
                .send()
                .await?;
            for item in output.items.unwrap_or_default() {
                let Some(IndexEntry { key, kid }) = decode_or_skip(item, "sealed item") else { continue };
                if let Some((organization, id)) = key.parse_sealed(sealed) {
                    found.push(SealedItem { organization, id, kid });
                } else {
                    tracing::error!(pk = key.pk, sk = key.sk, "unreadable sealed item skipped");
                }
            }
            start = output.last_evaluated_key;
            if start.is_none() {
                return Ok(found);
            }
        }
    }
}

use aws_sdk_dynamodb::types::AttributeValue;
use serde::Deserialize;

use super::{
    Store, StoreError, decode,
    table::{Key, SEALED_INDEX, Table},
};
use crate::domain::{Id, Kid};

/// How many items one look into the index finds.
const FOUND_AT_ONCE: i32 = 100;

/// What is kept sealed, each under a ring of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealedKind {
    ModelKeys,
    WebhookSecrets,
}

/// Where something sealed lies, and under which key of its ring, as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedItem {
    pub organization: Id,
    pub id: Id,
    pub kid: Kid,
}

#[derive(Deserialize)]
struct Found {
    #[serde(flatten)]
    key: Key,
    kid: Kid,
}

impl Store {
    /// What is sealed under any other key than this one, of every organization, whether a ring still holds that key or not. The index may be a
    /// moment behind: whoever takes one reads it afresh.
    pub async fn not_sealed_under(&self, of: SealedKind, kid: &Kid) -> Result<Vec<SealedItem>, StoreError> {
        let mut found = self.sealed_where(of, "kid < :kid", kid).await?;
        found.append(&mut self.sealed_where(of, "kid > :kid", kid).await?);
        Ok(found)
    }

    async fn sealed_where(&self, of: SealedKind, condition: &str, kid: &Kid) -> Result<Vec<SealedItem>, StoreError> {
        let (mut found, mut start) = (Vec::new(), None);
        loop {
            let output = self
                .client
                .query()
                .table_name(self.table(Table::Main))
                .index_name(SEALED_INDEX)
                .key_condition_expression(format!("sealed_shard = :pk AND {condition}"))
                .expression_attribute_values(":pk", AttributeValue::S(of.shard().to_owned()))
                .expression_attribute_values(":kid", AttributeValue::S(kid.to_string()))
                .set_exclusive_start_key(start)
                .limit(FOUND_AT_ONCE)
                .send()
                .await?;
            for item in output.items.unwrap_or_default() {
                let Found { key, kid } = decode(item)?;
                if let Some((organization, id)) = key.of_sealed(of) {
                    found.push(SealedItem { organization, id, kid });
                } else {
                    tracing::error!(?key, "nothing sealed lies there, whatever the index says");
                }
            }
            start = output.last_evaluated_key;
            if start.is_none() {
                return Ok(found);
            }
        }
    }
}

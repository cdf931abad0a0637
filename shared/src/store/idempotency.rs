use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{
    Conflict, Store, StoreError, Transaction,
    table::{Key, Table},
};
use crate::domain::Id;

/// A stored response, which is returned again for a repeated request. Its body is sealed under a
/// key that the server does not store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IdempotencyRecord {
    /// HMAC of the request's body, in base64. A repeated request must have the same fingerprint.
    pub fingerprint: String,
    pub status: u16,
    /// The sealed response body, in base64.
    pub sealed_body: String,
    /// Unix seconds after which the response is not returned again, because it reveals a secret.
    pub revealed_until: Option<i64>,
    /// The resource that the request created.
    pub resource_id: Id,
    /// Unix seconds after which the record counts as deleted. DynamoDB deletes it some time later.
    pub ttl: i64,
}

impl Store {
    /// Returns the record under `hash`. DynamoDB deletes expired records late, so the caller must
    /// check `ttl`. A service's record has no organization.
    pub async fn idempotency_record(
        &self,
        organization: Option<Id>,
        hash: &str,
    ) -> Result<Option<IdempotencyRecord>, StoreError> {
        self.get(Table::Main, Key::idempotency(organization, hash)).await
    }
}

impl Transaction {
    /// Stores a response, unless an unexpired record exists.
    pub fn remember(
        &mut self,
        organization: Option<Id>,
        hash: &str,
        record: &IdempotencyRecord,
        now_seconds: i64,
    ) -> Result<(), StoreError> {
        self.put(Table::Main, &Key::idempotency(organization, hash), record, Conflict::Remembered, |put| {
            put.condition_expression("attribute_not_exists(pk) OR #ttl <= :now")
                .expression_attribute_names("#ttl", "ttl")
                .expression_attribute_values(":now", AttributeValue::N(now_seconds.to_string()))
        })
    }
}

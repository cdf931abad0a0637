use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::types::KeysAndAttributes;

use super::{
    Item, Store, StoreError,
    table::{Key, Table},
};

/// Maximum number of keys in a `BatchGetItem` call, set by DynamoDB.
const MAX_KEYS: usize = 100;

pub(super) struct BatchKeys {
    pub(super) table: Table,
    pub(super) keys: Vec<Key>,
    /// The attributes to read; `None` reads all of them.
    pub(super) projection: Option<String>,
}

impl Store {
    /// Reads the existing items among `keys` consistently, in any order. `keys` must not contain
    /// duplicates.
    pub(super) async fn batch_get(&self, table: Table, keys: &[Key]) -> Result<Vec<Item>, StoreError> {
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(MAX_KEYS) {
            found.extend(self.batch_get_once([BatchKeys { table, keys: keys.to_vec(), projection: None }]).await?);
        }
        Ok(found)
    }

    /// Reads from several tables in one call of at most 100 keys.
    pub(super) async fn batch_get_once(
        &self,
        wanted: impl IntoIterator<Item = BatchKeys>,
    ) -> Result<Vec<Item>, StoreError> {
        let mut request = HashMap::new();
        for BatchKeys { table, keys, projection } in wanted {
            let keys_and_attributes = KeysAndAttributes::builder()
                .set_keys(Some(keys.iter().map(Key::attributes).collect()))
                .set_projection_expression(projection)
                .consistent_read(true)
                .build()
                .map_err(|error| StoreError::Fault(error.to_string()))?;
            request.insert(self.table(table).to_owned(), keys_and_attributes);
        }
        let mut found = Vec::new();
        // `BatchGetItem` leaves keys unprocessed when it is throttled or the response is full. The
        // SDK does not retry these keys.
        for pause in [10, 40, 160, 0].map(Duration::from_millis) {
            let output = self.client.batch_get_item().set_request_items(Some(request)).send().await?;
            found.extend(output.responses.unwrap_or_default().into_values().flatten());
            request = output.unprocessed_keys.unwrap_or_default();
            if request.is_empty() {
                return Ok(found);
            }
            tokio::time::sleep(pause).await;
        }
        Err(StoreError::Unavailable("BatchGetItem still leaves keys unprocessed".to_owned()))
    }
}

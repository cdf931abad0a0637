use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::types::KeysAndAttributes;

use super::{
    Item, Store, StoreError,
    table::{Key, Table},
};

/// How many keys a BatchGetItem takes.
const KEYS_AT_MOST: usize = 100;

/// What is wanted of one table.
pub(super) struct BatchKeys {
    pub(super) table: Table,
    pub(super) keys: Vec<Key>,
    /// The attributes, if not all.
    pub(super) projection: Option<String>,
}

impl Store {
    /// Those of the items that are there, in any order, read consistently. No key may come twice.
    pub(super) async fn batch_get(&self, table: Table, keys: &[Key]) -> Result<Vec<Item>, StoreError> {
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(KEYS_AT_MOST) {
            found.extend(self.batch_get_once([BatchKeys { table, keys: keys.to_vec(), projection: None }]).await?);
        }
        Ok(found)
    }

    /// The same over several tables, in one call; at most 100 keys.
    pub(super) async fn batch_get_once(
        &self,
        wanted: impl IntoIterator<Item = BatchKeys>,
    ) -> Result<Vec<Item>, StoreError> {
        let mut request = HashMap::new();
        for BatchKeys { table, keys, projection } in wanted {
            let asked = KeysAndAttributes::builder()
                .set_keys(Some(keys.iter().map(Key::attributes).collect()))
                .set_projection_expression(projection)
                .consistent_read(true)
                .build()
                .map_err(|error| StoreError::Fault(error.to_string()))?;
            request.insert(self.table(table).to_owned(), asked);
        }
        let mut found = Vec::new();
        // BatchGetItem may leave keys unread when it is throttled or the answer is full; the SDK does not ask again for those.
        for pause in [10, 40, 160, 0].map(Duration::from_millis) {
            let output = self.client.batch_get_item().set_request_items(Some(request)).send().await?;
            found.extend(output.responses.unwrap_or_default().into_values().flatten());
            request = output.unprocessed_keys.unwrap_or_default();
            if request.is_empty() {
                return Ok(found);
            }
            tokio::time::sleep(pause).await;
        }
        Err(StoreError::Unavailable("BatchGetItem keeps leaving keys unread".to_owned()))
    }
}

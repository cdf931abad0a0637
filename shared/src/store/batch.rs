use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::types::KeysAndAttributes;

use super::{
    Item, Store, StoreError,
    table::{Key, Table},
};

/// How many keys a BatchGetItem takes.
const KEYS_AT_MOST: usize = 100;

impl Store {
    /// Those of the items that are there, in any order, read consistently. No key may come twice.
    pub(super) async fn batch_get(&self, table: Table, keys: &[Key]) -> Result<Vec<Item>, StoreError> {
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(KEYS_AT_MOST) {
            let mut missing: Vec<_> = keys.iter().map(Key::attributes).collect();
            // BatchGetItem may leave keys unread when it is throttled or the answer is full; the SDK does not ask again for those.
            for pause in [10, 40, 160, 0].map(Duration::from_millis) {
                let (items, unread) = self.batch_get_once(table, missing).await?;
                found.extend(items);
                missing = unread;
                if missing.is_empty() {
                    break;
                }
                tokio::time::sleep(pause).await;
            }
            if !missing.is_empty() {
                return Err(StoreError::Unavailable("BatchGetItem keeps leaving keys unread".to_owned()));
            }
        }
        Ok(found)
    }

    async fn batch_get_once(&self, table: Table, keys: Vec<Item>) -> Result<(Vec<Item>, Vec<Item>), StoreError> {
        let table = self.table(table);
        let request = KeysAndAttributes::builder()
            .set_keys(Some(keys))
            .consistent_read(true)
            .build()
            .map_err(|error| StoreError::Fault(error.to_string()))?;
        let output = self
            .client
            .batch_get_item()
            .set_request_items(Some(HashMap::from([(table.to_owned(), request)])))
            .send()
            .await?;
        let found = output.responses.and_then(|mut tables| tables.remove(table)).unwrap_or_default();
        let unread = output.unprocessed_keys.and_then(|mut tables| tables.remove(table));
        Ok((found, unread.map(|unread| unread.keys).unwrap_or_default()))
    }
}

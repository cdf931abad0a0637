use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::types::KeysAndAttributes;

use super::{
    Item, Store, StoreError, decode,
    table::{Key, Table},
};
use crate::domain::{ApiKey, Id, Organization};

/// What decides whether a proven key is let in: read together, afresh, at every validation.
#[derive(Debug, Clone)]
pub struct Access {
    pub organization: Organization,
    pub api_key: ApiKey,
}

impl Store {
    /// The state behind a proven key, in one consistent BatchGetItem. A key is never deleted: where either item is not there, something is
    /// broken, and nothing is known of the key.
    pub async fn access(&self, organization: Id, api_key: Id) -> Result<Access, StoreError> {
        let wanted = [Key::organization(organization), Key::api_key(organization, api_key)];
        let mut missing = wanted.iter().map(Key::attributes).collect::<Vec<_>>();
        let (mut meta, mut key) = (None, None);
        // BatchGetItem may leave keys unread when it is throttled; the SDK does not ask again for those.
        for pause in [10, 40, 160, 0].map(Duration::from_millis) {
            let (found, unread) = self.batch_get(missing).await?;
            for item in found {
                match item.get("sk").and_then(|sk| sk.as_s().ok()) {
                    Some(sk) if *sk == wanted[0].sk => meta = Some(decode(item)?),
                    _ => key = Some(decode(item)?),
                }
            }
            missing = unread;
            if missing.is_empty() {
                let state = meta.zip(key).map(|(organization, api_key)| Access { organization, api_key });
                return state.ok_or_else(|| StoreError::Fault("a proven key has no state".to_owned()));
            }
            tokio::time::sleep(pause).await;
        }
        Err(StoreError::Unavailable("BatchGetItem keeps leaving keys unread".to_owned()))
    }

    async fn batch_get(&self, keys: Vec<Item>) -> Result<(Vec<Item>, Vec<Item>), StoreError> {
        let table = self.table(Table::Main);
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

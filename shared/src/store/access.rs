use super::{
    Store, StoreError, decode,
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
        let (mut meta, mut key) = (None, None);
        for item in self.batch_get(Table::Main, &wanted).await? {
            match item.get("sk").and_then(|sk| sk.as_s().ok()) {
                Some(sk) if *sk == wanted[0].sk => meta = Some(decode(item)?),
                _ => key = Some(decode(item)?),
            }
        }
        let state = meta.zip(key).map(|(organization, api_key)| Access { organization, api_key });
        state.ok_or_else(|| StoreError::Fault("a proven key has no state".to_owned()))
    }
}

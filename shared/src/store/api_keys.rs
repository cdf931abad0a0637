use std::time::Duration;

use aws_sdk_dynamodb::{error::ProvideErrorMetadata, types::AttributeValue};
use serde::Deserialize;

use super::{
    Conflict, Credential, Digest, Item, KeyOwner, Page, Store, StoreError, Transaction, decode,
    page::{Joined, Listing},
    table::{Key, Table, api_keys_partition, key_uses_partition, padded},
};
use crate::domain::{ApiKey, Id, Kind, Timestamp};

/// The last use of a key. It is a separate item, so that functions that record uses cannot write
/// anything that access depends on.
#[derive(Deserialize)]
struct KeyUse {
    last_used_at: Timestamp,
}

/// Sets the key's last use to the later of two times: the one in its `USED#` item and the one in
/// its own item, which keys from before `USED#` have.
///
/// An unreadable time counts as missing: roles that validate keys may write it, and it must not
/// prevent a revocation.
pub(super) fn join_use(key: &mut ApiKey, used: Option<Item>) {
    match used.map(decode).transpose() {
        Ok(used) => key.last_used_at = key.last_used_at.max(used.map(|KeyUse { last_used_at }| last_used_at)),
        Err(fault) => tracing::error!(api_key_id = key.id.get(), %fault, "unreadable time of last use skipped"),
    }
}

fn listing(organization: Id) -> Listing<ApiKey> {
    Listing {
        table: Table::Main,
        partition: api_keys_partition(organization),
        sort_key: padded,
        read: decode,
        skips_unreadable: false,
        id: |key: &ApiKey| key.id,
    }
}

impl Store {
    /// Returns a key with the time of its last use. One consistent `BatchGetItem`.
    pub async fn api_key(&self, organization: Id, id: Id) -> Result<Option<ApiKey>, StoreError> {
        let (state, used) = (Key::api_key(organization, id), Key::key_use(organization, id));
        let (mut key, mut last_use) = (None, None);
        for item in self.batch_get(Table::Main, &[state, used.clone()]).await? {
            let target = if Key::of_item(&item).as_ref() == Some(&used) { &mut last_use } else { &mut key };
            *target = Some(item);
        }
        let Some(mut key) = key.map(decode).transpose()? else { return Ok(None) };
        join_use(&mut key, last_use);
        Ok(Some(key))
    }

    /// Returns the organization's keys that match `keep`, newest first, without the times of their
    /// last use.
    pub async fn api_keys(
        &self,
        organization: Id,
        below: Option<Id>,
        limit: usize,
        keep: impl Fn(&ApiKey) -> bool,
    ) -> Result<Page<ApiKey>, StoreError> {
        self.page(listing(organization), below, limit, keep).await
    }

    /// Like [`api_keys`](Self::api_keys), with the times of their last use.
    pub async fn api_keys_with_uses(
        &self,
        organization: Id,
        below: Option<Id>,
        limit: usize,
        keep: impl Fn(&ApiKey) -> bool,
    ) -> Result<Page<ApiKey>, StoreError> {
        let uses = Joined {
            partition: key_uses_partition(organization),
            join: |key: &mut ApiKey, used| join_use(key, Some(used)),
        };
        self.page_joined(listing(organization), Some(uses), below, limit, keep).await
    }

    /// Records a use of the key at `now`, unless one less than `every` ago is recorded. Returns
    /// whether it wrote.
    pub async fn note_use(
        &self,
        organization: Id,
        key: Id,
        now: Timestamp,
        every: Duration,
    ) -> Result<bool, StoreError> {
        let text = |instant: Timestamp| AttributeValue::S(instant.to_string());
        let sent = self
            .client
            .update_item()
            .table_name(self.table(Table::Main))
            .set_key(Some(Key::key_use(organization, key).attributes()))
            .update_expression("SET last_used_at = :now")
            .condition_expression("attribute_not_exists(last_used_at) OR last_used_at <= :due")
            .expression_attribute_values(":now", text(now))
            .expression_attribute_values(":due", text(now.minus(every)))
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
    /// Creates a key with its credential, claims its id and counts it if it is a usable admin key.
    pub fn create_api_key(&mut self, organization: Id, key: &ApiKey, digest: Digest) -> Result<(), StoreError> {
        self.add_api_key(organization, key, digest)?;
        if key.is_usable_admin() { self.count_admin(organization) } else { Ok(()) }
    }

    /// Updates a key on behalf of `caller`, and the organization's count of usable admin keys,
    /// which never becomes zero.
    pub fn update_api_key(
        &mut self,
        organization: Id,
        caller: &ApiKey,
        before: &ApiKey,
        after: &ApiKey,
    ) -> Result<(), StoreError> {
        match (before.is_usable_admin(), after.is_usable_admin()) {
            (true, false) => self.discount_admin(organization)?,
            (false, true) => self.count_admin(organization)?,
            (true, true) | (false, false) => {}
        }
        self.replace_api_key(organization, caller, before, after)
    }

    /// Requires that the calling key is unchanged since it was read. For transactions that do not
    /// write that key.
    pub fn require_caller_unchanged(&mut self, organization: Id, caller: &ApiKey) -> Result<(), StoreError> {
        let key = Key::api_key(organization, caller.id);
        self.check_version(Table::Main, &key, caller.version, Conflict::CallerChanged)
    }

    /// Replaces a key with a successor on behalf of `caller`. The count of usable admin keys stays
    /// the same, because the successor has the key's permissions.
    pub fn rotate_api_key(
        &mut self,
        organization: Id,
        caller: &ApiKey,
        before: &ApiKey,
        after: &ApiKey,
        successor: &ApiKey,
        digest: Digest,
    ) -> Result<(), StoreError> {
        self.add_api_key(organization, successor, digest)?;
        self.replace_api_key(organization, caller, before, after)
    }

    /// Replaces a key's item. If the caller changes itself, the condition of this write covers it:
    /// DynamoDB accepts one operation per item.
    fn replace_api_key(
        &mut self,
        organization: Id,
        caller: &ApiKey,
        before: &ApiKey,
        after: &ApiKey,
    ) -> Result<(), StoreError> {
        if caller.id != after.id {
            self.require_caller_unchanged(organization, caller)?;
        }
        if before.expires_at != after.expires_at {
            self.schedule_expiry_notice(organization, after)?;
        }
        self.replace(Table::Main, &Key::api_key(organization, after.id), after, before.version)
    }

    fn add_api_key(&mut self, organization: Id, key: &ApiKey, digest: Digest) -> Result<(), StoreError> {
        let (api_key_id, lineage_id) = (key.id, key.lineage_id);
        let credential = Credential { organization_id: organization, api_key_id, lineage_id, digest };
        let owner = KeyOwner { organization_id: organization, api_key_id, lineage_id };
        self.insert(Table::Main, &Key::claimed_id(Kind::ApiKey, key.id), &owner, Conflict::IdTaken)?;
        self.insert(Table::Main, &Key::claimed_prefix(&key.prefix, key.id), &owner, Conflict::IdTaken)?;
        self.insert_credential(&key.prefix, &credential)?;
        self.schedule_expiry_notice(organization, key)?;
        self.insert(Table::Main, &Key::api_key(organization, key.id), key, Conflict::IdTaken)
    }

    /// Requires that the organization has another usable admin key than the one that rotates itself.
    pub fn require_another_admin(&mut self, organization: Id) -> Result<(), StoreError> {
        self.check(Table::Main, &Key::admins(organization), Conflict::LastAdminKeyGrace, |check| {
            check
                .condition_expression("usable > :one")
                .expression_attribute_values(":one", AttributeValue::N("1".to_owned()))
        })
    }

    fn count_admin(&mut self, organization: Id) -> Result<(), StoreError> {
        self.update(Table::Main, &Key::admins(organization), Conflict::Changed, |update| {
            update
                .update_expression("ADD usable :one")
                .expression_attribute_values(":one", AttributeValue::N("1".to_owned()))
        })
    }

    fn discount_admin(&mut self, organization: Id) -> Result<(), StoreError> {
        self.update(Table::Main, &Key::admins(organization), Conflict::LastAdminKey, |update| {
            update
                .update_expression("ADD usable :minus_one")
                .condition_expression("usable > :one")
                .expression_attribute_values(":minus_one", AttributeValue::N("-1".to_owned()))
                .expression_attribute_values(":one", AttributeValue::N("1".to_owned()))
        })
    }
}

use std::time::Duration;

use aws_sdk_dynamodb::{error::ProvideErrorMetadata, types::AttributeValue};

use super::{
    Conflict, Credential, Digest, KeyOwner, Page, Store, StoreError, Transaction, decode,
    page::Listing,
    table::{Key, Table, api_keys_partition, padded},
};
use crate::domain::{ApiKey, Id, Kind, Timestamp};

impl Store {
    pub async fn api_key(&self, organization: Id, id: Id) -> Result<Option<ApiKey>, StoreError> {
        self.get(Table::Main, Key::api_key(organization, id)).await
    }

    /// The organization's keys, newest first, of those that `keep` lets through.
    pub async fn api_keys(
        &self,
        organization: Id,
        below: Option<Id>,
        limit: usize,
        keep: impl Fn(&ApiKey) -> bool,
    ) -> Result<Page<ApiKey>, StoreError> {
        let partition = api_keys_partition(organization);
        let listing = Listing {
            table: Table::Main,
            partition,
            place: padded,
            read: decode,
            skips_unreadable: false,
            id: |key: &ApiKey| key.id,
        };
        self.page(listing, below, limit, keep).await
    }

    /// Writes that the key was used at `now`, unless it ended before or its last use is noted less than `every` ago.
    pub async fn note_use(&self, organization: Id, key: Id, now: Timestamp, every: Duration) -> Result<(), StoreError> {
        let text = |instant: Timestamp| AttributeValue::S(instant.to_string());
        let sent = self
            .client
            .update_item()
            .table_name(self.table(Table::Main))
            .set_key(Some(Key::api_key(organization, key).attributes()))
            .update_expression("SET last_used_at = :now")
            .condition_expression(
                "attribute_exists(pk) AND attribute_not_exists(revoked_at) \
                 AND (attribute_not_exists(expires_at) OR expires_at > :now) \
                 AND (attribute_not_exists(last_used_at) OR last_used_at <= :due)",
            )
            .expression_attribute_values(":now", text(now))
            .expression_attribute_values(":due", text(now.minus(every)))
            .send()
            .await;
        match sent {
            Err(error) if error.code() != Some("ConditionalCheckFailedException") => Err(error.into()),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

impl Transaction {
    /// A new key: its id claimed, its credential beside it, counted if it may administer.
    pub fn create_api_key(&mut self, organization: Id, key: &ApiKey, digest: Digest) -> Result<(), StoreError> {
        self.add_api_key(organization, key, digest)?;
        if key.is_usable_admin() { self.count_admin(organization) } else { Ok(()) }
    }

    /// A key that `caller` changed, and with it the organization's count of usable admin keys, which never falls to zero.
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

    /// Makes the transaction hang on the calling key's state as it was read, for a key that it does not write itself.
    pub fn while_unchanged(&mut self, organization: Id, caller: &ApiKey) -> Result<(), StoreError> {
        let key = Key::api_key(organization, caller.id);
        self.check_version(Table::Main, &key, caller.version, Conflict::CallerChanged)
    }

    /// A key that gave way to a successor at `caller`'s wish, and its successor. The count of usable admin keys stays: the successor may what the key could.
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

    /// A key that changes itself is held by the condition of its own write: one transaction takes one operation per item.
    fn replace_api_key(
        &mut self,
        organization: Id,
        caller: &ApiKey,
        before: &ApiKey,
        after: &ApiKey,
    ) -> Result<(), StoreError> {
        if caller.id != after.id {
            self.while_unchanged(organization, caller)?;
        }
        if before.expires_at != after.expires_at {
            self.notice_expiry(organization, after)?;
        }
        let key = Key::api_key(organization, after.id);
        // The whole item is put: a use that was noted meanwhile must not be lost either.
        self.put(Table::Main, &key, after, Conflict::Changed, |put| {
            let put = put.expression_attribute_values(":read", AttributeValue::N(before.version.to_string()));
            match before.last_used_at {
                None => put.condition_expression("version = :read AND attribute_not_exists(last_used_at)"),
                Some(used) => put
                    .condition_expression("version = :read AND last_used_at = :used")
                    .expression_attribute_values(":used", AttributeValue::S(used.to_string())),
            }
        })
    }

    fn add_api_key(&mut self, organization: Id, key: &ApiKey, digest: Digest) -> Result<(), StoreError> {
        let (api_key_id, counted_as) = (key.id, key.counted_as);
        let credential = Credential { organization_id: organization, api_key_id, counted_as, digest };
        let owner = KeyOwner { organization_id: organization, api_key_id, counted_as };
        self.insert(Table::Main, &Key::claimed_id(Kind::ApiKey, key.id), &owner, Conflict::IdTaken)?;
        self.insert(Table::Main, &Key::claimed_prefix(&key.prefix, key.id), &owner, Conflict::IdTaken)?;
        self.insert_credential(&key.prefix, &credential)?;
        self.notice_expiry(organization, key)?;
        self.insert(Table::Main, &Key::api_key(organization, key.id), key, Conflict::IdTaken)
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

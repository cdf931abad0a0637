use std::collections::HashMap;

use super::{
    Item, OrganizationBudget, Store, StoreError,
    api_keys::join_use,
    batch::BatchKeys,
    counters::{read_totals, totals_projection},
    decode,
    table::{Key, Table},
};
use crate::domain::{ApiKey, Id, Organization, Spending, Tally, Timestamp};

/// The state that decides whether a proven key has access. It is read again for every decision.
#[derive(Debug, Clone)]
pub struct KeyState {
    pub organization: Organization,
    pub api_key: ApiKey,
}

impl Store {
    /// Reads the state of a proven key in one consistent `BatchGetItem`. Keys are never deleted: a
    /// missing key or organization is a fault.
    pub async fn access(&self, organization: Id, api_key: Id) -> Result<KeyState, StoreError> {
        self.key_access(organization, api_key, None).await
    }

    /// Like [`access`](Self::access), with the time of the key's last use.
    pub async fn access_with_use(&self, organization: Id, api_key: Id) -> Result<KeyState, StoreError> {
        self.key_access(organization, api_key, Some(Key::key_use(organization, api_key))).await
    }

    /// Like [`access`](Self::access), for a key id that was not proven, such as the `akid` of a
    /// session token. Returns `None` if the key or the organization does not exist.
    pub async fn find_access(&self, organization: Id, api_key: Id) -> Result<Option<KeyState>, StoreError> {
        let keys = [Key::organization(organization), Key::api_key(organization, api_key)];
        find_key_state(&mut by_key(self.batch_get(Table::Main, &keys).await?), &keys)
    }

    async fn key_access(&self, organization: Id, api_key: Id, last_use: Option<Key>) -> Result<KeyState, StoreError> {
        let required = [Key::organization(organization), Key::api_key(organization, api_key)];
        let keys: Vec<_> = required.iter().chain(&last_use).cloned().collect();
        let mut found = by_key(self.batch_get(Table::Main, &keys).await?);
        let mut key_state = take_key_state(&mut found, &required)?;
        if let Some(last_use) = last_use {
            join_use(&mut key_state.api_key, found.remove(&last_use));
        }
        Ok(key_state)
    }

    /// Like [`access`](Self::access), with the spending that decides whether the key may spend: the
    /// budgets and this month's counters of the organization and of the key lineage `lineage_id`.
    /// Also one `BatchGetItem`.
    pub async fn access_to_spend(
        &self,
        organization: Id,
        api_key: Id,
        lineage_id: Id,
        now: Timestamp,
    ) -> Result<(KeyState, Spending), StoreError> {
        self.spending_access(organization, api_key, lineage_id, now, None).await
    }

    /// Like [`access_to_spend`](Self::access_to_spend), with the time of the key's last use, for a
    /// process that may have to update it.
    pub async fn access_to_use(
        &self,
        organization: Id,
        api_key: Id,
        lineage_id: Id,
        now: Timestamp,
    ) -> Result<(KeyState, Spending), StoreError> {
        let used = Key::key_use(organization, api_key);
        self.spending_access(organization, api_key, lineage_id, now, Some(used)).await
    }

    async fn spending_access(
        &self,
        organization: Id,
        api_key: Id,
        lineage_id: Id,
        now: Timestamp,
        last_use: Option<Key>,
    ) -> Result<(KeyState, Spending), StoreError> {
        let month = now.month();
        let required = [Key::organization(organization), Key::api_key(organization, api_key)];
        let budget = Key::budget(organization);
        let totals = Key::usage_totals(organization, month);
        let used = Key::usage_of_key(organization, lineage_id, month);
        let main = required.iter().chain([&budget]).chain(&last_use).cloned().collect();
        let usage = vec![totals.clone(), used.clone()];
        let found = self.batch_get_once([
            BatchKeys { table: Table::Main, keys: main, projection: None },
            BatchKeys { table: Table::Usage, keys: usage, projection: Some(totals_projection()) },
        ]);
        let mut found = by_key(found.await?);
        let mut key_state = take_key_state(&mut found, &required)?;
        if let Some(last_use) = last_use {
            join_use(&mut key_state.api_key, found.remove(&last_use));
        }
        let kept = found.remove(&budget).map(decode::<OrganizationBudget>).transpose()?;
        let mut tally = |key: &Key| found.remove(key).map_or(Ok(Tally::default()), |item| read_totals(&item));
        let spending = Spending {
            organization_budget: kept.map(|kept| kept.budget),
            organization: tally(&totals)?,
            key_budget: key_state.api_key.budget.clone(),
            key: tally(&used)?,
        };
        Ok((key_state, spending))
    }
}

pub(super) fn by_key(items: Vec<Item>) -> HashMap<Key, Item> {
    items.into_iter().filter_map(|item| Some((Key::of_item(&item)?, item))).collect()
}

pub(super) fn take_key_state(found: &mut HashMap<Key, Item>, keys: &[Key; 2]) -> Result<KeyState, StoreError> {
    find_key_state(found, keys)?.ok_or_else(|| {
        let id = keys[1].sk.trim_start_matches('0');
        StoreError::Fault(format!("API key {id} or its organization is missing"))
    })
}

fn find_key_state(
    found: &mut HashMap<Key, Item>,
    [organization, api_key]: &[Key; 2],
) -> Result<Option<KeyState>, StoreError> {
    let (Some(organization_item), Some(api_key_item)) = (found.remove(organization), found.remove(api_key)) else {
        return Ok(None);
    };
    Ok(Some(KeyState { organization: decode(organization_item)?, api_key: decode(api_key_item)? }))
}

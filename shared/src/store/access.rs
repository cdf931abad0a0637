use std::collections::HashMap;

use super::{
    Item, OrganizationBudget, Store, StoreError,
    batch::Wanted,
    decode,
    table::{Key, Table},
    usage::{read_totals, totals_projection},
};
use crate::domain::{ApiKey, Id, Organization, Spending, Tally, Timestamp};

/// What decides whether a proven key is let in, and whether it may spend: read together, afresh, at every validation.
#[derive(Debug, Clone)]
pub struct Access {
    pub organization: Organization,
    pub api_key: ApiKey,
    pub spending: Spending,
}

impl Store {
    /// The state behind a proven key whose usage counts as `counted_as`, with this month's counters, in one consistent BatchGetItem. A key is
    /// never deleted: where it or its organization is not there, something is broken, and nothing is known of the key.
    pub async fn access(
        &self,
        organization: Id,
        api_key: Id,
        counted_as: Id,
        now: Timestamp,
    ) -> Result<Access, StoreError> {
        let month = now.month();
        let (meta, key) = (Key::organization(organization), Key::api_key(organization, api_key));
        let (budget, totals) = (Key::budget(organization), Key::usage_totals(organization, month));
        let used = Key::usage_of_key(organization, counted_as, month);
        let found = self
            .batch_get_once([
                Wanted { table: Table::Main, keys: vec![meta.clone(), key.clone(), budget.clone()], projection: None },
                Wanted {
                    table: Table::Usage,
                    keys: vec![totals.clone(), used.clone()],
                    projection: Some(totals_projection()),
                },
            ])
            .await?;
        let mut found: HashMap<Key, Item> =
            found.into_iter().filter_map(|item| Some((Key::of_item(&item)?, item))).collect();
        let (Some(organization), Some(api_key)) = (found.remove(&meta), found.remove(&key)) else {
            return Err(StoreError::Fault("a proven key has no state".to_owned()));
        };
        let (organization, api_key): (Organization, ApiKey) = (decode(organization)?, decode(api_key)?);
        let mut tally = |key: &Key| found.remove(key).map_or(Ok(Tally::default()), |item| read_totals(&item));
        let spending = Spending {
            organization: tally(&totals)?,
            key: tally(&used)?,
            organization_budget: found
                .remove(&budget)
                .map(decode::<OrganizationBudget>)
                .transpose()?
                .map(|kept| kept.budget),
            key_budget: api_key.budget.clone(),
        };
        Ok(Access { organization, api_key, spending })
    }
}

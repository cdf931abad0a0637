use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{
    Conflict, Queue, Store, StoreError, Transaction,
    decode::decode_or_skip,
    outbox::Scheduled,
    table::{Key, Table},
};
use crate::domain::{ApiKey, Budget, BudgetWatch, Id, Timestamp};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrganizationBudget {
    pub budget: Budget,
    /// Number of changes. A write that depends on a read is conditional on it.
    pub version: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetSubject {
    Organization,
    /// A key lineage, by the id of its first key.
    Key(Id),
}

/// A scheduled check of budgets against the spending.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BudgetCheck {
    pub organization_id: Id,
    #[serde(default)]
    pub api_keys: BTreeSet<Id>,
    /// Changes each time that keys are added to the check.
    pub stamp: u64,
}

#[derive(Serialize)]
struct BudgetCheckItem<'a> {
    organization_id: Id,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    api_keys: &'a BTreeSet<Id>,
    stamp: u64,
}

impl BudgetCheck {
    /// The sort key of the pending check, in which keys accumulate.
    pub const PENDING_SORT_KEY: &str = "CHECK";

    /// Returns the sort key of the check while a worker processes it.
    pub fn claimed_sort_key(&self) -> String {
        format!("LOOK#{}", self.stamp)
    }
}

impl Store {
    pub async fn budget(&self, organization: Id) -> Result<Option<OrganizationBudget>, StoreError> {
        self.get(Table::Main, Key::budget(organization)).await
    }

    pub async fn budget_watch(
        &self,
        organization: Id,
        subject: BudgetSubject,
    ) -> Result<Option<BudgetWatch>, StoreError> {
        self.get(Table::Outbox, Key::budget_watch(organization, subject)).await
    }

    /// Returns the newest key of each lineage that `keys` belong to. Its budget applies to the
    /// lineage. Lineages with an unreadable key are omitted.
    pub async fn newest_api_keys(&self, organization: Id, keys: &BTreeSet<Id>) -> Result<Vec<ApiKey>, StoreError> {
        let (mut newest, mut wanted, mut seen) = (BTreeMap::new(), keys.clone(), BTreeSet::new());
        while !wanted.is_empty() {
            let state_keys: Vec<_> = wanted.iter().map(|id| Key::api_key(organization, *id)).collect();
            seen.append(&mut wanted);
            for item in self.batch_get(Table::Main, &state_keys).await? {
                let Some(key) = decode_or_skip::<ApiKey>(item, "API key") else { continue };
                match key.replaced_by {
                    Some(successor) if !seen.contains(&successor) => drop(wanted.insert(successor)),
                    Some(_) => {}
                    None => drop(newest.insert(key.lineage_id, key)),
                }
            }
        }
        Ok(newest.into_values().collect())
    }

    pub async fn budget_check(&self, organization: Id, sk: &str) -> Result<Option<BudgetCheck>, StoreError> {
        self.get(Table::Outbox, Key::due(Queue::BudgetChecks, organization, sk)).await
    }
}

impl Transaction {
    /// Stores an organization's budget. `before` is the budget that was read, if any.
    pub fn put_budget(
        &mut self,
        organization: Id,
        before: Option<&OrganizationBudget>,
        budget: &Budget,
    ) -> Result<(), StoreError> {
        let version = before.map_or(0, |before| before.version);
        let after = OrganizationBudget { budget: budget.clone(), version: version + 1 };
        match before {
            Some(_) => self.replace(Table::Main, &Key::budget(organization), &after, version),
            None => self.insert(Table::Main, &Key::budget(organization), &after, Conflict::Changed),
        }
    }

    /// Stores which events were published about a budget. `watch.version` is the version that was
    /// read, or 0 if there was none.
    pub fn put_budget_watch(
        &mut self,
        organization: Id,
        subject: BudgetSubject,
        watch: &BudgetWatch,
    ) -> Result<(), StoreError> {
        let key = Key::budget_watch(organization, subject);
        let after = BudgetWatch { version: watch.version + 1, ..watch.clone() };
        match watch.version {
            0 => self.insert(Table::Outbox, &key, &after, Conflict::Changed),
            read => self.replace(Table::Outbox, &key, &after, read),
        }
    }

    /// Moves a check aside while a worker processes it, so that new keys accumulate in another
    /// check. If the worker is interrupted, the check is due again at `again`.
    pub fn claim_budget_check(&mut self, check: &BudgetCheck, again: Timestamp) -> Result<(), StoreError> {
        self.finish_budget_check(check, BudgetCheck::PENDING_SORT_KEY)?;
        let item =
            BudgetCheckItem { organization_id: check.organization_id, api_keys: &check.api_keys, stamp: check.stamp };
        let key = Key::due(Queue::BudgetChecks, check.organization_id, &check.claimed_sort_key());
        let due_shard = Queue::BudgetChecks.shard(check.organization_id);
        self.put(Table::Outbox, &key, &Scheduled { item: &item, due_shard, due_at: again }, Conflict::Changed, |put| {
            put
        })
    }

    /// Deletes a check, unless keys were added since it was read.
    pub fn finish_budget_check(&mut self, check: &BudgetCheck, sk: &str) -> Result<(), StoreError> {
        let key = Key::due(Queue::BudgetChecks, check.organization_id, sk);
        self.delete(Table::Outbox, &key, Conflict::Changed, |delete| {
            delete
                .condition_expression("stamp = :read")
                .expression_attribute_values(":read", AttributeValue::N(check.stamp.to_string()))
        })
    }
}

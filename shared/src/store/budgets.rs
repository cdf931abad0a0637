use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{
    Conflict, Queue, Store, StoreError, Transaction, decode,
    outbox::Scheduled,
    table::{Key, Table},
};
use crate::domain::{ApiKey, Budget, BudgetWatch, Id, Timestamp};

/// An organization's budget as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrganizationBudget {
    pub budget: Budget,
    /// Counts changes: a write that depends on a read is conditional on it.
    pub version: u64,
}

/// Whose budget is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetSubject {
    Organization,
    /// A line of keys, by its first.
    Key(Id),
}

/// The wish to have budgets held against what was spent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BudgetCheck {
    pub organization_id: Id,
    #[serde(default)]
    pub api_keys: BTreeSet<Id>,
    /// Changes with every further wish.
    pub stamp: u64,
}

#[derive(Serialize)]
struct Wish<'a> {
    organization_id: Id,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    api_keys: &'a BTreeSet<Id>,
    stamp: u64,
}

impl BudgetCheck {
    /// Where new wishes gather.
    pub const GATHERED: &str = "CHECK";

    /// Where it lies while it is looked at.
    pub fn place_aside(&self) -> String {
        format!("LOOK#{}", self.stamp)
    }
}

impl Store {
    /// `None` where none was ever set.
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

    /// The newest keys of the lines that these belong to: whose budgets count.
    pub async fn newest_api_keys(&self, organization: Id, keys: &BTreeSet<Id>) -> Result<Vec<ApiKey>, StoreError> {
        let (mut newest, mut wanted, mut seen) = (BTreeMap::new(), keys.clone(), BTreeSet::new());
        while !wanted.is_empty() {
            let places: Vec<_> = wanted.iter().map(|id| Key::api_key(organization, *id)).collect();
            seen.append(&mut wanted);
            for item in self.batch_get(Table::Main, &places).await? {
                let key: ApiKey = decode(item)?;
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
    /// An organization's budget in the place of the one that was read, or of none.
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

    /// What was told of a budget by now. `watch.version` is that of the one that was read, 0 if there was none.
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

    /// Puts a wish aside while it is looked at, so that new ones gather apart; if the look is cut off, it is found again at `again`.
    pub fn put_budget_check_aside(&mut self, check: &BudgetCheck, again: Timestamp) -> Result<(), StoreError> {
        self.settle_budget_check(check, BudgetCheck::GATHERED)?;
        let item = Wish { organization_id: check.organization_id, api_keys: &check.api_keys, stamp: check.stamp };
        let key = Key::due(Queue::BudgetChecks, check.organization_id, &check.place_aside());
        let due_shard = Queue::BudgetChecks.shard(check.organization_id);
        self.put(Table::Outbox, &key, &Scheduled { item: &item, due_shard, due_at: again }, Conflict::Changed, |put| {
            put
        })
    }

    /// Takes a wish away, unless another one joined it since it was read.
    pub fn settle_budget_check(&mut self, check: &BudgetCheck, sk: &str) -> Result<(), StoreError> {
        let key = Key::due(Queue::BudgetChecks, check.organization_id, sk);
        self.delete(Table::Outbox, &key, Conflict::Changed, |delete| {
            delete
                .condition_expression("stamp = :read")
                .expression_attribute_values(":read", AttributeValue::N(check.stamp.to_string()))
        })
    }
}

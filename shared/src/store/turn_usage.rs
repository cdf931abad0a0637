//! The usage of a turn, counted in the transaction that ends the turn.
//!
//! A caller reads the items of [`KnownCounters::keys`], together with what else it reads, and
//! stages [`Transaction::count_usage`]. After [`Conflict::Changed`](super::Conflict::Changed) it
//! reads them again.

use std::collections::{BTreeMap, HashMap};

use super::{
    Item, Reservation, Store, StoreError, Transaction,
    committed::Holds,
    counters::{Inline, Models},
    table::{Key, Table},
    usage::{Batch, HeldByTurn, LineageMonth, assign_counters},
};
use crate::domain::{Id, Month, Spending, Tally, Timestamp, UsageEvent};

/// The counters of an organization and of a key lineage in a month, as they were read: their models,
/// and the amounts that running turns hold.
#[derive(Debug, Clone)]
pub struct KnownCounters {
    lineage: LineageMonth,
    models: Models,
    inline: Inline,
    held_by_organization: Holds,
    held_by_key: Holds,
}

impl KnownCounters {
    /// Returns the keys of the items to read, in [`Table::Usage`].
    pub fn keys(organization: Id, lineage_id: Id, month: Month) -> [Key; 3] {
        [
            Key::usage_models(organization, month),
            Key::usage_totals(organization, month),
            Key::usage_of_key(organization, lineage_id, month),
        ]
    }

    /// Reads the items of [`keys`](Self::keys) among `items`. Absent items are empty.
    pub(super) fn read<'a>(
        organization: Id,
        lineage_id: Id,
        month: Month,
        items: impl IntoIterator<Item = &'a Item>,
    ) -> Result<Self, StoreError> {
        let mut found: HashMap<_, _> = items.into_iter().filter_map(|item| Some((Key::of_item(item)?, item))).collect();
        let absent = Item::new();
        let [models, totals, of_key] =
            Self::keys(organization, lineage_id, month).map(|key| found.remove(&key).unwrap_or(&absent));
        Ok(Self {
            lineage: (month, lineage_id),
            models: Models::read(models),
            inline: Inline::read(of_key),
            held_by_organization: Holds::read(totals)?,
            held_by_key: Holds::read(of_key)?,
        })
    }

    /// Returns the organization's and the key's committed numbers: what they have spent, plus what
    /// running turns hold.
    pub fn with_holds_of_turns(&self, spending: &Spending) -> (Tally, Tally) {
        (self.held_by_organization.added_to(spending.organization), self.held_by_key.added_to(spending.key))
    }

    /// Returns whether a turn holds anything. It reserves before it calls its provider.
    pub fn has_holds(&self, reservation: &Reservation) -> bool {
        let holds = [&self.held_by_organization, &self.held_by_key];
        holds.iter().any(|holds| !holds.get(reservation.attribute()).is_zero())
    }

    /// Replaces what a turn was read to hold with the amounts of its reservation, which are newer.
    #[must_use]
    pub fn with_holds(mut self, reservation: &Reservation) -> Self {
        self.held_by_organization.set(reservation.attribute(), reservation.held_by_organization);
        self.held_by_key.set(reservation.attribute(), reservation.held_by_key);
        self
    }
}

impl Store {
    /// Reads the counters for a caller that reads nothing else.
    pub async fn known_counters(
        &self,
        organization: Id,
        lineage_id: Id,
        month: Month,
    ) -> Result<KnownCounters, StoreError> {
        let items = self.batch_get(Table::Usage, &KnownCounters::keys(organization, lineage_id, month)).await?;
        KnownCounters::read(organization, lineage_id, month, &items)
    }
}

impl Transaction {
    /// Stages usage events of a turn, their counters and a budget check, and releases all that
    /// the turn holds according to `known`. At most four events, of the lineage and month of
    /// `known`: at most ten writes.
    ///
    /// An event that was counted before fails the transaction with
    /// [`Conflict::EventCounted`](super::Conflict::EventCounted). If another writer added a model, or
    /// the turn holds another amount than `known` says, it fails with
    /// [`Conflict::Changed`](super::Conflict::Changed).
    pub fn count_usage(
        &mut self,
        organization: Id,
        events: &[UsageEvent],
        known: &KnownCounters,
        reservation: Option<&Reservation>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let models = BTreeMap::from([(known.lineage.0, known.models.clone())]);
        let inline = HashMap::from([(known.lineage, known.inline.clone())]);
        let mut batch = Batch::default();
        for assigned in assign_counters(events.to_vec(), &models, inline) {
            batch.push(assigned);
        }
        let held = reservation.map(|reservation| HeldByTurn {
            by_organization: known.held_by_organization.get(reservation.attribute()),
            by_key: known.held_by_key.get(reservation.attribute()),
            reservation,
        });
        batch.stage(self, organization, &models, held.as_ref(), now)?;
        Ok(())
    }
}

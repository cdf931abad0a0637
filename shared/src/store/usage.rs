//! Usage events, which count once, and the counters that sum them. Both are written in one
//! transaction.
//!
//! The month of an organization has three kinds of items:
//!
//! 1. Its totals and days. Every validation reads this item, so it stays small.
//! 2. The list of its models, which numbers them.
//! 3. The counters of its models, several models in an item.
//!
//! The month of a key lineage has its totals, its days and its first models in one item, and its
//! other models in items like the organization's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
};

use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_dynamodb::types::AttributeValue;
use serde::Serialize;

use super::{
    Amount, Conflict, Item, Reservation, Store, StoreError, Transaction,
    counters::{
        CounterPart, Inline, MODEL_ITEMS, Models, Sums, further_items, item_of_model, read_counters, read_totals,
    },
    credentials::MAX_CANDIDATES,
    decode,
    table::{Key, Table},
};
use crate::domain::{Id, Month, MonthUsage, Prefix, Tally, Timestamp, UsageEvent};

/// Maximum number of writes in a transaction, set by DynamoDB.
const MAX_WRITES: usize = 100;
/// How long an event is kept to detect duplicates: longer than the age of the oldest accepted
/// event.
const EVENT_RETENTION: std::time::Duration = std::time::Duration::from_hours(402 * 24);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ingested {
    pub accepted: usize,
    /// Duplicates within this batch or of events that were counted before.
    pub duplicates: usize,
}

/// The owner of a key, as stored in its `ID#api_key#` and `PX#` items. It is immutable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct KeyOwner {
    pub organization_id: Id,
    #[serde(rename = "id")]
    pub api_key_id: Id,
    #[serde(rename = "counted_as")]
    pub lineage_id: Id,
}

impl Store {
    /// Returns the owners of these keys. Keys that do not exist are omitted.
    pub async fn key_owners(&self, keys: &BTreeSet<Id>) -> Result<HashMap<Id, KeyOwner>, StoreError> {
        let mut owners = HashMap::with_capacity(keys.len());
        let wanted: Vec<_> = keys.iter().map(|id| Key::claimed_id(crate::domain::Kind::ApiKey, *id)).collect();
        for item in self.batch_get(Table::Main, &wanted).await? {
            let owner: KeyOwner = decode(item)?;
            owners.insert(owner.api_key_id, owner);
        }
        Ok(owners)
    }

    /// Returns the owners of keys with this prefix, as many as a validation compares. More than one means
    /// that the prefix is ambiguous.
    pub async fn key_owners_by_prefix(&self, prefix: &Prefix) -> Result<Vec<KeyOwner>, StoreError> {
        let output = self
            .client
            .query()
            .table_name(self.table(Table::Main))
            .key_condition_expression("pk = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(Key::prefix_partition(prefix)))
            .consistent_read(true)
            .limit(MAX_CANDIDATES)
            .send()
            .await?;
        output.items.unwrap_or_default().into_iter().map(decode).collect()
    }

    /// Counts events of an organization, each once. Events that were counted before an error stay
    /// counted: sending the same batch again counts the rest.
    pub async fn ingest(
        &self,
        organization: Id,
        events: Vec<UsageEvent>,
        now: Timestamp,
    ) -> Result<Ingested, StoreError> {
        let mut ingested = Ingested::default();
        let mut seen = HashSet::with_capacity(events.len());
        let (fresh, repeated): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|event| seen.insert(event.client_event_id.clone()));
        ingested.duplicates += repeated.len();
        let months = fresh.iter().map(|event| event.occurred_at.month());
        let (mut models, lineages) = self.load_models(organization, months, fresh.iter().map(lineage_month)).await?;
        for batch in Batch::pack(assign_counters(fresh, &models, lineages)) {
            ingested += self.commit_batch(organization, batch, &mut models, now).await?;
        }
        Ok(ingested)
    }

    /// Commits one transaction. Retries without the events that turn out to be counted already.
    async fn commit_batch(
        &self,
        organization: Id,
        mut batch: Batch,
        models: &mut BTreeMap<Month, Models>,
        now: Timestamp,
    ) -> Result<Ingested, StoreError> {
        let mut ingested = Ingested::default();
        while !batch.events.is_empty() {
            let mut transaction = self.transaction();
            let after = batch.stage(&mut transaction, organization, models, None, now)?;
            let failed = transaction.attempt().await?;
            if failed.is_empty() {
                ingested.accepted += batch.events.len();
                models.extend(after);
                return Ok(ingested);
            }
            let counted: HashSet<_> = failed.iter().copied().filter(|member| *member < batch.events.len()).collect();
            if counted.len() < failed.len() {
                // Another writer added a model: read the lists again.
                models.extend(self.load_models(organization, batch.months.keys().copied(), []).await?.0);
            }
            ingested.duplicates += counted.len();
            batch = batch.without(&counted);
        }
        Ok(ingested)
    }

    /// Returns the model list of each month, empty if it has none, and the inline models of each
    /// key lineage that has an item.
    async fn load_models(
        &self,
        organization: Id,
        months: impl IntoIterator<Item = Month>,
        lineages: impl IntoIterator<Item = LineageMonth>,
    ) -> Result<(BTreeMap<Month, Models>, HashMap<LineageMonth, Inline>), StoreError> {
        let lists: HashMap<_, _> =
            months.into_iter().map(|month| (Key::usage_models(organization, month), month)).collect();
        let lineages: HashMap<_, _> = lineages
            .into_iter()
            .map(|lineage| (Key::usage_of_key(organization, lineage.1, lineage.0), lineage))
            .collect();
        let wanted: Vec<_> = lists.keys().chain(lineages.keys()).cloned().collect();
        let mut models: BTreeMap<_, _> = lists.values().map(|month| (*month, Models::default())).collect();
        let mut inline = HashMap::with_capacity(lineages.len());
        for item in self.batch_get(Table::Usage, &wanted).await? {
            let Some(key) = Key::of_item(&item) else { continue };
            if let Some(month) = lists.get(&key) {
                models.insert(*month, Models::read(&item));
            } else if let Some(lineage) = lineages.get(&key) {
                inline.insert(*lineage, Inline::read(&item));
            }
        }
        Ok((models, inline))
    }

    pub async fn usage_totals(&self, organization: Id, month: Month) -> Result<Tally, StoreError> {
        let found = self.batch_get(Table::Usage, &[Key::usage_totals(organization, month)]).await?;
        found.first().map_or(Ok(Tally::default()), read_totals)
    }

    /// Returns the usage totals of these key lineages in a month, or `None` for unreadable ones.
    /// Lineages without usage are omitted.
    pub async fn usage_totals_of_keys(
        &self,
        organization: Id,
        month: Month,
        lineage_ids: &BTreeSet<Id>,
    ) -> Result<HashMap<Id, Option<Tally>>, StoreError> {
        let keys: HashMap<_, _> =
            lineage_ids.iter().map(|id| (Key::usage_of_key(organization, *id, month), *id)).collect();
        let items = self.batch_get(Table::Usage, &keys.keys().cloned().collect::<Vec<_>>()).await?;
        let of_key = |item: &Item| Key::of_item(item).and_then(|key| keys.get(&key).copied());
        let totals = |item: &Item| {
            let lineage_id = of_key(item)?;
            let totals = read_totals(item).inspect_err(|fault| {
                tracing::error!(organization_id = organization.get(), %lineage_id, %fault, "unreadable usage skipped");
            });
            Some((lineage_id, totals.ok()))
        };
        Ok(items.iter().filter_map(totals).collect())
    }

    /// Returns an organization's usage of a month, with days and models.
    pub async fn usage(&self, organization: Id, month: Month) -> Result<MonthUsage, StoreError> {
        let named = Key::usage_models(organization, month);
        let mut wanted = vec![Key::usage_totals(organization, month), named.clone()];
        wanted.extend((0..MODEL_ITEMS).map(|number| Key::usage_by_model(organization, month, number)));
        let items = self.batch_get(Table::Usage, &wanted).await?;
        let models = items.iter().find(|item| Key::of_item(item).as_ref() == Some(&named));
        let models = models.map(Models::read).unwrap_or_default();
        let mut usage = MonthUsage::default();
        for item in items {
            read_counters(&item, &models, &mut usage)?;
        }
        Ok(usage)
    }

    /// Returns the usage of these key lineages in a month, with days and models. Lineages without
    /// usage are omitted.
    pub async fn usage_of_keys(
        &self,
        organization: Id,
        month: Month,
        lineage_ids: &BTreeSet<Id>,
    ) -> Result<HashMap<Id, MonthUsage>, StoreError> {
        if lineage_ids.is_empty() {
            return Ok(HashMap::new());
        }
        let named = Key::usage_models(organization, month);
        let mut keys: HashMap<_, _> =
            lineage_ids.iter().map(|id| (Key::usage_of_key(organization, *id, month), *id)).collect();
        let wanted: Vec<_> = keys.keys().chain([&named]).cloned().collect();
        let mut items = self.batch_get(Table::Usage, &wanted).await?;
        let mut more = Vec::new();
        for item in &items {
            if let Some(id) = Key::of_item(item).and_then(|key| keys.get(&key).copied()) {
                let further = further_items(item).into_iter();
                more.extend(further.map(|number| (Key::usage_of_key_by_model(organization, id, month, number), id)));
            }
        }
        items.extend(self.batch_get(Table::Usage, &more.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>()).await?);
        keys.extend(more);
        let models = items.iter().find(|item| Key::of_item(item).as_ref() == Some(&named));
        let models = models.map(Models::read).unwrap_or_default();
        let mut found = HashMap::with_capacity(lineage_ids.len());
        for item in items {
            if let Some(id) = Key::of_item(&item).and_then(|key| keys.get(&key)) {
                read_counters(&item, &models, found.entry(*id).or_default())?;
            }
        }
        Ok(found)
    }
}

impl std::ops::AddAssign for Ingested {
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.duplicates += other.duplicates;
    }
}

pub(super) type LineageMonth = (Month, Id);

fn lineage_month(event: &UsageEvent) -> LineageMonth {
    (event.occurred_at.month(), event.lineage_id)
}

/// An event, and whether its lineage counts the model in its first item.
pub(super) struct AssignedEvent {
    event: UsageEvent,
    inline: bool,
}

/// Assigns events to counters and sorts them, so that events with the same counters are adjacent
/// and a transaction writes few counters.
pub(super) fn assign_counters(
    events: Vec<UsageEvent>,
    models: &BTreeMap<Month, Models>,
    mut lineages: HashMap<LineageMonth, Inline>,
) -> Vec<AssignedEvent> {
    let mut models = models.clone();
    let mut assign = |event: UsageEvent| {
        let lineage = lineage_month(&event);
        let number = models.entry(lineage.0).or_default().number(&event);
        (lineage, number, AssignedEvent { inline: lineages.entry(lineage).or_default().try_add(number), event })
    };
    let mut assigned: Vec<_> = events.into_iter().map(&mut assign).collect();
    assigned.sort_by_key(|(lineage, number, _)| (*lineage, *number));
    assigned.into_iter().map(|(.., assigned)| assigned).collect()
}

/// The amounts that a turn holds, to be released with its usage.
pub(super) struct HeldByTurn<'a> {
    pub(super) reservation: &'a Reservation,
    pub(super) by_organization: Amount,
    pub(super) by_key: Amount,
}

#[derive(Default)]
pub(super) struct Batch {
    events: Vec<AssignedEvent>,
    months: BTreeMap<Month, Touched>,
}

/// The counters of a month that a transaction writes.
#[derive(Default)]
struct Touched {
    models: HashSet<String>,
    /// The models of each lineage that are not counted in its first item.
    lineages: HashMap<Id, HashSet<String>>,
}

impl Touched {
    /// Returns the maximum number of writes: totals, model list and counters. The items of the
    /// models are not known yet.
    fn writes(&self) -> usize {
        2 + items_of(&self.models) + self.lineages.values().map(|apart| 1 + items_of(apart)).sum::<usize>()
    }
}

fn items_of(models: &HashSet<String>) -> usize {
    models.len().min(MODEL_ITEMS)
}

impl Batch {
    /// Distributes sorted events over transactions. A month that fits into one transaction gets
    /// one, so that its counters are written once.
    fn pack(events: Vec<AssignedEvent>) -> Vec<Self> {
        let mut packed = Vec::new();
        let mut batch = Self::default();
        let mut events = events.into_iter().peekable();
        while let Some(month) = events.peek().map(|assigned| assigned.event.occurred_at.month()) {
            let mut group = Self::default();
            while let Some(assigned) = events.next_if(|assigned| assigned.event.occurred_at.month() == month) {
                group.push(assigned);
            }
            if batch.writes() + group.writes() - 1 <= MAX_WRITES {
                batch.events.append(&mut group.events);
                batch.months.append(&mut group.months);
            } else if group.writes() <= MAX_WRITES {
                packed.push(mem::replace(&mut batch, group));
            } else {
                for assigned in group.events {
                    if !batch.fits(&assigned) {
                        packed.push(mem::take(&mut batch));
                    }
                    batch.push(assigned);
                }
            }
        }
        packed.push(batch);
        packed
    }

    /// Returns the maximum number of writes in the transaction: the events, their counters and one
    /// scheduled budget check.
    fn writes(&self) -> usize {
        self.events.len() + self.months.values().map(Touched::writes).sum::<usize>() + 1
    }

    /// Returns whether an event and its counters fit into the transaction.
    fn fits(&self, assigned: &AssignedEvent) -> bool {
        let event = &assigned.event;
        let fresh = |models: Option<&HashSet<String>>| {
            models.is_none_or(|models| models.len() < MODEL_ITEMS && !models.contains(event.model_name()))
        };
        let month = self.months.get(&event.occurred_at.month());
        let lineage = month.and_then(|month| month.lineages.get(&event.lineage_id));
        let more = [lineage.is_none(), fresh(month.map(|month| &month.models)), !assigned.inline && fresh(lineage)];
        let more = more.into_iter().map(usize::from).sum::<usize>() + if month.is_none() { 2 } else { 0 };
        self.writes() + 1 + more <= MAX_WRITES
    }

    pub(super) fn push(&mut self, assigned: AssignedEvent) {
        let event = &assigned.event;
        let touched = self.months.entry(event.occurred_at.month()).or_default();
        let model = event.model_name();
        let lineage = touched.lineages.entry(event.lineage_id).or_default();
        for models in [Some(&mut touched.models), (!assigned.inline).then_some(lineage)].into_iter().flatten() {
            if !models.contains(model) {
                models.insert(model.to_owned());
            }
        }
        self.events.push(assigned);
    }

    /// Removes the events at these indexes.
    fn without(self, counted: &HashSet<usize>) -> Self {
        let mut rest = Self::default();
        for (at, event) in self.events.into_iter().enumerate() {
            if !counted.contains(&at) {
                rest.push(event);
            }
        }
        rest
    }

    /// Stages the events first, so that in an empty transaction each has its index in the batch, and
    /// then their counters. Releases what a turn holds. Returns the model lists of the months after the
    /// transaction.
    pub(super) fn stage(
        &self,
        transaction: &mut Transaction,
        organization: Id,
        known: &BTreeMap<Month, Models>,
        turn: Option<&HeldByTurn<'_>>,
        now: Timestamp,
    ) -> Result<BTreeMap<Month, Models>, StoreError> {
        let before = |month: Month| known.get(&month).cloned().unwrap_or_default();
        let mut models: BTreeMap<_, _> = self.months.keys().map(|month| (*month, before(*month))).collect();
        let mut totals: BTreeMap<Month, Sums> = BTreeMap::new();
        let mut by_model: BTreeMap<(Month, usize), Sums> = BTreeMap::new();
        let mut lineages: BTreeMap<LineageMonth, Sums> = BTreeMap::new();
        let mut lineages_by_model: BTreeMap<(LineageMonth, usize), Sums> = BTreeMap::new();
        let mut used = BTreeSet::new();
        for AssignedEvent { event, inline } in &self.events {
            stage_event(transaction, organization, event, now)?;
            let (lineage, day) = (lineage_month(event), CounterPart::Day(event.occurred_at.day()));
            let number = models.entry(lineage.0).or_default().number(event);
            let (model, item) = (CounterPart::Model(number), item_of_model(number));
            let lineage_sums = lineages.entry(lineage).or_default();
            for sums in [totals.entry(lineage.0).or_default(), &mut *lineage_sums] {
                sums.add(event, CounterPart::Whole);
                sums.add(event, day);
            }
            by_model.entry((lineage.0, item)).or_default().add(event, model);
            if *inline {
                lineage_sums.add(event, model);
            } else {
                lineage_sums.reference_item(item);
                lineages_by_model.entry((lineage, item)).or_default().add(event, model);
            }
            used.insert(event.api_key_id);
        }
        if let Some(HeldByTurn { reservation, by_organization, by_key }) = turn {
            let (month, attribute) = (reservation.month, reservation.attribute());
            if !by_organization.is_zero() {
                totals.entry(month).or_default().release(attribute, *by_organization);
            }
            if !by_key.is_zero() {
                lineages.entry((month, reservation.lineage_id)).or_default().release(attribute, *by_key);
            }
        }
        for (month, sums) in totals {
            sums.stage(transaction, &Key::usage_totals(organization, month))?;
        }
        for (month, after) in &models {
            after.stage(transaction, &Key::usage_models(organization, *month), &before(*month))?;
        }
        for ((month, item), sums) in by_model {
            sums.stage(transaction, &Key::usage_by_model(organization, month, item))?;
        }
        for ((month, lineage_id), sums) in lineages {
            sums.stage(transaction, &Key::usage_of_key(organization, lineage_id, month))?;
        }
        for (((month, lineage_id), item), sums) in lineages_by_model {
            sums.stage(transaction, &Key::usage_of_key_by_model(organization, lineage_id, month, item))?;
        }
        if !used.is_empty() {
            transaction.check_budgets(organization, used, now)?;
        }
        Ok(models)
    }
}

fn stage_event(
    transaction: &mut Transaction,
    organization: Id,
    event: &UsageEvent,
    now: Timestamp,
) -> Result<(), StoreError> {
    #[derive(Serialize)]
    struct UsageEventItem<'a> {
        #[serde(flatten)]
        event: &'a UsageEvent,
        ttl: i64,
    }
    let hash = digest(&SHA256, event.client_event_id.as_str().as_bytes());
    // Half of the digest is enough to distinguish events.
    let hash = hash.as_ref().first_chunk().map_or(0, |half| u128::from_be_bytes(*half));
    let hash = format!("{hash:032x}");
    let item = UsageEventItem { event, ttl: now.plus(EVENT_RETENTION).as_seconds() };
    let cost = AttributeValue::N(event.cost.unwrap_or(0).to_string());
    let key = Key::usage_event(organization, &hash);
    transaction.put_with(Table::Usage, &key, &item, Conflict::EventCounted, ("cost", cost))
}

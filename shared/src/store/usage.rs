//! Usage: events that count once, and the counters that they are summed in, in one transaction.
//!
//! A month of an organization is its totals and days, in one item, which every validation reads and which therefore stays small; the list of
//! its models, which numbers them; and their counters, some models an item. A month of a line of keys is its totals, its days and its first
//! models in one item, and its other models like the organization's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
};

use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_dynamodb::types::AttributeValue;
use serde::Serialize;

use super::{
    Conflict, Item, Store, StoreError, Transaction,
    counters::{ITEMS_OF_MODELS, Inline, Models, Part, Sums, item_of_model, more_items, read_counters, read_totals},
    decode,
    table::{Key, Table},
};
use crate::domain::{Id, Month, MonthUsage, Prefix, Tally, Timestamp, UsageEvent};

/// DynamoDB's own limit.
const WRITES_AT_MOST: usize = 100;
/// How long an event is remembered: longer than the oldest that is accepted.
const REMEMBERED: std::time::Duration = std::time::Duration::from_hours(402 * 24);

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ingested {
    pub accepted: usize,
    /// Of this batch or of history.
    pub duplicates: usize,
}

/// Whose key it is, as the directory says: that never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct KeyOwner {
    pub organization_id: Id,
    #[serde(rename = "id")]
    pub api_key_id: Id,
    #[serde(rename = "counted_as")]
    pub lineage_id: Id,
}

impl Store {
    /// Whose keys these are; one that does not exist is not among them.
    pub async fn key_owners(&self, keys: &BTreeSet<Id>) -> Result<HashMap<Id, KeyOwner>, StoreError> {
        let mut owners = HashMap::with_capacity(keys.len());
        let wanted: Vec<_> = keys.iter().map(|id| Key::claimed_id(crate::domain::Kind::ApiKey, *id)).collect();
        for item in self.batch_get(Table::Main, &wanted).await? {
            let owner: KeyOwner = decode(item)?;
            owners.insert(owner.api_key_id, owner);
        }
        Ok(owners)
    }

    /// Whose keys have this prefix.
    pub async fn key_owners_by_prefix(&self, prefix: &Prefix) -> Result<Vec<KeyOwner>, StoreError> {
        let output = self
            .client
            .query()
            .table_name(self.table(Table::Main))
            .key_condition_expression("pk = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(Key::prefix_partition(prefix)))
            .consistent_read(true)
            .limit(2)
            .send()
            .await?;
        output.items.unwrap_or_default().into_iter().map(decode).collect()
    }

    /// Counts events of an organization, each once. What was counted before a fault stays counted: the same batch sent again
    /// counts the rest.
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
        let (mut models, lines) = self.known(organization, months, fresh.iter().map(lineage_month)).await?;
        for batch in Batch::pack(place(fresh, &models, lines)) {
            ingested += self.commit_batch(organization, batch, &mut models, now).await?;
        }
        Ok(ingested)
    }

    /// Writes one transaction, again without the events that turn out to be counted already.
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
            let after = batch.stage(&mut transaction, organization, models, now)?;
            let failed = transaction.attempt().await?;
            if failed.is_empty() {
                ingested.accepted += batch.events.len();
                models.extend(after);
                return Ok(ingested);
            }
            let counted: HashSet<_> = failed.iter().copied().filter(|member| *member < batch.events.len()).collect();
            if counted.len() < failed.len() {
                // Somebody else introduced a model meanwhile.
                models.extend(self.known(organization, batch.months.keys().copied(), []).await?.0);
            }
            ingested.duplicates += counted.len();
            batch = batch.without(&counted);
        }
        Ok(ingested)
    }

    /// The models of months, of one that has none none, and what these lines count in their first items, of those that are there.
    async fn known(
        &self,
        organization: Id,
        months: impl IntoIterator<Item = Month>,
        lines: impl IntoIterator<Item = LineageMonth>,
    ) -> Result<(BTreeMap<Month, Models>, HashMap<LineageMonth, Inline>), StoreError> {
        let lists: HashMap<_, _> =
            months.into_iter().map(|month| (Key::usage_models(organization, month), month)).collect();
        let lines: HashMap<_, _> =
            lines.into_iter().map(|line| (Key::usage_of_key(organization, line.1, line.0), line)).collect();
        let wanted: Vec<_> = lists.keys().chain(lines.keys()).cloned().collect();
        let mut models: BTreeMap<_, _> = lists.values().map(|month| (*month, Models::default())).collect();
        let mut inline = HashMap::with_capacity(lines.len());
        for item in self.batch_get(Table::Usage, &wanted).await? {
            let Some(key) = Key::of_item(&item) else { continue };
            if let Some(month) = lists.get(&key) {
                models.insert(*month, Models::read(&item));
            } else if let Some(line) = lines.get(&key) {
                inline.insert(*line, Inline::read(&item));
            }
        }
        Ok((models, inline))
    }

    /// What an organization used in a month, as a whole.
    pub async fn usage_totals(&self, organization: Id, month: Month) -> Result<Tally, StoreError> {
        let found = self.batch_get(Table::Usage, &[Key::usage_totals(organization, month)]).await?;
        found.first().map_or(Ok(Tally::default()), read_totals)
    }

    /// The same of each of these lines of keys; one that used nothing is not among them.
    pub async fn usage_totals_of_keys(
        &self,
        organization: Id,
        month: Month,
        lineage_id: &BTreeSet<Id>,
    ) -> Result<HashMap<Id, Tally>, StoreError> {
        let keys: HashMap<_, _> =
            lineage_id.iter().map(|id| (Key::usage_of_key(organization, *id, month), *id)).collect();
        let items = self.batch_get(Table::Usage, &keys.keys().cloned().collect::<Vec<_>>()).await?;
        let of_key = |item: &Item| Key::of_item(item).and_then(|key| keys.get(&key).copied());
        items.iter().filter_map(|item| of_key(item).map(|id| Ok((id, read_totals(item)?)))).collect()
    }

    /// What an organization used in a month, with its parts.
    pub async fn usage(&self, organization: Id, month: Month) -> Result<MonthUsage, StoreError> {
        let named = Key::usage_models(organization, month);
        let mut wanted = vec![Key::usage_totals(organization, month), named.clone()];
        wanted.extend((0..ITEMS_OF_MODELS).map(|number| Key::usage_by_model(organization, month, number)));
        let items = self.batch_get(Table::Usage, &wanted).await?;
        let models = items.iter().find(|item| Key::of_item(item).as_ref() == Some(&named));
        let models = models.map(Models::read).unwrap_or_default();
        let mut usage = MonthUsage::default();
        for item in items {
            read_counters(&item, &models, &mut usage)?;
        }
        Ok(usage)
    }

    /// What each of these lines of keys used in a month; one that used nothing is not among them.
    pub async fn usage_of_keys(
        &self,
        organization: Id,
        month: Month,
        lineage_id: &BTreeSet<Id>,
    ) -> Result<HashMap<Id, MonthUsage>, StoreError> {
        if lineage_id.is_empty() {
            return Ok(HashMap::new());
        }
        let named = Key::usage_models(organization, month);
        let mut keys: HashMap<_, _> =
            lineage_id.iter().map(|id| (Key::usage_of_key(organization, *id, month), *id)).collect();
        let wanted: Vec<_> = keys.keys().chain([&named]).cloned().collect();
        let mut items = self.batch_get(Table::Usage, &wanted).await?;
        let mut more = Vec::new();
        for item in &items {
            if let Some(id) = Key::of_item(item).and_then(|key| keys.get(&key).copied()) {
                let further = more_items(item).into_iter();
                more.extend(further.map(|number| (Key::usage_of_key_by_model(organization, id, month, number), id)));
            }
        }
        items.extend(self.batch_get(Table::Usage, &more.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>()).await?);
        keys.extend(more);
        let models = items.iter().find(|item| Key::of_item(item).as_ref() == Some(&named));
        let models = models.map(Models::read).unwrap_or_default();
        let mut found = HashMap::with_capacity(lineage_id.len());
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

/// A line of keys in a month.
type LineageMonth = (Month, Id);

fn lineage_month(event: &UsageEvent) -> LineageMonth {
    (event.occurred_at.month(), event.lineage_id)
}

/// An event, and where its line counts its model.
struct Placed {
    event: UsageEvent,
    inline: bool,
}

/// Finds events their places and sorts them: those that share counters stand together, so that a transaction writes few of them.
fn place(
    events: Vec<UsageEvent>,
    models: &BTreeMap<Month, Models>,
    mut lines: HashMap<LineageMonth, Inline>,
) -> Vec<Placed> {
    let mut models = models.clone();
    let mut place = |event: UsageEvent| {
        let line = lineage_month(&event);
        let number = models.entry(line.0).or_default().number(&event);
        (line, number, Placed { inline: lines.entry(line).or_default().takes(number), event })
    };
    let mut placed: Vec<_> = events.into_iter().map(&mut place).collect();
    placed.sort_by_key(|(line, number, _)| (*line, *number));
    placed.into_iter().map(|(.., placed)| placed).collect()
}

/// The events of one transaction.
#[derive(Default)]
struct Batch {
    events: Vec<Placed>,
    months: BTreeMap<Month, Touched>,
}

/// What a transaction touches of a month.
#[derive(Default)]
struct Touched {
    models: HashSet<String>,
    /// With the models that are not counted in the line's first item.
    lines: HashMap<Id, HashSet<String>>,
}

impl Touched {
    /// How many writes that is at most: the totals, the list of models, and counters. Which model is in which item is not known for sure.
    fn writes(&self) -> usize {
        2 + items_of(&self.models) + self.lines.values().map(|apart| 1 + items_of(apart)).sum::<usize>()
    }
}

/// In how many items so many models are counted at most.
fn items_of(models: &HashSet<String>) -> usize {
    models.len().min(ITEMS_OF_MODELS)
}

impl Batch {
    /// Spreads sorted events over transactions. A month that fits into one stands in one, so that its counters are written once.
    fn pack(events: Vec<Placed>) -> Vec<Self> {
        let mut packed = Vec::new();
        let mut batch = Self::default();
        let mut events = events.into_iter().peekable();
        while let Some(month) = events.peek().map(|placed| placed.event.occurred_at.month()) {
            let mut group = Self::default();
            while let Some(placed) = events.next_if(|placed| placed.event.occurred_at.month() == month) {
                group.push(placed);
            }
            if batch.writes() + group.writes() - 1 <= WRITES_AT_MOST {
                batch.events.append(&mut group.events);
                batch.months.append(&mut group.months);
            } else if group.writes() <= WRITES_AT_MOST {
                packed.push(mem::replace(&mut batch, group));
            } else {
                for placed in group.events {
                    if !batch.takes(&placed) {
                        packed.push(mem::take(&mut batch));
                    }
                    batch.push(placed);
                }
            }
        }
        packed.push(batch);
        packed
    }

    /// How many writes the transaction is at most: the events, their counters and the one wish to have budgets checked.
    fn writes(&self) -> usize {
        self.events.len() + self.months.values().map(Touched::writes).sum::<usize>() + 1
    }

    /// Whether it has room for an event with all that it may touch.
    fn takes(&self, placed: &Placed) -> bool {
        let event = &placed.event;
        let fresh = |models: Option<&HashSet<String>>| {
            models.is_none_or(|models| models.len() < ITEMS_OF_MODELS && !models.contains(event.model_name()))
        };
        let month = self.months.get(&event.occurred_at.month());
        let line = month.and_then(|month| month.lines.get(&event.lineage_id));
        let more = [line.is_none(), fresh(month.map(|month| &month.models)), !placed.inline && fresh(line)];
        let more = more.into_iter().map(usize::from).sum::<usize>() + if month.is_none() { 2 } else { 0 };
        self.writes() + 1 + more <= WRITES_AT_MOST
    }

    fn push(&mut self, placed: Placed) {
        let event = &placed.event;
        let touched = self.months.entry(event.occurred_at.month()).or_default();
        let model = event.model_name();
        let line = touched.lines.entry(event.lineage_id).or_default();
        for models in [Some(&mut touched.models), (!placed.inline).then_some(line)].into_iter().flatten() {
            if !models.contains(model) {
                models.insert(model.to_owned());
            }
        }
        self.events.push(placed);
    }

    /// Without the events at these places.
    fn without(self, counted: &HashSet<usize>) -> Self {
        let mut rest = Self::default();
        for (at, event) in self.events.into_iter().enumerate() {
            if !counted.contains(&at) {
                rest.push(event);
            }
        }
        rest
    }

    /// Stages the events, at their places in the batch, then their counters. Says which models its months have then.
    fn stage(
        &self,
        transaction: &mut Transaction,
        organization: Id,
        known: &BTreeMap<Month, Models>,
        now: Timestamp,
    ) -> Result<BTreeMap<Month, Models>, StoreError> {
        let before = |month: Month| known.get(&month).cloned().unwrap_or_default();
        let mut models: BTreeMap<_, _> = self.months.keys().map(|month| (*month, before(*month))).collect();
        let mut totals: BTreeMap<Month, Sums> = BTreeMap::new();
        let mut by_model: BTreeMap<(Month, usize), Sums> = BTreeMap::new();
        let mut lines: BTreeMap<LineageMonth, Sums> = BTreeMap::new();
        let mut lines_by_model: BTreeMap<(LineageMonth, usize), Sums> = BTreeMap::new();
        let mut used = BTreeSet::new();
        for Placed { event, inline } in &self.events {
            stage_event(transaction, organization, event, now)?;
            let (line, day) = (lineage_month(event), Part::Day(event.occurred_at.day()));
            let number = models.entry(line.0).or_default().number(event);
            let (model, item) = (Part::Model(number), item_of_model(number));
            let of_line = lines.entry(line).or_default();
            for sums in [totals.entry(line.0).or_default(), &mut *of_line] {
                sums.add(event, Part::Whole);
                sums.add(event, day);
            }
            by_model.entry((line.0, item)).or_default().add(event, model);
            if *inline {
                of_line.add(event, model);
            } else {
                of_line.name(item);
                lines_by_model.entry((line, item)).or_default().add(event, model);
            }
            used.insert(event.api_key_id);
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
        for ((month, lineage_id), sums) in lines {
            sums.stage(transaction, &Key::usage_of_key(organization, lineage_id, month))?;
        }
        for (((month, lineage_id), item), sums) in lines_by_model {
            sums.stage(transaction, &Key::usage_of_key_by_model(organization, lineage_id, month, item))?;
        }
        transaction.check_budgets(organization, used, now)?;
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
    struct Remembered<'a> {
        #[serde(flatten)]
        event: &'a UsageEvent,
        ttl: i64,
    }
    let hash = digest(&SHA256, event.client_event_id.as_str().as_bytes());
    // Half of it, which is enough to tell any number of events apart.
    let hash = hash.as_ref().first_chunk().map_or(0, |half| u128::from_be_bytes(*half));
    let hash = format!("{hash:032x}");
    let item = Remembered { event, ttl: now.plus(REMEMBERED).as_seconds() };
    let cost = AttributeValue::N(event.cost.unwrap_or(0).to_string());
    let key = Key::usage_event(organization, &hash);
    transaction.put_with(Table::Usage, &key, &item, Conflict::Remembered, ("cost", cost))
}

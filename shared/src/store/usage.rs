//! Usage: events that count once, and the counters that they are summed in, in one transaction.
//!
//! A month of an organization is two items: its totals, which every validation reads and which therefore stay small, and their parts by model and
//! by day. A month of a key is one item with both. Counters are attributes: `tokens_in`, `tokens_out` and `spent` (nano-cents) of the whole,
//! `tokens_in/<model>` of a model, `05/tokens_in` of a day.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
};

use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_dynamodb::types::AttributeValue;
use serde::Serialize;

use super::{
    Conflict, Item, Store, StoreError, Transaction, decode,
    table::{Key, Table},
};
use crate::domain::{Id, Month, MonthUsage, Prefix, Tally, Timestamp, UsageEvent, UsageKind};

/// The models of an organization that a month tells apart; the rest is counted as [`OTHER`].
const MODELS_AT_MOST: usize = 200;
const OTHER: &str = "other";
/// The longest name that is told apart, in bytes: a month's item holds each of 200 four times, in 400 KB at most.
const MODEL_BYTES_AT_MOST: usize = 128;
/// Where an event names no model.
const UNSPECIFIED: &str = "unspecified";
/// DynamoDB's own limit.
const WRITES_AT_MOST: usize = 100;
/// A transaction takes 4 MB of items, and a month of a key with 200 models may have a hundred KB.
const LINES_AT_MOST: usize = 24;
/// How long an event is remembered: longer than the oldest that is accepted.
const REMEMBERED: std::time::Duration = std::time::Duration::from_hours(402 * 24);
/// The attribute of an organization's month that lists its models.
const MODELS: &str = "models";
const TOTALS: [&str; 3] = ["tokens_in", "tokens_out", "spent"];

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
    pub counted_as: Id,
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
        let (mut fresh, repeated): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|event| seen.insert(event.client_event_id.clone()));
        ingested.duplicates += repeated.len();
        // Events that share counters stand together, so that a transaction writes few of them.
        fresh.sort_by_key(|event| (event.occurred_at.month(), event.counted_as, event.occurred_at));
        let mut models = KnownModels::default();
        let mut batch = Batch::new(organization);
        for event in fresh {
            if !batch.takes(&event) {
                ingested +=
                    self.commit_batch(mem::replace(&mut batch, Batch::new(organization)), &mut models, now).await?;
            }
            batch.push(event);
        }
        ingested += self.commit_batch(batch, &mut models, now).await?;
        Ok(ingested)
    }

    /// Writes one transaction, again without the events that turn out to be counted already.
    async fn commit_batch(
        &self,
        mut batch: Batch,
        models: &mut KnownModels,
        now: Timestamp,
    ) -> Result<Ingested, StoreError> {
        let mut ingested = Ingested::default();
        while !batch.events.is_empty() {
            for month in &batch.months {
                if !models.0.contains_key(month) {
                    models.0.insert(*month, self.models(batch.organization, *month).await?);
                }
            }
            let mut transaction = self.transaction();
            let introduced = batch.stage(&mut transaction, models, now)?;
            let failed = transaction.attempt().await?;
            let counted: HashSet<_> = failed.iter().copied().filter(|member| *member < batch.events.len()).collect();
            if failed.is_empty() {
                ingested.accepted += batch.events.len();
                for (month, names) in introduced {
                    models.0.entry(month).or_default().extend(names);
                }
                return Ok(ingested);
            }
            if counted.len() < failed.len() {
                // Somebody else introduced a model meanwhile.
                for month in &batch.months {
                    models.0.remove(month);
                }
            }
            ingested.duplicates += counted.len();
            let mut at = 0;
            batch.retain(|_| {
                at += 1;
                !counted.contains(&(at - 1))
            });
        }
        Ok(ingested)
    }

    async fn models(&self, organization: Id, month: Month) -> Result<BTreeSet<String>, StoreError> {
        let output = self
            .client
            .get_item()
            .table_name(self.table(Table::Usage))
            .set_key(Some(Key::usage_parts(organization, month).attributes()))
            .projection_expression(MODELS)
            .consistent_read(true)
            .send()
            .await?;
        let names = output.item.and_then(|mut item| item.remove(MODELS));
        Ok(names.and_then(|names| names.as_ss().ok().cloned()).unwrap_or_default().into_iter().collect())
    }

    /// What an organization used in a month, as a whole.
    pub async fn usage_totals(&self, organization: Id, month: Month) -> Result<Tally, StoreError> {
        let found = self.batch_get(Table::Usage, &[Key::usage_totals(organization, month)]).await?;
        found.first().map_or(Ok(Tally::default()), read_totals)
    }

    /// What an organization used in a month, with its parts.
    pub async fn usage(&self, organization: Id, month: Month) -> Result<MonthUsage, StoreError> {
        let wanted = [Key::usage_totals(organization, month), Key::usage_parts(organization, month)];
        let mut usage = MonthUsage::default();
        for item in self.batch_get(Table::Usage, &wanted).await? {
            read_counters(&item, &mut usage)?;
        }
        Ok(usage)
    }

    /// What each of these lines of keys used in a month; one that used nothing is not among them.
    pub async fn usage_of_keys(
        &self,
        organization: Id,
        month: Month,
        counted_as: &BTreeSet<Id>,
    ) -> Result<HashMap<Id, MonthUsage>, StoreError> {
        let keys: HashMap<_, _> =
            counted_as.iter().map(|id| (Key::usage_of_key(organization, *id, month), *id)).collect();
        let wanted: Vec<_> = keys.keys().cloned().collect();
        let mut found = HashMap::with_capacity(keys.len());
        for item in self.batch_get(Table::Usage, &wanted).await? {
            let key = Key::of_item(&item).and_then(|key| keys.get(&key));
            let id = key.ok_or_else(|| StoreError::Fault("an answer to another question".to_owned()))?;
            read_counters(&item, found.entry(*id).or_default())?;
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

/// The models that each month tells apart already. Once there, a model stays.
#[derive(Default)]
struct KnownModels(HashMap<Month, BTreeSet<String>>);

/// The events of one transaction.
struct Batch {
    organization: Id,
    events: Vec<UsageEvent>,
    months: BTreeSet<Month>,
    lines: HashSet<(Month, Id)>,
}

impl Batch {
    fn new(organization: Id) -> Self {
        Self { organization, events: Vec::new(), months: BTreeSet::new(), lines: HashSet::new() }
    }

    /// Whether the transaction has room for another event, its counters and the one wish to have budgets checked.
    fn takes(&self, event: &UsageEvent) -> bool {
        let month = event.occurred_at.month();
        let months = self.months.len() + usize::from(!self.months.contains(&month));
        let lines = self.lines.len() + usize::from(!self.lines.contains(&(month, event.counted_as)));
        lines <= LINES_AT_MOST && self.events.len() + 1 + 2 * months + lines < WRITES_AT_MOST
    }

    fn push(&mut self, event: UsageEvent) {
        let month = event.occurred_at.month();
        self.months.insert(month);
        self.lines.insert((month, event.counted_as));
        self.events.push(event);
    }

    fn retain(&mut self, keep: impl FnMut(&UsageEvent) -> bool) {
        self.events.retain(keep);
        let events = mem::replace(self, Self::new(self.organization)).events;
        for event in events {
            self.push(event);
        }
    }

    /// Stages the events, at their places in the batch, then their counters. Says which models are new to a month.
    fn stage(
        &self,
        transaction: &mut Transaction,
        known: &KnownModels,
        now: Timestamp,
    ) -> Result<BTreeMap<Month, BTreeSet<String>>, StoreError> {
        let mut totals: BTreeMap<Month, Sums> = BTreeMap::new();
        let mut parts: BTreeMap<Month, Sums> = BTreeMap::new();
        let mut keys: BTreeMap<(Month, Id), Sums> = BTreeMap::new();
        let mut introduced: BTreeMap<Month, BTreeSet<String>> = BTreeMap::new();
        let mut used = BTreeSet::new();
        for event in &self.events {
            self.stage_event(transaction, event, now)?;
            let month = event.occurred_at.month();
            let (known, new) = (known.0.get(&month), introduced.entry(month).or_default());
            let model = model_of(event, known, new);
            totals.entry(month).or_default().add(event, None);
            parts.entry(month).or_default().add_parts(event, &model);
            let key = keys.entry((month, event.counted_as)).or_default();
            key.add(event, None);
            key.add_parts(event, &model);
            used.insert(event.api_key_id);
        }
        for (month, sums) in totals {
            stage_sums(transaction, &Key::usage_totals(self.organization, month), &sums, None)?;
        }
        for (month, sums) in parts {
            let before = known.0.get(&month).map_or(0, BTreeSet::len);
            let new = introduced.get(&month).filter(|new| !new.is_empty()).map(|new| (before, new));
            stage_sums(transaction, &Key::usage_parts(self.organization, month), &sums, new)?;
        }
        for ((month, counted_as), sums) in keys {
            stage_sums(transaction, &Key::usage_of_key(self.organization, counted_as, month), &sums, None)?;
        }
        transaction.check_budgets(self.organization, used, now)?;
        Ok(introduced)
    }

    fn stage_event(&self, transaction: &mut Transaction, event: &UsageEvent, now: Timestamp) -> Result<(), StoreError> {
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
        let cost = AttributeValue::N(event.cost.to_string());
        let key = Key::usage_event(self.organization, &hash);
        transaction.put_with(Table::Usage, &key, &item, Conflict::Remembered, ("cost", cost))
    }
}

/// Under which model an event counts in its month.
fn model_of(event: &UsageEvent, known: Option<&BTreeSet<String>>, new: &mut BTreeSet<String>) -> String {
    let name = event.model.as_ref().map_or(UNSPECIFIED, |model| model.as_str());
    let is_known = known.is_some_and(|known| known.contains(name)) || new.contains(name);
    if is_known || [OTHER, UNSPECIFIED].contains(&name) {
        return name.to_owned();
    }
    if name.len() > MODEL_BYTES_AT_MOST || known.map_or(0, BTreeSet::len) + new.len() >= MODELS_AT_MOST {
        return OTHER.to_owned();
    }
    new.insert(name.to_owned());
    name.to_owned()
}

/// What a transaction adds to the counters of one item.
#[derive(Default)]
struct Sums(BTreeMap<String, u128>);

impl Sums {
    fn add(&mut self, event: &UsageEvent, part: Option<&dyn Fn(&str) -> String>) {
        let tokens = match event.kind {
            UsageKind::InputTokens => "tokens_in",
            UsageKind::OutputTokens => "tokens_out",
        };
        for (counter, amount) in [(tokens, event.quantity.get().into()), ("spent", event.cost)] {
            if amount > 0 {
                let name = part.map_or_else(|| counter.to_owned(), |part| part(counter));
                *self.0.entry(name).or_default() += amount;
            }
        }
    }

    fn add_parts(&mut self, event: &UsageEvent, model: &str) {
        let day = event.occurred_at.day();
        self.add(event, Some(&|counter| format!("{counter}/{model}")));
        self.add(event, Some(&|counter| format!("{day:02}/{counter}")));
    }
}

/// Adds to an item's counters. Models that are new to a month are added to its list, on condition that it is as long as it was read.
fn stage_sums(
    transaction: &mut Transaction,
    key: &Key,
    sums: &Sums,
    new_models: Option<(usize, &BTreeSet<String>)>,
) -> Result<(), StoreError> {
    transaction.update(Table::Usage, key, Conflict::Changed, |mut update| {
        let mut clauses = Vec::with_capacity(sums.0.len() + 1);
        for (at, (name, amount)) in sums.0.iter().enumerate() {
            clauses.push(format!("#{at} :{at}"));
            update = update
                .expression_attribute_names(format!("#{at}"), name)
                .expression_attribute_values(format!(":{at}"), AttributeValue::N(amount.to_string()));
        }
        if let Some((before, new)) = new_models {
            clauses.push(format!("{MODELS} :new"));
            update = update.expression_attribute_values(":new", AttributeValue::Ss(new.iter().cloned().collect()));
            update = if before == 0 {
                update.condition_expression(format!("attribute_not_exists({MODELS})"))
            } else {
                update
                    .condition_expression(format!("size({MODELS}) = :before"))
                    .expression_attribute_values(":before", AttributeValue::N(before.to_string()))
            };
        }
        update.update_expression(format!("ADD {}", clauses.join(",")))
    })
}

/// Reads an item's counters into `usage`.
fn read_counters(item: &Item, usage: &mut MonthUsage) -> Result<(), StoreError> {
    for (name, value) in item {
        let Ok(number) = value.as_n() else { continue };
        let amount: u128 = number.parse().map_err(|_| StoreError::Fault(format!("the counter {name} is no number")))?;
        let (counter, tally) = match name.split_once('/') {
            None => (name.as_str(), &mut usage.totals),
            Some((day, counter)) if day.len() == 2 => {
                let day = day.parse().map_err(|_| StoreError::Fault("a day that is none".to_owned()))?;
                (counter, usage.by_day.entry(day).or_default())
            }
            Some((counter, model)) => (counter, usage.by_model.entry(model.to_owned()).or_default()),
        };
        match counter {
            "tokens_in" => tally.input_tokens = amount,
            "tokens_out" => tally.output_tokens = amount,
            "spent" => tally.cost = amount,
            _ => {}
        }
    }
    Ok(())
}

/// The totals of an item alone.
pub(super) fn read_totals(item: &Item) -> Result<Tally, StoreError> {
    let mut usage = MonthUsage::default();
    read_counters(item, &mut usage)?;
    Ok(usage.totals)
}

/// The attributes that hold an item's totals, for a projection.
pub(super) fn totals_projection() -> String {
    format!("pk, sk, {}", TOTALS.join(", "))
}

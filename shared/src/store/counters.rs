//! Usage counters as attributes of few, small items. `DynamoDB` bills a write by the item's size,
//! rounded up to a kilobyte.
//!
//! Attribute names:
//!
//! | name | counter |
//! | --- | --- |
//! | `i`, `o`, `c`, `r`, `w` | totals: input tokens, output tokens, cost in nano-cents, tokens read from and written to the prompt cache |
//! | `I5`, `O5`, `C5`, `R5`, `W5` | the same for the fifth day of the month |
//! | `i17`, `o17`, `c17`, `r17`, `w17`, `u17` | the same, and tokens without a price, for the model with this number in the organization's month |
//!
//! Days and numbers are in base 36. If a model is counted in several items, its usage is their sum.
//! An absent counter is zero. Items with totals also have the numbers of
//! [`committed`](super::committed).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use aws_sdk_dynamodb::types::AttributeValue;

use super::{
    Conflict, Item, StoreError, Transaction,
    committed::{Amount, CommittedChange},
    table::Key,
    table::Table,
};
use crate::domain::{MonthUsage, Tally, UsageEvent, UsageKind};

/// Maximum number of models that a month of an organization distinguishes. All others are counted
/// as [`OTHER`].
const MAX_MODELS: usize = 200;
const OTHER: &str = "other";
/// Maximum length of a distinguished model name, in bytes: a month's list of 200 names stays below
/// 26 KB.
const MAX_MODEL_NAME_BYTES: usize = 128;
/// Models that have the first numbers in every month and are not in its list. Events of a model
/// with one of these names count here too: a rejection would keep their tokens out of the budgets.
const BUILT_IN: [&str; 2] = [UsageEvent::UNSPECIFIED, OTHER];
const OTHER_NUMBER: usize = 1;
/// Number of models in an item. Three counters of 10^10 tokens and 10^16 nano-cents take 33 bytes,
/// which leaves room for growth within a kilobyte. The counters of the prompt cache take 17 more.
const MODELS_PER_ITEM: usize = 27;
pub(super) const MODEL_ITEMS: usize = (MAX_MODELS + BUILT_IN.len()).div_ceil(MODELS_PER_ITEM);
/// Maximum number of models in the first item of a lineage's month. With 31 days of 10^9 tokens the
/// item takes about a kilobyte, and more with the prompt cache.
const MAX_INLINE_MODELS: usize = 2;
const MODELS: &str = "models";
/// The attribute with the numbers of a lineage's further items.
const MORE: &str = "more";
/// Totals: input tokens, output tokens, nano-cents, cache reads, cache writes.
const SUMS: [&str; 5] = ["i", "o", "c", "r", "w"];
const SUMS_OF_DAY: [&str; 5] = ["I", "O", "C", "R", "W"];
/// A model's sums, with tokens without a price.
const SUMS_OF_MODEL: [&str; 6] = ["i", "o", "c", "r", "w", "u"];
const INPUT: usize = 0;
const OUTPUT: usize = 1;
const COST: usize = 2;
const CACHE_READ: usize = 3;
const CACHE_WRITE: usize = 4;
const UNPRICED: usize = 5;
const BASE: u32 = 36;

/// The distinguished models of an organization's month, in the order of their first use. Their
/// indexes are their permanent numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct Models(Vec<String>);

impl Models {
    pub(super) fn read(item: &Item) -> Self {
        let names = item.get(MODELS).and_then(|names| names.as_l().ok()).into_iter().flatten();
        Self(names.filter_map(|name| name.as_s().ok().cloned()).collect())
    }

    /// Returns the number of an event's model. A new model gets the next number, or the number of
    /// [`OTHER`] if the list is full or the name is too long.
    pub(super) fn number(&mut self, event: &UsageEvent) -> usize {
        let name = event.model_name();
        if let Some(number) =
            BUILT_IN.iter().copied().chain(self.0.iter().map(String::as_str)).position(|known| known == name)
        {
            return number;
        }
        if self.0.len() == MAX_MODELS || name.len() > MAX_MODEL_NAME_BYTES {
            return OTHER_NUMBER;
        }
        self.0.push(name.to_owned());
        BUILT_IN.len() + self.0.len() - 1
    }

    fn name(&self, number: usize) -> Option<&str> {
        BUILT_IN.get(number).copied().or_else(|| self.0.get(number - BUILT_IN.len()).map(String::as_str))
    }

    /// Stages the models that are not in `before`, on condition that the stored list still has that
    /// length.
    pub(super) fn stage(&self, transaction: &mut Transaction, key: &Key, before: &Self) -> Result<(), StoreError> {
        let (read, new) = (before.0.len(), self.0.iter().skip(before.0.len()));
        let new: Vec<_> = new.cloned().map(AttributeValue::S).collect();
        if new.is_empty() {
            return Ok(());
        }
        transaction.update(Table::Usage, key, Conflict::Changed, |update| {
            let update = update.expression_attribute_values(":new", AttributeValue::L(new));
            if read == 0 {
                return update
                    .update_expression(format!("SET {MODELS} = :new"))
                    .condition_expression(format!("attribute_not_exists({MODELS})"));
            }
            update
                .update_expression(format!("SET {MODELS} = list_append({MODELS}, :new)"))
                .condition_expression(format!("size({MODELS}) = :read"))
                .expression_attribute_values(":read", AttributeValue::N(read.to_string()))
        })
    }
}

/// Returns the index of a kind's tokens in the sums.
const fn sum_of(kind: UsageKind) -> usize {
    match kind {
        UsageKind::InputTokens => INPUT,
        UsageKind::OutputTokens => OUTPUT,
        UsageKind::CacheReadTokens => CACHE_READ,
        UsageKind::CacheWriteTokens => CACHE_WRITE,
    }
}

pub(super) const fn item_of_model(number: usize) -> usize {
    number / MODELS_PER_ITEM
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CounterPart {
    Whole,
    Day(u8),
    Model(usize),
}

/// One attribute: a part, and the index of one of its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Counter(CounterPart, usize);

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            CounterPart::Whole => f.write_str(SUMS[self.1]),
            CounterPart::Day(day) => write!(f, "{}{}", SUMS_OF_DAY[self.1], to_base(day.into())),
            CounterPart::Model(number) => write!(f, "{}{}", SUMS_OF_MODEL[self.1], to_base(number)),
        }
    }
}

impl Counter {
    /// Parses an attribute name. `None` if the attribute is not a counter.
    fn parse(name: &str) -> Option<Self> {
        let (sum, suffix) = name.split_at_checked(1)?;
        let index_in = |names: &[&str]| names.iter().position(|name| *name == sum);
        if let Some(sum) = index_in(&SUMS_OF_DAY) {
            return Some(Self(CounterPart::Day(u8::from_str_radix(suffix, BASE).ok()?), sum));
        }
        if suffix.is_empty() {
            return Some(Self(CounterPart::Whole, index_in(&SUMS)?));
        }
        let sum = index_in(&SUMS_OF_MODEL)?;
        Some(Self(CounterPart::Model(usize::from_str_radix(suffix, BASE).ok()?), sum))
    }
}

/// Formats a number in base 36. Models and days need at most two digits.
fn to_base(number: usize) -> String {
    let digit =
        |value: usize| u32::try_from(value % BASE as usize).ok().and_then(|value| char::from_digit(value, BASE));
    let high = (number >= BASE as usize).then(|| digit(number / BASE as usize)).flatten();
    high.into_iter().chain(digit(number)).collect()
}

/// The models that a lineage counts in its first item. The choice affects the cost only: readers
/// sum all items.
#[derive(Debug, Clone, Default)]
pub(super) struct Inline(BTreeSet<usize>);

impl Inline {
    pub(super) fn read(item: &Item) -> Self {
        let models = item.keys().filter_map(|name| match Counter::parse(name)?.0 {
            CounterPart::Model(number) => Some(number),
            CounterPart::Whole | CounterPart::Day(_) => None,
        });
        Self(models.collect())
    }

    /// Returns whether a model is counted in the first item. Adds it if there is room.
    pub(super) fn try_add(&mut self, number: usize) -> bool {
        self.0.contains(&number) || (self.0.len() < MAX_INLINE_MODELS && self.0.insert(number))
    }
}

/// The amounts that a transaction adds to one item.
#[derive(Default)]
pub(super) struct Sums {
    counters: BTreeMap<Counter, u128>,
    /// The events that count towards the item's totals, and so to its committed numbers.
    totals: Tally,
    /// The attribute of a hold to remove, and the amount that it holds.
    released: Option<(String, Amount)>,
    /// Numbers of the lineage's further items in the same transaction.
    more: BTreeSet<usize>,
}

impl Sums {
    pub(super) fn add(&mut self, event: &UsageEvent, part: CounterPart) {
        if part == CounterPart::Whole {
            self.totals.add(event);
        }
        let quantity = event.quantity.get().into();
        let priced = match (event.cost, part) {
            (Some(cost), _) => (COST, cost),
            (None, CounterPart::Model(_)) => (UNPRICED, quantity),
            (None, CounterPart::Whole | CounterPart::Day(_)) => (COST, 0),
        };
        for (sum, amount) in [(sum_of(event.kind), quantity), priced] {
            if amount > 0 {
                let counter = self.counters.entry(Counter(part, sum)).or_default();
                *counter = counter.saturating_add(amount);
            }
        }
    }

    /// Records a further item in the lineage's first one, so that readers find it.
    pub(super) fn reference_item(&mut self, item: usize) {
        self.more.insert(item);
    }

    /// Releases what a turn holds in this item, on condition that it still holds this amount.
    pub(super) fn release(&mut self, attribute: &str, held: Amount) {
        self.released = Some((attribute.to_owned(), held));
    }

    pub(super) fn stage(&self, transaction: &mut Transaction, key: &Key) -> Result<(), StoreError> {
        let held = self.released.as_ref().map_or(Amount::default(), |(_, held)| *held);
        let committed = CommittedChange::from(&self.totals) - held.into();
        transaction.update(Table::Usage, key, Conflict::Changed, |mut update| {
            let committed = committed.attributes().into_iter().filter(|(_, change)| *change != 0);
            let counters = self.counters.iter().map(|(counter, amount)| (counter.to_string(), amount.to_string()));
            let added = counters.chain(committed.map(|(name, change)| (name.to_owned(), change.to_string())));
            let mut clauses = Vec::new();
            for (at, (name, amount)) in added.enumerate() {
                clauses.push(format!("#{at} :{at}"));
                update = update
                    .expression_attribute_names(format!("#{at}"), name)
                    .expression_attribute_values(format!(":{at}"), AttributeValue::N(amount));
            }
            if !self.more.is_empty() {
                clauses.push(format!("{MORE} :more"));
                let more = self.more.iter().map(usize::to_string).collect();
                update = update.expression_attribute_values(":more", AttributeValue::Ns(more));
            }
            let add = if clauses.is_empty() { String::new() } else { format!("ADD {}", clauses.join(",")) };
            let Some((attribute, held)) = &self.released else {
                return update.update_expression(add);
            };
            update
                .update_expression(format!("REMOVE #hold {add}"))
                .condition_expression("#hold = :held")
                .expression_attribute_names("#hold", attribute)
                .expression_attribute_values(":held", held.attribute_value())
        })
    }
}

pub(super) fn further_items(item: &Item) -> Vec<usize> {
    let more = item.get(MORE).and_then(|more| more.as_ns().ok()).into_iter().flatten();
    more.filter_map(|number| number.parse().ok()).collect()
}

/// Adds an item's counters to `usage`. Models that were added after `models` was read are omitted.
pub(super) fn read_counters(item: &Item, models: &Models, usage: &mut MonthUsage) -> Result<(), StoreError> {
    for (name, value) in item {
        let (Ok(number), Some(Counter(part, sum))) = (value.as_n(), Counter::parse(name)) else { continue };
        let amount: u128 = number.parse().map_err(|_| StoreError::Fault(format!("counter {name} is not a number")))?;
        let tally = match part {
            CounterPart::Whole => &mut usage.totals,
            CounterPart::Day(day) => usage.by_day.entry(day).or_default(),
            CounterPart::Model(number) => match models.name(number) {
                Some(model) if sum == UNPRICED => {
                    let tokens = usage.unpriced.entry(model.to_owned()).or_default();
                    *tokens = tokens.saturating_add(amount);
                    continue;
                }
                Some(model) => usage.by_model.entry(model.to_owned()).or_default(),
                None => continue,
            },
        };
        let counter = match sum {
            INPUT => &mut tally.input_tokens,
            OUTPUT => &mut tally.output_tokens,
            CACHE_READ => &mut tally.cache_read_tokens,
            CACHE_WRITE => &mut tally.cache_write_tokens,
            _ => &mut tally.cost,
        };
        *counter = counter.saturating_add(amount);
    }
    Ok(())
}

pub(super) fn read_totals(item: &Item) -> Result<Tally, StoreError> {
    let mut usage = MonthUsage::default();
    read_counters(item, &Models::default(), &mut usage)?;
    Ok(usage.totals)
}

/// Returns a projection of the attributes with an item's totals.
pub(super) fn totals_projection() -> String {
    format!("pk, sk, {}", SUMS.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_names_are_unique_and_round_trip() {
        let days = (1..=31).map(CounterPart::Day);
        let models = (0..MAX_MODELS + BUILT_IN.len()).map(CounterPart::Model);
        let mut names = BTreeSet::new();
        for part in days.chain(models).chain([CounterPart::Whole]) {
            let sums = if matches!(part, CounterPart::Model(_)) { SUMS_OF_MODEL.len() } else { SUMS.len() };
            for sum in 0..sums {
                let counter = Counter(part, sum);
                let name = counter.to_string();
                assert_eq!(Counter::parse(&name), Some(counter), "{name}");
                assert!(names.insert(name));
            }
        }
        for name in ["pk", "sk", "ttl", "", "I", "i?", "u", "U1", "é", "ki", "kc", MODELS, MORE] {
            assert_eq!(Counter::parse(name), None, "{name}");
        }
    }

    #[test]
    fn lineage_counts_first_models_inline() {
        let item = Item::from(
            ["i1", "c1", "i", "I3", "pk", "sk"].map(|name| (name.to_owned(), AttributeValue::N("1".to_owned()))),
        );
        let mut inline = Inline::read(&item);
        assert_eq!([7, 8, 1, 7].map(|number| inline.try_add(number)), [true, false, true, true]);
    }

    #[test]
    fn counters_are_summed_and_saturate() {
        let item = |amount: u128| Item::from([("i".to_owned(), AttributeValue::N(amount.to_string()))]);
        let mut usage = MonthUsage::default();
        for amount in [3, 4] {
            read_counters(&item(amount), &Models::default(), &mut usage).unwrap();
        }
        assert_eq!(usage.totals.input_tokens, 7);
        read_counters(&item(u128::MAX), &Models::default(), &mut usage).unwrap();
        assert_eq!(usage.totals.input_tokens, u128::MAX);
    }

    #[test]
    fn counters_of_the_prompt_cache_are_read() {
        let counters = [("r", 1), ("w", 2), ("R5", 3), ("W5", 4), ("r0", 5), ("w0", 6)];
        let item: Item = counters.map(|(name, amount)| (name.to_owned(), AttributeValue::N(amount.to_string()))).into();
        let mut usage = MonthUsage::default();
        read_counters(&item, &Models::default(), &mut usage).unwrap();
        let tallies = [usage.totals, usage.by_day[&5], usage.by_model[UsageEvent::UNSPECIFIED]];
        assert_eq!(tallies.map(|tally| (tally.cache_read_tokens, tally.cache_write_tokens)), [(1, 2), (3, 4), (5, 6)]);
        assert_eq!(usage.totals.input_tokens, 0, "an absent counter is zero");
    }
}

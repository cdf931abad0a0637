//! Counters of usage as attributes of few, small items: a write is paid by the whole kilobytes of its item, however little of it changes.
//!
//! `i` (input tokens), `o` (output tokens) and `c` (cost, in nano-cents) are of the whole; `I5`, `O5` and `C5` of the month's fifth day; `i17`,
//! `o17`, `c17` and `u17` (tokens without a price) of the model with that number in the month of the organization. Days and numbers are written to base 36. Where a model is
//! counted in several items, it used their sum.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use aws_sdk_dynamodb::types::AttributeValue;

use super::{Conflict, Item, StoreError, Transaction, table::Key, table::Table};
use crate::domain::{MonthUsage, Tally, UsageEvent, UsageKind};

/// The models of an organization that a month tells apart; the rest is counted as [`OTHER`].
const MODELS_AT_MOST: usize = 200;
const OTHER: &str = "other";
/// The longest name that is told apart, in bytes: a month's list of 200 stays below 26 KB.
const MODEL_BYTES_AT_MOST: usize = 128;
/// Have the first numbers in every month, and no place in its list.
const ALWAYS: [&str; 2] = [UsageEvent::UNSPECIFIED, OTHER];
const NUMBER_OF_OTHER: usize = 1;
/// How many models share an item: three counters of 10^10 tokens and 10^16 nano-cents are 33 bytes, which leaves a kilobyte room to grow.
const MODELS_PER_ITEM: usize = 27;
/// Into how many items the models of a month fit.
pub(super) const ITEMS_OF_MODELS: usize = (MODELS_AT_MOST + ALWAYS.len()).div_ceil(MODELS_PER_ITEM);
/// How many models a line of keys counts in the item of its totals and days: beside 31 days of 10^9 tokens that is a kilobyte.
const MODELS_INLINE: usize = 2;
/// The attribute that lists a month's models.
const MODELS: &str = "models";
/// The attribute of a line's month that names its further items.
const MORE: &str = "more";
/// Input tokens, output tokens, nano-cents.
const SUMS: [&str; 3] = ["i", "o", "c"];
const SUMS_OF_DAY: [&str; 3] = ["I", "O", "C"];
/// The same of a model, and tokens without a price.
const SUMS_OF_MODEL: [&str; 4] = ["i", "o", "c", "u"];
const COST: usize = 2;
const UNPRICED: usize = 3;
const BASE: u32 = 36;

/// The models that a month of an organization tells apart, in the order in which they came: their places are their numbers, for good.
#[derive(Debug, Clone, Default)]
pub(super) struct Models(Vec<String>);

impl Models {
    pub(super) fn read(item: &Item) -> Self {
        let names = item.get(MODELS).and_then(|names| names.as_l().ok()).into_iter().flatten();
        Self(names.filter_map(|name| name.as_s().ok().cloned()).collect())
    }

    /// The number that an event's model has, takes, or shares with all others.
    pub(super) fn number(&mut self, event: &UsageEvent) -> usize {
        let name = event.model_name();
        if let Some(number) = ALWAYS.iter().copied().chain(self.0.iter().map(String::as_str)).position(|of| of == name)
        {
            return number;
        }
        if self.0.len() == MODELS_AT_MOST || name.len() > MODEL_BYTES_AT_MOST {
            return NUMBER_OF_OTHER;
        }
        self.0.push(name.to_owned());
        ALWAYS.len() + self.0.len() - 1
    }

    fn called(&self, number: usize) -> Option<&str> {
        ALWAYS.get(number).copied().or_else(|| self.0.get(number - ALWAYS.len()).map(String::as_str))
    }

    /// Adds to the month's list what it has more than `before`, on condition that the list still is that long.
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

/// The item of a month that holds a model's counters.
pub(super) const fn item_of_model(number: usize) -> usize {
    number / MODELS_PER_ITEM
}

/// What is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Whole,
    Day(u8),
    Model(usize),
}

/// One attribute: which of the sums of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Counter(Part, usize);

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Part::Whole => f.write_str(SUMS[self.1]),
            Part::Day(day) => write!(f, "{}{}", SUMS_OF_DAY[self.1], to_base(day.into())),
            Part::Model(number) => write!(f, "{}{}", SUMS_OF_MODEL[self.1], to_base(number)),
        }
    }
}

impl Counter {
    /// `None` for an attribute that is no counter.
    fn parse(name: &str) -> Option<Self> {
        let (sum, place) = name.split_at_checked(1)?;
        let of = |sums: &[&str]| sums.iter().position(|of| *of == sum);
        if let Some(sum) = of(&SUMS_OF_DAY) {
            return Some(Self(Part::Day(u8::from_str_radix(place, BASE).ok()?), sum));
        }
        if place.is_empty() {
            return Some(Self(Part::Whole, of(&SUMS)?));
        }
        let sum = of(&SUMS_OF_MODEL)?;
        Some(Self(Part::Model(usize::from_str_radix(place, BASE).ok()?), sum))
    }
}

/// Digits to base 36, two at most: no model or day has a number that needs more.
fn to_base(number: usize) -> String {
    let digit = |of: usize| u32::try_from(of % BASE as usize).ok().and_then(|of| char::from_digit(of, BASE));
    let high = (number >= BASE as usize).then(|| digit(number / BASE as usize)).flatten();
    high.into_iter().chain(digit(number)).collect()
}

/// Which models a line of keys counts in the item of its totals and days. That is a matter of cost alone: a reader sums all its items.
#[derive(Debug, Clone, Default)]
pub(super) struct Inline(BTreeSet<usize>);

impl Inline {
    pub(super) fn read(item: &Item) -> Self {
        let models = item.keys().filter_map(|name| match Counter::parse(name)?.0 {
            Part::Model(number) => Some(number),
            Part::Whole | Part::Day(_) => None,
        });
        Self(models.collect())
    }

    /// Whether a model is counted there, or now comes to be.
    pub(super) fn takes(&mut self, number: usize) -> bool {
        self.0.contains(&number) || (self.0.len() < MODELS_INLINE && self.0.insert(number))
    }
}

/// What a transaction adds to one item.
#[derive(Default)]
pub(super) struct Sums {
    counters: BTreeMap<Counter, u128>,
    /// Further items of the line that it also adds to.
    more: BTreeSet<usize>,
}

impl Sums {
    pub(super) fn add(&mut self, event: &UsageEvent, part: Part) {
        let tokens = match event.kind {
            UsageKind::InputTokens => 0,
            UsageKind::OutputTokens => 1,
        };
        let quantity = event.quantity.get().into();
        let priced = match (event.cost, part) {
            (Some(cost), _) => (COST, cost),
            (None, Part::Model(_)) => (UNPRICED, quantity),
            (None, Part::Whole | Part::Day(_)) => (COST, 0),
        };
        for (sum, amount) in [(tokens, quantity), priced] {
            if amount > 0 {
                let counter = self.counters.entry(Counter(part, sum)).or_default();
                *counter = counter.saturating_add(amount);
            }
        }
    }

    /// Names an item of models in the line's first one, so that a reader finds it.
    pub(super) fn name(&mut self, item: usize) {
        self.more.insert(item);
    }

    pub(super) fn stage(&self, transaction: &mut Transaction, key: &Key) -> Result<(), StoreError> {
        transaction.update(Table::Usage, key, Conflict::Changed, |mut update| {
            let mut clauses = Vec::with_capacity(self.counters.len() + 1);
            for (at, (counter, amount)) in self.counters.iter().enumerate() {
                clauses.push(format!("#{at} :{at}"));
                update = update
                    .expression_attribute_names(format!("#{at}"), counter.to_string())
                    .expression_attribute_values(format!(":{at}"), AttributeValue::N(amount.to_string()));
            }
            if !self.more.is_empty() {
                clauses.push(format!("{MORE} :more"));
                let more = self.more.iter().map(usize::to_string).collect();
                update = update.expression_attribute_values(":more", AttributeValue::Ns(more));
            }
            update.update_expression(format!("ADD {}", clauses.join(",")))
        })
    }
}

/// The further items of a line's month.
pub(super) fn more_items(item: &Item) -> Vec<usize> {
    let more = item.get(MORE).and_then(|more| more.as_ns().ok()).into_iter().flatten();
    more.filter_map(|number| number.parse().ok()).collect()
}

/// Adds an item's counters to `usage`. A model that came after `models` was read is not told of yet.
pub(super) fn read_counters(item: &Item, models: &Models, usage: &mut MonthUsage) -> Result<(), StoreError> {
    for (name, value) in item {
        let (Ok(number), Some(Counter(part, sum))) = (value.as_n(), Counter::parse(name)) else { continue };
        let amount: u128 = number.parse().map_err(|_| StoreError::Fault(format!("the counter {name} is no number")))?;
        let tally = match part {
            Part::Whole => &mut usage.totals,
            Part::Day(day) => usage.by_day.entry(day).or_default(),
            Part::Model(number) => match models.called(number) {
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
            0 => &mut tally.input_tokens,
            1 => &mut tally.output_tokens,
            _ => &mut tally.cost,
        };
        *counter = counter.saturating_add(amount);
    }
    Ok(())
}

/// The totals of an item alone.
pub(super) fn read_totals(item: &Item) -> Result<Tally, StoreError> {
    let mut usage = MonthUsage::default();
    read_counters(item, &Models::default(), &mut usage)?;
    Ok(usage.totals)
}

/// The attributes that hold an item's totals, for a projection.
pub(super) fn totals_projection() -> String {
    format!("pk, sk, {}", SUMS.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_read_by_the_name_that_it_was_written_under_and_no_two_share_one() {
        let days = (1..=31).map(Part::Day);
        let models = (0..MODELS_AT_MOST + ALWAYS.len()).map(Part::Model);
        let mut names = BTreeSet::new();
        for part in days.chain(models).chain([Part::Whole]) {
            let sums = if matches!(part, Part::Model(_)) { SUMS_OF_MODEL.len() } else { SUMS.len() };
            for sum in 0..sums {
                let counter = Counter(part, sum);
                let name = counter.to_string();
                assert_eq!(Counter::parse(&name), Some(counter), "{name}");
                assert!(names.insert(name));
            }
        }
        for name in ["pk", "sk", "ttl", "", "I", "i?", "u", "U1", "é", MODELS, MORE] {
            assert_eq!(Counter::parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_line_counts_its_first_models_inline_and_keeps_them_there() {
        let item = Item::from(
            ["i1", "c1", "i", "I3", "pk", "sk"].map(|name| (name.to_owned(), AttributeValue::N("1".to_owned()))),
        );
        let mut inline = Inline::read(&item);
        assert_eq!([7, 8, 1, 7].map(|number| inline.takes(number)), [true, false, true, true]);
    }

    #[test]
    fn parts_of_a_sum_are_added_and_stop_at_the_end_of_their_type() {
        let item = |amount: u128| Item::from([("i".to_owned(), AttributeValue::N(amount.to_string()))]);
        let mut usage = MonthUsage::default();
        for amount in [3, 4] {
            read_counters(&item(amount), &Models::default(), &mut usage).unwrap();
        }
        assert_eq!(usage.totals.input_tokens, 7);
        read_counters(&item(u128::MAX), &Models::default(), &mut usage).unwrap();
        assert_eq!(usage.totals.input_tokens, u128::MAX);
    }
}

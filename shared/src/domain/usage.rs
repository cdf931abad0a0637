use std::{cmp::Reverse, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use super::{Id, Invalid, ModelId, Timestamp};

/// How long after it happened usage is still counted.
pub const COUNTED_LATE: std::time::Duration = std::time::Duration::from_hours(400 * 24);
/// How far ahead of ours a data plane's clock may be.
pub const COUNTED_AHEAD: std::time::Duration = std::time::Duration::from_hours(1);

/// Nano-cents in a cent.
const NANO: u128 = 1_000_000_000;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageKind {
    InputTokens,
    OutputTokens,
}

/// How much of it at once: 1 to 10^12.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct Quantity(u64);

impl Quantity {
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for Quantity {
    type Error = Invalid;

    fn try_from(value: u64) -> Result<Self, Invalid> {
        if (1..=1_000_000_000_000).contains(&value) {
            Ok(Self(value))
        } else {
            Err(Invalid::new("must be a whole number from 1 to 1000000000000"))
        }
    }
}

/// A name that somebody else gave to something: 1 to 255 characters, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Reference(String);

impl Reference {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Reference {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if (1..=255).contains(&text.chars().count()) && !text.chars().any(char::is_control) {
            Ok(Self(text))
        } else {
            Err(Invalid::new("must be 1 to 255 characters, none of them a control character"))
        }
    }
}

/// Something that was used, and what it cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageEvent {
    /// Counts once in its organization, however often it is reported.
    pub client_event_id: Reference,
    pub api_key_id: Id,
    /// Under which key's counters it counts: the first of the line of rotations.
    pub counted_as: Id,
    pub kind: UsageKind,
    pub quantity: Quantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelId>,
    /// In nano-cents. The store's own to keep: its number is wider than what serde knows there.
    #[serde(skip)]
    pub cost: u128,
    pub occurred_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_key_id: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embed_key_id: Option<Id>,
}

/// What was used of something in some time. Sums stop at their type's end instead of starting over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub input_tokens: u128,
    pub output_tokens: u128,
    /// In nano-cents.
    pub cost: u128,
}

impl Tally {
    pub const fn total_tokens(&self) -> u128 {
        self.input_tokens.saturating_add(self.output_tokens)
    }

    /// Whole cents, rounded up: the one place where money is rounded.
    pub const fn cost_cents(&self) -> u128 {
        self.cost.div_ceil(NANO)
    }

    pub fn add(&mut self, event: &UsageEvent) {
        let tokens = match event.kind {
            UsageKind::InputTokens => &mut self.input_tokens,
            UsageKind::OutputTokens => &mut self.output_tokens,
        };
        *tokens = tokens.saturating_add(event.quantity.get().into());
        self.cost = self.cost.saturating_add(event.cost);
    }
}

/// A month's usage: whole, by model and by day of the month.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MonthUsage {
    pub totals: Tally,
    pub by_model: BTreeMap<String, Tally>,
    pub by_day: BTreeMap<u8, Tally>,
}

/// What a token costs, in nano-cents: $0.075 for a million is 7,500.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    pub input: u32,
    pub output: u32,
}

impl Price {
    /// The cost of so many tokens, in nano-cents.
    pub fn cost(self, kind: UsageKind, quantity: Quantity) -> u128 {
        let each = match kind {
            UsageKind::InputTokens => self.input,
            UsageKind::OutputTokens => self.output,
        };
        u128::from(quantity.get()) * u128::from(each)
    }
}

/// What models cost. A name that ends in `*` stands for every model that starts so; the longest that fits counts, an exact one before all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "BTreeMap<String, Price>")]
pub struct PriceTable {
    exact: BTreeMap<String, Price>,
    /// Longest first.
    beginnings: Vec<(String, Price)>,
}

impl PriceTable {
    pub fn price(&self, model: &str) -> Option<Price> {
        let beginning = || self.beginnings.iter().find(|(start, _)| model.starts_with(start)).map(|(_, price)| price);
        self.exact.get(model).or_else(beginning).copied()
    }
}

impl From<BTreeMap<String, Price>> for PriceTable {
    fn from(prices: BTreeMap<String, Price>) -> Self {
        let mut table = Self::default();
        for (name, price) in prices {
            match name.strip_suffix('*') {
                Some(start) => table.beginnings.push((start.to_owned(), price)),
                None => drop(table.exact.insert(name, price)),
            }
        }
        table.beginnings.sort_by_key(|(start, _)| Reverse(start.len()));
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_that_fits_a_model_prices_it() {
        let price = |each| Price { input: each, output: 2 * each };
        let named = [("claude-*", price(1)), ("claude-opus-*", price(2)), ("claude-opus-4", price(3))];
        let table = PriceTable::from(BTreeMap::from(named.map(|(name, price)| (name.to_owned(), price))));
        for (model, found) in [
            ("claude-opus-4", Some(price(3))),
            ("claude-opus-4-1", Some(price(2))),
            ("claude-haiku", Some(price(1))),
            ("gpt-4o", None),
        ] {
            assert_eq!(table.price(model), found, "{model}");
        }
    }

    #[test]
    fn money_is_rounded_up_once() {
        let price = Price { input: 7_500, output: 30_000 };
        let million = Quantity::try_from(1_000_000).unwrap();
        assert_eq!(price.cost(UsageKind::InputTokens, million), 7_500_000_000, "seven and a half cents");
        let cents = |cost| Tally { cost, ..Tally::default() }.cost_cents();
        assert_eq!([0, 1, NANO, NANO + 1, 7_500_000_000].map(cents), [0, 1, 1, 2, 8]);
    }

    #[test]
    fn nothing_overflows() {
        let most = Quantity::try_from(1_000_000_000_000).unwrap();
        let price = Price { input: u32::MAX, output: u32::MAX };
        assert_eq!(price.cost(UsageKind::OutputTokens, most), u128::from(u32::MAX) * 1_000_000_000_000);
        assert!(Quantity::try_from(0).is_err() && Quantity::try_from(1_000_000_000_001).is_err());
    }
}

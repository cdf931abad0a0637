use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Id, Invalid, ModelId, Timestamp};

/// Maximum age of usage that is counted.
pub const MAX_USAGE_AGE: std::time::Duration = std::time::Duration::from_hours(400 * 24);
/// How far a data plane's clock may be ahead of this service's clock.
pub const MAX_CLOCK_AHEAD: std::time::Duration = std::time::Duration::from_hours(1);

/// Nano-cents in a cent.
pub(super) const NANO: u128 = 1_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageKind {
    /// Input that the provider read neither from nor into its prompt cache.
    InputTokens,
    OutputTokens,
    /// Input that the provider read from its prompt cache.
    CacheReadTokens,
    /// Input that the provider wrote to its prompt cache.
    CacheWriteTokens,
}

impl UsageKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::CacheReadTokens => "cache_read_tokens",
            Self::CacheWriteTokens => "cache_write_tokens",
        }
    }
}

/// A number from 1 to 10^12.
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
            Err(Invalid::new("must be an integer from 1 to 1000000000000"))
        }
    }
}

/// A name or id from another system: 1 to 255 characters, no control characters.
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
            Err(Invalid::new("must be 1 to 255 characters without control characters"))
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageEvent {
    /// The event counts once in its organization, however often it is reported.
    pub client_event_id: Reference,
    pub api_key_id: Id,
    /// The key lineage whose counters include this event.
    #[serde(rename = "counted_as")]
    pub lineage_id: Id,
    pub kind: UsageKind,
    pub quantity: Quantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelId>,
    /// Cost in nano-cents; `None` without a price. The store writes this attribute itself.
    #[serde(skip)]
    pub cost: Option<u128>,
    pub occurred_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_key_id: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embed_key_id: Option<Id>,
}

impl UsageEvent {
    /// The model name of events without a model.
    pub const UNSPECIFIED: &str = "unspecified";

    pub fn model_name(&self) -> &str {
        self.model.as_ref().map_or(Self::UNSPECIFIED, ModelId::as_str)
    }
}

/// Usage totals. Sums saturate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Input without the tokens of the prompt cache.
    pub input_tokens: u128,
    pub output_tokens: u128,
    pub cache_read_tokens: u128,
    pub cache_write_tokens: u128,
    /// Cost in nano-cents.
    pub cost: u128,
}

impl Tally {
    /// Returns the input with the tokens of the prompt cache. Caps on input compare it.
    pub const fn all_input_tokens(&self) -> u128 {
        self.input_tokens.saturating_add(self.cache_read_tokens).saturating_add(self.cache_write_tokens)
    }

    /// Returns the tokens of all kinds.
    pub const fn total_tokens(&self) -> u128 {
        self.all_input_tokens().saturating_add(self.output_tokens)
    }

    /// Returns the cost in cents, rounded up. Money is rounded only here.
    pub const fn cost_cents(&self) -> u128 {
        self.cost.div_ceil(NANO)
    }

    pub fn add(&mut self, event: &UsageEvent) {
        let tokens = match event.kind {
            UsageKind::InputTokens => &mut self.input_tokens,
            UsageKind::OutputTokens => &mut self.output_tokens,
            UsageKind::CacheReadTokens => &mut self.cache_read_tokens,
            UsageKind::CacheWriteTokens => &mut self.cache_write_tokens,
        };
        *tokens = tokens.saturating_add(event.quantity.get().into());
        self.cost = self.cost.saturating_add(event.cost.unwrap_or(0));
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MonthUsage {
    pub totals: Tally,
    pub by_model: BTreeMap<String, Tally>,
    pub by_day: BTreeMap<u8, Tally>,
    /// Tokens of each model without a price.
    pub unpriced: BTreeMap<String, u128>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Price;

    #[test]
    fn money_is_rounded_up_once() {
        let price = Price { input: 7_500, output: 30_000, cache_read: None, cache_write: None };
        let million = Quantity::try_from(1_000_000).unwrap();
        assert_eq!(price.cost(UsageKind::InputTokens, million), 7_500_000_000, "seven and a half cents");
        let cents = |cost| Tally { cost, ..Tally::default() }.cost_cents();
        assert_eq!([0, 1, NANO, NANO + 1, 7_500_000_000].map(cents), [0, 1, 1, 2, 8]);
    }

    #[test]
    fn cache_tokens_have_their_own_prices() {
        let (read, write) = (UsageKind::CacheReadTokens, UsageKind::CacheWriteTokens);
        let quantity = Quantity::try_from(10).unwrap();
        let costs = |cache_read, cache_write| {
            let price = Price { input: 300, output: 1_500, cache_read, cache_write };
            [read, write].map(|kind| price.cost(kind, quantity))
        };
        assert_eq!(costs(Some(30), Some(375)), [300, 3_750]);
        assert_eq!(costs(Some(0), None), [0, 3_000], "without a price they cost as input");
    }

    #[test]
    fn total_includes_the_prompt_cache() {
        let tally =
            Tally { input_tokens: 1, output_tokens: 20, cache_read_tokens: 300, cache_write_tokens: 4_000, cost: 0 };
        assert_eq!((tally.all_input_tokens(), tally.total_tokens()), (4_301, 4_321));
    }

    #[test]
    fn largest_usage_cost_does_not_overflow() {
        let max = Quantity::try_from(1_000_000_000_000).unwrap();
        let price = Price { input: u32::MAX, output: u32::MAX, cache_read: None, cache_write: None };
        assert_eq!(price.cost(UsageKind::OutputTokens, max), u128::from(u32::MAX) * 1_000_000_000_000);
        assert!(Quantity::try_from(0).is_err() && Quantity::try_from(1_000_000_000_001).is_err());
    }
}

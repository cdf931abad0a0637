//! The committed numbers of a month: its totals plus the amounts that running turns hold. A
//! condition of DynamoDB cannot add, so the items with the totals keep one number per kind of cap.
//!
//! Attribute names, beside those of [`counters`](super::counters):
//!
//! | name | meaning |
//! | --- | --- |
//! | `ki`, `ko`, `kt`, `kc` | committed: input tokens with the prompt cache, output tokens, all tokens, cost in nano-cents |
//! | `k` | present if `ki`…`kc` include all totals. Items written before these attributes existed lack it |
//! | `h<turn>` | the [`Amount`] that a running turn holds |
//!
//! Every write of totals moves the committed numbers by the same amounts. Reported usage never
//! reads them. With `k`, each committed number is the total plus what the `h` attributes hold.

use std::{collections::BTreeMap, fmt, ops::Sub, str::FromStr};

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{Item, StoreError, counters::read_totals};
use crate::domain::{CapKind, Invalid, Tally};

/// The attribute of an item whose committed numbers include all totals.
pub(super) const COMPLETE: &str = "k";
const HELD: &str = "h";
/// Number of characters of a turn's id that name its hold. They are the random end of the id, and
/// distinguish the open turns of an organization.
const NAME_CHARACTERS: usize = 16;

/// An amount that a running turn holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Amount {
    /// Tokens of input, the prompt cache included.
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// In nano-cents.
    pub cost: u128,
}

impl Amount {
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(more.input_tokens),
            output_tokens: self.output_tokens.saturating_add(more.output_tokens),
            cost: self.cost.saturating_add(more.cost),
        }
    }

    #[must_use]
    pub(super) fn minus(self, less: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_sub(less.input_tokens),
            output_tokens: self.output_tokens.saturating_sub(less.output_tokens),
            cost: self.cost.saturating_sub(less.cost),
        }
    }

    pub(super) fn attribute_value(self) -> AttributeValue {
        AttributeValue::S(self.to_string())
    }
}

/// The stored form: input tokens, output tokens and cost, separated by commas.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.input_tokens, self.output_tokens, self.cost)
    }
}

impl FromStr for Amount {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parse = || {
            let (input, rest) = text.split_once(',')?;
            let (output, cost) = rest.split_once(',')?;
            Some(Self {
                input_tokens: input.parse().ok()?,
                output_tokens: output.parse().ok()?,
                cost: cost.parse().ok()?,
            })
        };
        parse().ok_or(Invalid::new("must be three numbers, separated by commas"))
    }
}

impl TryFrom<String> for Amount {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Amount> for String {
    fn from(amount: Amount) -> Self {
        amount.to_string()
    }
}

/// Returns the attribute with the amount that a turn holds.
pub(super) fn hold_attribute(turn: &str) -> String {
    let end = turn.len().checked_sub(NAME_CHARACTERS).and_then(|start| turn.get(start..));
    format!("{HELD}{}", end.unwrap_or(turn))
}

/// Returns the amount in an attribute of [`hold_attribute`], zero if it is absent.
pub(super) fn read_hold(item: &Item, attribute: &str) -> Result<Amount, StoreError> {
    let Some(value) = item.get(attribute) else { return Ok(Amount::default()) };
    let amount = value.as_s().ok().and_then(|text| text.parse().ok());
    amount.ok_or_else(|| StoreError::Fault(format!("hold {attribute} is not an amount")))
}

/// The amounts that running turns hold in an item, by attribute.
#[derive(Debug, Clone, Default)]
pub(super) struct Holds(BTreeMap<String, Amount>);

impl Holds {
    pub(super) fn read(item: &Item) -> Result<Self, StoreError> {
        let names = item.keys().filter(|name| name.starts_with(HELD));
        names.map(|name| Ok((name.clone(), read_hold(item, name)?))).collect::<Result<_, _>>().map(Self)
    }

    /// Returns spending plus all amounts.
    pub(super) fn added_to(&self, spent: Tally) -> Tally {
        self.0.values().fold(spent, |sum, held| Tally {
            input_tokens: sum.input_tokens.saturating_add(held.input_tokens.into()),
            output_tokens: sum.output_tokens.saturating_add(held.output_tokens.into()),
            cost: sum.cost.saturating_add(held.cost),
            ..sum
        })
    }

    pub(super) fn get(&self, attribute: &str) -> Amount {
        self.0.get(attribute).copied().unwrap_or_default()
    }

    pub(super) fn set(&mut self, attribute: &str, amount: Amount) {
        self.0.insert(attribute.to_owned(), amount);
    }
}

/// Reads the committed numbers as a tally, to which a budget applies. All input is in
/// `input_tokens`.
pub(super) fn read_committed(item: &Item) -> Result<Tally, StoreError> {
    let number = |kind: CapKind| {
        let Some(value) = item.get(attribute(kind)) else { return Ok(0) };
        let number = value.as_n().ok().and_then(|number| number.parse().ok());
        number.ok_or_else(|| StoreError::Fault(format!("committed number {} is invalid", attribute(kind))))
    };
    Ok(Tally {
        input_tokens: number(CapKind::InputTokens)?,
        output_tokens: number(CapKind::OutputTokens)?,
        cost: number(CapKind::CostCents)?,
        ..Tally::default()
    })
}

/// Returns the totals minus the committed numbers of an item without [`COMPLETE`]. Concurrent writes of
/// totals change both by the same amount.
pub(super) fn missing(item: &Item) -> Result<CommittedChange, StoreError> {
    Ok(CommittedChange::from(&read_totals(item)?) - CommittedChange::from(&read_committed(item)?))
}

/// A change of the committed numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CommittedChange {
    input_tokens: i128,
    output_tokens: i128,
    /// In nano-cents.
    cost: i128,
}

impl CommittedChange {
    /// Returns each attribute and its change.
    pub(super) fn attributes(self) -> [(&'static str, i128); 4] {
        let total = self.input_tokens.saturating_add(self.output_tokens);
        [
            (attribute(CapKind::InputTokens), self.input_tokens),
            (attribute(CapKind::OutputTokens), self.output_tokens),
            (attribute(CapKind::TotalTokens), total),
            (attribute(CapKind::CostCents), self.cost),
        ]
    }
}

impl From<&Tally> for CommittedChange {
    fn from(tally: &Tally) -> Self {
        Self {
            input_tokens: signed(tally.all_input_tokens()),
            output_tokens: signed(tally.output_tokens),
            cost: signed(tally.cost),
        }
    }
}

impl From<Amount> for CommittedChange {
    fn from(amount: Amount) -> Self {
        Self {
            input_tokens: amount.input_tokens.into(),
            output_tokens: amount.output_tokens.into(),
            cost: signed(amount.cost),
        }
    }
}

impl Sub for CommittedChange {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_sub(other.input_tokens),
            output_tokens: self.output_tokens.saturating_sub(other.output_tokens),
            cost: self.cost.saturating_sub(other.cost),
        }
    }
}

/// Returns the attribute that a cap of this kind limits.
pub(super) const fn attribute(kind: CapKind) -> &'static str {
    match kind {
        CapKind::InputTokens => "ki",
        CapKind::OutputTokens => "ko",
        CapKind::TotalTokens => "kt",
        CapKind::CostCents => "kc",
    }
}

fn signed(amount: u128) -> i128 {
    i128::try_from(amount).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMOUNT: Amount = Amount { input_tokens: 476, output_tokens: 1_024, cost: 1 << 90 };

    fn item<const N: usize>(numbers: [(&str, u128); N]) -> Item {
        numbers.map(|(name, number)| (name.to_owned(), AttributeValue::N(number.to_string()))).into()
    }

    #[test]
    fn amount_round_trips_as_text() {
        assert_eq!(AMOUNT.to_string().parse(), Ok(AMOUNT));
        assert_eq!(serde_json::from_str::<Amount>(&serde_json::to_string(&AMOUNT).unwrap()).unwrap(), AMOUNT);
        for text in ["", "1,2", "1,2,", "1,2,3,4", "-1,2,3", "a,b,c"] {
            assert!(text.parse::<Amount>().is_err(), "{text}");
        }
    }

    #[test]
    fn hold_name_is_the_end_of_the_id() {
        assert_eq!(hold_attribute("turn_00112233445566778899aabbccddeeff"), "h8899aabbccddeeff");
        assert_eq!(hold_attribute("turn_1"), "hturn_1");
    }

    #[test]
    fn holds_are_read_by_turn() {
        let mut stored = item([("i", 5), ("ki", 5), ("k", 1)]);
        stored.insert(hold_attribute("turn_1"), AMOUNT.attribute_value());
        let holds = Holds::read(&stored).unwrap();
        assert_eq!((holds.get("hturn_1"), holds.get("hturn_2")), (AMOUNT, Amount::default()));
        stored.insert("hturn_2".to_owned(), AttributeValue::S("?".to_owned()));
        assert!(Holds::read(&stored).is_err());
    }

    #[test]
    fn missing_change_is_totals_without_committed() {
        let old = item([("i", 10), ("r", 20), ("w", 30), ("o", 4), ("c", 500), ("ki", 15), ("kc", 100)]);
        assert_eq!(missing(&old).unwrap().attributes(), [("ki", 45), ("ko", 4), ("kt", 49), ("kc", 400)]);
        assert_eq!(missing(&Item::new()).unwrap(), CommittedChange::default());
    }

    #[test]
    fn change_may_be_negative() {
        let spent = Tally { input_tokens: 476, output_tokens: 24, cost: 7, ..Tally::default() };
        let held = Amount { cost: 10, ..AMOUNT };
        let change = CommittedChange::from(&spent) - held.into();
        assert_eq!(change.attributes(), [("ki", 0), ("ko", -1_000), ("kt", -1_000), ("kc", -3)]);
    }
}

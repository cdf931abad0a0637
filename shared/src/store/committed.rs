//! The committed numbers of a month: its totals plus the amounts that running turns hold. A
//! condition of DynamoDB cannot add, so the items with the totals keep one number per kind of cap.
//!
//! Attribute names, beside those of [`counters`](super::counters):
//!
//! | name | meaning |
//! | --- | --- |
//! | `ki`, `ko`, `kt`, `kc` | committed: input tokens with the prompt cache, output tokens, all tokens, cost in nano-cents |
//!
//! Every write of totals moves the committed numbers by the same amounts. Reported usage never reads
//! them.

use crate::domain::{CapKind, Tally};

/// A change of the committed numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Change {
    input_tokens: i128,
    output_tokens: i128,
    /// In nano-cents.
    cost: i128,
}

impl Change {
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

impl From<&Tally> for Change {
    fn from(tally: &Tally) -> Self {
        Self {
            input_tokens: signed(tally.all_input_tokens()),
            output_tokens: signed(tally.output_tokens),
            cost: signed(tally.cost),
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

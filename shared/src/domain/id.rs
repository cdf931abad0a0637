use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Entropy, Invalid, Timestamp};

/// 2025-01-01T00:00:00Z in Unix milliseconds: where ids start counting.
const EPOCH_MILLIS: i64 = 1_735_689_600_000;
const RANDOM_BITS: u32 = 12;
/// The largest integer that every JSON reader keeps exact.
const MAX: u64 = (1 << 53) - 1;

/// An identifier: an integer in 1 … 2^53−1, milliseconds since 2025 in the upper 41 bits and 12 random bits below, so that
/// newer is larger. Twelve bits do not make it unique: the creating transaction claims it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct Id(u64);

impl Id {
    /// Draws an id for something created at `now`.
    pub fn draw(now: Timestamp, entropy: &dyn Entropy) -> Self {
        let mut random = [0; 2];
        entropy.fill(&mut random);
        let millis = u64::try_from(now.as_millis() - EPOCH_MILLIS).unwrap_or(0);
        let low = u64::from(u16::from_be_bytes(random)) & ((1 << RANDOM_BITS) - 1);
        Self(((millis << RANDOM_BITS | low) & MAX).max(1))
    }

    /// When it was drawn.
    pub fn drawn_at(self) -> Timestamp {
        let millis = i64::try_from(self.0 >> RANDOM_BITS).expect("41 bits");
        Timestamp::from_millis(EPOCH_MILLIS + millis).expect("before 2095")
    }

    pub const fn new(value: u64) -> Option<Self> {
        if 1 <= value && value <= MAX { Some(Self(value)) } else { None }
    }

    /// Reads an id as it stands in a path or a claim: decimal digits, no sign, no leading zero.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > 16 || text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        text.parse().ok().and_then(Self::new)
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for Id {
    type Error = Invalid;

    fn try_from(value: u64) -> Result<Self, Invalid> {
        Self::new(value).ok_or(Invalid::new("must be an integer from 1 to 9007199254740991"))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The kinds of things that have ids of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Organization,
    ApiKey,
    AgentProject,
    Release,
    ModelKey,
    WebhookEndpoint,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::ApiKey => "api_key",
            Self::AgentProject => "agent_project",
            Self::Release => "release",
            Self::ModelKey => "model_key",
            Self::WebhookEndpoint => "webhook_endpoint",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entropy::SeededEntropy;

    #[test]
    fn later_ids_are_larger_and_stay_exact_in_javascript_until_2094() {
        let entropy = SeededEntropy::new(1);
        let at = |text: &str| Id::draw(text.parse().unwrap(), &entropy);
        let ids = [
            at("2025-01-01T00:00:00Z"),
            at("2026-11-21T00:00:00Z"),
            at("2026-11-21T00:00:00.001Z"),
            at("2094-01-01T00:00:00Z"),
        ];
        assert!(ids.is_sorted());
        assert!(ids[3].get() <= MAX);
    }

    proptest! {
        #[test]
        fn an_id_knows_when_it_was_drawn(millis in EPOCH_MILLIS..EPOCH_MILLIS + (1 << 41), seed: u64) {
            let now = Timestamp::from_millis(millis).unwrap();
            prop_assert_eq!(Id::draw(now, &SeededEntropy::new(seed)).drawn_at(), now);
        }

        #[test]
        fn parses_exactly_what_it_prints(value in 1..=MAX, other in ".*") {
            prop_assert_eq!(Id::parse(&value.to_string()).map(Id::get), Some(value));
            if let Some(id) = Id::parse(&other) {
                prop_assert_eq!(id.to_string(), other);
            }
        }
    }

    #[test]
    fn refuses_what_is_no_id() {
        for text in ["", "0", "01", "+1", "-1", " 1", "1 ", "1.0", "9007199254740992", "99999999999999999999", "１"] {
            assert_eq!(Id::parse(text), None, "{text}");
        }
    }
}

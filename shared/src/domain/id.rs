use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Entropy, Invalid, Timestamp};

/// 2025-01-01T00:00:00Z in Unix milliseconds, the epoch of ids.
const EPOCH_MILLIS: i64 = 1_735_689_600_000;
const RANDOM_BITS: u32 = 12;
/// The largest integer that every JSON parser represents exactly.
const MAX: u64 = (1 << 53) - 1;

/// An integer from 1 to 2^53−1: 41 bits of milliseconds since 2025 above 12 random bits, so newer
/// ids are larger. The random bits do not make an id unique: the transaction that creates a
/// resource also claims its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct Id(u64);

impl Id {
    pub fn draw(now: Timestamp, entropy: &dyn Entropy) -> Self {
        let mut random = [0; 2];
        entropy.fill(&mut random);
        let millis = u64::try_from(now.as_millis() - EPOCH_MILLIS).unwrap_or(0);
        let low = u64::from(u16::from_be_bytes(random)) & ((1 << RANDOM_BITS) - 1);
        Self(((millis << RANDOM_BITS | low) & MAX).max(1))
    }

    pub fn drawn_at(self) -> Timestamp {
        let millis = i64::try_from(self.0 >> RANDOM_BITS).expect("41 bits of milliseconds fit");
        Timestamp::from_millis(EPOCH_MILLIS + millis).expect("41 bits of milliseconds end before 2095")
    }

    pub const fn new(value: u64) -> Option<Self> {
        if 1 <= value && value <= MAX { Some(Self(value)) } else { None }
    }

    /// Parses an id from a path or a claim: decimal digits, no sign, no leading zero.
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
    fn ids_sort_by_time_and_fit_53_bits() {
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
        fn id_contains_its_creation_time(millis in EPOCH_MILLIS..EPOCH_MILLIS + (1 << 41), seed: u64) {
            let now = Timestamp::from_millis(millis).unwrap();
            prop_assert_eq!(Id::draw(now, &SeededEntropy::new(seed)).drawn_at(), now);
        }

        #[test]
        fn parse_accepts_only_the_printed_form(value in 1..=MAX, other in ".*") {
            prop_assert_eq!(Id::parse(&value.to_string()).map(Id::get), Some(value));
            if let Some(id) = Id::parse(&other) {
                prop_assert_eq!(id.to_string(), other);
            }
        }
    }

    #[test]
    fn invalid_ids_are_rejected() {
        for text in ["", "0", "01", "+1", "-1", " 1", "1 ", "1.0", "9007199254740992", "99999999999999999999", "１"] {
            assert_eq!(Id::parse(text), None, "{text}");
        }
    }
}

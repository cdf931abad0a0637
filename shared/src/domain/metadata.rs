use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Invalid;

/// The caller's own notes on a resource: at most 50 pairs, keys of 1 to 40 characters, values of at most 500.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct Metadata(BTreeMap<String, String>);

impl Metadata {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn pairs(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl TryFrom<BTreeMap<String, String>> for Metadata {
    type Error = Invalid;

    fn try_from(pairs: BTreeMap<String, String>) -> Result<Self, Invalid> {
        if pairs.len() > 50 {
            return Err(Invalid::new("must hold at most 50 pairs"));
        }
        if pairs.keys().any(|key| key.is_empty() || key.chars().count() > 40) {
            return Err(Invalid::new("must have keys of 1 to 40 characters"));
        }
        if pairs.values().any(|value| value.chars().count() > 500) {
            return Err(Invalid::new("must have values of at most 500 characters"));
        }
        Ok(Self(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_fifty_pairs_of_forty_and_five_hundred() {
        let pairs = |count: usize, key: usize, value: usize| {
            let pair = |index: usize| (format!("{index:0>key$}"), "é".repeat(value));
            Metadata::try_from((0..count).map(pair).collect::<BTreeMap<_, _>>())
        };
        assert!(pairs(50, 40, 500).is_ok());
        assert!(pairs(51, 40, 500).is_err());
        assert!(pairs(1, 41, 1).is_err());
        assert!(pairs(1, 1, 501).is_err());
        assert!(Metadata::try_from(BTreeMap::from([(String::new(), String::new())])).is_err());
    }
}

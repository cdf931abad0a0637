use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Invalid;

const MAX_PAIRS: usize = 50;

/// The caller's notes on a resource: at most 50 pairs, keys of 1 to 40 characters, values of at
/// most 500 characters. In requests, [`check_key`](super::check_key) checks the keys first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, MetadataText>")]
pub struct Metadata(BTreeMap<String, String>);

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct MetadataText(String);

impl TryFrom<String> for MetadataText {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        match text.chars().count() {
            0..=500 => Ok(Self(text)),
            _ => Err(Invalid::new("must have at most 500 characters")),
        }
    }
}

impl Metadata {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds or replaces a pair. The caller checks the key and the value. Fails if there are too many
    /// pairs.
    pub fn insert(&mut self, key: String, value: String) -> Result<(), Invalid> {
        self.0.insert(key, value);
        check_count(&self.0)
    }

    pub fn pairs(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl TryFrom<BTreeMap<String, MetadataText>> for Metadata {
    type Error = Invalid;

    fn try_from(pairs: BTreeMap<String, MetadataText>) -> Result<Self, Invalid> {
        check_count(&pairs)?;
        if pairs.keys().any(|key| key.is_empty() || key.chars().count() > 40) {
            return Err(Invalid::new("must have keys of 1 to 40 characters"));
        }
        Ok(Self(pairs.into_iter().map(|(key, MetadataText(value))| (key, value)).collect()))
    }
}

fn check_count<T>(pairs: &BTreeMap<String, T>) -> Result<(), Invalid> {
    if pairs.len() > MAX_PAIRS { Err(Invalid::new("must have at most 50 pairs")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_limits_are_enforced() {
        let pairs = |count: usize, key: usize, value: usize| {
            let pair = |index: usize| (format!("{index:0>key$}"), "é".repeat(value));
            let pairs: BTreeMap<_, _> = (0..count).map(pair).collect();
            serde_json::from_value::<Metadata>(serde_json::json!(pairs))
        };
        assert!(pairs(50, 40, 500).is_ok());
        assert!(pairs(51, 40, 500).is_err());
        assert!(pairs(1, 41, 1).is_err());
        assert!(pairs(1, 1, 501).is_err());
        assert!(serde_json::from_str::<Metadata>(r#"{"":""}"#).is_err());
    }
}

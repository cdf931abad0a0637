use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// A right of an API key. No scope implies another scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Lists keys, usage, projects, releases, logs.
    Read,
    /// Deploys releases and mints session tokens.
    Write,
    /// Creates and revokes keys, manages provider keys, webhooks and budgets, rolls back.
    Admin,
}

impl Scope {
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
            Self::Admin => 4,
        }
    }
}

/// A set of scopes, listed in JSON as read, write, admin. An API key without scopes is valid at
/// data planes, but here it can only call the whoami routes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ScopeSet(u8);

impl ScopeSet {
    /// Session tokens carry the empty set, because their rights come from their kind.
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(7);

    pub fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }

    /// Parses the output of [`Display`](fmt::Display). Returns `None` for any other text.
    pub fn from_words(text: &str) -> Option<Self> {
        let mut set = Self::NONE;
        for word in text.split(' ').filter(|_| !text.is_empty()) {
            set.0 |= Scope::ALL.into_iter().find(|scope| scope.as_str() == word)?.bit();
        }
        Some(set)
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

/// Prints space-separated words, as OAuth writes scopes: `read write`.
impl fmt::Display for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, scope) in self.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { " " })?;
            f.write_str(scope.as_str())?;
        }
        Ok(())
    }
}

impl fmt::Debug for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

impl Serialize for ScopeSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for ScopeSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<Scope>::deserialize(deserializer).map(Self::from_iter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scope_set_prints_in_canonical_order() {
        let set: ScopeSet = serde_json::from_str(r#"["admin","read","admin"]"#).unwrap();
        assert_eq!(serde_json::to_string(&set).unwrap(), r#"["read","admin"]"#);
        assert_eq!(set.to_string(), "read admin");
        assert!(!set.contains(Scope::Write));
    }

    #[test]
    fn every_scope_set_round_trips() {
        for set in (0..8).map(ScopeSet) {
            assert_eq!(ScopeSet::from_words(&set.to_string()), Some(set));
            assert_eq!(serde_json::from_value::<ScopeSet>(serde_json::json!(set)).unwrap(), set);
        }
        assert_eq!(ScopeSet::from_words("read root"), None);
        assert_eq!(ScopeSet::from_words(" "), None);
    }

    #[test]
    fn unknown_scopes_and_other_types_are_rejected() {
        for text in [r#"["root"]"#, r#""read""#, "null", "[1]"] {
            assert!(serde_json::from_str::<ScopeSet>(text).is_err(), "{text}");
        }
    }
}

use std::{collections::BTreeMap, fmt};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use super::{Invalid, ObjectMembers, SecretText};

/// The member that names the current key. It is not a valid [`Kid`].
const CURRENT: &str = "current";
const MIN_SECRET_BYTES: usize = 32;

/// The name of a key: `k` and 1 to 31 characters from `0-9a-z`. It is public, because the header of
/// every token contains it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Kid(String);

impl Kid {
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix('k')?;
        let allowed = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
        ((1..=31).contains(&rest.len()) && rest.bytes().all(allowed)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Kid {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::parse(&text).ok_or(Invalid::new("must be k and 1 to 31 characters from 0-9 and a-z"))
    }
}

impl fmt::Display for Kid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Secrets of at least 32 bytes by kid, one of them current.
///
/// Parsed from flat JSON, which AWS's `GenerateSecretString` can write:
/// `{"current":"k2","k1":"…","k2":"…"}`. A key is the UTF-8 text of its secret, so that a data
/// plane can share a plain secret.
pub struct Keyring {
    current: (Kid, SecretString),
    /// Sorted by kid, descending. A map would be slower for two or three keys.
    others: Vec<(Kid, SecretString)>,
}

/// Why a ring is invalid. Shows a kid only if it is valid, because it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    #[error("the ring has no member \"current\"")]
    NoCurrent,
    #[error("\"current\" must be a kid: k and 1 to 31 characters from 0-9 and a-z")]
    CurrentShape,
    #[error("\"current\" names {0}, which the ring does not hold")]
    CurrentUnknown(Kid),
    #[error("invalid kid ({0} bytes): must be k and 1 to 31 characters from 0-9 and a-z")]
    KidShape(usize),
    #[error("the ring has more than one member {0}")]
    MemberTwice(String),
    #[error("the secret of {kid} has {bytes} bytes; it needs at least 32")]
    SecretShort { kid: Kid, bytes: usize },
    #[error("the secret of {0} equals a kid: use a random secret of at least 32 bytes")]
    SecretIsKid(Kid),
    /// A rotation between them would not replace the secret.
    #[error("{0} and {1} have the same secret: give each kid its own")]
    SecretTwice(Kid, Kid),
}

impl Keyring {
    pub fn single(kid: &str, secret: impl Into<SecretString>) -> Result<Self, KeyringError> {
        let secret = secret.into();
        let kid = Kid::parse(kid).ok_or(KeyringError::KidShape(kid.len()))?;
        Self::checked(kid.clone(), vec![(kid, secret)])
    }

    fn checked(current: Kid, mut keys: Vec<(Kid, SecretString)>) -> Result<Self, KeyringError> {
        for (kid, secret) in &keys {
            let secret = secret.expose_secret();
            if secret.len() < MIN_SECRET_BYTES {
                return Err(KeyringError::SecretShort { kid: kid.clone(), bytes: secret.len() });
            }
            if keys.iter().any(|(other, _)| other.as_str() == secret) {
                return Err(KeyringError::SecretIsKid(kid.clone()));
            }
            if let Some((twin, _)) = keys.iter().find(|(other, held)| other < kid && held.expose_secret() == secret) {
                return Err(KeyringError::SecretTwice(twin.clone(), kid.clone()));
            }
        }
        let Some(at) = keys.iter().position(|(kid, _)| *kid == current) else {
            return Err(KeyringError::CurrentUnknown(current));
        };
        let current = keys.remove(at);
        keys.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        Ok(Self { current, others: keys })
    }

    /// Returns the key to mint, seal and sign with.
    pub fn current(&self) -> (&Kid, &[u8]) {
        let (kid, secret) = &self.current;
        (kid, secret.expose_secret().as_bytes())
    }

    /// Returns `None` for an unknown kid and for the word `current`.
    pub fn get(&self, kid: &str) -> Option<&[u8]> {
        self.keys().find(|(held, _)| held.as_str() == kid).map(|(_, secret)| secret.expose_secret().as_bytes())
    }

    /// Returns all secrets, the current one first.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.keys().map(|(_, secret)| secret.expose_secret().as_bytes())
    }

    /// Returns the kids that are not current.
    pub fn other_kids(&self) -> impl Iterator<Item = &Kid> {
        self.others.iter().map(|(kid, _)| kid)
    }

    /// Exposes every secret: the members as stored, including `current`.
    pub fn expose_members(&self) -> impl Iterator<Item = (&str, &str)> {
        let keys = self.keys().map(|(kid, secret)| (kid.as_str(), secret.expose_secret()));
        std::iter::once((CURRENT, self.current.0.as_str())).chain(keys)
    }

    /// Returns the ring unchanged if it does not hold the key.
    #[must_use]
    pub(super) fn with_current(&self, kid: &Kid) -> Self {
        let (mut keys, mut current) = (self.others.clone(), self.current.clone());
        if let Some(at) = keys.iter().position(|(held, _)| held == kid) {
            std::mem::swap(&mut keys[at], &mut current);
        }
        keys.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        Self { current, others: keys }
    }

    /// Adds a key that is not current and drops the other keys that `keeps` rejects. The kid and
    /// the secret must be new.
    #[must_use]
    pub(super) fn with_another(&self, kid: Kid, secret: SecretString, keeps: impl Fn(&Kid) -> bool) -> Self {
        let mut others: Vec<_> = self.others.iter().filter(|(held, _)| keeps(held)).cloned().collect();
        others.push((kid, secret));
        others.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        Self { current: self.current.clone(), others }
    }

    fn keys(&self) -> impl Iterator<Item = &(Kid, SecretString)> {
        std::iter::once(&self.current).chain(&self.others)
    }

    fn from_members(mut members: BTreeMap<String, SecretText>) -> Result<Self, KeyringError> {
        let SecretText(current) = members.remove(CURRENT).ok_or(KeyringError::NoCurrent)?;
        let current = Kid::parse(current.expose_secret()).ok_or(KeyringError::CurrentShape)?;
        let keys = members.into_iter().map(|(name, SecretText(secret))| match Kid::parse(&name) {
            Some(kid) => Ok((kid, secret)),
            None => Err(KeyringError::KidShape(name.len())),
        });
        Self::checked(current, keys.collect::<Result<_, _>>()?)
    }
}

impl TryFrom<BTreeMap<String, String>> for Keyring {
    type Error = KeyringError;

    fn try_from(members: BTreeMap<String, String>) -> Result<Self, KeyringError> {
        Self::from_members(members.into_iter().map(|(name, value)| (name, value.into())).collect())
    }
}

impl TryFrom<ObjectMembers<SecretText>> for Keyring {
    type Error = KeyringError;

    fn try_from(members: ObjectMembers<SecretText>) -> Result<Self, KeyringError> {
        let twice = |name: String| match Kid::parse(&name) {
            None if name != CURRENT => KeyringError::KidShape(name.len()),
            Some(_) | None => KeyringError::MemberTwice(name),
        };
        Self::from_members(members.by_name().map_err(twice)?)
    }
}

impl<'de> Deserialize<'de> for Keyring {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde's own message would quote the input, which may be a secret.
        let members = ObjectMembers::<SecretText>::deserialize(deserializer)
            .map_err(|_| D::Error::custom("a ring must be a flat JSON object of strings"))?;
        Self::try_from(members).map_err(D::Error::custom)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.keys().map(|(kid, _)| (kid.as_str(), format_args!("[redacted]")))).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(members: &[(&str, &str)]) -> Result<Keyring, KeyringError> {
        let members = members.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Keyring::try_from(members.collect::<BTreeMap<_, _>>())
    }

    fn secret(letter: &str) -> String {
        letter.repeat(MIN_SECRET_BYTES)
    }

    #[test]
    fn current_key_is_first_and_keys_are_found() {
        let (a, b, c) = (secret("a"), secret("b"), secret("c"));
        let ring = ring(&[("current", "k2"), ("k1", &a), ("k2", &b), ("k3", &c)]).unwrap();
        assert_eq!(ring.current(), (&Kid("k2".to_owned()), b.as_bytes()));
        assert_eq!(ring.iter().collect::<Vec<_>>(), [b.as_bytes(), c.as_bytes(), a.as_bytes()]);
        assert_eq!(ring.get("k1"), Some(a.as_bytes()));
        assert_eq!(ring.other_kids().map(Kid::as_str).collect::<Vec<_>>(), ["k3", "k1"]);
    }

    #[test]
    fn unknown_names_find_no_key() {
        let ring = Keyring::single("k1", secret("a")).unwrap();
        for name in ["current", "", "k", "k2", "K1", "k1 ", " k1", "k1\0"] {
            assert_eq!(ring.get(name), None, "{name:?}");
        }
    }

    #[test]
    fn errors_name_the_fault() {
        let (a, kid_of_32) = (secret("a"), format!("k{}", "a".repeat(31)));
        for (members, refusal) in [
            (vec![("k1", a.as_str())], KeyringError::NoCurrent),
            (vec![("current", "k2"), ("k1", &a)], KeyringError::CurrentUnknown(Kid("k2".to_owned()))),
            (vec![("current", "current"), ("k1", &a)], KeyringError::CurrentShape),
            (vec![("current", ""), ("k1", &a)], KeyringError::CurrentShape),
            (vec![("current", "k1"), ("k1", &a), ("K2", &a)], KeyringError::KidShape(2)),
            (vec![("current", "k1"), ("k1", &a), ("Current", &a)], KeyringError::KidShape(7)),
            (
                vec![("current", "k1"), ("k1", &a[1..])],
                KeyringError::SecretShort { kid: Kid("k1".to_owned()), bytes: 31 },
            ),
            (
                vec![("current", "k1"), ("k1", &kid_of_32), (&kid_of_32, &a)],
                KeyringError::SecretIsKid(Kid("k1".to_owned())),
            ),
            (
                vec![("current", "k2"), ("k1", &a), ("k2", &a)],
                KeyringError::SecretTwice(Kid("k1".to_owned()), Kid("k2".to_owned())),
            ),
        ] {
            assert_eq!(ring(&members).unwrap_err(), refusal);
        }
        assert_eq!(Keyring::single("1k", a).unwrap_err(), KeyringError::KidShape(2));
    }

    #[test]
    fn printed_rings_and_errors_hold_no_secret() {
        let secret = "Zq9!".repeat(8);
        let whole = Keyring::single("k1", secret.as_str()).unwrap();
        assert_eq!(format!("{whole:?}"), r#"{"k1": [redacted]}"#);
        let swapped = [("current", secret.as_str()), ("k1", secret.as_str())];
        for text in [
            format!("{:?}", ring(&swapped).unwrap_err()),
            ring(&[("current", "k1"), (&secret, "k1")]).unwrap_err().to_string(),
            serde_json::from_str::<Keyring>(&format!("{secret:?}")).unwrap_err().to_string(),
            serde_json::from_str::<Keyring>(&format!(r#"{{"current":"k1","k1":[{secret:?}]}}"#))
                .unwrap_err()
                .to_string(),
            serde_json::from_str::<Keyring>(r#"{"current":"k1","k1":8912345678901234567}"#).unwrap_err().to_string(),
        ] {
            assert!(!text.contains("Zq9!") && !text.contains("8912345678901234567"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn kid_matches_the_documented_format(text in "[k0-9a-zA-Z_-]{0,34}", other in ".*") {
            for text in [text, other] {
                let bytes = text.as_bytes();
                let wanted = (2..=32).contains(&bytes.len())
                    && bytes[0] == b'k'
                    && bytes[1..].iter().all(|b| b"0123456789abcdefghijklmnopqrstuvwxyz".contains(b));
                prop_assert_eq!(Kid::parse(&text).is_some(), wanted);
            }
        }

        #[test]
        fn random_rings_never_panic(members in prop::collection::btree_map("current|k[0-9a-z]|.{0,4}", ".{0,40}|k[0-9]", 0..5)) {
            if let Ok(ring) = Keyring::try_from(members) {
                prop_assert!(ring.iter().all(|secret| secret.len() >= MIN_SECRET_BYTES));
                prop_assert!(ring.get(ring.current().0.as_str()).is_some());
            }
        }
    }
}

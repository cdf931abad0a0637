use std::{collections::BTreeMap, fmt};

use aws_lc_rs::{constant_time, digest};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{ObjectMembers, SecretText};

/// The member that lists the powers. No token has this name.
const POWERS: &str = "powers";
const MIN_TOKEN_BYTES: usize = 32;
/// Shorter than any token, so that a token in the place of a name is rejected and not shown.
const MAX_NAME: usize = MIN_TOKEN_BYTES - 1;

/// Like a scope, a power implies no other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Power {
    /// Validates API keys.
    Validate,
    /// Reports usage.
    Usage,
    /// Reads provider keys in plaintext.
    Byok,
    /// Reads and changes releases.
    Releases,
    /// Creates, reads and changes organizations.
    Provision,
}

impl Power {
    pub const ALL: [Self; 5] = [Self::Validate, Self::Usage, Self::Byok, Self::Releases, Self::Provision];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Validate => "validate",
            Self::Usage => "usage",
            Self::Byok => "byok",
            Self::Releases => "releases",
            Self::Provision => "provision",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|power| power.as_str() == word)
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct Service {
    name: String,
    powers: Vec<Power>,
    /// SHA-256 of the token, which itself is not kept.
    digest: [u8; 32],
}

impl Service {
    /// Returns the operator's name for the token, which the audit log shows.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn may(&self, power: Power) -> bool {
        self.powers.contains(&power)
    }

    /// Identifies the token but does not authenticate.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.digest
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("name", &self.name).field("powers", &self.powers).finish_non_exhaustive()
    }
}

/// The tokens for the internal routes, by name.
///
/// Parsed from JSON, in a shape that AWS's `GenerateSecretString` can write:
/// `{"powers":{"billing":["provision"]},"billing":"<token>"}`. To rotate a token, add a new one
/// under another name, move its user, then remove the old one.
#[derive(Debug)]
pub struct ServiceTokens(Vec<Service>);

/// Why a set of service tokens is invalid. Shows a name only if it is valid, because it may be a
/// token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceTokensError {
    #[error("it must be a JSON object of tokens by name and their \"powers\"")]
    Shape,
    #[error("it has no tokens")]
    Empty,
    #[error("invalid name ({0} bytes): must be 1 to 31 characters from a-z, 0-9 and -, and not \"powers\"")]
    NameShape(usize),
    #[error("more than one token has the name {0}")]
    NameTwice(String),
    #[error("\"powers\" names {0} more than once")]
    PowersTwice(String),
    #[error("the token {name} has {bytes} bytes; it needs at least 32")]
    TokenShort { name: String, bytes: usize },
    #[error("the token {0} contains a space or a character that is not printable ASCII")]
    TokenCharacters(String),
    #[error("the tokens {0} and {1} are the same")]
    TokenTwice(String, String),
    #[error("the token {0} has no powers: name them under \"powers\"")]
    Powerless(String),
    #[error("power {position} of {name} must be one of validate, usage, byok, releases, provision")]
    PowerUnknown { name: String, position: usize },
    #[error("\"powers\" names {0}, which has no token")]
    NoToken(String),
}

#[derive(Deserialize)]
struct RawServiceTokens {
    powers: ObjectMembers<Vec<String>>,
    #[serde(flatten)]
    tokens: ObjectMembers<SecretText>,
}

impl ServiceTokens {
    /// Compares the digests of all tokens, each in constant time.
    pub fn find(&self, token: &str) -> Option<&Service> {
        let presented = digest_of(token);
        let mut found = None;
        for service in &self.0 {
            if constant_time::verify_slices_are_equal(&service.digest, &presented).is_ok() {
                found = Some(service);
            }
        }
        found
    }

    fn checked(written: RawServiceTokens) -> Result<Self, ServiceTokensError> {
        let RawServiceTokens { powers, tokens } = written;
        let mut powers = by_unique_name(powers, ServiceTokensError::PowersTwice)?;
        let tokens = by_unique_name(tokens, ServiceTokensError::NameTwice)?;
        let mut services: Vec<Service> = Vec::with_capacity(tokens.len());
        for (name, SecretText(token)) in tokens {
            let name = checked_name(name)?;
            let token = checked_token(&name, &token)?;
            let powers = checked_powers(&name, &powers.remove(&name).unwrap_or_default())?;
            if let Some(twin) = services.iter().find(|service| service.digest == token) {
                return Err(ServiceTokensError::TokenTwice(twin.name.clone(), name));
            }
            services.push(Service { name, powers, digest: token });
        }
        if let Some(name) = powers.into_keys().next() {
            return Err(ServiceTokensError::NoToken(checked_name(name)?));
        }
        if services.is_empty() { Err(ServiceTokensError::Empty) } else { Ok(Self(services)) }
    }
}

fn by_unique_name<T>(
    members: ObjectMembers<T>,
    twice: fn(String) -> ServiceTokensError,
) -> Result<BTreeMap<String, T>, ServiceTokensError> {
    members.by_name().map_err(|name| checked_name(name).map_or_else(|invalid| invalid, twice))
}

fn checked_name(name: String) -> Result<String, ServiceTokensError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed) && name != POWERS {
        Ok(name)
    } else {
        Err(ServiceTokensError::NameShape(name.len()))
    }
}

fn checked_token(name: &str, token: &SecretString) -> Result<[u8; 32], ServiceTokensError> {
    let token = token.expose_secret();
    if token.len() < MIN_TOKEN_BYTES {
        return Err(ServiceTokensError::TokenShort { name: name.to_owned(), bytes: token.len() });
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ServiceTokensError::TokenCharacters(name.to_owned()));
    }
    Ok(digest_of(token))
}

fn checked_powers(name: &str, words: &[String]) -> Result<Vec<Power>, ServiceTokensError> {
    if words.is_empty() {
        return Err(ServiceTokensError::Powerless(name.to_owned()));
    }
    let unknown = |position: usize| ServiceTokensError::PowerUnknown { name: name.to_owned(), position: position + 1 };
    let powers = words.iter().enumerate().map(|(position, word)| Power::parse(word).ok_or_else(|| unknown(position)));
    powers.collect()
}

fn digest_of(token: &str) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

impl<'de> Deserialize<'de> for ServiceTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde's own message would quote the input.
        let written =
            RawServiceTokens::deserialize(deserializer).map_err(|_| D::Error::custom(ServiceTokensError::Shape))?;
        Self::checked(written).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<ServiceTokens, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    fn token(letter: &str) -> String {
        letter.repeat(MIN_TOKEN_BYTES)
    }

    #[test]
    fn service_is_found_by_its_token() {
        let (a, b) = (token("a"), token("b"));
        let text = format!(
            r#"{{"powers":{{"plane-1":["validate","usage"],"ops":["provision"]}},"plane-1":"{a}","ops":"{b}"}}"#
        );
        let tokens = read(&text).unwrap();
        let plane = tokens.find(&a).unwrap();
        assert_eq!(plane.name(), "plane-1");
        assert_eq!(Power::ALL.map(|power| plane.may(power)), [true, true, false, false, false]);
        assert!(tokens.find(&b).unwrap().may(Power::Provision));
        assert_ne!(plane.fingerprint(), tokens.find(&b).unwrap().fingerprint());
        for wrong in ["", "a", &a[1..], &format!("{a}a"), &a.to_uppercase(), "powers", "plane-1"] {
            assert_eq!(tokens.find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn errors_name_the_fault() {
        let (a, b) = (token("a"), token("b"));
        for (text, problem) in [
            ("{}".to_owned(), "it must be a JSON object"),
            (r#"{"powers":{}}"#.to_owned(), "it has no tokens"),
            (format!(r#"{{"ops":"{a}"}}"#), "it must be a JSON object"),
            (format!(r#"{{"powers":{{}},"ops":"{a}"}}"#), "the token ops has no powers"),
            (format!(r#"{{"powers":{{"ops":[]}},"ops":"{a}"}}"#), "the token ops has no powers"),
            (
                format!(r#"{{"powers":{{"ops":["validate","{b}"]}},"ops":"{a}"}}"#),
                "power 2 of ops must be one of validate, usage, byok, releases, provision",
            ),
            (format!(r#"{{"powers":{{"ops":["usage"]}},"ops":"{}"}}"#, &a[1..]), "the token ops has 31 bytes"),
            (
                format!(r#"{{"powers":{{"ops":["usage"]}},"ops":"{a} "}}"#),
                "the token ops contains a space or a character",
            ),
            (
                format!(r#"{{"powers":{{"ops":["usage"]}},"ops":"{a}é"}}"#),
                "the token ops contains a space or a character",
            ),
            (format!(r#"{{"powers":{{"ops":["usage"]}},"Ops":"{a}"}}"#), "invalid name (3 bytes)"),
            (format!(r#"{{"powers":{{"{a}":["usage"]}},"{a}":"ops"}}"#), "invalid name (32 bytes)"),
            (
                format!(r#"{{"powers":{{"a":["usage"],"b":["byok"]}},"a":"{a}","b":"{a}"}}"#),
                "the tokens a and b are the same",
            ),
            (
                format!(r#"{{"powers":{{"ops":["usage"],"gone":["usage"]}},"ops":"{a}"}}"#),
                "\"powers\" names gone, which has no token",
            ),
        ] {
            let refusal = read(&text).unwrap_err();
            assert!(refusal.starts_with(problem), "{text}: {refusal}");
        }
    }

    #[test]
    fn printed_tokens_and_errors_hold_no_secret() {
        let secret = "zq9x".repeat(8);
        let whole = read(&format!(r#"{{"powers":{{"ops":["usage"]}},"ops":"{secret}"}}"#)).unwrap();
        assert_eq!(format!("{whole:?}"), r#"ServiceTokens([Service { name: "ops", powers: [Usage], .. }])"#);
        for text in [
            format!("{secret:?}"),
            format!(r#"{{"powers":{{"ops":["{secret}"]}},"ops":"{secret}"}}"#),
            format!(r#"{{"powers":{{"{secret}":["usage"]}},"{secret}":"ops"}}"#),
            format!(r#"{{"powers":{{"{secret}":["usage"]}},"ops":"ops"}}"#),
            format!(r#"{{"powers":"{secret}","ops":"{secret}"}}"#),
            format!(r#"{{"powers":{{"ops":["usage"]}},"ops":["{secret}"]}}"#),
        ] {
            let refusal = read(&text).unwrap_err();
            assert!(!refusal.contains("zq9x"), "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn only_the_exact_token_is_found(other in "[!-~]{0,40}") {
            let own = token("k");
            let tokens = read(&format!(r#"{{"powers":{{"ops":["usage"]}},"ops":"{own}"}}"#)).unwrap();
            prop_assert_eq!(tokens.find(&other).is_some(), other == own);
        }
    }
}

//! JSON into types, and serde's complaints into the contract's: which field, and what would be right.

use std::{borrow::Cow, fmt};

use secrecy::{ExposeSecret, SecretString};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::Value;
use utoipa::ToSchema;

use super::Error;
use crate::{
    domain::{KeyRejected, Members, Name, Provider, ProviderKey},
    telemetry,
};

/// The body of a route that reads none; whatever is sent is passed over.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NoBody {}

/// The body of a POST that takes no fields.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoFields {}

/// A secret in a body: any string, which does not print.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "String")]
pub struct Received(SecretString);

impl Received {
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// A provider key, judged by its looks; 422 with what is wrong with it, or with the name that it is to have: people paste the key there too.
    pub fn provider_key(&self, provider: Provider, name: Option<&Name>) -> Result<ProviderKey, Error> {
        let refused = |rejected| Error::KeyRejected { provider, rejected };
        let members = match serde_json::from_str(self.expose()).ok() {
            Some(Object { twice: true, .. }) => return Err(refused(KeyRejected::TwiceMember)),
            Some(Object { members, .. }) => Some(members),
            None => None,
        };
        let key = ProviderKey::parse(provider, self.0.clone(), members.as_ref()).map_err(refused)?;
        let shows_a_key =
            |name: &str| matches!(telemetry::scrub(name), Cow::Owned(_)) || key.is_in(name, members.as_ref());
        if name.is_some_and(|name| shows_a_key(name.as_str())) {
            return Err(Error::invalid("name", "must hold no key or token: everybody who may read sees it"));
        }
        Ok(key)
    }
}

impl From<String> for Received {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// A JSON object of strings.
struct Object {
    members: Members,
    /// Whether a name stands there twice: which one counts is up to whoever reads it.
    twice: bool,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfStrings;
        impl<'de> Visitor<'de> for OfStrings {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object { members: Members::new(), twice: false };
                while let Some((name, Received(value))) = map.next_entry::<String, Received>()? {
                    object.twice |= object.members.insert(name, value).is_some();
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(OfStrings)
    }
}

/// For a field of a PATCH: absent keeps (`None`), anything else is read as it is, `null` included.
/// Use as `#[serde(default, deserialize_with = "present")]`.
pub fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// The body as JSON.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, Error> {
    if bytes.trim_ascii().is_empty() {
        return Err(Error::MalformedJson("The body is empty: send a JSON object".to_owned()));
    }
    let mut body = serde_json::from_slice(bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Error::MalformedJson(format!("The body is not JSON: see line {line}, column {column}"))
    })?;
    write_whole_numbers_alike(&mut body);
    Ok(body)
}

/// JSON has one kind of number: 60.0 is 60, and either is an integer.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole, and within what a double holds exactly"
)]
fn write_whole_numbers_alike(value: &mut Value) {
    /// Below it an integer that was misread by a rounding is none any more, and so never another one.
    const EXACT: f64 = 4_503_599_627_370_496.0;
    match value {
        Value::Number(number) if number.is_f64() => {
            if let Some(whole) = number.as_f64().filter(|real| real.fract() == 0.0 && (0.0..EXACT).contains(real)) {
                *value = Value::from(whole as u64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(write_whole_numbers_alike),
        Value::Object(fields) => fields.values_mut().for_each(write_whole_numbers_alike),
        _ => {}
    }
}

/// A JSON object as `T`; the first thing that is wrong with it otherwise.
pub fn read<T: DeserializeOwned>(value: &Value) -> Result<T, Error> {
    read_as("field", value)
}

/// Calls a member of the object a `member`.
pub(super) fn read_as<T: DeserializeOwned>(member: &str, value: &Value) -> Result<T, Error> {
    if !value.is_object() {
        return Err(Error::Invalid { field: "body".to_owned(), message: "The body must be a JSON object".to_owned() });
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = shown(&error.path().to_string());
        complaint(member, if path == "." { "" } else { &path }, &error.into_inner().to_string())
    })
}

/// The path as it may be shown: the name of a field that nobody knows comes from the client, and may be anything.
pub(super) fn shown(path: &str) -> String {
    telemetry::scrub(path).chars().take(200).collect()
}

/// Turns serde's message about `path` into ours. Serde's own would repeat the value, which may be a secret in the wrong field.
fn complaint(member: &str, path: &str, message: &str) -> Error {
    let within = |field: &str| {
        if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
    };
    if let Some(field) = quoted_after(message, "missing field ") {
        let field = within(field);
        return Error::Invalid { message: format!("{} is required", title(&field)), field };
    }
    if quoted_after(message, "unknown field ").is_some() {
        // serde_path_to_error has already stepped into the unknown field.
        return match expected(message) {
            Some(expected) => Error::invalid(path, format!("is not a {member} here: use {}", unquoted(expected))),
            None => Error::invalid(path, format!("is not a {member} here: this takes none")),
        };
    }
    if let Some(expected) = expected(message) {
        return Error::invalid(path, format!("must be {}", humane(expected)));
    }
    Error::invalid(path, message)
}

/// What serde would have taken. It stands last; what was met stands before it and may hold the same words.
fn expected(message: &str) -> Option<&str> {
    let (_, expected) = message.rsplit_once(", expected ")?;
    (!message.ends_with("`, there are no fields")).then_some(expected)
}

fn quoted_after<'a>(message: &'a str, start: &str) -> Option<&'a str> {
    message.strip_prefix(start)?.strip_prefix('`')?.split('`').next()
}

fn unquoted(text: &str) -> String {
    text.replace('`', "")
}

/// Serde's name for a type, in a user's words.
fn humane(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, not negative".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        _ if expected.starts_with("struct ") => "an object".to_owned(),
        _ => unquoted(expected),
    }
}

/// A word as the start of a sentence: `Name`. What is more than a word stays as it must be written: `commit_sha`.
fn title(field: &str) -> String {
    let is_word = field.bytes().all(|byte| byte.is_ascii_lowercase());
    let (first, rest) = field.split_at(usize::from(is_word));
    first.to_ascii_uppercase() + rest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        domain::{AllowedCidrs, Budget, Metadata, Name, ScopeSet, Timestamp},
        http::NoQuery,
    };

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read for its errors")]
    struct Input {
        name: Name,
        scopes: ScopeSet,
        expires_at: Option<Timestamp>,
        allowed_cidrs: Option<AllowedCidrs>,
        budget: Option<Budget>,
        metadata: Option<Metadata>,
    }

    fn refusal(change: &str, value: Value) -> (String, String) {
        let mut body = json!({"name": "ci", "scopes": ["read"]});
        match value {
            Value::Null => body.as_object_mut().unwrap().remove(change),
            value => body.as_object_mut().unwrap().insert(change.to_owned(), value),
        };
        match read::<Input>(&body).unwrap_err() {
            Error::Invalid { field, message } => (field, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_complaint_names_the_field_and_what_would_be_right() {
        for (change, value, field, message) in [
            ("name", Value::Null, "name", "Name is required"),
            ("name", json!(5), "name", "name must be a string"),
            ("name", json!(""), "name", "name is required: 1 to 100 characters that are not all blank"),
            ("scopes", json!("read"), "scopes", "scopes must be a list"),
            ("scopes", json!(["read", "root"]), "scopes[1]", "scopes[1] must be one of read, write, admin"),
            ("scopes", json!([]), "scopes", "scopes must name at least one of read, write, admin"),
            (
                "expires_at",
                json!("soon"),
                "expires_at",
                "expires_at must be an RFC 3339 date and time before 9999-12-30, such as 2027-01-31T12:00:00Z",
            ),
            (
                "allowed_cidrs",
                json!(["10.0.0.0/8", "all"]),
                "allowed_cidrs[1]",
                "allowed_cidrs[1] must be an IPv4 or IPv6 range such as 203.0.113.0/24 or 2001:db8::/32",
            ),
            (
                "budget",
                json!({"cost_cents": "much"}),
                "budget.cost_cents",
                "budget.cost_cents must be a whole number, not negative",
            ),
            ("budget", json!([1]), "budget", "budget must be an object"),
            ("metadata", json!({"team": 1}), "metadata.team", "metadata.team must be a string"),
            (
                "metadata",
                json!({ "team": "x".repeat(501) }),
                "metadata.team",
                "metadata.team must be at most 500 characters",
            ),
            (
                "owner",
                json!("me"),
                "owner",
                "owner is not a field here: use one of name, scopes, expires_at, allowed_cidrs, budget, metadata",
            ),
        ] {
            assert_eq!(refusal(change, value), (field.to_owned(), message.to_owned()));
        }
    }

    #[test]
    fn what_is_missing_is_named_as_it_is_written() {
        for (field, message) in [
            ("commit_sha", "commit_sha is required"),
            ("budget.cap", "budget.cap is required"),
            ("key", "Key is required"),
        ] {
            let (path, missing) = field.rsplit_once('.').unwrap_or(("", field));
            let refusal = complaint("field", path, &format!("missing field `{missing}`"));
            assert!(
                matches!(&refusal, Error::Invalid { field: named, message: said } if named == field && said == message),
                "{refusal:?}"
            );
        }
    }

    #[test]
    fn no_complaint_repeats_a_value() {
        let secret = "kt_live_0123456789abcdefghijklmnopqrstuv";
        // Among them what serde's own messages are made of.
        for text in [secret, &format!("a, expected {secret}"), &format!("`, expected {secret}, there are no fields")] {
            let mut bodies = vec![json!({"metadata": { text: 1 }}), json!({ text: 1 })];
            for field in ["name", "scopes", "expires_at", "allowed_cidrs", "budget", "metadata", "owner"] {
                for value in [json!(text), json!([text]), json!({"cost_cents": text}), json!({ "team": [text] })] {
                    bodies.push(json!({ field: value }));
                }
            }
            for mut body in bodies {
                let bare = read::<NoQuery>(&body).err();
                for (field, value) in [("name", json!("ci")), ("scopes", json!(["read"]))] {
                    body.as_object_mut().unwrap().entry(field).or_insert(value);
                }
                for refusal in [bare, read::<Input>(&body).err()].into_iter().flatten() {
                    let Error::Invalid { message, field } = refusal else { panic!("{refusal:?}") };
                    assert!(!message.contains(secret) && !field.contains(secret), "{message}");
                }
            }
        }
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        let read = |text: &str| parse(text.as_bytes()).unwrap().to_string();
        assert_eq!(
            read(r#"{"a":[60.0,6e1,0.0,7],"b":{"c":1234567890.0}}"#),
            r#"{"a":[60,60,0,7],"b":{"c":1234567890}}"#
        );
        assert_eq!(read("[60.5,-1.0,4503599627370496.0,1e300]"), "[60.5,-1.0,4503599627370496.0,1e+300]");
    }

    #[test]
    fn only_an_object_is_a_body() {
        for value in [json!([]), json!("x"), json!(null), json!(1)] {
            assert!(matches!(read::<Input>(&value), Err(Error::Invalid { field, .. }) if field == "body"));
        }
    }
}

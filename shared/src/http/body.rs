//! Types that the bodies of several routes share.

use std::{borrow::Cow, fmt};

use secrecy::{ExposeSecret, SecretString};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use utoipa::ToSchema;

use super::Error;
use crate::{
    domain::{KeyRejected, Members, Name, Provider, ProviderKey},
    telemetry,
};

/// The body of a route that ignores its body.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NoBody {}

/// The body of a POST that takes no fields.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoFields {}

/// A string that may be a secret. Its content is neither checked nor printed.
#[derive(Debug, Clone)]
pub struct UncheckedText(SecretString);

impl UncheckedText {
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Parses a provider key. Returns 422 if the key is malformed, or if `name` contains a key:
    /// people paste keys there too.
    pub fn provider_key(&self, provider: Provider, name: Option<&Name>) -> Result<ProviderKey, Error> {
        let refused = |rejected| Error::KeyRejected { provider, rejected };
        let members = match serde_json::from_str(self.expose()).ok() {
            Some(JsonObject { has_duplicates: true, .. }) => return Err(refused(KeyRejected::TwiceMember)),
            Some(JsonObject { members, .. }) => Some(members),
            None => None,
        };
        let key = ProviderKey::parse(provider, self.0.clone(), members.as_ref()).map_err(refused)?;
        let shows_a_key =
            |name: &str| matches!(telemetry::scrub(name), Cow::Owned(_)) || key.occurs_in(name, members.as_ref());
        if name.is_some_and(|name| shows_a_key(name.as_str())) {
            return Err(Error::invalid(
                "name",
                "must not contain a key or token: every key with scope read can see it",
            ));
        }
        Ok(key)
    }
}

/// Requests bytes, because the reader returns those without checking the text.
impl<'de> Deserialize<'de> for UncheckedText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UncheckedTextVisitor;
        impl Visitor<'_> for UncheckedTextVisitor {
            type Value = UncheckedText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<UncheckedText, E> {
                Ok(UncheckedText(text.into()))
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<UncheckedText, E> {
                let text = std::str::from_utf8(bytes);
                text.map(|text| UncheckedText(text.into())).map_err(|_| E::custom("must be a string"))
            }
        }
        deserializer.deserialize_bytes(UncheckedTextVisitor)
    }
}

/// A JSON object of strings.
struct JsonObject {
    members: Members,
    /// Whether a name occurs twice. JSON parsers differ in which value they use.
    has_duplicates: bool,
}

impl<'de> Deserialize<'de> for JsonObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = JsonObject;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonObject, A::Error> {
                let mut object = JsonObject { members: Members::new(), has_duplicates: false };
                while let Some((name, UncheckedText(value))) = map.next_entry::<String, UncheckedText>()? {
                    object.has_duplicates |= object.members.insert(name, value).is_some();
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

/// Reads `null` as the default, like an absent field. Use as
/// `#[serde(default, deserialize_with = "null_as_default")]`.
pub fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(value: D) -> Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

/// Deserializes a field of a PATCH: an absent field is `None`, and any other value is read,
/// including `null`. Use as `#[serde(default, deserialize_with = "present")]`.
pub fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

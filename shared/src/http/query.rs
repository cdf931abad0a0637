//! Query parameters, read by the same rules as bodies: strictly, with a sentence about what is wrong.

use lambda_http::aws_lambda_events::query_map::QueryMap;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, IntoDeserializer},
};
use serde_json::{Map, Value};

use super::{Error, body};
use crate::domain::Invalid;

/// The query of a route that takes none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoQuery {}

/// The query of a route that passes over whatever is sent: probes add things against caches.
#[derive(Debug, Deserialize)]
pub struct AnyQuery {}

/// `?limit=`: 1 to 100 items a page, 50 unless asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Limit(usize);

impl Limit {
    pub const fn get(self) -> usize {
        self.0
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self(50)
    }
}

impl TryFrom<String> for Limit {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let digits = !text.is_empty() && text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit());
        let limit = digits.then(|| text.parse().ok()).flatten();
        limit.filter(|limit| (1..=100).contains(limit)).map(Self).ok_or(Invalid::new("must be a number from 1 to 100"))
    }
}

/// A list written with commas: `?status=active,rotating`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commas<T>(pub Vec<T>);

impl<T> Default for Commas<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Commas<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let item = |word: &str| T::deserialize(word.into_deserializer());
        let items: Result<Vec<T>, serde::de::value::Error> = text.split(',').map(item).collect();
        items.map(Self).map_err(D::Error::custom)
    }
}

/// Reads the parameters; each may be given once.
pub(super) fn read<T: DeserializeOwned>(parameters: Option<&QueryMap>) -> Result<T, Error> {
    let mut object = Map::new();
    for (name, value) in parameters.into_iter().flat_map(QueryMap::iter) {
        if object.insert(name.to_owned(), Value::from(value)).is_some() {
            return Err(Error::invalid(&body::shown(name), "must be given once"));
        }
    }
    body::read(&Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::KeyStatus;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Query {
        #[serde(default)]
        limit: Limit,
        #[serde(default)]
        status: Commas<KeyStatus>,
    }

    fn parsed(text: &str) -> Result<Query, String> {
        let parameters: QueryMap = text.parse().unwrap();
        read(Some(&parameters)).map_err(|error| match error {
            Error::Invalid { message, .. } => message,
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn parameters_are_read_strictly() {
        let query = parsed("limit=7&status=active,revoked").unwrap();
        assert_eq!((query.limit.get(), query.status.0), (7, vec![KeyStatus::Active, KeyStatus::Revoked]));
        assert_eq!(parsed("").unwrap().limit.get(), 50);
        for (text, message) in [
            ("limit=0", "limit must be a number from 1 to 100"),
            ("limit=101", "limit must be a number from 1 to 100"),
            ("limit=+5", "limit must be a number from 1 to 100"),
            ("limit=", "limit must be a number from 1 to 100"),
            ("limit=1&limit=2", "limit must be given once"),
            ("kt_live_AbC123XyZ&kt_live_AbC123XyZ", "kt_live_AbC123[redacted] must be given once"),
            ("status=active,gone", "status must be one of active, rotating, revoked, expired"),
            ("status=", "status must be one of active, rotating, revoked, expired"),
            ("state=active", "state is not a field here: use limit or status"),
        ] {
            assert_eq!(parsed(text).unwrap_err(), message);
        }
    }
}

//! Query parameters. They are parsed as strictly as bodies, with the same error messages.

use std::{borrow::Cow, time::Duration};

use lambda_http::aws_lambda_events::query_map::QueryMap;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IntoDeserializer},
};
use utoipa::ToSchema;

use super::{
    Error,
    json::{self, Json},
    reader::{self, Texts},
};
use crate::domain::{Id, Invalid, holds_invisible};

/// The query of a route without parameters.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoQuery {}

/// The query of a route that ignores parameters: probes add some to bypass caches.
#[derive(Debug, Deserialize, ToSchema)]
pub struct AnyQuery {}

/// `?limit=`: 1 to 100 items a page, 50 by default.
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
        let limit = digits(&text).filter(|limit| (1..=100).contains(limit));
        limit.map(Self).ok_or(Invalid::new("must be a number from 1 to 100"))
    }
}

/// `?organization_id=`: an id in decimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct IdParameter(pub Id);

impl TryFrom<String> for IdParameter {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        Id::parse(&text).map(Self).ok_or(Invalid::new("must be an integer from 1 to 9007199254740991"))
    }
}

/// `?unused_days=`: a number of days, up to ten years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Days(usize);

impl Days {
    pub const fn as_duration(self) -> Duration {
        Duration::from_hours(24 * self.0 as u64)
    }
}

impl TryFrom<String> for Days {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let days = digits(&text).filter(|days| (1..=3_650).contains(days));
        days.map(Self).ok_or(Invalid::new("must be a number of days from 1 to 3650"))
    }
}

/// Parses a number of one to four digits.
fn digits(text: &str) -> Option<usize> {
    let plain = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// A comma-separated list: `?status=active,rotating`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommaSeparated<T>(pub Vec<T>);

impl<T> Default for CommaSeparated<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for CommaSeparated<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let item = |word: &str| T::deserialize(IntoDeserializer::<D::Error>::into_deserializer(word));
        text.split(',').map(item).collect::<Result<_, _>>().map(Self)
    }
}

const NOT_UTF8: &str = "must be percent-encoded UTF-8";
const INVISIBLE: &str = "must not contain invisible characters";

/// Parses the parameters. Each may occur once.
pub(super) fn read<T: DeserializeOwned>(parameters: Option<&QueryMap>) -> Result<T, Error> {
    let mut object: Vec<(Cow<'_, str>, Json<'_>)> = Vec::new();
    for (name, value) in parameters.into_iter().flat_map(QueryMap::iter) {
        let read = if value.contains(char::REPLACEMENT_CHARACTER) {
            // Percent-decoding replaces bytes that are not UTF-8.
            Json::Unusable(NOT_UTF8)
        } else if holds_invisible(value) {
            // A pasted one would match nothing.
            Json::Unusable(INVISIBLE)
        } else {
            Json::Text(value.into())
        };
        match object.iter_mut().find(|(given, _)| given == name) {
            Some((_, given)) => *given = Json::Unusable(json::REPEATED),
            None => object.push((name.into(), read)),
        }
    }
    // Parameters are not stored, so their texts are not checked for credentials.
    reader::read(reader::PARAMETER, &Json::Object(object), Texts::Any)
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
        status: CommaSeparated<KeyStatus>,
        unused_days: Option<Days>,
        project_id: Option<IdParameter>,
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
        let query = parsed("limit=7&status=active,revoked&project_id=7").unwrap();
        assert_eq!((query.limit.get(), query.status.0), (7, vec![KeyStatus::Active, KeyStatus::Revoked]));
        assert_eq!(query.project_id.map(|IdParameter(id)| id), Id::new(7));
        assert_eq!(parsed("").unwrap().limit.get(), 50);
        assert_eq!(parsed("").unwrap().unused_days, None);
        for days in [1, 3_650] {
            let asked = parsed(&format!("unused_days={days}")).unwrap().unused_days.unwrap();
            assert_eq!(asked.as_duration(), Duration::from_hours(24 * days));
        }
        for (text, message) in [
            ("limit=0", "limit must be a number from 1 to 100"),
            ("limit=101", "limit must be a number from 1 to 100"),
            ("limit=+5", "limit must be a number from 1 to 100"),
            ("limit=", "limit must be a number from 1 to 100"),
            ("limit=1&limit=2", "limit must be given once"),
            ("limit=%ff", "limit must be percent-encoded UTF-8"),
            ("status=active%E2%80%8B", "status must not contain invisible characters"),
            ("status=active%c3", "status must be percent-encoded UTF-8"),
            ("unused_days=0", "unused_days must be a number of days from 1 to 3650"),
            ("unused_days=3651", "unused_days must be a number of days from 1 to 3650"),
            ("unused_days=1.5", "unused_days must be a number of days from 1 to 3650"),
            ("unused_days=", "unused_days must be a number of days from 1 to 3650, or leave it out"),
            (
                "kt_live_AbC123XyZ&kt_live_AbC123XyZ",
                "kt_live_AbC123[redacted] is not a parameter here: use one of limit, status, unused_days, project_id",
            ),
            ("status=active,gone", "status must be one of active, rotating, revoked, expired"),
            ("status=", "status must be one of active, rotating, revoked, expired"),
            ("project_id=0", "project_id must be an integer from 1 to 9007199254740991"),
            ("project_id=", "project_id must be an integer from 1 to 9007199254740991, or leave it out"),
            ("state=active", "state is not a parameter here: use one of limit, status, unused_days, project_id"),
        ] {
            assert_eq!(parsed(text).unwrap_err(), message);
        }
    }
}

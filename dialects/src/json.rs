//! JSON read member by member, so that a malformed member costs only itself and not the text beside it.

use std::{borrow::Borrow, collections::HashMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};
use serde_json::value::RawValue;

use crate::{dialect::Unreadable, text::Text};

/// A JSON value that is not decoded yet.
#[derive(Clone, Copy)]
pub(crate) struct Json<'a>(&'a RawValue);

/// The members of an object. The last of two members with one name counts, and a member that is null
/// counts as absent.
pub(crate) struct Object<'a>(HashMap<Wtf8, &'a RawValue>);

impl<'a> Json<'a> {
    /// Checks the syntax of the whole document, but not whether its strings are valid Unicode.
    pub(crate) fn parse(document: &'a [u8]) -> Result<Self, Unreadable> {
        serde_json::from_slice(document).map(Self).map_err(|_| Unreadable)
    }

    fn read<T: Deserialize<'a>>(self) -> Option<T> {
        serde_json::from_str(self.0.get()).ok()
    }

    pub(crate) fn object(self) -> Option<Object<'a>> {
        self.read().map(Object)
    }

    /// Returns true for values that stand for an absent error.
    pub(crate) fn is_blank(self) -> bool {
        matches!(self.0.get(), "null" | "false" | "0" | "\"\"" | "[]" | "{}")
    }

    /// Returns `None` if the value is no list.
    pub(crate) fn elements(self) -> Option<Vec<Self>> {
        self.read::<Vec<&RawValue>>().map(|elements| elements.into_iter().map(Self).collect())
    }

    /// Returns a string's text. Half surrogates are kept, because the other half may follow.
    pub(crate) fn text(self) -> Option<Text> {
        self.read().map(|Wtf8(bytes)| Text::from_wtf8(bytes))
    }

    /// Returns a string's text with U+FFFD for each half surrogate.
    pub(crate) fn to_text(self) -> Option<String> {
        self.text().map(Text::into_string)
    }

    /// Returns a count: an integer of at least 0, also if it is written as `12.0`.
    pub(crate) fn count(self) -> Option<u64> {
        self.read().or_else(|| whole(self.read()?))
    }
}

/// Returns a float as an integer if both are equal. Above 2^53 a float is no exact count.
fn whole(number: f64) -> Option<u64> {
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and in range")]
    ((0.0..=MAX_EXACT).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

impl<'a> Object<'a> {
    pub(crate) fn get(&self, name: &str) -> Option<Json<'a>> {
        self.0.get(name.as_bytes()).map(|value| Json(value)).filter(|value| value.0.get() != "null")
    }

    pub(crate) fn object(&self, name: &str) -> Option<Self> {
        self.get(name)?.object()
    }

    pub(crate) fn to_text(&self, name: &str) -> Option<String> {
        self.get(name)?.to_text()
    }

    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        self.get(name)?.count()
    }
}

/// The bytes of a JSON string. `serde_json` gives half surrogates in their three-byte form (WTF-8).
#[derive(PartialEq, Eq, Hash)]
struct Wtf8(Vec<u8>);

impl Borrow<[u8]> for Wtf8 {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Wtf8 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Wtf8;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Wtf8, E> {
                Ok(Wtf8(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_whole_and_not_negative() {
        for (json, expected) in [
            ("0", Some(0)),
            ("12", Some(12)),
            ("12.0", Some(12)),
            ("1.2e1", Some(12)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("1e30", None),
            ("-0.0", Some(0)),
            ("-1", None),
            ("12.5", None),
            ("\"12\"", None),
            ("null", None),
            ("[]", None),
        ] {
            assert_eq!(Json::parse(json.as_bytes()).unwrap().count(), expected, "{json}");
        }
    }

    #[test]
    fn members_are_read_one_by_one() {
        let document = br#"{"a": "\ud83d", "\ud83d": 1, "b": [1, {}], "c": null, "d": "x", "d": "y"}"#;
        let object = Json::parse(document).unwrap().object().unwrap();
        assert_eq!(object.to_text("a").as_deref(), Some("\u{fffd}"));
        assert_eq!(object.get("b").unwrap().elements().unwrap().len(), 2);
        assert!(object.get("c").is_none() && object.get("e").is_none());
        assert_eq!(object.to_text("d").as_deref(), Some("y"));
        assert!(object.object("d").is_none() && object.count("d").is_none());
    }

    #[test]
    fn broken_documents_are_unreadable() {
        for document in [&b"{"[..], b"{} {}", b"[1,]", b"\"\xff\"", b"", b"<html>"] {
            assert!(Json::parse(document).is_err(), "{document:?}");
        }
    }
}

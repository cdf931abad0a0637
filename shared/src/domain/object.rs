//! Readers of the JSON objects in configuration.
//!
//! serde's own readers accept text that an operator cannot mean: a derived struct also reads a list,
//! by position, and a map keeps only the last value of a repeated name.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt, iter,
    marker::PhantomData,
    vec,
};

use secrecy::SecretString;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A struct that is read from an object only. Use it for every derived struct in configuration.
pub struct ObjectOnly<T>(pub T);

/// The members of an object in their order, repeated names included. Use it instead of a map.
pub struct ObjectMembers<T>(Vec<(String, T)>);

/// A text that is wiped from memory, also when it is rejected.
#[derive(Deserialize)]
#[serde(from = "String")]
pub struct SecretText(pub SecretString);

impl<T> ObjectMembers<T> {
    /// Returns the members by name, or the first repeated name. The name may be a secret in the
    /// wrong place: check it before an error shows it.
    pub fn by_name(self) -> Result<BTreeMap<String, T>, String> {
        let mut members = BTreeMap::new();
        for (name, value) in self.0 {
            match members.entry(name) {
                Entry::Vacant(entry) => {
                    entry.insert(value);
                }
                Entry::Occupied(entry) => return Err(entry.key().clone()),
            }
        }
        Ok(members)
    }
}

impl<T> IntoIterator for ObjectMembers<T> {
    type Item = (String, T);
    type IntoIter = vec::IntoIter<(String, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ObjectOnly<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StructVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for StructVisitor<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields))
            }
        }

        deserializer.deserialize_map(StructVisitor(PhantomData)).map(Self)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ObjectMembers<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for MembersVisitor<T> {
            type Value = Vec<(String, T)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
                iter::from_fn(|| members.next_entry().transpose()).collect()
            }
        }

        deserializer.deserialize_map(MembersVisitor(PhantomData)).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pair {
        a: u32,
        b: u32,
    }

    #[test]
    fn struct_is_read_from_an_object_only() {
        let read = |text: &str| serde_json::from_str::<ObjectOnly<Pair>>(text).ok().map(|ObjectOnly(pair)| pair);
        assert_eq!(read(r#"{"b":2,"a":1}"#), Some(Pair { a: 1, b: 2 }));
        for text in ["[1,2]", "1", "null", r#""a""#, r#"{"a":1}"#, r#"{"a":1,"a":1,"b":2}"#, r#"{"a":1,"b":2,"c":3}"#] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn repeated_name_is_returned_instead_of_members() {
        let read = |text: &str| serde_json::from_str::<ObjectMembers<u32>>(text).ok().map(ObjectMembers::by_name);
        let expected = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        assert_eq!(read(r#"{"b":2,"a":1}"#), Some(Ok(expected)));
        assert_eq!(read("{}"), Some(Ok(BTreeMap::new())));
        assert_eq!(read(r#"{"a":1,"b":2,"a":1}"#), Some(Err("a".to_owned())));
        assert_eq!(read(r#"{"a":1,"\u0061":2}"#), Some(Err("a".to_owned())));
        for text in ["[1]", r#"[["a",1]]"#, "1", "null", r#"{"a":"1"}"#] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}

use std::collections::hash_map;

use aws_sdk_dynamodb::types::AttributeValue;
use serde::de::{DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, value::MapAccessDeserializer};
use serde_dynamo::{Deserializer, Error};

use super::{Item, StoreError};

/// Decodes an item attribute by attribute. `serde_dynamo::from_item` would first copy all
/// attributes into a second map.
pub(super) fn decode<T: DeserializeOwned>(item: Item) -> Result<T, StoreError> {
    let attributes = Attributes { rest: item.into_iter(), value: None };
    T::deserialize(MapAccessDeserializer::new(attributes))
        .map_err(|error| StoreError::Fault(format!("item cannot be decoded: {error}")))
}

/// Decodes an item of many. Logs an unreadable one with its `kind` and returns `None`, so that it does
/// not block the others.
pub(super) fn decode_or_skip<T: DeserializeOwned>(item: Item, kind: &'static str) -> Option<T> {
    let key = ["pk", "sk"].map(|name| item.get(name).and_then(|value| value.as_s().ok()).cloned());
    decode(item).inspect_err(|fault| log_skipped(key, kind, fault)).ok()
}

fn log_skipped([pk, sk]: [Option<String>; 2], kind: &'static str, fault: &StoreError) {
    tracing::error!(pk, sk, item = kind, %fault, "unreadable item skipped");
}

struct Attributes {
    rest: hash_map::IntoIter<String, AttributeValue>,
    /// The value of the attribute whose name was read last.
    value: Option<AttributeValue>,
}

impl<'de> MapAccess<'de> for Attributes {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((name, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let value = self.value.take().unwrap_or(AttributeValue::Null(true));
        seed.deserialize(Deserializer::from_attribute_value(value.into()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

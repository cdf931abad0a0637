//! Canonical encoding of items: equal items have equal bytes, and different items have different
//! bytes.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::{Item, StoreError};

/// Encodes the item's attributes without those in `omitted`, sorted by name. Each value has a type
/// letter; lengths and counts take eight bytes.
pub(super) fn encoded(item: &Item, omitted: &[&str]) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::with_capacity(1_024);
    let kept: HashMap<_, _> = item.iter().filter(|(name, _)| !omitted.contains(&name.as_str())).collect();
    push_fields(&mut bytes, kept)?;
    Ok(bytes)
}

fn push_fields<'a>(
    bytes: &mut Vec<u8>,
    fields: impl IntoIterator<Item = (&'a String, &'a AttributeValue)>,
) -> Result<(), StoreError> {
    let mut fields: Vec<_> = fields.into_iter().collect();
    fields.sort_unstable_by_key(|(name, _)| *name);
    push_count(bytes, fields.len());
    for (name, value) in fields {
        push_bytes(bytes, name.as_bytes());
        push_value(bytes, value)?;
    }
    Ok(())
}

fn push_value(bytes: &mut Vec<u8>, value: &AttributeValue) -> Result<(), StoreError> {
    match value {
        AttributeValue::S(text) => push_tagged(bytes, b'S', text.as_bytes()),
        AttributeValue::N(number) => push_tagged(bytes, b'N', number.as_bytes()),
        AttributeValue::B(blob) => push_tagged(bytes, b'B', blob.as_ref()),
        AttributeValue::Bool(flag) => bytes.extend([b'?', u8::from(*flag)]),
        AttributeValue::Null(flag) => bytes.extend([b'0', u8::from(*flag)]),
        AttributeValue::L(items) => {
            bytes.push(b'L');
            push_count(bytes, items.len());
            items.iter().try_for_each(|item| push_value(bytes, item))?;
        }
        AttributeValue::M(fields) => {
            bytes.push(b'M');
            push_fields(bytes, fields)?;
        }
        AttributeValue::Ss(texts) => push_set(bytes, b's', texts.iter().map(String::as_bytes)),
        AttributeValue::Ns(numbers) => push_set(bytes, b'n', numbers.iter().map(String::as_bytes)),
        AttributeValue::Bs(blobs) => push_set(bytes, b'b', blobs.iter().map(AsRef::as_ref)),
        other => return Err(StoreError::Fault(format!("unknown attribute type: {other:?}"))),
    }
    Ok(())
}

/// Encodes the members of a set in sorted order, because a set has none.
fn push_set<'a>(bytes: &mut Vec<u8>, tag: u8, members: impl Iterator<Item = &'a [u8]>) {
    let mut members: Vec<_> = members.collect();
    members.sort_unstable();
    bytes.push(tag);
    push_count(bytes, members.len());
    for member in members {
        push_bytes(bytes, member);
    }
}

fn push_tagged(bytes: &mut Vec<u8>, tag: u8, content: &[u8]) {
    bytes.push(tag);
    push_bytes(bytes, content);
}

fn push_bytes(bytes: &mut Vec<u8>, content: &[u8]) {
    push_count(bytes, content.len());
    bytes.extend(content);
}

fn push_count(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend((count as u64).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use aws_sdk_dynamodb::primitives::Blob;
    use proptest::{
        collection::{btree_set, hash_map, vec},
        prelude::*,
    };

    use super::*;

    fn value() -> impl Strategy<Value = AttributeValue> {
        let leaf = prop_oneof![
            "[ab]{0,2}".prop_map(AttributeValue::S),
            "[01]{1,2}".prop_map(AttributeValue::N),
            vec(0..2_u8, 0..2).prop_map(|bytes| AttributeValue::B(Blob::new(bytes))),
            any::<bool>().prop_map(AttributeValue::Bool),
            Just(AttributeValue::Null(true)),
            btree_set("[ab]{0,2}", 0..3).prop_map(|set| AttributeValue::Ss(set.into_iter().collect())),
            btree_set("[01]{1,2}", 0..3).prop_map(|set| AttributeValue::Ns(set.into_iter().collect())),
            btree_set(vec(0..2_u8, 0..2), 0..3)
                .prop_map(|set| AttributeValue::Bs(set.into_iter().map(Blob::new).collect())),
        ];
        leaf.prop_recursive(3, 8, 3, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..3).prop_map(AttributeValue::L),
                hash_map("[ab]{0,2}", inner, 0..3).prop_map(AttributeValue::M),
            ]
        })
    }

    fn item() -> impl Strategy<Value = Item> {
        hash_map("[ab]{0,2}", value(), 0..4)
    }

    proptest! {
        #[test]
        fn different_items_encode_differently(one in item(), other in item()) {
            prop_assert_eq!(encoded(&one, &[]).unwrap() == encoded(&other, &[]).unwrap(), one == other);
        }

        #[test]
        fn set_order_and_omitted_attributes_do_not_matter(
            item in item(),
            set in btree_set("[ab]{0,2}", 1..4),
            omitted in value(),
        ) {
            let mut ordered = item.clone();
            ordered.insert("set".to_owned(), AttributeValue::Ss(set.iter().cloned().collect()));
            let mut reversed = item;
            reversed.insert("set".to_owned(), AttributeValue::Ss(set.into_iter().rev().collect()));
            reversed.insert("link".to_owned(), omitted);
            prop_assert_eq!(encoded(&ordered, &["link"]).unwrap(), encoded(&reversed, &["link"]).unwrap());
        }
    }

    #[test]
    fn attribute_value_type_changes_its_encoding() {
        let text = || "1".to_owned();
        let kinds = [
            AttributeValue::S(text()),
            AttributeValue::N(text()),
            AttributeValue::B(Blob::new("1")),
            AttributeValue::Bool(true),
            AttributeValue::Null(true),
            AttributeValue::Ss(vec![text()]),
            AttributeValue::Ns(vec![text()]),
            AttributeValue::Bs(vec![Blob::new("1")]),
            AttributeValue::L(vec![AttributeValue::S(text())]),
            AttributeValue::M(HashMap::from([(String::new(), AttributeValue::S(text()))])),
        ];
        let encoded = kinds.map(|kind| encoded(&HashMap::from([("a".to_owned(), kind)]), &[]).unwrap());
        assert_eq!(encoded.iter().collect::<BTreeSet<_>>().len(), encoded.len());
    }
}

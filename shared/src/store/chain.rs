use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{
    Conflict, Item, Store, StoreError, Transaction,
    audit::is_well_formed,
    canonical, decode, required_text,
    table::{ABOVE_IDS, AUDIT, Key, Table, UNCHAINED_INDEX, chain_partition, unchained_shards},
};
use crate::domain::{Anchor, ChainedEvent, EventMark, Hash32, Id, Link};

const PAGE_SIZE: i32 = 1_000;
/// Maximum bytes of events in a link. A transaction may use 4 MB.
const MAX_LINK_BYTES: usize = 2_000_000;
/// The attributes that the worker changes in an event. The event's digest covers all others.
pub(super) const UNCHAINED: &str = "unchained";
pub(super) const LINK: &str = "link";

/// The claim of an event for a link. Functions that write events cannot write it.
#[derive(Serialize, Deserialize)]
pub(super) struct ChainClaim {
    pub(super) link: u64,
}

/// The sort keys of possibly unchained events by organization, oldest first.
pub type UnchainedEvents = BTreeMap<Id, Vec<String>>;

/// The progress of a sweep of the index: the shards that remain, each with the item after which it
/// continues.
#[derive(Debug)]
pub struct Sweep {
    shards: Vec<(String, Option<Item>)>,
}

/// A shard, a page of its items, and the start key of the next page.
type ShardPage = (String, Vec<Item>, Option<Item>);

impl Default for Sweep {
    fn default() -> Self {
        Self { shards: unchained_shards().map(|shard| (shard, None)).collect() }
    }
}

/// Pending events as read from the base table.
#[derive(Debug)]
pub struct PendingEvents {
    pub events: Vec<ChainedEvent>,
    /// Number of requested events that were examined. It is smaller than the request if one link
    /// cannot hold them all.
    pub examined: usize,
    /// Sort keys of events that were rewritten after they were chained.
    pub rewritten: Vec<String>,
}

impl Store {
    /// Reads the next pages of the index of unchained events. Returns `None` once the sweep is
    /// complete.
    pub async fn unchained_events(&self, sweep: &mut Sweep) -> Result<Option<UnchainedEvents>, StoreError> {
        if sweep.shards.is_empty() {
            return Ok(None);
        }
        let mut queries = JoinSet::new();
        for (shard, start_key) in std::mem::take(&mut sweep.shards) {
            let store = self.clone();
            queries.spawn(async move { store.unchained_in_shard(shard, start_key).await });
        }
        let mut found = Vec::new();
        for page in queries.join_all().await {
            let (shard, items, start_key) = page?;
            found.extend(items);
            sweep.shards.extend(start_key.map(|start_key| (shard, Some(start_key))));
        }
        by_organization(&found).map(Some)
    }

    async fn unchained_in_shard(&self, shard: String, start_key: Option<Item>) -> Result<ShardPage, StoreError> {
        let output = self
            .client
            .query()
            .table_name(self.table(Table::Main))
            .index_name(UNCHAINED_INDEX)
            .key_condition_expression("unchained = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(shard.clone()))
            .set_exclusive_start_key(start_key)
            .limit(PAGE_SIZE)
            .send()
            .await?;
        Ok((shard, output.items.unwrap_or_default(), output.last_evaluated_key))
    }

    /// Returns those of the events that are still unchained, in the requested order and at most as
    /// many as one link holds. Reads consistently.
    pub async fn pending_audit_events(&self, organization: Id, sks: &[String]) -> Result<PendingEvents, StoreError> {
        let sks = &sks[..sks.len().min(Link::MAX_EVENTS)];
        let keys = sks
            .iter()
            .flat_map(|sk| [Key::audit_event_at(organization, sk.clone()), Key::claimed_event(organization, sk)]);
        let keys: Vec<_> = keys.collect();
        let mut items = BTreeMap::new();
        for item in self.batch_get(Table::Main, &keys).await? {
            items.insert((required_text(&item, "pk")?.to_owned(), required_text(&item, "sk")?.to_owned()), item);
        }
        let mut pending = PendingEvents { events: Vec::new(), examined: 0, rewritten: Vec::new() };
        let mut bytes = 0;
        for (sk, keys) in sks.iter().zip(keys.chunks_exact(2)) {
            let [event, claim] = [&keys[0], &keys[1]].map(|key| items.get(&(key.pk.clone(), key.sk.clone())));
            let event = event.map(|item| Ok::<_, StoreError>((encoded(item)?, event_mark(item)?))).transpose()?;
            let Some((encoded, mark)) = event.filter(|(_, mark)| mark.unchained && mark.link.is_none()) else {
                pending.examined += 1;
                continue;
            };
            if claim.is_some() {
                pending.rewritten.push(sk.clone());
            } else if bytes > 0 && bytes + encoded.len() > MAX_LINK_BYTES {
                break;
            } else {
                bytes += encoded.len();
                pending.events.push(ChainedEvent { sk: sk.clone(), digest: mark.digest });
            }
            pending.examined += 1;
        }
        Ok(pending)
    }

    pub async fn chain_head(&self, organization: Id) -> Result<Option<Link>, StoreError> {
        let output = self
            .client
            .query()
            .table_name(self.table(Table::Main))
            .key_condition_expression("pk = :pk AND sk < :upper")
            .expression_attribute_values(":pk", AttributeValue::S(chain_partition(organization)))
            .expression_attribute_values(":upper", AttributeValue::S(ABOVE_IDS.to_owned()))
            .scan_index_forward(false)
            .consistent_read(true)
            .limit(1)
            .send()
            .await?;
        output.items.and_then(|mut items| items.pop()).map(decode).transpose()
    }
}

impl Transaction {
    /// Appends a link and its anchor, if the link's number is free and all of its events are
    /// unchained.
    pub fn append_link(&mut self, organization: Id, link: &Link) -> Result<(), StoreError> {
        let anchor = Anchor::from(link);
        self.insert(Table::Main, &Key::link(organization, link.n), link, Conflict::Changed)?;
        self.insert(Table::Anchors, &Key::anchor(organization, &anchor), &anchor, Conflict::Changed)?;
        for event in &link.events {
            let claim = Key::claimed_event(organization, &event.sk);
            self.insert(Table::Main, &claim, &ChainClaim { link: link.n }, Conflict::Changed)?;
            let key = Key::audit_event_at(organization, event.sk.clone());
            self.update(Table::Main, &key, Conflict::Changed, |update| {
                update
                    .update_expression("SET link = :n REMOVE unchained")
                    .condition_expression("attribute_exists(unchained) AND attribute_not_exists(link)")
                    .expression_attribute_values(":n", AttributeValue::N(link.n.to_string()))
            })?;
        }
        Ok(())
    }
}

fn by_organization(items: &[Item]) -> Result<UnchainedEvents, StoreError> {
    let mut found = UnchainedEvents::new();
    for item in items {
        if let Some(organization) = required_text(item, "pk")?.strip_prefix(AUDIT).and_then(Id::parse) {
            found.entry(organization).or_default().push(required_text(item, "sk")?.to_owned());
        }
    }
    for sks in found.values_mut() {
        sks.sort_unstable();
        // Two pages of the sweep may have the same event, if it was rewritten in between.
        sks.dedup();
    }
    Ok(found)
}

/// Encodes the part of an event that its digest covers.
fn encoded(item: &Item) -> Result<Vec<u8>, StoreError> {
    canonical::encoded(item, &[UNCHAINED, LINK])
}

pub(super) fn event_mark(item: &Item) -> Result<EventMark, StoreError> {
    // An invalid number becomes 0, which no link has.
    let number = |value: &AttributeValue| value.as_n().ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    Ok(EventMark {
        digest: Hash32::for_event(&encoded(item)?),
        link: item.get(LINK).map(number),
        unchained: item.contains_key(UNCHAINED),
        sound: is_well_formed(item),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_found_in_two_shards_is_listed_once() {
        let item = |pk: &str, sk: &str| {
            let text = |text: &str| AttributeValue::S(text.to_owned());
            Item::from([("pk".to_owned(), text(pk)), ("sk".to_owned(), text(sk))])
        };
        let items =
            [item("AUD#7", "b"), item("AUD#8", "b"), item("AUD#7", "a"), item("AUD#?", "a"), item("AUD#7", "b")];
        let found = by_organization(&items).unwrap();
        let expected = [(7, vec!["a", "b"]), (8, vec!["b"])];
        let expected =
            expected.map(|(id, sks)| (Id::new(id).unwrap(), sks.into_iter().map(str::to_owned).collect::<Vec<_>>()));
        assert_eq!(found, BTreeMap::from(expected));
    }
}

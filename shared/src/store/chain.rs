use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{
    Conflict, Item, Store, StoreError, Transaction,
    audit::is_sound,
    canonical, decode,
    table::{ABOVE_IDS, AUDIT, Key, Table, UNCHAINED_INDEX, chain_partition, unchained_shards},
    text,
};
use crate::domain::{Anchor, ChainedEvent, EventMark, Hash32, Id, Link};

/// How much of a shard one look finds.
const FOUND_AT_MOST: i32 = 1_000;
/// How many bytes of events one link holds: a transaction may touch 4 MB.
const BYTES_AT_MOST: usize = 2_000_000;
/// What the worker writes into an event. All else is under its digest.
pub(super) const UNCHAINED: &str = "unchained";
pub(super) const LINK: &str = "link";

/// That an event was chained, and where. Who writes events cannot write this.
#[derive(Serialize, Deserialize)]
pub(super) struct ChainClaim {
    pub(super) link: u64,
}

/// The sort keys of events that may not be chained yet, for each organization, oldest first.
pub type UnchainedEvents = BTreeMap<Id, Vec<String>>;

/// How far a sweep of the index has come: the shards that are not done with, and behind which item each goes on.
#[derive(Debug)]
pub struct Sweep {
    shards: Vec<(String, Option<Item>)>,
}

/// A shard, what was found in it, and behind which item there may be more.
type Look = (String, Vec<Item>, Option<Item>);

impl Default for Sweep {
    /// From the start.
    fn default() -> Self {
        Self { shards: unchained_shards().map(|shard| (shard, None)).collect() }
    }
}

/// Events that wait to be chained, as they are now.
#[derive(Debug)]
pub struct PendingEvents {
    pub events: Vec<ChainedEvent>,
    /// How many of those asked for were looked at: not all, if one link cannot hold them.
    pub looked_at: usize,
    /// Events that were chained before and were put anew.
    pub rewritten: Vec<String>,
}

impl Store {
    /// Looks on through the index of events that are not chained yet; none once all of it was looked through.
    pub async fn unchained_events(&self, sweep: &mut Sweep) -> Result<Option<UnchainedEvents>, StoreError> {
        if sweep.shards.is_empty() {
            return Ok(None);
        }
        let mut looks = JoinSet::new();
        for (shard, behind) in std::mem::take(&mut sweep.shards) {
            let store = self.clone();
            looks.spawn(async move { store.unchained_in_shard(shard, behind).await });
        }
        let mut found = Vec::new();
        for look in looks.join_all().await {
            let (shard, items, behind) = look?;
            found.extend(items);
            sweep.shards.extend(behind.map(|behind| (shard, Some(behind))));
        }
        by_organization(&found).map(Some)
    }

    async fn unchained_in_shard(&self, shard: String, behind: Option<Item>) -> Result<Look, StoreError> {
        let output = self
            .client
            .query()
            .table_name(self.table(Table::Main))
            .index_name(UNCHAINED_INDEX)
            .key_condition_expression("unchained = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(shard.clone()))
            .set_exclusive_start_key(behind)
            .limit(FOUND_AT_MOST)
            .send()
            .await?;
        Ok((shard, output.items.unwrap_or_default(), output.last_evaluated_key))
    }

    /// Those of the events that still wait, read consistently, in the order that they were asked for; at most what one link holds.
    pub async fn pending_audit_events(&self, organization: Id, sks: &[String]) -> Result<PendingEvents, StoreError> {
        let sks = &sks[..sks.len().min(Link::EVENTS_AT_MOST)];
        let keys =
            sks.iter().flat_map(|sk| [Key::logged(organization, sk.clone()), Key::claimed_event(organization, sk)]);
        let keys: Vec<_> = keys.collect();
        let mut items = BTreeMap::new();
        for item in self.batch_get(Table::Main, &keys).await? {
            items.insert((text(&item, "pk")?.to_owned(), text(&item, "sk")?.to_owned()), item);
        }
        let mut waiting = PendingEvents { events: Vec::new(), looked_at: 0, rewritten: Vec::new() };
        let mut bytes = 0;
        for (sk, keys) in sks.iter().zip(keys.chunks_exact(2)) {
            let [event, claim] = [&keys[0], &keys[1]].map(|key| items.get(&(key.pk.clone(), key.sk.clone())));
            let event = event.map(|item| Ok::<_, StoreError>((encoded(item)?, mark_of(item)?))).transpose()?;
            let Some((encoded, mark)) = event.filter(|(_, mark)| mark.waiting && mark.link.is_none()) else {
                waiting.looked_at += 1;
                continue;
            };
            if claim.is_some() {
                waiting.rewritten.push(sk.clone());
            } else if bytes > 0 && bytes + encoded.len() > BYTES_AT_MOST {
                break;
            } else {
                bytes += encoded.len();
                waiting.events.push(ChainedEvent { sk: sk.clone(), digest: mark.digest });
            }
            waiting.looked_at += 1;
        }
        Ok(waiting)
    }

    /// The last link of the organization's chain.
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
    /// Appends a link, if none has its number and all of its events still wait; with it goes its anchor.
    pub fn append_link(&mut self, organization: Id, link: &Link) -> Result<(), StoreError> {
        let anchor = Anchor::from(link);
        self.insert(Table::Main, &Key::link(organization, link.n), link, Conflict::Changed)?;
        self.insert(Table::Anchors, &Key::anchor(organization, &anchor), &anchor, Conflict::Changed)?;
        for event in &link.events {
            let claim = Key::claimed_event(organization, &event.sk);
            self.insert(Table::Main, &claim, &ChainClaim { link: link.n }, Conflict::Changed)?;
            let key = Key::logged(organization, event.sk.clone());
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
        if let Some(organization) = text(item, "pk")?.strip_prefix(AUDIT).and_then(Id::parse) {
            found.entry(organization).or_default().push(text(item, "sk")?.to_owned());
        }
    }
    for sks in found.values_mut() {
        sks.sort_unstable();
        // One that was put into another shard meanwhile was found in both.
        sks.dedup();
    }
    Ok(found)
}

/// What an event's digest is over.
fn encoded(item: &Item) -> Result<Vec<u8>, StoreError> {
    canonical::encoded(item, &[UNCHAINED, LINK])
}

pub(super) fn mark_of(item: &Item) -> Result<EventMark, StoreError> {
    // What is no number is told as 0, which no link has.
    let number = |value: &AttributeValue| value.as_n().ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    Ok(EventMark {
        digest: Hash32::of_event(&encoded(item)?),
        link: item.get(LINK).map(number),
        waiting: item.contains_key(UNCHAINED),
        sound: is_sound(item),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_was_found_in_two_shards_is_one() {
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

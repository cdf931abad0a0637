use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Serialize;

use super::{
    Conflict, Item, Page, Store, StoreError, Transaction,
    chain::{ChainClaim, LINK, UNCHAINED, mark_of},
    decode,
    page::Listing,
    table::{CLAIMED_EVENT, Key, Table, audit_event_place, audit_partition, unchained_shard},
    text,
};
use crate::domain::{AuditEvent, Chain, ChainState, EventMark, Id, Link, Timestamp};

/// What an event is written with. Older events are judged by it too: it may only grow.
const ATTRIBUTES: [&str; 12] = [
    "action",
    "actor",
    "at",
    "changes",
    "id",
    "ip_address",
    "pk",
    "request_id",
    "resource",
    "sk",
    UNCHAINED,
    "user_agent",
];
/// A transaction that is being committed shows in one read and not yet in another. How long until it shows in all.
const COMMITTING: Duration = Duration::from_millis(50);

/// An event as it lies in the log.
#[derive(Debug, Clone)]
pub struct LoggedEvent {
    pub event: AuditEvent,
    sk: String,
    mark: EventMark,
}

/// An event with the attribute that puts it into the index, until it is chained.
#[derive(Serialize)]
struct Unchained<'a> {
    #[serde(flatten)]
    event: &'a AuditEvent,
    unchained: String,
}

impl Transaction {
    /// Adds the event to the organization's log, together with the change it tells of. It is chained later.
    pub fn audit(&mut self, organization: Id, event: &AuditEvent) -> Result<(), StoreError> {
        let key = Key::audit_event(organization, event.at, event.id);
        self.insert(Table::Main, &key, &Unchained { event, unchained: unchained_shard(event.id) }, Conflict::IdTaken)
    }
}

impl Store {
    /// The organization's audit events, newest first, of those that `keep` lets through.
    pub async fn audit_events(
        &self,
        organization: Id,
        below: Option<Id>,
        limit: usize,
        keep: impl Fn(&AuditEvent) -> bool,
    ) -> Result<Page<LoggedEvent>, StoreError> {
        let listing = Listing {
            table: Table::Main,
            partition: audit_partition(organization),
            place: |id| audit_event_place(id.drawn_at(), id),
            read: logged,
            skips_unreadable: true,
            id: |logged: &LoggedEvent| logged.event.id,
        };
        self.page(listing, below, limit, |logged| keep(&logged.event)).await
    }

    /// How the chain stands at each of these events. What looks broken is looked at twice.
    pub async fn chains(
        &self,
        organization: Id,
        events: &[LoggedEvent],
        now: Timestamp,
    ) -> Result<Vec<Chain>, StoreError> {
        let chains = self.chains_now(organization, events, now).await?;
        if chains.iter().all(|chain| chain.state != ChainState::Broken) {
            return Ok(chains);
        }
        tokio::time::sleep(COMMITTING).await;
        self.chains_now(organization, events, now).await
    }

    /// Two reads, of what a page of events needs.
    async fn chains_now(
        &self,
        organization: Id,
        events: &[LoggedEvent],
        now: Timestamp,
    ) -> Result<Vec<Chain>, StoreError> {
        let keys: Vec<_> = events.iter().map(|logged| Key::claimed_event(organization, &logged.sk)).collect();
        let mut claims = BTreeMap::new();
        for item in self.batch_get(Table::Main, &keys).await? {
            let sk = text(&item, "sk")?.trim_start_matches(CLAIMED_EVENT).to_owned();
            // What cannot be read was tampered with, and is as good as not there.
            if let Ok(claim) = decode::<ChainClaim>(item) {
                claims.insert(sk, claim.link);
            }
        }
        let wanted: BTreeSet<_> = claims.values().flat_map(|n| [n.saturating_sub(1), *n]).filter(|n| *n > 0).collect();
        let keys: Vec<_> = wanted.into_iter().map(|n| Key::link(organization, n)).collect();
        let links = self.batch_get(Table::Main, &keys).await?.into_iter().filter_map(|item| decode::<Link>(item).ok());
        let links: BTreeMap<_, _> = links.map(|link| (link.n, link)).collect();
        let chain = |logged: &LoggedEvent| {
            Chain::at(organization, &logged.sk, &logged.mark, claims.get(&logged.sk).copied(), &links, now)
        };
        Ok(events.iter().map(chain).collect())
    }
}

fn logged(item: Item) -> Result<LoggedEvent, StoreError> {
    let sk = text(&item, "sk")?.to_owned();
    // Pages resume by id, so what stands elsewhere than its id says would make them skip events or come round.
    let id = id_at(&sk).ok_or_else(|| StoreError::Fault(format!("an audit event stands at {sk:?}, where none can")))?;
    let mark = mark_of(&item)?;
    let event: AuditEvent = decode(item)?;
    Ok(LoggedEvent { event: AuditEvent { id, ..event }, sk, mark })
}

/// The id of the event that stands here, if one can.
fn id_at(sk: &str) -> Option<Id> {
    let id = sk.rsplit_once('#').and_then(|(_, id)| Id::parse(id.trim_start_matches('0')));
    id.filter(|id| audit_event_place(id.drawn_at(), *id) == sk)
}

/// Whether the item stands where an event can, has an event's attributes and the worker's alone, and waits, if it does, in its own shard.
pub(super) fn is_sound(item: &Item) -> bool {
    let Some(id) = text(item, "sk").ok().and_then(id_at) else { return false };
    let in_place =
        item.get(UNCHAINED).is_none_or(|shard| shard.as_s().is_ok_and(|shard| *shard == unchained_shard(id)));
    in_place && item.keys().all(|name| name == LINK || ATTRIBUTES.contains(&name.as_str()))
}

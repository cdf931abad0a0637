use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Serialize;

use super::{
    Conflict, Item, Page, Store, StoreError, Transaction,
    chain::{ChainClaim, LINK, UNCHAINED, event_mark},
    decode,
    page::Listing,
    required_text,
    table::{CLAIMED_EVENT, Key, Table, audit_event_sort_key, audit_partition, unchained_shard},
};
use crate::domain::{AuditEvent, Chain, ChainState, EventMark, Id, Link, Timestamp};

/// The attributes of an event. Older events are checked against this list too: it may only grow.
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
/// How long a transaction that is being committed may be visible in one read and not in another.
const COMMIT_DELAY: Duration = Duration::from_millis(50);

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
    /// Adds the event to the organization's log, in the transaction of its change. It is chained
    /// later.
    pub fn audit(&mut self, organization: Id, event: &AuditEvent) -> Result<(), StoreError> {
        let key = Key::audit_event(organization, event.at, event.id);
        self.insert(Table::Main, &key, &Unchained { event, unchained: unchained_shard(event.id) }, Conflict::IdTaken)
    }
}

impl Store {
    /// Returns the organization's audit events that match `keep`, newest first.
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
            sort_key: |id| audit_event_sort_key(id.drawn_at(), id),
            read: read_logged,
            skips_unreadable: true,
            id: |logged: &LoggedEvent| logged.event.id,
        };
        self.page(listing, below, limit, |logged| keep(&logged.event)).await
    }

    /// Returns the chain state of each of these events. If one appears broken, all are read a
    /// second time.
    pub async fn chains(
        &self,
        organization: Id,
        events: &[LoggedEvent],
        now: Timestamp,
    ) -> Result<Vec<Chain>, StoreError> {
        let chains = self.read_chains(organization, events, now).await?;
        if chains.iter().all(|chain| chain.state != ChainState::Broken) {
            return Ok(chains);
        }
        tokio::time::sleep(COMMIT_DELAY).await;
        self.read_chains(organization, events, now).await
    }

    /// Reads the claims and then the links of these events.
    async fn read_chains(
        &self,
        organization: Id,
        events: &[LoggedEvent],
        now: Timestamp,
    ) -> Result<Vec<Chain>, StoreError> {
        let keys: Vec<_> = events.iter().map(|logged| Key::claimed_event(organization, &logged.sk)).collect();
        let mut claims = BTreeMap::new();
        for item in self.batch_get(Table::Main, &keys).await? {
            let sk = required_text(&item, "sk")?.trim_start_matches(CLAIMED_EVENT).to_owned();
            // An unreadable claim was tampered with and counts as missing.
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

fn read_logged(item: Item) -> Result<LoggedEvent, StoreError> {
    let sk = required_text(&item, "sk")?.to_owned();
    // Pages resume by id. An event whose sort key differs from its id would make them skip or
    // repeat events.
    let id = event_id(&sk).ok_or_else(|| StoreError::Fault(format!("audit event has an invalid sort key: {sk:?}")))?;
    let mark = event_mark(&item)?;
    let event: AuditEvent = decode(item)?;
    Ok(LoggedEvent { event: AuditEvent { id, ..event }, sk, mark })
}

/// Returns the id of the event with this sort key, or `None` if no event can have it.
fn event_id(sk: &str) -> Option<Id> {
    let id = sk.rsplit_once('#').and_then(|(_, id)| Id::parse(id.trim_start_matches('0')));
    id.filter(|id| audit_event_sort_key(id.drawn_at(), *id) == sk)
}

/// Returns whether the item has a valid sort key, only the attributes that Karta writes, and the
/// right shard if it is unchained.
pub(super) fn is_well_formed(item: &Item) -> bool {
    let Some(id) = required_text(item, "sk").ok().and_then(event_id) else { return false };
    let in_own_shard =
        item.get(UNCHAINED).is_none_or(|shard| shard.as_s().is_ok_and(|shard| *shard == unchained_shard(id)));
    in_own_shard && item.keys().all(|name| name == LINK || ATTRIBUTES.contains(&name.as_str()))
}

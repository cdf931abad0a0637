//! Every table and every key string.
//!
//! Each kind of item has its own partition prefix, so that IAM can separate them with
//! `dynamodb:LeadingKeys`:
//!
//! | table | pk | sk | item |
//! | --- | --- | --- | --- |
//! | credentials | `KP#<prefix>` | `K#<key id>` | digest, organization and id of an API key; immutable |
//! | main | `ORG#<org>` | `META` | the organization |
//! | main | `ADM#<org>` | `COUNT` | number of its usable admin keys |
//! | main | `KEY#<org>` | key id | an API key without its digest |
//! | main | `USED#<org>` | key id | time of an API key's last use; the only partition that validating keys writes |
//! | main | `PRJ#<org>` | project id | an agent project |
//! | main | `PRJ#<org>` | `SLUG#<slug>` | claim of a project's slug, with its id |
//! | main | `MK#<org>` | model key id | a provider key without its secret; kept after revocation |
//! | main | `MK#<org>` | `ACTIVE#<provider>` | the provider key in use |
//! | main | `MKS#<org>` | model key id | the sealed provider key; deleted on revocation |
//! | main | `ID#<kind>#<id>` | `CLAIM` | claim of an id over all organizations, with its organization |
//! | main | `ID#organization_slug#<slug>` | `CLAIM` | claim of an organization's slug |
//! | main | `ID#stripe_customer#<customer>` | `CLAIM` | claim of a Stripe customer, with its organization |
//! | main | `ID#release#<id>` | `CLAIM` | claim of a release's id, with its organization, project and version |
//! | main | `REL#<org>#<project id>` | version | a release |
//! | main | `RLG#<org>#<release id>` | `<generation>#<last line>` | lines of a release's build log, valid if the release names the generation |
//! | main | `AUD#<org>` | `<time>#<id>` | an audit event; `unchained` until it has a `link` |
//! | main | `CHN#<org>` | `<n>` | a link of the audit log's chain |
//! | main | `CHN#<org>` | `EVENT#<time>#<id>` | claim of an audit event for a link, with the link's number |
//! | main | `SEV#<event>` | `EVENT` | a processed Stripe event; `ttl` |
//! | main | `IDEM#<org>#<hash>` | `RECORD` | a stored response to an organization's key; `ttl` |
//! | main | `IDS#<hash>` | `RECORD` | a stored response to a service; `ttl` |
//! | outbox | `EVT#<org>` | `<time>#<id>` | an event for webhook endpoints; `ttl` after its fan-out |
//! | outbox | `PSH#<org>` | `<time>#<id>` | an invalidation of what data planes cache about the organization |
//! | outbox | `FLS#<stage>` | `LAST` | time and number of the last flush of the gateway's cache |
//! | outbox | `XPR#<org>` | key id | a scheduled notice of a key's expiry |
//! | outbox | `BDG#<org>` | `CHECK`, `AT#<time>`, `LOOK#…` | a scheduled budget check |
//! | outbox | `BST#<org>` | `ORG`, `KEY#<key>` | the events that were published about a budget |
//! | outbox | `DLV#<org>#<endpoint>` | event id | an event's delivery to a webhook endpoint, with its attempts; `ttl` |
//! | outbox | `DLP#<org>#<endpoint>` | `<time>#<event id>` | a scheduled attempt of this delivery; `ttl` |
//! | outbox | `WHQ#<org>` | endpoint id | an endpoint's queue: when something is due, its lease, its recent failures |
//! | outbox | `WHR#<org>` | endpoint id | a running recovery and its progress |
//! | main | `WH#<org>` | endpoint id | a webhook endpoint |
//! | main | `WH#<org>` | `COUNT` | number of webhook endpoints |
//! | main | `WHS#<org>` | endpoint id | its sealed secrets |
//! | main | `PX#<prefix>` | key id | the owner of a key with this prefix |
//! | main | `BUD#<org>` | `CAPS` | the organization's budget |
//! | usage | `UEV#<org>#<hash>` | `EVENT` | a counted usage event; `ttl` |
//! | usage | `UMO#<org>` | month | an organization's usage in a month: totals and days; what running turns hold |
//! | usage | `UMP#<org>` | month | the list of the month's models, which numbers them |
//! | usage | `UMP#<org>` | `<month>#<n>` | usage by model, several models in an item |
//! | usage | `UMK#<org>#<key>` | month | usage of a key lineage in a month: totals, days and first models; what running turns hold |
//! | usage | `UMK#<org>#<key>` | `<month>#<n>` | usage of the lineage by other models |
//! | anchors | `ANC#<org>` | `<n>#<hash>` | copy of a link's hash; written once, read by the operator only |
//! | sessions | `SES#<org>#<session id>` | `META` | a session |
//! | sessions | `SES#<org>#<session id>` | `T#<turn id>` | a turn |
//! | sessions | `SES#<org>#<session id>` | `M#<turn number>#<0 or 1>#<part>` | a part of a sealed message, of the user (0) or the assistant (1) |
//! | sessions | `SES#<org>#<session id>` | `E#<turn id>#<first seq>` | a sealed batch of a turn's events; `ttl` |
//! | sessions | `SLO#<org>` | list id | a session in its organization's list |
//! | sessions | `SLP#<org>#<project id>` | list id | a session in its project's list |
//! | sessions | `SLU#<org>#<project id or 0>#<hash of user>` | list id | a session in its user's list: in its project, and in the organization (0) |
//! | sessions | `TID#<org>#<hash>` | `RECORD` | the turn of an idempotency key; `ttl` |
//!
//! Attributes of indexes:
//!
//! - Unchained audit events have `unchained` (`UNC#0` … `UNC#15`), the key of the index
//!   `unchained`.
//! - Scheduled items of the outbox have `due_shard` (`EVT#0` … `EVT#15` and so on) and `due_at`,
//!   the keys of the index `due`.
//! - Sessions (`SES#0` … `SES#15`) have the time when their content is deleted in the same
//!   attributes of their own table, and running turns (`TRN#0` … `TRN#15`) the end of their lease.
//! - Sealed items have `sealed_shard` (`MKS#0`, `WHS#0`) and `kid`, the keys of the index `sealed`.
//!
//! Ids, versions and the numbers of links and lines in sort keys are padded to 16 digits, so that
//! they sort by time.

use std::collections::HashMap;

use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_dynamodb::types::AttributeValue;
use serde::Deserialize;

use super::{BudgetSubject, Queue, SealedKind};
use crate::domain::{
    Anchor, Id, Kind, LogGeneration, MessageRole, Month, Prefix, Provider, SessionId, Slug, StripeCustomerId, StripeId,
    Timestamp, TurnId, UserId, Version, hex,
};

pub(super) const DUE_INDEX: &str = "due";
pub(super) const UNCHAINED_INDEX: &str = "unchained";
/// Number of index partitions over which scheduled items are spread.
const SHARDS: u64 = 16;

/// Index of the sealed items by ring key, including keys that have left the ring.
pub(super) const SEALED_INDEX: &str = "sealed";

#[derive(Debug, Clone)]
pub struct Tables {
    pub main: String,
    pub credentials: String,
    pub outbox: String,
    pub usage: String,
    pub anchors: String,
    pub sessions: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    Main,
    Credentials,
    Outbox,
    Usage,
    Anchors,
    Sessions,
}

impl Tables {
    pub fn local() -> Self {
        let name = |kind: &str| format!("karta{kind}");
        Self {
            main: name(""),
            credentials: name("-credentials"),
            outbox: name("-outbox"),
            usage: name("-usage"),
            anchors: name("-anchors"),
            sessions: name("-sessions"),
        }
    }

    pub fn name(&self, table: Table) -> &str {
        match table {
            Table::Main => &self.main,
            Table::Credentials => &self.credentials,
            Table::Outbox => &self.outbox,
            Table::Usage => &self.usage,
            Table::Anchors => &self.anchors,
            Table::Sessions => &self.sessions,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub struct Key {
    pub pk: String,
    pub sk: String,
}

/// Sorts after every id. Other items in a partition that is listed by id sort after this.
pub(super) const ABOVE_IDS: &str = ":";

impl Key {
    pub fn credential(prefix: &Prefix, key: Id) -> Self {
        Self::new(credentials_partition(prefix), format!("K#{}", padded(key)))
    }

    pub fn organization(organization: Id) -> Self {
        Self::new(format!("ORG#{organization}"), "META".to_owned())
    }

    /// Returns a key that no item has.
    pub fn organization_absent() -> Self {
        Self::new("ORG#0".to_owned(), "META".to_owned())
    }

    pub fn admins(organization: Id) -> Self {
        Self::new(format!("ADM#{organization}"), "COUNT".to_owned())
    }

    pub fn api_key(organization: Id, key: Id) -> Self {
        Self::new(api_keys_partition(organization), padded(key))
    }

    pub fn key_use(organization: Id, key: Id) -> Self {
        Self::new(key_uses_partition(organization), padded(key))
    }

    pub fn project(organization: Id, project: Id) -> Self {
        Self::new(projects_partition(organization), padded(project))
    }

    pub fn project_slug(organization: Id, slug: &Slug) -> Self {
        Self::new(projects_partition(organization), format!("SLUG#{slug}"))
    }

    pub fn release(organization: Id, project: Id, version: Version) -> Self {
        Self::new(releases_partition(organization, project), padded(version.as_id()))
    }

    pub fn log_chunk(organization: Id, release: Id, generation: &LogGeneration, last_line: u64) -> Self {
        Self::new(log_partition(organization, release), log_chunk_sort_key(generation, last_line))
    }

    pub fn model_key(organization: Id, key: Id) -> Self {
        Self::new(model_keys_partition(organization), padded(key))
    }

    pub fn active_model_key(organization: Id, provider: Provider) -> Self {
        Self::new(model_keys_partition(organization), format!("ACTIVE#{provider}"))
    }

    pub fn sealed_model_key(organization: Id, key: Id) -> Self {
        Self::new(format!("{}{organization}", SealedKind::ModelKeys.prefix()), padded(key))
    }

    /// Returns the organization and the id of a sealed item, if this is the key of one.
    pub(super) fn parse_sealed(&self, kind: SealedKind) -> Option<(Id, Id)> {
        let organization = Id::parse(self.pk.strip_prefix(kind.prefix())?)?;
        let id = parse_padded(&self.sk)?;
        (self.sk == padded(id)).then_some((organization, id))
    }

    pub fn claimed_id(kind: Kind, id: Id) -> Self {
        Self::new(format!("ID#{}#{id}", kind.as_str()), "CLAIM".to_owned())
    }

    pub fn claimed_organization_slug(slug: &Slug) -> Self {
        Self::new(format!("ID#organization_slug#{slug}"), "CLAIM".to_owned())
    }

    pub fn claimed_stripe_customer(customer: &StripeCustomerId) -> Self {
        Self::new(format!("ID#stripe_customer#{}", customer.as_str()), "CLAIM".to_owned())
    }

    pub fn stripe_event(event: &StripeId) -> Self {
        Self::new(format!("SEV#{}", event.as_str()), "EVENT".to_owned())
    }

    pub fn audit_event(organization: Id, at: Timestamp, id: Id) -> Self {
        Self::audit_event_at(organization, audit_event_sort_key(at, id))
    }

    pub(super) fn audit_event_at(organization: Id, sk: String) -> Self {
        Self::new(audit_partition(organization), sk)
    }

    pub(super) fn link(organization: Id, n: u64) -> Self {
        Self::new(chain_partition(organization), link_sort_key(n))
    }

    pub(super) fn claimed_event(organization: Id, sk: &str) -> Self {
        Self::new(chain_partition(organization), format!("{CLAIMED_EVENT}{sk}"))
    }

    pub(super) fn anchor(organization: Id, anchor: &Anchor) -> Self {
        Self::new(anchors_partition(organization), format!("{}#{}", link_sort_key(anchor.n), anchor.hash))
    }

    pub fn claimed_prefix(prefix: &Prefix, key: Id) -> Self {
        Self::new(Self::prefix_partition(prefix), padded(key))
    }

    pub(super) fn prefix_partition(prefix: &Prefix) -> String {
        format!("PX#{prefix}")
    }

    pub fn budget(organization: Id) -> Self {
        Self::new(format!("BUD#{organization}"), "CAPS".to_owned())
    }

    pub fn usage_event(organization: Id, hash: &str) -> Self {
        Self::new(format!("UEV#{organization}#{hash}"), "EVENT".to_owned())
    }

    pub fn usage_totals(organization: Id, month: Month) -> Self {
        Self::new(format!("UMO#{organization}"), month.to_string())
    }

    pub fn usage_models(organization: Id, month: Month) -> Self {
        Self::new(format!("UMP#{organization}"), month.to_string())
    }

    pub fn usage_by_model(organization: Id, month: Month, item: usize) -> Self {
        Self::new(format!("UMP#{organization}"), format!("{month}#{item}"))
    }

    /// `lineage_id` is the id of the lineage's first key.
    pub fn usage_of_key(organization: Id, lineage_id: Id, month: Month) -> Self {
        Self::new(format!("UMK#{organization}#{lineage_id}"), month.to_string())
    }

    pub fn usage_of_key_by_model(organization: Id, lineage_id: Id, month: Month, item: usize) -> Self {
        Self::new(format!("UMK#{organization}#{lineage_id}"), format!("{month}#{item}"))
    }

    pub fn budget_watch(organization: Id, subject: BudgetSubject) -> Self {
        let subject = match subject {
            BudgetSubject::Organization => "ORG".to_owned(),
            BudgetSubject::Key(id) => format!("KEY#{id}"),
        };
        Self::new(format!("BST#{organization}"), subject)
    }

    pub fn event(organization: Id, at: Timestamp, id: Id) -> Self {
        Self::due(Queue::Events, organization, &format!("{at}#{}", padded(id)))
    }

    pub fn invalidation(organization: Id, at: Timestamp, id: Id) -> Self {
        Self::due(Queue::Invalidations, organization, &format!("{at}#{}", padded(id)))
    }

    pub fn expiry_notice(organization: Id, key: Id) -> Self {
        Self::due(Queue::ExpiryNotices, organization, &padded(key))
    }

    pub fn flush(stage: &str) -> Self {
        Self::new(format!("FLS#{stage}"), "LAST".to_owned())
    }

    pub(super) fn due(queue: Queue, organization: Id, sk: &str) -> Self {
        Self::new(format!("{}#{organization}", queue.prefix()), sk.to_owned())
    }

    pub fn webhook_endpoint(organization: Id, endpoint: Id) -> Self {
        Self::new(webhook_endpoints_partition(organization), padded(endpoint))
    }

    pub fn webhook_endpoint_count(organization: Id) -> Self {
        Self::new(webhook_endpoints_partition(organization), "COUNT".to_owned())
    }

    pub fn webhook_secrets(organization: Id, endpoint: Id) -> Self {
        Self::new(format!("{}{organization}", SealedKind::WebhookSecrets.prefix()), padded(endpoint))
    }

    pub fn delivery(organization: Id, endpoint: Id, event: Id) -> Self {
        Self::new(deliveries_partition(organization, endpoint), padded(event))
    }

    pub fn pending_delivery(organization: Id, endpoint: Id, event: Id, at: Timestamp) -> Self {
        Self::new(pending_deliveries_partition(organization, endpoint), format!("{at}#{}", padded(event)))
    }

    pub fn delivery_queue(organization: Id, endpoint: Id) -> Self {
        Self::due(Queue::Deliveries, organization, &padded(endpoint))
    }

    pub fn recovery(organization: Id, endpoint: Id) -> Self {
        Self::due(Queue::Recoveries, organization, &padded(endpoint))
    }

    /// `organization` is `None` for a service's response.
    pub fn idempotency(organization: Option<Id>, hash: &str) -> Self {
        let partition = match organization {
            Some(organization) => format!("IDEM#{organization}#{hash}"),
            None => format!("IDS#{hash}"),
        };
        Self::new(partition, "RECORD".to_owned())
    }

    pub fn session(organization: Id, session: &SessionId) -> Self {
        Self::new(session_partition(organization, session), "META".to_owned())
    }

    pub fn turn(organization: Id, session: &SessionId, turn: &TurnId) -> Self {
        Self::new(session_partition(organization, session), format!("{TURN}{turn}"))
    }

    pub fn message_part(
        organization: Id,
        session: &SessionId,
        turn_number: u64,
        role: MessageRole,
        part: usize,
    ) -> Self {
        let sk = format!("{}{part:02}", message_sort_key(turn_number, role));
        Self::new(session_partition(organization, session), sk)
    }

    pub fn turn_events(organization: Id, session: &SessionId, turn: &TurnId, first_seq: u32) -> Self {
        Self::new(session_partition(organization, session), turn_events_sort_key(turn, first_seq))
    }

    pub(super) fn listed(partition: String, list_id: Id) -> Self {
        Self::new(partition, padded(list_id))
    }

    pub fn turn_request(organization: Id, hash: &str) -> Self {
        Self::new(format!("TID#{organization}#{hash}"), "RECORD".to_owned())
    }

    /// Returns the organization and the session of an item in a session's partition.
    pub(super) fn parse_session(&self) -> Option<(Id, SessionId)> {
        let (organization, session) = self.pk.strip_prefix(SESSION)?.split_once('#')?;
        Some((Id::parse(organization)?, SessionId::parse(session)?))
    }

    /// Returns the turn, if this is the sort key of one.
    pub(super) fn parse_turn(&self) -> Option<TurnId> {
        TurnId::parse(self.sk.strip_prefix(TURN)?)
    }

    pub(super) fn of_item(item: &HashMap<String, AttributeValue>) -> Option<Self> {
        let text = |name: &str| item.get(name)?.as_s().ok().cloned();
        Some(Self::new(text("pk")?, text("sk")?))
    }

    fn new(pk: String, sk: String) -> Self {
        Self { pk, sk }
    }

    pub(super) fn attributes(&self) -> HashMap<String, AttributeValue> {
        HashMap::from([
            ("pk".to_owned(), AttributeValue::S(self.pk.clone())),
            ("sk".to_owned(), AttributeValue::S(self.sk.clone())),
        ])
    }
}

impl SealedKind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::ModelKeys => "MKS#",
            Self::WebhookSecrets => "WHS#",
        }
    }

    /// Returns the index partition of this kind. One is enough, because there are few items.
    pub(super) const fn shard(self) -> &'static str {
        match self {
            Self::ModelKeys => "MKS#0",
            Self::WebhookSecrets => "WHS#0",
        }
    }
}

/// Parses a padded sort key.
pub(super) fn parse_padded(sk: &str) -> Option<Id> {
    Id::parse(sk.trim_start_matches('0'))
}

impl Queue {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Events => "EVT",
            Self::Invalidations => "PSH",
            Self::ExpiryNotices => "XPR",
            Self::BudgetChecks => "BDG",
            Self::Deliveries => "WHQ",
            Self::Recoveries => "WHR",
        }
    }

    pub(super) fn shard(self, id: Id) -> String {
        format!("{}#{}", self.prefix(), id.get() % SHARDS)
    }
}

pub(super) fn due_shards(queue: Queue) -> impl Iterator<Item = String> {
    shards(queue.prefix())
}

/// Returns the partitions of an index over which items are spread.
pub fn shards(prefix: &str) -> impl Iterator<Item = String> {
    (0..SHARDS).map(move |shard| format!("{prefix}#{shard}"))
}

pub(super) fn credentials_partition(prefix: &Prefix) -> String {
    format!("KP#{prefix}")
}

pub(super) fn key_uses_partition(organization: Id) -> String {
    format!("USED#{organization}")
}

pub(super) fn api_keys_partition(organization: Id) -> String {
    format!("KEY#{organization}")
}

pub(super) fn projects_partition(organization: Id) -> String {
    format!("PRJ#{organization}")
}

pub(super) fn model_keys_partition(organization: Id) -> String {
    format!("MK#{organization}")
}

pub(super) fn releases_partition(organization: Id, project: Id) -> String {
    format!("REL#{organization}#{project}")
}

pub(super) fn log_partition(organization: Id, release: Id) -> String {
    format!("RLG#{organization}#{release}")
}

pub(super) fn log_chunk_sort_key(generation: &LogGeneration, last_line: u64) -> String {
    format!("{generation}#{last_line:016}")
}

pub(super) fn invalidations_partition(organization: Id) -> String {
    format!("PSH#{organization}")
}

pub(super) fn webhook_endpoints_partition(organization: Id) -> String {
    format!("WH#{organization}")
}

pub(super) fn delivery_queues_partition(organization: Id) -> String {
    format!("{}#{organization}", Queue::Deliveries.prefix())
}

pub(super) fn events_partition(organization: Id) -> String {
    format!("{}#{organization}", Queue::Events.prefix())
}

pub(super) fn deliveries_partition(organization: Id, endpoint: Id) -> String {
    format!("DLV#{organization}#{endpoint}")
}

pub(super) fn pending_deliveries_partition(organization: Id, endpoint: Id) -> String {
    format!("DLP#{organization}#{endpoint}")
}

pub(super) const AUDIT: &str = "AUD#";
pub(super) const CHAIN: &str = "CHN#";
pub(super) const ANCHORS: &str = "ANC#";
/// Partitions that every organization has from its creation on, even after its audit log was
/// deleted.
pub(super) const OWNED_PREFIXES: [&str; 4] = ["ORG#", "ADM#", "KEY#", "ID#organization#"];
/// Prefix of the sort keys of claimed events. It sorts after every link.
pub(super) const CLAIMED_EVENT: &str = "EVENT#";

pub(super) fn audit_partition(organization: Id) -> String {
    format!("{AUDIT}{organization}")
}

pub(super) fn chain_partition(organization: Id) -> String {
    format!("{CHAIN}{organization}")
}

pub(super) fn anchors_partition(organization: Id) -> String {
    format!("{ANCHORS}{organization}")
}

pub(super) fn unchained_shard(id: Id) -> String {
    format!("UNC#{}", id.get() % SHARDS)
}

pub(super) fn unchained_shards() -> impl Iterator<Item = String> {
    shards("UNC")
}

pub(super) fn audit_event_sort_key(at: Timestamp, id: Id) -> String {
    format!("{at}#{}", padded(id))
}

pub(super) fn link_sort_key(n: u64) -> String {
    format!("{n:016}")
}

const SESSION: &str = "SES#";
const TURN: &str = "T#";
/// Index partitions of the sessions, and of the running turns.
pub(super) const SESSION_SHARDS: &str = "SES";
pub(super) const TURN_SHARDS: &str = "TRN";

pub(super) fn session_partition(organization: Id, session: &SessionId) -> String {
    format!("{SESSION}{organization}#{session}")
}

/// Returns the index partition of a session, or of its turns.
pub(super) fn session_shard(prefix: &str, session: &SessionId) -> String {
    let last = session.as_str().chars().next_back().and_then(|digit| digit.to_digit(16)).unwrap_or_default();
    format!("{prefix}#{}", u64::from(last) % SHARDS)
}

pub(super) fn sessions_partition(organization: Id) -> String {
    format!("SLO#{organization}")
}

pub(super) fn project_sessions_partition(organization: Id, project: Id) -> String {
    format!("SLP#{organization}#{project}")
}

/// Without a project: the partition of the user's sessions in the whole organization.
pub(super) fn user_sessions_partition(organization: Id, project: Option<Id>, user: &UserId) -> String {
    let hash = digest(&SHA256, user.as_str().as_bytes());
    format!("SLU#{organization}#{}#{}", project.map_or(0, Id::get), hex(hash.as_ref()))
}

/// Returns the start of the sort keys of a message's parts.
pub(super) fn message_sort_key(turn_number: u64, role: MessageRole) -> String {
    let role = match role {
        MessageRole::User => 0,
        MessageRole::Assistant => 1,
    };
    format!("M#{turn_number:016}#{role}#")
}

pub(super) fn turn_events_sort_key(turn: &TurnId, first_seq: u32) -> String {
    format!("E#{turn}#{first_seq:08}")
}

pub(super) fn padded(id: Id) -> String {
    format!("{:016}", id.get())
}

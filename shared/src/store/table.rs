//! Every table and every key string.
//!
//! One partition prefix per kind of thing, so that IAM's `dynamodb:LeadingKeys` can tell them apart:
//!
//! | table | pk | sk | item |
//! | --- | --- | --- | --- |
//! | credentials | `KP#<prefix>` | `K#<key id>` | digest, organization and id of an API key; never changes |
//! | main | `ORG#<org>` | `META` | the organization |
//! | main | `ADM#<org>` | `COUNT` | how many usable admin keys it has |
//! | main | `KEY#<org>` | key id | an API key without its digest |
//! | main | `USED#<org>` | key id | when an API key was last used; the one partition that validating keys writes |
//! | main | `PRJ#<org>` | project id | an agent project |
//! | main | `PRJ#<org>` | `SLUG#<slug>` | claims a project's slug, holds its id |
//! | main | `MK#<org>` | model key id | a provider key without the key itself; stays when it is revoked |
//! | main | `MK#<org>` | `ACTIVE#<provider>` | which of them is in use |
//! | main | `MKS#<org>` | model key id | the sealed key; gone when it is revoked |
//! | main | `ID#<kind>#<id>` | `CLAIM` | claims an id over all organizations, holds its organization |
//! | main | `ID#organization_slug#<slug>` | `CLAIM` | claims an organization's slug |
//! | main | `ID#stripe_customer#<customer>` | `CLAIM` | claims a Stripe customer, holds its organization |
//! | main | `ID#release#<id>` | `CLAIM` | claims a release's id, holds its organization, project and version |
//! | main | `REL#<org>#<project id>` | version | a release |
//! | main | `RLG#<org>#<release id>` | `<generation>#<last line>` | some lines of a release's build log, if the release names the generation |
//! | main | `AUD#<org>` | `<time>#<id>` | an audit event; `unchained` until it has a `link` |
//! | main | `CHN#<org>` | `<n>` | a link of the audit log's chain |
//! | main | `CHN#<org>` | `EVENT#<time>#<id>` | claims an audit event for a link, holds its number |
//! | main | `SEV#<event>` | `EVENT` | an event of Stripe's that was taken in; `ttl` |
//! | main | `IDEM#<org>#<hash>` | `RECORD` | an answer that an organization's key was given; `ttl` |
//! | main | `IDS#<hash>` | `RECORD` | an answer that a service was given; `ttl` |
//! | outbox | `EVT#<org>` | `<time>#<id>` | an event for webhook endpoints; `ttl` once it is fanned out |
//! | outbox | `PSH#<org>` | `<time>#<id>` | that data planes are to forget what they keep of the organization |
//! | outbox | `FLS#<stage>` | `LAST` | when the gateway's cache was flushed last, and how often |
//! | outbox | `XPR#<org>` | key id | that a key's owner is to be told of its end |
//! | outbox | `BDG#<org>` | `CHECK`, `AT#<time>`, `LOOK#…` | that budgets are to be held against what was spent |
//! | outbox | `BST#<org>` | `ORG`, `KEY#<key>` | what was told of a budget already |
//! | outbox | `DLV#<org>#<endpoint>` | event id | an event's delivery to a webhook endpoint, with its attempts; `ttl` |
//! | outbox | `DLP#<org>#<endpoint>` | `<time>#<event id>` | that this delivery is to be attempted then; `ttl` |
//! | outbox | `WHQ#<org>` | endpoint id | an endpoint's queue: when something is due, who serves it, how it went lately |
//! | outbox | `WHR#<org>` | endpoint id | a recovery under way: since when, and how far it is |
//! | main | `WH#<org>` | endpoint id | a webhook endpoint |
//! | main | `WH#<org>` | `COUNT` | how many there are |
//! | main | `WHS#<org>` | endpoint id | its secrets, sealed |
//! | main | `PX#<prefix>` | key id | whose key has this prefix |
//! | main | `BUD#<org>` | `CAPS` | the organization's budget |
//! | usage | `UEV#<org>#<hash>` | `EVENT` | a usage event that was counted; `ttl` |
//! | usage | `UMO#<org>` | month | what an organization used in a month, whole and by day |
//! | usage | `UMP#<org>` | month | the month's models, which numbers them |
//! | usage | `UMP#<org>` | `<month>#<n>` | what it used by model, some models an item |
//! | usage | `UMK#<org>#<key>` | month | what a line of keys used in a month: whole, by day and by its first models |
//! | usage | `UMK#<org>#<key>` | `<month>#<n>` | the same by other models |
//! | anchors | `ANC#<org>` | `<n>#<hash>` | what a link was when it was chained; written once and read by the operator alone |
//!
//! What waits in the audit log for its worker carries `unchained` (`UNC#0` … `UNC#15`), the key of the index `unchained`.
//! What waits in the outbox for a worker carries `due_shard` (`EVT#0` … `EVT#15` and so on) and `due_at`, the keys of the index `due`.
//!
//! What is sealed carries `sealed_shard` (`MKS#0`, `WHS#0`) and `kid`, the keys of the index `sealed`.
//!
//! Ids, versions, links' and lines' numbers in sort keys are padded to 16 digits, so that their order is the order of time.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use serde::Deserialize;

use super::{BudgetSubject, Queue, SealedKind};
use crate::domain::{
    Anchor, Id, Kind, LogGeneration, Month, Prefix, Provider, Slug, StripeCustomerId, StripeId, Timestamp, Version,
};

/// Finds what is due in the outbox.
pub(super) const DUE_INDEX: &str = "due";
/// Finds audit events that are not chained yet.
pub(super) const UNCHAINED_INDEX: &str = "unchained";
/// Spreads what waits over an index's partitions.
const SHARDS: u64 = 16;

/// Finds what keys of a ring have sealed, also those that it does not hold any more.
pub(super) const SEALED_INDEX: &str = "sealed";

/// The tables' names in this stack.
#[derive(Debug, Clone)]
pub struct Tables {
    pub main: String,
    pub credentials: String,
    pub outbox: String,
    pub usage: String,
    pub anchors: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    Main,
    Credentials,
    Outbox,
    Usage,
    Anchors,
}

impl Tables {
    /// As a local run names them.
    pub fn local() -> Self {
        let name = |kind: &str| format!("karta{kind}");
        Self {
            main: name(""),
            credentials: name("-credentials"),
            outbox: name("-outbox"),
            usage: name("-usage"),
            anchors: name("-anchors"),
        }
    }

    pub fn name(&self, table: Table) -> &str {
        match table {
            Table::Main => &self.main,
            Table::Credentials => &self.credentials,
            Table::Outbox => &self.outbox,
            Table::Usage => &self.usage,
            Table::Anchors => &self.anchors,
        }
    }
}

/// A primary key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub struct Key {
    pub pk: String,
    pub sk: String,
}

/// Sorts after every id; what else lies in a partition that is listed by id sorts after this.
pub(super) const ABOVE_IDS: &str = ":";

impl Key {
    pub fn credential(prefix: &Prefix, key: Id) -> Self {
        Self::new(credentials_partition(prefix), format!("K#{}", padded(key)))
    }

    pub fn organization(organization: Id) -> Self {
        Self::new(format!("ORG#{organization}"), "META".to_owned())
    }

    /// A key under which nothing ever lies.
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
        Self::new(releases_partition(organization, project), padded(version.place()))
    }

    pub fn log_chunk(organization: Id, release: Id, generation: &LogGeneration, last_line: u64) -> Self {
        Self::new(log_partition(organization, release), log_chunk_place(generation, last_line))
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

    /// Whose this is that lies here sealed, and which.
    pub(super) fn of_sealed(&self, kind: SealedKind) -> Option<(Id, Id)> {
        let organization = Id::parse(self.pk.strip_prefix(kind.prefix())?)?;
        let id = unpadded(&self.sk)?;
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
        Self::logged(organization, audit_event_place(at, id))
    }

    /// An audit event by its sort key.
    pub(super) fn logged(organization: Id, sk: String) -> Self {
        Self::new(audit_partition(organization), sk)
    }

    pub(super) fn link(organization: Id, n: u64) -> Self {
        Self::new(chain_partition(organization), link_place(n))
    }

    pub(super) fn claimed_event(organization: Id, sk: &str) -> Self {
        Self::new(chain_partition(organization), format!("{CLAIMED_EVENT}{sk}"))
    }

    pub(super) fn anchor(organization: Id, anchor: &Anchor) -> Self {
        Self::new(anchors_partition(organization), format!("{}#{}", link_place(anchor.n), anchor.hash))
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

    /// `lineage_id` is the first key of the line.
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

    pub fn waiting_delivery(organization: Id, endpoint: Id, event: Id, at: Timestamp) -> Self {
        Self::new(waiting_deliveries_partition(organization, endpoint), format!("{at}#{}", padded(event)))
    }

    pub fn delivery_queue(organization: Id, endpoint: Id) -> Self {
        Self::due(Queue::Deliveries, organization, &padded(endpoint))
    }

    pub fn recovery(organization: Id, endpoint: Id) -> Self {
        Self::due(Queue::Recoveries, organization, &padded(endpoint))
    }

    /// `organization` is none for what a service was answered.
    pub fn idempotency(organization: Option<Id>, hash: &str) -> Self {
        let partition = match organization {
            Some(organization) => format!("IDEM#{organization}#{hash}"),
            None => format!("IDS#{hash}"),
        };
        Self::new(partition, "RECORD".to_owned())
    }

    /// The key of an item as it was read.
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

    /// Where in the index all of it stands: there are few.
    pub(super) const fn shard(self) -> &'static str {
        match self {
            Self::ModelKeys => "MKS#0",
            Self::WebhookSecrets => "WHS#0",
        }
    }
}

/// The id that a padded sort key is.
pub(super) fn unpadded(sk: &str) -> Option<Id> {
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

    /// Where in the index something waits.
    pub(super) fn shard(self, id: Id) -> String {
        format!("{}#{}", self.prefix(), id.get() % SHARDS)
    }
}

pub(super) fn due_shards(queue: Queue) -> impl Iterator<Item = String> {
    shards(queue.prefix())
}

/// The partitions of an index over which items are spread.
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

pub(super) fn log_chunk_place(generation: &LogGeneration, last_line: u64) -> String {
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

pub(super) fn waiting_deliveries_partition(organization: Id, endpoint: Id) -> String {
    format!("DLP#{organization}#{endpoint}")
}

pub(super) const AUDIT: &str = "AUD#";
pub(super) const CHAIN: &str = "CHN#";
pub(super) const ANCHORS: &str = "ANC#";
/// Partitions that every organization has from its creation on, even if its audit log was deleted.
pub(super) const OWNED: [&str; 4] = ["ORG#", "ADM#", "KEY#", "ID#organization#"];
/// Starts the sort keys of claimed events. Sorts after every link.
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

/// Where in the index an event waits to be chained.
pub(super) fn unchained_shard(id: Id) -> String {
    format!("UNC#{}", id.get() % SHARDS)
}

pub(super) fn unchained_shards() -> impl Iterator<Item = String> {
    shards("UNC")
}

/// The sort key of an audit event.
pub(super) fn audit_event_place(at: Timestamp, id: Id) -> String {
    format!("{at}#{}", padded(id))
}

pub(super) fn link_place(n: u64) -> String {
    format!("{n:016}")
}

pub(super) fn padded(id: Id) -> String {
    format!("{:016}", id.get())
}

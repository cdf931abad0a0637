use std::collections::BTreeSet;

use aws_sdk_dynamodb::{Client, types::AttributeValue};
use serde::de::DeserializeOwned;

use super::{
    Item, Store, StoreError,
    chain::{ChainClaim, event_mark},
    decode, required_text,
    table::{
        ABOVE_IDS, ANCHORS, AUDIT, CHAIN, CLAIMED_EVENT, OWNED_PREFIXES, Table, anchors_partition, audit_partition,
        chain_partition, link_sort_key,
    },
};
use crate::domain::{Action, Anchor, AuditEvent, AuditLog, Id, Link};

/// Reads complete audit logs with their chains and anchors. It needs Scan, which only the operator
/// may use.
#[derive(Debug, Clone)]
pub struct AuditReader {
    client: Client,
    main: String,
    anchors: String,
}

/// The organizations that must have an audit log.
#[derive(Debug, Default)]
pub struct Audited {
    pub organizations: BTreeSet<Id>,
    /// Partitions that are named like those of audit logs but belong to no organization.
    pub strays: BTreeSet<String>,
}

impl Store {
    pub fn audit_reader(&self) -> AuditReader {
        let (main, anchors) = (self.table(Table::Main), self.table(Table::Anchors));
        AuditReader::new(self.client.clone(), main.to_owned(), anchors.to_owned())
    }
}

impl AuditReader {
    pub fn new(client: Client, main: String, anchors: String) -> Self {
        Self { client, main, anchors }
    }

    /// Returns every organization with an item, an event, a link or an anchor, so that deleting a
    /// log does not hide its organization.
    pub async fn audited(&self) -> Result<Audited, StoreError> {
        let mut audited = Audited::default();
        for (table, logs, owned) in
            [(&self.main, &[AUDIT, CHAIN][..], &OWNED_PREFIXES[..]), (&self.anchors, &[ANCHORS], &[])]
        {
            let mut items = self
                .client
                .scan()
                .table_name(table)
                .projection_expression("pk")
                .consistent_read(true)
                .into_paginator()
                .items()
                .send();
            while let Some(item) = items.next().await {
                let item = item?;
                let pk = required_text(&item, "pk")?;
                let owner = |prefixes: &[&str]| prefixes.iter().find_map(|prefix| pk.strip_prefix(prefix));
                if let Some(owner) = owner(logs) {
                    match Id::parse(owner) {
                        Some(organization) => drop(audited.organizations.insert(organization)),
                        None => drop(audited.strays.insert(pk.to_owned())),
                    }
                } else if let Some(organization) = owner(owned).and_then(Id::parse) {
                    audited.organizations.insert(organization);
                }
            }
        }
        Ok(audited)
    }

    /// Reads an organization's log, which may grow at the same time. [`AuditLog::settled`] is the
    /// last link that was read before the events.
    pub async fn audit_log(&self, organization: Id) -> Result<AuditLog, StoreError> {
        let mut log = AuditLog::default();
        self.for_each_item(&self.main, &chain_partition(organization), None, |item| add_chain_item(&mut log, item))
            .await?;
        log.settled = log.links.keys().next_back().copied().unwrap_or(0);
        self.for_each_item(&self.main, &audit_partition(organization), None, |item| {
            let (sk, mut mark) = (required_text(&item, "sk")?.to_owned(), event_mark(&item)?);
            let event = decode::<AuditEvent>(item);
            mark.sound &= event.is_ok();
            log.created |= event.is_ok_and(|event| event.action == Action::OrganizationCreated.as_str());
            log.events.insert(sk, mark);
            Ok(())
        })
        .await?;
        self.for_each_item(&self.anchors, &anchors_partition(organization), None, |item| {
            if let Some(anchor) = decode_or_record::<Anchor>(&mut log.unreadable, item)? {
                log.anchors.entry(anchor.n).or_default().push(anchor);
            }
            Ok(())
        })
        .await?;
        let later = [link_sort_key(log.settled.saturating_add(1)), ABOVE_IDS.to_owned()];
        self.for_each_item(&self.main, &chain_partition(organization), Some(later), |item| {
            add_chain_item(&mut log, item)
        })
        .await?;
        Ok(log)
    }

    async fn for_each_item(
        &self,
        table: &str,
        partition: &str,
        range: Option<[String; 2]>,
        mut visit: impl FnMut(Item) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let query = self.client.query().table_name(table).consistent_read(true);
        let query = query.expression_attribute_values(":pk", AttributeValue::S(partition.to_owned()));
        let query = match range {
            None => query.key_condition_expression("pk = :pk"),
            Some([from, to]) => query
                .key_condition_expression("pk = :pk AND sk BETWEEN :from AND :to")
                .expression_attribute_values(":from", AttributeValue::S(from))
                .expression_attribute_values(":to", AttributeValue::S(to)),
        };
        let mut items = query.into_paginator().items().send();
        while let Some(item) = items.next().await {
            visit(item?)?;
        }
        Ok(())
    }
}

fn add_chain_item(log: &mut AuditLog, item: Item) -> Result<(), StoreError> {
    let sk = required_text(&item, "sk")?.to_owned();
    if let Some(event) = sk.strip_prefix(CLAIMED_EVENT) {
        if let Some(claim) = decode_or_record::<ChainClaim>(&mut log.unreadable, item)? {
            log.claims.insert(event.to_owned(), claim.link);
        }
        return Ok(());
    }
    let n = sk.parse().ok().filter(|n| link_sort_key(*n) == sk);
    match (n, decode_or_record::<Link>(&mut log.unreadable, item)?) {
        (Some(n), Some(link)) => drop(log.links.insert(n, link)),
        (None, Some(_)) => drop(log.unreadable.insert(sk)),
        (_, None) => {}
    }
    Ok(())
}

/// Decodes an item. An unreadable item is a finding and does not end the check.
fn decode_or_record<T: DeserializeOwned>(
    unreadable: &mut BTreeSet<String>,
    item: Item,
) -> Result<Option<T>, StoreError> {
    let sk = required_text(&item, "sk")?.to_owned();
    let read = decode(item);
    if read.is_err() {
        unreadable.insert(sk);
    }
    Ok(read.ok())
}

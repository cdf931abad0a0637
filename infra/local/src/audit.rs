//! `karta audit-verify`: whether every organization's audit log is whole, by the key, the chain and the anchors.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use karta_shared::{
    App,
    clock::{Clock, SystemClock},
    config::{self, Config, Ring},
    domain::{Checked, Id, Keyring, Timestamp, check},
    entropy::OsEntropy,
    store::{AuditReader, table::Tables},
};

use crate::{
    emulator::{Emulator, STORE_FILE},
    runner::lock,
    secrets::{Given, LocalSecrets},
    template::{TEMPLATE, Template},
};

/// What was found of every audit log.
#[derive(Debug)]
pub struct Report {
    pub organizations: Vec<(Id, Checked)>,
    /// Partitions that are named like those of audit logs and belong to nobody.
    pub strays: Vec<String>,
}

impl Report {
    /// Whether something was verified, and all of it is whole.
    pub fn is_clean(&self) -> bool {
        !self.organizations.is_empty()
            && self.strays.is_empty()
            && self.organizations.iter().all(|(_, checked)| checked.findings.is_empty())
    }

    /// One line for each organization, and below it one for each finding.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.organizations.is_empty() {
            lines.push("the store holds no organization: nothing was verified".to_owned());
        }
        for (organization, Checked { events, links, pending, findings }) in &self.organizations {
            let verdict = if findings.is_empty() { "whole".to_owned() } else { format!("{} findings", findings.len()) };
            lines.push(format!(
                "organization {organization}: {verdict} ({events} events, {pending} of them pending, in {links} links)"
            ));
            lines.extend(findings.iter().map(|finding| format!("  {finding}")));
        }
        lines.extend(self.strays.iter().map(|partition| format!("partition {partition:?} belongs to nobody")));
        lines
    }
}

/// Verifies what the reader reaches under the ring `audit`. `now` says how long events have waited.
pub async fn verify(reader: &AuditReader, ring: &Keyring, now: Timestamp) -> Result<Report> {
    let audited = reader.audited().await?;
    let mut organizations = Vec::new();
    for organization in audited.organizations {
        let mut checked = check(organization, &reader.audit_log(organization).await?, ring, now);
        // A link that was being written shows in one read and not yet in another: what is a finding is one twice.
        if !checked.findings.is_empty() {
            checked = check(organization, &reader.audit_log(organization).await?, ring, now);
        }
        organizations.push((organization, checked));
    }
    Ok(Report { organizations, strays: audited.strays.into_iter().collect() })
}

/// Verifies a data directory, which no runner may be working on.
pub async fn verify_local(folder: &Path) -> Result<Report> {
    ensure!(folder.join(STORE_FILE).exists(), "--data-dir: {} holds no data", folder.display());
    let _lock = lock(folder)?;
    let secrets = LocalSecrets::open(Some(folder), Given::default(), &OsEntropy)?;
    let tables = Tables::local();
    let emulator = Emulator::start(Some(folder), &Template::parse(TEMPLATE)?, &tables, &OsEntropy)?;
    let sdk = config::local_sdk(&emulator.endpoint(), emulator.access_key()).await;
    let config = Config::local(tables, None)?;
    let app = App::new(config, &sdk, secrets.source(), Arc::new(SystemClock), Arc::new(OsEntropy));
    let ring = app.secrets.ring(Ring::Audit).await?;
    let report = verify(&app.store.audit_reader(), &ring, SystemClock.now()).await;
    drop(app);
    emulator.stop().await;
    report
}

/// Verifies the deployed stack that the environment names.
pub async fn verify_deployed() -> Result<Report> {
    let (reader, secrets) = config::deployed_audit().await?;
    let ring = secrets.ring(Ring::Audit).await.context("--deployed")?;
    verify(&reader, &ring, SystemClock.now()).await
}

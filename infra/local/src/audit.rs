//! `karta audit-verify`: verifies every organization's audit log with the `audit` key ring, the
//! hash chain and the anchors.

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
    secrets::{LocalSecrets, ProvidedSecrets},
    template::{TEMPLATE, Template},
};

/// Results of verifying every audit log.
#[derive(Debug)]
pub struct Report {
    pub organizations: Vec<(Id, Checked)>,
    /// Partitions with the name of an audit log that belong to no organization.
    pub strays: Vec<String>,
}

impl Report {
    /// Returns true if at least one log was verified and all logs are intact.
    pub fn is_clean(&self) -> bool {
        !self.organizations.is_empty()
            && self.strays.is_empty()
            && self.organizations.iter().all(|(_, checked)| checked.findings.is_empty())
    }

    /// Returns one line per organization, each followed by a line per finding.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.organizations.is_empty() {
            lines.push("the store holds no organization: nothing was verified".to_owned());
        }
        for (organization, Checked { events, links, pending, findings }) in &self.organizations {
            let verdict =
                if findings.is_empty() { "intact".to_owned() } else { format!("{} findings", findings.len()) };
            lines.push(format!(
                "organization {organization}: {verdict} ({events} events, {pending} pending, {links} links)"
            ));
            lines.extend(findings.iter().map(|finding| format!("  {finding}")));
        }
        lines.extend(self.strays.iter().map(|partition| format!("partition {partition:?} belongs to no organization")));
        lines
    }
}

/// Verifies every audit log that the reader can read with the ring `audit`. `now` determines how
/// long events have been pending.
pub async fn verify(reader: &AuditReader, ring: &Keyring, now: Timestamp) -> Result<Report> {
    let audited = reader.audited().await?;
    let mut organizations = Vec::new();
    for organization in audited.organizations {
        let mut checked = check(organization, &reader.audit_log(organization).await?, ring, now);
        // A concurrent write can be half visible: verify again before reporting a finding.
        if !checked.findings.is_empty() {
            checked = check(organization, &reader.audit_log(organization).await?, ring, now);
        }
        organizations.push((organization, checked));
    }
    Ok(Report { organizations, strays: audited.strays.into_iter().collect() })
}

/// Verifies the audit logs of a data directory. Fails if a runner is using it.
pub async fn verify_local(folder: &Path) -> Result<Report> {
    ensure!(folder.join(STORE_FILE).exists(), "--data-dir: {} holds no data", folder.display());
    let _lock = lock(folder)?;
    let secrets = LocalSecrets::open(Some(folder), ProvidedSecrets::default(), &OsEntropy)?;
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

/// Verifies the audit logs of the deployed stack named by the environment.
pub async fn verify_deployed() -> Result<Report> {
    let (reader, secrets) = config::deployed_audit().await?;
    let ring = secrets.ring(Ring::Audit).await.context("--deployed")?;
    verify(&reader, &ring, SystemClock.now()).await
}

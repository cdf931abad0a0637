//! Chains audit events: appends links to each organization's chain until no event is pending, and
//! logs the new head of the chain.

use std::time::Duration;

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{Id, Link, Timestamp},
    store::{CommitError, Sweep, UnchainedEvents},
    worker::{Fault, Wake, Worker},
};
use tokio::time::Instant;

/// Maximum attempts to append a link while other runs append links too.
const MAX_ATTEMPTS: usize = 20;
/// Time limit for starting new searches. The rest of a run's minute is for chaining the events that
/// were found last.
const SEARCH_TIME_LIMIT: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub struct AuditChain {
    app: App,
}

impl AuditChain {
    pub fn new(app: App) -> Self {
        Self { app }
    }

    /// Chains those events that are still pending.
    async fn chain(&self, organization: Id, sks: &[String]) -> Result<(), Fault> {
        let mut remaining = sks;
        let mut attempts = 0;
        while !remaining.is_empty() {
            match self.append(organization, remaining).await? {
                Some(done) => (remaining, attempts) = (&remaining[done..], 0),
                None => attempts += 1,
            }
            if attempts == MAX_ATTEMPTS {
                return Err("audit chain append kept conflicting".into());
            }
        }
        Ok(())
    }

    /// Appends one link if any event is pending. Returns the number of completed events, or `None`
    /// if another run appended a link first.
    async fn append(&self, organization: Id, sks: &[String]) -> Result<Option<usize>, Fault> {
        let store = &self.app.store;
        let pending = store.pending_audit_events(organization, sks).await?;
        for sk in &pending.rewritten {
            tracing::error!(organization_id = organization.get(), sk, "audit event rewritten after chaining");
        }
        if !pending.rewritten.is_empty() {
            self.app.metrics.audit_events_rewritten(self.app.clock.now(), pending.rewritten.len());
        }
        if pending.events.is_empty() {
            return Ok(Some(pending.examined));
        }
        let head = store.chain_head(organization).await?;
        let ring = self.app.secrets.ring(Ring::Audit).await?;
        let link = Link::after(head.as_ref(), organization, self.app.clock.now(), pending.events, &ring);
        let mut transaction = store.transaction();
        transaction.append_link(organization, &link)?;
        match transaction.commit().await {
            Ok(()) => {
                // Evidence outside the tables: writers of tables cannot change logs.
                let (organization_id, link, hash) = (organization.get(), link.n, link.hash);
                tracing::info!(organization_id, link, %hash, "audit chain link appended");
                Ok(Some(pending.examined))
            }
            Err(CommitError::Conflict(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns the time of the oldest event. A sort key starts with the time.
fn oldest(found: &UnchainedEvents) -> Option<Timestamp> {
    found.values().flatten().filter_map(|sk| sk.split('#').next()?.parse().ok()).min()
}

impl Worker for AuditChain {
    const NAME: &'static str = "worker-audit-chain";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::Audit)];

    async fn deployed(app: App) -> Result<Self, Fault> {
        Ok(Self::new(app))
    }

    async fn work(&self, _: &Wake) -> Result<(), Fault> {
        let (started, mut sweep, mut fault) = (Instant::now(), Sweep::default(), None);
        while let Some(found) = self.app.store.unchained_events(&mut sweep).await? {
            let now = self.app.clock.now();
            self.app.metrics.audit_chain_lag(now, oldest(&found).map(|at| now.since(at)).unwrap_or_default());
            for (organization, sks) in found {
                // The fault of one organization must not delay the others.
                if let Err(error) = self.chain(organization, &sks).await {
                    tracing::error!(organization_id = organization.get(), fault = %error, "audit events not chained");
                    fault = Some(format!("audit chain of organization {organization}: {error}"));
                }
            }
            if started.elapsed() > SEARCH_TIME_LIMIT {
                tracing::error!("audit chain backlog too large for one run");
                break;
            }
        }
        fault.map_or(Ok(()), |fault| Err(fault.into()))
    }
}

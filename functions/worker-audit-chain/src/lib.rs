//! Chains audit events: appends links to each organization's chain until nothing waits, and logs the head that each now has.

use std::time::Duration;

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{Id, Link, Timestamp},
    store::{CommitError, Sweep, UnchainedEvents},
    worker::{Fault, Wake, Worker},
};
use tokio::time::Instant;

/// How often a link is tried again that another run was quicker with.
const ATTEMPTS: usize = 20;
/// How long a run goes on looking: it has a minute, and what it has found is to be chained in it.
const LOOKS_FOR: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub struct AuditChain {
    app: App,
}

impl AuditChain {
    pub fn new(app: App) -> Self {
        Self { app }
    }

    /// Chains those of the events that still wait.
    async fn chain(&self, organization: Id, sks: &[String]) -> Result<(), Fault> {
        let mut left = sks;
        let mut attempts = 0;
        while !left.is_empty() {
            match self.append(organization, left).await? {
                Some(done) => (left, attempts) = (&left[done..], 0),
                None => attempts += 1,
            }
            if attempts == ATTEMPTS {
                return Err("links keep losing races".into());
            }
        }
        Ok(())
    }

    /// Appends one link, if any event waits. Gives how many of the events are done with; none if another run was quicker.
    async fn append(&self, organization: Id, sks: &[String]) -> Result<Option<usize>, Fault> {
        let store = &self.app.store;
        let waiting = store.pending_audit_events(organization, sks).await?;
        for sk in &waiting.rewritten {
            tracing::error!(
                organization_id = organization.get(),
                event = sk,
                "an audit event was rewritten after it was chained"
            );
        }
        if !waiting.rewritten.is_empty() {
            self.app.metrics.audit_events_rewritten(self.app.clock.now(), waiting.rewritten.len());
        }
        if waiting.events.is_empty() {
            return Ok(Some(waiting.looked_at));
        }
        let head = store.chain_head(organization).await?;
        let ring = self.app.secrets.ring(Ring::Audit).await?;
        let link = Link::after(head.as_ref(), organization, self.app.clock.now(), waiting.events, &ring);
        let mut transaction = store.transaction();
        transaction.append_link(organization, &link)?;
        match transaction.commit().await {
            Ok(()) => {
                // Where logs are kept, nobody who writes tables can change this.
                tracing::info!(organization_id = organization.get(), link = link.n, hash = %link.hash, "audit chain");
                Ok(Some(waiting.looked_at))
            }
            Err(CommitError::Conflict(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// When the oldest of these was written: a sort key begins with it.
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
        // Behind what cannot be chained there may be what can, so it goes on.
        while let Some(found) = self.app.store.unchained_events(&mut sweep).await? {
            let now = self.app.clock.now();
            self.app.metrics.audit_chain_lag(now, oldest(&found).map(|at| now.since(at)).unwrap_or_default());
            for (organization, sks) in found {
                // One that cannot be chained must not keep the others waiting.
                if let Err(error) = self.chain(organization, &sks).await {
                    fault = Some(format!("the chain of organization {organization}: {error}"));
                }
            }
            if started.elapsed() > LOOKS_FOR {
                tracing::error!("so much waits to be chained that a run does not get through");
                break;
            }
        }
        fault.map_or(Ok(()), |fault| Err(fault.into()))
    }
}

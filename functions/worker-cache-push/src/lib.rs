//! Invalidates cached verdicts about keys: at data planes, and at the gateway if access was reduced.
//!
//! Invalidation is best effort, because every cached verdict expires within seconds. A worker
//! leases the due invalidations, calls each data plane once per organization, and deletes an
//! invalidation only after that. If the worker ends early, another worker repeats its calls.

mod flush;
mod push;
mod queue;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use karta_shared::{
    App,
    config::{self, GatewayStage, Secret},
    domain::{Id, Invalidation},
    store::ScheduledInvalidation,
    worker::{Fault, Wake, Worker},
};
use tokio::task::JoinSet;

pub use self::flush::AuthorizerCache;
use self::push::InvalidationClient;

/// The gateway's name among the confirmations. Names of data planes have no capitals, so it is
/// unique.
const GATEWAY: &str = "GATEWAY";

#[derive(Debug)]
pub struct CachePush {
    app: App,
    cache: AuthorizerCache,
    client: Arc<InvalidationClient>,
}

/// The organizations that each data plane has confirmed.
type Confirmed = BTreeMap<String, BTreeSet<Id>>;

impl CachePush {
    pub fn new(app: App, cache: AuthorizerCache) -> Self {
        Self { app, cache, client: Arc::default() }
    }

    async fn flush(&self, taken: &[ScheduledInvalidation]) -> Result<(), Fault> {
        if taken.iter().any(|taken| awaits_flush(&taken.invalidation)) {
            self.cache.flush_or_wait(&self.app).await
        } else {
            Ok(())
        }
    }

    /// Calls all data planes concurrently, for the organizations that they have not confirmed.
    async fn push(&self, taken: &[ScheduledInvalidation]) -> Result<Confirmed, Fault> {
        let secrets = &self.app.secrets;
        let (planes, tokens) = (secrets.data_planes().await?, secrets.service_tokens().await?);
        let mut calls = JoinSet::new();
        for plane in planes.iter() {
            let invalidations = taken.iter().map(|taken| &taken.invalidation);
            let unconfirmed = invalidations.filter(|invalidation| !invalidation.notified.contains(plane.name()));
            let unconfirmed: BTreeSet<_> = unconfirmed.map(|invalidation| invalidation.organization_id).collect();
            let (client, plane, overlaps) = (Arc::clone(&self.client), plane.clone(), plane.overlaps(&tokens));
            calls.spawn(async move {
                let confirmed = if overlaps {
                    let data_plane = plane.name();
                    tracing::error!(
                        worker = Self::NAME,
                        data_plane,
                        fault = "its token is also a service token: give the data plane its own token",
                        "data plane skipped"
                    );
                    BTreeSet::new()
                } else {
                    client.invalidate(plane.clone(), unconfirmed).await
                };
                (plane.name().to_owned(), confirmed)
            });
        }
        Ok(calls.join_all().await.into_iter().collect())
    }
}

fn awaits_flush(invalidation: &Invalidation) -> bool {
    invalidation.access_reduced && !invalidation.notified.contains(GATEWAY)
}

impl Worker for CachePush {
    const NAME: &'static str = "worker-cache-push";
    const SECRETS: &'static [Secret] = &[Secret::DataPlanes, Secret::ServiceTokens];

    async fn deployed(app: App) -> Result<Self, Fault> {
        let stage = GatewayStage::from_env()?;
        Ok(Self::new(app, AuthorizerCache::gateway(&config::deployed_sdk()?, stage)))
    }

    async fn work(&self, wake: &Wake) -> Result<(), Fault> {
        let (mut taken, take_fault) = queue::take(&self.app, wake).await?;
        if taken.is_empty() {
            return take_fault.map_or(Ok(()), Err);
        }
        let (flushed, pushed) = tokio::join!(self.flush(&taken), self.push(&taken));
        let (confirmed, push_fault) = match pushed {
            Ok(confirmed) => (Some(confirmed), None),
            Err(fault) => (None, Some(fault)),
        };
        for invalidation in taken.iter_mut().map(|taken| &mut taken.invalidation) {
            if flushed.is_ok() && awaits_flush(invalidation) {
                invalidation.notified.insert(GATEWAY.to_owned());
            }
            for (name, _) in confirmed.iter().flatten().filter(|(_, of)| of.contains(&invalidation.organization_id)) {
                invalidation.notified.insert(name.clone());
            }
        }
        let finishing = queue::finish(&self.app, taken, |invalidation| {
            let all_confirmed = |of: &Confirmed| of.keys().all(|name| invalidation.notified.contains(name));
            !awaits_flush(invalidation) && confirmed.as_ref().is_some_and(all_confirmed)
        });
        let fault = push_fault.or(flushed.err()).or(finishing.await).or(take_fault);
        fault.map_or(Ok(()), Err)
    }
}

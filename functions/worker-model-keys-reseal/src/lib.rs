//! Seals every provider key anew that is not sealed under its ring's current key, and says how many remain under each of the others: a key
//! leaves the ring only at zero. Those under a key that has left it already are told of too: nobody can open them.

use std::collections::BTreeMap;

use karta_shared::{
    App,
    byok::Place,
    config::Ring,
    domain::{Id, Kid},
    store::{SealedPlace, StoreError},
    worker::{Fault, Wake, Worker},
};

#[derive(Debug)]
pub struct ModelKeysReseal {
    app: App,
}

/// Of a key that is not current.
#[derive(Debug, Default)]
struct Tally {
    resealed: usize,
    remaining: usize,
}

impl ModelKeysReseal {
    pub fn new(app: App) -> Self {
        Self { app }
    }

    /// Says whether this run sealed it anew. One that cannot be read or does not open stays as it is, and must not keep the others waiting: it counts
    /// as remaining. Under a ring that was just read: an older one would take it back from the key that was promoted meanwhile.
    async fn reseal(&self, organization: Id, id: Id) -> Result<bool, Fault> {
        let sealed = match self.app.store.sealed_model_key(organization, id).await {
            Ok(Some(sealed)) => sealed,
            Ok(None) => return Ok(false),
            Err(StoreError::Fault(fault)) => return Ok(Self::left(organization, id, &fault)),
            Err(error) => return Err(error.into()),
        };
        let ring = self.app.secrets.ring_refetched(Ring::SealingByok).await?;
        let place = Place { organization, provider: sealed.provider, id };
        match place.reseal(&ring, &*self.app.entropy, &sealed) {
            Ok(Some(anew)) => Ok(self.app.store.reseal_model_key(organization, id, &sealed, &anew).await?),
            Ok(None) => Ok(false),
            Err(error) => Ok(Self::left(organization, id, &error)),
        }
    }

    fn left(organization: Id, id: Id, fault: &dyn std::fmt::Display) -> bool {
        let (organization_id, key_id) = (organization.get(), id.get());
        tracing::error!(worker = Self::NAME, organization_id, key_id, %fault, "not sealed anew");
        false
    }

    /// Under which key it is sealed still: the index finds, the item decides.
    async fn remaining(&self, found: SealedPlace) -> Result<Option<Kid>, Fault> {
        match self.app.store.sealed_model_key(found.organization, found.id).await {
            Ok(sealed) => Ok(sealed.map(|sealed| sealed.kid)),
            Err(StoreError::Fault(_)) => Ok(Some(found.kid)),
            Err(error) => Err(error.into()),
        }
    }
}

impl Worker for ModelKeysReseal {
    const NAME: &'static str = "worker-model-keys-reseal";

    async fn deployed(app: App) -> Result<Self, Fault> {
        Ok(Self::new(app))
    }

    async fn work(&self, _: &Wake) -> Result<(), Fault> {
        let ring = self.app.secrets.ring_refetched(Ring::SealingByok).await?;
        let current = ring.current().0;
        let mut tallies: BTreeMap<_, _> = ring.retiring().map(|kid| (kid.clone(), Tally::default())).collect();
        for SealedPlace { organization, id, kid } in self.app.store.model_keys_not_sealed_under(current).await? {
            tallies.entry(kid).or_default().resealed += usize::from(self.reseal(organization, id).await?);
        }
        for found in self.app.store.model_keys_not_sealed_under(current).await? {
            if let Some(kid) = self.remaining(found).await?.filter(|kid| kid != current) {
                tallies.entry(kid).or_default().remaining += 1;
            }
        }
        let (mut left, mut lost) = (0, 0);
        for (kid, Tally { resealed, remaining }) in tallies {
            left += remaining;
            if ring.get(kid.as_str()).is_some() {
                tracing::info!(worker = Self::NAME, %kid, resealed, remaining, "sealed under a key that is not current");
            } else {
                lost += remaining;
                tracing::error!(worker = Self::NAME, %kid, remaining, "sealed under a key that the ring does not hold");
            }
        }
        match (left, lost) {
            (0, _) => Ok(()),
            (_, 0) => Err(format!("{left} provider keys are not sealed under the current key").into()),
            _ => Err(format!("{left} provider keys are not sealed under the current key, {lost} of them under keys that the ring does not hold").into()),
        }
    }
}

//! Seals every provider key anew that is not sealed under its ring's current key, and says how many remain under each of the others: a key
//! leaves the ring only at zero.

use karta_shared::{
    App,
    byok::Place,
    config::Ring,
    domain::{Id, Keyring, Kid},
    store::StoreError,
    worker::{Fault, Wake, Worker},
};

#[derive(Debug)]
pub struct ModelKeysReseal {
    app: App,
}

impl ModelKeysReseal {
    pub fn new(app: App) -> Self {
        Self { app }
    }

    /// Says whether this run sealed it anew. One that cannot be read or does not open stays as it is, and must not keep the others waiting: it counts
    /// as remaining.
    async fn reseal(&self, ring: &Keyring, organization: Id, id: Id) -> Result<bool, Fault> {
        let sealed = match self.app.store.sealed_model_key(organization, id).await {
            Ok(Some(sealed)) => sealed,
            Ok(None) => return Ok(false),
            Err(StoreError::Fault(fault)) => return Ok(Self::left(organization, id, &fault)),
            Err(error) => return Err(error.into()),
        };
        let place = Place { organization, provider: sealed.provider, id };
        match place.reseal(ring, &*self.app.entropy, &sealed) {
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

    /// How many this key has sealed: the index finds them, the items decide.
    async fn remaining(&self, kid: &Kid) -> Result<usize, Fault> {
        let mut remaining = 0;
        for (organization, id) in self.app.store.model_keys_sealed_under(kid).await? {
            remaining += usize::from(match self.app.store.sealed_model_key(organization, id).await {
                Ok(sealed) => sealed.is_some_and(|sealed| sealed.kid == *kid),
                Err(StoreError::Fault(_)) => true,
                Err(error) => return Err(error.into()),
            });
        }
        Ok(remaining)
    }
}

impl Worker for ModelKeysReseal {
    const NAME: &'static str = "worker-model-keys-reseal";

    async fn deployed(app: App) -> Result<Self, Fault> {
        Ok(Self::new(app))
    }

    async fn work(&self, _: &Wake) -> Result<(), Fault> {
        let ring = self.app.secrets.ring(Ring::SealingByok).await?;
        let mut left = 0;
        for kid in ring.retiring() {
            let mut resealed = 0_usize;
            for (organization, id) in self.app.store.model_keys_sealed_under(kid).await? {
                resealed += usize::from(self.reseal(&ring, organization, id).await?);
            }
            let remaining = self.remaining(kid).await?;
            tracing::info!(worker = Self::NAME, %kid, resealed, remaining, "sealed under a key that is not current");
            left += remaining;
        }
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{left} provider keys are not sealed under the current key").into())
        }
    }
}

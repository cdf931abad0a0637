//! Reseals provider keys that are not sealed with their ring's current key, and reports how many
//! remain under each other key.

use karta_shared::{
    App,
    byok::{ModelKeyContext, ModelKeyUnsealError},
    config::{Ring, Secret},
    domain::{Id, Keyring, Kid},
    reseal::{Sealed, sweep},
    store::{SealedKind, SealedModelKey, StoreError},
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
}

impl Worker for ModelKeysReseal {
    const NAME: &'static str = "worker-model-keys-reseal";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::SealingByok)];

    async fn deployed(app: App) -> Result<Self, Fault> {
        Ok(Self::new(app))
    }

    async fn work(&self, _: &Wake) -> Result<(), Fault> {
        sweep::<Self>(&self.app).await
    }
}

impl Sealed for ModelKeysReseal {
    const KIND: SealedKind = SealedKind::ModelKeys;
    const RING: Ring = Ring::SealingByok;
    const WORKER: &'static str = Self::NAME;
    type Item = SealedModelKey;
    type UnsealError = ModelKeyUnsealError;

    async fn read(app: &App, organization: Id, id: Id) -> Result<Option<SealedModelKey>, StoreError> {
        app.store.sealed_model_key(organization, id).await
    }

    fn kid(item: &SealedModelKey) -> &Kid {
        &item.kid
    }

    async fn reseal(
        app: &App,
        ring: &Keyring,
        organization: Id,
        id: Id,
        item: &SealedModelKey,
    ) -> Result<Result<bool, ModelKeyUnsealError>, StoreError> {
        let context = ModelKeyContext { organization, provider: item.provider, id };
        match context.reseal(ring, &*app.entropy, item) {
            Ok(Some(resealed)) => app.store.reseal_model_key(organization, id, item, &resealed).await.map(Ok),
            Ok(None) => Ok(Ok(false)),
            Err(error) => Ok(Err(error)),
        }
    }
}

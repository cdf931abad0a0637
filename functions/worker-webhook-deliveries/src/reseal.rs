use karta_shared::{
    App,
    config::Ring,
    domain::{Id, Keyring, Kid},
    reseal::Sealed,
    store::{SealedKind, SealedWebhookSecrets, StoreError},
    webhook_secrets::{WebhookSecretContext, WebhookSecretUnsealError},
    worker::Worker,
};

use crate::WebhookDeliveries;

impl Sealed for WebhookDeliveries {
    const KIND: SealedKind = SealedKind::WebhookSecrets;
    const RING: Ring = Ring::SealingWebhooks;
    const WORKER: &'static str = Self::NAME;
    type Item = SealedWebhookSecrets;
    type UnsealError = WebhookSecretUnsealError;

    async fn read(app: &App, organization: Id, id: Id) -> Result<Option<SealedWebhookSecrets>, StoreError> {
        app.store.webhook_secrets(organization, id).await
    }

    fn kid(item: &SealedWebhookSecrets) -> &Kid {
        &item.kid
    }

    async fn reseal(
        app: &App,
        ring: &Keyring,
        organization: Id,
        id: Id,
        item: &SealedWebhookSecrets,
    ) -> Result<Result<bool, WebhookSecretUnsealError>, StoreError> {
        let context = WebhookSecretContext { organization, endpoint: id };
        match context.reseal(ring, &*app.entropy, item) {
            Ok(Some(resealed)) => app.store.reseal_webhook_secrets(organization, id, item, &resealed).await.map(Ok),
            Ok(None) => Ok(Ok(false)),
            Err(error) => Ok(Err(error)),
        }
    }
}

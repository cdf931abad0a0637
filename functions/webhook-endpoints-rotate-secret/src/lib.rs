//! `POST /v1/webhook_endpoints/{id}/rotate_secret`: creates a new signing secret. The previous
//! secret also signs until its grace period ends.

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{Grace, Id, WebhookSecret},
    http::{
        Action, Admin, ApiResponse, Call, Error, NewAuditEvent, NoQuery, Revealed, Reveals, Route,
        WebhookEndpointResource,
    },
    webhook_secrets::{TooManyLive, WebhookSecretContext},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    grace_seconds: Option<Grace>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    webhook_endpoint: WebhookEndpointResource,
    secret: Revealed,
}

#[derive(Debug)]
pub struct WebhookEndpointsRotateSecret;

impl Route for WebhookEndpointsRotateSecret {
    const NAME: &'static str = "webhook-endpoints-rotate-secret";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::SealingWebhooks)];
    const STATUS: u16 = 201;
    const IDEMPOTENT: bool = true;
    const BODY_MAY_BE_EMPTY: bool = true;
    type Access = Admin;
    type Path = Id;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        if let Some(answer) = call.replay(app).await? {
            return Ok(answer);
        }
        let (organization, id) = (call.caller.organization_id, call.path);
        let caller = call.reauthorize(app).await?;
        let (endpoint, failing, before) = tokio::try_join!(
            app.store.webhook_endpoint(organization, id),
            app.store.failing_webhook_endpoint(organization, id),
            app.store.webhook_secrets(organization, id),
        )?;
        let endpoint = endpoint.ok_or(Error::NotFound)?;
        let before = before.ok_or(Error::WriteConflict)?;
        let context = WebhookSecretContext { organization, endpoint: id };
        let ring = app.secrets.ring_with(Ring::SealingWebhooks, &before.kid).await?;
        let mut secrets = context.open(&ring, &before)?;
        let secret = WebhookSecret::generate(&*app.entropy);
        let answer = ApiResponse::created(&Output {
            webhook_endpoint: WebhookEndpointResource::new(endpoint.clone(), failing, call.caller.principal.scopes),
            secret: Revealed::new(secret.expose()),
        })?;
        let ends_at = call.now.plus(call.body.grace_seconds.unwrap_or_default().get());
        secrets.rotate(secret, ends_at, call.now).map_err(|TooManyLive| Error::Conflict {
            code: "too_many_secrets",
            message: "This endpoint already has three active secrets. Rotate again after the oldest grace period ends.",
            resource_id: Some(id),
        })?;
        let ring = app.secrets.ring(Ring::SealingWebhooks).await?;
        let after = context.seal(&ring, &*app.entropy, &secrets, before.version + 1);

        let mut transaction = app.store.transaction();
        transaction.require_caller_unchanged(organization, &caller)?;
        transaction.replace_webhook_secrets(organization, &endpoint, &before, &after)?;
        let event = NewAuditEvent {
            action: Action::WebhookEndpointSecretRotated,
            resource_kind: "webhook_endpoint",
            resource_id: id.into(),
            changes: [].into(),
        };
        transaction.audit(organization, &call.audit_event(app, event))?;
        call.remember(app, &mut transaction, &answer, id, Reveals::Secret)?;
        transaction.commit().await?;
        Ok(answer)
    }
}

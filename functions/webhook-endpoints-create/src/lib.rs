//! `POST /v1/webhook_endpoints`: creates an endpoint that receives the organization's events from
//! now on. Returns the signing secret once.

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{EventTypes, FailureStreak, Id, Name, WebhookEndpoint, WebhookSecret},
    http::{
        Action, Admin, ApiResponse, Call, Error, NewAuditEvent, NoQuery, Revealed, Reveals, Route, UncheckedText,
        WebhookEndpointResource,
    },
    webhook_secrets::{WebhookSecretContext, WebhookSecrets},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    #[schema(value_type = String, format = "uri", max_length = 2048)]
    url: UncheckedText,
    event_types: EventTypes,
    description: Option<Name>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    webhook_endpoint: WebhookEndpointResource,
    secret: Revealed,
}

#[derive(Debug)]
pub struct WebhookEndpointsCreate;

impl Route for WebhookEndpointsCreate {
    const NAME: &'static str = "webhook-endpoints-create";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::SealingWebhooks)];
    const STATUS: u16 = 201;
    const IDEMPOTENT: bool = true;
    type Access = Admin;
    type Path = ();
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let Input { url, event_types, description } = &call.body;
        let url = call.webhook_url(app, url)?;
        if let Some(answer) = call.replay(app).await? {
            return Ok(answer);
        }
        // The endpoint outlives the gateway's verdict, so the caller must still be authorized.
        let caller = call.reauthorize(app).await?;
        let organization = call.caller.organization_id;
        let id = Id::draw(call.now, &*app.entropy);
        let endpoint = WebhookEndpoint::new(id, url, description.clone(), event_types.clone(), call.now);
        let secret = WebhookSecret::generate(&*app.entropy);
        let answer = ApiResponse::created(&Output {
            webhook_endpoint: WebhookEndpointResource::new(
                endpoint.clone(),
                FailureStreak::default(),
                call.caller.principal.scopes,
            ),
            secret: Revealed::new(secret.expose()),
        })?;
        let ring = app.secrets.ring(Ring::SealingWebhooks).await?;
        let sealed = WebhookSecretContext { organization, endpoint: id }.seal(
            &ring,
            &*app.entropy,
            &WebhookSecrets::new(secret),
            1,
        );

        let mut transaction = app.store.transaction();
        transaction.require_caller_unchanged(organization, &caller)?;
        transaction.create_webhook_endpoint(organization, &endpoint, &sealed)?;
        let event = NewAuditEvent {
            action: Action::WebhookEndpointCreated,
            resource_kind: "webhook_endpoint",
            resource_id: id.into(),
            changes: endpoint.creation(),
        };
        transaction.audit(organization, &call.audit_event(app, event))?;
        call.remember(app, &mut transaction, &answer, id, Reveals::Secret)?;
        transaction.commit().await?;
        Ok(answer)
    }
}

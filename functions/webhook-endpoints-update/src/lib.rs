//! `PATCH /v1/webhook_endpoints/{id}`: changes an endpoint. An absent field is kept, `null` clears
//! it. Pending deliveries are sent when an endpoint is enabled again.

use karta_shared::{
    App,
    domain::{EventTypes, FailureStreak, Id, Name, WebhookEndpointPatch},
    http::{
        Action, Admin, ApiResponse, Call, Error, NewAuditEvent, NoQuery, Route, UncheckedText, WebhookEndpointResource,
        present,
    },
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, required = false, format = "uri", max_length = 2048)]
    url: Option<UncheckedText>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    event_types: Option<EventTypes>,
    #[serde(default, deserialize_with = "present")]
    description: Option<Option<Name>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    enabled: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    webhook_endpoint: WebhookEndpointResource,
}

#[derive(Debug)]
pub struct WebhookEndpointsUpdate;

impl Route for WebhookEndpointsUpdate {
    const NAME: &'static str = "webhook-endpoints-update";
    type Access = Admin;
    type Path = Id;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let url = call.body.url.as_ref().map(|url| call.webhook_url(app, url)).transpose()?;
        let Input { event_types, description, enabled, .. } = &call.body;
        let (event_types, description) = (event_types.clone(), description.clone());
        let organization = call.caller.organization_id;
        let caller = call.reauthorize(app).await?;
        let (before, failing) = tokio::try_join!(
            app.store.webhook_endpoint(organization, call.path),
            app.store.failing_webhook_endpoint(organization, call.path),
        )?;
        let before = before.ok_or(Error::NotFound)?;
        let mut endpoint = before.clone();
        let changes = endpoint.apply(WebhookEndpointPatch { url, description, event_types, enabled: *enabled });
        if !changes.is_empty() {
            let mut transaction = app.store.transaction();
            transaction.require_caller_unchanged(organization, &caller)?;
            transaction.update_webhook_endpoint(organization, &before, &endpoint, call.now)?;
            let event = NewAuditEvent {
                action: Action::WebhookEndpointUpdated,
                resource_kind: "webhook_endpoint",
                resource_id: endpoint.id.into(),
                changes,
            };
            transaction.audit(organization, &call.audit_event(app, event))?;
            transaction.commit().await?;
        }
        let is_reenabled = endpoint.is_enabled() && !before.is_enabled();
        let failing = if is_reenabled { FailureStreak::default() } else { failing };
        ApiResponse::ok(&Output {
            webhook_endpoint: WebhookEndpointResource::new(endpoint, failing, call.caller.principal.scopes),
        })
    }
}

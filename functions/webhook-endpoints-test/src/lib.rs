//! `POST /v1/webhook_endpoints/{id}/test`: sends a `ping` to this endpoint, regardless of its event
//! types.

use karta_shared::{
    App,
    domain::{Event, EventType, Id, ScopeSet},
    http::{
        Action, Admin, ApiResponse, Call, DeliveryResource, Error, NewAuditEvent, NoFields, NoQuery, Route,
        WebhookEndpointResource, require_enabled,
    },
};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    delivery: DeliveryResource,
}

#[derive(Debug)]
pub struct WebhookEndpointsTest;

impl Route for WebhookEndpointsTest {
    const NAME: &'static str = "webhook-endpoints-test";
    const STATUS: u16 = 202;
    const BODY_MAY_BE_EMPTY: bool = true;
    type Access = Admin;
    type Path = Id;
    type Query = NoQuery;
    type Body = NoFields;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let caller = call.reauthorize(app).await?;
        let (endpoint, failing) = tokio::try_join!(
            app.store.webhook_endpoint(organization, call.path),
            app.store.failing_webhook_endpoint(organization, call.path),
        )?;
        let endpoint = endpoint.ok_or(Error::NotFound)?;
        require_enabled(&endpoint)?;
        let data = json!({ "webhook_endpoint": WebhookEndpointResource::new(endpoint, failing, ScopeSet::NONE) });
        let event = call.event(app, organization, EventType::Ping, &data)?;
        let delivery = DeliveryResource::expected(&event, call.caller.principal.scopes);
        let mut transaction = app.store.transaction();
        transaction.require_caller_unchanged(organization, &caller)?;
        transaction.publish(&Event { only_endpoint: Some(call.path), ..event })?;
        let event = NewAuditEvent {
            action: Action::WebhookEndpointTested,
            resource_kind: "webhook_endpoint",
            resource_id: call.path.into(),
            changes: [].into(),
        };
        transaction.audit(organization, &call.audit_event(app, event))?;
        transaction.commit().await?;
        ApiResponse::accepted(&Output { delivery })
    }
}

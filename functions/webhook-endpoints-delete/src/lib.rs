//! `DELETE /v1/webhook_endpoints/{id}`: deletes an endpoint with its secrets and pending
//! deliveries.

use karta_shared::{
    App,
    domain::Id,
    http::{Action, Admin, ApiResponse, Call, Error, NewAuditEvent, NoBody, NoQuery, Route},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {}

#[derive(Debug)]
pub struct WebhookEndpointsDelete;

impl Route for WebhookEndpointsDelete {
    const NAME: &'static str = "webhook-endpoints-delete";
    const STATUS: u16 = 204;
    type Access = Admin;
    type Path = Id;
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let caller = call.reauthorize(app).await?;
        let endpoint = app.store.webhook_endpoint(organization, call.path).await?.ok_or(Error::NotFound)?;
        let mut transaction = app.store.transaction();
        transaction.require_caller_unchanged(organization, &caller)?;
        transaction.delete_webhook_endpoint(organization, &endpoint)?;
        let event = NewAuditEvent {
            action: Action::WebhookEndpointDeleted,
            resource_kind: "webhook_endpoint",
            resource_id: endpoint.id.into(),
            changes: endpoint.deletion(),
        };
        transaction.audit(organization, &call.audit_event(app, event))?;
        transaction.commit().await?;
        Ok(ApiResponse::no_content())
    }
}

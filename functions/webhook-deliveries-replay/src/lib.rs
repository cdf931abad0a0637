//! `POST /v1/webhook_endpoints/{id}/deliveries/{delivery_id}/replay`: sends a delivery again,
//! regardless of its status.

use karta_shared::{
    App,
    http::{
        Action, Admin, ApiResponse, Call, DeliveryPath, DeliveryResource, Error, NewAuditEvent, NoFields, NoQuery,
        Route, require_enabled,
    },
    store::DELIVERY_RETENTION,
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    delivery: DeliveryResource,
}

#[derive(Debug)]
pub struct WebhookDeliveriesReplay;

impl Route for WebhookDeliveriesReplay {
    const NAME: &'static str = "webhook-deliveries-replay";
    const STATUS: u16 = 202;
    const BODY_MAY_BE_EMPTY: bool = true;
    type Access = Admin;
    type Path = DeliveryPath;
    type Query = NoQuery;
    type Body = NoFields;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let (organization, DeliveryPath { endpoint, delivery }) = (call.caller.organization_id, &call.path);
        let caller = call.reauthorize(app).await?;
        let (endpoint, before) = tokio::try_join!(
            app.store.webhook_endpoint(organization, *endpoint),
            app.store.delivery(organization, *endpoint, *delivery),
        )?;
        let endpoint = endpoint.ok_or(Error::NotFound)?;
        let before = before.filter(|delivery| call.now.since(delivery.id.drawn_at()) < DELIVERY_RETENTION);
        let before = before.ok_or(Error::NotFound)?;
        require_enabled(&endpoint)?;
        let mut transaction = app.store.transaction();
        transaction.require_caller_unchanged(organization, &caller)?;
        transaction.replay_delivery(organization, endpoint.id, &before, call.now)?;
        let event = NewAuditEvent {
            action: Action::WebhookDeliveryReplayed,
            resource_kind: "webhook_delivery",
            resource_id: before.id.into(),
            changes: [].into(),
        };
        transaction.audit(organization, &call.audit_event(app, event))?;
        transaction.commit().await?;
        let delivery = DeliveryResource::new(before.rescheduled(call.now), call.caller.principal.scopes);
        ApiResponse::accepted(&Output { delivery })
    }
}

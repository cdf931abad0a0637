//! `POST /v1/webhook_endpoints/{id}/recover`: sends an endpoint the events that it missed since a
//! given time.

use karta_shared::{
    App,
    domain::{Change, Id, Timestamp, Value},
    http::{Action, Admin, ApiResponse, Call, Error, NewAuditEvent, NoQuery, Route, require_enabled},
    store::DELIVERY_RETENTION,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    since: Timestamp,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    recovery: RecoveryResource,
}

/// The endpoint and the time range of a recovery.
#[derive(Debug, Serialize, ToSchema)]
pub struct RecoveryResource {
    webhook_endpoint_id: Id,
    since: Timestamp,
    until: Timestamp,
}

#[derive(Debug)]
pub struct WebhookEndpointsRecover;

impl Route for WebhookEndpointsRecover {
    const NAME: &'static str = "webhook-endpoints-recover";
    const STATUS: u16 = 202;
    type Access = Admin;
    type Path = Id;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let (organization, until) = (call.caller.organization_id, call.now);
        if call.body.since >= until {
            return Err(Error::invalid("since", "must be in the past"));
        }
        // Older events are deleted. An earlier `since` selects all stored events, and the response
        // contains the effective time.
        let since = call.body.since.max(until.minus(DELIVERY_RETENTION));
        let caller = call.reauthorize(app).await?;
        let endpoint = app.store.webhook_endpoint(organization, call.path).await?.ok_or(Error::NotFound)?;
        require_enabled(&endpoint)?;
        let mut transaction = app.store.transaction();
        transaction.require_caller_unchanged(organization, &caller)?;
        transaction.recover_deliveries(organization, endpoint.id, since, until)?;
        let since_change = Change { before: Value::Null, after: since.into() };
        let event = NewAuditEvent {
            action: Action::WebhookEndpointRecovered,
            resource_kind: "webhook_endpoint",
            resource_id: endpoint.id.into(),
            changes: [("since".to_owned(), since_change)].into(),
        };
        transaction.audit(organization, &call.audit_event(app, event))?;
        transaction.commit().await?;
        ApiResponse::accepted(&Output { recovery: RecoveryResource { webhook_endpoint_id: endpoint.id, since, until } })
    }
}

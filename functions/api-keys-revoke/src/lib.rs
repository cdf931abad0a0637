//! `DELETE /v1/api_keys/{id}`: revokes a key permanently. A repeat returns the same response; the
//! key stays readable.

use karta_shared::{
    App,
    domain::{CacheEffect, EventType, Id},
    http::{Action, Admin, ApiKeyResource, ApiResponse, Call, Error, NewAuditEvent, NoBody, NoQuery, Route},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    api_key: ApiKeyResource,
}

#[derive(Debug)]
pub struct ApiKeysRevoke;

impl Route for ApiKeysRevoke {
    const NAME: &'static str = "api-keys-revoke";
    type Access = Admin;
    type Path = Id;
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let (caller, before) = call.caller_and_target(app, call.path).await?;
        let mut key = before.clone();
        let revoked = key.revoke(call.now);
        let output = Output { api_key: ApiKeyResource::new(key.clone(), call.now) };
        if revoked {
            let mut transaction = app.store.transaction();
            transaction.update_api_key(organization, &caller, &before, &key)?;
            let event = NewAuditEvent {
                action: Action::ApiKeyRevoked,
                resource_kind: "api_key",
                resource_id: key.id.into(),
                changes: before.changes_to(&key),
            };
            transaction.audit(organization, &call.audit_event(app, event))?;
            transaction.publish(&call.event(app, organization, EventType::ApiKeyRevoked, &output)?)?;
            transaction.invalidate(organization, CacheEffect::AccessReduced, call.now)?;
            transaction.commit().await?;
        }
        ApiResponse::ok(&output)
    }
}

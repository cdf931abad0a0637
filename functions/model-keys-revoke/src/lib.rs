//! `DELETE /v1/model_keys/{id}`: revokes a provider key and deletes its sealed text. A repeat
//! returns the same response.

use karta_shared::{
    App,
    domain::{CacheEffect, EventType, Id},
    http::{Action, Admin, ApiResponse, Call, Error, ModelKeyResource, NewAuditEvent, NoBody, NoQuery, Route},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    model_key: ModelKeyResource,
}

#[derive(Debug)]
pub struct ModelKeysRevoke;

impl Route for ModelKeysRevoke {
    const NAME: &'static str = "model-keys-revoke";
    type Access = Admin;
    type Path = Id;
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let caller = call.reauthorize(app).await?;
        let before = app.store.model_key(organization, call.path).await?.ok_or(Error::NotFound)?;
        let mut model_key = before.clone();
        let revoked = model_key.revoke(call.now);
        let output = Output { model_key: model_key.clone().into() };
        if revoked {
            let mut transaction = app.store.transaction();
            transaction.require_caller_unchanged(organization, &caller)?;
            transaction.revoke_model_key(organization, &before, &model_key)?;
            let event = NewAuditEvent {
                action: Action::ModelKeyRevoked,
                resource_kind: "model_key",
                resource_id: model_key.id.into(),
                changes: model_key.revocation(None),
            };
            transaction.audit(organization, &call.audit_event(app, event))?;
            transaction.publish(&call.event(app, organization, EventType::ModelKeyRevoked, &output)?)?;
            transaction.invalidate(organization, CacheEffect::Stale, call.now)?;
            transaction.commit().await?;
        }
        ApiResponse::ok(&output)
    }
}

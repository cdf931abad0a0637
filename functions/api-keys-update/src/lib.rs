//! `PATCH /v1/api_keys/{id}`: changes a key's settings. An absent field is kept, `null` clears it,
//! lists and `metadata` are replaced.

use karta_shared::{
    App,
    domain::{AllowedCidrs, ApiKeyPatch, Budget, EventType, Id, KeyNotEditable, Metadata, Name, ScopeSet, Timestamp},
    http::{Action, Admin, ApiKeyResource, ApiResponse, Call, Error, NewAuditEvent, NoQuery, Route, present},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    name: Option<Name>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    scopes: Option<ScopeSet>,
    #[serde(default, deserialize_with = "present")]
    expires_at: Option<Option<Timestamp>>,
    #[serde(default, deserialize_with = "present")]
    allowed_cidrs: Option<Option<AllowedCidrs>>,
    #[serde(default, deserialize_with = "present")]
    /// Replaces the stored budget as a whole: a cap that is left out is removed.
    budget: Option<Option<Budget>>,
    #[serde(default, deserialize_with = "present")]
    metadata: Option<Option<Metadata>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    api_key: ApiKeyResource,
}

#[derive(Debug)]
pub struct ApiKeysUpdate;

impl Route for ApiKeysUpdate {
    const NAME: &'static str = "api-keys-update";
    type Access = Admin;
    type Path = Id;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        if call.body.expires_at.flatten().is_some_and(|end| end <= call.now) {
            return Err(Error::invalid("expires_at", "must be in the future, or null for no expiry"));
        }
        let organization = call.caller.organization_id;
        let (caller, before) = call.caller_and_target(app, call.path).await?;
        let mut key = before.clone();
        let changes =
            key.apply(patch(call.body.clone())).map_err(|not_editable| conflict_error(not_editable, call.path))?;
        let output = Output { api_key: ApiKeyResource::new(key.clone(), call.now) };
        if !changes.is_empty() {
            let mut transaction = app.store.transaction();
            transaction.update_api_key(organization, &caller, &before, &key)?;
            let event = NewAuditEvent {
                action: Action::ApiKeyUpdated,
                resource_kind: "api_key",
                resource_id: key.id.into(),
                changes,
            };
            transaction.audit(organization, &call.audit_event(app, event))?;
            transaction.publish(&call.event(app, organization, EventType::ApiKeyUpdated, &output)?)?;
            transaction.invalidate(organization, before.cache_effect(&key), call.now)?;
            if before.budget != key.budget {
                transaction.check_budgets(organization, [key.id], call.now)?;
            }
            transaction.commit().await?;
        }
        ApiResponse::ok(&output)
    }
}

fn patch(input: Input) -> ApiKeyPatch {
    ApiKeyPatch {
        name: input.name,
        scopes: input.scopes,
        expires_at: input.expires_at,
        allowed_cidrs: input.allowed_cidrs.map(Option::unwrap_or_default),
        budget: input.budget,
        metadata: input.metadata.map(Option::unwrap_or_default),
    }
}

fn conflict_error(not_editable: KeyNotEditable, id: Id) -> Error {
    let (code, message) = match not_editable {
        KeyNotEditable::Replaced => (
            "api_key_replaced",
            "The expiry of a rotated key cannot be changed. Update its successor, or revoke this key.",
        ),
        KeyNotEditable::Revoked => ("api_key_revoked", "A revoked key cannot be changed. Create a new key."),
    };
    Error::Conflict { code, message, resource_id: Some(id) }
}

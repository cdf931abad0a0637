//! `POST /v1/model_keys`: activates a provider key, which replaces the previous one. The key is
//! stored sealed and never returned.

use karta_shared::{
    App,
    byok::ModelKeyContext,
    config::{Ring, Secret},
    domain::{CacheEffect, EventType, Id, ModelKey, Name, Provider, ProviderKey},
    http::{
        Action, Admin, ApiResponse, Call, Error, ModelKeyResource, NewAuditEvent, NoQuery, Reveals, Route,
        UncheckedText,
    },
    store::Transaction,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    provider: Provider,
    key: UncheckedText,
    name: Option<Name>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    model_key: ModelKeyResource,
}

#[derive(Debug)]
pub struct ModelKeysCreate;

impl Route for ModelKeysCreate {
    const NAME: &'static str = "model-keys-create";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::SealingByok)];
    const STATUS: u16 = 201;
    const IDEMPOTENT: bool = true;
    type Access = Admin;
    type Path = ();
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let Input { provider, key, name } = &call.body;
        let key = key.provider_key(*provider, name.as_ref())?;
        if let Some(answer) = call.replay(app).await? {
            return Ok(answer);
        }
        // The provider key outlives the gateway's verdict, so the caller must still be authorized.
        let caller = call.reauthorize(app).await?;
        let organization = call.caller.organization_id;
        let model_key = ModelKey::new(Id::draw(call.now, &*app.entropy), &key, name.clone(), call.now);
        let output = Output { model_key: model_key.clone().into() };
        let answer = ApiResponse::created(&output)?;

        let mut transaction = app.store.transaction();
        transaction.require_caller_unchanged(organization, &caller)?;
        stage_key(app, call, &mut transaction, &model_key, &key).await?;
        let event = NewAuditEvent {
            action: Action::ModelKeyCreated,
            resource_kind: "model_key",
            resource_id: model_key.id.into(),
            changes: model_key.creation(),
        };
        transaction.audit(organization, &call.audit_event(app, event))?;
        transaction.publish(&call.event(app, organization, EventType::ModelKeyCreated, &output)?)?;
        transaction.invalidate(organization, CacheEffect::Stale, call.now)?;
        call.remember(app, &mut transaction, &answer, model_key.id, Reveals::Nothing)?;
        transaction.commit().await?;
        Ok(answer)
    }
}

/// Stages the sealed key and the revocation of the key that it replaces.
async fn stage_key(
    app: &App,
    call: &Call<ModelKeysCreate>,
    transaction: &mut Transaction,
    model_key: &ModelKey,
    key: &ProviderKey,
) -> Result<(), Error> {
    let organization = call.caller.organization_id;
    let context = ModelKeyContext { organization, provider: model_key.provider, id: model_key.id };
    let sealed = context.seal(&*app.secrets.ring(Ring::SealingByok).await?, &*app.entropy, key.expose());
    let Some(active) = app.store.active_model_key(organization, model_key.provider).await? else {
        return Ok(transaction.create_model_key(organization, model_key, &sealed)?);
    };
    let before = app.store.model_key(organization, active.model_key_id).await?;
    let before = before.ok_or_else(|| Error::Internal("active model key is missing".to_owned()))?;
    let mut after = before.clone();
    if !after.revoke(call.now) {
        return Err(Error::WriteConflict);
    }
    transaction.replace_model_key(organization, &before, &after, model_key, &sealed)?;
    let event = NewAuditEvent {
        action: Action::ModelKeyRevoked,
        resource_kind: "model_key",
        resource_id: after.id.into(),
        changes: after.revocation(Some(model_key.id)),
    };
    transaction.audit(organization, &call.audit_event(app, event))?;
    let output = Output { model_key: after.into() };
    Ok(transaction.publish(&call.event(app, organization, EventType::ModelKeyRevoked, &output)?)?)
}

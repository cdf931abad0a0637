//! `POST /v1/api_keys/{id}/rotate`: creates a successor with the same settings. The old key stays
//! valid until its grace period ends.

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{ApiKeyToken, AuditEvent, EventType, Grace, Id, NotActive, Timestamp},
    http::{Action, Admin, ApiKeyResource, ApiResponse, Call, Error, NewAuditEvent, NoQuery, Revealed, Reveals, Route},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// At least 600 if the organization's only admin key without `expires_at` and `allowed_cidrs`
    /// rotates itself.
    grace_seconds: Option<Grace>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    #[serde(flatten)]
    rotation: Rotation,
    secret: Revealed,
}

/// The result without the secret, as the webhook event shows it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Rotation {
    api_key: ApiKeyResource,
    replaces: Replaced,
}

/// The old key and its end.
#[derive(Debug, Serialize, ToSchema)]
pub struct Replaced {
    id: Id,
    expires_at: Option<Timestamp>,
}

#[derive(Debug)]
pub struct ApiKeysRotate;

impl Route for ApiKeysRotate {
    const NAME: &'static str = "api-keys-rotate";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::KeyTag)];
    const STATUS: u16 = 201;
    const IDEMPOTENT: bool = true;
    const BODY_MAY_BE_EMPTY: bool = true;
    type Access = Admin;
    type Path = Id;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        if let Some(answer) = call.replay(app).await? {
            return Ok(answer);
        }
        let (organization, grace) = (call.caller.organization_id, call.body.grace_seconds.unwrap_or_default());
        let (caller, before) = call.caller_and_target(app, call.path).await?;
        let mut old = before.clone();
        let id = Id::draw(call.now, &*app.entropy);
        old.retire(id, grace.get(), call.now).map_err(|NotActive| not_active(before.id))?;
        let token = ApiKeyToken::mint(&*app.secrets.ring(Ring::KeyTag).await?, &*app.entropy);
        let digest = app.bcrypt.digest(&token, &*app.entropy).await?;
        let successor = before.successor(id, token.prefix(), call.caller.api_key_id, call.now);
        let rotation = Rotation {
            api_key: ApiKeyResource::new(successor.clone(), call.now),
            replaces: Replaced { id: old.id, expires_at: old.expires_at },
        };
        let webhook_event = call.event(app, organization, EventType::ApiKeyRotated, &rotation)?;
        let answer = ApiResponse::created(&Output { rotation, secret: Revealed::new(token.expose()) })?;

        let mut transaction = app.store.transaction();
        transaction.rotate_api_key(organization, &caller, &before, &old, &successor, digest)?;
        // Without the response, the organization's only admin key would be lost.
        if caller.id == before.id && before.is_usable_admin() && !grace.covers_repeats() {
            transaction.require_another_admin(organization)?;
        }
        let event = |action, resource_id: Id, changes| NewAuditEvent {
            action,
            resource_kind: "api_key",
            resource_id: resource_id.into(),
            changes,
        };
        let rotated = event(Action::ApiKeyRotated, old.id, before.changes_to(&old));
        let created = event(Action::ApiKeyCreated, successor.id, successor.creation());
        for event in &AuditEvent::pair(|event| call.audit_event(app, event), rotated, &created) {
            transaction.audit(organization, event)?;
        }
        transaction.publish(&webhook_event)?;
        transaction.invalidate(organization, before.cache_effect(&old), call.now)?;
        call.remember(app, &mut transaction, &answer, successor.id, Reveals::Secret)?;
        transaction.commit().await?;
        Ok(answer)
    }
}

fn not_active(id: Id) -> Error {
    Error::Conflict {
        code: "api_key_not_active",
        message: "Only an active key can be rotated. This key is revoked, expired or already replaced.",
        resource_id: Some(id),
    }
}

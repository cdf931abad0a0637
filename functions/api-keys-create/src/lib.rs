//! `POST /v1/api_keys`: creates an API key and returns its token once.

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{
        AllowedCidrs, ApiKey, ApiKeySettings, ApiKeyToken, Budget, EventType, Id, Metadata, Name, ScopeSet, Timestamp,
    },
    http::{Action, Admin, ApiKeyResource, ApiResponse, Call, Error, NewAuditEvent, NoQuery, Revealed, Reveals, Route},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    name: Name,
    scopes: ScopeSet,
    expires_at: Option<Timestamp>,
    allowed_cidrs: Option<AllowedCidrs>,
    budget: Option<Budget>,
    metadata: Option<Metadata>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    api_key: ApiKeyResource,
    secret: Revealed,
}

#[derive(Debug)]
pub struct ApiKeysCreate;

impl Route for ApiKeysCreate {
    const NAME: &'static str = "api-keys-create";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::KeyTag)];
    const STATUS: u16 = 201;
    const IDEMPOTENT: bool = true;
    type Access = Admin;
    type Path = ();
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        // First, so that the time checks below do not affect a replay.
        if let Some(answer) = call.replay(app).await? {
            return Ok(answer);
        }
        if call.body.expires_at.is_some_and(|end| end <= call.now) {
            return Err(Error::invalid("expires_at", "must be in the future"));
        }
        // The new key outlives the gateway's verdict, so the caller must still be authorized.
        let caller = call.reauthorize(app).await?;
        let organization = call.caller.organization_id;
        let token = ApiKeyToken::mint(&*app.secrets.ring(Ring::KeyTag).await?, &*app.entropy);
        let digest = app.bcrypt.digest(&token, &*app.entropy).await?;
        let key = ApiKey::new(
            Id::draw(call.now, &*app.entropy),
            token.prefix(),
            settings(call.body.clone()),
            Some(call.caller.api_key_id),
            call.now,
        );
        let api_key = ApiKeyResource::new(key.clone(), call.now);
        let webhook_event = call.event(app, organization, EventType::ApiKeyCreated, &json!({ "api_key": api_key }))?;
        let answer = ApiResponse::created(&Output { api_key, secret: Revealed::new(token.expose()) })?;

        let mut transaction = app.store.transaction();
        transaction.create_api_key(organization, &key, digest)?;
        transaction.require_caller_unchanged(organization, &caller)?;
        let event = NewAuditEvent {
            action: Action::ApiKeyCreated,
            resource_kind: "api_key",
            resource_id: key.id.into(),
            changes: key.creation(),
        };
        transaction.audit(organization, &call.audit_event(app, event))?;
        transaction.publish(&webhook_event)?;
        call.remember(app, &mut transaction, &answer, key.id, Reveals::Secret)?;
        transaction.commit().await?;
        Ok(answer)
    }
}

fn settings(input: Input) -> ApiKeySettings {
    ApiKeySettings {
        name: input.name,
        scopes: input.scopes,
        expires_at: input.expires_at,
        allowed_cidrs: input.allowed_cidrs.unwrap_or_default(),
        budget: input.budget,
        metadata: input.metadata.unwrap_or_default(),
    }
}

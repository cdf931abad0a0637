//! `POST /v1/internal/organizations/{id}/api_keys`: creates an API key for an organization that has
//! lost its last one.

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{AllowedCidrs, ApiKey, ApiKeySettings, ApiKeyToken, EventType, Id, Metadata, Name, ScopeSet},
    http::{
        Action, ApiKeyResource, ApiResponse, Call, Error, Internal, NewAuditEvent, NoQuery, Provision, Revealed,
        Reveals, Route,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    name: Name,
    scopes: ScopeSet,
}

#[derive(Debug, Serialize)]
pub struct Output {
    api_key: ApiKeyResource,
    secret: Revealed,
}

#[derive(Debug)]
pub struct InternalApiKeysCreate;

impl Route for InternalApiKeysCreate {
    const NAME: &'static str = "internal-api-keys-create";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::KeyTag)];
    const STATUS: u16 = 201;
    const IDEMPOTENT: bool = true;
    type Access = Internal<Provision>;
    type Path = Id;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        if let Some(answer) = call.replay(app).await? {
            return Ok(answer);
        }
        let organization = app.store.organization(call.path).await?.ok_or(Error::NotFound)?.id;
        let token = ApiKeyToken::mint(&*app.secrets.ring(Ring::KeyTag).await?, &*app.entropy);
        let digest = app.bcrypt.digest(&token, &*app.entropy).await?;
        let id = Id::draw(call.now, &*app.entropy);
        let key = ApiKey::new(id, token.prefix(), settings(call.body.clone()), None, call.now);
        let api_key = ApiKeyResource::new(key.clone(), call.now);
        let webhook_event = call.event(app, organization, EventType::ApiKeyCreated, &json!({ "api_key": api_key }))?;
        let answer = ApiResponse::created(&Output { api_key, secret: Revealed::new(token.expose()) })?;

        let mut transaction = app.store.transaction();
        transaction.create_api_key(organization, &key, digest)?;
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

fn settings(Input { name, scopes }: Input) -> ApiKeySettings {
    ApiKeySettings {
        name,
        scopes,
        expires_at: None,
        allowed_cidrs: AllowedCidrs::default(),
        budget: None,
        metadata: Metadata::default(),
    }
}

//! `GET /v1/internal/model_keys/active`: the provider key that an organization uses, in plaintext.
//! No other route returns provider keys in plaintext.

use std::time::Duration;

use karta_shared::{
    App,
    byok::ModelKeyContext,
    config::{Ring, Secret},
    domain::{Id, Provider},
    http::{ApiResponse, Byok, Call, Error, IdParameter, Internal, NoBody, Revealed, Route},
    store::SealedModelKey,
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

/// Maximum time that a response waits for the key to be resealed.
const RESEAL_TIMEOUT: Duration = Duration::from_millis(250);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    organization_id: IdParameter,
    provider: Provider,
}

#[derive(Debug, Serialize)]
pub struct Output {
    provider: Provider,
    plaintext: Revealed,
    key_id: Id,
    tail: String,
}

#[derive(Debug)]
pub struct InternalModelKeysActive;

impl Route for InternalModelKeysActive {
    const NAME: &'static str = "internal-model-keys-active";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::SealingByok)];
    /// A data plane waits 5 s for the response.
    const DEADLINE: Duration = Duration::from_secs(4);
    type Access = Internal<Byok>;
    type Path = ();
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let Query { organization_id, provider } = &call.query;
        let (organization, provider) = (organization_id.0, *provider);
        let active = app.store.active_model_key(organization, provider).await?.ok_or(Error::NotFound)?;
        let context = ModelKeyContext { organization, provider, id: active.model_key_id };
        // A missing key was replaced or revoked just now. The next attempt reads the new state.
        let sealed = app.store.sealed_model_key(organization, context.id).await?.ok_or(Error::WriteConflict)?;
        let ring = app.secrets.ring_with(Ring::SealingByok, &sealed.kid).await?;
        let plaintext = context.open(&ring, &sealed)?.into();
        if sealed.kid != *ring.current().0 {
            reseal(app, call, context, &sealed).await;
        }
        let (request_id, service) = (call.meta.request_id.as_str(), call.caller.name());
        let (organization_id, key_id) = (organization.get(), context.id.get());
        tracing::info!(request_id, service, organization_id, %provider, key_id, "provider key opened");
        ApiResponse::ok(&Output { provider, plaintext, key_id: context.id, tail: active.tail })
    }
}

/// Reseals a key in use with the ring's current key. The ring is refetched first: an older ring
/// would move back a key that was already sealed with a newly promoted key. A failure here does not
/// fail the response, because the sweep reseals keys too.
async fn reseal(app: &App, call: &Call<InternalModelKeysActive>, context: ModelKeyContext, sealed: &SealedModelKey) {
    let fault = match app.secrets.ring_refetched(Ring::SealingByok).await {
        Ok(ring) => {
            let Ok(Some(resealed)) = context.reseal(&ring, &*app.entropy, sealed) else {
                return;
            };
            let write = app.store.reseal_model_key(context.organization, context.id, sealed, &resealed);
            let limit = app.deadlines.scale(RESEAL_TIMEOUT);
            match timeout(limit, write).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("write timed out after {limit:?}"),
            }
        }
        Err(error) => error.to_string(),
    };
    let (request_id, route) = (call.meta.request_id.as_str(), InternalModelKeysActive::NAME);
    tracing::warn!(request_id, route, fault, "provider key reseal failed");
}

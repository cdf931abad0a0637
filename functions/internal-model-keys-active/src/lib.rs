//! `GET /v1/internal/model_keys/active`: the provider key that an organization uses, in the clear. The one route that opens them.

use std::time::Duration;

use karta_shared::{
    App,
    byok::ModelKeyContext,
    config::{Ring, Secret},
    domain::{Id, Provider},
    http::{Answer, Byok, Call, Error, IdParameter, Internal, NoBody, Revealed, Route},
    store::SealedModelKey,
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

/// How long an answer waits for the key to be sealed anew.
const PATIENCE: Duration = Duration::from_millis(250);

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
    /// A data plane waits 5 s.
    const DEADLINE: Duration = Duration::from_secs(4);
    type Access = Internal<Byok>;
    type Path = ();
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<Answer<Output>, Error> {
        let Query { organization_id, provider } = &call.query;
        let (organization, provider) = (organization_id.0, *provider);
        let active = app.store.active_model_key(organization, provider).await?.ok_or(Error::NotFound)?;
        let place = ModelKeyContext { organization, provider, id: active.model_key_id };
        // If it is gone it was replaced or revoked just now, which the next run finds out.
        let sealed = app.store.sealed_model_key(organization, place.id).await?.ok_or(Error::WriteConflict)?;
        let mut ring = app.secrets.ring(Ring::SealingByok).await?;
        if ring.get(sealed.kid.as_str()).is_none() {
            ring = app.secrets.ring_refetched(Ring::SealingByok).await?;
        }
        let plaintext = place.open(&ring, &sealed)?.into();
        if sealed.kid != *ring.current().0 {
            seal_anew(app, call, place, &sealed).await;
        }
        let (request_id, service) = (call.meta.request_id.as_str(), call.caller.name());
        let (organization_id, key_id) = (organization.get(), place.id.get());
        tracing::info!(request_id, service, organization_id, %provider, key_id, "a provider key was opened");
        Answer::ok(&Output { provider, plaintext, key_id: place.id, tail: active.tail })
    }
}

/// Moves a key that is in use under the ring's current key: that of a ring that was just read, for an older one would move back what is sealed under
/// the key that was promoted meanwhile. The sweep does it too: no failure here fails the answer.
async fn seal_anew(app: &App, call: &Call<InternalModelKeysActive>, place: ModelKeyContext, sealed: &SealedModelKey) {
    let problem = match app.secrets.ring_refetched(Ring::SealingByok).await {
        Ok(ring) => {
            let Ok(Some(anew)) = place.reseal(&ring, &*app.entropy, sealed) else {
                return;
            };
            let written = app.store.reseal_model_key(place.organization, place.id, sealed, &anew);
            let patience = app.deadlines.scale(PATIENCE);
            match timeout(patience, written).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("not written within {patience:?}"),
            }
        }
        Err(error) => error.to_string(),
    };
    let (request_id, route) = (call.meta.request_id.as_str(), InternalModelKeysActive::NAME);
    tracing::warn!(request_id, route, problem, "a provider key was not sealed anew");
}

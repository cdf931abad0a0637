use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::{
    Access, ApiKeyCaller, AuthorizationRequest, AuthorizerContext, CallerIdentity, Error, Route,
    access::authorize_address, idempotency::IdempotencyKey,
};
use crate::{
    app::App,
    auth::{self, ValidKey},
    domain::{
        ApiKey, AuditEvent, Event, EventType, Id, NewAuditEvent, Principal, ResourceRef, Timestamp, client_address,
    },
    store::KeyState,
    telemetry,
};

/// One request to a route, authorized and parsed.
pub struct Call<R: Route> {
    pub caller: <R::Access as Access>::Caller,
    pub path: R::Path,
    pub query: R::Query,
    pub body: R::Body,
    /// The time of the request, the same for all of its steps.
    pub now: Timestamp,
    pub meta: Arc<RequestMeta>,
    pub(super) idempotency: Option<IdempotencyKey>,
}

/// Request metadata for the log, the audit log and idempotency.
#[derive(Debug)]
pub struct RequestMeta {
    pub request_id: String,
    pub ip_address: Option<String>,
    /// The host name of the request, as API Gateway received it.
    pub host: Option<String>,
    /// The id of the API, which its own host name starts with.
    pub api_id: Option<String>,
    pub user_agent: Option<String>,
    /// The last event that a client of a stream has.
    pub last_event_id: Option<String>,
    pub(super) bearer: Option<SecretString>,
    /// The name of the calling service, once its token is verified.
    pub(super) service: OnceLock<String>,
}

impl RequestMeta {
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.ip_address.as_deref().and_then(client_address)
    }

    /// Redacts everything in the shape of a secret, and the request's own credential in any shape.
    pub fn scrub(&self, text: &str) -> String {
        let scrubbed = telemetry::scrub(text);
        match self.bearer.as_ref().map(ExposeSecret::expose_secret) {
            Some(token) if !token.is_empty() => scrubbed.replace(token, "[redacted]"),
            _ => scrubbed.into_owned(),
        }
    }
}

impl<R: Route> Call<R>
where
    R::Access: Access<Caller = ApiKeyCaller>,
{
    /// Authorizes the calling key again by its current state. Needed for everything that outlives
    /// the gateway's cached verdict, such as a token or another key. Stage writes that depend on it
    /// with [`Transaction::require_caller_unchanged`](crate::store::Transaction::require_caller_unchanged).
    pub async fn reauthorize(&self, app: &App) -> Result<ApiKey, Error> {
        let key_state = app.store.access(self.caller.organization_id, self.caller.api_key_id).await?;
        self.reauthorize_with(app, &key_state).await?;
        Ok(key_state.api_key)
    }

    /// Authorizes the calling key like [`reauthorize`](Self::reauthorize), for requests that cost
    /// money. Returns the key with its spending.
    pub async fn reauthorize_to_spend(&self, app: &App) -> Result<ValidKey, Error> {
        let ApiKeyCaller { organization_id, api_key_id, lineage_id, .. } = self.caller;
        let read = app.store.access_to_spend(organization_id, api_key_id, lineage_id, self.now);
        let (key_state, spending) = read.await?;
        self.reauthorize_with(app, &key_state).await?;
        Ok(ValidKey::new(key_state, spending))
    }

    async fn reauthorize_with(&self, app: &App, key_state: &KeyState) -> Result<(), Error> {
        let api_key = &key_state.api_key;
        auth::check_status(key_state, self.now).map_err(|_| Error::Unauthorized)?;
        let caller = AuthorizerContext {
            principal: Principal { scopes: api_key.scopes, ..self.caller.principal.clone() },
            api_key_name: Some(api_key.name.as_str().to_owned()),
            lineage_id: Some(api_key.lineage_id),
            jti: None,
            allowed_cidrs: api_key.allowed_cidrs.clone(),
        };
        let caller = authorize_address(Some(caller), self.meta.address());
        let request = AuthorizationRequest { app, caller, project: None, meta: &self.meta, signed: None };
        R::Access::authorize(request).await.map(drop)
    }

    /// Returns the calling key, authorized again, and the key to be changed, with its last use. If
    /// both are the same key it is read once, so that a condition on one is a condition on the
    /// other.
    pub async fn caller_and_target(&self, app: &App, target: Id) -> Result<(ApiKey, ApiKey), Error> {
        let ApiKeyCaller { organization_id, api_key_id, .. } = self.caller;
        if api_key_id == target {
            let key_state = app.store.access_with_use(organization_id, api_key_id).await?;
            self.reauthorize_with(app, &key_state).await?;
            return Ok((key_state.api_key.clone(), key_state.api_key));
        }
        let caller = self.reauthorize(app).await?;
        let target = app.store.api_key(self.caller.organization_id, target).await?.ok_or(Error::NotFound)?;
        Ok((caller, target))
    }
}

impl<R: Route> Call<R>
where
    R::Access: Access<Caller: CallerIdentity>,
{
    /// Creates an audit event: adds actor, time and request metadata to the handler's part.
    pub fn audit_event(&self, app: &App, event: NewAuditEvent) -> AuditEvent {
        AuditEvent {
            id: Id::draw(self.now, &*app.entropy),
            at: self.now,
            actor: self.caller.actor(),
            action: event.action.as_str().to_owned(),
            resource: ResourceRef { kind: event.resource_kind.to_owned(), id: event.resource_id },
            changes: event.changes,
            ip_address: self.meta.ip_address.clone(),
            user_agent: self.meta.user_agent.clone(),
            request_id: self.meta.request_id.clone(),
        }
    }

    /// Creates an event for the organization's webhook endpoints. `data` is an object of resources
    /// in the form that responses show.
    pub fn event(
        &self,
        app: &App,
        organization: Id,
        event_type: EventType,
        data: &impl Serialize,
    ) -> Result<Event, Error> {
        Ok(Event {
            id: Id::draw(self.now, &*app.entropy),
            event_type,
            created_at: self.now,
            organization_id: organization,
            data: serde_json::to_string(data)
                .map_err(|error| Error::Internal(format!("event encoding failed: {error}")))?,
            only_endpoint: None,
        })
    }
}

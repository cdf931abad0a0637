use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::{
    Access, Agent, ApiKeyCaller, Caller, Error, Presented, Route, access::admit_address, idempotency::IdempotencyKey,
};
use crate::{
    app::App,
    auth::{self, ValidKey, Verdict},
    domain::{ApiKey, AuditEvent, Event, EventType, Id, NewAuditEvent, ResourceRef, Timestamp, client_address},
    telemetry,
};

/// One request to a route, judged and parsed.
pub struct Call<R: Route> {
    pub caller: <R::Access as Access>::Caller,
    pub path: R::Path,
    pub query: R::Query,
    pub body: R::Body,
    /// When the request was judged: one instant for the whole of it.
    pub now: Timestamp,
    pub origin: Arc<Origin>,
    pub(super) idempotency: Option<IdempotencyKey>,
}

/// Where a request comes from, for the log, the audit log and idempotency.
#[derive(Debug)]
pub struct Origin {
    pub request_id: String,
    pub ip_address: Option<String>,
    /// The name that the client asked for, as API Gateway saw it.
    pub host: Option<String>,
    pub user_agent: Option<String>,
    pub(super) bearer: Option<SecretString>,
    /// The name of the service that calls, once its token is proven.
    pub(super) service: OnceLock<String>,
}

impl Origin {
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.ip_address.as_deref().and_then(client_address)
    }

    /// Takes out what is shaped like a secret, and the request's own credential, which need not be.
    pub(super) fn scrub(&self, text: &str) -> String {
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
    /// Judges the calling key once more, by its state as it is now: for what outlives the gateway's cached verdict, such as a token or another
    /// key. A write that hangs on it is staged with [`Transaction::while_unchanged`](crate::store::Transaction::while_unchanged).
    pub async fn readmit(&self, app: &App) -> Result<ValidKey, Error> {
        let caller = &self.caller;
        let state = app.store.access(caller.organization_id, caller.api_key_id, caller.counted_as, self.now).await?;
        let Verdict::Valid(valid) = auth::judge(state, self.now) else {
            return Err(Error::Unauthorized);
        };
        let caller = admit_address(Some(Caller::api_key(&valid)), self.origin.address());
        R::Access::admit(Presented { app, caller, project: None, origin: &self.origin, signed: None }).await?;
        Ok(*valid)
    }

    /// The calling key, judged once more, and the key that it means to change: one read for both if they are the same, so that the
    /// condition on the one is a condition on the other.
    pub async fn caller_and_target(&self, app: &App, target: Id) -> Result<(ApiKey, ApiKey), Error> {
        let caller = self.readmit(app).await?.api_key;
        if caller.id == target {
            return Ok((caller.clone(), caller));
        }
        let target = app.store.api_key(self.caller.organization_id, target).await?.ok_or(Error::NotFound)?;
        Ok((caller, target))
    }
}

impl<R: Route> Call<R>
where
    R::Access: Access<Caller: Agent>,
{
    /// An event of the audit log: what the handler says of a change, and who makes it, when and from where.
    pub fn audit_event(&self, app: &App, event: NewAuditEvent) -> AuditEvent {
        AuditEvent {
            id: Id::draw(self.now, &*app.entropy),
            at: self.now,
            actor: self.caller.actor(),
            action: event.action.to_owned(),
            resource: ResourceRef { kind: event.resource_kind.to_owned(), id: event.resource_id },
            changes: event.changes,
            ip_address: self.origin.ip_address.clone(),
            user_agent: self.origin.user_agent.clone(),
            request_id: self.origin.request_id.clone(),
        }
    }

    /// What the organization's webhook endpoints are told of a change: `data` is an object, of resources as answers show them.
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
                .map_err(|error| Error::Internal(format!("an event does not encode: {error}")))?,
        })
    }
}

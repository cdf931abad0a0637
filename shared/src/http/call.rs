use std::{net::IpAddr, sync::Arc};

use secrecy::SecretString;

use super::{Access, ApiKeyCaller, Caller, Error, Route, access::admit_address, idempotency::IdempotencyKey};
use crate::{
    app::App,
    auth::{self, ValidKey, Verdict},
    domain::{Actor, ActorKind, AuditEvent, Changes, Id, ResourceRef, Timestamp, client_address},
    store,
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
    pub user_agent: Option<String>,
    /// The path as it was asked for, without the stage.
    pub(super) path: String,
    pub(super) bearer: Option<SecretString>,
}

/// What a handler says of a change; the call knows the rest.
#[derive(Debug)]
pub struct NewAuditEvent {
    pub action: &'static str,
    pub resource_kind: &'static str,
    pub resource_id: Id,
    pub changes: Changes,
}

impl Origin {
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.ip_address.as_deref().and_then(client_address)
    }
}

impl<R: Route> Call<R>
where
    R::Access: Access<Caller = ApiKeyCaller>,
{
    /// Judges the calling key once more, by its state as it was read for this call: for what outlives the gateway's cached verdict.
    pub fn readmit(&self, state: store::Access) -> Result<ValidKey, Error> {
        let Verdict::Valid(valid) = auth::judge(state, self.now) else {
            return Err(Error::Unauthorized);
        };
        R::Access::admit(admit_address(Some(Caller::api_key(&valid)), self.origin.address()), None)?;
        Ok(*valid)
    }

    pub fn audit_event(&self, app: &App, event: NewAuditEvent) -> AuditEvent {
        AuditEvent {
            id: Id::draw(self.now, &*app.entropy),
            at: self.now,
            actor: Actor {
                kind: ActorKind::ApiKey,
                id: Some(self.caller.api_key_id),
                name: self.caller.api_key_name.clone(),
            },
            action: event.action.to_owned(),
            resource: ResourceRef { kind: event.resource_kind.to_owned(), id: event.resource_id },
            changes: event.changes,
            ip_address: self.origin.ip_address.clone(),
            user_agent: self.origin.user_agent.clone(),
            request_id: self.origin.request_id.clone(),
        }
    }
}

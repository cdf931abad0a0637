use std::{net::IpAddr, sync::Arc};

use secrecy::SecretString;

use super::{Access, ApiKeyCaller, Caller, Error, Route, access::admit_address, idempotency::IdempotencyKey};
use crate::{
    app::App,
    auth::{self, ValidKey, Verdict},
    domain::{Actor, ActorKind, ApiKey, AuditEvent, Changes, Id, ResourceRef, Timestamp, client_address},
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
    /// Judges the calling key once more, by its state as it is now: for what outlives the gateway's cached verdict, such as a token or another
    /// key. A write that hangs on it is staged with [`Transaction::while_unchanged`](crate::store::Transaction::while_unchanged).
    pub async fn readmit(&self, app: &App) -> Result<ValidKey, Error> {
        let state = app.store.access(self.caller.organization_id, self.caller.api_key_id).await?;
        let Verdict::Valid(valid) = auth::judge(state.ok_or(Error::Unauthorized)?, self.now) else {
            return Err(Error::Unauthorized);
        };
        R::Access::admit(admit_address(Some(Caller::api_key(&valid)), self.origin.address()), None)?;
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

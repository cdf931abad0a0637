use std::net::IpAddr;

use super::{Caller, Error};
use crate::domain::{Id, Principal, PrincipalKind, Scope};

/// Who may call a route: a marker type that a route names, so that none can forget to say.
pub trait Access: Send + Sync + 'static {
    /// What a handler learns of who calls.
    type Caller: Send + Sync;

    /// Judges kind, scope and project, in that order: 401 where there is no credential, 403 where it does not suffice.
    /// `project` is the path's `{ref}`.
    fn admit(caller: Option<Caller>, project: Option<&str>) -> Result<Self::Caller, Error>;
}

/// Judges what the gateway's cached verdict cannot: where this request comes from.
pub(super) fn admit_address(caller: Option<Caller>, address: Option<IpAddr>) -> Option<Caller> {
    caller.filter(|caller| caller.allowed_cidrs.permit(address))
}

/// Anybody, without a credential.
#[derive(Debug)]
pub struct Public;

impl Access for Public {
    type Caller = ();

    fn admit(_: Option<Caller>, _: Option<&str>) -> Result<(), Error> {
        Ok(())
    }
}

/// An API key, as a handler of an organization's own resources sees it.
#[derive(Debug, Clone)]
pub struct ApiKeyCaller {
    pub organization_id: Id,
    pub api_key_id: Id,
    pub api_key_name: String,
    pub principal: Principal,
}

/// An API key that holds a scope, or any API key.
pub trait RequiredScope: Send + Sync + 'static {
    const SCOPE: Option<Scope>;
}

/// An API key with scope `read`.
#[derive(Debug)]
pub struct Read;
impl RequiredScope for Read {
    const SCOPE: Option<Scope> = Some(Scope::Read);
}

/// An API key with scope `write`.
#[derive(Debug)]
pub struct Write;
impl RequiredScope for Write {
    const SCOPE: Option<Scope> = Some(Scope::Write);
}

/// An API key with scope `admin`.
#[derive(Debug)]
pub struct Admin;
impl RequiredScope for Admin {
    const SCOPE: Option<Scope> = Some(Scope::Admin);
}

/// Any API key.
#[derive(Debug)]
pub struct AnyKey;
impl RequiredScope for AnyKey {
    const SCOPE: Option<Scope> = None;
}

impl<S: RequiredScope> Access for S {
    type Caller = ApiKeyCaller;

    fn admit(caller: Option<Caller>, _: Option<&str>) -> Result<ApiKeyCaller, Error> {
        let Caller { principal, api_key_name, .. } = caller.ok_or(Error::Unauthorized)?;
        match principal.kind {
            PrincipalKind::Session => {
                return Err(Error::Forbidden("session tokens are valid only under /v1/projects/{ref}/".into()));
            }
            PrincipalKind::ApiKey => {}
        }
        if let Some(scope) = S::SCOPE
            && !principal.scopes.contains(scope)
        {
            return Err(Error::Forbidden(format!("missing scope: {}", scope.as_str()).into()));
        }
        Ok(ApiKeyCaller {
            organization_id: principal.organization_id,
            api_key_id: principal.api_key_id,
            api_key_name: api_key_name.unwrap_or_default(),
            principal,
        })
    }
}

/// Whoever may enter the project in the path: a session token pinned to it, or an API key. Whether the project exists in the API
/// key's organization is the handler's to find out.
#[derive(Debug)]
pub struct Project;

impl Access for Project {
    type Caller = Principal;

    fn admit(caller: Option<Caller>, project: Option<&str>) -> Result<Principal, Error> {
        let principal = caller.ok_or(Error::Unauthorized)?.principal;
        match principal.kind {
            PrincipalKind::ApiKey => Ok(principal),
            PrincipalKind::Session if principal.project_slug.as_deref() == project => Ok(principal),
            PrincipalKind::Session => {
                Err(Error::Forbidden("wrong project: the session token is for another one".into()))
            }
        }
    }
}

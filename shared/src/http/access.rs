use std::{future::Future, marker::PhantomData, net::IpAddr};

use http::HeaderMap;
use secrecy::ExposeSecret;

use super::{AuthorizerContext, Call, Error, Route, call::RequestMeta};
use crate::{
    app::App,
    config::{Secret, SecretError},
    domain::{Actor, ActorKind, Id, Power, Principal, PrincipalKind, Scope, Service},
};

/// Who may call a route: a marker type that a route names, so that none can forget to say.
pub trait Access: Send + Sync + 'static {
    /// What a handler learns of who calls.
    type Caller: Send + Sync;
    /// What the API's document says of who may call.
    const CREDENTIAL: RequiredCredential = RequiredCredential::Private;
    /// What it judges with.
    const SECRETS: &'static [Secret] = &[];

    /// Judges kind, scope and project, in that order: 401 where there is no credential, 403 where it does not suffice.
    fn admit(presented: Presented<'_>) -> impl Future<Output = Result<Self::Caller, Error>> + Send;

    /// The caller as one who may change things; none where nobody may.
    fn identity(_: &Self::Caller) -> Option<&dyn CallerIdentity> {
        None
    }

    /// Authorizes the caller by its current state, not by the gateway's cached verdict, before a remembered answer shows a secret
    /// again. Refuses by default.
    fn reauthorize<R: Route<Access = Self>>(_: &App, _: &Call<R>) -> impl Future<Output = Result<(), Error>> + Send
    where
        Self: Sized,
    {
        async { Err(Error::Unauthorized) }
    }
}

/// Who may call, as the API's document has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequiredCredential {
    None,
    /// An API key that holds the scope, if one is named.
    ApiKey(Option<Scope>),
    /// A session token for the project in the path, or any API key.
    Project,
    /// Nobody whom the document speaks to.
    Private,
}

/// What a request is judged by.
pub struct Presented<'a> {
    pub(super) app: &'a App,
    /// The authorizer's finding, already held against the key's own addresses.
    pub(super) caller: Option<AuthorizerContext>,
    /// The path's `{ref}`.
    pub(super) project: Option<&'a str>,
    pub(super) meta: &'a RequestMeta,
    /// What a sender signs; none where a caller is judged once more.
    pub(super) signed: Option<Signed<'a>>,
}

/// A request as its sender signs it.
pub(super) struct Signed<'a> {
    pub(super) headers: &'a HeaderMap,
    /// As it was sent, before anything is parsed.
    pub(super) body: &'a [u8],
    /// The largest body that the route takes, in bytes.
    pub(super) body_max: usize,
}

/// Somebody who may change things: known to the audit log, and to idempotency.
pub trait CallerIdentity: Send + Sync {
    fn actor(&self) -> Actor;

    /// Whose resources it works with; none for a service, which works with everybody's.
    fn organization(&self) -> Option<Id>;

    /// What tells its credential from every other one, without opening anything.
    fn credential(&self) -> Vec<u8>;
}

/// Judges what the gateway's cached verdict cannot: where this request comes from.
pub(super) fn admit_address(caller: Option<AuthorizerContext>, address: Option<IpAddr>) -> Option<AuthorizerContext> {
    caller.filter(|caller| caller.allowed_cidrs.permit(address))
}

/// Anybody, without a credential.
#[derive(Debug)]
pub struct Public;

impl Access for Public {
    type Caller = ();
    const CREDENTIAL: RequiredCredential = RequiredCredential::None;

    async fn admit(_: Presented<'_>) -> Result<(), Error> {
        Ok(())
    }
}

/// An API key, as a handler of an organization's own resources sees it.
#[derive(Debug, Clone)]
pub struct ApiKeyCaller {
    pub organization_id: Id,
    pub api_key_id: Id,
    pub api_key_name: String,
    pub lineage_id: Id,
    pub principal: Principal,
}

impl CallerIdentity for ApiKeyCaller {
    fn actor(&self) -> Actor {
        Actor { kind: ActorKind::ApiKey, id: Some(self.api_key_id), name: self.api_key_name.clone() }
    }

    fn organization(&self) -> Option<Id> {
        Some(self.organization_id)
    }

    fn credential(&self) -> Vec<u8> {
        self.api_key_id.to_string().into_bytes()
    }
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
    const CREDENTIAL: RequiredCredential = RequiredCredential::ApiKey(S::SCOPE);

    fn identity(caller: &ApiKeyCaller) -> Option<&dyn CallerIdentity> {
        Some(caller)
    }

    async fn admit(presented: Presented<'_>) -> Result<ApiKeyCaller, Error> {
        let AuthorizerContext { principal, api_key_name, lineage_id, .. } =
            presented.caller.ok_or(Error::Unauthorized)?;
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
            lineage_id: lineage_id.ok_or(Error::Unauthorized)?,
            principal,
        })
    }

    async fn reauthorize<R: Route<Access = Self>>(app: &App, call: &Call<R>) -> Result<(), Error> {
        call.reauthorize(app).await.map(drop)
    }
}

/// Whoever may enter the project in the path: a session token pinned to it, or an API key. Whether the project exists in the API
/// key's organization is the handler's to find out.
#[derive(Debug)]
pub struct ProjectAccess;

impl Access for ProjectAccess {
    type Caller = Principal;
    const CREDENTIAL: RequiredCredential = RequiredCredential::Project;

    async fn admit(presented: Presented<'_>) -> Result<Principal, Error> {
        let principal = presented.caller.ok_or(Error::Unauthorized)?.principal;
        match principal.kind {
            PrincipalKind::ApiKey => Ok(principal),
            PrincipalKind::Session if principal.project_slug.as_deref() == presented.project => Ok(principal),
            PrincipalKind::Session => {
                Err(Error::Forbidden("wrong project: the session token is for another one".into()))
            }
        }
    }
}

/// The holder of a service token that grants a power, on an internal route. Such a route exists on the allowlists alone: off either, every
/// request is the 404 of an unknown path, before the token is looked at.
#[derive(Debug)]
pub struct Internal<P>(PhantomData<fn() -> P>);

/// A power that an internal route takes, or any service token.
pub trait RequiredPower: 'static {
    const POWER: Option<Power>;
}

/// A service token with power `validate`.
#[derive(Debug)]
pub struct Validate;
impl RequiredPower for Validate {
    const POWER: Option<Power> = Some(Power::Validate);
}

/// A service token with power `provision`.
#[derive(Debug)]
pub struct Provision;
impl RequiredPower for Provision {
    const POWER: Option<Power> = Some(Power::Provision);
}

/// A service token with power `usage`.
#[derive(Debug)]
pub struct ReportUsage;
impl RequiredPower for ReportUsage {
    const POWER: Option<Power> = Some(Power::Usage);
}

/// A service token with power `releases`.
#[derive(Debug)]
pub struct Releases;
impl RequiredPower for Releases {
    const POWER: Option<Power> = Some(Power::Releases);
}

/// A service token with power `byok`.
#[derive(Debug)]
pub struct Byok;
impl RequiredPower for Byok {
    const POWER: Option<Power> = Some(Power::Byok);
}

/// Any service token.
#[derive(Debug)]
pub struct AnyService;
impl RequiredPower for AnyService {
    const POWER: Option<Power> = None;
}

impl<P: RequiredPower> Access for Internal<P> {
    type Caller = Service;
    const SECRETS: &'static [Secret] = &[Secret::ServiceTokens];

    fn identity(caller: &Service) -> Option<&dyn CallerIdentity> {
        Some(caller)
    }

    /// No verdict on a service token is cached: this request has judged it.
    async fn reauthorize<R: Route<Access = Self>>(_: &App, _: &Call<R>) -> Result<(), Error> {
        Ok(())
    }

    async fn admit(presented: Presented<'_>) -> Result<Service, Error> {
        let Presented { app, meta, .. } = presented;
        if !app.internal.permits(meta.address(), meta.host.as_deref()) {
            return Err(Error::UnknownRoute);
        }
        let token = meta.bearer.as_ref().ok_or(Error::Unauthorized)?.expose_secret();
        let service = find_service(app, token).await.map_err(|error| Error::Unavailable(error.to_string()))?;
        let service = service.ok_or(Error::Unauthorized)?;
        meta.service.get_or_init(|| service.name().to_owned());
        match P::POWER {
            Some(power) if !service.may(power) => {
                Err(Error::Forbidden(format!("missing power: {}", power.as_str()).into()))
            }
            _ => Ok(service),
        }
    }
}

/// Whose token it is; one that is not known may have been added since the tokens were fetched.
async fn find_service(app: &App, token: &str) -> Result<Option<Service>, SecretError> {
    if let Some(service) = app.secrets.service_tokens().await?.find(token) {
        return Ok(Some(service.clone()));
    }
    Ok(app.secrets.service_tokens_refetched().await?.find(token).cloned())
}

impl CallerIdentity for Service {
    fn actor(&self) -> Actor {
        Actor { kind: ActorKind::Service, id: None, name: self.name().to_owned() }
    }

    fn organization(&self) -> Option<Id> {
        None
    }

    fn credential(&self) -> Vec<u8> {
        self.fingerprint().to_vec()
    }
}

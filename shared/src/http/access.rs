use std::{future::Future, marker::PhantomData, net::IpAddr};

use http::HeaderMap;
use secrecy::ExposeSecret;

use super::{AuthorizerContext, Call, Error, Route, call::RequestMeta};
use crate::{
    app::App,
    config::{Secret, SecretError},
    domain::{Actor, ActorKind, Id, Power, Principal, PrincipalKind, Scope, Service},
};

/// The access rule of a route. A route names a marker type that implements it, so that no route
/// lacks a rule.
pub trait Access: Send + Sync + 'static {
    /// The caller as the handler sees it.
    type Caller: Send + Sync;
    /// The credential that the API document shows for the route.
    const CREDENTIAL: RequiredCredential = RequiredCredential::Private;
    /// Secrets that [`Access::authorize`] needs.
    const SECRETS: &'static [Secret] = &[];

    /// Checks the credential, its kind, scope and project, in that order. Returns the caller, a 401
    /// if the credential is missing or invalid, or a 403 if it is not sufficient.
    fn authorize(request: AuthorizationRequest<'_>) -> impl Future<Output = Result<Self::Caller, Error>> + Send;

    /// Returns the caller as the author of changes; `None` if its kind cannot change anything.
    fn identity(_: &Self::Caller) -> Option<&dyn CallerIdentity> {
        None
    }

    /// Authorizes the caller by its current state instead of the gateway's cached verdict. Called
    /// before a stored response shows a secret again. By default, returns a 401.
    fn reauthorize<R: Route<Access = Self>>(_: &App, _: &Call<R>) -> impl Future<Output = Result<(), Error>> + Send
    where
        Self: Sized,
    {
        async { Err(Error::Unauthorized) }
    }
}

/// The credential that a route requires, for the API document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequiredCredential {
    None,
    /// An API key with this scope; any API key for `None`.
    ApiKey(Option<Scope>),
    /// A session token for the project in the path, or an API key with this scope; any API key for
    /// `None`.
    Project(Option<Scope>),
    /// A credential that the document does not describe.
    Private,
}

/// The parts of a request that [`Access::authorize`] checks.
pub struct AuthorizationRequest<'a> {
    pub(super) app: &'a App,
    /// The authorizer's result, already checked against the key's allowed addresses.
    pub(super) caller: Option<AuthorizerContext>,
    /// The path's `{ref}`.
    pub(super) project: Option<&'a str>,
    pub(super) meta: &'a RequestMeta,
    /// Headers and body for signed requests (Stripe); `None` in reauthorization.
    pub(super) signed: Option<Signed<'a>>,
}

/// The parts of a request that a sender signs.
pub(super) struct Signed<'a> {
    pub(super) headers: &'a HeaderMap,
    /// The body as received, before parsing.
    pub(super) body: &'a [u8],
    /// The route's body limit in bytes.
    pub(super) body_max: usize,
}

/// A caller that may change things, as the audit log and idempotency identify it.
pub trait CallerIdentity: Send + Sync {
    fn actor(&self) -> Actor;

    /// The organization whose resources it works with; `None` for a service, which works with all
    /// of them.
    fn organization(&self) -> Option<Id>;

    /// Bytes that identify the caller for idempotency. Tokens of one user in one project share them.
    /// They cannot be used as a credential.
    fn idempotency_identity(&self) -> Vec<u8>;

    /// Whether a repeated request has the same bearer token.
    fn has_stable_bearer(&self) -> bool {
        true
    }
}

/// Returns the caller if its key may be used from this address, which the gateway's cached verdict
/// does not cover.
pub(super) fn authorize_address(
    caller: Option<AuthorizerContext>,
    address: Option<IpAddr>,
) -> Option<AuthorizerContext> {
    caller.filter(|caller| caller.allowed_cidrs.permit(address))
}

/// Any client, without a credential.
#[derive(Debug)]
pub struct Public;

impl Access for Public {
    type Caller = ();
    const CREDENTIAL: RequiredCredential = RequiredCredential::None;

    async fn authorize(_: AuthorizationRequest<'_>) -> Result<(), Error> {
        Ok(())
    }
}

/// An API key as the handlers of an organization's resources see it.
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

    fn idempotency_identity(&self) -> Vec<u8> {
        self.api_key_id.to_string().into_bytes()
    }
}

/// A scope that an API key must hold, or any API key.
pub trait RequiredScope: Send + Sync + 'static {
    const SCOPE: Option<Scope>;
}

#[derive(Debug)]
pub struct Read;
impl RequiredScope for Read {
    const SCOPE: Option<Scope> = Some(Scope::Read);
}

#[derive(Debug)]
pub struct Write;
impl RequiredScope for Write {
    const SCOPE: Option<Scope> = Some(Scope::Write);
}

#[derive(Debug)]
pub struct Admin;
impl RequiredScope for Admin {
    const SCOPE: Option<Scope> = Some(Scope::Admin);
}

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

    async fn authorize(request: AuthorizationRequest<'_>) -> Result<ApiKeyCaller, Error> {
        let AuthorizerContext { principal, api_key_name, lineage_id, .. } =
            request.caller.ok_or(Error::Unauthorized)?;
        match principal.kind {
            PrincipalKind::Session => {
                return Err(Error::Forbidden("session tokens are valid only under /v1/projects/{ref}/".into()));
            }
            PrincipalKind::ApiKey => require_scope::<S>(&principal)?,
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

fn require_scope<S: RequiredScope>(principal: &Principal) -> Result<(), Error> {
    match S::SCOPE {
        Some(scope) if !principal.scopes.contains(scope) => {
            Err(Error::Forbidden(format!("missing scope: {}", scope.as_str()).into()))
        }
        _ => Ok(()),
    }
}

/// Returns a 403 if the session token is for another project than the path's.
fn require_project(principal: &Principal, project: Option<&str>) -> Result<(), Error> {
    if principal.project_slug.as_deref() == project {
        Ok(())
    } else {
        Err(Error::Forbidden("wrong project: the session token is for another project".into()))
    }
}

/// The caller of a data-plane route: an API key or a session token. Routes without a project
/// convert their [`ApiKeyCaller`] to it.
#[derive(Debug, Clone)]
pub struct SessionCaller {
    pub kind: PrincipalKind,
    pub organization_id: Id,
    /// The key itself, or the key that minted the session token.
    pub api_key_id: Id,
    /// The name of that key.
    pub api_key_name: String,
    /// The lineage of that key, which usage is counted under.
    pub lineage_id: Id,
    /// The project of a session token; `None` for an API key.
    pub project_id: Option<Id>,
    pub project_slug: Option<String>,
    /// The end user of a session token.
    pub sub: Option<String>,
    /// The id of a session token; `None` for an API key.
    pub jti: Option<String>,
    pub principal: Principal,
}

impl From<ApiKeyCaller> for SessionCaller {
    fn from(caller: ApiKeyCaller) -> Self {
        Self {
            kind: PrincipalKind::ApiKey,
            organization_id: caller.organization_id,
            api_key_id: caller.api_key_id,
            api_key_name: caller.api_key_name,
            lineage_id: caller.lineage_id,
            project_id: None,
            project_slug: None,
            sub: None,
            jti: None,
            principal: caller.principal,
        }
    }
}

impl CallerIdentity for SessionCaller {
    /// The audit log names the key that minted a session token.
    fn actor(&self) -> Actor {
        Actor { kind: ActorKind::ApiKey, id: Some(self.api_key_id), name: self.api_key_name.clone() }
    }

    fn organization(&self) -> Option<Id> {
        Some(self.organization_id)
    }

    /// The project and the user of a session token, so that a new token of the same user can repeat a
    /// request. Without a user, the project and the token's id.
    fn idempotency_identity(&self) -> Vec<u8> {
        let text = match (self.project_id, &self.sub, &self.jti) {
            (Some(project), Some(sub), _) => format!("{project} sub {sub}"),
            (Some(project), None, Some(jti)) => format!("{project} jti {jti}"),
            _ => self.api_key_id.to_string(),
        };
        text.into_bytes()
    }

    fn has_stable_bearer(&self) -> bool {
        self.kind == PrincipalKind::ApiKey
    }
}

/// A session token of the project in the path, or an API key with scope `S`, on a data-plane route.
/// A session token needs no scope, and the authorizer must have read its minting key. The handler
/// checks whether the project exists in the API key's organization.
#[derive(Debug)]
pub struct ProjectScoped<S>(PhantomData<fn() -> S>);

impl<S: RequiredScope> Access for ProjectScoped<S> {
    type Caller = SessionCaller;
    const CREDENTIAL: RequiredCredential = RequiredCredential::Project(S::SCOPE);

    fn identity(caller: &SessionCaller) -> Option<&dyn CallerIdentity> {
        Some(caller)
    }

    async fn authorize(request: AuthorizationRequest<'_>) -> Result<SessionCaller, Error> {
        let AuthorizationRequest { caller, project, .. } = request;
        let AuthorizerContext { principal, api_key_name, lineage_id, jti, .. } = caller.ok_or(Error::Unauthorized)?;
        let lineage_id = lineage_id.ok_or(Error::Unauthorized)?;
        match principal.kind {
            PrincipalKind::ApiKey => require_scope::<S>(&principal)?,
            PrincipalKind::Session if jti.is_none() => return Err(Error::Unauthorized),
            PrincipalKind::Session => require_project(&principal, project)?,
        }
        Ok(SessionCaller {
            kind: principal.kind,
            organization_id: principal.organization_id,
            api_key_id: principal.api_key_id,
            api_key_name: api_key_name.unwrap_or_default(),
            lineage_id,
            project_id: principal.project_id,
            project_slug: principal.project_slug.clone(),
            sub: principal.sub.clone(),
            jti,
            principal,
        })
    }
}

/// A session token of the project in the path, or any API key. The handler checks whether the
/// project exists in the API key's organization.
#[derive(Debug)]
pub struct ProjectAccess;

impl Access for ProjectAccess {
    type Caller = Principal;
    const CREDENTIAL: RequiredCredential = RequiredCredential::Project(None);

    async fn authorize(request: AuthorizationRequest<'_>) -> Result<Principal, Error> {
        let principal = request.caller.ok_or(Error::Unauthorized)?.principal;
        match principal.kind {
            PrincipalKind::ApiKey => {}
            PrincipalKind::Session => require_project(&principal, request.project)?,
        }
        Ok(principal)
    }
}

/// A service token with a power, on an internal route. A request from outside the allowlists gets
/// the 404 of an unknown path, before the token is checked.
#[derive(Debug)]
pub struct Internal<P>(PhantomData<fn() -> P>);

/// A power that a service token must grant, or any service token.
pub trait RequiredPower: 'static {
    const POWER: Option<Power>;
}

#[derive(Debug)]
pub struct Validate;
impl RequiredPower for Validate {
    const POWER: Option<Power> = Some(Power::Validate);
}

#[derive(Debug)]
pub struct Provision;
impl RequiredPower for Provision {
    const POWER: Option<Power> = Some(Power::Provision);
}

#[derive(Debug)]
pub struct ReportUsage;
impl RequiredPower for ReportUsage {
    const POWER: Option<Power> = Some(Power::Usage);
}

#[derive(Debug)]
pub struct Releases;
impl RequiredPower for Releases {
    const POWER: Option<Power> = Some(Power::Releases);
}

#[derive(Debug)]
pub struct Byok;
impl RequiredPower for Byok {
    const POWER: Option<Power> = Some(Power::Byok);
}

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

    /// Verdicts on service tokens are not cached: this request has already checked the token.
    async fn reauthorize<R: Route<Access = Self>>(_: &App, _: &Call<R>) -> Result<(), Error> {
        Ok(())
    }

    async fn authorize(request: AuthorizationRequest<'_>) -> Result<Service, Error> {
        let AuthorizationRequest { app, meta, .. } = request;
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

/// Returns the service that holds the token. An unknown token triggers a refetch, because it may be
/// new.
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

    fn idempotency_identity(&self) -> Vec<u8> {
        self.fingerprint().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ScopeSet;

    fn session(sub: Option<&str>, jti: &str) -> SessionCaller {
        let id = |number| Id::new(number).unwrap();
        let principal = Principal {
            kind: PrincipalKind::Session,
            organization_id: id(1),
            organization_slug: "acme".to_owned(),
            scopes: ScopeSet::NONE,
            api_key_id: id(2),
            api_key_prefix: None,
            project_id: Some(id(3)),
            project_slug: Some("site".to_owned()),
            sub: sub.map(ToOwned::to_owned),
            budget_ok: true,
            budget_reason: None,
        };
        SessionCaller {
            kind: principal.kind,
            organization_id: principal.organization_id,
            api_key_id: principal.api_key_id,
            api_key_name: "ci".to_owned(),
            lineage_id: id(2),
            project_id: principal.project_id,
            project_slug: principal.project_slug.clone(),
            sub: principal.sub.clone(),
            jti: Some(jti.to_owned()),
            principal,
        }
    }

    #[test]
    fn tokens_of_one_user_share_an_identity() {
        let identity = |sub, jti| session(sub, jti).idempotency_identity();
        assert_eq!(identity(Some("ada"), "1"), identity(Some("ada"), "2"));
        assert_ne!(identity(Some("ada"), "1"), identity(Some("bob"), "1"));
        assert_ne!(identity(Some("1"), "1"), identity(None, "1"));
        assert_ne!(identity(None, "1"), identity(None, "2"));
    }

    #[test]
    fn missing_scope_is_named() {
        let principal = session(None, "1").principal;
        let Err(Error::Forbidden(detail)) = require_scope::<Write>(&principal) else { panic!("must be forbidden") };
        assert_eq!(detail, "missing scope: write");
        require_scope::<AnyKey>(&principal).unwrap();
    }

    #[test]
    fn token_of_another_project_is_forbidden() {
        let principal = session(None, "1").principal;
        require_project(&principal, Some("site")).unwrap();
        for project in [Some("shop"), None] {
            assert!(matches!(require_project(&principal, project), Err(Error::Forbidden(_))), "{project:?}");
        }
    }
}

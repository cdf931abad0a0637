//! `POST /v1/agent_projects/{slug}/session_tokens`, also without `/v1`: mints a browser-safe token
//! for one project.

use karta_shared::{
    App,
    auth::{self, SessionClaims, SessionScope, TTL_DEFAULT, TTL_MAX, TTL_MIN},
    config::{Ring, Secret},
    domain::{BudgetVerdict, Id, Invalid, Slug, Timestamp, UserId},
    http::{ApiResponse, Call, Error, NoQuery, Revealed, Route, Write},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// From this percentage of a budget on, tokens get the minimum lifetime, because their holders can
/// spend the rest of the budget.
const NEARLY_SPENT: u128 = 95;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    user_id: Option<UserId>,
    /// Lifetime of the token in seconds; 900 by default.
    #[schema(value_type = Option<u32>, minimum = 60, maximum = 3600)]
    ttl_seconds: Option<Ttl>,
}

/// A lifetime of 60 to 3600 seconds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u64")]
pub struct Ttl(u32);

impl TryFrom<u64> for Ttl {
    type Error = Invalid;

    fn try_from(seconds: u64) -> Result<Self, Invalid> {
        let seconds = u32::try_from(seconds).ok().filter(|seconds| (TTL_MIN..=TTL_MAX).contains(seconds));
        seconds.map(Self).ok_or(Invalid::new("must be 60 to 3600 seconds"))
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    token: Revealed,
    expires_at: Timestamp,
    expires_in: u32,
    project: ProjectRef,
    sub: Option<UserId>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ProjectRef {
    id: Id,
    slug: Slug,
}

#[derive(Debug)]
pub struct SessionTokensCreate;

impl Route for SessionTokensCreate {
    const NAME: &'static str = "session-tokens-create";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::SessionSigning)];
    const STATUS: u16 = 201;
    const BODY_MAY_BE_EMPTY: bool = true;
    type Access = Write;
    /// Optional, because the budget check precedes the check of the slug.
    type Path = Option<Slug>;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let caller = &call.caller;
        let project = async {
            match &call.path {
                Some(slug) => app.store.project(caller.organization_id, slug).await,
                None => Ok(None),
            }
        };
        // The gateway's verdict may be seconds old and the token lives much longer, so the caller
        // must still be authorized.
        let (valid, project) = tokio::join!(call.reauthorize_to_spend(app), project);
        let valid = valid?;
        if let BudgetVerdict::Exhausted(exhausted) = valid.budget {
            return Err(Error::budget_exhausted(exhausted, call.now));
        }
        let project = project?.ok_or(Error::NotFound)?;

        let max_ttl = if valid.spending.percent() < NEARLY_SPENT { TTL_MAX } else { TTL_MIN };
        let expires_in = call.body.ttl_seconds.map_or(TTL_DEFAULT, |ttl| ttl.0).min(max_ttl);
        let iat = call.now.as_seconds();
        let claims = SessionClaims {
            org_id: caller.organization_id,
            org_slug: caller.principal.organization_slug.clone(),
            project_id: project.id,
            project_slug: project.slug.as_str().to_owned(),
            scope: SessionScope::Session,
            budget_ok: true,
            iat,
            exp: iat + i64::from(expires_in),
            jti: token_id(app),
            akid: caller.api_key_id,
            sub: call.body.user_id.as_ref().map(|user| user.as_str().to_owned()),
        };
        let token = auth::mint(&*app.secrets.ring(Ring::SessionSigning).await?, &claims);
        ApiResponse::created(&Output {
            token: Revealed::new(token.expose()),
            expires_at: Timestamp::from_millis(claims.exp * 1_000).unwrap_or(call.now),
            expires_in,
            project: ProjectRef { id: project.id, slug: project.slug },
            sub: call.body.user_id.clone(),
        })
    }
}

/// Returns 32 random hexadecimal digits.
fn token_id(app: &App) -> String {
    let mut random = [0; 16];
    app.entropy.fill(&mut random);
    format!("{:032x}", u128::from_be_bytes(random))
}

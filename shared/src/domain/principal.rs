use serde::Serialize;
use utoipa::ToSchema;

use super::{Id, Scope, ScopeSet};

/// The kind of credential that was presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalKind {
    ApiKey,
    Session,
}

/// The authenticated caller of an API key or a session token. All fields are present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Principal {
    pub kind: PrincipalKind,
    pub organization_id: Id,
    pub organization_slug: String,
    /// Empty for a session token.
    #[schema(value_type = Vec<Scope>)]
    pub scopes: ScopeSet,
    /// The key itself, or the key that minted the session token.
    pub api_key_id: Id,
    /// The key's first 14 characters; `null` for a session token.
    pub api_key_prefix: Option<String>,
    /// The only project of a session token; `null` for an API key, which can use all projects.
    pub project_id: Option<Id>,
    pub project_slug: Option<String>,
    /// The end user that the session token was minted for.
    pub sub: Option<String>,
    pub budget_ok: bool,
    pub budget_reason: Option<String>,
}

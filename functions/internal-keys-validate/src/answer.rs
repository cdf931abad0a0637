//! The response of `keys/validate`.

use karta_shared::{
    auth::{Invalidity, StepResult, ValidKey},
    domain::{Id, Metadata, Name, ScopeSet, Slug, Timestamp},
};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Output {
    pub(crate) valid: bool,
    #[serde(flatten)]
    pub(crate) key: Option<KeyDetails>,
    /// Why the key is not valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<Code>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trace: Option<Vec<Explained>>,
}

#[derive(Debug, Serialize)]
pub struct KeyDetails {
    organization_id: Id,
    organization_slug: Slug,
    api_key_id: Id,
    scopes: ScopeSet,
    budget_ok: bool,
    budget_reason: Option<String>,
    transcript_access: bool,
    name: Name,
    metadata: Metadata,
    expires_at: Option<Timestamp>,
}

/// Codes other than `not_found` are returned only to the holder of the key's plaintext.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    NotFound,
    Revoked,
    Expired,
    AddressNotAllowed,
}

#[derive(Debug, Serialize)]
pub struct Explained {
    step: &'static str,
    passed: bool,
}

impl From<Invalidity> for Code {
    fn from(why: Invalidity) -> Self {
        match why {
            Invalidity::Shape | Invalidity::Tag | Invalidity::Unproven => Self::NotFound,
            Invalidity::Revoked => Self::Revoked,
            Invalidity::Expired => Self::Expired,
        }
    }
}

pub(crate) fn details(valid: ValidKey) -> KeyDetails {
    KeyDetails {
        organization_id: valid.organization.id,
        organization_slug: valid.organization.slug,
        api_key_id: valid.api_key.id,
        scopes: valid.api_key.scopes,
        budget_ok: valid.budget.is_ok(),
        budget_reason: valid.budget.reason(),
        transcript_access: valid.organization.transcript_access,
        name: valid.api_key.name,
        metadata: valid.api_key.metadata,
        expires_at: valid.api_key.expires_at,
    }
}

pub(crate) fn explain_step(result: StepResult) -> Explained {
    Explained { step: result.step.as_str(), passed: result.passed }
}

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::{
    auth::{SessionClaims, ValidKey},
    domain::{AllowedCidrs, BudgetVerdict, Id, Principal, PrincipalKind, ScopeSet, Spending},
    store::KeyState,
};

/// The authorizer's result, as API Gateway passes it to functions in the request context: flat
/// strings, without entries for missing values. Besides the Principal it carries the allowed
/// addresses, which every request is checked against, and the key's name for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizerContext {
    pub principal: Principal,
    pub api_key_name: Option<String>,
    /// The lineage that usage is counted under: of the API key, or of the key that minted the
    /// session token if the authorizer read that key.
    pub lineage_id: Option<Id>,
    /// The id of a session token, if the authorizer read its minting key.
    pub jti: Option<String>,
    pub allowed_cidrs: AllowedCidrs,
}

/// The context was not written by this code. The request gets the 401 of a request without a
/// credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextError;

impl AuthorizerContext {
    pub fn api_key(valid: &ValidKey) -> Self {
        Self {
            principal: valid.principal(),
            api_key_name: Some(valid.api_key.name.as_str().to_owned()),
            lineage_id: Some(valid.api_key.lineage_id),
            jti: None,
            allowed_cidrs: valid.api_key.allowed_cidrs.clone(),
        }
    }

    /// A session token whose minting key was not read.
    pub fn session(claims: SessionClaims) -> Self {
        Self {
            principal: Principal {
                kind: PrincipalKind::Session,
                organization_id: claims.org_id,
                organization_slug: claims.org_slug,
                scopes: ScopeSet::NONE,
                api_key_id: claims.akid,
                api_key_prefix: None,
                project_id: Some(claims.project_id),
                project_slug: Some(claims.project_slug),
                sub: claims.sub,
                budget_ok: claims.budget_ok,
                budget_reason: None,
            },
            api_key_name: None,
            lineage_id: None,
            jti: None,
            allowed_cidrs: AllowedCidrs::default(),
        }
    }

    /// A session token whose minting key and organization were read. The key's allowed addresses do
    /// not apply to its tokens. The budget verdict is that of the subscription; caps are checked
    /// where usage is reserved.
    pub fn session_of(claims: SessionClaims, minted_by: &KeyState) -> Self {
        let KeyState { organization, api_key } = minted_by;
        let jti = Some(claims.jti.clone()).filter(|jti| !jti.is_empty());
        let budget = BudgetVerdict::new(organization.subscription_status, &Spending::default());
        let mut caller = Self::session(claims);
        caller.principal.budget_ok = budget.is_ok();
        caller.principal.budget_reason = budget.reason();
        Self {
            api_key_name: Some(api_key.name.as_str().to_owned()),
            lineage_id: Some(api_key.lineage_id),
            jti,
            ..caller
        }
    }

    pub fn to_context(&self) -> BTreeMap<&'static str, String> {
        let principal = &self.principal;
        let kind = match principal.kind {
            PrincipalKind::ApiKey => "api_key",
            PrincipalKind::Session => "session",
        };
        let entries = [
            ("kind", Some(kind.to_owned())),
            ("organization_id", Some(principal.organization_id.to_string())),
            ("organization_slug", Some(principal.organization_slug.clone())),
            ("scopes", Some(or_none(principal.scopes.to_string()))),
            ("api_key_id", Some(principal.api_key_id.to_string())),
            ("api_key_prefix", principal.api_key_prefix.clone()),
            ("api_key_name", self.api_key_name.clone()),
            ("counted_as", self.lineage_id.map(|id| id.to_string())),
            ("project_id", principal.project_id.map(|id| id.to_string())),
            ("project_slug", principal.project_slug.clone()),
            ("sub", principal.sub.clone()),
            ("jti", self.jti.clone()),
            ("budget_ok", Some(principal.budget_ok.to_string())),
            ("budget_reason", principal.budget_reason.clone()),
            ("allowed_cidrs", Some(or_none(self.allowed_cidrs.to_words()))),
        ];
        entries.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Parses the context strictly and skips fields that API Gateway adds. An empty value is
    /// rejected, because empty `allowed_cidrs` would mean no restriction.
    pub fn from_context(context: &HashMap<String, Value>) -> Result<Self, ContextError> {
        let text = |name: &str| match context.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.as_str())),
            Some(_) => Err(ContextError),
        };
        let required = |name: &str| text(name)?.ok_or(ContextError);
        let words = |name: &str| Ok(Some(required(name)?).filter(|words| *words != NONE).unwrap_or_default());
        let owned = |name: &str| Ok(text(name)?.map(ToOwned::to_owned));
        let id = |name: &str| Id::parse(required(name)?).ok_or(ContextError);
        let kind = match required("kind")? {
            "api_key" => PrincipalKind::ApiKey,
            "session" => PrincipalKind::Session,
            _ => return Err(ContextError),
        };
        let principal = Principal {
            kind,
            organization_id: id("organization_id")?,
            organization_slug: required("organization_slug")?.to_owned(),
            scopes: ScopeSet::from_words(words("scopes")?).ok_or(ContextError)?,
            api_key_id: id("api_key_id")?,
            api_key_prefix: owned("api_key_prefix")?,
            project_id: text("project_id")?.map(|text| Id::parse(text).ok_or(ContextError)).transpose()?,
            project_slug: owned("project_slug")?,
            sub: owned("sub")?,
            budget_ok: required("budget_ok")?.parse().map_err(|_| ContextError)?,
            budget_reason: owned("budget_reason")?,
        };
        let lineage_id = text("counted_as")?.map(|text| Id::parse(text).ok_or(ContextError)).transpose()?;
        let jti = owned("jti")?;
        match (kind, principal.project_id, &principal.project_slug, lineage_id, &jti) {
            (PrincipalKind::ApiKey, None, None, Some(_), None)
            | (PrincipalKind::Session, Some(_), Some(_), None, None)
            | (PrincipalKind::Session, Some(_), Some(_), Some(_), _) => {}
            _ => return Err(ContextError),
        }
        Ok(Self {
            principal,
            api_key_name: owned("api_key_name")?,
            lineage_id,
            jti,
            allowed_cidrs: AllowedCidrs::from_words(words("allowed_cidrs")?).ok_or(ContextError)?,
        })
    }
}

/// Represents an empty list, because a gateway may drop empty strings.
const NONE: &str = "none";

fn or_none(words: String) -> String {
    if words.is_empty() { NONE.to_owned() } else { words }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Scope;

    fn caller() -> AuthorizerContext {
        AuthorizerContext {
            principal: Principal {
                kind: PrincipalKind::ApiKey,
                organization_id: Id::new(7).unwrap(),
                organization_slug: "acme".to_owned(),
                scopes: [Scope::Read, Scope::Admin].into_iter().collect(),
                api_key_id: Id::new(8).unwrap(),
                api_key_prefix: Some("kt_live_AbC123".to_owned()),
                project_id: None,
                project_slug: None,
                sub: None,
                budget_ok: false,
                budget_reason: Some("subscription past_due".to_owned()),
            },
            lineage_id: Id::new(8),
            jti: None,
            api_key_name: Some("ci \"1\" é".to_owned()),
            allowed_cidrs: AllowedCidrs::from_words("10.0.0.0/8 2001:db8::/32").unwrap(),
        }
    }

    fn context(caller: &AuthorizerContext) -> HashMap<String, Value> {
        caller.to_context().into_iter().map(|(name, text)| (name.to_owned(), Value::String(text))).collect()
    }

    #[test]
    fn context_round_trips() {
        let mut context = context(&caller());
        context.insert("principalId".to_owned(), "x".into());
        context.insert("integrationLatency".to_owned(), 12.into());
        assert_eq!(AuthorizerContext::from_context(&context), Ok(caller()));
    }

    fn session() -> AuthorizerContext {
        let api_key = caller();
        AuthorizerContext {
            principal: Principal {
                kind: PrincipalKind::Session,
                scopes: ScopeSet::NONE,
                api_key_prefix: None,
                project_id: Id::new(9),
                project_slug: Some("site".to_owned()),
                ..api_key.principal
            },
            jti: Some("0190".to_owned()),
            allowed_cidrs: AllowedCidrs::default(),
            ..api_key
        }
    }

    #[test]
    fn session_context_round_trips_with_and_without_lineage() {
        let read = session();
        let unread = AuthorizerContext { lineage_id: None, jti: None, api_key_name: None, ..session() };
        for caller in [read, unread] {
            assert_eq!(AuthorizerContext::from_context(&context(&caller)), Ok(caller));
        }
    }

    #[test]
    fn token_id_requires_the_minting_keys_lineage() {
        for caller in [
            AuthorizerContext { lineage_id: None, ..session() },
            AuthorizerContext { jti: Some("0190".to_owned()), ..caller() },
        ] {
            assert_eq!(AuthorizerContext::from_context(&context(&caller)), Err(ContextError));
        }
    }

    #[test]
    fn context_has_no_empty_values() {
        let mut caller = caller();
        caller.principal.scopes = ScopeSet::NONE;
        caller.allowed_cidrs = AllowedCidrs::default();
        assert!(caller.to_context().values().all(|value| !value.is_empty()));
        assert_eq!(AuthorizerContext::from_context(&context(&caller)), Ok(caller));
    }

    #[test]
    fn missing_or_invalid_field_is_bad_context() {
        for field in
            ["kind", "organization_id", "organization_slug", "scopes", "api_key_id", "budget_ok", "allowed_cidrs"]
        {
            let mut incomplete = context(&caller());
            incomplete.remove(field);
            assert_eq!(AuthorizerContext::from_context(&incomplete), Err(ContextError), "without {field}");
        }
        for (field, value) in [
            ("kind".to_owned(), Value::from("service")),
            ("kind".to_owned(), Value::from("session")),
            ("organization_id".to_owned(), Value::from(7)),
            ("organization_id".to_owned(), Value::from("0")),
            ("scopes".to_owned(), Value::from("root")),
            ("budget_ok".to_owned(), Value::from("yes")),
            ("project_id".to_owned(), Value::from("9")),
            ("allowed_cidrs".to_owned(), Value::from("everywhere")),
            ("sub".to_owned(), Value::Null),
        ]
        .into_iter()
        .chain(context(&caller()).into_keys().flat_map(|name| [(name.clone(), Value::from("")), (name, Value::Null)]))
        .chain(["", " ", "\t", " none", "none none"].map(|blank| ("allowed_cidrs".to_owned(), Value::from(blank))))
        .chain(["", " ", "none none"].map(|blank| ("scopes".to_owned(), Value::from(blank))))
        {
            let mut changed = context(&caller());
            changed.insert(field.clone(), value.clone());
            assert_eq!(AuthorizerContext::from_context(&changed), Err(ContextError), "{field} = {value}");
        }
    }
}

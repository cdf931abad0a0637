//! How resources look in answers, where that is not how they are kept.

use serde::Serialize;

use crate::domain::{
    AllowedCidrs, ApiKey, AuditEvent, Budget, Chain, EndpointUrl, Id, KeyStatus, Metadata, ModelId, Name, Organization,
    Plan, Prefix, ScopeSet, Slug, StripeCustomerId, SubscriptionStatus, Timestamp,
};

/// The contract's ApiKey: every field always there.
#[derive(Debug, Clone, Serialize)]
pub struct ApiKeyResource {
    pub id: Id,
    pub name: Name,
    pub prefix: Prefix,
    pub scopes: ScopeSet,
    /// Derived from the clock, so it is not kept.
    pub status: KeyStatus,
    pub created_at: Timestamp,
    /// The id of the API key that created this one; `null` for an organization's first.
    pub created_by: Option<Id>,
    pub last_used_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    /// The id of the successor after a rotation.
    pub replaced_by: Option<Id>,
    pub allowed_cidrs: AllowedCidrs,
    pub budget: Option<Budget>,
    pub metadata: Metadata,
}

impl ApiKeyResource {
    pub fn of(key: ApiKey, now: Timestamp) -> Self {
        Self {
            status: key.status(now),
            id: key.id,
            name: key.name,
            prefix: key.prefix,
            scopes: key.scopes,
            created_at: key.created_at,
            created_by: key.created_by,
            last_used_at: key.last_used_at,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            replaced_by: key.replaced_by,
            allowed_cidrs: key.allowed_cidrs,
            budget: key.budget,
            metadata: key.metadata,
        }
    }
}

/// The contract's Organization: every field always there.
#[derive(Debug, Clone, Serialize)]
pub struct OrganizationResource {
    pub id: Id,
    pub slug: Slug,
    pub name: Name,
    pub plan: Plan,
    pub subscription_status: SubscriptionStatus,
    pub transcript_access: bool,
    pub stripe_customer_id: Option<StripeCustomerId>,
    pub model_id: Option<ModelId>,
    pub endpoint_url: Option<EndpointUrl>,
    pub created_at: Timestamp,
}

impl From<Organization> for OrganizationResource {
    fn from(organization: Organization) -> Self {
        Self {
            id: organization.id,
            slug: organization.slug,
            name: organization.name,
            plan: organization.plan,
            subscription_status: organization.subscription_status,
            transcript_access: organization.transcript_access,
            stripe_customer_id: organization.stripe_customer_id,
            model_id: organization.model_id,
            endpoint_url: organization.endpoint_url,
            created_at: organization.created_at,
        }
    }
}

/// The contract's `AuditEvent`: every field always there.
#[derive(Debug, Clone, Serialize)]
pub struct AuditEventResource {
    #[serde(flatten)]
    pub event: AuditEvent,
    /// Whether it is chained yet, and verifies.
    pub chain: Chain,
}

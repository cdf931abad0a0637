//! Forms of resources in responses, where they differ from the stored form. To add a resource, add
//! its type here with a constructor from the stored one.

use std::{cmp::Reverse, collections::BTreeMap};

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::{
    AlertPercents, AllowedCidrs, ApiKey, ArtifactUrl, Attempt, AuditEvent, Budget, BudgetVerdict, BuildKind, Cap,
    CapKind, Chain, CommitSha, Delivery, DeliveryStatus, DisabledReason, EndpointUrl, EventType, EventTypes,
    FailureStreak, Id, ImageRef, KeyStatus, Metadata, ModelId, ModelKey, Month, MonthUsage, Name, Organization,
    OutboundUrl, Plan, Prefix, Project, Provider, Release, ReleaseStatus, Scope, ScopeSet, Slug, StripeCustomerId,
    SubscriptionStatus, Tally, Timestamp, Version, WebhookEndpoint, public_event_id,
};

/// An API key. Every field is present.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ApiKey)]
pub struct ApiKeyResource {
    pub id: Id,
    pub name: Name,
    pub prefix: Prefix,
    pub scopes: ScopeSet,
    /// Derived from the current time, not stored.
    pub status: KeyStatus,
    pub created_at: Timestamp,
    /// Id of the API key that created this one; `null` for an organization's first key.
    pub created_by: Option<Id>,
    pub last_used_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    /// Id of the successor after a rotation.
    pub replaced_by: Option<Id>,
    pub allowed_cidrs: AllowedCidrs,
    #[schema(value_type = Option<BudgetResource>)]
    pub budget: Option<Budget>,
    pub metadata: Metadata,
}

impl ApiKeyResource {
    pub fn new(key: ApiKey, now: Timestamp) -> Self {
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

/// A project. Every field is present.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Project)]
pub struct AgentProjectResource {
    pub id: Id,
    pub slug: Slug,
    pub name: Name,
    pub current_version: Option<Version>,
    pub model_id: Option<ModelId>,
    pub endpoint_url: Option<EndpointUrl>,
    pub created_at: Timestamp,
}

impl From<Project> for AgentProjectResource {
    fn from(project: Project) -> Self {
        Self {
            id: project.id,
            slug: project.slug,
            name: project.name,
            current_version: project.current_version,
            model_id: project.model_id,
            endpoint_url: project.endpoint_url,
            created_at: project.created_at,
        }
    }
}

/// A release. Every field is present.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Release)]
pub struct ReleaseResource {
    pub id: Id,
    pub project_id: Id,
    pub version: Version,
    pub commit_sha: CommitSha,
    pub artifact_url: Option<ArtifactUrl>,
    /// Derived from the project's active release, not stored.
    pub status: ReleaseStatus,
    pub build_kind: Option<BuildKind>,
    pub image_ref: Option<ImageRef>,
    pub created_at: Timestamp,
    /// Time of the last activation.
    pub activated_at: Option<Timestamp>,
}

impl ReleaseResource {
    /// `current` is the version of the project's active release.
    pub fn new(release: Release, current: Option<Version>) -> Self {
        Self {
            status: release.status(current),
            build_kind: release.build_kind(),
            id: release.id,
            project_id: release.project_id,
            version: release.version,
            commit_sha: release.commit_sha,
            artifact_url: release.artifact_url,
            image_ref: release.image_ref,
            created_at: release.created_at,
            activated_at: release.activated_at,
        }
    }
}

/// A provider key. Every field is present.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ModelKey)]
pub struct ModelKeyResource {
    pub id: Id,
    pub provider: Provider,
    pub name: Option<Name>,
    pub tail: String,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

impl From<ModelKey> for ModelKeyResource {
    fn from(key: ModelKey) -> Self {
        Self {
            id: key.id,
            provider: key.provider,
            name: key.name,
            tail: key.tail,
            created_at: key.created_at,
            revoked_at: key.revoked_at,
        }
    }
}

/// A webhook endpoint. Every field is present.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = WebhookEndpoint)]
pub struct WebhookEndpointResource {
    pub id: Id,
    pub url: OutboundUrl,
    pub description: Option<Name>,
    pub event_types: EventTypes,
    pub enabled: bool,
    /// Why the endpoint is disabled.
    pub disabled_reason: Option<DisabledReason>,
    /// Failed attempts since the last success.
    pub consecutive_failures: u32,
    pub created_at: Timestamp,
}

impl WebhookEndpointResource {
    /// Creates the view for a caller with these scopes. The URL's query needs scope `admin`,
    /// because receivers put keys there.
    pub fn new(endpoint: WebhookEndpoint, failing: FailureStreak, scopes: ScopeSet) -> Self {
        Self {
            enabled: endpoint.is_enabled(),
            id: endpoint.id,
            url: if scopes.contains(Scope::Admin) { endpoint.url } else { endpoint.url.without_query() },
            description: endpoint.description,
            event_types: endpoint.event_types,
            disabled_reason: endpoint.disabled_reason,
            consecutive_failures: failing.count,
            created_at: endpoint.created_at,
        }
    }
}

/// One event for one endpoint. Every field is present.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryResource {
    pub id: Id,
    /// `evt_<number>`, the `webhook-id` of every attempt.
    pub event_id: String,
    pub event_type: EventType,
    pub status: DeliveryStatus,
    /// Oldest first. Response bodies are shown only to keys with scope `admin`.
    pub attempts: Vec<Attempt>,
    pub next_attempt_at: Option<Timestamp>,
}

impl DeliveryResource {
    pub fn new(delivery: Delivery, scopes: ScopeSet) -> Self {
        let mut attempts = delivery.attempts;
        if !scopes.contains(Scope::Admin) {
            for attempt in &mut attempts {
                attempt.response_body = None;
            }
        }
        Self {
            id: delivery.id,
            event_id: public_event_id(delivery.id),
            event_type: delivery.event_type,
            status: delivery.status,
            attempts,
            next_attempt_at: delivery.next_attempt_at,
        }
    }
}

/// An organization. Every field is present.
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

/// An event of the audit log. Every field is present.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = AuditEvent)]
pub struct AuditEventResource {
    #[serde(flatten)]
    pub event: AuditEvent,
    /// Whether the event is in the audit chain and verifies.
    pub chain: Chain,
}

/// Caps per UTC month; `null` means no cap.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Budget)]
pub struct BudgetResource {
    input_tokens: Option<Cap>,
    output_tokens: Option<Cap>,
    total_tokens: Option<Cap>,
    cost_cents: Option<Cap>,
    alert_percents: AlertPercents,
}

impl From<Option<Budget>> for BudgetResource {
    fn from(budget: Option<Budget>) -> Self {
        let budget = budget.unwrap_or_default();
        Self {
            input_tokens: budget.input_tokens,
            output_tokens: budget.output_tokens,
            total_tokens: budget.total_tokens,
            cost_cents: budget.cost_cents,
            alert_percents: budget.alert_percents,
        }
    }
}

/// The usage of a month: totals, parts, and the budget that applies.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Usage)]
pub struct UsageResource {
    pub period: Month,
    pub totals: TallyResource,
    /// Highest cost first.
    pub by_model: Vec<ModelUsage>,
    /// Days with usage, in ascending order.
    pub by_day: Vec<DayUsage>,
    /// Models without a price, most tokens first. No cost cap counts their tokens.
    pub unpriced: Vec<UnpricedUsage>,
    pub budget: BudgetState,
}

/// Tokens of a model without a price.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UnpricedUsage {
    /// `unspecified` if the usage events named no model.
    pub model: String,
    pub tokens: u128,
}

impl UnpricedUsage {
    /// Lists the tokens of each model, most tokens first.
    pub fn list(tokens_of: &BTreeMap<String, u128>) -> Vec<Self> {
        let mut list: Vec<_> =
            tokens_of.iter().map(|(model, tokens)| Self { model: model.clone(), tokens: *tokens }).collect();
        list.sort_by_key(|unpriced| Reverse(unpriced.tokens));
        list
    }
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Tally)]
pub struct TallyResource {
    /// Input without the tokens of the prompt cache.
    pub input_tokens: u128,
    pub output_tokens: u128,
    /// Input that the provider read from its prompt cache.
    pub cache_read_tokens: u128,
    /// Input that the provider wrote to its prompt cache.
    pub cache_write_tokens: u128,
    /// The sum of the four kinds.
    pub total_tokens: u128,
    /// Rounded up separately in every tally, so parts may add up to more than the total.
    pub cost_cents: u128,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelUsage {
    pub model: String,
    #[serde(flatten)]
    pub used: TallyResource,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DayUsage {
    /// `2026-11-21`
    pub date: String,
    #[serde(flatten)]
    pub used: TallyResource,
}

/// Caps, the spent share of each in whole percents (rounded down), and whether more may be spent.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BudgetState {
    #[serde(flatten)]
    pub caps: BudgetResource,
    pub spent_percent: SpentPercent,
    pub ok: bool,
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct SpentPercent {
    pub input_tokens: Option<u128>,
    pub output_tokens: Option<u128>,
    pub total_tokens: Option<u128>,
    pub cost_cents: Option<u128>,
}

impl UsageResource {
    pub fn new(period: Month, usage: &MonthUsage, budget: Option<Budget>, verdict: &BudgetVerdict) -> Self {
        let mut by_model: Vec<_> = usage.by_model.iter().collect();
        by_model.sort_by_key(|(_, used)| Reverse((used.cost, used.total_tokens())));
        let model = |(model, tally): (&String, &Tally)| ModelUsage { model: model.clone(), used: tally.into() };
        let day = |(day, tally): (&u8, &Tally)| DayUsage { date: format!("{period}-{day:02}"), used: tally.into() };
        Self {
            period,
            totals: (&usage.totals).into(),
            by_model: by_model.into_iter().map(model).collect(),
            by_day: usage.by_day.iter().map(day).collect(),
            unpriced: UnpricedUsage::list(&usage.unpriced),
            budget: BudgetState {
                spent_percent: SpentPercent::new(budget.as_ref(), &usage.totals),
                caps: budget.into(),
                ok: verdict.is_ok(),
                reason: verdict.reason(),
            },
        }
    }
}

impl From<&Tally> for TallyResource {
    fn from(tally: &Tally) -> Self {
        Self {
            input_tokens: tally.input_tokens,
            output_tokens: tally.output_tokens,
            cache_read_tokens: tally.cache_read_tokens,
            cache_write_tokens: tally.cache_write_tokens,
            total_tokens: tally.total_tokens(),
            cost_cents: tally.cost_cents(),
        }
    }
}

impl SpentPercent {
    fn new(budget: Option<&Budget>, spent: &Tally) -> Self {
        let mut percents = Self::default();
        for (kind, cap, spent) in budget.into_iter().flat_map(|budget| budget.caps(spent)) {
            let field = match kind {
                CapKind::InputTokens => &mut percents.input_tokens,
                CapKind::OutputTokens => &mut percents.output_tokens,
                CapKind::TotalTokens => &mut percents.total_tokens,
                CapKind::CostCents => &mut percents.cost_cents,
            };
            *field = Some(cap.percent(spent));
        }
        percents
    }
}

use serde::{Deserialize, Serialize};

use super::{Id, Name, Slug, Timestamp};

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    pub id: Id,
    pub slug: Slug,
    pub name: Name,
    pub plan: Plan,
    pub subscription_status: SubscriptionStatus,
    pub created_at: Timestamp,
}

impl Organization {
    /// A new tenant where no billing is configured: plan `free`, status `active`.
    pub fn new(id: Id, slug: Slug, name: Name, now: Timestamp) -> Self {
        Self { id, slug, name, plan: Plan::free(), subscription_status: SubscriptionStatus::Active, created_at: now }
    }
}

/// What the tenant bought, by the operator's own name for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan(Name);

impl Plan {
    fn free() -> Self {
        Self(Name::try_from("free".to_owned()).expect("a plan's name"))
    }
}

/// Stripe's states of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionStatus {
    Trialing,
    Active,
    PastDue,
    Unpaid,
    Canceled,
    Incomplete,
    IncompleteExpired,
    Paused,
}

impl SubscriptionStatus {
    pub const fn allows_spending(self) -> bool {
        matches!(self, Self::Trialing | Self::Active)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trialing => "trialing",
            Self::Active => "active",
            Self::PastDue => "past_due",
            Self::Unpaid => "unpaid",
            Self::Canceled => "canceled",
            Self::Incomplete => "incomplete",
            Self::IncompleteExpired => "incomplete_expired",
            Self::Paused => "paused",
        }
    }
}

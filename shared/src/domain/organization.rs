use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Change, Changes, DroppedSubscriptions, EndpointUrl, Id, Invalid, ModelChoice, Name, Slug, Subscription,
    SubscriptionBefore, Timestamp, Value, invisible::holds_invisible, name::CheckedText, subscription::record,
};

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    pub id: Id,
    pub slug: Slug,
    pub name: Name,
    pub plan: Plan,
    pub subscription_status: SubscriptionStatus,
    /// Whether the operator may read the conversations of the organization's end users.
    pub transcript_access: bool,
    /// Unique among organizations: an event from Stripe finds its organization by this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripe_customer_id: Option<StripeCustomerId>,
    /// The customer's subscriptions, by precedence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<Subscription>,
    /// Bounds of the ended subscriptions that were dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped_subscriptions: Option<DroppedSubscriptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<ModelId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_url: Option<EndpointUrl>,
    /// When `endpoint_url` was last changed; `None` if it never was, or before Karta stored it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_url_set_at: Option<Timestamp>,
    pub created_at: Timestamp,
    /// Counts changes: a write that depends on a read is conditional on it.
    pub version: u64,
}

/// `None` keeps the current value.
#[derive(Debug, Clone, Default)]
pub struct OrganizationPatch {
    pub plan: Option<Plan>,
    pub subscription_status: Option<SubscriptionStatus>,
    pub transcript_access: Option<bool>,
    pub stripe_customer_id: Option<Option<StripeCustomerId>>,
    pub model_id: Option<Option<ModelId>>,
    pub endpoint_url: Option<Option<EndpointUrl>>,
}

impl Organization {
    /// Creates an organization without billing: plan `free`, status `active`.
    pub fn new(id: Id, slug: Slug, name: Name, now: Timestamp) -> Self {
        Self {
            id,
            slug,
            name,
            plan: Plan::default(),
            subscription_status: SubscriptionStatus::Active,
            transcript_access: false,
            stripe_customer_id: None,
            subscriptions: Vec::new(),
            dropped_subscriptions: None,
            model_id: None,
            endpoint_url: None,
            endpoint_url_set_at: None,
            created_at: now,
            version: 1,
        }
    }

    /// Returns the changes by field.
    pub fn apply(&mut self, patch: OrganizationPatch, now: Timestamp) -> Changes {
        let before = self.clone();
        let OrganizationPatch {
            plan,
            subscription_status,
            transcript_access,
            stripe_customer_id,
            model_id,
            endpoint_url,
        } = patch;
        self.plan = plan.unwrap_or(self.plan.clone());
        self.subscription_status = subscription_status.unwrap_or(self.subscription_status);
        self.transcript_access = transcript_access.unwrap_or(self.transcript_access);
        self.stripe_customer_id = stripe_customer_id.unwrap_or(self.stripe_customer_id.take());
        self.model_id = model_id.unwrap_or(self.model_id.take());
        self.endpoint_url = endpoint_url.unwrap_or(self.endpoint_url.take());
        if !EndpointUrl::is_same_target(before.endpoint_url.as_ref(), self.endpoint_url.as_ref()) {
            self.endpoint_url_set_at = Some(now);
        }
        if before.stripe_customer_id != self.stripe_customer_id {
            self.subscriptions.clear();
            self.dropped_subscriptions = None;
        }
        let changes = before.changes_to(self);
        if !changes.is_empty() {
            self.version += 1;
        }
        changes
    }

    /// Applies an event about a subscription. Does nothing and returns `None` if a newer event is
    /// known. Plan and status follow the first subscription whenever an event changes it.
    pub fn apply_subscription(&mut self, reported: Subscription, changed: &SubscriptionBefore) -> Option<Changes> {
        let before = self.clone();
        if !record(&mut self.subscriptions, &mut self.dropped_subscriptions, reported, changed) {
            return None;
        }
        if let Some(first) = self.subscriptions.first().cloned()
            && before.subscriptions.first() != Some(&first)
        {
            self.subscription_status = first.status;
            self.plan = first.plan.unwrap_or(self.plan.clone());
        }
        self.version += 1;
        Some(before.changes_to(self))
    }

    fn changes_to(&self, after: &Self) -> Changes {
        let fields = self.audited().into_iter().zip(after.audited());
        let changed = fields.filter(|((_, before), (_, after))| before != after);
        changed.map(|((field, before), (_, after))| (field.to_owned(), Change { before, after })).collect()
    }

    /// Returns the settings as the audit event of the creation shows them.
    pub fn creation(&self) -> Changes {
        let chosen = [
            ("slug", self.slug.as_str()),
            ("name", self.name.as_str()),
            ("plan", self.plan.as_str()),
            ("subscription_status", self.subscription_status.as_str()),
        ];
        chosen.map(|(field, after)| (field.to_owned(), Change { before: Value::Null, after: after.into() })).into()
    }

    fn audited(&self) -> [(&'static str, Value); 9] {
        let subscription = self.subscriptions.first();
        [
            ("plan", self.plan.as_str().into()),
            ("subscription_status", self.subscription_status.as_str().into()),
            ("transcript_access", self.transcript_access.into()),
            ("stripe_customer_id", self.stripe_customer_id.as_ref().map(StripeCustomerId::as_str).into()),
            ("model_id", self.model_id.as_ref().map(ModelId::as_str).into()),
            ("endpoint_url", self.endpoint_url.as_ref().map(EndpointUrl::as_str).into()),
            ("subscription_id", subscription.map(|subscription| subscription.id.as_str()).into()),
            ("current_period_end", subscription.and_then(|subscription| subscription.current_period_end).into()),
            ("cancel_at_period_end", subscription.is_some_and(|subscription| subscription.cancel_at_period_end).into()),
        ]
    }
}

/// The operator's name for the organization's plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan(Name);

impl Plan {
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl TryFrom<String> for Plan {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        Name::try_from(text).map(Self)
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self(Name::try_from("free".to_owned()).expect("\"free\" is a valid name"))
    }
}

/// A customer's id at Stripe: `cus_` and letters and digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct StripeCustomerId(String);

impl StripeCustomerId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for StripeCustomerId {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let rest = text.strip_prefix("cus_").unwrap_or_default();
        if (1..=251).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            Ok(Self(text))
        } else {
            Err(Invalid::new("must be a Stripe customer id such as cus_NffrFeUfNV2Hib"))
        }
    }
}

const INVALID_MODEL_ID: Invalid =
    Invalid::new("must be 1 to 128 characters without blanks, control or invisible characters");

/// The provider's name of a model: 1 to 128 visible characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CheckedText")]
pub struct ModelId(String);

impl ModelId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks a name that is to be configured. Only for input: a stored one must stay readable.
    pub fn check_input(&self) -> Result<(), Invalid> {
        if self.0 == ModelChoice::DEFAULT {
            return Err(Invalid::new("must name a model: `default` is what requests call the configured one"));
        }
        Ok(())
    }
}

impl TryFrom<String> for ModelId {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if holds_invisible(&text) { Err(INVALID_MODEL_ID) } else { CheckedText(text).try_into() }
    }
}

impl TryFrom<CheckedText> for ModelId {
    type Error = Invalid;

    fn try_from(CheckedText(text): CheckedText) -> Result<Self, Invalid> {
        let odd = |c: char| c.is_whitespace() || c.is_control();
        if (1..=128).contains(&text.chars().count()) && !text.chars().any(odd) {
            Ok(Self(text))
        } else {
            Err(INVALID_MODEL_ID)
        }
    }
}

/// The statuses of a subscription at Stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::SeededEntropy;

    fn organization() -> Organization {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let (slug, name) = (Slug::try_from("acme".to_owned()).unwrap(), Name::try_from("Acme".to_owned()).unwrap());
        Organization::new(Id::draw(now, &SeededEntropy::new(1)), slug, name, now)
    }

    #[test]
    fn patch_changes_and_reports_only_named_fields() {
        let mut organization = organization();
        let customer = StripeCustomerId::try_from("cus_1".to_owned()).unwrap();
        let patch = OrganizationPatch {
            subscription_status: Some(SubscriptionStatus::PastDue),
            stripe_customer_id: Some(Some(customer.clone())),
            ..OrganizationPatch::default()
        };
        let now = organization.created_at;
        let changes = organization.apply(patch.clone(), now);
        assert_eq!(changes.keys().collect::<Vec<_>>(), ["stripe_customer_id", "subscription_status"]);
        assert_eq!((organization.version, &organization.stripe_customer_id), (2, &Some(customer)));
        assert!(organization.apply(patch, now).is_empty());
        assert_eq!(organization.version, 2, "nothing changed");
        let changes = organization
            .apply(OrganizationPatch { stripe_customer_id: Some(None), ..OrganizationPatch::default() }, now);
        assert_eq!(changes["stripe_customer_id"], Change { before: "cus_1".into(), after: Value::Null });
    }

    #[test]
    fn new_customer_clears_dropped_subscriptions() {
        let mut organization = organization();
        let stored = serde_json::to_value(&organization).unwrap();
        assert!(stored.get("dropped_subscriptions").is_none(), "{stored}");
        assert_eq!(serde_json::from_value::<Organization>(stored).unwrap(), organization);

        let now = organization.created_at;
        organization.dropped_subscriptions = Some(DroppedSubscriptions { as_of: now, created_at: now });
        let stored = serde_json::to_value(&organization).unwrap();
        assert_eq!(serde_json::from_value::<Organization>(stored).unwrap(), organization);
        let customer = Some(Some(StripeCustomerId::try_from("cus_1".to_owned()).unwrap()));
        organization.apply(OrganizationPatch { stripe_customer_id: customer, ..OrganizationPatch::default() }, now);
        assert_eq!(organization.dropped_subscriptions, None);
    }

    #[test]
    fn plan_follows_the_rules_of_names() {
        assert!(serde_json::from_str::<Plan>("\"team\"").is_ok());
        assert!(Plan::try_from("te\u{200B}am".to_owned()).is_err());
        assert!(serde_json::from_str::<Plan>("\"te\\nam\"").is_err());
    }

    #[test]
    fn external_ids_are_parsed_strictly() {
        for text in ["", "cus_", "cus_a b", "cus_é", "cus-1", "sub_1", &format!("cus_{}", "a".repeat(252))] {
            assert!(StripeCustomerId::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert!(StripeCustomerId::try_from(format!("cus_{}", "a".repeat(251))).is_ok());
        for text in ["", " ", "a b", "a\n", "a\u{200B}", "\u{3164}", "\u{FE0F}", &"a".repeat(129)] {
            assert!(ModelId::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert!(ModelId::try_from("é".repeat(128)).is_ok());
        // Stored ids stay readable. Those of requests pass `check_text` first.
        assert!(serde_json::from_str::<ModelId>("\"a\u{FE0F}\"").is_ok());
        assert!(serde_json::from_str::<ModelId>("\"a b\"").is_err());
    }
}

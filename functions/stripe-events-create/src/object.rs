//! Stripe's objects, as far as they are read. Fields that moved between versions of its API are read in both places.

use karta_shared::domain::{
    Invalid, Plan, StripeId, Subscription, SubscriptionBefore, SubscriptionStatus, SubscriptionStep, Timestamp,
    check_text,
};
use serde::Deserialize;

/// An instant in Unix seconds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "i64")]
pub(crate) struct Seconds(Timestamp);

impl TryFrom<i64> for Seconds {
    type Error = Invalid;

    fn try_from(seconds: i64) -> Result<Self, Invalid> {
        let instant = seconds.checked_mul(1000).and_then(Timestamp::from_millis);
        instant.map(Self).ok_or(Invalid::new("must be a time in Unix seconds"))
    }
}

impl From<Seconds> for Timestamp {
    fn from(Seconds(instant): Seconds) -> Self {
        instant
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct SubscriptionObject {
    id: StripeId,
    pub(crate) customer: Option<String>,
    status: SubscriptionStatus,
    created: Seconds,
    #[serde(default)]
    cancel_at_period_end: bool,
    current_period_start: Option<Seconds>,
    current_period_end: Option<Seconds>,
    items: Option<Items>,
}

#[derive(Debug, Deserialize)]
struct Items {
    #[serde(default)]
    data: Vec<Item>,
}

#[derive(Debug, Deserialize)]
struct Item {
    price: Option<Price>,
    current_period_start: Option<Seconds>,
    current_period_end: Option<Seconds>,
}

#[derive(Debug, Deserialize)]
struct Price {
    lookup_key: Option<String>,
    nickname: Option<String>,
}

/// What an update names as changed, with the values before it.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Previous {
    status: Option<SubscriptionStatus>,
    cancel_at_period_end: Option<bool>,
    current_period_end: Option<Seconds>,
    items: Option<Items>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct InvoiceObject {
    pub(crate) id: StripeId,
    pub(crate) customer: Option<String>,
    pub(crate) currency: Option<String>,
    /// In the currency's smallest unit.
    pub(crate) amount_due: Option<i64>,
    pub(crate) amount_paid: Option<i64>,
    pub(crate) attempt_count: Option<u64>,
    pub(crate) next_payment_attempt: Option<Seconds>,
    subscription: Option<StripeId>,
    parent: Option<Parent>,
}

#[derive(Debug, Deserialize)]
struct Parent {
    subscription_details: Option<SubscriptionDetails>,
}

#[derive(Debug, Deserialize)]
struct SubscriptionDetails {
    subscription: Option<StripeId>,
}

impl Items {
    fn first(items: Option<&Self>) -> Option<&Item> {
        items.and_then(|items| items.data.first())
    }
}

impl Item {
    /// The operator's own name for what was bought: the price's lookup key, else its nickname. One that is no plan's name, or holds a credential, is passed over.
    fn plan(&self) -> Option<Plan> {
        let price = self.price.as_ref()?;
        let names = [&price.lookup_key, &price.nickname].into_iter().flatten();
        names.filter(|name| check_text(name).is_ok()).find_map(|name| name.clone().try_into().ok())
    }
}

impl SubscriptionObject {
    pub(crate) fn told(self, step: SubscriptionStep, as_of: Timestamp) -> Subscription {
        let item = Items::first(self.items.as_ref());
        let start = self.current_period_start.or(item.and_then(|item| item.current_period_start));
        let end = self.current_period_end.or(item.and_then(|item| item.current_period_end));
        Subscription {
            plan: item.and_then(Item::plan),
            id: self.id,
            created_at: self.created.into(),
            status: if step == SubscriptionStep::Deleted { SubscriptionStatus::Canceled } else { self.status },
            current_period_start: start.map(Into::into),
            current_period_end: end.map(Into::into),
            cancel_at_period_end: self.cancel_at_period_end,
            step,
            as_of,
        }
    }
}

impl Previous {
    pub(crate) fn before(self) -> SubscriptionBefore {
        let item = Items::first(self.items.as_ref());
        let end = self.current_period_end.or(item.and_then(|item| item.current_period_end));
        SubscriptionBefore {
            status: self.status,
            plan: item.and_then(Item::plan),
            current_period_end: end.map(Into::into),
            cancel_at_period_end: self.cancel_at_period_end,
        }
    }
}

impl InvoiceObject {
    pub(crate) fn subscription_id(&self) -> Option<&StripeId> {
        let details = self.parent.as_ref().and_then(|parent| parent.subscription_details.as_ref());
        self.subscription.as_ref().or(details.and_then(|details| details.subscription.as_ref()))
    }
}

//! The fields of Stripe's objects that this package reads. Fields that moved between versions of
//! Stripe's API are read in both places.

use std::{fmt, marker::PhantomData};

use karta_shared::{
    domain::{
        Invalid, Plan, StripeId, Subscription, SubscriptionBefore, SubscriptionStatus, SubscriptionStep, Timestamp,
        check_text,
    },
    http::{Error, ItemResult, RawJson},
};
use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeOwned, IntoDeserializer, MapAccess, Visitor,
        value::{MapAccessDeserializer, StrDeserializer},
    },
};

/// A time in Unix seconds.
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

/// A reference to another object: its id, or the object with its `id` if the operator lets Stripe
/// expand it.
#[derive(Debug)]
struct ObjectId<T>(T);

#[derive(Deserialize)]
struct Expanded<T> {
    id: T,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for ObjectId<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrObject<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for TextOrObject<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id or an object with an id")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
                let id: StrDeserializer<'_, E> = text.into_deserializer();
                T::deserialize(id)
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                Expanded::<T>::deserialize(MapAccessDeserializer::new(members)).map(|expanded| expanded.id)
            }
        }
        deserializer.deserialize_any(TextOrObject(PhantomData)).map(Self)
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct ObjectCustomer {
    customer: Option<ItemResult<ObjectId<String>>>,
}

impl ObjectCustomer {
    /// Returns the customer's id. `None` if it is missing or unreadable.
    pub(crate) fn id(self) -> Option<String> {
        self.customer.and_then(|ItemResult(customer)| customer.ok()).map(|ObjectId(id)| id)
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct ObjectStatus {
    status: SubscriptionStatus,
}

impl ObjectStatus {
    /// Returns the status after a step. A deleted subscription is canceled; its status is not read.
    pub(crate) fn after(step: SubscriptionStep, subscription: &RawJson) -> Result<SubscriptionStatus, Error> {
        if step == SubscriptionStep::Deleted {
            return Ok(SubscriptionStatus::Canceled);
        }
        subscription.read_below::<Self>("data.object").map(|object| object.status)
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct SubscriptionObject {
    id: StripeId,
    created: Seconds,
    cancel_at_period_end: Option<bool>,
    cancel_at: Option<Seconds>,
    current_period_start: Option<Seconds>,
    current_period_end: Option<Seconds>,
    items: Option<SubscriptionItems>,
}

#[derive(Debug, Deserialize)]
struct SubscriptionItems {
    /// An item that cannot be read counts as missing.
    #[serde(default)]
    data: Vec<ItemResult<SubscriptionItem>>,
}

#[derive(Debug, Deserialize)]
struct SubscriptionItem {
    deleted: Option<bool>,
    quantity: Option<u64>,
    price: Option<ItemPrice>,
    current_period_start: Option<Seconds>,
    current_period_end: Option<Seconds>,
}

#[derive(Debug, Deserialize)]
struct ItemPrice {
    lookup_key: Option<String>,
    nickname: Option<String>,
    recurring: Option<Recurring>,
}

#[derive(Debug, Deserialize)]
struct Recurring {
    usage_type: Option<String>,
}

/// The previous values of the fields that an update changed.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Previous {
    status: Option<SubscriptionStatus>,
    cancel_at_period_end: Option<bool>,
    /// `Some(None)` if it was not set before.
    #[serde(default, deserialize_with = "present_or_null")]
    cancel_at: Option<Option<Seconds>>,
    current_period_end: Option<Seconds>,
    items: Option<SubscriptionItems>,
}

/// Distinguishes `null` from a missing field.
fn present_or_null<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Option<Seconds>>, D::Error> {
    Option::deserialize(field).map(Some)
}

#[derive(Debug, Deserialize)]
pub(crate) struct InvoiceObject {
    pub(crate) id: StripeId,
    pub(crate) currency: Option<String>,
    /// In the currency's smallest unit.
    pub(crate) amount_due: Option<i64>,
    pub(crate) amount_paid: Option<i64>,
    pub(crate) attempt_count: Option<u64>,
    pub(crate) next_payment_attempt: Option<Seconds>,
    subscription: Option<ObjectId<StripeId>>,
    parent: Option<Parent>,
}

#[derive(Debug, Deserialize)]
struct Parent {
    subscription_details: Option<SubscriptionDetails>,
}

#[derive(Debug, Deserialize)]
struct SubscriptionDetails {
    subscription: Option<ObjectId<StripeId>>,
}

impl SubscriptionItems {
    /// Returns the main item and its plan: the first item that names a plan, or else the first item
    /// that is not deleted, without a plan.
    fn main(items: Option<&Self>) -> (Option<&SubscriptionItem>, Option<Plan>) {
        let readable =
            || items.into_iter().flat_map(|items| &items.data).filter_map(|ItemResult(item)| item.as_ref().ok());
        let live = || readable().filter(|item| item.deleted != Some(true));
        match live().find_map(|item| item.plan().map(|plan| (item, plan))) {
            Some((item, plan)) => (Some(item), Some(plan)),
            None => (live().next(), None),
        }
    }
}

impl SubscriptionItem {
    /// Returns the operator's name of the plan: the price's lookup key or, without one, its
    /// nickname. Metered prices are extras and name no plan, like an item of which the customer has
    /// none. A name that holds a credential is skipped.
    fn plan(&self) -> Option<Plan> {
        let price = self.price.as_ref().filter(|price| !price.is_metered() && self.quantity != Some(0))?;
        let names = [&price.lookup_key, &price.nickname].into_iter().flatten();
        names.filter(|name| check_text(name).is_ok()).find_map(|name| name.clone().try_into().ok())
    }
}

impl ItemPrice {
    fn is_metered(&self) -> bool {
        let usage_type = self.recurring.as_ref().and_then(|recurring| recurring.usage_type.as_deref());
        usage_type == Some("metered")
    }
}

/// Returns whether a subscription ends with its period. Stripe reports this with the flag, or with
/// a `cancel_at` at the end of the period.
fn ends_with_period(flag: bool, cancel_at: Option<Timestamp>, period_end: Option<Timestamp>) -> bool {
    flag || (cancel_at.is_some() && cancel_at == period_end)
}

impl SubscriptionObject {
    pub(crate) fn into_subscription(
        self,
        status: SubscriptionStatus,
        step: SubscriptionStep,
        as_of: Timestamp,
    ) -> Subscription {
        let (item, plan) = SubscriptionItems::main(self.items.as_ref());
        let start = self.current_period_start.or(item.and_then(|item| item.current_period_start));
        let end = self.period_end();
        let cancel_at_period_end = ends_with_period(self.flag(), self.cancel_at.map(Into::into), end);
        Subscription {
            plan,
            id: self.id,
            created_at: self.created.into(),
            status,
            current_period_start: start.map(Into::into),
            current_period_end: end,
            cancel_at_period_end,
            step,
            as_of,
        }
    }

    /// Stripe's `cancel_at_period_end`.
    fn flag(&self) -> bool {
        self.cancel_at_period_end.unwrap_or_default()
    }

    fn period_end(&self) -> Option<Timestamp> {
        let item = || SubscriptionItems::main(self.items.as_ref()).0?.current_period_end;
        self.current_period_end.or_else(item).map(Into::into)
    }
}

impl Previous {
    /// Returns the state before an update to `after`.
    pub(crate) fn before(self, after: &SubscriptionObject) -> SubscriptionBefore {
        let (item, plan) = SubscriptionItems::main(self.items.as_ref());
        let end = self.current_period_end.or(item.and_then(|item| item.current_period_end)).map(Into::into);
        let names_the_end = self.cancel_at_period_end.is_some() || self.cancel_at.is_some();
        let ended_with_period = || {
            let flag = self.cancel_at_period_end.unwrap_or(after.flag());
            let cancel_at = self.cancel_at.unwrap_or(after.cancel_at);
            ends_with_period(flag, cancel_at.map(Into::into), end.or(after.period_end()))
        };
        SubscriptionBefore {
            status: self.status,
            plan,
            current_period_end: end,
            cancel_at_period_end: names_the_end.then(ended_with_period),
        }
    }
}

impl InvoiceObject {
    pub(crate) fn subscription_id(&self) -> Option<&StripeId> {
        let details = self.parent.as_ref().and_then(|parent| parent.subscription_details.as_ref());
        let subscription = self.subscription.as_ref().or(details.and_then(|details| details.subscription.as_ref()));
        subscription.map(|ObjectId(id)| id)
    }
}

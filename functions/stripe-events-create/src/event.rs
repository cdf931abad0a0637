use karta_shared::{
    domain::{EventType, StripeCustomerId, StripeId, Subscription, SubscriptionBefore, SubscriptionStep, Timestamp},
    http::{Error, RawJson},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::object::{InvoiceObject, ObjectCustomer, ObjectStatus, Previous, Seconds, SubscriptionObject};

/// An event of a type that has an effect here. What is not read may be anything.
#[derive(Debug, Deserialize)]
pub(crate) struct StripeEvent {
    pub(crate) id: StripeId,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    created: Seconds,
    livemode: bool,
    data: Data,
}

#[derive(Debug, Deserialize)]
struct Data {
    object: RawJson,
    previous_attributes: Option<RawJson>,
}

/// What an event tells, and as what it is passed on.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) event_type: EventType,
    pub(crate) news: News,
}

#[derive(Debug)]
pub(crate) enum News {
    Subscription(Subscription, SubscriptionBefore),
    Invoice(InvoiceObject),
}

/// The types that have an effect here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StripeEventKind {
    Subscription(SubscriptionStep, EventType),
    Invoice(EventType),
}

impl StripeEventKind {
    /// Returns `None` for a type without an effect here, without reading the rest of the event: Stripe's other types have other envelopes.
    pub(crate) fn new(body: &RawJson) -> Option<Self> {
        let updated = Self::Subscription(SubscriptionStep::Updated, EventType::SubscriptionUpdated);
        Some(match body.text("type")? {
            "customer.subscription.created" => {
                Self::Subscription(SubscriptionStep::Created, EventType::SubscriptionCreated)
            }
            "customer.subscription.updated" | "customer.subscription.paused" | "customer.subscription.resumed" => {
                updated
            }
            "customer.subscription.deleted" => {
                Self::Subscription(SubscriptionStep::Deleted, EventType::SubscriptionDeleted)
            }
            "invoice.paid" => Self::Invoice(EventType::InvoicePaid),
            "invoice.payment_failed" => Self::Invoice(EventType::InvoicePaymentFailed),
            _ => return None,
        })
    }
}

impl StripeEvent {
    pub(crate) fn read(body: &RawJson) -> Result<Self, Error> {
        body.read()
    }

    /// Refuses a test's event in a live stack, and the reverse.
    pub(crate) fn admit(&self, livemode: bool) -> Result<(), Error> {
        if self.livemode == livemode {
            return Ok(());
        }
        let takes = if livemode { "live events" } else { "events of test mode" };
        Err(Error::BadRequest { code: "livemode_mismatch", message: format!("This stack takes {takes} only") })
    }

    /// Returns the customer, without reading the rest of the object. `None` if no organization can hold it.
    pub(crate) fn customer(&self) -> Result<Option<StripeCustomerId>, Error> {
        let customer: ObjectCustomer = self.data.object.read()?;
        Ok(customer.id().and_then(|id| id.try_into().ok()))
    }

    pub(crate) fn told(&self, kind: StripeEventKind) -> Result<Told, Error> {
        match kind {
            StripeEventKind::Subscription(step, event_type) => self.subscription(step, event_type),
            StripeEventKind::Invoice(event_type) => self.invoice(event_type),
        }
    }

    fn subscription(&self, step: SubscriptionStep, event_type: EventType) -> Result<Told, Error> {
        let status = ObjectStatus::after(step, &self.data.object)?;
        let object: SubscriptionObject = self.data.object.read()?;
        let previous: Option<Previous> = self.data.previous_attributes.as_ref().and_then(|given| given.read().ok());
        let before = previous.unwrap_or_default().before(&object);
        let news = News::Subscription(object.told(status, step, self.created.into()), before);
        Ok(Told { event_type, news })
    }

    fn invoice(&self, event_type: EventType) -> Result<Told, Error> {
        Ok(Told { event_type, news: News::Invoice(self.data.object.read()?) })
    }
}

impl News {
    /// As webhook endpoints are told: ids, states and amounts, and nothing of a person.
    pub(crate) fn shown(&self) -> Value {
        match self {
            Self::Subscription(subscription, _) => json!({ "subscription": {
                "id": subscription.id,
                "status": subscription.status,
                "plan": subscription.plan,
                "current_period_start": subscription.current_period_start,
                "current_period_end": subscription.current_period_end,
                "cancel_at_period_end": subscription.cancel_at_period_end,
            } }),
            Self::Invoice(invoice) => json!({ "invoice": {
                "id": invoice.id,
                "subscription_id": invoice.subscription_id(),
                "currency": invoice.currency,
                "amount_due": invoice.amount_due,
                "amount_paid": invoice.amount_paid,
                "attempt_count": invoice.attempt_count,
                "next_payment_attempt": invoice.next_payment_attempt.map(Timestamp::from),
            } }),
        }
    }
}

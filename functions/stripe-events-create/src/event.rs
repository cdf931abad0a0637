use karta_shared::{
    domain::{EventType, StripeCustomerId, StripeId, Subscription, SubscriptionBefore, SubscriptionStep, Timestamp},
    http::{Error, RawJson},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::object::{InvoiceObject, ObjectCustomer, ObjectStatus, Previous, Seconds, SubscriptionObject};

/// An event of a supported type. Fields that are not read may have any value.
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

/// The content of an event, and the type of the webhook event that reports it.
#[derive(Debug)]
pub(crate) struct ParsedEvent {
    pub(crate) event_type: EventType,
    pub(crate) content: EventContent,
}

#[derive(Debug)]
pub(crate) enum EventContent {
    Subscription(Subscription, SubscriptionBefore),
    Invoice(InvoiceObject),
}

/// The supported types of events.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StripeEventKind {
    Subscription(SubscriptionStep, EventType),
    Invoice(EventType),
}

impl StripeEventKind {
    /// Returns `None` for an unsupported type, without reading the rest of the event: other types
    /// may have other envelopes.
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

    /// Rejects a test event in a live stack, and a live event in a test stack.
    pub(crate) fn check_mode(&self, livemode: bool) -> Result<(), Error> {
        if self.livemode == livemode {
            return Ok(());
        }
        let accepted = if livemode { "live events" } else { "test events" };
        Err(Error::BadRequest { code: "livemode_mismatch", message: format!("This stack accepts {accepted} only") })
    }

    /// Returns the customer without reading the rest of the object; `None` if no organization can
    /// have this customer.
    pub(crate) fn customer(&self) -> Result<Option<StripeCustomerId>, Error> {
        let customer: ObjectCustomer = self.data.object.read_below("data.object")?;
        Ok(customer.id().and_then(|id| id.try_into().ok()))
    }

    pub(crate) fn parse(&self, kind: StripeEventKind) -> Result<ParsedEvent, Error> {
        match kind {
            StripeEventKind::Subscription(step, event_type) => self.subscription(step, event_type),
            StripeEventKind::Invoice(event_type) => self.invoice(event_type),
        }
    }

    fn subscription(&self, step: SubscriptionStep, event_type: EventType) -> Result<ParsedEvent, Error> {
        let status = ObjectStatus::after(step, &self.data.object)?;
        let object: SubscriptionObject = self.data.object.read_below("data.object")?;
        let previous: Option<Previous> = self.data.previous_attributes.as_ref().and_then(|given| given.read().ok());
        let before = previous.unwrap_or_default().before(&object);
        let content = EventContent::Subscription(object.into_subscription(status, step, self.created.into()), before);
        Ok(ParsedEvent { event_type, content })
    }

    fn invoice(&self, event_type: EventType) -> Result<ParsedEvent, Error> {
        Ok(ParsedEvent { event_type, content: EventContent::Invoice(self.data.object.read_below("data.object")?) })
    }
}

impl EventContent {
    /// Returns the data of the webhook event: ids, states and amounts, without personal data.
    pub(crate) fn webhook_data(&self) -> Value {
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

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Id, Invalid, Timestamp};

/// A change that is sent to webhook endpoints. It is written in the transaction of the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub id: Id,
    #[serde(rename = "type")]
    pub event_type: EventType,
    pub created_at: Timestamp,
    pub organization_id: Id,
    /// A JSON object, encoded once, so that every delivery carries the same bytes; never a secret.
    pub data: String,
    /// The only endpoint that receives the event, regardless of its types. `None` means every
    /// endpoint that subscribed to the type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_endpoint: Option<Id>,
}

impl Event {
    /// Returns `evt_<number>`.
    pub fn public_id(&self) -> String {
        public_event_id(self.id)
    }

    /// Returns the request body, which is the same at every attempt.
    pub fn body(&self) -> String {
        let Self { event_type, created_at, organization_id, data, .. } = self;
        // These fields hold no characters that JSON escapes, and `data` is already JSON.
        format!(
            r#"{{"id":"{}","type":"{event_type}","created_at":"{created_at}","organization_id":{organization_id},"data":{data}}}"#,
            self.public_id()
        )
    }
}

pub fn public_event_id(id: Id) -> String {
    format!("evt_{id}")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum EventType {
    ApiKeyCreated,
    ApiKeyUpdated,
    ApiKeyRotated,
    ApiKeyRevoked,
    ApiKeyExpiring,
    ModelKeyCreated,
    ModelKeyRevoked,
    BudgetThreshold,
    BudgetExhausted,
    BudgetRestored,
    ReleaseCreated,
    ReleaseActivated,
    ReleaseRolledBack,
    WebhookEndpointDisabled,
    SubscriptionCreated,
    SubscriptionUpdated,
    SubscriptionDeleted,
    InvoicePaid,
    InvoicePaymentFailed,
    Ping,
}

impl EventType {
    pub const ALL: [Self; 20] = [
        Self::ApiKeyCreated,
        Self::ApiKeyUpdated,
        Self::ApiKeyRotated,
        Self::ApiKeyRevoked,
        Self::ApiKeyExpiring,
        Self::ModelKeyCreated,
        Self::ModelKeyRevoked,
        Self::BudgetThreshold,
        Self::BudgetExhausted,
        Self::BudgetRestored,
        Self::ReleaseCreated,
        Self::ReleaseActivated,
        Self::ReleaseRolledBack,
        Self::WebhookEndpointDisabled,
        Self::SubscriptionCreated,
        Self::SubscriptionUpdated,
        Self::SubscriptionDeleted,
        Self::InvoicePaid,
        Self::InvoicePaymentFailed,
        Self::Ping,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApiKeyCreated => "api_key.created",
            Self::ApiKeyUpdated => "api_key.updated",
            Self::ApiKeyRotated => "api_key.rotated",
            Self::ApiKeyRevoked => "api_key.revoked",
            Self::ApiKeyExpiring => "api_key.expiring",
            Self::ModelKeyCreated => "model_key.created",
            Self::ModelKeyRevoked => "model_key.revoked",
            Self::BudgetThreshold => "budget.threshold",
            Self::BudgetExhausted => "budget.exhausted",
            Self::BudgetRestored => "budget.restored",
            Self::ReleaseCreated => "release.created",
            Self::ReleaseActivated => "release.activated",
            Self::ReleaseRolledBack => "release.rolled_back",
            Self::WebhookEndpointDisabled => "webhook_endpoint.disabled",
            Self::SubscriptionCreated => "subscription.created",
            Self::SubscriptionUpdated => "subscription.updated",
            Self::SubscriptionDeleted => "subscription.deleted",
            Self::InvoicePaid => "invoice.paid",
            Self::InvoicePaymentFailed => "invoice.payment_failed",
            Self::Ping => "ping",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event_type| event_type.as_str() == text)
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<EventType> for &'static str {
    fn from(event_type: EventType) -> Self {
        event_type.as_str()
    }
}

impl TryFrom<String> for EventType {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::parse(&text).ok_or(Invalid::new("must be an event type such as api_key.created"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn body_is_the_documented_json() {
        let event = Event {
            id: Id::new(7).unwrap(),
            event_type: EventType::ApiKeyCreated,
            created_at: "2026-11-22T08:00:00.120Z".parse().unwrap(),
            organization_id: Id::new(9).unwrap(),
            data: r#"{"api_key":{"name":"a\"b"}}"#.to_owned(),
            only_endpoint: None,
        };
        let body: serde_json::Value = serde_json::from_str(&event.body()).unwrap();
        let expected = json!({
            "id": "evt_7", "type": "api_key.created", "created_at": "2026-11-22T08:00:00.120Z", "organization_id": 9,
            "data": { "api_key": { "name": "a\"b" } },
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn every_event_type_parses_from_its_name() {
        for event_type in EventType::ALL {
            assert_eq!(serde_json::from_value::<EventType>(json!(event_type)).unwrap(), event_type);
        }
        assert!(serde_json::from_value::<EventType>(json!("api_key")).is_err());
    }
}

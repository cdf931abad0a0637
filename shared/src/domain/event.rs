use serde::{Deserialize, Serialize};

use super::{Id, Timestamp};

/// What happened to an organization's resources, as its webhook endpoints are told. Written in the transaction of the change itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub id: Id,
    #[serde(rename = "type")]
    pub event_type: EventType,
    pub created_at: Timestamp,
    pub organization_id: Id,
    /// A JSON object, written out once, so that every delivery carries the same bytes; never a secret.
    pub data: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EventType {
    #[serde(rename = "api_key.created")]
    ApiKeyCreated,
    #[serde(rename = "api_key.rotated")]
    ApiKeyRotated,
    #[serde(rename = "api_key.revoked")]
    ApiKeyRevoked,
    #[serde(rename = "api_key.expiring")]
    ApiKeyExpiring,
    #[serde(rename = "budget.threshold")]
    BudgetThreshold,
    #[serde(rename = "budget.exhausted")]
    BudgetExhausted,
    #[serde(rename = "budget.restored")]
    BudgetRestored,
    #[serde(rename = "release.created")]
    ReleaseCreated,
    #[serde(rename = "release.activated")]
    ReleaseActivated,
    #[serde(rename = "release.rolled_back")]
    ReleaseRolledBack,
    #[serde(rename = "model_key.created")]
    ModelKeyCreated,
    #[serde(rename = "model_key.revoked")]
    ModelKeyRevoked,
    #[serde(rename = "subscription.created")]
    SubscriptionCreated,
    #[serde(rename = "subscription.updated")]
    SubscriptionUpdated,
    #[serde(rename = "subscription.deleted")]
    SubscriptionDeleted,
    #[serde(rename = "invoice.paid")]
    InvoicePaid,
    #[serde(rename = "invoice.payment_failed")]
    InvoicePaymentFailed,
}

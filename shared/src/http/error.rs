use std::{borrow::Cow, time::Duration};

use http::StatusCode;
use serde_json::{Value, json};

use super::call::RequestMeta;
use crate::{
    auth::Undecided,
    byok::ModelKeyUnsealError,
    config::SecretError,
    domain::{Exhausted, Id, KeyRejected, NoTransition, Provider, Timestamp},
    store::{CommitError, Conflict, StoreError},
    webhook_secrets,
};

/// Seconds in the `Retry-After` header.
pub(super) const RETRY_AFTER_SECONDS: u32 = 1;

/// The message of every 401. It lists all causes, so that it explains how to send a key and reveals
/// nothing about the received one.
const UNAUTHORIZED: &str = "Send Authorization: Bearer <key>. Use this header once, and no other header such as X-API-Key. If you did, \
                            the key or token is unknown, revoked, expired, not valid on this kind of route, or not allowed from this address.";

/// An error response of a route. Only this type knows statuses and error bodies.
#[derive(Debug)]
pub enum Error {
    Unauthorized,
    Forbidden(Cow<'static, str>),
    NotFound,
    /// The route does not exist for this caller: the gateway's response to an unknown path.
    UnknownRoute,
    MalformedJson(String),
    /// A malformed request: 400 with this code.
    BadRequest {
        code: &'static str,
        message: String,
    },
    BodyTooLarge {
        limit: usize,
    },
    /// The body is compressed or otherwise encoded.
    UnsupportedEncoding,
    /// `message` is a sentence with the field, the fault and the fix. It never holds the value.
    Invalid {
        field: String,
        message: String,
    },
    /// The value is not a valid key of the provider.
    KeyRejected {
        provider: Provider,
        rejected: KeyRejected,
    },
    IdempotencyMismatch,
    Conflict {
        code: &'static str,
        message: &'static str,
        resource_id: Option<Id>,
    },
    /// A builder reported a status that cannot follow the release's current status.
    NoTransition(NoTransition),
    BudgetExhausted {
        exhausted: Exhausted,
        resets_at: Option<Timestamp>,
    },
    /// A write conflicted with another write. Running the handler again resolves it.
    WriteConflict,
    /// A dependency is down. The text is for the log.
    Unavailable(String),
    /// The handler exceeded this time limit. Its writes may still take effect.
    TimedOut(Duration),
    /// A bug or a corrupt record. The text is for the log.
    Internal(String),
}

impl Error {
    /// A field is invalid. `problem` completes "`<field>` …".
    pub fn invalid(field: &str, problem: impl std::fmt::Display) -> Self {
        Self::Invalid { field: field.to_owned(), message: format!("{field} {problem}") }
    }

    /// Redacts credentials from field names, which the client may choose.
    pub(super) fn scrubbed(self, meta: &RequestMeta) -> Self {
        match self {
            Self::Invalid { field, message } => {
                Self::Invalid { field: meta.scrub(&field), message: meta.scrub(&message) }
            }
            other => other,
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound | Self::UnknownRoute => StatusCode::NOT_FOUND,
            Self::MalformedJson(_) | Self::BadRequest { .. } => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid { .. } | Self::KeyRejected { .. } | Self::IdempotencyMismatch => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::Conflict { .. } | Self::NoTransition(_) => StatusCode::CONFLICT,
            Self::BudgetExhausted { .. } => StatusCode::PAYMENT_REQUIRED,
            Self::WriteConflict | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the body without `request_id`.
    pub(super) fn body(&self) -> Value {
        match self {
            Self::Unauthorized => json!({"detail": "Unauthorized", "message": UNAUTHORIZED}),
            Self::Forbidden(detail) => json!({"detail": detail}),
            Self::NotFound => json!({"detail": "Not found"}),
            Self::UnknownRoute => json!({"detail": "Not found", "error": "unknown_route"}),
            Self::MalformedJson(message) => json!({"error": "malformed_json", "message": message}),
            Self::BadRequest { code, message } => json!({"error": code, "message": message}),
            Self::BodyTooLarge { limit } => {
                json!({"error": "body_too_large", "message": format!("The body must be at most {limit} bytes")})
            }
            Self::UnsupportedEncoding => json!({
                "error": "unsupported_encoding",
                "message": "The body must not be encoded. Leave out Content-Encoding.",
            }),
            Self::Invalid { field, message } => {
                json!({"error": "validation_failed", "message": message, "field": field})
            }
            Self::KeyRejected { provider, rejected } => json!({
                "error": "byok_key_rejected",
                "message": format!("key {rejected}"),
                "field": "key",
                "provider": provider,
            }),
            Self::IdempotencyMismatch => json!({
                "error": "idempotency_mismatch",
                "message": "This Idempotency-Key was used with a different body. Repeat the first request unchanged, or use a new key.",
                "field": "Idempotency-Key",
            }),
            Self::Conflict { code, message, resource_id: None } => json!({"error": code, "message": message}),
            Self::Conflict { code, message, resource_id: Some(id) } => {
                json!({"error": code, "message": message, "id": id})
            }
            Self::NoTransition(NoTransition { from, to }) => json!({
                "error": "release_transition",
                "message": format!("A release that is {} cannot be reported as {}", from.as_str(), to.as_str()),
                "from": from,
                "to": to,
            }),
            Self::BudgetExhausted { exhausted, resets_at } => json!({
                "error": "budget_exhausted",
                "reason": exhausted.reason(),
                "cap": exhausted.cap(),
                "of": exhausted.owner(),
                "resets_at": resets_at,
            }),
            Self::WriteConflict | Self::Unavailable(_) => json!({"detail": "Service unavailable"}),
            Self::TimedOut(_) => json!({"detail": "Timed out"}),
            Self::Internal(_) => json!({"detail": "Internal error"}),
        }
    }

    /// Returns the fault for the log; `None` for client errors.
    pub(super) fn fault(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Unavailable(fault) | Self::Internal(fault) => Some(fault.into()),
            Self::TimedOut(deadline) => Some(format!("handler exceeded {deadline:?}").into()),
            Self::WriteConflict => Some("write conflicts persisted".into()),
            _ => None,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Unavailable(error.to_string()),
            StoreError::Fault(_) => Self::Internal(error.to_string()),
        }
    }
}

impl From<NoTransition> for Error {
    fn from(error: NoTransition) -> Self {
        Self::NoTransition(error)
    }
}

impl From<SecretError> for Error {
    fn from(error: SecretError) -> Self {
        match error {
            SecretError::Unavailable { .. } => Self::Unavailable(error.to_string()),
            SecretError::NotConfigured { .. } | SecretError::Malformed { .. } | SecretError::Overlap { .. } => {
                Self::Internal(error.to_string())
            }
        }
    }
}

impl From<ModelKeyUnsealError> for Error {
    fn from(error: ModelKeyUnsealError) -> Self {
        match error {
            ModelKeyUnsealError::UnknownKid(_) => Self::Unavailable(error.to_string()),
            ModelKeyUnsealError::Tampered => Self::Internal(error.to_string()),
        }
    }
}

impl From<webhook_secrets::WebhookSecretUnsealError> for Error {
    fn from(error: webhook_secrets::WebhookSecretUnsealError) -> Self {
        match error {
            webhook_secrets::WebhookSecretUnsealError::UnknownKid(_) => Self::Unavailable(error.to_string()),
            webhook_secrets::WebhookSecretUnsealError::Tampered => Self::Internal(error.to_string()),
        }
    }
}

impl From<Undecided> for Error {
    fn from(error: Undecided) -> Self {
        match error {
            Undecided::Store(error) => error.into(),
            Undecided::Secret(error) => error.into(),
            Undecided::Bcrypt(_) => Self::Internal(error.to_string()),
            Undecided::Busy | Undecided::OutOfTime | Undecided::Stale => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<CommitError> for Error {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Store(error) => error.into(),
            CommitError::Conflict(conflict) => conflict.into(),
        }
    }
}

impl From<Conflict> for Error {
    fn from(conflict: Conflict) -> Self {
        let (code, message) = match conflict {
            Conflict::Remembered
            | Conflict::EventSeen
            | Conflict::IdTaken
            | Conflict::Changed
            | Conflict::CallerChanged => {
                return Self::WriteConflict;
            }
            Conflict::LastAdminKeyGrace => {
                let problem = "must be at least 600 for the organization's only admin key without expires_at and \
                               allowed_cidrs, so that it can repeat this request: leave it out, or create another \
                               such key first";
                return Self::invalid("grace_seconds", problem);
            }
            Conflict::StripeCustomerTaken => {
                ("stripe_customer_taken", "Another organization has this Stripe customer. Remove it there first.")
            }
            // Only projects: the route that creates organizations has its own message.
            Conflict::SlugTaken => {
                ("slug_taken", "This slug is taken in your organization. Use that project, or choose another slug.")
            }
            Conflict::WebhookEndpointsFull => {
                ("webhook_endpoint_limit", "Webhook endpoint limit reached (20). Delete one first.")
            }
            Conflict::RecoveryUnderWay => {
                ("recovery_under_way", "A recovery is already running for this endpoint. Try again when it finishes.")
            }
            Conflict::LastAdminKey => (
                "last_admin_key",
                "An organization must keep one active admin key without expires_at and allowed_cidrs. Create another one first.",
            ),
        };
        Self::Conflict { code, message, resource_id: None }
    }
}

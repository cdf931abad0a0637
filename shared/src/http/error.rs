use std::{borrow::Cow, time::Duration};

use http::StatusCode;
use serde_json::{Value, json};

use super::call::RequestMeta;
use crate::{
    auth::Undecided,
    byok::ModelKeyUnsealError,
    config::SecretError,
    domain::{Exhausted, Id, KeyRejected, NoTransition, Provider, Timestamp, TurnError},
    store::{CommitError, Conflict, StoreError},
    transcripts::TranscriptUnsealError,
    webhook_secrets,
};

/// Seconds in the `Retry-After` header of a 503 or 504.
const RETRY_AFTER_SECONDS: u64 = 1;
/// When running turns may have released what they reserved of a budget.
const HELD_RETRY_AFTER: Duration = Duration::from_secs(10);

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
        /// Set if spending is below the cap, and running turns hold the rest.
        retry_after: Option<Duration>,
    },
    /// The caller may not use the model that it named. `allowed` lists the models that it may name.
    ModelNotAllowed {
        allowed: Vec<String>,
    },
    /// The request names no model, and none is configured.
    ModelRequired,
    /// A cost cap applies, and the model has no price.
    ModelUnpriced,
    /// The messages of the session have the maximum size.
    SessionFull,
    /// The organization has no usable key of the provider.
    NoModelKey {
        provider: Provider,
    },
    /// The turn did not complete.
    TurnFailed {
        code: TurnError,
        /// The provider's message, Karta's text about `endpoint_url`, or else [`TurnError::message`].
        message: Cow<'static, str>,
        /// The provider's `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Too many requests. The client may retry after this time, which is rounded up to a second.
    RateLimited {
        retry_after: Duration,
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

    /// 402: a cap is reached, or the subscription has ended.
    pub fn budget_exhausted(exhausted: Exhausted, now: Timestamp) -> Self {
        Self::BudgetExhausted { exhausted, resets_at: exhausted.resets_at(now), retry_after: None }
    }

    /// 402: spending and what running turns hold have reached a cap.
    pub fn budget_held(exhausted: Exhausted, now: Timestamp) -> Self {
        let retry_after = Some(HELD_RETRY_AFTER);
        Self::BudgetExhausted { exhausted, resets_at: exhausted.resets_at(now), retry_after }
    }

    /// 409: a session runs one turn at a time.
    pub const fn turn_in_progress() -> Self {
        Self::conflict("turn_in_progress", "A turn is running in this session. Wait for its end, or cancel it.")
    }

    /// 409: there is no turn to cancel.
    pub const fn no_turn_in_progress() -> Self {
        Self::conflict("no_turn_in_progress", "No turn is running in this session.")
    }

    /// 409: there is no turn to cancel, or another one than the client named.
    pub const fn turn_not_running() -> Self {
        Self::conflict("no_turn_in_progress", "turn_id is not the running turn of this session.")
    }

    /// 409: there are no events to follow.
    pub const fn no_events() -> Self {
        let message = "There are no events to follow: no turn has started, the events expired, after is \
                       the turn's last event, or after names no event of this session. Read the messages instead.";
        Self::conflict("no_turn_in_progress", message)
    }

    /// 409: sessions of a project are pinned to its active release.
    pub const fn no_active_release() -> Self {
        Self::conflict(
            "no_active_release",
            "The project has no active release. Deploy one with POST /v1/agent_projects/{slug}/deploys.",
        )
    }

    const fn conflict(code: &'static str, message: &'static str) -> Self {
        Self::Conflict { code, message, resource_id: None }
    }

    /// A turn failed and the provider gave no message.
    pub const fn turn_failed(code: TurnError) -> Self {
        Self::TurnFailed { code, message: Cow::Borrowed(code.message()), retry_after: None }
    }

    /// Redacts credentials from texts that the client or a provider may choose.
    pub(super) fn scrubbed(self, meta: &RequestMeta) -> Self {
        match self {
            Self::Invalid { field, message } => {
                Self::Invalid { field: meta.scrub(&field), message: meta.scrub(&message) }
            }
            Self::TurnFailed { code, message: Cow::Owned(message), retry_after } => {
                Self::TurnFailed { code, message: meta.scrub(&message).into(), retry_after }
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
            Self::Invalid { .. }
            | Self::KeyRejected { .. }
            | Self::IdempotencyMismatch
            | Self::ModelNotAllowed { .. }
            | Self::ModelRequired
            | Self::ModelUnpriced
            | Self::SessionFull
            | Self::NoModelKey { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TurnFailed { code, .. } => turn_status(*code),
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
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
                "message": format!("status cannot change from {} to {}", from.as_str(), to.as_str()),
                "from": from,
                "to": to,
            }),
            Self::BudgetExhausted { exhausted, resets_at, .. } => json!({
                "error": "budget_exhausted",
                "reason": exhausted.reason(),
                "cap": exhausted.cap(),
                "of": exhausted.owner(),
                "resets_at": resets_at,
            }),
            Self::ModelNotAllowed { allowed } => json!({
                "error": "model_not_allowed",
                "message": if allowed.is_empty() {
                    "model is not allowed: turns cannot use its provider, its provider has no model key, or it has no price. Name another model, store a model key, or configure another model_id"
                } else {
                    "model is not allowed: use one of those in allowed or, with an API key, a model that has a price and whose provider has a model key"
                },
                "field": "model",
                "allowed": allowed,
            }),
            Self::ModelRequired => json!({
                "error": "model_required",
                "message": "model must be given, because neither the project nor the organization has a model_id",
                "field": "model",
            }),
            Self::ModelUnpriced => json!({
                "error": "model_unpriced",
                "message": "model has no price, which a cost cap requires. Use another model, or remove the cap.",
                "field": "model",
            }),
            Self::SessionFull => json!({
                "error": "session_full",
                "message": "text cannot be added: the session already has 8 MB of messages. Start a new session.",
                "field": "text",
            }),
            Self::NoModelKey { provider } => json!({
                "error": "no_model_key",
                "message": format!(
                    "The organization has no usable model key of {}. Store one. A key stored before endpoint_url \
                     was set is not used: store it again.",
                    provider.as_str(),
                ),
                "provider": provider,
            }),
            Self::TurnFailed { code, message, .. } => json!({"error": code, "message": message}),
            Self::RateLimited { .. } => {
                json!({"error": "rate_limited", "retry_after_seconds": self.retry_after_seconds()})
            }
            Self::WriteConflict | Self::Unavailable(_) => json!({"detail": "Service unavailable"}),
            Self::TimedOut(_) => json!({"detail": "Timed out"}),
            Self::Internal(_) => json!({"detail": "Internal error"}),
        }
    }

    /// Returns the header `Retry-After` in seconds.
    pub(super) fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            Self::TurnFailed { retry_after, .. } | Self::BudgetExhausted { retry_after, .. } => {
                retry_after.map(round_up)
            }
            Self::RateLimited { retry_after } => Some(round_up(*retry_after)),
            Self::WriteConflict | Self::Unavailable(_) | Self::TimedOut(_) => Some(RETRY_AFTER_SECONDS),
            _ => None,
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

/// Returns the status of a failed turn whose answer was not streamed.
const fn turn_status(error: TurnError) -> StatusCode {
    match error {
        TurnError::ProviderRejected | TurnError::ByokKeyRejected | TurnError::ProviderCreditExhausted => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        TurnError::ProviderRateLimited => StatusCode::TOO_MANY_REQUESTS,
        TurnError::ProviderError => StatusCode::BAD_GATEWAY,
        TurnError::ProviderTimeout | TurnError::TurnDeadline => StatusCode::GATEWAY_TIMEOUT,
        TurnError::BudgetExhausted => StatusCode::PAYMENT_REQUIRED,
        TurnError::TurnCancelled => StatusCode::CONFLICT,
        TurnError::CredentialRevoked => StatusCode::UNAUTHORIZED,
        TurnError::Interrupted | TurnError::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Returns whole seconds, at least one.
fn round_up(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
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

impl From<TranscriptUnsealError> for Error {
    fn from(error: TranscriptUnsealError) -> Self {
        match error {
            TranscriptUnsealError::UnknownKid(_) => Self::Unavailable(error.to_string()),
            TranscriptUnsealError::Tampered => Self::Internal(error.to_string()),
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
            // The next attempt of a handler reads the session again and answers by its state.
            Conflict::TurnSettled
            | Conflict::SessionGone
            | Conflict::TurnInProgress
            | Conflict::Remembered
            | Conflict::EventCounted
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_turns_have_the_documented_statuses() {
        let statuses = TurnError::ALL.map(|code| (code.as_str(), Error::turn_failed(code).status().as_u16()));
        let expected = [
            ("provider_rejected", 422),
            ("byok_key_rejected", 422),
            ("provider_credit_exhausted", 422),
            ("provider_rate_limited", 429),
            ("provider_error", 502),
            ("provider_timeout", 504),
            ("turn_deadline", 504),
            ("budget_exhausted", 402),
            ("turn_cancelled", 409),
            ("credential_revoked", 401),
            ("interrupted", 500),
            ("internal", 500),
        ];
        assert_eq!(statuses, expected);
    }

    #[test]
    fn failed_turn_names_its_code() {
        let body = Error::turn_failed(TurnError::CredentialRevoked).body();
        assert_eq!(body["error"], "credential_revoked");
        assert_eq!(body["message"], TurnError::CredentialRevoked.message());
    }

    #[test]
    fn retry_after_is_rounded_up() {
        for (wait, seconds) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (10_000, 10)] {
            let error = Error::RateLimited { retry_after: Duration::from_millis(wait) };
            assert_eq!(error.retry_after_seconds(), Some(seconds), "{wait} ms");
            assert_eq!(error.body()["retry_after_seconds"], seconds, "{wait} ms");
        }
        assert_eq!(Error::turn_failed(TurnError::ProviderRateLimited).retry_after_seconds(), None);
        assert_eq!(Error::Unavailable(String::new()).retry_after_seconds(), Some(1));
    }

    #[test]
    fn model_errors_name_the_field() {
        let refused = Error::ModelNotAllowed { allowed: vec!["gpt-4o".to_owned()] }.body();
        assert_eq!((&refused["field"], &refused["allowed"]), (&json!("model"), &json!(["gpt-4o"])));
        assert_eq!(Error::ModelRequired.body()["field"], "model");
        assert_eq!(Error::ModelUnpriced.body()["field"], "model");
        assert_eq!(Error::NoModelKey { provider: Provider::OpenAi }.body()["provider"], "openai");
    }
}

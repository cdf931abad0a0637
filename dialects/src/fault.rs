//! Errors of providers: HTTP error answers, and error events in a stream.

use std::fmt;

use crate::json::{Json, Object};

/// The type or code of an error about the account's balance or quota, in lower case.
const CREDIT_LABELS: [&str; 6] = [
    "billing_error",
    "billing_hard_limit_reached",
    "billing_not_active",
    "insufficient_credits",
    "insufficient_quota",
    "payment_required",
];
/// Parts of messages about the account's balance or quota. Anthropic's have the general type
/// `invalid_request_error`.
const CREDIT_PHRASES: [&str; 4] =
    ["credit balance is too low", "insufficient credits", "key limit exceeded", "specified api usage limits"];
const KEY_LABELS: [&str; 7] = [
    "authentication_error",
    "expiredtokenexception",
    "incorrect_api_key",
    "invalid_api_key",
    "permission_denied",
    "unauthenticated",
    "unrecognizedclientexception",
];
const KEY_PHRASES: [&str; 7] =
    ["access key", "api key", "api_key", "credential", "missing scopes", "not authorized to perform", "security token"];
const RATE_LABELS: [&str; 4] = ["rate_limit_error", "rate_limit_exceeded", "resource_exhausted", "throttlingexception"];
const REJECTED_LABELS: [&str; 9] = [
    "context_length_exceeded",
    "invalid_argument",
    "invalid_prompt",
    "invalid_request_error",
    "not_found",
    "not_found_error",
    "permission_error",
    "request_too_large",
    "validationexception",
];

/// An error that the provider reported. Display and Debug leave the message out, because it may quote
/// the key or the prompt.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("the provider returned an error: {}", kind.code())]
pub struct ProviderFault {
    pub kind: FaultKind,
    /// The provider's text, as received: scrub it before use. `None` if the answer has none or is not
    /// the provider's JSON.
    pub message: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The provider does not accept the request.
    Rejected,
    /// The provider does not accept the key.
    KeyRejected,
    /// The account at the provider has no credit or quota left.
    CreditExhausted,
    RateLimited,
    /// The provider failed or is overloaded, or the answer is not from the provider.
    Unavailable,
}

impl FaultKind {
    /// Returns the error code of a turn that ends with this fault.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Rejected => "provider_rejected",
            Self::KeyRejected => "byok_key_rejected",
            Self::CreditExhausted => "provider_credit_exhausted",
            Self::RateLimited => "provider_rate_limited",
            Self::Unavailable => "provider_error",
        }
    }
}

/// Classifies an HTTP answer that is not a stream by its status and body. With a status below 400, the
/// body decides.
pub fn read_error(status: u16, body: &[u8]) -> ProviderFault {
    match Json::parse(body).ok().and_then(Report::from_answer) {
        Some(report) => {
            let status = Some(status).filter(|status| *status >= 400).or(report.status);
            ProviderFault { kind: report.kind(status), message: report.message }
        }
        None => ProviderFault::without_message(match status {
            401 => FaultKind::KeyRejected,
            402 => FaultKind::CreditExhausted,
            413 => FaultKind::Rejected,
            429 => FaultKind::RateLimited,
            _ => FaultKind::Unavailable,
        }),
    }
}

impl ProviderFault {
    pub(crate) const fn without_message(kind: FaultKind) -> Self {
        Self { kind, message: None }
    }

    /// Reads the member `error` of an event.
    pub(crate) fn from_event(error: Json<'_>) -> Self {
        let report = Report::new(error);
        Self { kind: report.kind(report.status), message: report.message }
    }
}

impl fmt::Debug for ProviderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderFault").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// The members of a provider's error that decide its kind.
struct Report {
    /// Type, code and status, in lower case.
    labels: Vec<String>,
    /// The HTTP status that OpenRouter and Google repeat in `code`.
    status: Option<u16>,
    message: Option<String>,
}

impl Report {
    /// Reads the body of an HTTP answer. Google wraps it in an array, and AWS has no member `error`.
    fn from_answer(body: Json<'_>) -> Option<Self> {
        let body = body.elements().and_then(|elements| elements.first().copied()).unwrap_or(body);
        let members = body.object()?;
        Some(members.get("error").map_or_else(|| Self::from_members(&members), Self::new))
    }

    /// Reads an error: an object, or its message.
    fn new(error: Json<'_>) -> Self {
        match error.object() {
            Some(members) => Self::from_members(&members),
            None => Self { labels: Vec::new(), status: None, message: error.to_text() },
        }
    }

    fn from_members(members: &Object<'_>) -> Self {
        let labels = ["type", "code", "status", "__type"].into_iter().filter_map(|name| members.to_text(name));
        let number = members.count("code").or_else(|| members.to_text("code")?.parse().ok());
        Self {
            labels: labels.map(|label| label.to_ascii_lowercase()).collect(),
            status: number.and_then(|code| u16::try_from(code).ok()).filter(|code| (400..600).contains(code)),
            message: members.to_text("message").or_else(|| members.to_text("Message")),
        }
    }

    /// Returns the kind of an answer with this HTTP status. Without a status, the labels decide.
    fn kind(&self, status: Option<u16>) -> FaultKind {
        let mentions_credit = self.is(&CREDIT_LABELS) || self.says(&CREDIT_PHRASES);
        let mentions_key = self.is(&KEY_LABELS) || self.says(&KEY_PHRASES);
        match status {
            Some(400 | 403 | 429) | None if mentions_credit => FaultKind::CreditExhausted,
            Some(401) => FaultKind::KeyRejected,
            Some(402) => FaultKind::CreditExhausted,
            Some(403) if mentions_key => FaultKind::KeyRejected,
            Some(400 | 403 | 404 | 413 | 422) => FaultKind::Rejected,
            Some(429) => FaultKind::RateLimited,
            None if self.is(&KEY_LABELS) || (self.is(&["permission_error"]) && mentions_key) => FaultKind::KeyRejected,
            None if self.is(&RATE_LABELS) => FaultKind::RateLimited,
            None if self.is(&REJECTED_LABELS) => FaultKind::Rejected,
            Some(_) | None => FaultKind::Unavailable,
        }
    }

    fn is(&self, known: &[&str]) -> bool {
        self.labels.iter().any(|label| known.contains(&label.as_str()))
    }

    fn says(&self, phrases: &[&str]) -> bool {
        let message = self.message.as_deref().unwrap_or_default().to_ascii_lowercase();
        phrases.iter().any(|phrase| message.contains(phrase))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn anthropic(kind: &str, message: &str) -> Value {
        json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"})
    }

    fn openai(kind: &str, code: &str, message: &str) -> Value {
        json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
    }

    fn google(status: u16, label: &str, message: &str) -> Value {
        json!([{"error": {"code": status, "message": message, "status": label}}])
    }

    #[test]
    fn http_errors_are_classified() {
        use FaultKind::{CreditExhausted, KeyRejected, RateLimited, Rejected, Unavailable};
        let key = "Your API key does not have permission to use the specified resource.";
        let balance = "Your credit balance is too low to access the Anthropic API.";
        let quota = "You exceeded your current quota, please check your plan and billing details.";
        for (status, body, expected) in [
            (400, anthropic("invalid_request_error", "max_tokens: must be greater than 0"), Rejected),
            (400, anthropic("invalid_request_error", balance), CreditExhausted),
            (401, anthropic("authentication_error", "invalid x-api-key"), KeyRejected),
            (402, anthropic("billing_error", "Billing error"), CreditExhausted),
            (403, anthropic("permission_error", key), KeyRejected),
            (403, anthropic("permission_error", "The model is not available to you."), Rejected),
            (404, anthropic("not_found_error", "model: claude-0"), Rejected),
            (413, anthropic("request_too_large", "Request too large"), Rejected),
            (429, anthropic("rate_limit_error", "Number of requests has exceeded the limit"), RateLimited),
            (500, anthropic("api_error", "Internal server error"), Unavailable),
            (504, anthropic("timeout_error", "Request timed out"), Unavailable),
            (529, anthropic("overloaded_error", "Overloaded"), Unavailable),
            (400, openai("invalid_request_error", "context_length_exceeded", "Too long"), Rejected),
            (401, openai("invalid_request_error", "invalid_api_key", "Incorrect API key provided"), KeyRejected),
            (403, openai("invalid_request_error", "", "Missing scopes: model.request"), KeyRejected),
            (403, openai("request_forbidden", "unsupported_country_region_territory", "Region"), Rejected),
            (404, openai("invalid_request_error", "model_not_found", "No such model"), Rejected),
            (422, openai("invalid_request_error", "", "Unprocessable"), Rejected),
            (429, openai("requests", "rate_limit_exceeded", "Rate limit reached"), RateLimited),
            (429, openai("insufficient_quota", "insufficient_quota", quota), CreditExhausted),
            (400, openai("billing", "billing_hard_limit_reached", "Billing hard limit"), CreditExhausted),
            (503, openai("server_error", "", "insufficient_quota"), Unavailable),
            (402, json!({"error": {"code": 402, "message": "Insufficient credits"}}), CreditExhausted),
            (403, json!({"error": {"code": 403, "message": "Input was flagged", "metadata": {}}}), Rejected),
            (403, json!({"error": {"code": 403, "message": "Key limit exceeded"}}), CreditExhausted),
            (408, json!({"error": {"code": 408, "message": "Timed out"}}), Unavailable),
            (200, json!({"error": {"code": 429, "message": "Rate limited"}}), RateLimited),
            (200, json!({"error": {"code": 0, "message": "Failed"}}), Unavailable),
            (403, google(403, "PERMISSION_DENIED", "Permission denied on resource"), KeyRejected),
            (429, google(429, "RESOURCE_EXHAUSTED", quota), RateLimited),
            (403, json!({"message": "The security token included in the request is invalid."}), KeyRejected),
            (403, json!({"Message": "User is not authorized to perform: bedrock:InvokeModel"}), KeyRejected),
            (400, json!({"error": "text"}), Rejected),
            (400, json!({}), Rejected),
            (302, json!({}), Unavailable),
        ] {
            assert_eq!(read_error(status, body.to_string().as_bytes()).kind, expected, "{status} {body}");
        }
    }

    #[test]
    fn foreign_answers_are_classified_by_status() {
        use FaultKind::{CreditExhausted, KeyRejected, RateLimited, Rejected, Unavailable};
        for (status, expected) in [
            (200, Unavailable),
            (400, Unavailable),
            (401, KeyRejected),
            (402, CreditExhausted),
            (403, Unavailable),
            (404, Unavailable),
            (413, Rejected),
            (429, RateLimited),
            (502, Unavailable),
        ] {
            for body in ["<html><body>an api key</body></html>", "", "[]", "null", "1", "{\"error\": {"] {
                let fault = read_error(status, body.as_bytes());
                assert_eq!((fault.kind, fault.message), (expected, None), "{status} {body}");
            }
        }
    }

    #[test]
    fn half_surrogates_leave_the_error() {
        let body =
            br#"{"error": {"type": "invalid_request_error", "message": "prompt '\ud83e' is too long", "\udd80": 1}}"#;
        let fault = read_error(400, body);
        assert_eq!(fault.kind, FaultKind::Rejected);
        assert_eq!(fault.message.as_deref(), Some("prompt '\u{fffd}' is too long"));
    }

    #[test]
    fn events_without_status_are_classified() {
        use FaultKind::{CreditExhausted, KeyRejected, RateLimited, Rejected, Unavailable};
        for (error, expected) in [
            (json!({"type": "overloaded_error", "message": "Overloaded"}), Unavailable),
            (json!({"type": "rate_limit_error"}), RateLimited),
            (json!({"type": "authentication_error"}), KeyRejected),
            (json!({"type": "permission_error", "message": "Your API key lacks it"}), KeyRejected),
            (json!({"type": "permission_error"}), Rejected),
            (json!({"type": "billing_error"}), CreditExhausted),
            (json!({"type": "invalid_request_error", "message": "An API key in a prompt"}), Rejected),
            (json!({"type": "invalid_request_error", "code": "invalid_api_key"}), KeyRejected),
            (json!({"type": "server_error", "code": null}), Unavailable),
            (json!({"code": "insufficient_quota"}), CreditExhausted),
            (json!({"code": 502, "message": "Provider disconnected"}), Unavailable),
            (json!({"code": "429"}), RateLimited),
            (json!({"type": "unknown"}), Unavailable),
            (json!("text"), Unavailable),
            (json!({}), Unavailable),
        ] {
            let text = error.to_string();
            let fault = ProviderFault::from_event(Json::parse(text.as_bytes()).unwrap());
            assert_eq!(fault.kind, expected, "{error}");
        }
    }

    #[test]
    fn display_and_debug_omit_the_message() {
        let body = anthropic("invalid_request_error", "the prompt is 'secret'");
        let fault = read_error(400, body.to_string().as_bytes());
        assert_eq!(fault.message.as_deref(), Some("the prompt is 'secret'"));
        assert_eq!(format!("{fault}"), "the provider returned an error: provider_rejected");
        assert_eq!(format!("{fault:?}"), "ProviderFault { kind: Rejected, .. }");
    }
}

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a turn did not complete. Stored with the turn, and sent to the client as the code of an
/// `error` event or of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TurnError {
    /// The provider found the request invalid.
    ProviderRejected,
    /// The provider rejected the organization's key.
    ByokKeyRejected,
    /// The organization's account at the provider has no credit.
    ProviderCreditExhausted,
    ProviderRateLimited,
    /// The provider failed, or its answer was broken or cut off.
    ProviderError,
    ProviderTimeout,
    /// The turn exceeded its own time limit.
    TurnDeadline,
    /// A cap left no tokens for the rest of the answer.
    BudgetExhausted,
    TurnCancelled,
    /// During the turn, the key, the key that minted the token, or the organization lost its access, or
    /// the `transcript_access` that the caller needs was switched off.
    CredentialRevoked,
    /// The process that ran the turn died, or could not store its end.
    Interrupted,
    Internal,
}

impl TurnError {
    pub const ALL: [Self; 12] = [
        Self::ProviderRejected,
        Self::ByokKeyRejected,
        Self::ProviderCreditExhausted,
        Self::ProviderRateLimited,
        Self::ProviderError,
        Self::ProviderTimeout,
        Self::TurnDeadline,
        Self::BudgetExhausted,
        Self::TurnCancelled,
        Self::CredentialRevoked,
        Self::Interrupted,
        Self::Internal,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProviderRejected => "provider_rejected",
            Self::ByokKeyRejected => "byok_key_rejected",
            Self::ProviderCreditExhausted => "provider_credit_exhausted",
            Self::ProviderRateLimited => "provider_rate_limited",
            Self::ProviderError => "provider_error",
            Self::ProviderTimeout => "provider_timeout",
            Self::TurnDeadline => "turn_deadline",
            Self::BudgetExhausted => "budget_exhausted",
            Self::TurnCancelled => "turn_cancelled",
            Self::CredentialRevoked => "credential_revoked",
            Self::Interrupted => "interrupted",
            Self::Internal => "internal",
        }
    }

    /// Returns a text for people, for use where the provider gave none.
    pub const fn message(self) -> &'static str {
        match self {
            Self::ProviderRejected => "The provider rejected the request.",
            Self::ByokKeyRejected => "The provider rejected the organization's model key. Store a valid one.",
            Self::ProviderCreditExhausted => {
                "The organization's account at the provider has no credit left. Add credit there."
            }
            Self::ProviderRateLimited => "The provider limits the rate of requests. Try again later.",
            Self::ProviderError => "The provider failed, or its answer ended early. Try again.",
            Self::ProviderTimeout => "The provider did not answer in time. Try again.",
            Self::TurnDeadline => {
                "The turn exceeded its time limit. Lower max_tokens. With stream, the limit is longer."
            }
            Self::BudgetExhausted => "The budget is exhausted.",
            Self::TurnCancelled => "The turn was cancelled.",
            Self::CredentialRevoked => "The credential lost its access during the turn.",
            Self::Interrupted => "The turn was interrupted. Try again.",
            Self::Internal => "Internal error",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn code_is_the_serialized_form() {
        for error in TurnError::ALL {
            assert_eq!(serde_json::to_value(error).unwrap(), error.as_str());
        }
    }

    #[test]
    fn codes_are_distinct() {
        let codes: BTreeSet<_> = TurnError::ALL.map(TurnError::as_str).into();
        assert_eq!(codes.len(), TurnError::ALL.len());
    }
}

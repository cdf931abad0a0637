use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Exhausted, Id, MessageId, ModelId, Price, Provider, Timestamp, TurnId};

/// The credential for which a turn runs or is followed.
#[derive(Debug, Clone, Copy)]
pub struct TurnCaller {
    pub organization: Id,
    /// The caller's key, or the one that minted its token.
    pub api_key: Id,
    /// Whether the caller needs the organization's `transcript_access`, which may be switched off.
    pub needs_transcript_access: bool,
}

/// One user message and the model's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each an attribute of the item")]
pub struct Turn {
    pub id: TurnId,
    /// The turn's position in its session, from 1.
    pub number: u64,
    pub status: TurnStatus,
    pub model: ModelId,
    pub provider: Provider,
    /// The key whose usage the turn counts: the caller's, or the one that minted its token.
    pub api_key_id: Id,
    pub lineage_id: Id,
    pub model_key_id: Id,
    pub user_message_id: MessageId,
    /// The id that the answer gets.
    pub assistant_message_id: MessageId,
    pub is_streamed: bool,
    pub started_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Estimated tokens of the whole prompt, charged if the provider never reports them.
    pub input_estimate: u64,
    /// Limit of output tokens that was requested from the provider.
    pub max_tokens: u64,
    /// Whether the provider may bill output that it does not show.
    #[serde(default)]
    pub hides_output: bool,
    /// `None` for a model without a price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    #[serde(default)]
    pub usage: TurnUsage,
    /// Whether `usage` is estimated, because the provider did not report it or reported implausible
    /// counts.
    #[serde(default)]
    pub estimated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Why a turn did not complete: a code of the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// The cap that ended the turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exhausted: Option<Exhausted>,
    /// When the provider accepts requests again, if it said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
    /// Hash of the `Idempotency-Key` under which the turn is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_hash: Option<String>,
    /// Set by a request to cancel the turn; read with each renewal of its lease.
    #[serde(default)]
    pub cancel_requested: bool,
    /// Number of the turn's last event; 0 until the turn ends.
    #[serde(default)]
    pub last_seq: u32,
    /// Whether the sweep ended the turn. Its process may have sent events beyond `last_seq`, but not
    /// the last one.
    #[serde(default)]
    pub ended_by_sweep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TurnStatus {
    Running,
    Completed,
    Failed,
    /// A caller canceled it.
    Cancelled,
    /// Its process died.
    Interrupted,
}

impl Turn {
    /// Returns the position before the turn's messages in its session.
    pub fn position_before(&self) -> Option<Id> {
        Id::new(self.number.saturating_mul(2).saturating_sub(1))
    }
}

impl TurnStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Why the model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    EndTurn,
    MaxTokens,
    StopSequence,
    Refusal,
    ToolUse,
}

impl StopReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EndTurn => "end_turn",
            Self::MaxTokens => "max_tokens",
            Self::StopSequence => "stop_sequence",
            Self::Refusal => "refusal",
            Self::ToolUse => "tool_use",
        }
    }
}

/// Tokens of a turn by kind. `input_tokens` excludes both kinds of cache tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnUsage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    #[serde(default)]
    pub cache_read_tokens: u64,
    #[serde(default)]
    pub cache_write_tokens: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MessageRole {
    User,
    Assistant,
}

impl MessageRole {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_names_equal_stored_names() {
        use StopReason::{EndTurn, MaxTokens, Refusal, StopSequence, ToolUse};
        use TurnStatus::{Cancelled, Completed, Failed, Interrupted, Running};

        for status in [Running, Completed, Failed, Cancelled, Interrupted] {
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
        for reason in [EndTurn, MaxTokens, StopSequence, Refusal, ToolUse] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        for role in [MessageRole::User, MessageRole::Assistant] {
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
    }
}

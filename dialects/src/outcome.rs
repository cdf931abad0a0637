use crate::ProviderFault;

/// Usage, stop reason and error of a streamed answer, so far or at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The provider's latest count. `None` until the provider reports one.
    pub usage: Option<ReportedUsage>,
    /// Whether `usage` counts the whole output. Anthropic's dialect also reports a first count, before
    /// the answer.
    pub is_usage_final: bool,
    /// `None` until the provider reports it. Some providers end a stream without one.
    pub stop: Option<ReportedStop>,
    /// Whether the whole answer was received. False for a stream that was cut or ended with an error.
    /// OpenAI's dialect reports usage after the answer, so a complete stream may lack `usage`.
    pub is_complete: bool,
    /// The error that ended the stream.
    pub error: Option<ProviderFault>,
    /// Frames of which something was dropped: larger than [`MAX_FRAME_BYTES`](crate::MAX_FRAME_BYTES),
    /// not the expected JSON, or with text that is not a string.
    pub skipped_frames: u32,
    /// Whether the model called a tool of the caller. Its arguments are not decoded.
    pub had_tool_call: bool,
}

/// Token counts as the provider reports them. The four kinds do not overlap. `None` if the provider
/// did not report a count, or not as a non-negative integer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReportedUsage {
    /// Input that was neither read from the provider's cache nor written to it.
    pub input_tokens: Option<u64>,
    /// Output with reasoning.
    pub output_tokens: Option<u64>,
    pub cache_read_tokens: Option<u64>,
    pub cache_write_tokens: Option<u64>,
}

impl ReportedUsage {
    /// Returns the sum of all kinds of input.
    pub(crate) fn input(&self) -> u64 {
        let kinds = [self.input_tokens, self.cache_read_tokens, self.cache_write_tokens];
        kinds.into_iter().flatten().fold(0, u64::saturating_add)
    }

    pub(crate) fn non_empty(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}

/// The reason why the model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportedStop {
    EndTurn,
    MaxTokens,
    StopSequence,
    Refusal,
    ToolUse,
}

impl ReportedStop {
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

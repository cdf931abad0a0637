use std::borrow::Cow;

/// The provider-independent form of a request.
#[derive(Clone, Copy)]
pub struct Prompt<'a> {
    /// The model's name at the provider, without a provider's prefix.
    pub model: &'a str,
    pub system: Option<&'a str>,
    /// The conversation, oldest first. Ends with the user's message.
    pub messages: &'a [PromptMessage<'a>],
    /// Maximum output tokens, reasoning included.
    pub max_tokens: u32,
    /// Asks the provider for reasoning.
    pub thinking: bool,
}

/// One message of the conversation.
#[derive(Clone)]
pub struct PromptMessage<'a> {
    pub role: Role,
    pub text: Cow<'a, str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    User,
    Assistant,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

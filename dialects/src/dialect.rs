use std::ops::ControlFlow;

use crate::{
    Decoder, Prompt, ReportedUsage, anthropic,
    decoder::Answer,
    json::{Json, Object},
    openai::{self, Flavor},
};

/// The wire format of a provider's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    AnthropicMessages,
    OpenAiChat,
    /// [`OpenAiChat`](Self::OpenAiChat) with OpenRouter's names for the token limit and for reasoning.
    OpenRouterChat,
}

/// The data of a frame is not the JSON that the dialect expects.
#[derive(Debug)]
pub(crate) struct Unreadable;

impl Dialect {
    /// Returns the last part of the path, without a slash at its start. The part before it depends on
    /// the provider.
    pub const fn path(self) -> &'static str {
        match self {
            Self::AnthropicMessages => "messages",
            Self::OpenAiChat | Self::OpenRouterChat => "chat/completions",
        }
    }

    /// Returns the JSON body of a request for a streamed answer.
    pub fn request(self, prompt: &Prompt<'_>) -> Vec<u8> {
        match self {
            Self::AnthropicMessages => anthropic::request(prompt),
            Self::OpenAiChat => openai::request(prompt, Flavor::OpenAi),
            Self::OpenRouterChat => openai::request(prompt, Flavor::OpenRouter),
        }
    }

    /// Returns the usage that a whole answer reports; `None` if the body is no answer. Some proxies send
    /// one although a stream was requested.
    pub fn usage_of_answer(self, body: &[u8]) -> Option<ReportedUsage> {
        let answer = Json::parse(body).ok()?.object()?;
        let (content, read_usage): (_, fn(&Object<'_>) -> _) = match self {
            Self::AnthropicMessages => ("content", anthropic::read_usage),
            Self::OpenAiChat | Self::OpenRouterChat => ("choices", openai::read_usage),
        };
        if answer.get(content).is_none() || answer.get("error").is_some() {
            return None;
        }
        Some(answer.object("usage").and_then(|usage| read_usage(&usage)).unwrap_or_default())
    }

    pub fn decoder(self) -> Decoder {
        Decoder::new(self)
    }

    /// Reads the data of one frame. Breaks if the frame ends the stream.
    pub(crate) fn read(self, data: &[u8], answer: &mut Answer<'_>) -> Result<ControlFlow<()>, Unreadable> {
        match self {
            Self::AnthropicMessages => anthropic::read(data, answer),
            Self::OpenAiChat | Self::OpenRouterChat => openai::read(data, answer),
        }
    }
}

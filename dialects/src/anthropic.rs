//! Anthropic's Messages API.

use std::ops::ControlFlow;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Delta, Outcome, Prompt, ProviderFault, ReportedUsage, StopReason, dialect::Unreadable};

/// The minimum that the provider accepts as `budget_tokens`.
const MIN_THINKING_TOKENS: u32 = 1024;
/// The first version (major, minor) of Claude with adaptive thinking. Later versions reject a budget.
const FIRST_ADAPTIVE: (u32, u32) = (4, 6);

pub(crate) fn request(prompt: &Prompt<'_>) -> Vec<u8> {
    let messages: Vec<_> =
        prompt.messages.iter().map(|message| json!({"role": message.role.as_str(), "content": message.text})).collect();
    let mut body =
        json!({"model": prompt.model, "max_tokens": prompt.max_tokens, "stream": true, "messages": messages});
    if let Some(system) = prompt.system {
        body["system"] = system.into();
    }
    if let Some(thinking) = thinking(prompt) {
        body["thinking"] = thinking;
    }
    body.to_string().into_bytes()
}

/// Returns the request's `thinking`. Versions with a budget get half of `max_tokens`, so that the
/// other half is left for the answer, and no thinking if that is less than the minimum.
fn thinking(prompt: &Prompt<'_>) -> Option<Value> {
    if !prompt.thinking {
        return None;
    }
    if version(prompt.model).is_some_and(|version| version >= FIRST_ADAPTIVE) {
        // Later versions omit the text of the reasoning by default.
        return Some(json!({"type": "adaptive", "display": "summarized"}));
    }
    let budget = prompt.max_tokens / 2;
    (budget >= MIN_THINKING_TOKENS).then(|| json!({"type": "enabled", "budget_tokens": budget}))
}

/// Returns the version in a model's name: (4, 6) of `claude-opus-4-6` and of
/// `anthropic.claude-opus-4-6-v1:0`, (3, 7) of `claude-3-7-sonnet-20250219`, (4, 0) of
/// `claude-opus-4-20250514`. A number of more than two digits is a date.
fn version(model: &str) -> Option<(u32, u32)> {
    let number = |part: &str| part.parse().ok().filter(|_| part.len() <= 2);
    let mut parts = model.split(|character: char| !character.is_ascii_alphanumeric());
    let major = parts.find_map(number)?;
    Some((major, parts.next().and_then(number).unwrap_or(0)))
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Message,
    },
    ContentBlockStart {
        index: u32,
        content_block: Block,
    },
    ContentBlockDelta {
        index: u32,
        delta: BlockDelta,
    },
    MessageDelta {
        delta: MessageDelta,
        usage: Option<Usage>,
    },
    MessageStop,
    Error {
        error: Value,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Message {
    usage: Option<Usage>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        #[serde(default)]
        text: String,
    },
    Thinking {
        #[serde(default)]
        thinking: String,
    },
    ToolUse,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum BlockDelta {
    TextDelta {
        text: String,
    },
    ThinkingDelta {
        thinking: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct MessageDelta {
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "these are the provider's names")]
struct Usage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

/// An error without the event's `type`, as proxies send it.
#[derive(Deserialize)]
struct BareError {
    error: Value,
}

pub(crate) fn read(data: &[u8], outcome: &mut Outcome, out: &mut Vec<Delta>) -> Result<ControlFlow<()>, Unreadable> {
    let event = match serde_json::from_slice(data) {
        Ok(event) => event,
        Err(_) => serde_json::from_slice::<BareError>(data).map(|bare| Event::Error { error: bare.error })?,
    };
    match event {
        // Some proxies repeat this event. Its counts are older than those of a message_delta.
        Event::MessageStart { message } => {
            if let (None, Some(usage)) = (outcome.usage, message.usage) {
                usage.update(&mut outcome.usage);
            }
        }
        Event::ContentBlockStart { index, content_block } => match content_block {
            Block::Text { text } => push_text(index, text, out),
            Block::Thinking { thinking } => push_reasoning(index, thinking, out),
            Block::ToolUse => outcome.had_tool_call = true,
            Block::Other => {}
        },
        Event::ContentBlockDelta { index, delta } => match delta {
            BlockDelta::TextDelta { text } => push_text(index, text, out),
            BlockDelta::ThinkingDelta { thinking } => push_reasoning(index, thinking, out),
            BlockDelta::Other => {}
        },
        Event::MessageDelta { delta, usage } => {
            if let Some(reason) = delta.stop_reason {
                outcome.stop = Some(stop_reason(&reason));
            }
            if let Some(usage) = usage {
                outcome.is_usage_final |= usage.output_tokens.is_some();
                usage.update(&mut outcome.usage);
            }
        }
        Event::MessageStop => {
            outcome.is_complete = true;
            return Ok(ControlFlow::Break(()));
        }
        Event::Error { error } => {
            outcome.error = Some(ProviderFault::from_event(&error));
            return Ok(ControlFlow::Break(()));
        }
        Event::Other => {}
    }
    Ok(ControlFlow::Continue(()))
}

impl Usage {
    /// Sets the counts that this event carries. They are cumulative, so nothing is added. An event
    /// without counts reports no usage.
    fn update(&self, usage: &mut Option<ReportedUsage>) {
        let reported =
            [self.input_tokens, self.output_tokens, self.cache_read_input_tokens, self.cache_creation_input_tokens];
        if reported.iter().all(Option::is_none) {
            return;
        }
        let usage = usage.get_or_insert_default();
        let counts = [
            &mut usage.input_tokens,
            &mut usage.output_tokens,
            &mut usage.cache_read_tokens,
            &mut usage.cache_write_tokens,
        ];
        for (count, reported) in counts.into_iter().zip(reported) {
            *count = reported.unwrap_or(*count);
        }
    }
}

fn push_text(part: u32, text: String, out: &mut Vec<Delta>) {
    if !text.is_empty() {
        out.push(Delta::Text { part, text });
    }
}

fn push_reasoning(part: u32, text: String, out: &mut Vec<Delta>) {
    if !text.is_empty() {
        out.push(Delta::Reasoning { part, text });
    }
}

/// An unknown reason counts as the end of the turn, because the answer is whole.
fn stop_reason(reason: &str) -> StopReason {
    match reason {
        "max_tokens" | "model_context_window_exceeded" => StopReason::MaxTokens,
        "stop_sequence" => StopReason::StopSequence,
        "refusal" => StopReason::Refusal,
        "tool_use" => StopReason::ToolUse,
        _ => StopReason::EndTurn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_model_names() {
        for (model, expected) in [
            ("claude-opus-4-6", Some((4, 6))),
            ("claude-opus-4.7", Some((4, 7))),
            ("claude-sonnet-5", Some((5, 0))),
            ("claude-haiku-4-5-20251001", Some((4, 5))),
            ("claude-opus-4-20250514", Some((4, 0))),
            ("claude-3-7-sonnet-20250219", Some((3, 7))),
            ("claude-opus-4-6@20260101", Some((4, 6))),
            ("us.anthropic.claude-opus-4-6-v1:0", Some((4, 6))),
            ("anthropic.claude-opus-4-20250514-v1:0", Some((4, 0))),
            ("claude-v2", None),
            ("our-alias", None),
            ("", None),
        ] {
            assert_eq!(version(model), expected, "{model}");
        }
    }
}

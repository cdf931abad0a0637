//! Anthropic's Messages API.

use std::ops::ControlFlow;

use serde_json::{Value, json};

use crate::{
    FaultKind, Prompt, ProviderFault, ReportedStop, ReportedUsage,
    decoder::Answer,
    dialect::Unreadable,
    json::{Json, Object},
    text::Part,
};

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

pub(crate) fn read(data: &[u8], answer: &mut Answer<'_>) -> Result<ControlFlow<()>, Unreadable> {
    let event = Json::parse(data)?.object().ok_or(Unreadable)?;
    match event.to_text("type").as_deref() {
        Some("message_start") => {
            let usage = event.object("message").and_then(|message| message.object("usage"));
            // Some proxies repeat this event. Its counts are older than those of a message_delta.
            if let (None, Some(usage)) = (answer.outcome.usage, usage) {
                answer.outcome.usage = read_usage(&usage);
            }
        }
        Some("content_block_start") => read_block(&event, answer),
        Some("content_block_delta") => read_delta(&event, answer),
        Some("message_delta") => {
            if let Some(reason) = event.object("delta").and_then(|delta| delta.to_text("stop_reason")) {
                answer.outcome.stop = Some(stop_reason(&reason));
            }
            if let Some(usage) = event.object("usage").and_then(|usage| read_usage(&usage)) {
                answer.update_usage(usage, true);
            }
        }
        Some("message_stop") => {
            answer.outcome.is_complete = true;
            return Ok(ControlFlow::Break(()));
        }
        // Proxies also send an error without the event's `type`.
        kind @ (Some("error") | None) => {
            let fault = event.get("error").map(ProviderFault::from_event);
            let unknown = kind.map(|_| ProviderFault::without_message(FaultKind::Unavailable));
            answer.outcome.error = Some(fault.or(unknown).ok_or(Unreadable)?);
            return Ok(ControlFlow::Break(()));
        }
        Some(_) => {}
    }
    Ok(ControlFlow::Continue(()))
}

/// Some providers send the first text of a block with its start.
fn read_block(event: &Object<'_>, answer: &mut Answer<'_>) {
    let Some(block) = answer.read(event.get("content_block"), Json::object) else { return };
    match block.to_text("type").as_deref() {
        Some("text") => {
            answer.push(Part::Text(index(event)), block.get("text"));
        }
        Some("thinking") => {
            answer.push(Part::Reasoning(index(event)), block.get("thinking"));
        }
        Some("tool_use") => answer.outcome.had_tool_call = true,
        _ => {}
    }
}

fn read_delta(event: &Object<'_>, answer: &mut Answer<'_>) {
    let Some(delta) = answer.read(event.get("delta"), Json::object) else { return };
    match delta.to_text("type").as_deref() {
        Some("text_delta") => {
            answer.push(Part::Text(index(event)), delta.get("text"));
        }
        Some("thinking_delta") => {
            answer.push(Part::Reasoning(index(event)), delta.get("thinking"));
        }
        _ => {}
    }
}

/// Returns the number of the event's block, or 0 if the event has none.
fn index(event: &Object<'_>) -> u32 {
    event.count("index").and_then(|index| index.try_into().ok()).unwrap_or(0)
}

/// Returns the counts that an event carries. They are cumulative.
pub(crate) fn read_usage(usage: &Object<'_>) -> Option<ReportedUsage> {
    ReportedUsage {
        input_tokens: usage.count("input_tokens"),
        output_tokens: usage.count("output_tokens"),
        cache_read_tokens: usage.count("cache_read_input_tokens"),
        cache_write_tokens: usage.count("cache_creation_input_tokens"),
    }
    .non_empty()
}

/// An unknown reason counts as the end of the turn, because the answer is whole.
fn stop_reason(reason: &str) -> ReportedStop {
    match reason {
        "max_tokens" | "model_context_window_exceeded" => ReportedStop::MaxTokens,
        "stop_sequence" => ReportedStop::StopSequence,
        "refusal" => ReportedStop::Refusal,
        "tool_use" => ReportedStop::ToolUse,
        _ => ReportedStop::EndTurn,
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

//! OpenAI's Chat Completions API, which Bedrock, Vertex and OpenRouter also offer.

use std::ops::ControlFlow;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use crate::{Delta, FaultKind, Outcome, Prompt, ProviderFault, ReportedUsage, StopReason, dialect::Unreadable};

const TEXT_PART: u32 = 0;
const REASONING_PART: u32 = 1;

#[derive(Clone, Copy)]
pub(crate) enum Flavor {
    OpenAi,
    OpenRouter,
}

pub(crate) fn request(prompt: &Prompt<'_>, flavor: Flavor) -> Vec<u8> {
    let system = prompt.system.map(|text| json!({"role": "system", "content": text}));
    let others = prompt.messages.iter().map(|message| json!({"role": message.role.as_str(), "content": message.text}));
    let messages: Vec<_> = system.into_iter().chain(others).collect();
    let mut body = json!({
        "model": prompt.model,
        "messages": messages,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    match flavor {
        Flavor::OpenAi => body["max_completion_tokens"] = prompt.max_tokens.into(),
        Flavor::OpenRouter => body["max_tokens"] = prompt.max_tokens.into(),
    }
    if prompt.thinking {
        match flavor {
            Flavor::OpenAi => body["reasoning_effort"] = "medium".into(),
            Flavor::OpenRouter => body["reasoning"] = json!({"effort": "medium"}),
        }
    }
    body.to_string().into_bytes()
}

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    delta: Option<ChoiceDelta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct ChoiceDelta {
    content: Option<String>,
    refusal: Option<String>,
    reasoning_content: Option<String>,
    /// OpenRouter's name of `reasoning_content`. Some providers send both with the same text.
    reasoning: Option<String>,
    tool_calls: Option<Vec<IgnoredAny>>,
    function_call: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    total_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

pub(crate) fn read(data: &[u8], outcome: &mut Outcome, out: &mut Vec<Delta>) -> Result<ControlFlow<()>, Unreadable> {
    if data.trim_ascii() == b"[DONE]" {
        outcome.is_complete = true;
        return Ok(ControlFlow::Break(()));
    }
    let chunk: Chunk = serde_json::from_slice(data)?;
    if chunk.choices.is_none() && chunk.usage.is_none() && chunk.error.is_none() {
        return Err(Unreadable);
    }
    if let Some(usage) = chunk.usage {
        outcome.usage = Some(usage.into());
        outcome.is_usage_final = true;
    }
    let mut fault = chunk.error.as_ref().map(ProviderFault::from_event);
    for choice in chunk.choices.into_iter().flatten().filter(|choice| choice.index == 0) {
        if let Some(delta) = choice.delta {
            delta.read(outcome, out);
        }
        match choice.finish_reason.as_deref() {
            None | Some("") => {}
            Some("error") => fault = fault.or(Some(ProviderFault::without_message(FaultKind::Unavailable))),
            Some(reason) => {
                outcome.stop = Some(stop_reason(reason, outcome.stop));
                // Some providers send no `[DONE]`. The usage may follow.
                outcome.is_complete = true;
            }
        }
    }
    if fault.is_some() {
        outcome.error = fault;
        outcome.is_complete = false;
        return Ok(ControlFlow::Break(()));
    }
    Ok(ControlFlow::Continue(()))
}

impl ChoiceDelta {
    fn read(self, outcome: &mut Outcome, out: &mut Vec<Delta>) {
        let non_empty = |text: &String| !text.is_empty();
        if let Some(text) = self.reasoning_content.filter(non_empty).or(self.reasoning.filter(non_empty)) {
            out.push(Delta::Reasoning { part: REASONING_PART, text });
        }
        if let Some(text) = self.content.filter(non_empty) {
            out.push(Delta::Text { part: TEXT_PART, text });
        }
        if let Some(text) = self.refusal.filter(non_empty) {
            outcome.stop = Some(StopReason::Refusal);
            out.push(Delta::Text { part: TEXT_PART, text });
        }
        outcome.had_tool_call |= self.function_call.is_some() || self.tool_calls.is_some_and(|calls| !calls.is_empty());
    }
}

impl From<Usage> for ReportedUsage {
    fn from(usage: Usage) -> Self {
        let details = usage.prompt_tokens_details;
        let cache_read = details.as_ref().and_then(|details| details.cached_tokens).unwrap_or(0);
        let cache_write = details.as_ref().and_then(|details| details.cache_write_tokens).unwrap_or(0);
        // `completion_tokens` should include reasoning. Gemini and Grok count reasoning in the total only.
        let beyond_prompt = usage.total_tokens.unwrap_or(0).saturating_sub(usage.prompt_tokens);
        Self {
            input_tokens: usage.prompt_tokens.saturating_sub(cache_read).saturating_sub(cache_write),
            output_tokens: usage.completion_tokens.max(beyond_prompt),
            cache_read_tokens: cache_read,
            cache_write_tokens: cache_write,
        }
    }
}

/// An unknown reason counts as the end of the turn, because the answer is whole. A refusal in text ends
/// with `stop`.
fn stop_reason(reason: &str, so_far: Option<StopReason>) -> StopReason {
    match reason {
        "length" => StopReason::MaxTokens,
        "content_filter" => StopReason::Refusal,
        "tool_calls" | "function_call" => StopReason::ToolUse,
        _ => so_far.filter(|stop| *stop == StopReason::Refusal).unwrap_or(StopReason::EndTurn),
    }
}

//! OpenAI's Chat Completions API, which Bedrock, Vertex and OpenRouter also offer.

use std::ops::ControlFlow;

use serde_json::json;

use crate::{
    FaultKind, Prompt, ProviderFault, ReportedStop, ReportedUsage,
    decoder::Answer,
    dialect::Unreadable,
    json::{Json, Object},
    text::Part,
};

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

pub(crate) fn read(data: &[u8], answer: &mut Answer<'_>) -> Result<ControlFlow<()>, Unreadable> {
    if data.trim_ascii() == b"[DONE]" {
        answer.outcome.is_complete = true;
        return Ok(ControlFlow::Break(()));
    }
    let chunk = Json::parse(data)?.object().ok_or(Unreadable)?;
    let (choices, usage) = (chunk.get("choices"), chunk.get("usage"));
    let error = chunk.get("error").filter(|error| !error.is_blank());
    if choices.is_none() && usage.is_none() && error.is_none() {
        return Err(Unreadable);
    }
    let mut fault = error.map(ProviderFault::from_event);
    let choices = answer.read(choices, Json::elements).unwrap_or_default();
    // Some providers report with every chunk what they have counted so far.
    let is_after_answer = choices.is_empty();
    for choice in choices {
        let Some(choice) = answer.read(Some(choice), Json::object) else { continue };
        if choice.count("index").is_some_and(|index| index != 0) {
            continue;
        }
        if let Some(delta) = answer.read(choice.get("delta"), Json::object) {
            read_delta(&delta, answer);
        }
        match choice.to_text("finish_reason").as_deref() {
            None | Some("") => {}
            Some("error") => fault = fault.or(Some(ProviderFault::without_message(FaultKind::Unavailable))),
            Some(reason) => {
                answer.outcome.stop = Some(stop_reason(reason, answer.outcome.stop));
                // Some providers send no `[DONE]`. The usage may follow.
                answer.outcome.is_complete = true;
            }
        }
    }
    if let Some(usage) = usage.and_then(Json::object).and_then(|usage| read_usage(&usage)) {
        answer.update_usage(usage, is_after_answer || answer.outcome.is_complete);
    }
    if fault.is_some() {
        answer.outcome.error = fault;
        answer.outcome.is_complete = false;
        return Ok(ControlFlow::Break(()));
    }
    Ok(ControlFlow::Continue(()))
}

fn read_delta(delta: &Object<'_>, answer: &mut Answer<'_>) {
    // OpenRouter's name is `reasoning`. Some providers send both with the same text.
    if !answer.push(Part::Reasoning(REASONING_PART), delta.get("reasoning_content")) {
        answer.push(Part::Reasoning(REASONING_PART), delta.get("reasoning"));
    }
    answer.push(Part::Text(TEXT_PART), delta.get("content"));
    if answer.push(Part::Text(TEXT_PART), delta.get("refusal")) {
        answer.outcome.stop = Some(ReportedStop::Refusal);
    }
    let has_calls = delta.get("tool_calls").and_then(Json::elements).is_some_and(|calls| !calls.is_empty());
    answer.outcome.had_tool_call |= has_calls || delta.get("function_call").is_some();
}

pub(crate) fn read_usage(usage: &Object<'_>) -> Option<ReportedUsage> {
    let (input, output) = (usage.count("prompt_tokens"), usage.count("completion_tokens"));
    let details = usage.object("prompt_tokens_details");
    let cached = |name| input.map(|_| details.as_ref().and_then(|details| details.count(name)).unwrap_or(0));
    let (cache_read, cache_write) = (cached("cached_tokens"), cached("cache_write_tokens"));
    // `completion_tokens` should include reasoning. Gemini and Grok count reasoning in the total only.
    let beyond_prompt = usage.count("total_tokens").zip(input).map(|(total, input)| total.saturating_sub(input));
    ReportedUsage {
        input_tokens: input
            .map(|input| input.saturating_sub(cache_read.unwrap_or(0)).saturating_sub(cache_write.unwrap_or(0))),
        output_tokens: output.max(beyond_prompt),
        cache_read_tokens: cache_read,
        cache_write_tokens: cache_write,
    }
    .non_empty()
}

/// An unknown reason counts as the end of the turn, because the answer is whole. A refusal in text ends
/// with `stop`.
fn stop_reason(reason: &str, so_far: Option<ReportedStop>) -> ReportedStop {
    match reason {
        "length" => ReportedStop::MaxTokens,
        "content_filter" => ReportedStop::Refusal,
        "tool_calls" | "function_call" => ReportedStop::ToolUse,
        _ => so_far.filter(|stop| *stop == ReportedStop::Refusal).unwrap_or(ReportedStop::EndTurn),
    }
}

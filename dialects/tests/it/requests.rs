use std::borrow::Cow;

use karta_dialects::{Dialect, Prompt, PromptMessage, Role};
use serde_json::{Value, json};

const MESSAGES: [PromptMessage<'static>; 3] = [
    PromptMessage { role: Role::User, text: Cow::Borrowed("Hi") },
    PromptMessage { role: Role::Assistant, text: Cow::Borrowed("Hello \"you\"") },
    PromptMessage { role: Role::User, text: Cow::Borrowed("漢\n") },
];

fn prompt(model: &str) -> Prompt<'_> {
    Prompt { model, system: None, messages: &MESSAGES[..1], max_tokens: 4096, thinking: false }
}

fn request(dialect: Dialect, prompt: &Prompt<'_>) -> Value {
    serde_json::from_slice(&dialect.request(prompt)).expect("the request is JSON")
}

#[test]
fn anthropic_request_carries_system_and_messages() {
    let prompt = Prompt { system: Some("Be brief."), messages: &MESSAGES, ..prompt("claude-sonnet-5") };
    assert_eq!(
        request(Dialect::AnthropicMessages, &prompt),
        json!({
            "model": "claude-sonnet-5",
            "max_tokens": 4096,
            "stream": true,
            "system": "Be brief.",
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello \"you\""},
                {"role": "user", "content": "漢\n"},
            ],
        })
    );
}

#[test]
fn anthropic_thinking_depends_on_model_and_limit() {
    let adaptive = json!({"type": "adaptive", "display": "summarized"});
    let budget = |tokens: u32| json!({"type": "enabled", "budget_tokens": tokens});
    for (model, max_tokens, expected) in [
        ("claude-sonnet-4-5-20250929", 4096, budget(2048)),
        ("claude-sonnet-4-5-20250929", 2048, budget(1024)),
        ("claude-sonnet-4-5-20250929", 2047, Value::Null),
        ("our-alias", 4096, budget(2048)),
        ("claude-opus-4-6", 4096, adaptive.clone()),
        ("claude-sonnet-5", 100, adaptive),
    ] {
        let prompt = Prompt { max_tokens, thinking: true, ..prompt(model) };
        let request = request(Dialect::AnthropicMessages, &prompt);
        assert_eq!(request["thinking"], expected, "{model} {max_tokens}");
    }
}

#[test]
fn openai_request_carries_system_and_messages() {
    let prompt = Prompt { system: Some("Be brief."), messages: &MESSAGES[..2], ..prompt("gpt-5") };
    assert_eq!(
        request(Dialect::OpenAiChat, &prompt),
        json!({
            "model": "gpt-5",
            "max_completion_tokens": 4096,
            "stream": true,
            "stream_options": {"include_usage": true},
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello \"you\""},
            ],
        })
    );
}

#[test]
fn openai_dialects_name_limit_and_reasoning_differently() {
    let prompt = Prompt { thinking: true, ..prompt("gpt-5") };
    let common = json!({
        "model": "gpt-5",
        "stream": true,
        "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "Hi"}],
    });
    let mut expected = common.clone();
    expected["max_completion_tokens"] = 4096.into();
    expected["reasoning_effort"] = "medium".into();
    assert_eq!(request(Dialect::OpenAiChat, &prompt), expected);

    let mut expected = common;
    expected["max_tokens"] = 4096.into();
    expected["reasoning"] = json!({"effort": "medium"});
    assert_eq!(request(Dialect::OpenRouterChat, &prompt), expected);
}

#[test]
fn paths_are_relative() {
    assert_eq!(Dialect::AnthropicMessages.path(), "messages");
    assert_eq!(Dialect::OpenAiChat.path(), "chat/completions");
    assert_eq!(Dialect::OpenRouterChat.path(), "chat/completions");
}

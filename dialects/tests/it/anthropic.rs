use karta_dialects::{Delta, Dialect, FaultKind, Outcome, ReportedStop, ReportedUsage};
use serde_json::{Value, json};

use crate::{reasoning, text, usage};

fn decode(events: &[Value]) -> (Vec<Delta>, Outcome) {
    crate::decode(Dialect::AnthropicMessages, &stream(events))
}

fn stream(events: &[Value]) -> String {
    let name = |event: &Value| event["type"].as_str().unwrap_or("message").to_owned();
    let frames: Vec<_> = events.iter().map(|event| format!("event: {}\ndata: {event}\n\n", name(event))).collect();
    frames.concat()
}

fn start(usage: &Value) -> Value {
    json!({"type": "message_start", "message": {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-5", "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": usage,
    }})
}

fn block(index: u32, block: &Value) -> Value {
    json!({"type": "content_block_start", "index": index, "content_block": block})
}

fn delta(index: u32, delta: &Value) -> Value {
    json!({"type": "content_block_delta", "index": index, "delta": delta})
}

fn text_delta(index: u32, text: &str) -> Value {
    delta(index, &json!({"type": "text_delta", "text": text}))
}

fn stop(reason: &str, usage: &Value) -> Value {
    json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": usage})
}

fn end() -> Value {
    json!({"type": "message_stop"})
}

/// Returns a report of these counts of input and output.
fn tokens(input: u64, output: u64) -> ReportedUsage {
    ReportedUsage { input_tokens: Some(input), output_tokens: Some(output), ..ReportedUsage::default() }
}

#[test]
fn text_with_usage_is_complete() {
    let (deltas, outcome) = decode(&[
        start(&json!({"input_tokens": 12, "output_tokens": 1})),
        block(0, &json!({"type": "text", "text": ""})),
        json!({"type": "ping"}),
        text_delta(0, "Hello"),
        text_delta(0, ""),
        text_delta(0, ", 世界 🦀"),
        json!({"type": "content_block_stop", "index": 0}),
        stop("end_turn", &json!({"output_tokens": 15})),
        end(),
    ]);
    assert_eq!(deltas, [text(0, "Hello"), text(0, ", 世界 🦀")]);
    let expected = Outcome {
        usage: Some(tokens(12, 15)),
        is_usage_final: true,
        stop: Some(ReportedStop::EndTurn),
        is_complete: true,
        ..Outcome::default()
    };
    assert_eq!(outcome, expected);
}

#[test]
fn reasoning_keeps_its_block() {
    let (deltas, outcome) = decode(&[
        start(&json!({"input_tokens": 1, "output_tokens": 1})),
        block(0, &json!({"type": "thinking", "thinking": "", "signature": ""})),
        delta(0, &json!({"type": "thinking_delta", "thinking": "27 * 453"})),
        delta(0, &json!({"type": "signature_delta", "signature": "EqQBCgIYAhIM"})),
        block(1, &json!({"type": "redacted_thinking", "data": "EmwKAhgB"})),
        block(2, &json!({"type": "text", "text": "It is "})),
        text_delta(2, "12,231"),
        delta(2, &json!({"type": "citations_delta", "citation": {"type": "char_location"}})),
        stop("end_turn", &json!({"output_tokens": 40})),
        end(),
    ]);
    assert_eq!(deltas, [reasoning(0, "27 * 453"), text(2, "It is "), text(2, "12,231")]);
    assert_eq!((outcome.is_complete, outcome.skipped_frames), (true, 0));
}

#[test]
fn cumulative_usage_is_set() {
    let caching = json!({
        "input_tokens": 10, "cache_creation_input_tokens": 200, "cache_read_input_tokens": 3000, "output_tokens": 1,
    });
    let later = json!({"input_tokens": 61, "cache_read_input_tokens": null, "output_tokens": 7});
    for (events, expected) in [
        (vec![start(&caching)], Some(usage([10, 1, 3000, 200]))),
        (vec![start(&caching), start(&caching)], Some(usage([10, 1, 3000, 200]))),
        (vec![start(&caching), stop("end_turn", &json!({"output_tokens": 5}))], Some(usage([10, 5, 3000, 200]))),
        (vec![start(&caching), stop("end_turn", &later)], Some(usage([61, 7, 3000, 200]))),
        (vec![start(&caching), stop("end_turn", &later), start(&caching)], Some(usage([61, 7, 3000, 200]))),
        (vec![stop("end_turn", &later)], Some(tokens(61, 7))),
        (vec![start(&Value::Null), stop("end_turn", &Value::Null)], None),
    ] {
        assert_eq!(decode(&events).1.usage, expected, "{events:?}");
    }
}

#[test]
fn stop_reasons_are_mapped() {
    for (reason, expected) in [
        ("end_turn", ReportedStop::EndTurn),
        ("pause_turn", ReportedStop::EndTurn),
        ("a_later_reason", ReportedStop::EndTurn),
        ("max_tokens", ReportedStop::MaxTokens),
        ("model_context_window_exceeded", ReportedStop::MaxTokens),
        ("stop_sequence", ReportedStop::StopSequence),
        ("refusal", ReportedStop::Refusal),
        ("tool_use", ReportedStop::ToolUse),
    ] {
        let (_, outcome) = decode(&[stop(reason, &Value::Null), end()]);
        assert_eq!((outcome.stop, outcome.is_complete), (Some(expected), true), "{reason}");
    }
}

#[test]
fn tool_call_gives_no_delta() {
    let (deltas, outcome) = decode(&[
        block(0, &json!({"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}})),
        delta(0, &json!({"type": "input_json_delta", "partial_json": "{\"location\":"})),
        stop("tool_use", &json!({"output_tokens": 8})),
        end(),
    ]);
    assert_eq!(deltas, []);
    assert!(outcome.had_tool_call && outcome.stop == Some(ReportedStop::ToolUse));
}

#[test]
fn error_event_ends_the_stream() {
    for error in [
        json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        json!({"error": {"type": "overloaded_error", "message": "Overloaded"}}),
    ] {
        let (deltas, outcome) = decode(&[text_delta(0, "a"), error, text_delta(0, "b"), end()]);
        assert_eq!(deltas, [text(0, "a")]);
        let fault = outcome.error.unwrap();
        assert_eq!((fault.kind, fault.message.as_deref()), (FaultKind::Unavailable, Some("Overloaded")));
        assert!(!outcome.is_complete);
    }
    let fault = decode(&[json!({"type": "error"}), end()]).1.error.unwrap();
    assert_eq!((fault.kind, fault.message), (FaultKind::Unavailable, None));
}

#[test]
fn first_count_is_not_final() {
    let answer = |first: Value, last: Value| {
        let events = [start(&first), text_delta(0, "a"), stop("end_turn", &last), end()];
        let (_, outcome) = decode(&events);
        assert!(outcome.is_complete);
        (outcome.usage, outcome.is_usage_final)
    };
    let first = || json!({"input_tokens": 9, "output_tokens": 1});
    assert_eq!(answer(first(), json!({"output_tokens": 5})), (Some(tokens(9, 5)), true));
    assert_eq!(answer(first(), json!({})), (Some(tokens(9, 1)), false));
    assert_eq!(answer(first(), Value::Null), (Some(tokens(9, 1)), false));
    assert_eq!(answer(json!({}), json!({})), (None, false));
}

#[test]
fn cut_stream_is_incomplete() {
    let events =
        [start(&json!({"input_tokens": 9, "output_tokens": 1})), text_delta(0, "a"), stop("end_turn", &Value::Null)];
    let (deltas, outcome) = decode(&events);
    assert_eq!(deltas, [text(0, "a")]);
    assert_eq!((outcome.is_complete, outcome.error, outcome.usage), (false, None, Some(tokens(9, 1))));

    let whole = stream(&events);
    let in_the_middle_of_json = &whole[..whole.find("stop_reason\":\"end").unwrap()];
    let (deltas, outcome) = crate::decode(Dialect::AnthropicMessages, in_the_middle_of_json);
    assert_eq!(deltas, [text(0, "a")]);
    assert_eq!((outcome.is_complete, outcome.skipped_frames), (false, 0));
}

#[test]
fn last_event_needs_no_blank_line() {
    let stream = stream(&[text_delta(0, "a"), end()]);
    let (_, outcome) = crate::decode(Dialect::AnthropicMessages, stream.trim_end());
    assert!(outcome.is_complete);
}

#[test]
fn broken_frames_are_skipped_and_counted() {
    let good = stream(&[text_delta(0, "a")]);
    let broken = "data: {\"type\":\"content_block_delta\",\"index\":0,\"del\n\n";
    let frames = ["data: []\n\n", "data: {}\n\n", "data: [DONE]\n\n", "event: ping\ndata:\n\n", ": comment\n\n"];
    let later = stream(&[json!({"type": "a_later_event", "index": "x", "delta": []}), text_delta(0, "b"), end()]);
    let whole = format!("{good}{broken}{}{later}", frames.concat());
    let (deltas, outcome) = crate::decode(Dialect::AnthropicMessages, &whole);
    assert_eq!(deltas, [text(0, "a"), text(0, "b")]);
    assert_eq!((outcome.skipped_frames, outcome.is_complete), (4, true));
}

#[test]
fn odd_members_leave_text_and_counts() {
    for (first, odd) in [
        (start(&json!({"input_tokens": 9})), json!({"type": "ping", "x": -1})),
        (start(&json!({"input_tokens": 9.0, "output_tokens": null})), json!({"type": "ping"})),
        (
            start(&json!({"input_tokens": 9, "output_tokens": -1, "cache_read_input_tokens": []})),
            json!({"type": "ping"}),
        ),
        (json!({"type": "message_start", "message": null}), stop("end_turn", &json!({"input_tokens": 9}))),
        (json!({"type": "message_start"}), stop("end_turn", &json!({"input_tokens": 9, "output_tokens": "x"}))),
        (start(&json!({"input_tokens": 9})), json!({"type": "content_block_start", "index": null})),
        (start(&json!({"input_tokens": 9})), json!({"type": "message_delta", "delta": null, "usage": []})),
        (start(&json!({"input_tokens": 9})), json!({"type": "content_block_delta", "delta": {"type": "text_delta"}})),
    ] {
        let events = [
            first.clone(),
            odd.clone(),
            json!({"type": "content_block_delta", "index": null, "delta": {"type": "text_delta", "text": "a", "text2": {}}}),
            json!({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 5.0}}),
            end(),
        ];
        let (deltas, outcome) = decode(&events);
        assert_eq!((deltas, outcome.skipped_frames), (vec![text(0, "a")], 0), "{first} {odd}");
        assert_eq!((outcome.usage, outcome.is_usage_final), (Some(tokens(9, 5)), true), "{first} {odd}");
        assert_eq!((outcome.stop, outcome.is_complete), (Some(ReportedStop::MaxTokens), true), "{first} {odd}");
    }
}

#[test]
fn unreported_input_is_unknown() {
    let (_, outcome) = decode(&[text_delta(0, "a"), stop("end_turn", &json!({"output_tokens": 5})), end()]);
    let usage = outcome.usage.unwrap();
    assert_eq!((usage.input_tokens, usage.output_tokens), (None, Some(5)));
}

#[test]
fn text_of_another_type_is_counted() {
    for odd in [
        delta(0, &json!({"type": "text_delta", "text": 1})),
        delta(0, &json!({"type": "thinking_delta", "thinking": {}})),
        delta(0, &json!("b")),
        block(0, &json!([])),
    ] {
        let (deltas, outcome) = decode(&[text_delta(0, "a"), odd, text_delta(0, "c"), end()]);
        assert_eq!((deltas, outcome.skipped_frames), (vec![text(0, "a"), text(0, "c")], 1));
    }
}

#[test]
fn oversized_frame_is_counted() {
    let large = text_delta(0, &"x".repeat(karta_dialects::MAX_FRAME_BYTES));
    let (deltas, outcome) = decode(&[text_delta(0, "a"), large, text_delta(0, "b"), end()]);
    assert_eq!(deltas, [text(0, "a"), text(0, "b")]);
    assert_eq!((outcome.skipped_frames, outcome.is_complete), (1, true));
}

#[test]
fn foreign_answer_is_an_incomplete_stream() {
    for answer in ["<html>\n\n<body>data: x</body></html>\n\n", "{\"error\":{\"message\":\"x\"}}", ""] {
        let (deltas, outcome) = crate::decode(Dialect::AnthropicMessages, answer);
        assert_eq!((deltas, outcome), (vec![], Outcome::default()), "{answer}");
    }
}

#[test]
fn bytes_after_the_end_are_ignored() {
    let mut decoder = Dialect::AnthropicMessages.decoder();
    let mut deltas = Vec::new();
    decoder.push(stream(&[text_delta(0, "a")]).as_bytes(), &mut deltas);
    assert!(!decoder.has_ended() && !decoder.outcome().is_complete);
    decoder.push(stream(&[end(), text_delta(0, "b"), json!([])]).as_bytes(), &mut deltas);
    assert!(decoder.has_ended() && decoder.outcome().is_complete);
    decoder.push(b"data: broken\n\n", &mut deltas);
    let outcome = decoder.finish(&mut deltas);
    assert_eq!((deltas, outcome.skipped_frames), (vec![text(0, "a")], 0));
}

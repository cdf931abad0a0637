use karta_dialects::{Delta, Dialect, FaultKind, Outcome, ReportedStop};
use serde_json::{Value, json};

use crate::{reasoning, text, usage};

const DONE: &str = "data: [DONE]\n\n";

fn decode(stream: &str) -> (Vec<Delta>, Outcome) {
    crate::decode(Dialect::OpenAiChat, stream)
}

fn stream(chunks: &[Value]) -> String {
    let frames: Vec<_> = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
    frames.concat()
}

fn chunk(delta: &Value, finish_reason: Option<&str>) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "gpt-5",
        "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}],
        "usage": null,
    })
}

fn content(text: &str) -> Value {
    chunk(&json!({"content": text}), None)
}

fn finish(reason: &str) -> Value {
    chunk(&json!({}), Some(reason))
}

fn usage_chunk(usage: &Value) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage})
}

#[test]
fn text_with_usage_is_complete() {
    let chunks = [
        chunk(&json!({"role": "assistant", "content": "", "refusal": null}), None),
        content("Hello"),
        content(", 世界 🦀"),
        finish("stop"),
        usage_chunk(&json!({"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29})),
    ];
    let (deltas, outcome) = decode(&(stream(&chunks) + DONE));
    assert_eq!(deltas, [text(0, "Hello"), text(0, ", 世界 🦀")]);
    let expected = Outcome {
        usage: Some(usage([19, 10, 0, 0])),
        is_usage_final: true,
        stop: Some(ReportedStop::EndTurn),
        is_complete: true,
        ..Outcome::default()
    };
    assert_eq!(outcome, expected);
    assert_eq!(decode(&stream(&chunks)).1, expected, "without [DONE]");
    assert_eq!(decode(&(stream(&chunks) + "data: [DONE]")).1, expected, "without a line end");
}

#[test]
fn reasoning_is_read_from_both_names() {
    let (deltas, _) = decode(&stream(&[
        chunk(&json!({"reasoning_content": "a", "content": null}), None),
        chunk(&json!({"reasoning": "b", "content": ""}), None),
        chunk(&json!({"reasoning": "c", "reasoning_content": "c"}), None),
        chunk(&json!({"reasoning": "d", "reasoning_content": "", "content": "e"}), None),
    ]));
    assert_eq!(deltas, [reasoning(1, "a"), reasoning(1, "b"), reasoning(1, "c"), reasoning(1, "d"), text(0, "e")]);
}

#[test]
fn usage_kinds_do_not_overlap() {
    for (reported, expected) in [
        (json!({"prompt_tokens": 5, "completion_tokens": 7}), [5, 7, 0, 0]),
        (
            json!({
                "prompt_tokens": 1000, "completion_tokens": 300, "total_tokens": 1300,
                "prompt_tokens_details": {"cached_tokens": 600, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 256},
            }),
            [400, 300, 600, 0],
        ),
        (
            json!({
                "prompt_tokens": 1000, "completion_tokens": 1, "total_tokens": 1001,
                "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 300},
            }),
            [100, 1, 600, 300],
        ),
        // Reasoning is in the total only.
        (
            json!({
                "prompt_tokens": 307, "completion_tokens": 26, "total_tokens": 560,
                "completion_tokens_details": {"reasoning_tokens": 227},
            }),
            [307, 253, 0, 0],
        ),
        (
            json!({"prompt_tokens": 5, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 9}}),
            [0, 1, 9, 0],
        ),
        (json!({"prompt_tokens": 5.0, "completion_tokens": 7.0, "prompt_tokens_details": []}), [5, 7, 0, 0]),
        (json!({"prompt_tokens": 5, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": -1}}), [5, 7, 0, 0]),
        // Counts that are missing or no counts leave the earlier ones.
        (json!({"prompt_tokens": null, "completion_tokens": 7}), [1, 7, 0, 0]),
        (json!({"prompt_tokens": 5, "completion_tokens": null}), [5, 1, 0, 0]),
        (json!({"prompt_tokens": -5, "completion_tokens": "7"}), [1, 1, 0, 0]),
        (json!({"prompt_tokens": 5.5, "completion_tokens": {}}), [1, 1, 0, 0]),
        (json!({}), [1, 1, 0, 0]),
        (json!([]), [1, 1, 0, 0]),
        (json!({"prompt_tokens": 5, "total_tokens": 2, "prompt_tokens_details": null}), [5, 1, 0, 0]),
        // Sums do not fall.
        (json!({"prompt_tokens": 0, "completion_tokens": 0}), [1, 1, 0, 0]),
        (json!({"prompt_tokens": 0, "completion_tokens": 7}), [1, 7, 0, 0]),
    ] {
        let cumulative = usage_chunk(&json!({"prompt_tokens": 1, "completion_tokens": 1}));
        let (_, outcome) = decode(&stream(&[cumulative, usage_chunk(&reported)]));
        assert_eq!(outcome.usage, Some(usage(expected)), "{reported}");
    }
}

#[test]
fn unknown_counts_are_not_zero() {
    for (reported, input, output) in [
        (json!({"prompt_tokens": null, "completion_tokens": 7}), None, Some(7)),
        (json!({"prompt_tokens": 5}), Some(5), None),
    ] {
        let outcome = decode(&stream(&[usage_chunk(&reported)])).1;
        let usage = outcome.usage.unwrap();
        assert_eq!((usage.input_tokens, usage.output_tokens), (input, output));
        assert_eq!(outcome.is_usage_final, output.is_some());
    }
    for reported in [json!({}), json!(null), json!([]), json!({"prompt_tokens": "5", "total_tokens": 12})] {
        assert_eq!(decode(&(stream(&[content("a"), usage_chunk(&reported)]) + DONE)).1.usage, None);
    }
}

#[test]
fn count_within_the_answer_is_not_final() {
    let with_usage = |mut chunk: Value, output: u64| {
        chunk["usage"] = json!({"prompt_tokens": 5, "completion_tokens": output});
        chunk
    };
    let first = || with_usage(content("a"), 1);
    let outcome = |chunks: &[Value]| decode(&(stream(chunks) + DONE)).1;
    assert!(!outcome(&[first(), content("b"), finish("stop")]).is_usage_final);
    assert!(outcome(&[first(), with_usage(finish("stop"), 2)]).is_usage_final);
    assert!(outcome(&[first(), usage_chunk(&json!({"prompt_tokens": 5, "completion_tokens": 2}))]).is_usage_final);
}

#[test]
fn odd_members_leave_text_and_counts() {
    let whole = || {
        json!({
            "id": "1", "model": "m", "service_tier": null, "error": null,
            "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7},
        })
    };
    for (pointer, odd) in [
        ("/id", json!(1)),
        ("/model", json!({})),
        ("/error", json!("")),
        ("/error", json!({})),
        ("/error", json!(false)),
        ("/choices/0/index", json!(null)),
        ("/choices/0/index", json!("0")),
        ("/choices/0/index", json!(0.0)),
        ("/choices/0/delta/role", json!([])),
        ("/choices/0/delta/refusal", json!(null)),
        ("/choices/0/delta/reasoning", json!(null)),
        ("/choices/0/delta/reasoning_content", json!("")),
        ("/choices/0/delta/tool_calls", json!({})),
        ("/choices/0/delta/tool_calls", json!(null)),
        ("/choices/0/logprobs", json!([1])),
        ("/choices/1", json!({"index": 1, "delta": {"content": {}}, "finish_reason": 1})),
        ("/usage/total_tokens", json!(-1)),
        ("/usage/prompt_tokens_details", json!([])),
        ("/usage/prompt_tokens_details", json!({"cached_tokens": null})),
        ("/usage/completion_tokens_details", json!("x")),
    ] {
        let mut chunk = whole();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        match chunk.pointer_mut(parent).unwrap() {
            Value::Array(elements) if name == "1" => elements.push(odd.clone()),
            parent => parent[name] = odd.clone(),
        }
        let (deltas, outcome) = decode(&stream(&[chunk]));
        assert_eq!((deltas, outcome.skipped_frames), (vec![text(0, "a")], 0), "{pointer} {odd}");
        assert_eq!(outcome.usage, Some(usage([5, 7, 0, 0])), "{pointer} {odd}");
        assert_eq!((outcome.stop, outcome.is_complete), (Some(ReportedStop::MaxTokens), true), "{pointer} {odd}");
    }
}

#[test]
fn text_of_another_type_is_counted() {
    let odd = [
        chunk(&json!({"content": 1}), None),
        chunk(&json!({"reasoning": {}, "content": "b"}), None),
        chunk(&json!("x"), None),
        json!({"choices": {}}),
        json!({"choices": [1, {"delta": {"content": "c"}}]}),
    ];
    let (deltas, outcome) = decode(&(stream(&[content("a")]) + &stream(&odd) + DONE));
    assert_eq!(deltas, [text(0, "a"), text(0, "b"), text(0, "c")]);
    assert_eq!((outcome.skipped_frames, outcome.is_complete), (5, true));
}

#[test]
fn halves_of_a_character_are_joined() {
    let piece =
        |member: &str, json: &str| format!("data: {{\"choices\":[{{\"delta\":{{\"{member}\":\"{json}\"}}}}]}}\n\n");
    let join = |pieces: &[(&str, &str)]| {
        let stream: String = pieces.iter().map(|(member, json)| piece(member, json)).collect();
        let (deltas, outcome) = decode(&(stream + DONE));
        assert_eq!(outcome.skipped_frames, 0);
        deltas
    };
    let content = |pieces: &[&str]| join(&pieces.iter().map(|json| ("content", *json)).collect::<Vec<_>>());
    assert_eq!(content(&[r"a \ud83e", r"\udd80 b"]), [text(0, "a "), text(0, "🦀 b")]);
    assert_eq!(content(&[r"\ud83e", r"\udd80"]), [text(0, "🦀")]);
    assert_eq!(content(&[r"\ud83e\udd80"]), [text(0, "🦀")]);
    assert_eq!(content(&[r"\ud83e", "", r"\udd80"]), [text(0, "🦀")]);
    assert_eq!(content(&[r"\udd80\ud83e", r"\udd80\ud83e"]), [text(0, "\u{fffd}"), text(0, "🦀"), text(0, "\u{fffd}")]);
    assert_eq!(content(&[r"\ud83e", "a"]), [text(0, "\u{fffd}"), text(0, "a")]);
    assert_eq!(content(&[r"a\ud83eb\udd80c"]), [text(0, "a\u{fffd}b\u{fffd}c")]);
    assert_eq!(content(&[r"a\ud83e"]), [text(0, "a"), text(0, "\u{fffd}")]);
    assert_eq!(
        join(&[("reasoning", r"\ud83e"), ("content", r"\udd80")]),
        [reasoning(1, "\u{fffd}"), text(0, "\u{fffd}")]
    );
}

#[test]
fn stop_reasons_are_mapped() {
    for (reason, expected) in [
        ("stop", ReportedStop::EndTurn),
        ("a_later_reason", ReportedStop::EndTurn),
        ("length", ReportedStop::MaxTokens),
        ("content_filter", ReportedStop::Refusal),
        ("tool_calls", ReportedStop::ToolUse),
        ("function_call", ReportedStop::ToolUse),
    ] {
        let (_, outcome) = decode(&stream(&[finish(reason)]));
        assert_eq!((outcome.stop, outcome.is_complete), (Some(expected), true), "{reason}");
    }
}

#[test]
fn refusal_text_is_text() {
    let refusal = chunk(&json!({"refusal": "I can't help with that."}), None);
    let (deltas, outcome) = decode(&(stream(&[refusal, finish("stop")]) + DONE));
    assert_eq!(deltas, [text(0, "I can't help with that.")]);
    assert_eq!(outcome.stop, Some(ReportedStop::Refusal));
}

#[test]
fn tool_call_gives_no_delta() {
    for call in [
        json!({"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}]}),
        json!({"function_call": {"name": "f", "arguments": ""}}),
    ] {
        let (deltas, outcome) = decode(&stream(&[chunk(&call, None), finish("tool_calls")]));
        assert_eq!(deltas, []);
        assert!(outcome.had_tool_call && outcome.stop == Some(ReportedStop::ToolUse));
    }
    assert!(!decode(&stream(&[chunk(&json!({"tool_calls": []}), None)])).1.had_tool_call);
}

#[test]
fn only_first_choice_is_read() {
    let other = json!({"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "length"}]});
    let (deltas, outcome) = decode(&stream(&[content("a"), other]));
    assert_eq!(deltas, [text(0, "a")]);
    assert_eq!((outcome.stop, outcome.is_complete), (None, false));
}

#[test]
fn error_event_ends_the_stream() {
    let rejected = json!({"error": {"message": "m", "type": "invalid_request_error", "code": null}});
    let mid_stream = json!({
        "id": "gen-1", "error": {"code": 502, "message": "m"},
        "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
    });
    for (error, kind, message) in [
        (rejected, FaultKind::Rejected, Some("m")),
        (mid_stream, FaultKind::Unavailable, Some("m")),
        (finish("error"), FaultKind::Unavailable, None),
    ] {
        let (deltas, outcome) = decode(&(stream(&[content("a"), error, content("b"), finish("stop")]) + DONE));
        assert_eq!(deltas, [text(0, "a")]);
        let fault = outcome.error.unwrap();
        assert_eq!((fault.kind, fault.message.as_deref()), (kind, message));
        assert_eq!((outcome.is_complete, outcome.stop), (false, None));
    }
}

#[test]
fn error_after_the_answer_makes_it_incomplete() {
    let error = json!({"error": {"message": "m", "code": "server_error"}});
    let (_, outcome) = decode(&(stream(&[content("a"), finish("stop"), error]) + DONE));
    assert!(outcome.error.is_some() && !outcome.is_complete);
}

#[test]
fn cut_stream_is_incomplete() {
    let whole = stream(&[content("a"), content("b")]);
    let (deltas, outcome) = decode(&whole[..whole.len() - 20]);
    assert_eq!((deltas, outcome), (vec![text(0, "a")], Outcome::default()));
}

#[test]
fn comments_and_line_ends_are_accepted() {
    let plain = format!(": OPENROUTER PROCESSING\n\n{}: OPENROUTER PROCESSING\n{DONE}", stream(&[content("a")]));
    for stream in [plain.clone(), plain.replace('\n', "\r\n"), plain.replace('\n', "\r"), format!("\u{feff}{plain}")] {
        let (deltas, outcome) = decode(&stream);
        assert_eq!(deltas, [text(0, "a")], "{stream:?}");
        assert!(outcome.is_complete && outcome.skipped_frames == 0);
    }
}

#[test]
fn broken_frames_are_skipped_and_counted() {
    let broken = ["data: {\"choices\":[{\"ind\n\n", "data: {}\n\n", "data: 1\n\n", "data: <html>\n\n", "data: \n\n"];
    let other = [json!({"error": null}), json!({"choices": null, "id": "x"})];
    let all = stream(&[content("a")]) + &broken.concat() + &stream(&other) + &stream(&[content("b")]) + DONE;
    let (deltas, outcome) = decode(&all);
    assert_eq!(deltas, [text(0, "a"), text(0, "b")]);
    assert_eq!((outcome.skipped_frames, outcome.is_complete), (6, true));
}

#[test]
fn invalid_text_is_not_altered() {
    let mut bytes = stream(&[content("a")]).into_bytes();
    bytes.extend_from_slice(b"data: {\"choices\":[{\"delta\":{\"content\":\"\xff\"}}]}\n\n");
    let (deltas, outcome) = crate::decode_by(1, Dialect::OpenAiChat, &bytes);
    assert_eq!((deltas, outcome.skipped_frames), (vec![text(0, "a")], 1));
}

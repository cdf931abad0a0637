//! The result does not depend on how the bytes are split.

use karta_dialects::{Delta, Dialect, Outcome};
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::json;

use crate::decode_by;

/// Decodes a stream that is split at these positions.
fn decode_at(positions: &[usize], dialect: Dialect, stream: &[u8]) -> (Vec<Delta>, Outcome) {
    let (mut decoder, mut deltas, mut start) = (dialect.decoder(), Vec::new(), 0);
    for position in positions {
        decoder.push(&stream[start..*position], &mut deltas);
        start = *position;
    }
    decoder.push(&stream[start..], &mut deltas);
    let outcome = decoder.finish(&mut deltas);
    (deltas, outcome)
}

fn anthropic_event() -> impl Strategy<Value = String> {
    let block = |delta: serde_json::Value| json!({"type": "content_block_delta", "index": 1, "delta": delta});
    prop_oneof![
        4 => any::<String>().prop_map(move |text| block(json!({"type": "text_delta", "text": text})).to_string()),
        2 => any::<String>().prop_map(move |text| block(json!({"type": "thinking_delta", "thinking": text})).to_string()),
        1 => any::<u32>().prop_map(|count| {
            json!({"type": "message_delta", "delta": {"stop_reason": "refusal"}, "usage": {"output_tokens": count}})
                .to_string()
        }),
        1 => select(vec![
            json!({"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}}).to_string(),
            json!({"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use"}}).to_string(),
            json!({"type": "ping"}).to_string(),
            json!({"type": "message_stop"}).to_string(),
            json!({"type": "error", "error": {"type": "overloaded_error", "message": "é"}}).to_string(),
            "{\"broken\":".to_owned(),
        ]),
    ]
}

fn openai_event() -> impl Strategy<Value = String> {
    let delta = |delta: serde_json::Value| json!({"choices": [{"index": 0, "delta": delta}]}).to_string();
    prop_oneof![
        4 => any::<String>().prop_map(move |text| delta(json!({"content": text}))),
        2 => any::<String>().prop_map(move |text| delta(json!({"reasoning": text}))),
        1 => any::<u32>().prop_map(|count| json!({"usage": {"prompt_tokens": count}}).to_string()),
        1 => select(vec![
            json!({"choices": [{"delta": {}, "finish_reason": "length"}]}).to_string(),
            delta(json!({"tool_calls": [{"index": 0}]})),
            delta(json!({"refusal": "漢"})),
            r#"{"choices":[{"delta":{"content":"a\ud83e"}}]}"#.to_owned(),
            r#"{"choices":[{"delta":{"content":"\udd80"}}]}"#.to_owned(),
            delta(json!({"content": ["odd"], "reasoning": "漢"})),
            json!({"error": {"message": "é", "code": 502}}).to_string(),
            "[DONE]".to_owned(),
            "{\"broken\":".to_owned(),
        ]),
    ]
}

/// Returns streams of these events with every line end, with comments and other fields between them.
/// Some end in the middle of an event.
fn streams(event: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<u8>> {
    let line_end = || select(vec!["\n", "\r", "\r\n"]);
    let before = select(vec!["", "", "event: x", ": OPENROUTER PROCESSING", "id: é", "data"]);
    let frame =
        (before, line_end(), event, line_end(), line_end()).prop_map(|(before, first, event, second, third)| {
            let before = if before.is_empty() { String::new() } else { format!("{before}{first}") };
            format!("{before}data: {event}{second}{third}")
        });
    let start = select(vec!["", "\u{feff}"]);
    (start, vec(frame, 0..6), 0..30_usize).prop_map(|(start, frames, missing)| {
        let mut stream = (start.to_owned() + &frames.concat()).into_bytes();
        stream.truncate(stream.len().saturating_sub(missing.saturating_sub(15)));
        stream
    })
}

fn check(dialect: Dialect, stream: &[u8], positions: &[prop::sample::Index]) -> Result<(), TestCaseError> {
    let whole = decode_at(&[], dialect, stream);
    prop_assert_eq!(&decode_by(1, dialect, stream), &whole);
    for position in 0..stream.len() {
        prop_assert_eq!(&decode_at(&[position], dialect, stream), &whole, "at {}", position);
    }
    let mut positions: Vec<_> = positions.iter().map(|index| index.index(stream.len() + 1)).collect();
    positions.sort_unstable();
    prop_assert_eq!(&decode_at(&positions, dialect, stream), &whole);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn anthropic_stream_decodes_equally_at_every_split(
        stream in streams(anthropic_event()), positions in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        check(Dialect::AnthropicMessages, &stream, &positions)?;
    }

    #[test]
    fn openai_stream_decodes_equally_at_every_split(
        stream in streams(openai_event()), positions in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        check(Dialect::OpenAiChat, &stream, &positions)?;
    }

    #[test]
    fn arbitrary_bytes_decode_equally_at_every_split(
        stream in vec(select(b"data: {}[]\"\r\n:\xef\xbb\xbf\xff".to_vec()), 0..200),
        positions in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        check(Dialect::AnthropicMessages, &stream, &positions)?;
        check(Dialect::OpenAiChat, &stream, &positions)?;
    }
}

#[test]
fn text_survives_every_split() {
    let text = "a é 漢 🦀 👩‍👩‍👧 \u{0} \" \\ \u{2028}\r\n";
    let event = json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
    let stream = format!("event: content_block_delta\r\ndata: {event}\r\n\r\n").into_bytes();
    for position in 0..stream.len() {
        let (deltas, _) = decode_at(&[position], Dialect::AnthropicMessages, &stream);
        assert_eq!(deltas, [crate::text(0, text)], "at {position}");
    }
}

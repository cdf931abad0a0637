//! Faults of the provider. Each ends its turn once, with the right code and usage, and leaves the
//! session usable.

use std::{
    slice,
    sync::Arc,
    time::{Duration, Instant},
};

use karta_local::{
    Options,
    provider::{Fault, Script},
};
use karta_shared::{
    clock::SystemClock,
    config::TurnLimits,
    domain::{LocalProviderBaseUrls, Turn, TurnStatus},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::sleep,
};

use super::{ANTHROPIC, Conversation, DIALECTS, EventReader, LIMITS, OPENAI, TurnServer, assert_whole, failed};
use crate::harness::{Reply, Request, options};

const TOKENS: usize = 60;

/// The tokens that a turn is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Charge {
    Nothing,
    /// The provider's report.
    Reported,
    /// The input, and the output that was seen.
    Estimated,
}

/// The end of a turn; `None` for an answer.
type End = Option<(u16, &'static str)>;

fn script(fault: Fault) -> Script {
    Script { tokens: TOKENS, fault, ..Script::default() }
}

fn status(status: u16, body: &Value, retry_after: Option<u64>) -> Script {
    script(Fault::Status { status, body: body.to_string(), retry_after })
}

fn error(kind: &str, message: &str) -> Value {
    json!({ "error": { "type": kind, "code": kind, "message": message } })
}

fn assert_charged(turns: &TurnServer, turn: &Turn, charge: Charge, seen: usize) {
    let ledger = turns.provider.ledger();
    let last = ledger.last().unwrap();
    let (input, output) = match charge {
        Charge::Nothing => (0, 0),
        Charge::Reported | Charge::Estimated => (last.input_tokens, u64::try_from(seen).unwrap()),
    };
    assert_eq!((turn.usage.input_tokens, turn.usage.output_tokens), (input, output), "{turn:?}");
    assert_eq!(turn.estimated, charge == Charge::Estimated, "{turn:?}");
    if charge == Charge::Reported {
        assert_eq!(output, last.output_tokens);
    }
}

fn push_all(turns: &TurnServer, scripts: &[Script]) {
    for script in scripts {
        turns.provider.push(script.clone());
    }
}

/// Runs the scripts in a unary and in a streamed turn. Returns the replies to the unary ones.
/// `seen` is the number of tokens that arrive; `requests` that of the requests upstream.
async fn check(turns: &TurnServer, scripts: &[Script], end: End, charge: Charge, seen: usize) -> Vec<Reply> {
    let mut replies = Vec::new();
    for model in DIALECTS {
        let session = turns.session(model).await;
        let sent = turns.provider.ledger().len();
        push_all(turns, scripts);
        let reply = session.ask().send().await;
        assert_eq!(turns.ledger_after(sent).len(), scripts.len(), "{model} {scripts:?}");
        match end {
            Some((status, code)) => {
                assert_eq!(failed(&reply), (status, code.to_owned()), "{model} {scripts:?}: {}", reply.text);
                reply.clone().refused(status);
            }
            None => assert_eq!(reply.clone().expect(200)["usage"]["output_tokens"], seen, "{model} {scripts:?}"),
        }
        replies.push(reply);
        assert_turn_ended(turns, &session, end, charge, seen).await;
        session.assert_usable().await;

        push_all(turns, scripts);
        let response = session.ask_streamed().open().await;
        match end {
            // A fault before the first byte is a status.
            Some((status, code)) if response.status() != 200 => {
                let reply = Request::read(response).await;
                assert_eq!((failed(&reply), seen), ((status, code.to_owned()), 0));
            }
            _ => {
                let events = EventReader::new(response).rest().await;
                assert_eq!(assert_whole(&events, 0).code(), end.map(|(_, code)| code), "{model} {scripts:?}");
                assert_eq!(events.len(), seen + 1, "{model} {scripts:?}");
            }
        }
        assert_turn_ended(turns, &session, end, charge, seen).await;
        session.assert_usable().await;
    }
    replies
}

async fn assert_turn_ended(turns: &TurnServer, session: &Conversation<'_>, end: End, charge: Charge, seen: usize) {
    let turn = session.last_turn().await;
    assert_eq!(turn.error_code.as_deref(), end.map(|(_, code)| code));
    assert_eq!(turn.status, if end.is_some() { TurnStatus::Failed } else { TurnStatus::Completed });
    assert_charged(turns, &turn, charge, seen);
    // A follower gets the same single end.
    let replayed = session.follow(None).await.rest().await;
    assert_eq!(assert_whole(&replayed, 0).code(), end.map(|(_, code)| code));
    assert_eq!(replayed.len(), seen + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_streams_end_with_provider_error() {
    let turns = TurnServer::start().await;
    let end = Some((502, "provider_error"));
    for fault in [Fault::CutAfter(40), Fault::EndAfter(40), Fault::CutInToolCallAfter(40), Fault::ErrorEventAfter(40)] {
        check(&turns, &[script(fault)], end, Charge::Estimated, 40).await;
    }
    check(&turns, &[script(Fault::EndAfter(1))], end, Charge::Estimated, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn harmless_faults_do_not_end_the_turn() {
    let turns = TurnServer::start().await;
    for fault in [Fault::BrokenFrameAfter(5), Fault::OddMembers, Fault::TrailingGarbage] {
        check(&turns, &[script(fault)], None, Charge::Reported, TOKENS).await;
    }
    for fault in [Fault::NoUsage, Fault::ZeroUsage] {
        check(&turns, &[script(fault)], None, Charge::Estimated, TOKENS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_without_line_breaks_is_skipped() {
    let turns = TurnServer::start().await;
    check(&turns, &[script(Fault::Flood(100 << 20))], None, Charge::Reported, TOKENS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_provider_are_classified() {
    let turns = TurnServer::start().await;
    let cases = [
        (status(400, &error("invalid_request_error", "too long"), None), 422, "provider_rejected"),
        (status(404, &error("not_found_error", "no such model"), None), 422, "provider_rejected"),
        (status(403, &error("permission_error", "no access to the model"), None), 422, "provider_rejected"),
        (status(401, &error("authentication_error", "invalid x-api-key"), None), 422, "byok_key_rejected"),
        (status(403, &error("permission_error", "this API key has no access"), None), 422, "byok_key_rejected"),
        (status(402, &error("billing_error", "pay first"), None), 422, "provider_credit_exhausted"),
        (status(429, &error("insufficient_quota", "over quota"), None), 422, "provider_credit_exhausted"),
        (status(429, &error("rate_limit_error", "slow down"), Some(60)), 429, "provider_rate_limited"),
    ];
    for (script, expected, code) in cases {
        let replies = check(&turns, slice::from_ref(&script), Some((expected, code)), Charge::Nothing, 0).await;
        for reply in replies {
            let retry_after = reply.headers.get("retry-after").map(|value| value.to_str().unwrap());
            assert_eq!(retry_after, (expected == 429).then_some("60"));
            // Only what the caller can fix is passed on in the provider's words.
            let message = reply.json["message"].as_str().unwrap();
            let Fault::Status { body, .. } = &script.fault else { unreachable!() };
            assert_eq!(body.contains(message), code == "provider_rejected", "{message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_message_is_visible_text_on_one_line() {
    let turns = TurnServer::start().await;
    let own = "The provider rejected the request.";
    for (sent, expected) in [
        ("too\r\n long\u{0}\u{1b}[31m", "too long [31m"),
        (" \t\n", own),
        ("", own),
        ("\u{200b}\u{202e}", own),
        ("...", own),
    ] {
        turns.provider.push(status(400, &error("invalid_request_error", sent), None));
        let reply = turns.session(ANTHROPIC).await.ask().send().await;
        assert_eq!(failed(&reply), (422, "provider_rejected".to_owned()));
        assert_eq!(reply.json["message"], expected, "{sent:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_answers_are_provider_errors() {
    let turns = TurnServer::start().await;
    let completion =
        json!({ "content": [], "choices": [{ "index": 0, "message": { "role": "assistant", "content": "hi" } }] });
    for (content_type, body) in [
        ("text/html", "<html><body>Welcome</body></html>".to_owned()),
        ("application/octet-stream", "data: {}\n\n".to_owned()),
        ("text/event-streams", String::new()),
    ] {
        let script = script(Fault::NotEventStream { content_type, body });
        check(&turns, &[script], Some((502, "provider_error")), Charge::Nothing, 0).await;
    }
    let json =
        |body: &Value| script(Fault::NotEventStream { content_type: "application/json", body: body.to_string() });
    // The provider has generated this answer.
    let mut counted = completion.clone();
    counted["usage"] = json!({ "input_tokens": 3, "output_tokens": 5, "prompt_tokens": 3, "completion_tokens": 5 });
    for model in DIALECTS {
        for (answer, is_counted) in [(&completion, false), (&counted, true)] {
            turns.provider.push(json(answer));
            let session = turns.session(model).await;
            assert_eq!(failed(&session.ask().send().await), (502, "provider_error".to_owned()));
            let turn = session.last_turn().await;
            let expected = if is_counted { (3, 5) } else { (turn.input_estimate, turn.max_tokens) };
            assert_eq!((turn.usage.input_tokens, turn.usage.output_tokens), expected);
            assert_eq!(turn.estimated, !is_counted);
        }
    }
    for body in [
        json!({}),
        json!({ "error": { "code": 502, "message": "Provider returned error" } }),
        json!({ "type": "error", "error": { "type": "overloaded_error", "message": "Overloaded" } }),
    ] {
        turns.provider.push(json(&body));
        let session = turns.session(ANTHROPIC).await;
        assert_eq!(failed(&session.ask().send().await), (502, "provider_error".to_owned()));
        assert_eq!(session.last_turn().await.usage.output_tokens, 0, "{body}");
    }
    for (code, status, expected) in
        [(401, 422, "byok_key_rejected"), (429, 429, "provider_rate_limited"), (400, 422, "provider_rejected")]
    {
        let error = json!({ "error": { "code": code, "message": "refused" } });
        check(&turns, &[json(&error)], Some((status, expected)), Charge::Nothing, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_errors_are_retried_once() {
    let turns = TurnServer::start().await;
    let limited = status(429, &error("rate_limit_error", "slow down"), Some(1));
    let broken = status(503, &error("api_error", "down"), None);
    let html = script(Fault::Status { status: 502, body: "<html>".to_owned(), retry_after: None });
    let fine = script(Fault::None);
    let started = Instant::now();
    check(&turns, &[limited.clone(), fine.clone()], None, Charge::Reported, TOKENS).await;
    assert!(started.elapsed() >= Duration::from_secs(4), "four turns waited for a second each");
    check(&turns, &[broken.clone(), fine.clone()], None, Charge::Reported, TOKENS).await;
    check(&turns, &[html, fine], None, Charge::Reported, TOKENS).await;
    check(&turns, &[broken.clone(), broken.clone()], Some((502, "provider_error")), Charge::Nothing, 0).await;
    check(&turns, &[broken, limited], Some((429, "provider_rate_limited")), Charge::Nothing, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn message_of_the_provider_is_redacted() {
    let turns = TurnServer::start().await;
    let key = turns.store_key("anthropic", "sk-ant-api03-").await;
    let session = turns.session(ANTHROPIC).await;
    let message = format!("the key {key} may not use claude");
    turns.provider.push(status(400, &error("invalid_request_error", &message), None));
    let refused = session.ask().send().await.refused(422);
    assert_eq!(refused, json!({ "error": "provider_rejected", "message": "the key [redacted] may not use claude" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_provider_times_out() {
    let turns = TurnServer::start_with(TurnLimits {
        silence: Duration::from_secs(2),
        response_head: Duration::from_secs(3),
        ..LIMITS
    })
    .await;
    let end = Some((504, "provider_timeout"));
    check(&turns, &[script(Fault::SilentAfter(5))], end, Charge::Estimated, 5).await;
    let slow = Script { head_pause: Duration::from_secs(30), ..script(Fault::None) };
    // The provider has the request, and may bill it.
    check(&turns, &[slow], end, Charge::Estimated, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_head_turns_later_failures_into_events() {
    let limits = TurnLimits { status_delay: Duration::from_millis(200), ..LIMITS };
    let turns = TurnServer::start_with(limits).await;
    for model in DIALECTS {
        let session = turns.session(model).await;
        let head_pause = Duration::from_millis(800);
        let refused = status(401, &error("authentication_error", "invalid x-api-key"), None);
        turns.provider.push(Script { head_pause, ..refused });
        let events = session.stream().await.rest().await;
        assert_eq!((assert_whole(&events, 0).code(), events.len()), (Some("byok_key_rejected"), 1));

        turns.provider.push(Script { head_pause, ..script(Fault::None) });
        let events = session.stream().await.rest().await;
        assert_eq!((assert_whole(&events, 0).code(), events.len()), (None, TOKENS + 1));
    }
}

/// A provider that sends `response` and resets the connection.
async fn resetting(response: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = [0; 4_096];
            assert_ne!(connection.read(&mut request).await.unwrap(), 0);
            connection.write_all(response.as_bytes()).await.unwrap();
            sleep(Duration::from_millis(100)).await;
            connection.set_zero_linger().unwrap();
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn reset_connection_ends_with_provider_error() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    let chunk = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"one \"}}]}\n\n";
    let part = Box::leak(format!("{head}{chunk}").into_boxed_str());
    for (response, seen) in [("", 0), (head, 0), (part, 1)] {
        let urls = json!({ "openai": resetting(response).await });
        let LocalProviderBaseUrls(urls) = serde_json::from_value(urls).unwrap();
        let defaults = options(Arc::new(SystemClock));
        let options = Options { turn_limits: LIMITS, provider_base_urls: Some(urls), ..defaults };
        let turns = TurnServer::start_as(options).await;
        let session = turns.session(OPENAI).await;
        assert_eq!(failed(&session.ask().send().await), (502, "provider_error".to_owned()), "{response}");
        let response = session.ask_streamed().open().await;
        if seen == 0 && response.status() != 200 {
            assert_eq!(response.status(), 502);
        } else {
            let events = EventReader::new(response).rest().await;
            assert_eq!((assert_whole(&events, 0).code(), events.len()), (Some("provider_error"), seen + 1));
        }
        let turn = session.last_turn().await;
        assert_eq!(turn.usage.output_tokens, u64::try_from(seen).unwrap());
    }
}

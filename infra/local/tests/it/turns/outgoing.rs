//! Requests to providers: they hold the prompt and the provider key, and nothing else of the caller.

use std::collections::BTreeMap;

use http::HeaderMap;
use karta_local::provider::{Fault, LedgerEntry, Script};
use serde_json::{Value, json};

use super::{Conversation, EventReader, PROVIDERS, TurnServer, assert_whole, joined, text};
use crate::harness::Request;

/// Headers that a client, a proxy or a browser may send.
const OF_THE_CALLER: [(&str, &str); 11] = [
    ("user-agent", "OpenAI/Python 3.57.0"),
    ("cookie", "session=of-the-caller"),
    ("origin", "https://app.caller.example"),
    ("referer", "https://app.caller.example/chat"),
    ("forwarded", "for=203.0.113.7;host=app.caller.example"),
    ("x-forwarded-for", "203.0.113.7"),
    ("x-forwarded-host", "app.caller.example"),
    ("anthropic-beta", "beta-of-the-caller"),
    ("openai-organization", "org-of-the-caller"),
    ("x-stainless-lang", "python-of-the-caller"),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
];

fn with_headers(request: Request) -> Request {
    OF_THE_CALLER.iter().fold(request, |request, (name, value)| request.header(name, value))
}

fn plain(headers: &HeaderMap) -> BTreeMap<&str, &str> {
    headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
}

/// Asserts the headers and the members of the body, and that nothing else of the caller is in them.
pub(super) fn assert_allowed(turns: &TurnServer, sent: &LedgerEntry, provider: &str, key: &str) {
    let headers = plain(&sent.headers);
    let (length, bearer) = (sent.body.len().to_string(), format!("Bearer {key}"));
    let host = headers["host"];
    let mut expected = BTreeMap::from([
        ("accept", "text/event-stream"),
        ("content-length", &*length),
        ("content-type", "application/json"),
        ("host", host),
        ("user-agent", "Karta/1"),
    ]);
    if provider == "anthropic" {
        expected.extend([("anthropic-version", "2023-06-01"), ("x-api-key", key)]);
        assert_eq!(sent.path, "/v1/messages");
    } else {
        expected.extend([("authorization", &*bearer)]);
        assert_eq!(sent.path, "/v1/chat/completions");
    }
    assert_eq!(headers, expected);
    assert_eq!(sent.headers.len(), headers.len(), "no header twice");

    let own_host = turns.server.runner.base_url.trim_start_matches("http://");
    assert_ne!(host, own_host);
    let bytes = format!("{headers:?} {} {}", sent.path, str::from_utf8(&sent.body).unwrap());
    for secret in ["kt_live_", "eyJ", own_host, "caller", "203.0.113.7", "4bf92f"] {
        assert!(!bytes.contains(secret), "{secret} in {bytes}");
    }
    let body: Value = serde_json::from_slice(&sent.body).unwrap();
    let members = ["model", "max_tokens", "max_completion_tokens", "messages", "stream", "stream_options", "usage"];
    assert!(body.as_object().unwrap().keys().all(|member| members.contains(&&**member)), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_allowed_headers_reach_providers() {
    let turns = TurnServer::start().await;
    for (provider, start, model) in PROVIDERS {
        let key = turns.store_key(provider, start).await;
        turns.project(provider, model).await;
        let admin = turns.server.admin.clone();
        let token = turns.server.session_token(provider, json!({ "user_id": "ada" })).await;
        let conversations: [Conversation<'_>; 3] = [
            turns.session(model).await,
            turns.project_session(provider, &admin).await,
            turns.project_session(provider, &token).await,
        ];
        for session in conversations {
            let sent = turns.provider.ledger().len();
            with_headers(session.ask()).idempotency_key("of-the-caller").send().await.expect(200);
            with_headers(session.ask_streamed()).open().await.text().await.unwrap();
            let sent = turns.ledger_after(sent);
            assert_eq!(sent.len(), 2);
            for sent in &sent {
                assert_allowed(&turns, sent, provider, &key);
            }
        }
    }
}

/// `text` registers each message as a secret, which the check of the logs looks for.
#[tokio::test(flavor = "multi_thread")]
async fn texts_stay_out_of_the_logs() {
    let turns = TurnServer::start().await;
    for (_, _, model) in PROVIDERS {
        let session = turns.session(model).await;
        let asked = text();
        turns.provider.push(Script { echoes: true, ..Script::default() });
        let events = EventReader::new(session.post(json!({ "text": asked, "stream": true })).open().await).rest().await;
        assert_whole(&events, 0);
        assert!(joined(&events, "text").ends_with(&asked));

        let asked = text();
        let error =
            json!({ "error": { "type": "invalid_request_error", "message": format!("cannot answer {asked}") } });
        turns.provider.push(Script {
            fault: Fault::Status { status: 400, body: error.to_string(), retry_after: None },
            ..Script::default()
        });
        let refused = session.post(json!({ "text": asked })).send().await.refused(422);
        assert_eq!(refused["message"], format!("cannot answer {asked}"));
        let asked = text();
        session.post(json!({ "text": asked, "max_tokens": "many" })).send().await.invalid_field();
        session
            .request(http::Method::POST, "/messages")
            .raw_body(format!("{{\"text\": \"{asked}"))
            .send()
            .await
            .refused(400);
    }
}

/// Nothing that the store holds shows a message.
#[tokio::test(flavor = "multi_thread")]
async fn texts_are_sealed_in_the_store() {
    let turns = TurnServer::start().await;
    let session = turns.session(PROVIDERS[0].2).await;
    let asked = text();
    turns.provider.push(Script { echoes: true, ..Script::default() });
    session.post(json!({ "text": asked })).send().await.expect(200);
    let stored = json!(turns.server.stored().await).to_string();
    assert!(stored.contains(&session.id));
    for part in ["demo provider", &asked, asked.rsplit(' ').next().unwrap()] {
        assert!(!stored.contains(part), "{part}");
    }
}

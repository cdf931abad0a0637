//! `Idempotency-Key`: a repeated request attaches to its turn.

use std::time::Duration;

use http::Method;
use karta_local::provider::{Fault, Script};
use serde_json::{Value, json};

use super::{ANTHROPIC, Conversation, EventReader, TurnServer, assert_whole, failed, text};
use crate::harness::Request;

fn paced() -> Script {
    Script { tokens: 20, pause: Duration::from_millis(50), ..Script::default() }
}

fn keyed(session: &Conversation<'_>, body: &Value) -> Request {
    session.post(body.clone()).idempotency_key("turn-1")
}

async fn transcript_access(turns: &TurnServer, is_on: bool) {
    let organization = format!("/v1/internal/organizations/{}", turns.server.organization_id);
    let request = turns.server.service(Method::PATCH, &organization).body(json!({ "transcript_access": is_on }));
    request.send().await.expect(200);
}

async fn user_token(turns: &TurnServer, user: &str) -> String {
    turns.server.session_token("app", json!({ "user_id": user })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn repeat_attaches_to_the_running_turn() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(paced());
    let body = json!({ "text": text(), "stream": true });
    let mut reader = EventReader::new(keyed(&session, &body).open().await);
    let mut events = reader.take(3).await;
    let attached = EventReader::new(keyed(&session, &body).open().await);
    let (rest, attached) = tokio::join!(reader.rest(), attached.rest());
    events.extend(rest);
    assert_eq!(assert_whole(&events, 0).kind, "done");
    assert_eq!(attached, events);
    assert_eq!(turns.provider.ledger().len(), 1);

    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(paced());
    let body = json!({ "text": text() });
    let (first, second) = tokio::join!(keyed(&session, &body).send(), async {
        turns.until_provider_is_called().await;
        keyed(&session, &body).send().await
    });
    assert_eq!(first.expect(200), second.expect(200));
    assert_eq!((turns.provider.ledger().len(), session.messages().await.len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn repeat_returns_the_finished_turn() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    let (unary, streamed) = (json!({ "text": text() }), json!({ "text": text(), "stream": true }));
    let first = keyed(&session, &unary).send().await.expect(200);
    let request = || session.post(streamed.clone()).idempotency_key("turn-2");
    let events = EventReader::new(request().open().await).rest().await;
    // Also after later turns of the session.
    session.answer().await;
    for _ in 0..2 {
        assert_eq!(keyed(&session, &unary).send().await.expect(200), first);
        assert_eq!(EventReader::new(request().open().await).rest().await, events);
    }
    assert_eq!((turns.provider.ledger().len(), session.messages().await.len()), (3, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn repeat_returns_an_empty_answer() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(Script { tokens: 0, ..Script::default() });
    let body = json!({ "text": text() });
    let first = keyed(&session, &body).send().await.expect(200);
    assert_eq!((&first["text"], first["messages"].as_array().unwrap().len()), (&json!(""), 2));
    assert_eq!(keyed(&session, &body).send().await.expect(200), first);
    assert_eq!(session.messages().await, first["messages"].as_array().unwrap()[..]);
    session.assert_usable().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_body_under_one_key_is_refused() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    let body = json!({ "text": text() });
    keyed(&session, &body).send().await.expect(200);
    for other in [json!({ "text": text() }), json!({ "text": body["text"], "stream": true })] {
        assert_eq!(keyed(&session, &other).send().await.refused(422)["error"], "idempotency_mismatch");
    }
    // The key belongs to the session's path.
    let elsewhere = turns.session(ANTHROPIC).await;
    keyed(&elsewhere, &json!({ "text": text() })).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_turn_runs_again() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    for streams in [false, true] {
        let body = json!({ "text": text(), "stream": streams });
        let request = || session.post(body.clone()).idempotency_key(format!("turn-{streams}"));
        let sent = turns.provider.ledger().len();
        for fault in [Fault::CutAfter(3), Fault::EndAfter(0)] {
            turns.provider.push(Script { fault, ..Script::default() });
            if streams {
                let events = EventReader::new(request().open().await).rest().await;
                assert_eq!(assert_whole(&events, 0).code(), Some("provider_error"));
            } else {
                assert_eq!(failed(&request().send().await), (502, "provider_error".to_owned()));
            }
        }
        for _ in 0..2 {
            request().open().await.error_for_status().unwrap().text().await.unwrap();
        }
        assert_eq!(turns.ledger_after(sent).len(), 3, "two failures, one answer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_repeats_at_once_run_one_turn() {
    let turns = TurnServer::start().await;
    for round in 0..6 {
        let session = turns.session(ANTHROPIC).await;
        turns.provider.push(Script { head_pause: Duration::from_millis(100), ..Script::default() });
        let body = json!({ "text": text() });
        let (first, second) = tokio::join!(keyed(&session, &body).send(), keyed(&session, &body).send());
        assert_eq!(first.expect(200), second.expect(200));
        assert_eq!(turns.provider.ledger().len(), round + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_token_of_the_user_attaches() {
    let turns = TurnServer::start().await;
    turns.project("app", ANTHROPIC).await;
    let session = turns.project_session("app", &user_token(&turns, "ada").await).await;
    let body = json!({ "text": text() });
    let first = keyed(&session, &body).send().await.expect(200);
    let renewed = session.with_token(&user_token(&turns, "ada").await);
    assert_eq!(keyed(&renewed, &body).send().await.expect(200), first);
    let other = json!({ "text": text() });
    assert_eq!(keyed(&renewed, &other).send().await.refused(422)["error"], "idempotency_mismatch");
    assert_eq!(turns.provider.ledger().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_another_user_does_not_attach() {
    let turns = TurnServer::start().await;
    turns.project("app", ANTHROPIC).await;
    let session = turns.project_session("app", &user_token(&turns, "ada").await).await;
    let body = json!({ "text": text() });
    keyed(&session, &body).send().await.expect(200);
    // The session does not exist for the other user, and the key means nothing.
    let foreign = session.with_token(&user_token(&turns, "bob").await);
    for body in [&body, &json!({ "text": text() })] {
        assert_eq!(keyed(&foreign, body).send().await.refused(404), json!({ "detail": "Not found" }));
    }
    let own = turns.project_session("app", &foreign.token).await;
    assert_eq!(keyed(&own, &body).send().await.expect(200)["session_id"], own.id);
    assert_eq!(turns.provider.ledger().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeat_returns_large_messages() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(Script { echoes: true, ..Script::default() });
    let body = json!({ "text": format!("{} {}", text(), "a".repeat(900_000)) });
    let first = keyed(&session, &body).send().await.expect(200);
    let answer = first["text"].as_str().unwrap();
    assert!(answer.len() > 900_000);
    assert_eq!(keyed(&session, &body).send().await.expect(200), first);
    assert_eq!(turns.provider.ledger().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_repeat_ends_with_its_credential() {
    let turns = TurnServer::start().await;
    turns.project("app", ANTHROPIC).await;
    let (id, key) = turns.server.key(&["write"]).await;
    let mint = turns.server.post("/v1/agent_projects/app/session_tokens", json!({ "user_id": "ada" })).bearer(&key);
    let repeating = mint.send().await.expect(201)["token"].as_str().unwrap().to_owned();
    let session = turns.project_session("app", &user_token(&turns, "ada").await).await;
    turns.provider.push(Script { head_pause: Duration::from_mins(1), ..Script::default() });
    let body = json!({ "text": text() });
    let first = async {
        tokio::select! {
            reply = keyed(&session, &body).send() => panic!("answered: {}", reply.text),
            () = async {
                turns.until_provider_is_called().await;
                let again = session.with_token(&repeating);
                let waiting = keyed(&again, &body);
                let (reply, ()) = tokio::join!(waiting.send(), async {
                    turns.server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
                });
                // The request arrived before or after the revocation.
                assert_eq!(reply.status, 401, "{}", reply.text);
            } => {}
        }
    };
    first.await;
    session.cancel().send().await.expect(202);
    assert_eq!(turns.provider.ledger().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeat_by_an_api_key_is_audited() {
    let turns = TurnServer::start().await;
    transcript_access(&turns, true).await;
    turns.project("app", ANTHROPIC).await;
    let of_user = turns.project_session("app", &user_token(&turns, "ada").await).await;
    let session = of_user.with_token(&turns.server.admin);
    let reads = async || {
        let listed = turns.server.get("/v1/audit_events?action=session.transcript_read").send().await.expect(200);
        listed["audit_events"].as_array().unwrap().len()
    };
    for (body, expected) in [(json!({ "text": text() }), 1), (json!({ "text": text(), "stream": true }), 2)] {
        for _ in 0..2 {
            let request = session.post(body.clone()).idempotency_key(format!("turn-{expected}"));
            request.open().await.error_for_status().unwrap().text().await.unwrap();
        }
        assert_eq!(reads().await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_transcript_access_ends_the_callers_turn() {
    let turns = TurnServer::start().await;
    transcript_access(&turns, true).await;
    turns.project("app", ANTHROPIC).await;
    let of_user = turns.project_session("app", &user_token(&turns, "ada").await).await;
    turns.provider.push(Script { tokens: 100_000, ..paced() });
    let mut reader = of_user.with_token(&turns.server.admin).stream().await;
    reader.take(2).await;
    transcript_access(&turns, false).await;
    assert_eq!(reader.rest().await.last().unwrap().code(), Some("credential_revoked"));
    of_user.assert_usable().await;
}

/// The details of the error do not depend on which request started the turn.
#[tokio::test(flavor = "multi_thread")]
async fn repeats_of_a_failing_turn_get_one_error() {
    let turns = TurnServer::start().await;
    let key = json!({ "name": "app", "scopes": ["read", "write"], "budget": { "output_tokens": 1_500 } });
    let (_, key) = turns.server.key_with(key).await;
    let limited = Fault::Status { status: 429, body: "{}".to_owned(), retry_after: Some(60) };
    let capped = Script { tokens: 100_000, pause: Duration::from_millis(2), ..Script::default() };
    let rejecting = Script { head_pause: Duration::from_secs(1), fault: limited, ..Script::default() };
    for (script, status) in [(rejecting, 429), (capped, 402)] {
        let session = turns.session(ANTHROPIC).await.with_token(&key);
        turns.provider.push(script);
        let body = json!({ "text": text() });
        let (first, second) = tokio::join!(keyed(&session, &body).send(), async {
            turns.until_provider_is_called().await;
            keyed(&session, &body).send().await
        });
        assert_eq!(first.headers.get("retry-after"), second.headers.get("retry-after"));
        assert_eq!(first.refused(status), second.refused(status));
    }
    assert_eq!(turns.provider.ledger().len(), 2);
}

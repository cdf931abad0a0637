//! Cancellation, deletion, and turns that compete for a session.

use std::{sync::Arc, time::Duration};

use http::Method;
use karta_local::{
    Options,
    provider::{Fault, Script},
};
use karta_shared::{
    clock::{Clock, ManualClock},
    config::TurnLimits,
    domain::TurnStatus,
};
use serde_json::{Value, json};

use super::{ANTHROPIC, DIALECTS, EventReader, LIMITS, OPENAI, Peer, TurnServer, assert_whole, failed};
use crate::harness::{Request, options};

/// An answer that outlasts every test.
fn endless() -> Script {
    Script { tokens: 100_000, pause: Duration::from_millis(20), ..Script::default() }
}

fn turn_in_progress() -> Value {
    json!({
        "error": "turn_in_progress",
        "message": "A turn is running in this session. Wait for its end, or cancel it.",
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_stream_ends_with_an_error() {
    // Long enough for two requests before the turn ends.
    let turns = TurnServer::start_with(TurnLimits { renewal: Duration::from_secs(2), ..LIMITS }).await;
    for model in DIALECTS {
        let session = turns.session(model).await;
        turns.provider.push(endless());
        let mut reader = session.stream().await;
        let mut events = reader.take(5).await;
        for _ in 0..2 {
            let shown = session.cancel().send().await.expect(202);
            assert_eq!((&shown["id"], &shown["turn"]["status"]), (&json!(session.id), &json!("running")));
        }
        events.extend(reader.rest().await);
        assert_eq!(assert_whole(&events, 0).code(), Some("turn_cancelled"));
        let turn = session.last_turn().await;
        assert_eq!((turn.status, turn.estimated), (TurnStatus::Cancelled, true));
        let seen = u64::try_from(events.len() - 1).unwrap();
        assert_eq!(turn.usage.output_tokens, seen);
        assert_eq!(session.follow(None).await.rest().await, events);
        assert_eq!(session.messages().await[1]["text"], super::joined(&events, "text"));
        assert_eq!(session.cancel().send().await.refused(409)["error"], "no_turn_in_progress");
        session.assert_usable().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unary_turn_is_cancelled_from_another_process() {
    let turns = TurnServer::start().await;
    let peer = Peer::start(&turns).await;
    for model in DIALECTS {
        let session = turns.session(model).await;
        turns.provider.push(endless());
        let (reply, ()) = tokio::join!(session.ask().send(), async {
            turns.until_provider_is_called().await;
            peer.request(&session, Method::POST, "/cancel").body(json!({})).send().await.expect(202);
        });
        assert_eq!(failed(&reply), (409, "turn_cancelled".to_owned()));
        assert_eq!(session.last_turn().await.status, TurnStatus::Cancelled);
        session.assert_usable().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_is_cancelled_before_the_providers_head() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(Script { head_pause: Duration::from_mins(1), ..Script::default() });
    let (reply, ()) = tokio::join!(session.ask_streamed().send(), async {
        turns.until_provider_is_called().await;
        session.cancel().send().await.expect(202);
    });
    assert_eq!(failed(&reply), (409, "turn_cancelled".to_owned()));
    let turn = session.last_turn().await;
    // The provider has the request, and may bill it.
    assert_eq!((turn.usage.input_tokens, turn.usage.output_tokens), (turn.input_estimate, 0));
    assert!(turn.estimated);
    session.assert_usable().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn session_with_a_running_turn_is_not_deleted() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(endless());
    let mut reader = session.stream().await;
    reader.take(2).await;
    assert_eq!(session.request(Method::DELETE, "").send().await.refused(409), turn_in_progress());
    session.cancel().send().await.expect(202);
    reader.rest().await;
    session.request(Method::DELETE, "").send().await.expect(204);
    let missing = json!({ "detail": "Not found" });
    for request in [
        session.request(Method::GET, ""),
        session.request(Method::DELETE, ""),
        session.request(Method::GET, "/messages"),
        session.request(Method::GET, "/stream"),
        session.cancel(),
        session.ask(),
        session.ask_streamed(),
    ] {
        assert_eq!(request.send().await.refused(404), missing);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_posts_runs() {
    let turns = TurnServer::start().await;
    let peer = Peer::start(&turns).await;
    for round in 0..8 {
        let session = turns.session(DIALECTS[round % 2]).await;
        let sent = turns.provider.ledger().len();
        turns.provider.push(Script { head_pause: Duration::from_millis(200), ..Script::default() });
        let body = json!({ "text": super::text(), "model": DIALECTS[round % 2] });
        let elsewhere = peer.request(&session, Method::POST, "/messages").body(body);
        let (here, there) = tokio::join!(session.ask().send(), elsewhere.send());
        let (won, lost) = if here.status == 200 { (here, there) } else { (there, here) };
        won.expect(200);
        assert_eq!(lost.refused(409), turn_in_progress());
        assert_eq!((turns.ledger_after(sent).len(), session.messages().await.len()), (1, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_post_while_a_turn_runs_is_refused() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(endless());
    let mut reader = session.stream().await;
    reader.take(1).await;
    for request in [session.ask(), session.ask_streamed()] {
        assert_eq!(request.send().await.refused(409), turn_in_progress());
    }
    session.cancel().send().await.expect(202);
    reader.rest().await;
    session.assert_usable().await;
}

/// The provider fails before the turn's process reads the request to cancel.
#[tokio::test(flavor = "multi_thread")]
async fn accepted_cancel_outlives_a_provider_failure() {
    let turns = TurnServer::start_with(TurnLimits { renewal: Duration::from_hours(1), ..LIMITS }).await;
    for (model, is_streamed) in [(ANTHROPIC, true), (OPENAI, false)] {
        let session = turns.session(model).await;
        let (fault, pause) = (Fault::CutAfter(40), Duration::from_millis(100));
        turns.provider.push(Script { tokens: 60, pause, fault, ..Script::default() });
        let body = json!({ "text": super::text(), "stream": is_streamed, "model": model });
        let request = || session.post(body.clone()).idempotency_key("once");
        let first = tokio::spawn(request().open());
        turns.until_provider_is_called().await;
        session.cancel().send().await.expect(202);
        let sent = turns.provider.ledger().len();
        // A repeat attaches to the turn. It does not run it again.
        for response in [first.await.unwrap(), request().open().await] {
            if is_streamed {
                let events = EventReader::new(response).rest().await;
                assert_eq!(assert_whole(&events, 0).code(), Some("turn_cancelled"));
            } else {
                assert_eq!(failed(&Request::read(response).await), (409, "turn_cancelled".to_owned()));
            }
        }
        assert_eq!(turns.ledger_after(sent).len(), 0);
        let turn = session.last_turn().await;
        assert_eq!((turn.status, turn.error_code.as_deref()), (TurnStatus::Cancelled, Some("turn_cancelled")));
        session.assert_usable().await;
    }
}

/// A provider may show a summary of much reasoning.
#[tokio::test(flavor = "multi_thread")]
async fn reasoning_counts_its_time_until_the_text() {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let turn_limits = TurnLimits { latency: TurnLimits::DEFAULT.latency, ..LIMITS };
    let defaults = options(Arc::clone(&clock) as Arc<dyn Clock>);
    let turns = TurnServer::start_as(Options { turn_limits, ..defaults }).await;
    for (reasoning_tokens, counts_time) in [(100_000, true), (2, false)] {
        let session = turns.session(OPENAI).await;
        turns.provider.push(Script { reasoning_tokens, ..endless() });
        let mut reader = session.stream().await;
        reader.take(4).await;
        clock.advance(Duration::from_secs(10));
        session.cancel().send().await.expect(202);
        reader.rest().await;
        let turn = session.last_turn().await;
        let counted = turn.usage.output_tokens;
        assert_eq!((counted == 800, counted < 800), (counts_time, !counts_time), "{counted}");
    }
}

/// A reasoning model bills output that it does not show. Its provider reports usage only at the end.
#[tokio::test(flavor = "multi_thread")]
async fn cancelled_turn_counts_hidden_output() {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let turn_limits = TurnLimits { latency: TurnLimits::DEFAULT.latency, ..LIMITS };
    let defaults = options(Arc::clone(&clock) as Arc<dyn Clock>);
    let turns = TurnServer::start_as(Options { turn_limits, ..defaults }).await;
    for (model, body, expected) in [
        (OPENAI, json!({}), 800),
        (OPENAI, json!({ "max_tokens": 300 }), 300),
        (ANTHROPIC, json!({ "thinking": true }), 800),
        (ANTHROPIC, json!({}), 0),
    ] {
        let session = turns.session(model).await;
        turns.provider.push(Script { head_pause: Duration::from_mins(1), ..Script::default() });
        let mut body = body;
        body["text"] = super::text().into();
        let (reply, ()) = tokio::join!(session.post(body).send(), async {
            turns.until_provider_is_called().await;
            clock.advance(Duration::from_secs(10));
            session.cancel().send().await.expect(202);
        });
        assert_eq!(failed(&reply), (409, "turn_cancelled".to_owned()));
        let turn = session.last_turn().await;
        assert_eq!((turn.usage.output_tokens, turn.estimated), (expected, true), "{model}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_with_an_id_ends_that_turn_only() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    session.answer().await;
    let earlier = session.last_turn().await.id;
    let cancel = |turn: &str| session.request(Method::POST, "/cancel").body(json!({ "turn_id": turn }));
    turns.provider.push(endless());
    let mut reader = session.stream().await;
    reader.take(1).await;
    let body = json!({
        "error": "no_turn_in_progress",
        "message": "turn_id is not the running turn of this session.",
    });
    assert_eq!(cancel(earlier.as_str()).send().await.refused(409), body);
    assert_eq!(cancel("turn_1").send().await.refused(422)["field"], "turn_id");
    reader.take(1).await;
    let running = session.last_turn().await.id;
    cancel(running.as_str()).send().await.expect(202);
    assert_eq!(reader.rest().await.last().unwrap().code(), Some("turn_cancelled"));
    assert_eq!(cancel(running.as_str()).send().await.refused(409), body);
}

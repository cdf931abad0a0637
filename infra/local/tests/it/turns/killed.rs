//! Processes that die or lose their lease: the sweep ends the turn once, with an estimate.

use std::{sync::Arc, time::Duration};

use http::Method;
use karta_local::{Options, provider::Script};
use karta_shared::{
    clock::{Clock, ManualClock},
    config::TurnLimits,
    domain::{Turn, TurnStatus},
    worker::{Wake, Worker},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use worker_turns_sweep::TurnsSweep;

use super::{ANTHROPIC, Conversation, DIALECTS, EventReader, LIMITS, Process, TurnServer, assert_whole, joined};
use crate::harness::{Request, options};

pub(super) const SWEEP: &str = "worker-turns-sweep";
pub(super) const LEASE: Duration = LIMITS.lease;

pub(super) async fn start(turn_limits: TurnLimits) -> (TurnServer, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let defaults = options(Arc::clone(&clock) as Arc<dyn Clock>);
    (TurnServer::start_as(Options { turn_limits, ..defaults }).await, clock)
}

fn endless() -> Script {
    Script { tokens: 100_000, pause: Duration::from_millis(20), ..Script::default() }
}

fn ask_streamed(process: &Process, session: &Conversation<'_>) -> Request {
    let body = json!({ "text": super::text(), "stream": true, "model": ANTHROPIC });
    process.peer.request(session, Method::POST, "/messages").body(body)
}

/// Returns input and output tokens that the organization is charged this month.
pub(super) async fn charged(turns: &TurnServer) -> (u64, u64) {
    let usage = turns.server.get("/v1/usage").send().await.expect(200);
    let total = |kind: &str| usage["totals"][kind].as_u64().unwrap();
    (total("input_tokens"), total("output_tokens"))
}

pub(super) fn usage_of(turn: &Turn) -> (u64, u64) {
    (turn.usage.input_tokens, turn.usage.output_tokens)
}

pub(super) async fn sums(session: &Conversation<'_>) -> (u64, u64) {
    let usage: Value = session.get().await["usage"].clone();
    (usage["input_tokens"].as_u64().unwrap(), usage["output_tokens"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_of_a_killed_turn_gets_one_error() {
    let (turns, clock) = start(LIMITS).await;
    let session = turns.session(ANTHROPIC).await;
    let process = Process::start(&turns.server).await;
    turns.provider.push(endless());
    let mut reader = EventReader::new(ask_streamed(&process, &session).open().await);
    reader.take(3).await;
    let mut follower = session.follow(None).await;
    // The log has a batch once the follower has an event.
    let mut events = follower.take(1).await;
    process.kill().await;

    turns.server.work(SWEEP).await;
    assert_eq!(session.last_turn().await.status, TurnStatus::Running, "the lease has not ended");
    clock.advance(LEASE);
    turns.server.work(SWEEP).await;
    events.extend(follower.rest().await);
    assert_eq!(assert_whole(&events, 0).code(), Some("interrupted"));
    assert_eq!(session.follow(None).await.rest().await, events);

    let turn = session.last_turn().await;
    assert_eq!((turn.status, turn.estimated), (TurnStatus::Interrupted, true));
    let logged = u64::try_from(events.len() - 1).unwrap();
    assert_eq!(usage_of(&turn), (turn.input_estimate, logged));
    assert_eq!(turn.input_estimate, turns.provider.ledger()[0].input_tokens);
    assert_eq!((charged(&turns).await, sums(&session).await), (usage_of(&turn), usage_of(&turn)));
    assert_eq!(session.messages().await[1]["text"], joined(&events, "text"));
    session.assert_usable().await;
}

/// The client had events that the log lost.
#[tokio::test(flavor = "multi_thread")]
async fn client_ahead_of_the_log_gets_the_error() {
    let (turns, clock) = start(LIMITS).await;
    let session = turns.session(ANTHROPIC).await;
    let process = Process::start(&turns.server).await;
    turns.provider.push(endless());
    let mut reader = EventReader::new(ask_streamed(&process, &session).open().await);
    let seen = reader.take(10).await;
    process.kill().await;
    let waiting = session.follow(Some(seen[9].id())).await;
    clock.advance(LEASE);
    turns.server.work(SWEEP).await;
    for follower in [waiting, session.follow(Some(seen[9].id())).await] {
        let events = follower.rest().await;
        let codes: Vec<_> = events.iter().map(super::Event::code).collect();
        assert_eq!(codes, [Some("interrupted")]);
    }
    session.assert_usable().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_killed_at_any_time_is_settled_once() {
    let (turns, clock) = start(LIMITS).await;
    let (mut expected, mut interrupted) = ((0, 0), 0);
    for round in 0..24_u32 {
        let session = turns.session(ANTHROPIC).await;
        let process = Process::start(&turns.server).await;
        // About as long as the latest kill, so that some turns are killed while they settle.
        turns.provider.push(Script { tokens: 8, pause: Duration::from_millis(10), ..Script::default() });
        let request = ask_streamed(&process, &session);
        timeout(Duration::from_millis(8) * round, async {
            request.open().await.text().await.ok();
        })
        .await
        .ok();
        process.kill().await;
        // Writes that were sent may still arrive.
        sleep(Duration::from_millis(50)).await;
        clock.advance(LEASE);
        let other = TurnsSweep::new(turns.server.runner.app.clone());
        let (first, second) = tokio::join!(turns.server.try_work(SWEEP), other.work(&Wake::Sweep));
        first.and(second).unwrap();
        let shown = session.get().await;
        if shown["turn"] != Value::Null {
            let turn = session.last_turn().await;
            assert_ne!(turn.status, TurnStatus::Running, "round {round}");
            interrupted += usize::from(turn.status == TurnStatus::Interrupted);
            let usage = usage_of(&turn);
            assert_eq!(sums(&session).await, usage);
            expected = (expected.0 + usage.0, expected.1 + usage.1);
            let replayed = session.follow(None).await.rest().await;
            assert_whole(&replayed, 0);
        }
        assert_eq!(charged(&turns).await, expected, "round {round}");
        turns.provider.clear();
        let answer = session.answer().await;
        let token = |kind: &str| answer["usage"][kind].as_u64().unwrap();
        expected = (expected.0 + token("input_tokens"), expected.1 + token("output_tokens"));
    }
    assert!(interrupted > 3, "{interrupted}");
}

/// The process is frozen, and goes on after the sweep has ended its turn.
#[tokio::test(flavor = "multi_thread")]
async fn process_that_lost_its_lease_changes_nothing() {
    let limits = TurnLimits { renewal: Duration::from_hours(1), ..LIMITS };
    for renewal in [limits.renewal, Duration::from_secs(2)] {
        let (turns, clock) = start(TurnLimits { renewal, ..limits }).await;
        for model in DIALECTS {
            let session = turns.session(model).await;
            let before = charged(&turns).await;
            let ends_early = renewal < limits.renewal;
            let tokens = if ends_early { 100_000 } else { 30 };
            turns.provider.push(Script { tokens, pause: Duration::from_millis(50), ..Script::default() });
            let mut reader = session.stream().await;
            let mut seen = reader.take(2).await;
            clock.advance(LEASE);
            turns.server.work(SWEEP).await;
            let turn = session.last_turn().await;
            assert_eq!(turn.status, TurnStatus::Interrupted);
            seen.extend(reader.rest().await);
            let last = seen.pop().unwrap();
            assert_eq!(last.code(), Some("interrupted"), "{last:?}");
            assert!(seen.iter().all(|event| event.kind == "text"));

            assert_eq!(session.last_turn().await, turn);
            let usage = usage_of(&turn);
            assert_eq!(charged(&turns).await, (before.0 + usage.0, before.1 + usage.1));
            let replayed = session.follow(None).await.rest().await;
            assert_eq!(assert_whole(&replayed, 0).code(), Some("interrupted"));
            session.assert_usable().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_turn_runs_again_under_its_key() {
    let (turns, clock) = start(LIMITS).await;
    let session = turns.session(ANTHROPIC).await;
    let process = Process::start(&turns.server).await;
    turns.provider.push(endless());
    let body = json!({ "text": super::text(), "model": ANTHROPIC });
    let asked = process.peer.request(&session, Method::POST, "/messages").body(body.clone()).idempotency_key("once");
    let lost = tokio::spawn(async move { timeout(Duration::from_secs(2), asked.open()).await.is_err() });
    turns.until_provider_is_called().await;
    process.kill().await;
    lost.await.ok();
    clock.advance(LEASE);
    turns.server.work(SWEEP).await;
    assert_eq!(session.last_turn().await.status, TurnStatus::Interrupted);
    let again = || session.post(body.clone()).idempotency_key("once");
    let first = again().send().await.expect(200);
    assert_eq!(again().send().await.expect(200), first);
    assert_eq!(turns.provider.ledger().len(), 2);
}

/// The process was frozen until the sweep had ended its turn.
#[tokio::test(flavor = "multi_thread")]
async fn live_client_reads_that_the_sweep_cancelled() {
    let (turns, clock) = start(TurnLimits { renewal: Duration::from_hours(1), ..LIMITS }).await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(Script { tokens: 60, pause: Duration::from_millis(50), ..Script::default() });
    let mut reader = session.stream().await;
    let mut seen = reader.take(2).await;
    session.cancel().send().await.expect(202);
    clock.advance(LEASE);
    turns.server.work(SWEEP).await;
    assert_eq!(session.last_turn().await.status, TurnStatus::Cancelled);
    seen.extend(reader.rest().await);
    assert_eq!(seen.last().unwrap().code(), Some("turn_cancelled"));
    session.assert_usable().await;
}

/// The process dies before its next renewal, which would have read the request to cancel.
#[tokio::test(flavor = "multi_thread")]
async fn cancel_holds_although_the_process_dies() {
    let minutes = |minutes| Duration::from_mins(minutes);
    let (turns, clock) = start(TurnLimits { lease: minutes(10), renewal: minutes(3), ..LIMITS }).await;
    let session = turns.session(ANTHROPIC).await;
    let process = Process::start(&turns.server).await;
    turns.provider.push(endless());
    let body = json!({ "text": super::text(), "stream": true, "model": ANTHROPIC });
    let asked = process.peer.request(&session, Method::POST, "/messages").body(body.clone()).idempotency_key("once");
    let mut reader = EventReader::new(asked.open().await);
    let seen = reader.take(10).await;
    session.cancel().send().await.expect(202);
    process.kill().await;
    let waiting = session.follow(Some(seen[9].id())).await;
    clock.advance(minutes(10));
    turns.server.work(SWEEP).await;
    let turn = session.last_turn().await;
    assert_eq!((turn.status, turn.error_code.as_deref()), (TurnStatus::Cancelled, Some("turn_cancelled")));
    for follower in [waiting, session.follow(Some(seen[9].id())).await, session.follow(None).await] {
        assert_eq!(follower.rest().await.last().unwrap().code(), Some("turn_cancelled"));
    }
    // A repeated request attaches to the cancelled turn.
    let again = EventReader::new(session.post(body).idempotency_key("once").open().await).rest().await;
    assert_eq!(again.last().unwrap().code(), Some("turn_cancelled"));
    assert_eq!(turns.provider.ledger().len(), 1);
    session.assert_usable().await;
}

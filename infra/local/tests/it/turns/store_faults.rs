//! Faults of the store at the end of a turn: it is counted once, and its client learns its end.

use std::{sync::Arc, time::Duration};

use http::Method;
use karta_local::{Options, provider::Script};
use karta_shared::{
    clock::{Clock, ManualClock},
    config::TurnLimits,
    domain::TurnStatus,
};
use serde_json::json;

use super::{ANTHROPIC, DIALECTS, EventReader, LIMITS, TurnServer, assert_whole, killed::SWEEP, until};
use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::options,
    reservations::assert_all_released,
};

const TOKENS: u64 = 20;

async fn start(turn_limits: TurnLimits) -> (TurnServer, Arc<FaultProxy>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let defaults = options(Arc::clone(&clock) as Arc<dyn Clock>);
    let (turns, proxy) = TurnServer::start_with_proxy(Options { turn_limits, ..defaults }).await;
    (turns, proxy, clock)
}

fn paced() -> Script {
    Script { tokens: 20, pause: Duration::from_millis(20), ..Script::default() }
}

async fn output_of_month(turns: &TurnServer) -> u64 {
    let usage = turns.server.get("/v1/usage").send().await.expect(200);
    usage["totals"]["output_tokens"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn settlement_survives_faults_of_the_store() {
    let (turns, proxy, _clock) = start(LIMITS).await;
    let conflict = StoreFault::Cancel { code: "TransactionConflict", at: 0 };
    let faults = [
        (StoreFault::DropResponse, 1),
        (StoreFault::DropResponse, 4),
        (StoreFault::Throttle, 4),
        (conflict, 12),
        (StoreFault::ServerError, 4),
    ];
    for (round, (fault, count)) in (1..).zip(faults) {
        let session = turns.session(ANTHROPIC).await;
        turns.provider.push(paced());
        let mut reader = session.stream().await;
        let mut events = reader.take(2).await;
        proxy.fail("TransactWriteItems", count, fault);
        events.extend(reader.rest().await);
        proxy.heal();
        assert_eq!(assert_whole(&events, 0).kind, "done", "{fault:?}");
        assert_eq!(output_of_month(&turns).await, round * TOKENS, "{fault:?}");
        assert_eq!(session.get().await["usage"]["output_tokens"], TOKENS);
        assert_eq!(session.follow(None).await.rest().await, events);
        assert_eq!(session.messages().await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unsettled_turn_is_left_to_the_sweep() {
    let (turns, proxy, clock) = start(TurnLimits { settle: Duration::from_secs(1), ..LIMITS }).await;
    for model in DIALECTS {
        let session = turns.session(model).await;
        let before = output_of_month(&turns).await;
        turns.provider.push(paced());
        let mut reader = session.stream().await;
        let mut events = reader.take(2).await;
        proxy.fail("TransactWriteItems", ALWAYS, StoreFault::Throttle);
        events.extend(reader.rest().await);
        proxy.heal();
        assert_eq!(events.pop().unwrap().code(), Some("interrupted"));
        assert!(events.iter().all(|event| event.kind == "text"));
        assert_eq!(session.last_turn().await.status, TurnStatus::Running);

        clock.advance(LIMITS.lease);
        turns.server.work(SWEEP).await;
        let turn = session.last_turn().await;
        assert_eq!((turn.status, turn.estimated), (TurnStatus::Interrupted, true));
        assert_eq!(output_of_month(&turns).await, before + turn.usage.output_tokens);
        session.assert_usable().await;
    }
}

/// The log is written beside the stream. A client that stays does not notice that it fails.
#[tokio::test(flavor = "multi_thread")]
async fn lost_writes_of_the_log_lose_no_event() {
    let (turns, proxy, _clock) = start(LIMITS).await;
    for fault in [StoreFault::DropResponse, StoreFault::Throttle, StoreFault::ServerError] {
        let session = turns.session(ANTHROPIC).await;
        turns.provider.push(Script { tokens: 60, pause: Duration::from_millis(60), ..Script::default() });
        let mut reader = session.stream().await;
        let mut events = reader.take(1).await;
        proxy.fail("PutItem", 5, fault);
        events.extend(reader.rest().await);
        proxy.heal();
        assert_eq!((assert_whole(&events, 0).kind.as_str(), events.len()), ("done", 61));
        assert_eq!(session.follow(None).await.rest().await, events, "{fault:?}");
    }
}

/// The first batch is in the log, but the turn does not learn it before its end.
#[tokio::test(flavor = "multi_thread")]
async fn uncertain_write_of_the_log_loses_no_turn() {
    let (turns, proxy, _clock) = start(LIMITS).await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(Script { tokens: 80, pause: Duration::from_millis(20), ..Script::default() });
    proxy.fail("PutItem", 1, StoreFault::DropResponse);
    proxy.fail("PutItem", ALWAYS, StoreFault::ServerError);
    let events = session.stream().await.rest().await;
    assert_eq!((assert_whole(&events, 0).kind.as_str(), events.len()), ("done", 81));
    assert_eq!(session.follow(None).await.rest().await, events);
    assert!(proxy.seen_of("PutItem").len() > 1);
}

/// Under a cap, the sweep counts nothing for a turn without a reservation. This turn has called its
/// provider, so it must keep its reservation until it is settled.
#[tokio::test(flavor = "multi_thread")]
async fn capped_turn_with_an_expired_lease_counts() {
    let (turns, proxy, clock) = start(LIMITS).await;
    let key = json!({ "name": "app", "scopes": ["read", "write"], "budget": { "output_tokens": 100_000 } });
    let (_, key) = turns.server.key_with(key).await;
    let session = turns.session(ANTHROPIC).await.with_token(&key);
    turns.provider.push(Script { tokens: 100_000, pause: Duration::from_millis(20), ..Script::default() });
    let mut reader = session.stream().await;
    let mut events = reader.take(2).await;
    // The renewal fails with all its retries.
    proxy.fail("UpdateItem", 5, StoreFault::ServerError);
    clock.advance(LIMITS.lease);
    events.extend(reader.rest().await);
    assert_eq!(events.last().unwrap().code(), Some("interrupted"));
    proxy.heal();
    turns.server.work(SWEEP).await;
    let turn = session.last_turn().await;
    assert_eq!((turn.status, turn.estimated), (TurnStatus::Interrupted, true));
    // The process itself settles the turn, with all output that it received.
    assert_eq!(turn.usage.output_tokens, u64::try_from(events.len() - 1).unwrap());
    assert!(turn.usage.input_tokens > 0, "{turn:?}");
    assert_all_released(&turns.server).await;
    session.assert_usable().await;
}

/// A revocation that cannot be read must not keep a turn and its readers alive.
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_access_ends_turn_and_reader() {
    let (turns, proxy, _clock) = start(TurnLimits { lease: Duration::from_secs(1), ..LIMITS }).await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(Script { tokens: 100_000, pause: Duration::from_millis(20), ..Script::default() });
    let mut reader = session.stream().await;
    let mut events = reader.take(2).await;
    let mut follower = session.follow(None).await;
    let mut replayed = follower.take(2).await;
    proxy.fail("BatchGetItem", ALWAYS, StoreFault::ServerError);
    let (rest, replayed_rest) = tokio::join!(reader.rest(), follower.rest());
    proxy.heal();
    events.extend(rest);
    replayed.extend(replayed_rest);
    assert_eq!(assert_whole(&events, 0).code(), Some("interrupted"));
    assert_eq!(assert_whole(&replayed, 0).code(), Some("interrupted"));
    assert_eq!(session.last_turn().await.status, TurnStatus::Interrupted);
    session.assert_usable().await;
}

/// The reservation takes most of the lease, which must not end before its first renewal.
#[tokio::test(flavor = "multi_thread")]
async fn slow_reservation_leaves_time_for_the_renewal() {
    let (lease, renewal) = (Duration::from_mins(10), Duration::from_mins(3));
    let (turns, proxy, clock) = start(TurnLimits { lease, renewal, ..LIMITS }).await;
    let key = json!({ "name": "app", "scopes": ["read", "write"], "budget": { "output_tokens": 100_000 } });
    let (_, key) = turns.server.key_with(key).await;
    let session = turns.session(ANTHROPIC).await.with_token(&key);
    turns.provider.push(Script { tokens: 100_000, pause: Duration::from_millis(20), ..Script::default() });
    // The key's time of last use is an update too.
    session.get().await;
    proxy.quiet().await;
    proxy.fail("UpdateItem", 1, StoreFault::HoldRequest);
    let hold_reservation = async {
        proxy.held().await;
        clock.advance(Duration::from_mins(9));
        proxy.release();
    };
    let (mut reader, ()) = tokio::join!(session.stream(), hold_reservation);
    reader.take(2).await;
    let has_renewed = || proxy.seen_of("UpdateItem").iter().any(|seen| seen.body.to_string().contains("due_at"));
    until("the lease is renewed", async || has_renewed()).await;
    clock.advance(lease.checked_sub(Duration::from_secs(1)).unwrap());
    turns.server.work(SWEEP).await;
    assert_eq!(session.last_turn().await.status, TurnStatus::Running);
}

/// A key is replaced between the read of its pointer and the read of the key.
#[tokio::test(flavor = "multi_thread")]
async fn replaced_model_key_fails_no_turn() {
    let (turns, proxy, _clock) = start(LIMITS).await;
    let session = turns.session(ANTHROPIC).await;
    proxy.quiet().await;
    let before = proxy.seen_of("BatchGetItem").len();
    // After the authorizer and the state of the turn.
    proxy.fail_after("BatchGetItem", 2, 1, StoreFault::HoldRequest);
    let (answer, key) = tokio::join!(session.ask().send(), async {
        proxy.held().await;
        assert_eq!(proxy.seen_of("BatchGetItem").len() - before, 3);
        let key = turns.store_key("anthropic", "sk-ant-api03-").await;
        proxy.release();
        key
    });
    answer.expect(200);
    assert_eq!(turns.provider.ledger().last().unwrap().headers["x-api-key"], key);
}

/// The turn does not read the provider's stream until the store works again.
#[tokio::test(flavor = "multi_thread")]
async fn reservation_survives_faults_of_the_store() {
    let renewal = TurnLimits::DEFAULT.renewal;
    let (turns, proxy, _clock) = start(TurnLimits { renewal, ..LIMITS }).await;
    let key = json!({ "name": "app", "scopes": ["read", "write"], "budget": { "output_tokens": 5_000 } });
    let (_, key) = turns.server.key_with(key).await;
    turns.server.request(Method::PUT, "/v1/budget").body(json!({ "output_tokens": 5_000 })).send().await.expect(200);
    let session = turns.session(ANTHROPIC).await.with_token(&key);
    turns.provider.push(Script { tokens: 1_000, pause: Duration::from_millis(1), ..Script::default() });
    let mut reader = session.stream().await;
    let mut events = reader.take(2).await;
    // The organization's part of a slice is reserved. The key's part fails, with all attempts, twice.
    proxy.fail_after("UpdateItem", 1, 10, StoreFault::ServerError);
    events.extend(reader.rest().await);
    assert!(proxy.seen_of("UpdateItem").len() > 11);
    proxy.heal();
    assert_eq!((assert_whole(&events, 0).kind.as_str(), events.len()), ("done", 1_001));
    assert_all_released(&turns.server).await;
}

/// The writes of a partition are limited. If a large answer cannot be stored for five minutes, the sweep
/// ends the turn without it.
#[tokio::test(flavor = "multi_thread")]
async fn large_answer_that_cannot_be_stored_is_dropped() {
    let (turns, proxy, clock) = start(TurnLimits { settle: Duration::from_millis(1), ..LIMITS }).await;
    for (words, messages) in [(20, 2), (300, 1)] {
        let session = turns.session(ANTHROPIC).await;
        turns.provider.push(Script { echoes: true, pause: Duration::from_millis(1), ..Script::default() });
        let text = format!("{} ", "x".repeat(999)).repeat(words);
        let body = json!({ "text": text, "stream": true, "model": ANTHROPIC });
        let mut reader = EventReader::new(session.post(body).open().await);
        reader.take(2).await;
        proxy.fail("TransactWriteItems", ALWAYS, StoreFault::Throttle);
        reader.rest().await;
        clock.advance(LIMITS.lease);
        let before = proxy.seen_of("TransactWriteItems").len();
        turns.server.try_work(SWEEP).await.unwrap_err();
        let in_one_settlement = proxy.seen_of("TransactWriteItems").len() - before;
        assert_eq!(session.last_turn().await.status, TurnStatus::Running);
        proxy.heal();
        clock.advance(Duration::from_mins(5));
        proxy.fail("TransactWriteItems", in_one_settlement, StoreFault::Throttle);
        let swept = turns.server.try_work(SWEEP).await;
        proxy.heal();
        assert_eq!(swept.is_ok(), messages == 1);
        turns.server.work(SWEEP).await;
        let turn = session.last_turn().await;
        assert_eq!((turn.status, turn.estimated), (TurnStatus::Interrupted, true));
        assert_eq!(session.messages().await.len(), messages);
        session.assert_usable().await;
    }
}

//! Deadlines of turns and of those who follow them.

use std::time::Duration;

use karta_local::provider::{Fault, Script};
use karta_shared::{config::TurnLimits, domain::TurnStatus};

use super::{DIALECTS, Event, LIMITS, OPENAI, TurnServer, assert_whole, failed};

fn endless() -> Script {
    Script { tokens: 100_000, pause: Duration::from_millis(20), ..Script::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_ends_at_its_deadline() {
    let deadline = Duration::from_millis(1_500);
    let turns = TurnServer::start_with(TurnLimits { streamed: deadline, unary: deadline, ..LIMITS }).await;
    for model in DIALECTS {
        let session = turns.session(model).await;
        turns.provider.push(endless());
        assert_eq!(failed(&session.ask().send().await), (504, "turn_deadline".to_owned()));
        session.assert_usable().await;

        turns.provider.push(endless());
        let mut reader = session.stream().await;
        let mut events = reader.take(1).await;
        let follower = session.follow(None).await;
        events.extend(reader.rest().await);
        assert_eq!(assert_whole(&events, 0).code(), Some("turn_deadline"));
        assert_eq!(follower.rest().await, events);
        let turn = session.last_turn().await;
        assert_eq!((turn.status, turn.estimated), (TurnStatus::Failed, true));
        assert_eq!(turn.usage.output_tokens, u64::try_from(events.len() - 1).unwrap());
        session.assert_usable().await;
    }
}

/// Limits that differ show which one counts.
#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_answer_has_its_deadline() {
    let (short, long) = (Duration::from_millis(200), Duration::from_mins(5));
    let slow = Script { tokens: 20, pause: Duration::from_millis(40), ..Script::default() };
    let turns = TurnServer::start_with(TurnLimits { streamed: long, unary: short, ..LIMITS }).await;
    let session = turns.session(DIALECTS[0]).await;
    turns.provider.push(slow.clone());
    assert_eq!(failed(&session.ask().send().await), (504, "turn_deadline".to_owned()));
    turns.provider.push(slow);
    assert_eq!(assert_whole(&session.stream().await.rest().await, 0).kind, "done");
}

/// Real limits are too long for this, unless a process died and the sweep does not run.
#[tokio::test(flavor = "multi_thread")]
async fn follower_does_not_wait_forever() {
    let short = Duration::from_millis(200);
    let turns = TurnServer::start_with(TurnLimits { streamed: short, settle: short, ..LIMITS }).await;
    let session = turns.session(DIALECTS[0]).await;
    turns.provider.push(endless());
    let ask = async { failed(&session.ask().send().await) };
    let follow = async {
        turns.until_provider_is_called().await;
        let events = session.follow(None).await.rest().await;
        session.cancel().send().await.expect(202);
        events
    };
    let (reply, events) = tokio::join!(ask, follow);
    assert_eq!(reply, (409, "turn_cancelled".to_owned()));
    assert_eq!(assert_whole(&events, 0).code(), Some("interrupted"));
}

/// The limit of a follower does not end a replay that takes longer: its client resumes.
#[tokio::test(flavor = "multi_thread")]
async fn slow_replay_ends_without_an_error() {
    let short = Duration::from_millis(50);
    let turns = TurnServer::start_with(TurnLimits { streamed: short, settle: short, ..LIMITS }).await;
    let session = turns.session(DIALECTS[0]).await;
    turns.provider.push(Script { tokens: 20_000, ..Script::default() });
    session.ask().send().await.expect(200);
    let (mut events, mut streams) = (Vec::<Event>::new(), 0);
    while events.last().is_none_or(|event| event.kind != "done") {
        let after = events.last().map(|event| event.id().to_owned());
        events.extend(session.follow(after.as_deref()).await.rest().await);
        assert!(events.iter().all(|event| event.kind != "error"));
        streams += 1;
    }
    assert_eq!(assert_whole(&events, 0).kind, "done");
    assert_eq!(events.len(), 20_001);
    assert!(streams > 1);
}

/// Some proxies of a provider leave the connection open after the answer.
#[tokio::test(flavor = "multi_thread")]
async fn silence_after_a_complete_answer_ends_it() {
    let turns = TurnServer::start_with(TurnLimits { silence: Duration::from_millis(500), ..LIMITS }).await;
    let session = turns.session(OPENAI).await;
    let mut ends = Vec::new();
    for frames in 1..7 {
        turns.provider.push(Script { tokens: 2, fault: Fault::SilentAfterFrames(frames), ..Script::default() });
        let reply = session.ask().send().await;
        ends.push(reply.status.as_u16());
    }
    ends.dedup();
    assert_eq!(ends, [504, 200]);
    session.assert_usable().await;
}

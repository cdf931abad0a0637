//! Clients that leave: the turn runs to its end and is charged what the provider bills.

use std::time::Duration;

use karta_local::provider::Script;
use karta_shared::domain::TurnStatus;
use tokio::time::timeout;

use super::{Conversation, DIALECTS, TurnServer, assert_whole, until};

const TOKENS: usize = 19;
const EVENTS: usize = TOKENS + 1;

fn paced() -> Script {
    Script { tokens: TOKENS, pause: Duration::from_millis(4), ..Script::default() }
}

/// Asserts that the last turn completed with the provider's usage. Returns its replay.
async fn assert_completed(turns: &TurnServer, session: &Conversation<'_>) -> Vec<super::Event> {
    let turn = session.ended_turn().await;
    assert_eq!((turn.status, turn.estimated), (TurnStatus::Completed, false));
    let ledger = turns.provider.ledger();
    let billed = ledger.last().unwrap();
    assert_eq!((turn.usage.input_tokens, turn.usage.output_tokens), (billed.input_tokens, billed.output_tokens));
    assert_eq!(turn.usage.output_tokens, u64::try_from(TOKENS).unwrap());
    let replayed = session.follow(None).await.rest().await;
    assert_eq!((assert_whole(&replayed, 0).kind.as_str(), replayed.len()), ("done", EVENTS));
    replayed
}

#[tokio::test(flavor = "multi_thread")]
async fn client_may_leave_at_every_event() {
    let turns = TurnServer::start().await;
    for model in DIALECTS {
        let session = turns.session(model).await;
        for index in 0..=EVENTS {
            turns.provider.push(paced());
            let mut reader = session.stream().await;
            let seen = reader.take(index).await;
            drop(reader);
            let replayed = assert_completed(&turns, &session).await;
            assert_eq!(replayed[..index], seen);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_may_leave_before_the_answer() {
    let turns = TurnServer::start().await;
    let session = turns.session(DIALECTS[0]).await;
    for streams in [false, true] {
        turns.provider.push(Script { head_pause: Duration::from_millis(300), ..paced() });
        let sent = turns.provider.ledger().len();
        let request = if streams { session.ask_streamed() } else { session.ask() };
        tokio::select! {
            _ = request.open() => panic!("answered before the provider's head"),
            () = until("the provider is called", async || turns.provider.ledger().len() > sent) => {}
        }
        assert_completed(&turns, &session).await;
    }
}

/// A client that leaves while its request is validated or claims the session must not lock it.
#[tokio::test(flavor = "multi_thread")]
async fn client_may_leave_while_its_turn_starts() {
    let turns = TurnServer::start().await;
    for wait in (0..40).map(Duration::from_millis) {
        let session = turns.session(DIALECTS[0]).await;
        if timeout(wait, session.ask().open()).await.is_err() {
            // The request may not have arrived at all.
            while session.get().await["turn"]["status"] == "running" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let reply = session.ask().send().await;
        if reply.status == 409 {
            assert_eq!(session.ended_turn().await.status, TurnStatus::Completed);
        } else {
            reply.expect(200);
        }
    }
}

//! Resuming a stream: every event arrives exactly once, also while the turn runs and in another
//! process.

use std::time::Duration;

use http::Method;
use karta_local::provider::Script;
use serde_json::json;

use super::{ANTHROPIC, Event, EventReader, Peer, TurnServer, assert_whole};

const TOKENS: usize = 19;
const EVENTS: usize = TOKENS + 1;

fn nothing_to_follow() -> serde_json::Value {
    let message = "There are no events to follow: no turn has started, the events expired, after is the turn's last \
                   event, or after names no event of this session. Read the messages instead.";
    json!({ "error": "no_turn_in_progress", "message": message })
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_turn_is_replayed_from_every_event() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(Script { tokens: TOKENS, ..Script::default() });
    let sent = session.stream().await.rest().await;
    assert_whole(&sent, 0);
    let peer = Peer::start(&turns).await;
    for (after, event) in sent[..TOKENS].iter().enumerate() {
        let by_query = session.follow(Some(event.id())).await.rest().await;
        assert_eq!(by_query, sent[after + 1..]);
        let request = session.follow_request(None).header("last-event-id", event.id());
        assert_eq!(EventReader::new(request.open().await).rest().await, sent[after + 1..]);
        let elsewhere = peer.request(&session, Method::GET, &format!("/stream?after={}", event.id()));
        assert_eq!(EventReader::new(elsewhere.open().await).rest().await, sent[after + 1..]);
    }
    // `after` comes before the header.
    let request = session.follow_request(Some(sent[15].id())).header("last-event-id", sent[3].id());
    assert_eq!(EventReader::new(request.open().await).rest().await, sent[16..]);
    let first = format!("{}.0", sent[0].turn_id());
    assert_eq!(session.follow(Some(&first)).await.rest().await, sent);
}

/// A stream without events would make a client of the browser's kind connect again and again.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_follows_the_last_event() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    assert_eq!(session.follow_request(None).send().await.refused(409), nothing_to_follow());
    let sent = session.stream().await.rest().await;
    let turn = sent[0].turn_id();
    for after in
        [sent.last().unwrap().id().to_owned(), format!("{turn}.4294967295"), format!("turn_{}.1", "0".repeat(32))]
    {
        let by_query = session.follow_request(Some(&after)).send().await;
        assert_eq!(by_query.refused(409), nothing_to_follow(), "{after}");
        let by_header = session.follow_request(None).header("last-event-id", &after).send().await;
        assert_eq!(by_header.refused(409), nothing_to_follow(), "{after}");
    }
    for after in ["1", "turn_1.1", &format!("{turn}.-1"), &format!("{turn}.4294967296")] {
        assert_eq!(session.follow_request(Some(after)).send().await.invalid_field(), "after");
    }
    // A browser sends the header by itself, so an id of another system is ignored.
    let foreign = session.follow_request(None).header("last-event-id", "1");
    assert_eq!(EventReader::new(foreign.open().await).rest().await, sent);
}

/// An error would make the client send its message again.
#[tokio::test(flavor = "multi_thread")]
async fn number_that_is_never_reached_gets_the_end() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(Script { tokens: TOKENS, pause: Duration::from_millis(20), ..Script::default() });
    let mut sent = session.stream().await;
    let mut events = sent.take(1).await;
    let beyond = format!("{}.500", events[0].turn_id());
    let follower = session.follow(Some(&beyond)).await;
    let (rest, end) = tokio::join!(sent.rest(), follower.rest());
    events.extend(rest);
    assert_eq!(end, events[TOKENS..]);
    assert_eq!(end[0].kind, "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn running_turn_is_followed_from_every_event() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    // Longer than the interval at which the log is written.
    turns.provider.push(Script { tokens: TOKENS, pause: Duration::from_millis(120), ..Script::default() });
    let mut sent = session.stream().await;
    let peer = Peer::start(&turns).await;
    let mut seen: Vec<Event> = Vec::new();
    // Opened beside the stream, because the machine may be busy.
    let mut followers = vec![(0, tokio::spawn(session.follow_request(None).open()))];
    for index in 0..TOKENS {
        seen.push(sent.next().await.unwrap());
        let after = format!("/stream?after={}", seen[index].id());
        let request = if index % 2 == 0 {
            session.request(Method::GET, &after)
        } else {
            peer.request(&session, Method::GET, &after)
        };
        followers.push((index + 1, tokio::spawn(request.open())));
    }
    seen.extend(sent.rest().await);
    assert_eq!((assert_whole(&seen, 0).kind.as_str(), seen.len()), ("done", EVENTS));
    for (after, follower) in followers {
        assert_eq!(EventReader::new(follower.await.unwrap()).rest().await, seen[after..]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn earlier_turn_is_replayed_by_its_id() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    let first = session.stream().await.rest().await;
    let second = session.stream().await.rest().await;
    assert_eq!(session.follow(None).await.rest().await, second);
    assert_eq!(session.follow(Some(first[3].id())).await.rest().await, first[4..]);
    // A turn that was not streamed has the same events.
    let unary = session.answer().await;
    let replayed = session.follow(None).await.rest().await;
    assert_eq!(assert_whole(&replayed, 0).data["data"]["message_id"], unary["messages"][1]["id"]);
    assert_eq!(super::joined(&replayed, "text"), unary["text"].as_str().unwrap());
}

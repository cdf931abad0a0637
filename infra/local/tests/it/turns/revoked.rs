//! Credentials that lose their access while a turn runs.

use std::{sync::Arc, time::Duration};

use http::Method;
use karta_local::{Options, provider::Script};
use karta_shared::{
    clock::{Clock, ManualClock},
    domain::TurnStatus,
};
use serde_json::json;

use super::{ANTHROPIC, LIMITS, TurnServer, assert_whole, failed};
use crate::harness::{options, unauthorized};

fn endless() -> Script {
    Script { tokens: 100_000, pause: Duration::from_millis(20), ..Script::default() }
}

async fn revoke(turns: &TurnServer, key: u64) {
    turns.server.delete(&format!("/v1/api_keys/{key}")).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_ends_its_running_turns() {
    let turns = TurnServer::start().await;
    let (id, key) = turns.server.key(&["read", "write"]).await;
    let (streamed, unary) = (turns.session(ANTHROPIC).await, turns.session(ANTHROPIC).await);
    let (streamed, unary) = (streamed.with_token(&key), unary.with_token(&key));
    turns.provider.push(endless());
    let mut reader = streamed.stream().await;
    let mut events = reader.take(3).await;
    turns.provider.push(endless());
    let (reply, ()) = tokio::join!(unary.ask().send(), async {
        turns.until_provider_is_called().await;
        revoke(&turns, id).await;
    });
    assert_eq!(failed(&reply), (401, "credential_revoked".to_owned()));
    reply.expect(401);
    events.extend(reader.rest().await);
    assert_eq!(assert_whole(&events, 0).code(), Some("credential_revoked"));

    // No new turn starts.
    let sent = turns.provider.ledger().len();
    for request in [streamed.ask(), streamed.ask_streamed(), streamed.follow_request(None)] {
        assert_eq!(request.send().await.refused(401), unauthorized());
    }
    assert_eq!(turns.ledger_after(sent).len(), 0);

    let admin = streamed.with_token(&turns.server.admin);
    let turn = admin.last_turn().await;
    assert_eq!((turn.status, turn.estimated), (TurnStatus::Failed, true));
    assert_eq!(turn.usage.output_tokens, u64::try_from(events.len() - 1).unwrap());
    admin.assert_usable().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_minting_key_ends_its_tokens() {
    let turns = TurnServer::start().await;
    turns.project("app", ANTHROPIC).await;
    let (id, key) = turns.server.key(&["write"]).await;
    let mint = turns.server.post("/v1/agent_projects/app/session_tokens", json!({ "user_id": "ada" })).bearer(&key);
    let token = mint.send().await.expect(201)["token"].as_str().unwrap().to_owned();
    let session = turns.project_session("app", &token).await;
    turns.provider.push(endless());
    let mut reader = session.stream().await;
    let mut events = reader.take(3).await;
    revoke(&turns, id).await;
    events.extend(reader.rest().await);
    assert_eq!(assert_whole(&events, 0).code(), Some("credential_revoked"));

    for request in [
        session.ask(),
        session.ask_streamed(),
        session.cancel(),
        session.follow_request(None),
        session.request(Method::GET, ""),
        session.request(Method::GET, "/messages"),
        session.request(Method::DELETE, ""),
    ] {
        assert_eq!(request.send().await.refused(401), unauthorized());
    }
    let renewed = turns.server.session_token("app", json!({ "user_id": "ada" })).await;
    session.with_token(&renewed).assert_usable().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_key_ends_its_running_turn() {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let defaults = options(Arc::clone(&clock) as Arc<dyn Clock>);
    let turns = TurnServer::start_as(Options { turn_limits: LIMITS, ..defaults }).await;
    let key = json!({ "name": "short", "scopes": ["read", "write"], "expires_at": "2026-11-21T12:00:10Z" });
    let (_, key) = turns.server.key_with(key).await;
    let session = turns.session(ANTHROPIC).await.with_token(&key);
    turns.provider.push(endless());
    let mut reader = session.stream().await;
    let mut events = reader.take(3).await;
    clock.advance(Duration::from_secs(10));
    events.extend(reader.rest().await);
    assert_eq!(assert_whole(&events, 0).code(), Some("credential_revoked"));
}

/// The turn belongs to another key, so it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_stops_following() {
    let turns = TurnServer::start().await;
    let (id, key) = turns.server.key(&["read"]).await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(endless());
    let mut reader = session.stream().await;
    reader.take(1).await;
    let mut follower = session.with_token(&key).follow(None).await;
    let mut events = follower.take(3).await;
    revoke(&turns, id).await;
    events.extend(follower.rest().await);
    assert_eq!(assert_whole(&events, 0).code(), Some("credential_revoked"));
    assert_eq!(session.get().await["turn"]["status"], "running");
    reader.take(1).await;
    session.cancel().send().await.expect(202);
    assert_eq!(reader.rest().await.last().unwrap().code(), Some("turn_cancelled"));
}

/// The check does not wait until the reader has caught up.
#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_stops_a_slow_reader() {
    const TOKENS: usize = 60_000;
    let turns = TurnServer::start().await;
    let (id, key) = turns.server.key(&["read"]).await;
    let session = turns.session(ANTHROPIC).await;
    turns.provider.push(Script { tokens: TOKENS, ..Script::default() });
    session.ask().send().await.expect(200);
    let mut follower = session.with_token(&key).follow(None).await;
    let mut events = follower.take(3).await;
    revoke(&turns, id).await;
    tokio::time::sleep(3 * LIMITS.renewal).await;
    events.extend(follower.rest().await);
    assert_eq!(assert_whole(&events, 0).code(), Some("credential_revoked"));
    assert!(events.len() < TOKENS, "the sockets buffer all {} events", events.len());
}

//! Uses the data plane so that its functions make each kind of AWS call, for the comparison with
//! their policies.

use std::time::Duration;

use http::Method;
use karta_local::provider::{FakeProvider, Fault, Script};
use karta_shared::clock::ManualClock;
use serde_json::json;

use crate::{
    calls::Calls,
    harness::{Request, TestServer, until},
    model_keys::provider_key,
};

const SESSIONS: &str = "/v1/projects/chat/sessions";

/// Calls every route of sessions, and lets the sweep settle a turn and delete a session. `provider`
/// replaces the host of `OpenAI`.
pub(crate) async fn converse(server: &TestServer, clock: &ManualClock, provider: &FakeProvider, calls: &Calls) {
    let token = set_up(server).await;
    let own = created(server.post("/v1/sessions", json!({}))).await;
    server.post("/v1/sessions", json!({ "session_id": own })).send().await.expect(200);
    created(server.post(SESSIONS, json!({}))).await;
    let session = format!("{SESSIONS}/{}", created(server.post(SESSIONS, json!({})).bearer(&token)).await);
    for (path, token) in [("/v1/sessions", &server.admin), (SESSIONS, &server.admin), (SESSIONS, &token)] {
        server.get(&format!("{path}?limit=1")).bearer(token).send().await.expect(200);
    }
    server.get(&session).bearer(&token).send().await.expect(200);

    let messages = format!("{session}/messages");
    let message = || server.post(&messages, json!({ "text": "Hello" }));
    message().bearer(&token).send().await.expect(200);
    // The second turn reads the first one, and its repeat attaches to it.
    for _ in 0..2 {
        message().idempotency_key("1").send().await.expect(200);
    }
    // The session belongs to a user, so the organization's `transcript_access` is read.
    server.get(&format!("{messages}?limit=1")).send().await.expect(200);
    server.get(&format!("{session}/stream")).send().await.expect(200);

    interrupt(server, clock, provider, calls, &session, &token).await;
    server.delete(&session).send().await.expect(204);
    server.work("worker-turns-sweep").await;
}

/// Creates a budget, a provider key and a project. Returns a session token.
async fn set_up(server: &TestServer) -> String {
    server.request(Method::PUT, "/v1/budget").body(json!({ "total_tokens": 1_000_000 })).send().await.expect(200);
    let key = json!({ "provider": "openai", "key": provider_key("sk-proj-") });
    server.post("/v1/model_keys", key).send().await.expect(201);
    server.project("chat").await;
    server.deploy("chat", json!({ "commit_sha": "abcdef0" })).await;
    server.patch("/v1/agent_projects/chat", json!({ "model_id": "gpt-4o" })).send().await.expect(200);
    let organization = format!("/v1/internal/organizations/{}", server.organization_id);
    let access = server.service(Method::PATCH, &organization).body(json!({ "transcript_access": true }));
    access.send().await.expect(200);
    server.session_token("chat", json!({ "user_id": "user-7" })).await
}

/// Lets the sweep end a turn that a client follows, as if the turn's process had died.
async fn interrupt(
    server: &TestServer,
    clock: &ManualClock,
    provider: &FakeProvider,
    calls: &Calls,
    session: &str,
    token: &str,
) {
    provider.push(Script { fault: Fault::SilentAfter(2), ..Script::default() });
    let message = json!({ "text": "Hello", "stream": true });
    let turn = tokio::spawn(server.post(&format!("{session}/messages"), message).bearer(token).send());
    until("the provider is called", async || provider.unused_scripts() == 0).await;
    let status = async || server.get(session).bearer(token).send().await.expect(200)["turn"]["status"].clone();
    let follower = tokio::spawn(server.get(&format!("{session}/stream")).bearer(token).send());
    // A follower checks its credential as often as a turn renews its lease.
    let is_check =
        |call: &crate::calls::Call| call.function == "turn-streams" && call.action == "dynamodb:BatchGetItem";
    until("a check of the follower", async || calls.seen().iter().any(is_check)).await;
    server.request(Method::POST, &format!("{session}/cancel")).bearer(token).send().await.expect(202);
    clock.advance(Duration::from_secs(31));
    server.work("worker-turns-sweep").await;
    assert_eq!(status().await, "cancelled");
    follower.await.unwrap().expect(200);
    turn.abort();
}

async fn created(request: Request) -> String {
    request.send().await.expect(201)["id"].as_str().unwrap().to_owned()
}

//! Tests of the bcrypt queue: paused, full and released.

use std::sync::Arc;

use http::Method;
use karta_shared::clock::ManualClock;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    fault_proxy::FaultProxy,
    harness::{Reply, Request, TestServer, until},
    internal::keys_validate::{not_found, unavailable, unproven, validated, validation, with_wrong_tag},
};

/// A server with a proxy that counts the store calls. Its clock is fixed, so that no cached verdict
/// expires on a slow machine.
async fn at_noon() -> (TestServer, Arc<FaultProxy>) {
    FaultProxy::start_with(Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()))).await
}

fn valid_key(reply: Reply) {
    assert_eq!(reply.expect(200)["valid"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn full_queue_returns_503_and_changes_nothing() {
    let (server, proxy) = at_noon().await;
    let (id, token) = server.key(&["admin"]).await;
    let organization = format!("/v1/internal/organizations/{}", server.organization_id);
    let new_key = json!({ "name": "ci", "scopes": ["read"] });
    let requests = || -> [(Request, u16); 6] {
        let service = |path: &str| server.service(Method::POST, path);
        [
            (validation(&server, json!({ "key": token })), 200),
            (server.get("/v1/whoami").bearer(&token), 200),
            (server.post("/v1/api_keys", new_key.clone()), 201),
            (server.post(&format!("/v1/api_keys/{id}/rotate"), json!({})), 201),
            (service("/v1/internal/organizations").body(json!({ "slug": "globex", "name": "Globex" })), 201),
            (service(&format!("{organization}/api_keys")).body(new_key.clone()), 201),
        ]
    };
    let full = server.runner.app.bcrypt.fill();
    let stored = server.stored().await;
    proxy.forget();
    for (request, _) in requests() {
        unavailable(request).await;
    }
    assert!(proxy.seen_of("Query").is_empty(), "a request without a slot does not read the store");
    assert_eq!(server.stored().await, stored);
    server.get("/v1/whoami").send().await.expect(200);
    drop(full);
    for (request, status) in requests() {
        request.send().await.expect(status);
    }
    assert_eq!(server.runner.app.bcrypt.occupied_slots(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_validations_of_one_key_share_one_slot() {
    let (server, proxy) = at_noon().await;
    let (_, token) = server.key(&["read"]).await;
    proxy.forget();
    let pool = &server.runner.app.bcrypt;
    let paused = pool.pause().await;
    let mut storm = JoinSet::new();
    for _ in 0..200 {
        storm.spawn(validation(&server, json!({ "key": token })).send());
    }
    until("one queued validation", async || pool.occupied_slots() == 1).await;
    // A second slot for this key would now cause a 503.
    let full = pool.fill();
    drop(paused);
    storm.join_all().await.into_iter().for_each(valid_key);
    assert_eq!((proxy.seen_of("Query").len(), proxy.seen_of("BatchGetItem").len()), (1, 200));
    drop(full);
    assert_eq!(pool.occupied_slots(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrongly_tagged_key_needs_no_bcrypt_or_store() {
    let (server, proxy) = at_noon().await;
    validated(&server, json!({ "key": server.admin })).await;
    let _full = server.runner.app.bcrypt.fill();
    proxy.forget();
    for _ in 0..100 {
        let wrongly_tagged = with_wrong_tag(&unproven(&server, None).await);
        assert_eq!(validated(&server, json!({ "key": wrongly_tagged })).await, not_found());
        server.get("/v1/whoami").bearer(&wrongly_tagged).send().await.refused(401);
    }
    assert!(proxy.seen().is_empty());
    valid_key(validation(&server, json!({ "key": server.admin })).send().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_unknown_keys_leaves_known_keys_working() {
    let (server, _clock) = TestServer::start_at_noon().await;
    validated(&server, json!({ "key": server.admin })).await;
    let pool = &server.runner.app.bcrypt;
    let paused = pool.pause().await;
    let mut others = pool.fill();
    drop(others.split(3));
    let (mut flood, mut unknown) = (JoinSet::new(), Vec::new());
    for _ in 0..50 {
        unknown.push(unproven(&server, None).await);
        flood.spawn(validation(&server, json!({ "key": unknown.last() })).send());
    }
    for _ in 0..47 {
        let reply = flood.join_next().await.unwrap().unwrap();
        assert_eq!(reply.headers["retry-after"], "1");
        reply.refused(503);
    }
    assert_eq!(flood.len(), 3, "one validation for each free slot");
    valid_key(validation(&server, json!({ "key": server.admin })).send().await);
    drop(paused);
    for reply in flood.join_all().await {
        assert_eq!(reply.expect(200), not_found());
    }
    drop(others);
    for token in unknown {
        assert_eq!(validated(&server, json!({ "key": token })).await, not_found());
    }
    let (_, token) = server.key(&["read"]).await;
    valid_key(validation(&server, json!({ "key": token })).send().await);
    assert_eq!(pool.occupied_slots(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnected_client_leaves_the_queue() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (_, token) = server.key(&["read"]).await;
    let pool = &server.runner.app.bcrypt;
    let paused = pool.pause().await;
    let client = tokio::spawn(validation(&server, json!({ "key": token })).send());
    until("one queued validation", async || pool.occupied_slots() == 1).await;
    client.abort();
    until("an empty queue", async || pool.occupied_slots() == 0).await;
    drop(paused);
    valid_key(validation(&server, json!({ "key": token })).send().await);
}

//! The line that bcrypt stands in, in the hands of a test: held up, full, and let go again.

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

/// A server whose calls to the store are counted, on a clock that stands still: no verdict ages while a busy machine is slow.
async fn at_noon() -> (TestServer, Arc<FaultProxy>) {
    FaultProxy::start_with(Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()))).await
}

fn valid_key(reply: Reply) {
    assert_eq!(reply.expect(200)["valid"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_line_is_a_503_at_every_door_and_changes_nothing() {
    let (server, proxy) = at_noon().await;
    let (id, token) = server.key(&["admin"]).await;
    let organization = format!("/v1/internal/organizations/{}", server.organization_id);
    let new_key = json!({ "name": "ci", "scopes": ["read"] });
    let doors = || -> [(Request, u16); 6] {
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
    for (request, _) in doors() {
        unavailable(request).await;
    }
    assert!(proxy.seen_of("Query").is_empty(), "who finds no place does not ask the store either");
    assert_eq!(server.stored().await, stored);
    server.get("/v1/whoami").send().await.expect(200);
    drop(full);
    for (request, status) in doors() {
        request.send().await.expect(status);
    }
    assert_eq!(server.runner.app.bcrypt.in_line(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_first_validations_of_one_key_take_one_place_and_run_one_bcrypt() {
    let (server, proxy) = at_noon().await;
    let (_, token) = server.key(&["read"]).await;
    proxy.forget();
    let pool = &server.runner.app.bcrypt;
    let paused = pool.pause().await;
    let mut storm = JoinSet::new();
    for _ in 0..200 {
        storm.spawn(validation(&server, json!({ "key": token })).send());
    }
    until("one in line", async || pool.in_line() == 1).await;
    // Whoever of the others took a place of its own would be a 503.
    let full = pool.fill();
    drop(paused);
    storm.join_all().await.into_iter().for_each(valid_key);
    assert_eq!((proxy.seen_of("Query").len(), proxy.seen_of("BatchGetItem").len()), (1, 200));
    drop(full);
    assert_eq!(pool.in_line(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_of_the_right_shape_needs_neither_bcrypt_nor_the_store() {
    let (server, proxy) = at_noon().await;
    validated(&server, json!({ "key": server.admin })).await;
    let _full = server.runner.app.bcrypt.fill();
    proxy.forget();
    for _ in 0..100 {
        let junk = with_wrong_tag(&unproven(&server, None).await);
        assert_eq!(validated(&server, json!({ "key": junk })).await, not_found());
        server.get("/v1/whoami").bearer(&junk).send().await.refused(401);
    }
    assert!(proxy.seen().is_empty());
    valid_key(validation(&server, json!({ "key": server.admin })).send().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_deleted_keys_is_bounded_and_holds_up_no_known_key() {
    let (server, _clock) = TestServer::start_at_noon().await;
    validated(&server, json!({ "key": server.admin })).await;
    let pool = &server.runner.app.bcrypt;
    let paused = pool.pause().await;
    let mut others = pool.fill();
    drop(others.split(3));
    let (mut flood, mut deleted) = (JoinSet::new(), Vec::new());
    for _ in 0..50 {
        deleted.push(unproven(&server, None).await);
        flood.spawn(validation(&server, json!({ "key": deleted.last() })).send());
    }
    for _ in 0..47 {
        let reply = flood.join_next().await.unwrap().unwrap();
        assert_eq!(reply.headers["retry-after"], "1");
        reply.refused(503);
    }
    assert_eq!(flood.len(), 3, "as many as found a place");
    valid_key(validation(&server, json!({ "key": server.admin })).send().await);
    drop(paused);
    for judged in flood.join_all().await {
        assert_eq!(judged.expect(200), not_found());
    }
    drop(others);
    for token in deleted {
        assert_eq!(validated(&server, json!({ "key": token })).await, not_found());
    }
    let (_, token) = server.key(&["read"]).await;
    valid_key(validation(&server, json!({ "key": token })).send().await);
    assert_eq!(pool.in_line(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_leaves_the_line() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (_, token) = server.key(&["read"]).await;
    let pool = &server.runner.app.bcrypt;
    let paused = pool.pause().await;
    let impatient = tokio::spawn(validation(&server, json!({ "key": token })).send());
    until("one in line", async || pool.in_line() == 1).await;
    impatient.abort();
    until("nobody in line", async || pool.in_line() == 0).await;
    drop(paused);
    valid_key(validation(&server, json!({ "key": token })).send().await);
}

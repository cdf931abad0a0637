//! How long a revoked or restricted key still works. The gateway caches verdicts for three seconds,
//! and the contract promises five. A check without the gateway's cache rejects the key immediately.

use std::{sync::Arc, time::Duration};

use karta_shared::{
    auth::{Invalidity, Validator, Verdict},
    clock::ManualClock,
};
use serde_json::{Value, json};

use crate::harness::TestServer;

const GATEWAY_CACHE_TTL: Duration = Duration::from_secs(3);
const PROMISED_LIMIT: Duration = Duration::from_secs(5);

/// Creates a key and fills the gateway's cache with its verdict.
async fn used_key(server: &TestServer, scopes: &[&str]) -> (u64, String) {
    let (id, token) = server.key(scopes).await;
    assert_eq!(status(server, &token).await, 200);
    (id, token)
}

async fn status(server: &TestServer, token: &str) -> u16 {
    server.get("/v1/whoami").bearer(token).send().await.status.as_u16()
}

async fn revoke(server: &TestServer, id: u64) {
    server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
}

async fn patch(server: &TestServer, id: u64, change: Value) {
    server.patch(&format!("/v1/api_keys/{id}"), change).send().await.expect(200);
}

/// Advances the clock until the cached verdict expires. Uses the key shortly before, because a use
/// must not extend the cache.
async fn outlast_gateway_cache(server: &TestServer, clock: &Arc<ManualClock>, token: &str) {
    assert!(GATEWAY_CACHE_TTL < PROMISED_LIMIT);
    clock.advance(Duration::from_millis(2_900));
    let late = status(server, token).await;
    assert!(late == 200 || late == 401, "the cached verdict may or may not be used: {late}");
    clock.advance(Duration::from_millis(100));
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_is_refused_within_three_seconds() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, token) = used_key(&server, &["read"]).await;
    revoke(&server, id).await;
    outlast_gateway_cache(&server, &clock, &token).await;
    let refused = server.get("/v1/whoami").bearer(&token).send().await;
    assert_eq!(refused.refused(401), crate::harness::unauthorized());
}

#[tokio::test(flavor = "multi_thread")]
async fn uncached_revoked_key_is_refused_immediately() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (unused, unused_token) = server.key(&["read"]).await;
    let (rested, rested_token) = used_key(&server, &["read"]).await;
    clock.advance(GATEWAY_CACHE_TTL);
    for id in [unused, rested] {
        revoke(&server, id).await;
    }
    assert_eq!(status(&server, &unused_token).await, 401);
    assert_eq!(status(&server, &rested_token).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_proof_does_not_validate_revoked_key() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let validator = Validator::new(server.runner.app.clone());
    let (id, token) = server.key(&["read"]).await;
    for _ in 0..2 {
        assert!(matches!(validator.validate(&token).await.unwrap(), Verdict::Valid(_)));
    }
    revoke(&server, id).await;
    assert!(matches!(validator.validate(&token).await.unwrap(), Verdict::Invalid(Invalidity::Revoked)));
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_scope_is_gone_after_three_seconds() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, token) = used_key(&server, &["read", "write"]).await;
    let validator = Validator::new(server.runner.app.clone());
    assert!(matches!(validator.validate(&token).await.unwrap(), Verdict::Valid(_)));
    patch(&server, id, json!({ "scopes": ["read"] })).await;
    let Verdict::Valid(valid) = validator.validate(&token).await.unwrap() else { panic!("the key must stay valid") };
    assert_eq!(valid.api_key.scopes.to_string(), "read", "immediate without the gateway");
    outlast_gateway_cache(&server, &clock, &token).await;
    let body = json!({ "slug": "my-app", "name": "My app" });
    let refused = server.post("/v1/agent_projects", body).bearer(&token).send().await;
    assert_eq!(refused.forbidden(), "missing scope: write");
    assert_eq!(server.get("/v1/whoami").bearer(&token).send().await.expect(200)["scopes"], json!(["read"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_expiry_applies_after_three_seconds() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, token) = used_key(&server, &["read"]).await;
    patch(&server, id, json!({ "expires_at": "2026-11-21T12:00:01Z" })).await;
    outlast_gateway_cache(&server, &clock, &token).await;
    assert_eq!(status(&server, &token).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn narrowed_addresses_apply_after_three_seconds() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, token) = used_key(&server, &["read"]).await;
    patch(&server, id, json!({ "allowed_cidrs": ["10.0.0.0/8"] })).await;
    outlast_gateway_cache(&server, &clock, &token).await;
    assert_eq!(status(&server, &token).await, 401);
    patch(&server, id, json!({ "allowed_cidrs": null })).await;
    clock.advance(GATEWAY_CACHE_TTL);
    assert_eq!(status(&server, &token).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn denial_is_cached_for_three_seconds() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, token) = server.key(&["read"]).await;
    patch(&server, id, json!({ "expires_at": "2026-11-21T12:00:01Z" })).await;
    clock.advance(Duration::from_secs(1));
    assert_eq!(status(&server, &token).await, 401);
    patch(&server, id, json!({ "expires_at": null })).await;
    clock.advance(GATEWAY_CACHE_TTL);
    assert_eq!(status(&server, &token).await, 200);
}

/// Creates a key with every scope, fills the gateway's cache with its verdict, then restricts it
/// with another key.
async fn restricted_key(server: &TestServer, change: Value) -> (u64, String) {
    let (id, token) = used_key(server, &["read", "write", "admin"]).await;
    patch(server, id, change).await;
    (id, token)
}

#[tokio::test(flavor = "multi_thread")]
async fn restricted_key_cannot_restore_its_own_rights() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let full_rights = json!({ "scopes": ["read", "write", "admin"], "expires_at": null, "allowed_cidrs": null });
    for (change, status) in [
        (json!({ "scopes": ["read"] }), 403),
        (json!({ "allowed_cidrs": ["10.0.0.0/8"] }), 401),
        (json!({ "scopes": ["read"], "expires_at": "2027-01-01T00:00:00Z" }), 403),
    ] {
        let (id, token) = restricted_key(&server, change.clone()).await;
        let path = format!("/v1/api_keys/{id}");
        server.patch(&path, full_rights.clone()).bearer(&token).send().await.refused(status);
        server.post(&format!("{path}/rotate"), json!({})).bearer(&token).send().await.refused(status);
        server
            .post("/v1/api_keys", json!({ "name": "x", "scopes": ["admin"] }))
            .bearer(&token)
            .send()
            .await
            .refused(status);
        let key = server.get(&path).send().await.expect(200)["api_key"].take();
        for (field, value) in change.as_object().unwrap().iter().filter(|(field, _)| *field != "expires_at") {
            assert_eq!(&key[field], value);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_cannot_create_another_key() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (id, token) = used_key(&server, &["read", "admin"]).await;
    revoke(&server, id).await;
    let heir = json!({ "name": "heir", "scopes": ["admin"] });
    let refused = server.post("/v1/api_keys", heir).bearer(&token).send().await;
    assert_eq!(refused.refused(401), crate::harness::unauthorized());
    server.delete("/v1/api_keys/1").bearer(&token).send().await.refused(401);
}

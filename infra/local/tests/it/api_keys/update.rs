use std::time::Duration;

use serde_json::{Value, json};

use super::{path, read};
use crate::harness::TestServer;

fn settings() -> Value {
    json!({
        "name": "ci",
        "scopes": ["read", "write"],
        "expires_at": "2027-01-01T00:00:00.000Z",
        "allowed_cidrs": ["10.0.0.0/8", "192.0.2.0/24"],
        "budget": { "cost_cents": 500, "total_tokens": 9, "alert_percents": [50] },
        "metadata": { "team": "web", "stage": "test" },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn patch_replaces_only_named_fields() {
    let server = TestServer::start().await;
    let (id, _) = server.key_with(settings()).await;
    let budget = json!({
        "input_tokens": null, "output_tokens": null, "total_tokens": null, "cost_cents": 7, "alert_percents": [50, 80, 100],
    });
    for (patch, field, expected) in [
        (json!({ "name": "cd" }), "name", json!("cd")),
        (json!({ "scopes": ["write", "read", "admin"] }), "scopes", json!(["read", "write", "admin"])),
        (json!({ "expires_at": "2028-01-01T01:00:00+01:00" }), "expires_at", json!("2028-01-01T00:00:00.000Z")),
        (json!({ "allowed_cidrs": ["2001:db8::/32"] }), "allowed_cidrs", json!(["2001:db8::/32"])),
        (json!({ "budget": { "cost_cents": 7 } }), "budget", budget),
        (json!({ "metadata": { "owner": "ann" } }), "metadata", json!({ "owner": "ann" })),
    ] {
        let mut key = read(&server, id).await;
        key[field] = expected;
        let answer = server.patch(&path(id), patch).send().await.expect(200);
        assert_eq!(answer, json!({ "api_key": key }), "{field}");
        assert_eq!(read(&server, id).await, key, "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn null_clears_a_field() {
    let server = TestServer::start().await;
    let (id, _) = server.key_with(settings()).await;
    for (field, cleared) in
        [("expires_at", json!(null)), ("allowed_cidrs", json!([])), ("budget", json!(null)), ("metadata", json!({}))]
    {
        let mut key = read(&server, id).await;
        key[field] = cleared;
        let answer = server.patch(&path(id), json!({ field: null })).send().await.expect(200);
        assert_eq!(answer["api_key"], key, "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patch_applies_all_fields_or_none() {
    let server = TestServer::start().await;
    let (id, _) = server.key_with(settings()).await;
    let before = read(&server, id).await;
    let half_wrong = json!({ "name": "cd", "metadata": null, "scopes": ["root"] });
    assert_eq!(server.patch(&path(id), half_wrong).send().await.invalid_field(), "scopes[0]");
    assert_eq!(read(&server, id).await, before);

    let answer = server.patch(&path(id), json!({ "name": "cd", "metadata": null })).send().await.expect(200);
    assert_eq!((&answer["api_key"]["name"], &answer["api_key"]["metadata"]), (&json!("cd"), &json!({})));
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_patch_changes_nothing() {
    let server = TestServer::start().await;
    let (id, _) = server.key_with(settings()).await;
    let before = read(&server, id).await;
    let answer = server.patch(&path(id), json!({})).send().await.expect(200);
    assert_eq!(answer["api_key"], before);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_patches_both_take_effect() {
    let server = TestServer::start().await;
    let (id, _) = server.key_with(settings()).await;
    let (name, metadata) = tokio::join!(
        server.patch(&path(id), json!({ "name": "cd" })).send(),
        server.patch(&path(id), json!({ "metadata": { "owner": "ann" } })).send(),
    );
    name.expect(200);
    metadata.expect(200);
    let key = read(&server, id).await;
    assert_eq!((&key["name"], &key["metadata"]), (&json!("cd"), &json!({ "owner": "ann" })));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_scopes_apply_after_the_gateway_cache_expires() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, token) = server.key(&["read"]).await;
    server.get("/v1/api_keys").bearer(&token).send().await.expect(200);
    server.patch(&path(id), json!({ "scopes": ["write"] })).send().await.expect(200);
    clock.advance(Duration::from_secs(3));
    assert_eq!(server.get("/v1/api_keys").bearer(&token).send().await.forbidden(), "missing scope: read");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_field_is_named() {
    let (server, _) = TestServer::start_at_noon().await;
    let (id, _) = server.key_with(settings()).await;
    let before = read(&server, id).await;
    for (patch, field) in [
        (json!({ "name": null }), "name"),
        (json!({ "name": " " }), "name"),
        (json!({ "name": "é".repeat(101) }), "name"),
        (json!({ "scopes": null }), "scopes"),
        (json!({ "scopes": ["root"] }), "scopes[0]"),
        (json!({ "expires_at": "never" }), "expires_at"),
        (json!({ "expires_at": "2026-11-21T12:00:00Z" }), "expires_at"),
        (json!({ "allowed_cidrs": ["10.0.0.1/8"] }), "allowed_cidrs[0]"),
        (json!({ "allowed_cidrs": vec!["10.0.0.0/8"; 21] }), "allowed_cidrs"),
        (json!({ "budget": { "cost_cents": "5" } }), "budget.cost_cents"),
        (json!({ "budget": { "limit": 5 } }), "budget.limit"),
        (json!({ "metadata": { "team": 1 } }), "metadata.team"),
        (json!({ "id": 7 }), "id"),
        (json!({ "prefix": "kt_live_AAAAAA" }), "prefix"),
        (json!({ "status": "active" }), "status"),
        (json!({ "revoked_at": null }), "revoked_at"),
        (json!({ "created_by": null }), "created_by"),
        (json!([]), "body"),
        (json!(null), "body"),
    ] {
        assert_eq!(server.patch(&path(id), patch.clone()).send().await.invalid_field(), field, "{patch}");
    }
    assert_eq!(read(&server, id).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_or_oversized_body_is_refused() {
    let server = TestServer::start().await;
    let (id, _) = server.key(&["read"]).await;
    for body in ["", "{", "name=ci"] {
        let refusal = server.patch(&path(id), json!({})).raw_body(body).send().await.refused(400);
        assert_eq!(refusal["error"], "malformed_json");
    }
    let refusal = server.patch(&path(id), json!({})).raw_body(" ".repeat(65_537)).send().await.refused(413);
    assert_eq!(refusal["error"], "body_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_or_malformed_id_returns_404() {
    let server = TestServer::start().await;
    for id in ["1", "0", "01", "abc", "9007199254740992"] {
        let refusal = server.patch(&format!("/v1/api_keys/{id}"), json!({ "name": "cd" })).send().await.refused(404);
        assert_eq!(refusal, json!({ "detail": "Not found" }), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_cannot_be_changed() {
    let server = TestServer::start().await;
    let (id, _) = server.key(&["read"]).await;
    let revoked = server.delete(&path(id)).send().await.expect(200)["api_key"].take();
    for patch in [json!({ "name": "cd" }), json!({ "expires_at": null }), json!({})] {
        let refusal = server.patch(&path(id), patch).send().await.refused(409);
        assert_eq!(refusal["error"], "api_key_revoked");
        assert_eq!(refusal["message"], "A revoked key cannot be changed. Create a new key.");
    }
    assert_eq!(read(&server, id).await, revoked);
}

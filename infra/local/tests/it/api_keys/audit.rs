use std::time::Duration;

use http::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::{own_id, path};
use crate::harness::{Reply, TestServer};

const USER_AGENT: &str = "tests/1.0";

/// The expected audit event without its `id` and `changes`.
async fn expected_event(server: &TestServer, action: &str, at: &str, resource: u64, reply: &Reply) -> Value {
    json!({
        "at": at,
        "actor": { "kind": "api_key", "id": own_id(server).await, "name": "First key" },
        "action": action,
        "resource": { "kind": "api_key", "id": resource },
        "ip_address": "127.0.0.1",
        "user_agent": USER_AGENT,
        "request_id": reply.headers["x-request-id"].to_str().unwrap(),
    })
}

/// Splits an event into its public fields and its changes. Drops `id` and the store's attributes.
fn split(mut event: Value) -> (Value, Value) {
    let fields = event.as_object_mut().unwrap();
    assert!(fields.remove("id").unwrap().is_u64());
    for name in ["pk", "sk", "unchained"] {
        fields.remove(name);
    }
    let changes = fields.remove("changes").unwrap();
    (event, changes)
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_event_has_settings_but_no_secret() {
    let (server, clock) = TestServer::start_at_noon().await;
    clock.advance(Duration::from_secs(1));
    let settings = json!({ "name": "ci", "scopes": ["read", "write"], "expires_at": "2027-01-01T00:00:00Z", "metadata": { "team": "web" } });
    let reply = server.post("/v1/api_keys", settings).header("user-agent", USER_AGENT).send().await;
    let id = reply.json["api_key"]["id"].as_u64().unwrap();

    let event = server.audited("api_key.created").await.pop().unwrap();
    let secret = reply.json["secret"].as_str().unwrap();
    assert!(!event.to_string().contains(&secret[8..]));
    let (event, changes) = split(event);
    assert_eq!(event, expected_event(&server, "api_key.created", "2026-11-21T12:00:01.000Z", id, &reply).await);
    for (field, after) in [
        ("name", json!("ci")),
        ("scopes", json!(["read", "write"])),
        ("expires_at", json!("2027-01-01T00:00:00.000Z")),
        ("metadata", json!({ "team": "web" })),
    ] {
        assert_eq!(changes[field], json!({ "before": null, "after": after }), "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn update_event_lists_changed_fields() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, _) = server.key_with(json!({ "name": "ci", "scopes": ["read"], "metadata": { "team": "web" } })).await;
    clock.advance(Duration::from_secs(1));
    let patch = json!({ "name": "cd", "scopes": ["read"], "metadata": null });
    let reply = server.patch(&path(id), patch).header("user-agent", USER_AGENT).send().await;

    let mut events = server.audited("api_key.updated").await;
    assert_eq!(events.len(), 1);
    let (event, changes) = split(events.remove(0));
    assert_eq!(event, expected_event(&server, "api_key.updated", "2026-11-21T12:00:01.000Z", id, &reply).await);
    let expected = json!({
        "name": { "before": "ci", "after": "cd" },
        "metadata": { "before": { "team": "web" }, "after": {} },
    });
    assert_eq!(changes, expected, "unchanged fields are not listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_revocation_is_audited_once() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, _) = server.key(&["read"]).await;
    clock.advance(Duration::from_secs(1));
    let reply = server.delete(&path(id)).header("user-agent", USER_AGENT).send().await;
    clock.advance(Duration::from_secs(1));
    server.delete(&path(id)).send().await.expect(200);

    let mut events = server.audited("api_key.revoked").await;
    assert_eq!(events.len(), 1);
    let (event, changes) = split(events.remove(0));
    assert_eq!(event, expected_event(&server, "api_key.revoked", "2026-11-21T12:00:01.000Z", id, &reply).await);
    assert_eq!(changes, json!({ "revoked_at": { "before": null, "after": "2026-11-21T12:00:01.000Z" } }));
}

#[tokio::test(flavor = "multi_thread")]
async fn actor_is_the_calling_key() {
    let server = TestServer::start().await;
    let (admin, token) = server.key_with(json!({ "name": "Ann \"ops\" é", "scopes": ["admin"] })).await;
    let (id, _) = server.key(&["read"]).await;
    server.delete(&path(id)).bearer(&token).send().await.expect(200);
    let event = server.audited("api_key.revoked").await.remove(0);
    assert_eq!(event["actor"], json!({ "kind": "api_key", "id": admin, "name": "Ann \"ops\" é" }));
    assert_eq!(event["user_agent"], json!(null), "the client sent no User-Agent");
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_in_user_agent_is_not_stored() {
    let server = TestServer::start().await;
    let (id, secret) = server.key(&["read"]).await;
    let user_agent = format!("curl/8 (key {secret})");
    server.delete(&path(id)).header("user-agent", &user_agent).send().await.expect(200);
    let event = server.audited("api_key.revoked").await.remove(0);
    assert!(event["user_agent"].as_str().unwrap().starts_with("curl/8 (key "), "{event}");
    assert!(!event.to_string().contains(&secret[14..]), "{event}");

    let (id, secret) = server.key(&["read"]).await;
    let encoded = secret.replace('_', "%5F");
    server.delete(&path(id)).header("user-agent", &encoded).send().await.expect(200);
    let event = server.audited("api_key.revoked").await.pop().unwrap();
    assert!(!event.to_string().contains(&secret[14..]), "{event}");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_token_in_user_agent_is_redacted() {
    let server = TestServer::start().await;
    let token = server.runner.secrets.service_token.expose_secret();
    let body = json!({ "name": "rescue", "scopes": ["admin"] });
    let create =
        server.service(Method::POST, &format!("/v1/internal/organizations/{}/api_keys", server.organization_id));
    create.body(body).header("user-agent", format!("plane/1 ({token})")).send().await.expect(201);
    let event = server.audited("api_key.created").await.pop().unwrap();
    assert_eq!(event["user_agent"], "plane/1 (karta_service_[redacted])");
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_or_refused_request_is_not_audited() {
    let server = TestServer::start().await;
    let settings = json!({ "name": "ci", "scopes": ["read", "write"], "allowed_cidrs": ["10.0.0.0/8"] });
    let (id, _) = server.key_with(settings.clone()).await;
    let before = server.audit_events().await.len();
    server.patch(&path(id), settings).send().await.expect(200);
    server.patch(&path(id), json!({})).send().await.expect(200);
    server.patch(&path(id), json!({ "scopes": ["write", "read"], "expires_at": null })).send().await.expect(200);
    assert_eq!(server.patch(&path(id), json!({ "name": "" })).send().await.invalid_field(), "name");
    server.patch("/v1/api_keys/1", json!({ "name": "cd" })).send().await.refused(404);
    server.delete("/v1/api_keys/1").send().await.refused(404);
    server.get(&path(id)).send().await.expect(200);
    assert_eq!(server.audit_events().await.len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_is_not_audited_again() {
    let server = TestServer::start().await;
    let create = || server.post("/v1/api_keys", json!({ "name": "ci", "scopes": ["read"] })).idempotency_key("once");
    create().send().await.expect(201);
    create().send().await.expect(201);
    assert_eq!(server.audited("api_key.created").await.len(), 2, "one event for the first key, one for this key");
}

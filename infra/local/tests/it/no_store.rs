//! Responses that contain a secret forbid caching.

use http::{Method, header};
use serde_json::json;

use crate::{
    harness::{Reply, TestServer},
    model_keys::{active, provider_key},
};

fn assert_not_stored(reply: &Reply) {
    assert!(reply.status.is_success(), "{}", reply.text);
    assert_eq!(reply.headers[header::CACHE_CONTROL], "no-store", "{}", reply.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_with_secrets_forbid_caching() {
    let server = TestServer::start().await;
    server.project("site").await;
    let key = || json!({ "name": "ci", "scopes": ["read"] });
    let created = server.post("/v1/api_keys", key()).idempotency_key("1").send().await;
    let rotate = format!("/v1/api_keys/{}/rotate", created.json["api_key"]["id"]);
    let provider_key = json!({ "provider": "openai", "key": provider_key("sk-") });
    server.post("/v1/model_keys", provider_key).send().await.expect(201);
    let found = json!({ "slug": "globex", "name": "Globex" });
    let rescue = format!("/v1/internal/organizations/{}/api_keys", server.organization_id);
    let mut replies = vec![
        created,
        server.post("/v1/api_keys", key()).idempotency_key("1").send().await,
        server.post(&rotate, json!({})).send().await,
        server.service(Method::POST, "/v1/internal/organizations").body(found).send().await,
        server.service(Method::POST, &rescue).body(key()).send().await,
    ];
    assert!(replies.iter().all(|reply| reply.json["secret"].is_string()));
    replies.push(server.post("/v1/agent_projects/site/session_tokens", json!({})).send().await);
    assert!(replies[5].json["token"].is_string());
    replies.push(active(&server, "openai").send().await);
    assert!(replies[6].json["plaintext"].is_string());
    replies.push(server.get("/v1/api_keys").send().await);
    replies.iter().for_each(assert_not_stored);
}

/// A cache may keep a 404 for a resource that is created later.
#[tokio::test(flavor = "multi_thread")]
async fn errors_forbid_caching() {
    let server = TestServer::start().await;
    for (request, status) in [
        (server.get("/v1/api_keys").bearer("kt_live_unknown"), 401),
        (server.get("/v1/api_keys/1"), 404),
        (server.get("/v1/unknown"), 404),
        (server.post("/v1/api_keys", json!({})), 422),
        (server.request(Method::POST, "/v1/api_keys").raw_body("{"), 400),
        (server.request(Method::POST, "/v1/api_keys").raw_body("x".repeat(70_000)), 413),
    ] {
        let reply = request.send().await;
        assert_eq!(reply.status, status, "{}", reply.text);
        assert_eq!(reply.headers[header::CACHE_CONTROL], "no-store", "{status}");
    }
}

use std::time::Duration;

use serde_json::json;

use super::{path, read};
use crate::harness::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn read_key_equals_the_created_key() {
    let server = TestServer::start().await;
    let settings = json!({ "name": "ci", "scopes": ["read"], "metadata": { "team": "web" } });
    let created = server.post("/v1/api_keys", settings).send().await.expect(201);
    let id = created["api_key"]["id"].as_u64().unwrap();
    let answer = server.get(&path(id)).send().await.expect(200);
    assert_eq!(answer, json!({ "api_key": created["api_key"] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn key_expires_exactly_at_expires_at() {
    let (server, clock) = TestServer::start_at_noon().await;
    let settings = json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-11-21T12:00:01Z" });
    let (id, _) = server.key_with(settings).await;
    clock.advance(Duration::from_millis(999));
    assert_eq!(read(&server, id).await["status"], "active");
    clock.advance(Duration::from_millis(1));
    assert_eq!(read(&server, id).await["status"], "expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_or_malformed_id_returns_404() {
    let server = TestServer::start().await;
    let project = server.project("site").await;
    let beyond = u64::MAX.to_string();
    let project = project.to_string();
    for id in
        ["1", "0", "-1", "01", "+1", "1.0", "1e3", "abc", "9007199254740991", "9007199254740992", &beyond, &project]
    {
        let refusal = server.get(&format!("/v1/api_keys/{id}")).send().await.refused(404);
        assert_eq!(refusal, json!({ "detail": "Not found" }), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_query_parameter_is_named() {
    let server = TestServer::start().await;
    let (id, _) = server.key(&["read"]).await;
    assert_eq!(server.get(&format!("{}?expand=all", path(id))).send().await.invalid_field(), "expand");
}

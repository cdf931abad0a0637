use std::time::Duration;

use serde_json::json;

use super::{path, read};
use crate::harness::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn revocation_sets_revoked_at_and_keeps_settings() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, _) = server.key_with(json!({ "name": "ci", "scopes": ["read"], "metadata": { "team": "web" } })).await;
    let mut key = read(&server, id).await;
    clock.advance(Duration::from_millis(1_500));
    let answer = server.delete(&path(id)).send().await.expect(200);
    key["status"] = json!("revoked");
    key["revoked_at"] = json!("2026-11-21T12:00:01.500Z");
    assert_eq!(answer, json!({ "api_key": key }));
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_revocation_returns_the_same_response() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, _) = server.key(&["read"]).await;
    let first = server.delete(&path(id)).send().await;
    clock.advance(Duration::from_hours(1));
    let second = server.delete(&path(id)).send().await;
    assert_eq!((second.status, &second.text), (first.status, &first.text));
    assert_eq!(json!({ "api_key": read(&server, id).await }), first.json);
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_status_overrides_expired() {
    let (server, clock) = TestServer::start_at_noon().await;
    let ends = json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-11-21T12:00:10Z" });
    let (id, _) = server.key_with(ends).await;
    clock.advance(Duration::from_secs(10));
    let key = server.delete(&path(id)).send().await.expect(200)["api_key"].take();
    assert_eq!((&key["status"], &key["revoked_at"]), (&json!("revoked"), &json!("2026-11-21T12:00:10.000Z")));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_revocations_return_the_same_response() {
    let server = TestServer::start().await;
    let (id, _) = server.key(&["read"]).await;
    let request = path(id);
    let revoke = || server.delete(&request).send();
    let (one, two, three) = tokio::join!(revoke(), revoke(), revoke());
    let texts = [one, two, three].map(|reply| reply.expect(200).to_string());
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    assert_eq!(server.audited("api_key.revoked").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_or_malformed_id_returns_404() {
    let server = TestServer::start().await;
    for id in ["1", "0", "01", "abc", "9007199254740992"] {
        let refusal = server.delete(&format!("/v1/api_keys/{id}")).send().await.refused(404);
        assert_eq!(refusal, json!({ "detail": "Not found" }), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn query_is_refused_and_body_is_ignored() {
    let server = TestServer::start().await;
    let (id, _) = server.key(&["read"]).await;
    assert_eq!(server.delete(&format!("{}?force=true", path(id))).send().await.invalid_field(), "force");
    server.delete(&path(id)).raw_body("not JSON").send().await.expect(200);
}

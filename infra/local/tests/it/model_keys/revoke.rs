use std::time::Duration;

use serde_json::{Value, json};

use super::{ROUTE, active, create, list, path, provider_key, sealed};
use crate::{harness::TestServer, invariants::Tables};

#[tokio::test(flavor = "multi_thread")]
async fn revocation_deletes_sealed_key_and_records_time() {
    let (server, clock) = TestServer::start_at_noon().await;
    let mut key = create(&server, "openai", &provider_key("sk-")).await;
    let other = create(&server, "anthropic", &provider_key("sk-ant-")).await;
    clock.advance(Duration::from_millis(1_500));
    let first = server.delete(&path(&key)).send().await;
    clock.advance(Duration::from_hours(1));
    let second = server.delete(&path(&key)).send().await;
    assert_eq!((second.status, &second.text), (first.status, &first.text));
    key["revoked_at"] = json!("2026-11-21T12:00:01.500Z");
    assert_eq!(first.expect(200), json!({ "model_key": key }));
    assert!(list(&server).await.contains(&key));

    active(&server, "openai").send().await.refused(404);
    let left = sealed(&server, server.organization_id).await;
    assert_eq!(left.len(), 1, "the other provider's");
    assert_eq!(left[0]["sk"]["S"], format!("{:016}", other["id"].as_u64().unwrap()));
    active(&server, "anthropic").send().await.expect(200);
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_is_audited_and_published_once() {
    let (server, clock) = TestServer::start_at_noon().await;
    let key = create(&server, "openai", &provider_key("sk-")).await;
    clock.advance(Duration::from_millis(1));
    let answer = server.delete(&path(&key)).send().await.expect(200);
    server.delete(&path(&key)).send().await.expect(200);
    let audited = server.audited("model_key.revoked").await;
    assert_eq!(audited.len(), 1);
    assert_eq!(audited[0]["resource"], json!({ "kind": "model_key", "id": key["id"] }));
    let revoked_at = json!({ "before": null, "after": "2026-11-21T12:00:00.001Z" });
    assert_eq!(audited[0]["changes"], json!({ "revoked_at": revoked_at }));
    let published = server.outbox("EVT").await;
    assert_eq!(published.len(), 2);
    assert_eq!(published[1]["type"], "model_key.revoked");
    assert_eq!(serde_json::from_str::<Value>(published[1]["data"].as_str().unwrap()).unwrap(), answer);
    assert_eq!(server.outbox("PSH").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_key_after_a_revocation_is_active() {
    let server = TestServer::start().await;
    let old = create(&server, "openai", &provider_key("sk-")).await;
    server.delete(&path(&old)).send().await.expect(200);
    let plaintext = provider_key("sk-");
    let new = create(&server, "openai", &plaintext).await;
    server.delete(&path(&old)).send().await.expect(200);
    let answer = active(&server, "openai").send().await.expect(200);
    assert_eq!((&answer["plaintext"], &answer["key_id"]), (&json!(plaintext), &new["id"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_or_malformed_id_returns_404() {
    let server = TestServer::start().await;
    for id in ["1", "0", "01", "abc", "ACTIVE%23openai", "9007199254740992"] {
        let refusal = server.delete(&format!("{ROUTE}/{id}")).send().await.refused(404);
        assert_eq!(refusal, json!({ "detail": "Not found" }), "{id}");
    }
    let key = create(&server, "openai", &provider_key("sk-")).await;
    assert_eq!(server.delete(&format!("{}?force=true", path(&key))).send().await.invalid_field(), "force");
}

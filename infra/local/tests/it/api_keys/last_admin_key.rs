use serde_json::json;

use super::{own_id, path, read};
use crate::harness::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn the_last_admin_key_is_not_lost_in_any_way() {
    let server = TestServer::start().await;
    let id = own_id(&server).await;
    let before = read(&server, id).await;
    for request in [
        server.delete(&path(id)),
        server.patch(&path(id), json!({ "scopes": ["read", "write"] })),
        server.patch(&path(id), json!({ "scopes": [] })),
        server.patch(&path(id), json!({ "expires_at": "2100-01-01T00:00:00Z" })),
        server.patch(&path(id), json!({ "allowed_cidrs": ["127.0.0.0/8"] })),
    ] {
        let refusal = request.send().await.refused(409);
        assert_eq!(refusal["error"], "last_admin_key");
        assert!(refusal["message"].as_str().unwrap().contains("last admin key"), "{refusal}");
    }
    assert_eq!(read(&server, id).await, before);
    assert_eq!(server.audit_events().await.len(), 2, "only the organization's creation and its first key's");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_admin_key_may_change_in_every_other_way() {
    let server = TestServer::start().await;
    let id = own_id(&server).await;
    let patch = json!({ "name": "root", "scopes": ["admin"], "budget": { "cost_cents": 1 }, "metadata": { "a": "b" } });
    server.patch(&path(id), patch).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_admin_key_frees_the_first() {
    for change in [
        None,
        Some(json!({ "scopes": ["read"] })),
        Some(json!({ "expires_at": "2100-01-01T00:00:00Z" })),
        Some(json!({ "allowed_cidrs": ["127.0.0.0/8"] })),
    ] {
        let server = TestServer::start().await;
        let first = own_id(&server).await;
        let (second, token) = server.key(&["admin"]).await;
        let request = match change {
            None => server.delete(&path(first)),
            Some(patch) => server.patch(&path(first), patch),
        };
        request.send().await.expect(200);
        let refusal = server.delete(&path(second)).bearer(&token).send().await.refused(409);
        assert_eq!(refusal["error"], "last_admin_key", "now the second is the last");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_key_that_may_end_or_is_fenced_in_frees_nothing() {
    let server = TestServer::start().await;
    let id = own_id(&server).await;
    server.key(&["read", "write"]).await;
    let ends = json!({ "name": "ends", "scopes": ["admin"], "expires_at": "2100-01-01T00:00:00Z" });
    let (ending, _) = server.key_with(ends).await;
    server.key_with(json!({ "name": "fenced", "scopes": ["admin"], "allowed_cidrs": ["127.0.0.0/8"] })).await;
    let (revoked, _) = server.key(&["admin"]).await;
    server.delete(&path(revoked)).send().await.expect(200);
    server.another_organization("other").await;
    assert_eq!(server.delete(&path(id)).send().await.refused(409)["error"], "last_admin_key");

    server.patch(&path(ending), json!({ "expires_at": null })).send().await.expect(200);
    server.delete(&path(id)).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_admin_keys_that_are_lost_at_once_one_remains() {
    for _ in 0..5 {
        let server = TestServer::start().await;
        let (first, (second, token)) = (own_id(&server).await, server.key(&["read", "admin"]).await);
        server.get("/v1/whoami").bearer(&token).send().await.expect(200);
        let (one, other) = tokio::join!(
            server.delete(&path(first)).bearer(&token).send(),
            server.patch(&path(second), json!({ "scopes": ["read"] })).send(),
        );
        let (won, lost) = if one.status.is_success() { (one, other) } else { (other, one) };
        won.expect(200);
        // Whoever lost its rights before its own change was judged is refused for that.
        assert!([401, 403, 409].contains(&lost.status.as_u16()), "{}", lost.text);
    }
}

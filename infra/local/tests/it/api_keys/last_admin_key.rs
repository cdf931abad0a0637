use serde_json::json;

use super::{own_id, path, read};
use crate::harness::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn last_admin_key_cannot_be_revoked_or_restricted() {
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
        assert!(refusal["message"].as_str().unwrap().contains("must keep one active admin key"), "{refusal}");
    }
    assert_eq!(read(&server, id).await, before);
    assert_eq!(server.audit_events().await.len(), 2, "only the creation of the organization and of its first key");
}

#[tokio::test(flavor = "multi_thread")]
async fn last_admin_key_allows_other_changes() {
    let server = TestServer::start().await;
    let id = own_id(&server).await;
    let patch = json!({ "name": "root", "scopes": ["admin"], "budget": { "cost_cents": 1 }, "metadata": { "a": "b" } });
    server.patch(&path(id), patch).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_admin_key_lets_the_first_be_changed() {
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
        assert_eq!(refusal["error"], "last_admin_key", "the second key is the last admin key");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expiring_or_restricted_admin_key_does_not_count() {
    let server = TestServer::start().await;
    let id = own_id(&server).await;
    server.key(&["read", "write"]).await;
    let ends = json!({ "name": "ends", "scopes": ["admin"], "expires_at": "2100-01-01T00:00:00Z" });
    let (ending, _) = server.key_with(ends).await;
    server.key_with(json!({ "name": "restricted", "scopes": ["admin"], "allowed_cidrs": ["127.0.0.0/8"] })).await;
    let (revoked, _) = server.key(&["admin"]).await;
    server.delete(&path(revoked)).send().await.expect(200);
    server.another_organization("other").await;
    assert_eq!(server.delete(&path(id)).send().await.refused(409)["error"], "last_admin_key");

    server.patch(&path(ending), json!({ "expires_at": null })).send().await.expect(200);
    server.delete(&path(id)).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_changes_leave_one_admin_key() {
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
        // The loser gets 409, or 401 or 403 if the winner took its rights before they were checked.
        assert!([401, 403, 409].contains(&lost.status.as_u16()), "{}", lost.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn last_admin_key_rotates_itself_with_grace() {
    let server = TestServer::start().await;
    let id = own_id(&server).await;
    let rotate = |body| server.post(&format!("{}/rotate", path(id)), body).send();
    let before = read(&server, id).await;
    let ends = json!({ "name": "ends", "scopes": ["admin"], "expires_at": "2100-01-01T00:00:00Z" });
    let (ending, ending_token) = server.key_with(ends).await;
    for grace in [0, 599] {
        let refusal = rotate(json!({ "grace_seconds": grace })).await.refused(422);
        assert_eq!((&refusal["error"], &refusal["field"]), (&json!("validation_failed"), &json!("grace_seconds")));
        let message = refusal["message"].as_str().unwrap();
        assert!(message.starts_with("grace_seconds must be at least 600 for"), "{message}");
    }
    assert_eq!(read(&server, id).await["status"], before["status"]);
    // A key that is no usable admin key is not the last one.
    let itself = server.post(&format!("{}/rotate", path(ending)), json!({ "grace_seconds": 0 }));
    itself.bearer(&ending_token).send().await.expect(201);
    rotate(json!({ "grace_seconds": 600 })).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_admin_key_allows_rotation_at_once() {
    let server = TestServer::start().await;
    let id = own_id(&server).await;
    let (other, _) = server.key(&["admin"]).await;
    let now = || json!({ "grace_seconds": 0 });
    // The rotation of another key does not end the caller's access to the organization.
    server.post(&format!("{}/rotate", path(other)), now()).send().await.expect(201);
    server.post(&format!("{}/rotate", path(id)), now()).send().await.expect(201);
}

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{own_id, path, read};
use crate::{
    harness::{Request, TestServer, note_secret},
    invariants::Tables,
};

fn rotate(server: &TestServer, id: u64, body: Value) -> Request {
    server.post(&format!("{}/rotate", path(id)), body)
}

async fn authenticates(server: &TestServer, token: &str) -> bool {
    server.authorizes(&format!("Bearer {token}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn successor_inherits_the_settings_of_the_key() {
    let (server, clock) = TestServer::start_at_noon().await;
    let settings = json!({
        "name": "ci",
        "scopes": ["read", "write"],
        "expires_at": "2026-12-24T00:00:00.000Z",
        "allowed_cidrs": ["127.0.0.0/8"],
        "budget": { "input_tokens": null, "output_tokens": null, "total_tokens": 1000, "cost_cents": null, "alert_percents": [50] },
        "metadata": { "team": "web" },
    });
    let (id, _) = server.key_with(settings.clone()).await;
    clock.advance(Duration::from_mins(1));
    let mut answer = rotate(&server, id, json!({})).send().await.expect(201);
    assert!(answer["secret"].take().as_str().unwrap().starts_with(answer["api_key"]["prefix"].as_str().unwrap()));
    assert_eq!(answer["replaces"], json!({ "id": id, "expires_at": "2026-11-22T12:01:00.000Z" }));

    let successor = &answer["api_key"];
    for (field, value) in settings.as_object().unwrap() {
        assert_eq!(&successor[field], value, "{field}");
    }
    assert_eq!(
        (&successor["status"], &successor["created_at"]),
        (&json!("active"), &json!("2026-11-21T12:01:00.000Z"))
    );
    assert_eq!(successor["created_by"], own_id(&server).await);

    let old = read(&server, id).await;
    assert_eq!((&old["status"], &old["replaced_by"]), (&json!("rotating"), &successor["id"]));
    assert_eq!(old["expires_at"], answer["replaces"]["expires_at"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_key_works_until_the_grace_period_ends() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, old) = server.key(&["read"]).await;
    let answer = rotate(&server, id, json!({ "grace_seconds": 60 })).send().await.expect(201);
    let new = answer["secret"].as_str().unwrap();
    assert_ne!(new, old);
    clock.advance(Duration::from_millis(59_999));
    assert!(authenticates(&server, &old).await && authenticates(&server, new).await);
    clock.advance(Duration::from_millis(1));
    assert!(!authenticates(&server, &old).await && authenticates(&server, new).await);
    assert_eq!(read(&server, id).await["status"], "expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn grace_never_extends_expiry_or_exceeds_30_days() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (ending, _) =
        server.key_with(json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-11-21T13:00:00Z" })).await;
    let answer = rotate(&server, ending, json!({ "grace_seconds": 2_592_000 })).send().await.expect(201);
    assert_eq!(answer["replaces"]["expires_at"], "2026-11-21T13:00:00.000Z");
    let (immediate, old) = server.key(&["read"]).await;
    let answer = rotate(&server, immediate, json!({ "grace_seconds": 0 })).send().await.expect(201);
    assert_eq!(answer["replaces"]["expires_at"], "2026-11-21T12:00:00.000Z");
    assert!(!authenticates(&server, &old).await);
    clock.advance(Duration::from_secs(1));
    for grace in [json!(2_592_001), json!(-1), json!(1.5), json!("60")] {
        let refused = rotate(&server, ending, json!({ "grace_seconds": grace })).send().await;
        assert_eq!(refused.invalid_field(), "grace_seconds", "{grace}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_active_key_can_be_rotated() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (revoked, _) = server.key(&["read"]).await;
    server.delete(&path(revoked)).send().await.expect(200);
    let (replaced, _) = server.key(&["read"]).await;
    rotate(&server, replaced, json!({})).send().await.expect(201);
    let (expired, _) =
        server.key_with(json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-11-21T12:00:01Z" })).await;
    clock.advance(Duration::from_secs(1));
    for id in [revoked, replaced, expired] {
        let refusal = rotate(&server, id, json!({})).send().await.refused(409);
        assert_eq!((&refusal["error"], &refusal["id"]), (&json!("api_key_not_active"), &json!(id)));
    }
    rotate(&server, 1, json!({})).send().await.refused(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_of_replaced_key_cannot_be_changed() {
    let server = TestServer::start().await;
    let (id, token) = server.key(&["read"]).await;
    rotate(&server, id, json!({})).send().await.expect(201);
    let refusal = server.patch(&path(id), json!({ "expires_at": null })).send().await.refused(409);
    assert_eq!(refusal["error"], "api_key_replaced");
    assert_eq!(server.patch(&path(id), json!({ "name": "old" })).send().await.expect(200)["api_key"]["name"], "old");
    server.delete(&path(id)).send().await.expect(200);
    assert!(!authenticates(&server, &token).await, "revocation ends it immediately");
}

#[tokio::test(flavor = "multi_thread")]
async fn last_admin_key_can_be_rotated() {
    let server = TestServer::start().await;
    let id = own_id(&server).await;
    let answer = rotate(&server, id, json!({ "grace_seconds": 600 })).send().await.expect(201);
    let (successor, token) = (answer["api_key"]["id"].as_u64().unwrap(), answer["secret"].as_str().unwrap());
    server.delete(&path(id)).send().await.expect(200);
    let refusal = server.delete(&path(successor)).bearer(token).send().await.refused(409);
    assert_eq!(refusal["error"], "last_admin_key");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_rotations_succeed_once() {
    let server = TestServer::start().await;
    let (id, _) = server.key(&["read"]).await;
    let mut racers = JoinSet::new();
    for _ in 0..8 {
        racers.spawn(rotate(&server, id, json!({})).send());
    }
    let replies = racers.join_all().await;
    let made: Vec<_> = replies.iter().filter(|reply| reply.status == StatusCode::CREATED).collect();
    assert_eq!(made.len(), 1);
    assert!(replies.iter().all(|reply| matches!(reply.status.as_u16(), 201 | 409)));
    assert_eq!(read(&server, id).await["replaced_by"], made[0].json["api_key"]["id"]);
    Tables::new(&server).await.assert_consistent();
    let keys = server.get("/v1/api_keys").send().await.expect(200);
    assert_eq!(keys["api_keys"].as_array().unwrap().len(), 3, "the first key, the old key and its successor");
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_returns_the_same_successor() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, _) = server.key(&["read"]).await;
    let request = || rotate(&server, id, json!({})).idempotency_key("once").send();
    let first = request().await;
    clock.advance(Duration::from_mins(9));
    let second = request().await;
    assert_eq!((second.status, &second.text), (first.status, &first.text));
    clock.advance(Duration::from_mins(1));
    let late = request().await.refused(409);
    assert_eq!((&late["error"], &late["id"]), (&json!("secret_already_revealed"), &first.json["api_key"]["id"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_audits_the_key_and_its_successor() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (id, _) = server.key_with(json!({ "name": "ci", "scopes": ["read"], "metadata": { "team": "web" } })).await;
    let answer = rotate(&server, id, json!({ "grace_seconds": 60 })).send().await.expect(201);
    note_secret(answer["secret"].as_str().unwrap());
    let events = server.audited("api_key.rotated").await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["resource"], json!({ "kind": "api_key", "id": id }));
    assert_eq!(events[0]["changes"]["expires_at"]["after"], "2026-11-21T12:01:00.000Z");
    assert_eq!(events[0]["changes"]["replaced_by"]["after"], answer["api_key"]["id"]);
    let events = server.audited("api_key.created").await;
    let created = events.iter().find(|event| event["resource"]["id"] == answer["api_key"]["id"]).unwrap();
    for (field, after) in [("name", json!("ci")), ("scopes", json!(["read"])), ("metadata", json!({ "team": "web" }))] {
        assert_eq!(created["changes"][field], json!({ "before": null, "after": after }), "{field}");
    }
    assert!(!json!(server.audit_events().await).to_string().contains(answer["secret"].as_str().unwrap()));
    Tables::new(&server).await.assert_consistent();
}

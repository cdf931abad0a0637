use std::{collections::BTreeSet, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    harness::{Reply, Request, TestServer, plain},
    model_keys::provider_key,
};

const KEYS: &str = "/v1/api_keys";
const PROJECTS: &str = "/v1/agent_projects";
const MODEL_KEYS: &str = "/v1/model_keys";

fn key() -> Value {
    json!({ "name": "ci", "scopes": ["read"] })
}

fn project(slug: &str) -> Value {
    json!({ "slug": slug, "name": "Site" })
}

fn model_key() -> Value {
    json!({ "provider": "openai", "key": provider_key("sk-") })
}

fn create_key(server: &TestServer) -> impl Fn() -> Request {
    || server.post(KEYS, key()).idempotency_key("once")
}

#[track_caller]
fn assert_same(first: &Reply, second: &Reply) {
    assert_eq!((second.status, &second.text), (first.status, &first.text));
}

fn assert_mismatch(reply: Reply) {
    let refusal = reply.refused(422);
    assert_eq!((&refusal["error"], &refusal["field"]), (&json!("idempotency_mismatch"), &json!("Idempotency-Key")));
}

/// Reads the stored responses.
async fn records(server: &TestServer) -> Vec<Value> {
    let scan = json!({
        "TableName": "karta",
        "FilterExpression": "begins_with(pk, :pk)",
        "ExpressionAttributeValues": { ":pk": { "S": "IDEM#" } },
    });
    server.dynamodb("Scan", scan).await["Items"].as_array().unwrap().iter().map(plain).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn repeat_returns_the_same_response_and_creates_nothing() {
    let server = TestServer::start().await;
    for (route, body, action) in [
        (KEYS, key(), "api_key.created"),
        (PROJECTS, project("site"), "agent_project.created"),
        (MODEL_KEYS, model_key(), "model_key.created"),
    ] {
        let before = server.audited(action).await.len();
        let create = || server.post(route, body.clone()).idempotency_key("once");
        let first = create().send().await;
        for _ in 0..3 {
            let repeat = create().send().await;
            assert_same(&first, &repeat);
            assert_eq!(repeat.headers["content-type"], first.headers["content-type"]);
            assert_ne!(repeat.headers["x-request-id"], first.headers["x-request-id"]);
        }
        first.expect(201);
        assert_eq!(server.audited(action).await.len(), before + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_secret_is_valid() {
    let server = TestServer::start().await;
    let create = create_key(&server);
    create().send().await.expect(201);
    let replayed = create().send().await.expect(201);
    let principal = server.get("/v1/whoami").bearer(replayed["secret"].as_str().unwrap()).send().await.expect(200);
    assert_eq!(principal["api_key_id"], replayed["api_key"]["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_idempotency_key_create_separate_keys() {
    let server = TestServer::start().await;
    let (one, other) = (server.key(&["read"]).await, server.key(&["read"]).await);
    assert_ne!(one.0, other.0);
    assert_eq!(records(&server).await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn different_body_is_a_mismatch() {
    let server = TestServer::start().await;
    let create = create_key(&server);
    create().send().await.expect(201);
    for body in [
        json!({ "name": "cd", "scopes": ["read"] }),
        json!({ "name": "ci", "scopes": ["read", "write"] }),
        json!({ "name": "ci", "scopes": ["read"], "metadata": {} }),
    ] {
        assert_mismatch(server.post(KEYS, body).idempotency_key("once").send().await);
    }
    server.post(PROJECTS, project("site")).idempotency_key("once").send().await.expect(201);
    assert_mismatch(server.post(PROJECTS, project("shop")).idempotency_key("once").send().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn field_order_and_whitespace_are_ignored() {
    let server = TestServer::start().await;
    let send = |body: &'static str| server.post(KEYS, json!({})).raw_body(body).idempotency_key("once").send();
    let first = send(r#"{"name":"ci","scopes":["read"],"metadata":{"a":"1","b":"2"}}"#).await;
    let repeat =
        send("{ \"metadata\": {\"b\":\"2\",\n\"a\":\"1\"}, \"scopes\" : [\"read\"],\t\"name\": \"c\\u0069\" }\n").await;
    assert_eq!(first.status, 201);
    assert_same(&first, &repeat);
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_keys_are_scoped_to_caller_and_path() {
    let server = TestServer::start().await;
    let (_, colleague) = server.key(&["read", "write", "admin"]).await;
    let (_, stranger) = server.another_organization("other").await;
    let mut ids = BTreeSet::new();
    for token in [&server.admin, &colleague, &stranger] {
        let made = server.post(KEYS, key()).bearer(token).idempotency_key("once").send().await.expect(201);
        ids.insert(made["api_key"]["id"].as_u64());
    }
    assert_eq!(ids.len(), 3);
    server.post(PROJECTS, project("site")).idempotency_key("once").send().await.expect(201);
    let by_colleague = server.post(PROJECTS, project("shop")).bearer(&colleague).idempotency_key("once");
    by_colleague.send().await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_keys_are_compared_exactly() {
    let server = TestServer::start().await;
    let mut ids = BTreeSet::new();
    for idempotency_key in ["a", "A", "aa", "a a", "~!\"'{}"] {
        let made = server.post(KEYS, key()).idempotency_key(idempotency_key).send().await.expect(201);
        ids.insert(made["api_key"]["id"].as_u64());
    }
    assert_eq!(ids.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_format_is_enforced() {
    let server = TestServer::start().await;
    server.post(KEYS, key()).idempotency_key("~".repeat(255)).send().await.expect(201);
    let wrong: [&[u8]; 6] = [b"", &[b'a'; 256], "\u{e9}".as_bytes(), b"\xff", b"a\tb", "\u{1f511}".as_bytes()];
    for header in wrong {
        let keys = server.post(KEYS, key()).idempotency_key(header).send().await;
        assert_eq!(keys.invalid_field(), "Idempotency-Key", "{header:?}");
        let projects = server.post(PROJECTS, project("site")).idempotency_key(header).send().await;
        assert_eq!(projects.invalid_field(), "Idempotency-Key", "{header:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_headers_are_refused_after_body_validation() {
    let server = TestServer::start().await;
    let message = "The request has more than one Idempotency-Key header. Send one.";
    for (first, second) in [("a", "b"), ("a", "a"), ("", "a"), ("a", "")] {
        let post =
            |path: &str, body: Value| server.post(path, body).idempotency_key(first).idempotency_key(second).send();
        for (path, body) in [(KEYS, key()), (PROJECTS, project("site"))] {
            let refused = post(path, body).await.refused(400);
            assert_eq!(refused, json!({ "error": "duplicate_header", "message": message }), "{first:?} {second:?}");
        }
        assert_eq!(post(KEYS, json!({ "name": "ci" })).await.invalid_field(), "scopes");
    }
    assert_eq!(server.audited("api_key.created").await.len(), 1, "only the first key was created");
}

/// Creates a key with every scope. Returns its id, its token, and the path and body of every route
/// that stores a secret for replays.
async fn secret_routes(server: &TestServer) -> (u64, String, Vec<(String, Value)>) {
    let (id, token) = server.key(&["read", "write", "admin"]).await;
    let (other, _) = server.key(&["read"]).await;
    let endpoint = json!({ "url": "https://hooks.example.com/karta", "event_types": ["*"] });
    let made = server.post("/v1/webhook_endpoints", endpoint.clone()).send().await.expect(201);
    let routes = vec![
        (KEYS.to_owned(), key()),
        (format!("{KEYS}/{other}/rotate"), json!({})),
        ("/v1/webhook_endpoints".to_owned(), endpoint),
        (format!("/v1/webhook_endpoints/{}/rotate_secret", made["webhook_endpoint"]["id"]), json!({})),
    ];
    (id, token, routes)
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_gets_no_stored_secret() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (id, token, routes) = secret_routes(&server).await;
    let send = |path: &str, body: &Value| server.post(path, body.clone()).bearer(&token).idempotency_key("once").send();
    for (path, body) in &routes {
        let first = send(path, body).await;
        assert_same(&first, &send(path, body).await);
        first.expect(201);
    }
    server.delete(&format!("{KEYS}/{id}")).send().await.expect(200);
    // The gateway's cached verdict still allows the key.
    server.get("/v1/whoami").bearer(&token).send().await.expect(200);
    for (path, body) in &routes {
        assert_eq!(send(path, body).await.refused(401), crate::harness::unauthorized(), "{path}");
        let other = server.post(path, json!({ "name": "x" })).bearer(&token).idempotency_key("once").send().await;
        assert_ne!(other.status, 201, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_scope_or_address_gets_no_stored_secret() {
    for (change, status) in
        [(json!({ "scopes": ["read"] }), 403), (json!({ "allowed_cidrs": ["203.0.113.0/24"] }), 401)]
    {
        let (server, _clock) = TestServer::start_at_noon().await;
        let (id, token, routes) = secret_routes(&server).await;
        let send =
            |path: &str, body: &Value| server.post(path, body.clone()).bearer(&token).idempotency_key("once").send();
        for (path, body) in &routes {
            send(path, body).await.expect(201);
        }
        server.patch(&format!("{KEYS}/{id}"), change.clone()).send().await.expect(200);
        for (path, body) in &routes {
            send(path, body).await.refused(status);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn self_rotated_key_cannot_replay_its_rotation() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (id, token) = server.key(&["admin"]).await;
    let rotate = || {
        let rotation = server.post(&format!("{KEYS}/{id}/rotate"), json!({ "grace_seconds": 0 }));
        rotation.bearer(&token).idempotency_key("once").send()
    };
    rotate().await.expect(201);
    assert_eq!(rotate().await.refused(401), crate::harness::unauthorized());
}

#[tokio::test(flavor = "multi_thread")]
async fn scope_and_body_are_checked_first() {
    let server = TestServer::start().await;
    create_key(&server)().send().await.expect(201);
    let (_, reader) = server.key(&["read"]).await;
    for idempotency_key in ["once", ""] {
        let post = |body: Value| server.post(KEYS, body).idempotency_key(idempotency_key);
        assert_eq!(post(key()).bearer(&reader).send().await.forbidden(), "missing scope: admin");
        assert_eq!(post(json!({})).raw_body("{").send().await.refused(400)["error"], "malformed_json");
        assert_eq!(post(json!({ "name": "ci" })).send().await.invalid_field(), "scopes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_without_its_scope_gets_no_replay() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, token) = server.key(&["admin"]).await;
    let create = || server.post(KEYS, key()).bearer(&token).idempotency_key("once");
    create().send().await.expect(201);
    server.patch(&format!("{KEYS}/{id}"), json!({ "scopes": ["read"] })).send().await.expect(200);
    clock.advance(Duration::from_secs(3));
    assert_eq!(create().send().await.forbidden(), "missing scope: admin");
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_racing_creates_make_one_key() {
    let server = TestServer::start().await;
    let create = create_key(&server);
    let mut requests = JoinSet::new();
    for _ in 0..32 {
        requests.spawn(create().send());
    }
    let replies = requests.join_all().await;
    for reply in &replies {
        assert_same(&replies[0], reply);
    }
    assert_eq!(replies[0].status, 201);
    let list = server.get(KEYS).send().await.expect(200);
    assert_eq!(list["api_keys"].as_array().unwrap().len(), 2, "the first key and the created key");
    assert_eq!(server.audited("api_key.created").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_racing_creates_make_one_project() {
    let server = TestServer::start().await;
    let mut requests = JoinSet::new();
    for _ in 0..32 {
        requests.spawn(server.post(PROJECTS, project("site")).idempotency_key("once").send());
    }
    let replies = requests.join_all().await;
    for reply in &replies {
        assert_same(&replies[0], reply);
    }
    assert_eq!(replies[0].status, 201, "no request fails because the slug is taken");
    assert_eq!(server.audited("agent_project.created").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_creates_accept_only_one_body() {
    let server = TestServer::start().await;
    let mut requests = JoinSet::new();
    for at in 0..32 {
        let name = if at % 2 == 0 { "even" } else { "odd" };
        let body = json!({ "name": name, "scopes": ["read"] });
        requests.spawn(server.post(KEYS, body).idempotency_key("once").send());
    }
    let (made, refused): (Vec<_>, Vec<_>) =
        requests.join_all().await.into_iter().partition(|reply| reply.status == 201);
    assert_eq!((made.len(), refused.len()), (16, 16));
    for reply in &made {
        assert_same(&made[0], reply);
    }
    for reply in refused {
        assert_mismatch(reply);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_is_not_replayed_after_ten_minutes() {
    let (server, clock) = TestServer::start_at_noon().await;
    let create = create_key(&server);
    let first = create().send().await;
    clock.advance(Duration::from_millis(10 * 60_000 - 1));
    assert_same(&first, &create().send().await);

    clock.advance(Duration::from_millis(1));
    for later in [0, 1, 23 * 3_600] {
        clock.advance(Duration::from_secs(later));
        let reply = create().send().await;
        assert!(!reply.text.contains("kt_live_"), "{}", reply.text);
        let refusal = reply.refused(409);
        assert_eq!(refusal["error"], "secret_already_revealed");
        assert_eq!(refusal["id"], first.json["api_key"]["id"]);
        assert!(refusal["message"].is_string());
    }
    assert_mismatch(
        server.post(KEYS, json!({ "name": "cd", "scopes": ["read"] })).idempotency_key("once").send().await,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_expires_after_a_day() {
    let (server, clock) = TestServer::start_at_noon().await;
    let site = || server.post(PROJECTS, project("site")).idempotency_key("once");
    let made = create_key(&server)().send().await.expect(201);
    let first = site().send().await;
    clock.advance(Duration::from_millis(24 * 3_600_000 - 1));
    assert_same(&first, &site().send().await);

    clock.advance(Duration::from_millis(1));
    let shop = server.post(PROJECTS, project("shop")).idempotency_key("once");
    shop.send().await.expect(201);
    assert_mismatch(site().send().await);
    let second_key = create_key(&server)().send().await.expect(201);
    assert_ne!(second_key["api_key"]["id"], made["api_key"]["id"]);
    assert_same(&create_key(&server)().send().await, &create_key(&server)().send().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_ignores_later_changes() {
    let server = TestServer::start().await;
    let create = create_key(&server);
    let first = create().send().await;
    let id = first.json["api_key"]["id"].as_u64().unwrap();
    server.delete(&format!("{KEYS}/{id}")).send().await.expect(200);
    assert_same(&first, &create().send().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn record_has_neither_secret_nor_response() {
    let (server, _) = TestServer::start_at_noon().await;
    let reply = create_key(&server)().send().await;
    let secret = reply.json["secret"].as_str().unwrap();
    let mut records = records(&server).await;
    assert_eq!(records.len(), 1);
    let record = records.remove(0);
    let fields: Vec<_> = record.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["fingerprint", "pk", "resource_id", "revealed_until", "sealed_body", "sk", "status", "ttl"]);
    let noon = 1_795_262_400;
    assert_eq!((&record["revealed_until"], &record["ttl"]), (&json!(noon + 600), &json!(noon + 24 * 3_600)));

    let sealed = BASE64_STANDARD_NO_PAD.decode(record["sealed_body"].as_str().unwrap()).unwrap();
    assert_eq!(sealed.len(), reply.text.len() + 29, "the response plus a version, a nonce and a tag");
    let record = record.to_string();
    for plaintext in [secret, &secret[14..], "api_key", "once", &server.admin] {
        assert!(!record.contains(plaintext), "{record}");
        assert!(!sealed.windows(plaintext.len()).any(|window| window == plaintext.as_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_differ_by_caller_and_idempotency_key() {
    let server = TestServer::start().await;
    let (_, colleague) = server.key(&["admin"]).await;
    for (token, idempotency_key) in [(&server.admin, "a"), (&server.admin, "b"), (&colleague, "a")] {
        server.post(KEYS, key()).bearer(token).idempotency_key(idempotency_key).send().await.expect(201);
    }
    let records = records(&server).await;
    for field in ["pk", "fingerprint"] {
        let values: BTreeSet<_> = records.iter().map(|record| record[field].as_str().unwrap()).collect();
        assert_eq!(values.len(), 3, "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_request_is_not_remembered() {
    let (server, _) = TestServer::start_at_noon().await;
    server.project("site").await;
    let post = |route: &str, body: Value| server.post(route, body).idempotency_key("once").send();
    assert_eq!(post(PROJECTS, project("site")).await.refused(409)["error"], "slug_taken");
    assert_eq!(post(PROJECTS, project("Site")).await.invalid_field(), "slug");
    post(PROJECTS, project("shop")).await.expect(201);

    let expired = json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-11-21T12:00:00Z" });
    assert_eq!(post(KEYS, expired).await.invalid_field(), "expires_at");
    post(KEYS, key()).await.expect(201);
}

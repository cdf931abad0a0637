use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::{Plane, guard, request, token};
use crate::{
    fault_proxy::{FaultProxy, StoreFault},
    harness::{Request, TestServer, plain},
    invariants::Tables,
};

const ROUTE: &str = "/v1/internal/organizations";

fn create(server: &TestServer, body: Value) -> Request {
    server.service(Method::POST, ROUTE).body(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn new_organization_has_a_key_with_every_scope() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let created = create(&server, json!({ "slug": "globex", "name": "Globex" })).send().await.expect(201);
    let (organization, api_key) = (&created["organization"], &created["api_key"]);
    assert_eq!(
        organization,
        &json!({
            "id": organization["id"],
            "slug": "globex",
            "name": "Globex",
            "plan": "free",
            "subscription_status": "active",
            "transcript_access": false,
            "stripe_customer_id": null,
            "model_id": null,
            "endpoint_url": null,
            "created_at": "2026-11-21T12:00:00.000Z",
        })
    );
    assert_eq!((&api_key["scopes"], &api_key["created_by"]), (&json!(["read", "write", "admin"]), &json!(null)));
    let secret = created["secret"].as_str().unwrap();
    let principal = server.get("/v1/whoami").bearer(secret).send().await.expect(200);
    assert_eq!((&principal["organization_id"], &principal["api_key_id"]), (&organization["id"], &api_key["id"]));
    let path = format!("/v1/api_keys/{}", api_key["id"]);
    let mut stored = server.get(&path).bearer(secret).send().await.expect(200)["api_key"].take();
    assert_eq!(stored["last_used_at"].take(), "2026-11-21T12:00:00.000Z", "set by the request above");
    assert_eq!(stored, *api_key);
    server.get(&path).send().await.refused(404);
    let planned = create(&server, json!({ "slug": "initech", "name": "Initech", "plan": "team" })).send().await;
    assert_eq!(planned.expect(201)["organization"]["plan"], "team");
    Tables::new(&server).await.assert_consistent();
    assert!(!json!(server.stored().await).to_string().contains(&secret[14..]), "the secret is not stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn slug_belongs_to_one_organization() {
    let server = TestServer::start().await;
    let refusal = create(&server, json!({ "slug": "acme", "name": "Another" })).send().await.refused(409);
    assert_eq!((&refusal["error"], &refusal["id"]), (&json!("slug_taken"), &json!(server.organization_id)));
    let racing: Vec<_> =
        (0..8).map(|_| tokio::spawn(create(&server, json!({ "slug": "globex", "name": "Globex" })).send())).collect();
    let mut statuses = Vec::new();
    for reply in racing {
        statuses.push(reply.await.unwrap().status.as_u16());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_field_is_named() {
    let server = TestServer::start().await;
    for (body, field) in [
        (json!({}), "slug"),
        (json!({ "slug": "globex" }), "name"),
        (json!({ "slug": "Globex", "name": "Globex" }), "slug"),
        (json!({ "slug": "", "name": "Globex" }), "slug"),
        (json!({ "slug": "globex", "name": " " }), "name"),
        (json!({ "slug": "globex", "name": "Globex", "plan": "" }), "plan"),
        (json!({ "slug": "globex", "name": "Globex", "plan": 7 }), "plan"),
        (json!({ "slug": "globex", "name": "Globex", "id": 7 }), "id"),
        (json!([]), "body"),
    ] {
        assert_eq!(create(&server, body.clone()).send().await.invalid_field(), field, "{body}");
    }
    create(&server, json!({ "slug": "globex", "name": "Globex", "plan": null })).send().await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_creations_are_audited_with_service_actor() {
    let server = TestServer::start().await;
    let reply = create(&server, json!({ "slug": "globex", "name": "Globex" })).send().await;
    let request_id = reply.headers["x-request-id"].to_str().unwrap().to_owned();
    let created = reply.expect(201);
    let events = server.items(&format!("AUD#{}", created["organization"]["id"])).await;
    let mut events: Vec<_> = events.iter().map(plain).collect();
    events.sort_by_key(|event| event["action"].to_string());
    let [api_key, organization] = &events[..] else { panic!("two events: {events:?}") };
    for (event, action, resource) in [
        (api_key, "api_key.created", &created["api_key"]),
        (organization, "organization.created", &created["organization"]),
    ] {
        assert_eq!(event["action"], action);
        assert_eq!(event["resource"]["id"], resource["id"]);
        assert_eq!(event["actor"], json!({ "kind": "service", "id": null, "name": "local-1" }));
        assert_eq!((&event["request_id"], &event["ip_address"]), (&json!(request_id), &json!("127.0.0.1")));
    }
    assert_eq!(organization["changes"]["slug"], json!({ "before": null, "after": "globex" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn repeat_with_idempotency_key_creates_no_organization() {
    let (server, clock) = TestServer::start_at_noon().await;
    let post = |name: &str| create(&server, json!({ "slug": "globex", "name": name })).idempotency_key("once").send();
    let first = post("Globex").await;
    assert_eq!(first.text, post("Globex").await.text);
    assert_eq!(post("Other").await.refused(422)["error"], "idempotency_mismatch");
    clock.advance(Duration::from_mins(10));
    let late = post("Globex").await.refused(409);
    assert_eq!((&late["error"], &late["id"]), (&json!("secret_already_revealed"), &first.json["organization"]["id"]));
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_keys_are_per_service() {
    let server = TestServer::start().await;
    let (one, two) = (token("a"), token("b"));
    let tokens = json!({ "powers": { "a": ["provision"], "b": ["provision"] }, "a": one, "b": two });
    let plane = Plane::over(&server, guard("10.0.0.0/8", "localhost"), &tokens).await;
    let post = async |token: &str, body: Value| {
        let request = request(&Method::POST, ROUTE, Some(token)).header("idempotency-key", "once");
        plane.send("10.0.0.1", "localhost", request, body.to_string()).await
    };
    let body = json!({ "slug": "globex", "name": "Globex" });
    post(&one, body.clone()).await.expect(201);
    post(&one, body.clone()).await.expect(201);
    assert_eq!(
        post(&two, body).await.refused(409)["error"],
        "slug_taken",
        "the secret is not shown to another service"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_with_lost_response_happens_once() {
    let (server, proxy) = FaultProxy::start().await;
    proxy.fail("TransactWriteItems", 1, StoreFault::DropResponse);
    let created = create(&server, json!({ "slug": "globex", "name": "Globex" })).send().await.expect(201);
    server.get("/v1/whoami").bearer(created["secret"].as_str().unwrap()).send().await.expect(200);
    proxy.fail("TransactWriteItems", crate::fault_proxy::ALWAYS, StoreFault::Close);
    let refused = create(&server, json!({ "slug": "initech", "name": "Initech" })).send().await;
    assert_eq!(refused.headers["retry-after"], "1");
    refused.refused(503);
    proxy.heal();
    Tables::new(&server).await.assert_consistent();
}

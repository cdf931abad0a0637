use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::{Plane, guard, request, token};
use crate::{
    fault_proxy::{Fault, FaultProxy},
    harness::{Request, World, plain},
    invariants::Tables,
};

const ROUTE: &str = "/v1/internal/organizations";

fn create(world: &World, body: Value) -> Request {
    world.service(Method::POST, ROUTE).body(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_comes_with_a_first_key_that_holds_every_scope() {
    let (world, _clock) = World::start_at_noon().await;
    let made = create(&world, json!({ "slug": "globex", "name": "Globex" })).send().await.expect(201);
    let (organization, api_key) = (&made["organization"], &made["api_key"]);
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
    let secret = made["secret"].as_str().unwrap();
    let principal = world.get("/v1/whoami").bearer(secret).send().await.expect(200);
    assert_eq!((&principal["organization_id"], &principal["api_key_id"]), (&organization["id"], &api_key["id"]));
    let path = format!("/v1/api_keys/{}", api_key["id"]);
    let mut kept = world.get(&path).bearer(secret).send().await.expect(200)["api_key"].take();
    assert_eq!(kept["last_used_at"].take(), "2026-11-21T12:00:00.000Z", "the request above");
    assert_eq!(kept, *api_key);
    world.get(&path).send().await.refused(404);
    let planned = create(&world, json!({ "slug": "initech", "name": "Initech", "plan": "team" })).send().await;
    assert_eq!(planned.expect(201)["organization"]["plan"], "team");
    Tables::of(&world).await.assert_whole();
    assert!(!json!(world.stored().await).to_string().contains(&secret[14..]), "the secret is nowhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slug_is_one_organizations() {
    let world = World::start().await;
    let refusal = create(&world, json!({ "slug": "acme", "name": "Another" })).send().await.refused(409);
    assert_eq!((&refusal["error"], &refusal["id"]), (&json!("slug_taken"), &json!(world.organization_id)));
    let racing: Vec<_> =
        (0..8).map(|_| tokio::spawn(create(&world, json!({ "slug": "globex", "name": "Globex" })).send())).collect();
    let mut statuses = Vec::new();
    for reply in racing {
        statuses.push(reply.await.unwrap().status.as_u16());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
    Tables::of(&world).await.assert_whole();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_wrong_is_named() {
    let world = World::start().await;
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
        assert_eq!(create(&world, body.clone()).send().await.invalid_field(), field, "{body}");
    }
    create(&world, json!({ "slug": "globex", "name": "Globex", "plan": null })).send().await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_creations_are_told_with_the_service_as_actor() {
    let world = World::start().await;
    let reply = create(&world, json!({ "slug": "globex", "name": "Globex" })).send().await;
    let request_id = reply.headers["x-request-id"].to_str().unwrap().to_owned();
    let made = reply.expect(201);
    let events = world.items(&format!("AUD#{}", made["organization"]["id"])).await;
    let mut events: Vec<_> = events.iter().map(plain).collect();
    events.sort_by_key(|event| event["action"].to_string());
    let [api_key, organization] = &events[..] else { panic!("two events: {events:?}") };
    for (event, action, resource) in
        [(api_key, "api_key.created", &made["api_key"]), (organization, "organization.created", &made["organization"])]
    {
        assert_eq!(event["action"], action);
        assert_eq!(event["resource"]["id"], resource["id"]);
        assert_eq!(event["actor"], json!({ "kind": "service", "id": null, "name": "local-1" }));
        assert_eq!((&event["request_id"], &event["ip_address"]), (&json!(request_id), &json!("127.0.0.1")));
    }
    assert_eq!(organization["changes"]["slug"], json!({ "before": null, "after": "globex" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_under_its_idempotency_key_founds_nothing_more() {
    let (world, clock) = World::start_at_noon().await;
    let post = |name: &str| create(&world, json!({ "slug": "globex", "name": name })).idempotency_key("once").send();
    let first = post("Globex").await;
    assert_eq!(first.text, post("Globex").await.text);
    assert_eq!(post("Other").await.refused(422)["error"], "idempotency_mismatch");
    clock.advance(Duration::from_mins(10));
    let late = post("Globex").await.refused(409);
    assert_eq!((&late["error"], &late["id"]), (&json!("secret_already_revealed"), &first.json["organization"]["id"]));
    Tables::of(&world).await.assert_whole();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_services_idempotency_keys_are_its_own() {
    let world = World::start().await;
    let (one, two) = (token("a"), token("b"));
    let tokens = json!({ "powers": { "a": ["provision"], "b": ["provision"] }, "a": one, "b": two });
    let plane = Plane::over(&world, guard("10.0.0.0/8", "localhost"), &tokens).await;
    let post = async |token: &str, body: Value| {
        let request = request(&Method::POST, ROUTE, Some(token)).header("idempotency-key", "once");
        plane.send("10.0.0.1", "localhost", request, body.to_string()).await
    };
    let body = json!({ "slug": "globex", "name": "Globex" });
    post(&one, body.clone()).await.expect(201);
    post(&one, body.clone()).await.expect(201);
    assert_eq!(post(&two, body).await.refused(409)["error"], "slug_taken", "the secret is not shown to another");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founding_whose_answer_was_lost_happens_once() {
    let (world, proxy) = FaultProxy::start().await;
    proxy.fail("TransactWriteItems", 1, Fault::DropAnswer);
    let made = create(&world, json!({ "slug": "globex", "name": "Globex" })).send().await.expect(201);
    world.get("/v1/whoami").bearer(made["secret"].as_str().unwrap()).send().await.expect(200);
    proxy.fail("TransactWriteItems", crate::fault_proxy::ALWAYS, Fault::Close);
    let refused = create(&world, json!({ "slug": "initech", "name": "Initech" })).send().await;
    assert_eq!(refused.headers["retry-after"], "1");
    refused.refused(503);
    proxy.heal();
    Tables::of(&world).await.assert_whole();
}

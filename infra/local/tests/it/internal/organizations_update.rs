//! Reading and changing an organization.

use http::Method;
use serde_json::{Value, json};

use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::{Request, TestServer},
    invariants::Tables,
};

fn path(id: u64) -> String {
    format!("/v1/internal/organizations/{id}")
}

fn patch(server: &TestServer, id: u64, body: Value) -> Request {
    server.service(Method::PATCH, &path(id)).body(body)
}

async fn read(server: &TestServer, id: u64) -> Value {
    server.service(Method::GET, &path(id)).send().await.expect(200)["organization"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn patch_changes_named_fields_and_null_clears() {
    let server = TestServer::start().await;
    let id = server.organization_id;
    let before = read(&server, id).await;
    assert_eq!((&before["id"], &before["slug"], &before["plan"]), (&json!(id), &json!("acme"), &json!("free")));
    let settings = json!({
        "plan": "team",
        "subscription_status": "trialing",
        "transcript_access": true,
        "stripe_customer_id": "cus_NffrFeUfNV2Hib",
        "model_id": "claude-sonnet-5",
        "endpoint_url": "https://llm.example.com/v1",
    });
    let changed = patch(&server, id, settings.clone()).send().await.expect(200)["organization"].take();
    let mut expected = before.clone();
    expected.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    assert_eq!(changed, expected);
    assert_eq!(read(&server, id).await, expected);
    assert_eq!(
        patch(&server, id, json!({})).send().await.expect(200)["organization"],
        expected,
        "absent fields are kept"
    );

    let cleared = json!({ "stripe_customer_id": null, "model_id": null, "endpoint_url": null });
    expected.as_object_mut().unwrap().extend(cleared.as_object().unwrap().clone());
    assert_eq!(patch(&server, id, cleared).send().await.expect(200)["organization"], expected);
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_organization_returns_404() {
    let server = TestServer::start().await;
    for id in ["1", "0", "acme", "9007199254740992", "-1"] {
        let path = format!("/v1/internal/organizations/{id}");
        let not_found = json!({ "detail": "Not found" });
        assert_eq!(server.service(Method::GET, &path).send().await.refused(404), not_found, "{id}");
        let patched = server.service(Method::PATCH, &path).body(json!({ "plan": "team" })).send().await;
        assert_eq!(patched.refused(404), not_found, "{id}");
    }
    server.service(Method::PATCH, &path(1)).body(json!({ "plan": 1 })).send().await.refused(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_field_is_named() {
    let server = TestServer::start().await;
    for (field, wrong) in [
        ("plan", json!(null)),
        ("plan", json!("")),
        ("subscription_status", json!(null)),
        ("subscription_status", json!("dead")),
        ("transcript_access", json!(null)),
        ("transcript_access", json!("yes")),
        ("stripe_customer_id", json!("sub_1")),
        ("stripe_customer_id", json!(7)),
        ("model_id", json!("a b")),
        ("model_id", json!("m".repeat(129))),
        ("endpoint_url", json!("http://llm.example.com")),
        ("endpoint_url", json!("https://169.254.169.254/")),
        ("endpoint_url", json!("https://xn--a.example.com/")),
        ("endpoint_url", json!("https://llm.example.com/a/../b")),
        ("endpoint_url", json!("https://llm.example.com/%zz")),
        ("endpoint_url", json!("https://user:secret@llm.example.com")),
        ("model_id", json!("default")),
        ("slug", json!("globex")),
        ("name", json!("Globex")),
        ("id", json!(7)),
    ] {
        let refused = patch(&server, server.organization_id, json!({ field: wrong })).send().await;
        assert_eq!(refused.invalid_field(), field, "{wrong}");
    }
    assert!(server.audited("organization.updated").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn change_is_audited_per_field_with_service_actor() {
    let server = TestServer::start().await;
    let body = json!({ "plan": "team", "transcript_access": true, "subscription_status": "active" });
    patch(&server, server.organization_id, body.clone()).send().await.expect(200);
    patch(&server, server.organization_id, body).send().await.expect(200);
    let events = server.audited("organization.updated").await;
    let [event] = &events[..] else { panic!("one event: {events:?}") };
    assert_eq!(event["actor"], json!({ "kind": "service", "id": null, "name": "local-1" }));
    assert_eq!(event["resource"], json!({ "kind": "organization", "id": server.organization_id }));
    let changes = json!({
        "plan": { "before": "free", "after": "team" },
        "transcript_access": { "before": false, "after": true },
    });
    assert_eq!(event["changes"], changes, "unchanged fields are not listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn stripe_customer_belongs_to_one_organization() {
    let server = TestServer::start().await;
    let ours = server.organization_id;
    let (theirs, _) = server.another_organization("globex").await;
    let customer = |id, customer: Value| patch(&server, id, json!({ "stripe_customer_id": customer })).send();
    customer(ours, json!("cus_1")).await.expect(200);
    customer(ours, json!("cus_1")).await.expect(200);
    let refusal = customer(theirs, json!("cus_1")).await.refused(409);
    assert_eq!(refusal["error"], "stripe_customer_taken");
    assert_eq!(read(&server, theirs).await["stripe_customer_id"], json!(null));
    customer(ours, json!("cus_2")).await.expect(200);
    customer(theirs, json!("cus_1")).await.expect(200);
    customer(ours, json!(null)).await.expect(200);
    customer(theirs, json!("cus_2")).await.expect(200);
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_changes_apply_and_customer_has_one_winner() {
    let server = TestServer::start().await;
    let (theirs, _) = server.another_organization("globex").await;
    let mut racing = Vec::new();
    for at in 0..4 {
        racing.push((None, patch(&server, theirs, json!({ "model_id": format!("model-{at}") }))));
        for id in [server.organization_id, theirs] {
            racing.push((Some(id), patch(&server, id, json!({ "stripe_customer_id": "cus_1" }))));
        }
    }
    let racing: Vec<_> = racing.into_iter().map(|(id, request)| (id, tokio::spawn(request.send()))).collect();
    let mut winners = Vec::new();
    for (id, reply) in racing {
        let reply = reply.await.unwrap();
        match id {
            Some(id) if reply.status == 200 => winners.push(id),
            Some(_) => assert_eq!(reply.refused(409)["error"], "stripe_customer_taken"),
            None => drop(reply.expect(200)),
        }
    }
    winners.dedup();
    assert!(winners.windows(2).all(|pair| pair[0] == pair[1]) && !winners.is_empty(), "{winners:?}");
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn store_outage_returns_503_and_changes_nothing() {
    let (server, proxy) = FaultProxy::start().await;
    for operation in ["GetItem", "TransactWriteItems"] {
        proxy.fail(operation, ALWAYS, StoreFault::Close);
        let refused = patch(&server, server.organization_id, json!({ "stripe_customer_id": "cus_1" })).send().await;
        assert_eq!(refused.headers["retry-after"], "1");
        refused.refused(503);
        proxy.heal();
    }
    assert_eq!(read(&server, server.organization_id).await["stripe_customer_id"], json!(null));
    Tables::new(&server).await.assert_consistent();
}

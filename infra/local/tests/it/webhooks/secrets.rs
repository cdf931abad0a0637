//! Signing secrets of webhooks: shown once, rotated and stored sealed.

use std::time::Duration;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use http::Method;
use karta_shared::{
    App,
    config::Ring,
    domain::{Id, Signatures, Timestamp, WebhookSecret},
    worker::{Wake, Worker},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use worker_webhook_deliveries::WebhookDeliveries;

use super::{ROUTE, Receiver, URL, WebhookServer, endpoint, receiver::Received};
use crate::{
    harness::{Reply, TestServer, note_secret},
    internal::{Plane, request},
    invariants::Tables,
};

async fn rotate(server: &TestServer, endpoint: u64, body: Value) -> Reply {
    let reply = server.post(&format!("{ROUTE}/{endpoint}/rotate_secret"), body).send().await;
    if let Some(secret) = reply.json["secret"].as_str() {
        note_secret(secret);
    }
    reply
}

/// Rotates the secret and returns the new one.
async fn rotated(server: &TestServer, endpoint: u64, grace_seconds: u64) -> String {
    let body = json!({ "grace_seconds": grace_seconds });
    rotate(server, endpoint, body).await.expect(201)["secret"].as_str().unwrap().to_owned()
}

/// Sends a ping to an endpoint and returns what its receiver got.
async fn ping(webhooks: &WebhookServer, receiver: &Receiver, endpoint: u64) -> Received {
    let path = format!("{ROUTE}/{endpoint}/test");
    webhooks.server.request(Method::POST, &path).send().await.expect(202);
    webhooks.deliver().await;
    receiver.received().pop().unwrap()
}

/// Returns whether a delivery has exactly the signatures of these secrets, the current one first.
fn is_signed(received: &Received, secrets: &[&str]) -> bool {
    let at = received.header("webhook-timestamp").parse::<u64>().unwrap();
    let at: Timestamp = "1970-01-01T00:00:00Z".parse::<Timestamp>().unwrap().plus(Duration::from_secs(at));
    let secrets: Vec<_> = secrets.iter().map(|secret| WebhookSecret::parse(secret).unwrap()).collect();
    let secrets: Vec<_> = secrets.iter().collect();
    let signed = Signatures::sign(&secrets, received.header("webhook-id"), at, received.body.as_bytes());
    received.header("karta-signature") == signed.karta_signature
        && received.header("webhook-signature") == signed.webhook_signature
}

/// Reads the sealed secrets of `acme` directly from the store.
async fn sealed(server: &TestServer) -> Vec<Value> {
    server.items(&format!("WHS#{}", server.organization_id)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn both_secrets_sign_during_the_grace_period() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, first) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    assert!(is_signed(&ping(&webhooks, &receiver, id).await, &[&first]));
    let before = server.get(&format!("{ROUTE}/{id}")).send().await.expect(200)["webhook_endpoint"].take();
    // An empty body means a grace period of one day.
    let reply = server.request(Method::POST, &format!("{ROUTE}/{id}/rotate_secret")).send().await.expect(201);
    assert_eq!(reply["webhook_endpoint"], before);
    assert_eq!(reply.as_object().unwrap().len(), 2);
    let second = reply["secret"].as_str().unwrap().to_owned();
    note_secret(&second);
    assert!(second.starts_with("whsec_") && second != first);
    assert!(is_signed(&ping(&webhooks, &receiver, id).await, &[&second, &first]));
    let third = rotated(server, id, 3_600).await;
    assert!(is_signed(&ping(&webhooks, &receiver, id).await, &[&third, &second, &first]));

    // A fourth secret would replace one that may still be in use.
    let refusal = rotate(server, id, json!({ "grace_seconds": 3_600 })).await.refused(409);
    assert_eq!((&refusal["error"], &refusal["id"]), (&json!("too_many_secrets"), &json!(id)));
    assert!(refusal["message"].as_str().unwrap().contains("after the oldest grace period ends"), "{refusal}");
    // A rotation without a grace period replaces the current secret immediately.
    let fourth = rotated(server, id, 0).await;
    assert!(is_signed(&ping(&webhooks, &receiver, id).await, &[&fourth, &second, &first]));

    clock.advance(Duration::from_hours(1));
    assert!(is_signed(&ping(&webhooks, &receiver, id).await, &[&fourth, &first]));
    clock.advance(Duration::from_hours(23));
    assert!(is_signed(&ping(&webhooks, &receiver, id).await, &[&fourth]));
    Tables::new(server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_grace_period_is_named() {
    let server = TestServer::start().await;
    let (id, _) = endpoint(&server, URL, &["*"]).await;
    for (body, field) in [
        (json!({ "grace_seconds": 2_592_001 }), "grace_seconds"),
        (json!({ "grace_seconds": -1 }), "grace_seconds"),
        (json!({ "grace_seconds": 1.5 }), "grace_seconds"),
        (json!({ "grace_seconds": "1" }), "grace_seconds"),
        (json!({ "secret": "whsec_mine" }), "secret"),
        (json!([]), "body"),
    ] {
        assert_eq!(rotate(&server, id, body.clone()).await.invalid_field(), field, "{body}");
    }
    rotate(&server, id, json!({ "grace_seconds": null })).await.expect(201);
    rotate(&server, id, json!({ "grace_seconds": 2_592_000 })).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeat_shows_the_secret_for_ten_minutes() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let body = json!({ "url": receiver.url, "event_types": ["*"] });
    let create = || server.post(ROUTE, body.clone()).idempotency_key("once").send();
    let created = create().await;
    let id = created.json["webhook_endpoint"]["id"].as_u64().unwrap();
    let path = format!("{ROUTE}/{id}/rotate_secret");
    let rotate = || server.post(&path, json!({ "grace_seconds": 60 })).idempotency_key("once").send();
    let rotated = rotate().await;
    let answers = [created, rotated];
    for wait in [0, 10 * 60_000 - 1] {
        clock.advance(Duration::from_millis(wait));
        for (repeat, first) in [create().await, rotate().await].iter().zip(&answers) {
            assert_eq!((repeat.status, &repeat.text), (first.status, &first.text));
            assert_eq!(repeat.status, 201);
        }
    }
    clock.advance(Duration::from_millis(1));
    for reply in [create().await, rotate().await] {
        assert!(!reply.text.contains("whsec_"), "{}", reply.text);
        let refusal = reply.refused(409);
        assert_eq!((&refusal["error"], &refusal["id"]), (&json!("secret_already_revealed"), &json!(id)));
    }
    for other in [
        server.post(ROUTE, json!({ "url": receiver.url, "event_types": ["ping"] })),
        server.post(&path, json!({ "grace_seconds": 61 })),
    ] {
        assert_eq!(other.idempotency_key("once").send().await.refused(422)["error"], "idempotency_mismatch");
    }
    assert_eq!(server.audited("webhook_endpoint.created").await.len(), 1);
    assert_eq!(server.audited("webhook_endpoint.secret_rotated").await.len(), 1);
    // The grace period of 60 s has ended, so only the last secret signs.
    let shown = answers[1].json["secret"].as_str().unwrap();
    assert!(is_signed(&ping(&webhooks, &receiver, id).await, &[shown]));
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_rotations_each_create_a_secret() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, first) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    let path = format!("{ROUTE}/{id}/rotate_secret");
    let (one, other) = tokio::join!(
        tokio::spawn(server.post(&path, json!({})).send()),
        tokio::spawn(server.post(&path, json!({})).send())
    );
    let secret = |reply: Reply| {
        let secret = reply.expect(201)["secret"].as_str().unwrap().to_owned();
        note_secret(&secret);
        secret
    };
    let (one, other) = (secret(one.unwrap()), secret(other.unwrap()));
    let pinged = ping(&webhooks, &receiver, id).await;
    let in_either_order = [[&*one, &other, &first], [&*other, &one, &first]];
    assert!(in_either_order.iter().any(|secrets| is_signed(&pinged, secrets)));

    // Two old secrets still sign, so all of these rotations are rejected.
    let mut requests = JoinSet::new();
    for _ in 0..5 {
        requests.spawn(server.post(&path, json!({})).send());
    }
    for reply in requests.join_all().await {
        assert_eq!(reply.refused(409)["error"], "too_many_secrets");
    }
    // Parallel requests with one idempotency key are one rotation.
    let mut requests = JoinSet::new();
    for _ in 0..8 {
        requests.spawn(server.post(&path, json!({ "grace_seconds": 0 })).idempotency_key("once").send());
    }
    let replies: Vec<_> = requests.join_all().await;
    assert!(replies.iter().all(|reply| reply.status == 201 && reply.text == replies[0].text), "{replies:?}");
    assert_eq!(server.audited("webhook_endpoint.secret_rotated").await.len(), 3);
    Tables::new(server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_is_neither_stored_nor_shown_again() {
    let server = TestServer::start().await;
    let (id, first) = endpoint(&server, URL, &["*"]).await;
    let second = rotated(&server, id, 60).await;
    let body = json!({ "url": URL, "event_types": ["*"] });
    let third = server.post(ROUTE, body).idempotency_key("once").send().await.expect(201);
    let third = third["secret"].as_str().unwrap().to_owned();
    note_secret(&third);
    let mut seen = Value::from(server.stored().await).to_string();
    for path in [ROUTE, &format!("{ROUTE}/{id}"), &format!("{ROUTE}/{id}/deliveries"), "/v1/audit_events"] {
        seen.push_str(&server.get(path).send().await.text);
    }
    seen.push_str(&server.patch(&format!("{ROUTE}/{id}"), json!({ "description": "x" })).send().await.text);
    for secret in [first, second, third] {
        let encoded = &secret["whsec_".len()..];
        assert!(!seen.contains(encoded), "in the encoding that is shown");
        let bytes = BASE64_STANDARD.decode(encoded).unwrap();
        assert!(!seen.contains(&BASE64_URL_SAFE_NO_PAD.encode(&bytes)), "in the URL-safe alphabet");
    }
    assert!(!seen.contains("whsec_"));
    let item = &sealed(&server).await[0];
    let fields: Vec<_> = item.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["ciphertext", "kid", "pk", "sealed_shard", "sk", "version"]);
}

/// Rotates the secret through functions that use the ring of `app`.
async fn rotated_by(app: &App, server: &TestServer, endpoint: u64) -> Reply {
    let path = format!("{ROUTE}/{endpoint}/rotate_secret");
    let request = request(&Method::POST, &path, Some(&server.admin));
    Plane::new(app).send("127.0.0.1", "localhost", request, r#"{"grace_seconds":60}"#).await
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_survive_ring_rotation_and_are_resealed() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, first) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    let rotated = server.app_with_ring(Ring::SealingWebhooks, |ring| {
        ring["k2"] = json!("2".repeat(64));
        ring["current"] = json!("k2");
    });
    let serve = async |app: &App, endpoint: u64| {
        let path = format!("{ROUTE}/{endpoint}/test");
        server.request(Method::POST, &path).send().await.expect(202);
        webhooks.fan_out().await;
        let worker =
            WebhookDeliveries::new(app.for_function(WebhookDeliveries::NAME), Vec::new()).with_max_wait(Duration::ZERO);
        let [organization_id, webhook_endpoint_id] = [server.organization_id, endpoint].map(|id| Id::new(id).unwrap());
        worker.work(&Wake::Endpoint { organization_id, webhook_endpoint_id }).await.map_err(|fault| fault.to_string())
    };
    serve(&rotated, id).await.unwrap();
    assert!(is_signed(&receiver.received().pop().unwrap(), &[&first]), "sealed under the old ring key");
    let kids = async || {
        let items = sealed(server).await;
        items.iter().map(|item| (item["kid"]["S"].clone(), item["sealed_shard"]["S"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(kids().await, [(json!("k1"), json!("WHS#0"))]);
    let second = rotated_by(&rotated, server, id).await.expect(201)["secret"].as_str().unwrap().to_owned();
    assert_eq!(kids().await, [(json!("k2"), json!("WHS#0"))]);
    serve(&rotated, id).await.unwrap();
    assert!(is_signed(&receiver.received().pop().unwrap(), &[&second, &first]));

    // A worker with the old ring sends nothing, stores nothing and reports the fault.
    let sent = receiver.received().len();
    let error = serve(&server.runner.app, id).await.unwrap_err();
    let fault = "webhook secrets are sealed under k2, which the ring sealing-webhooks does not hold: add that key again, not as current";
    assert_eq!(error, format!("organization {}: endpoint {id}: {fault}", server.organization_id));
    assert_eq!(receiver.received().len(), sent);
    let refused = rotated_by(&server.runner.app, server, id).await;
    assert_eq!(refused.refused(503), json!({ "detail": "Service unavailable" }));
    // When the lease has ended, a worker with the current ring sends the delivery.
    clock.advance(Duration::from_mins(2));
    serve(&rotated, id).await.unwrap();
    assert_eq!(receiver.received().len(), sent + 2);
    Tables::new(server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn moved_secrets_do_not_open() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (one, _) = endpoint(server, &receiver.url, &["*"]).await;
    let (other, _) = endpoint(server, &receiver.url, &["invoice.paid"]).await;
    let items = sealed(server).await;
    let mut moved = items[0].clone();
    moved["sk"] = items[1]["sk"].clone();
    server.dynamodb("PutItem", json!({ "TableName": "karta", "Item": moved })).await;
    let there = items[1]["sk"]["S"].as_str().unwrap().parse::<u64>().unwrap();
    assert!([one, other].contains(&there));
    assert_eq!(rotate(server, there, json!({})).await.refused(500), json!({ "detail": "Internal error" }));
    server.request(Method::POST, &format!("{ROUTE}/{there}/test")).send().await.expect(202);
    webhooks.work().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(receiver.received().is_empty(), "a delivery without its own secret is not sent");
}

//! Every event type, compared with its example in `docs/webhooks.md`.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use http::Method;
use karta_local::Options;
use karta_shared::{
    clock::{Clock, ManualClock},
    domain::{EventType, Reach},
};
use serde_json::{Value, json};

use super::{ROUTE, Reaction, Receiver, WebhookServer, endpoint};
use crate::{
    budget::spend,
    harness::TestServer,
    model_keys::provider_key,
    stripe_events::{NOON, configured, event, signed, subscription},
};

/// Triggers the events that this server can cause directly.
async fn trigger_events(server: &TestServer) {
    let expected = async |method: Method, path: &str, body: Value, status: u16| {
        server.request(method, path).body(body).send().await.expect(status)
    };
    let ending = json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-12-02T12:00:00Z" });
    server.key_with(ending).await;
    let (rotated, _) = server.key(&["read"]).await;
    expected(Method::PATCH, &format!("/v1/api_keys/{rotated}"), json!({ "name": "ci 2" }), 200).await;
    expected(Method::POST, &format!("/v1/api_keys/{rotated}/rotate"), json!({}), 201).await;
    server.delete(&format!("/v1/api_keys/{rotated}")).send().await.expect(200);
    let body = json!({ "provider": "openai", "key": provider_key("sk-"), "name": "Production" });
    let model_key = expected(Method::POST, "/v1/model_keys", body, 201).await;
    server.delete(&format!("/v1/model_keys/{}", model_key["model_key"]["id"])).send().await.expect(200);
    let (spender, _) = server.key(&["read"]).await;
    expected(Method::PUT, "/v1/budget", json!({ "total_tokens": 10 }), 200).await;
    spend(server, spender, 10).await;
    server.work("worker-budget-checks").await;
    expected(Method::PUT, "/v1/budget", json!({}), 200).await;
    server.work("worker-budget-checks").await;
    server.project("my-app").await;
    for sha in ["abcdef0", "abcdef1"] {
        server.deploy("my-app", json!({ "commit_sha": sha })).await;
    }
    expected(Method::POST, "/v1/agent_projects/my-app/rollback", json!({ "version": 1 }), 200).await;
    let path = format!("/v1/internal/organizations/{}", server.organization_id);
    server.service(Method::PATCH, &path).body(json!({ "stripe_customer_id": "cus_1" })).send().await.expect(200);
    let invoice = json!({
        "id": "in_1", "object": "invoice", "customer": "cus_1", "currency": "eur", "amount_due": 1900,
        "amount_paid": 0, "attempt_count": 1, "next_payment_attempt": NOON + 60,
        "parent": { "type": "subscription_details", "subscription_details": { "subscription": "sub_1" } },
    });
    for (second, event_type, object) in [
        (1, "customer.subscription.created", subscription("active")),
        (2, "customer.subscription.updated", subscription("past_due")),
        (3, "invoice.payment_failed", invoice.clone()),
        (4, "invoice.paid", invoice),
        (5, "customer.subscription.deleted", subscription("canceled")),
    ] {
        signed(server, &event(&format!("evt_{second}"), event_type, second, &object).to_string())
            .send()
            .await
            .expect(200);
    }
}

/// Returns the documented examples by event type, from the `###` headings of the section on events.
fn documented() -> BTreeMap<String, Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/webhooks.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, events) = text.split_once("\n## Events\n").unwrap();
    let sections = events.split("\n## ").next().unwrap().split("\n### ").skip(1).filter_map(|section| {
        let (heading, rest) = section.split_once('\n')?;
        let (_, json) = rest.split_once("```json\n")?;
        let types = heading.split(", ").map(|named| named.trim_matches('`').to_owned());
        let example: Value = serde_json::from_str(json.split_once("```")?.0).unwrap();
        Some(types.map(move |named| (named, example.clone())))
    });
    sections.flatten().collect()
}

/// Returns whether two values have the same fields and types. `null` matches every type.
fn have_same_shape(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.keys().eq(other.keys()) && one.iter().all(|(name, value)| have_same_shape(value, &other[name]))
        }
        (Value::Array(one), Value::Array(other)) => {
            one.iter().zip(other).all(|(one, other)| have_same_shape(one, other))
        }
        (one, other) => {
            one.is_null() || other.is_null() || std::mem::discriminant(one) == std::mem::discriminant(other)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_type_matches_its_documentation() {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let options = Options { outbound_reach: Reach::Loopback, ..configured(Arc::clone(&clock) as Arc<dyn Clock>) };
    let webhooks = WebhookServer::new(TestServer::start_as(options, None).await, Duration::ZERO);
    let server = &webhooks.server;
    let (all, gone) = (Receiver::start().await, Receiver::start().await);
    let (id, _) = endpoint(server, &all.url, &["*"]).await;
    server.request(Method::POST, &format!("{ROUTE}/{id}/test")).send().await.expect(202);
    let (leaving, _) = endpoint(server, &gone.url, &["invoice.paid"]).await;
    gone.react(Reaction::Status(410));
    trigger_events(server).await;
    webhooks.deliver().await;
    clock.advance(Duration::from_hours(5 * 24));
    server.work("worker-expiry-notices").await;
    webhooks.deliver().await;

    let shown = documented();
    let mut sent = BTreeMap::new();
    for received in all.received() {
        let body = received.json();
        let named = body["type"].as_str().unwrap().to_owned();
        let fields: Vec<_> = body.as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["created_at", "data", "id", "organization_id", "type"]);
        let example = shown.get(&named).unwrap_or_else(|| panic!("{named} is not documented: {}", received.body));
        assert!(
            have_same_shape(example, &body["data"]),
            "{named} is documented as {example}, and sent as {}",
            body["data"]
        );
        sent.insert(named, body["data"].clone());
    }
    let types: Vec<_> = EventType::ALL.iter().map(ToString::to_string).collect();
    assert!(types.iter().all(|named| sent.contains_key(named)), "{:?}", sent.keys());
    assert!(types.iter().all(|named| shown.contains_key(named)) && shown.len() == types.len(), "{:?}", shown.keys());
    assert_eq!(sent["webhook_endpoint.disabled"]["webhook_endpoint"]["id"], leaving);
}

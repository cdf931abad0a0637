//! Stripe events: signatures, repeats, order, and the resulting billing state.

use std::{fmt::Write, sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use http::Method;
use karta_local::Options;
use karta_shared::{
    clock::{Clock, ManualClock},
    domain::SignatureError,
};
use serde_json::{Value, json};

use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::{Reply, Request, TestServer, note_secret, options, plain},
};

const PATH: &str = "/v1/stripe/events";
const HEADER: &str = "stripe-signature";
pub(crate) const SECRET: &str = "whsec_nV3rT0beUsedInAnyStack0";
const NEXT_SECRET: &str = "whsec_theOneThatComesAfterIt";
/// 2026-11-21T12:00:00Z
pub(crate) const NOON: i64 = 1_795_262_400;

pub(crate) fn configured(clock: Arc<dyn Clock>) -> Options {
    [SECRET, NEXT_SECRET].into_iter().for_each(note_secret);
    Options { stripe_secrets: Some(format!("{SECRET},{NEXT_SECRET}").into()), ..options(clock) }
}

fn noon() -> Arc<ManualClock> {
    Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()))
}

/// Starts a server at noon. `acme` is the customer `cus_1`.
async fn server() -> TestServer {
    server_at(noon()).await
}

async fn server_at(clock: Arc<ManualClock>) -> TestServer {
    let server = TestServer::start_as(configured(clock), None).await;
    set_customer(&server, server.organization_id, "cus_1").await;
    server
}

async fn set_customer(server: &TestServer, organization: u64, customer: &str) {
    patch(server, organization, json!({ "stripe_customer_id": customer })).await;
}

async fn patch(server: &TestServer, organization: u64, body: Value) {
    let path = format!("/v1/internal/organizations/{organization}");
    server.service(Method::PATCH, &path).body(body).send().await.expect(200);
}

fn mac(secret: &str, time: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{time}.{body}").as_bytes());
    tag.as_ref().iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

pub(crate) fn signature(secret: &str, time: i64, body: &str) -> String {
    format!("t={time},v1={}", mac(secret, time, body))
}

fn with_header(server: &TestServer, header: &str, body: &str) -> Request {
    server.post(PATH, json!({})).anonymous().raw_body(body.to_owned()).header(HEADER, header)
}

/// Returns a request with a valid signature that was made at noon.
pub(crate) fn signed(server: &TestServer, body: &str) -> Request {
    with_header(server, &signature(SECRET, NOON, body), body)
}

async fn send(server: &TestServer, event: &Value) -> Reply {
    signed(server, &event.to_string()).send().await
}

async fn deliver(server: &TestServer, event: &Value) {
    assert_eq!(send(server, event).await.expect(200), json!({ "received": true }));
}

pub(crate) fn event(id: &str, event_type: &str, second: i64, object: &Value) -> Value {
    json!({
        "id": id, "object": "event", "api_version": "2025-03-31.basil", "created": NOON + second, "livemode": false,
        "pending_webhooks": 1, "request": { "id": null, "idempotency_key": null }, "type": event_type,
        "data": { "object": object },
    })
}

/// Returns a subscription in the format of newer versions of Stripe's API.
pub(crate) fn subscription(status: &str) -> Value {
    json!({
        "id": "sub_1", "object": "subscription", "customer": "cus_1", "status": status, "created": NOON - 60,
        "cancel_at_period_end": false, "metadata": { "organization_id": "1" },
        "items": { "object": "list", "data": [{
            "id": "si_1", "current_period_start": NOON - 60, "current_period_end": NOON + 2_592_000,
            "price": { "id": "price_1", "lookup_key": "team", "nickname": "Team, monthly" },
        }] },
    })
}

pub(crate) fn updated(id: &str, second: i64, status: &str) -> Value {
    event(id, "customer.subscription.updated", second, &subscription(status))
}

async fn billing(server: &TestServer) -> Value {
    server.get("/v1/billing").send().await.expect(200)
}

async fn status(server: &TestServer) -> Value {
    billing(server).await["status"].take()
}

/// Returns the events for webhook endpoints of `acme`, except those about API keys.
async fn published(server: &TestServer) -> Vec<(String, Value)> {
    let events = server.outbox("EVT").await.into_iter();
    let parsed = events.map(|event| {
        (event["type"].as_str().unwrap().to_owned(), serde_json::from_str(event["data"].as_str().unwrap()).unwrap())
    });
    parsed.filter(|(event_type, _)| !event_type.starts_with("api_key.")).collect()
}

fn error_code(reply: Reply) -> String {
    let body = reply.refused(400);
    assert!(
        body["message"].as_str().is_some_and(|message| !message.is_empty()) && body.as_object().unwrap().len() == 2
    );
    body["error"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn subscription_events_update_plan_status_and_period() {
    let clock = noon();
    let server = server_at(Arc::clone(&clock)).await;
    assert_eq!((billing(&server).await["plan"].take(), status(&server).await), (json!("free"), json!("active")));
    deliver(&server, &event("evt_1", "customer.subscription.created", 1, &subscription("trialing"))).await;
    let mut expected = json!({
        "plan": "team", "status": "trialing", "billing_configured": true,
        "current_period_start": "2026-11-21T11:59:00.000Z", "current_period_end": "2026-12-21T12:00:00.000Z",
        "cancel_at_period_end": false,
    });
    assert_eq!(billing(&server).await, expected);

    // The format of older versions of Stripe's API, without a lookup key.
    clock.advance(Duration::from_secs(1));
    let mut object = subscription("active");
    object["items"]["data"] = json!([{ "id": "si_1", "price": { "lookup_key": null, "nickname": "Pro" } }]);
    (object["current_period_start"], object["current_period_end"]) = (json!(NOON), json!(NOON + 60));
    object["cancel_at_period_end"] = json!(true);
    deliver(&server, &event("evt_2", "customer.subscription.updated", 2, &object)).await;
    expected = json!({
        "plan": "Pro", "status": "active", "billing_configured": true,
        "current_period_start": "2026-11-21T12:00:00.000Z", "current_period_end": "2026-11-21T12:01:00.000Z",
        "cancel_at_period_end": true,
    });
    assert_eq!(billing(&server).await, expected);

    clock.advance(Duration::from_secs(1));
    object["items"] = json!({ "data": [{ "price": { "lookup_key": "", "nickname": null } }] });
    deliver(&server, &event("evt_3", "customer.subscription.deleted", 3, &object)).await;
    expected["status"] = json!("canceled");
    assert_eq!(billing(&server).await, expected, "a price without a name keeps the plan");

    let published = published(&server).await;
    let types: Vec<_> = published.iter().map(|(event_type, _)| event_type.as_str()).collect();
    assert_eq!(types, ["subscription.created", "subscription.updated", "subscription.deleted"]);
    let first = json!({ "subscription": {
        "id": "sub_1", "status": "trialing", "plan": "team", "cancel_at_period_end": false,
        "current_period_start": "2026-11-21T11:59:00.000Z", "current_period_end": "2026-12-21T12:00:00.000Z",
    } });
    assert_eq!(published[0].1, first);

    let audited = server.audited("organization.updated").await;
    let by_stripe: Vec<_> = audited.iter().filter(|event| event["actor"]["name"] == "stripe").collect();
    assert_eq!(by_stripe[0]["actor"], json!({ "kind": "system", "id": null, "name": "stripe" }));
    assert_eq!(by_stripe[0]["changes"]["plan"], json!({ "before": "free", "after": "team" }));
    assert_eq!(by_stripe[2]["changes"], json!({ "subscription_status": { "before": "active", "after": "canceled" } }));
    assert_eq!(by_stripe.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stripe_status_is_stored_and_limits_spending() {
    let server = server().await;
    let (_, token) = server.key(&["read"]).await;
    let verdict = async || {
        let body = json!({ "key": token });
        let answer = server.service(Method::POST, "/v1/internal/keys/validate").body(body).send().await.expect(200);
        (answer["budget_ok"].as_bool().unwrap(), answer["budget_reason"].clone())
    };
    for (second, (word, spends)) in (1..).zip([
        ("trialing", true),
        ("past_due", false),
        ("active", true),
        ("unpaid", false),
        ("paused", false),
        ("incomplete", false),
        ("incomplete_expired", false),
        ("canceled", false),
        ("active", true),
    ]) {
        deliver(&server, &updated(&format!("evt_{second}"), second, word)).await;
        assert_eq!(status(&server).await, word);
        let reason = if spends { Value::Null } else { json!(format!("subscription {word}")) };
        assert_eq!(verdict().await, (spends, reason));
    }
    server.work("worker-budget-checks").await;
    assert!(server.outbox("PSH").await.len() >= 9, "data planes are notified of each");
    let strange = send(&server, &updated("evt_strange", 20, "dormant")).await;
    assert_eq!(strange.invalid_field(), "data.object.status");
    assert_eq!(status(&server).await, "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn invoice_events_are_published_without_billing_changes() {
    let clock = noon();
    let server = server_at(Arc::clone(&clock)).await;
    let before = billing(&server).await;
    let mut invoice = json!({
        "id": "in_1", "object": "invoice", "customer": "cus_1", "customer_email": "jenny@example.com",
        "customer_name": "Jenny Rosen", "currency": "eur", "amount_due": 1900, "amount_paid": 0, "attempt_count": 1,
        "next_payment_attempt": NOON + 60, "hosted_invoice_url": "https://invoice.stripe.com/i/1",
        "parent": { "type": "subscription_details", "subscription_details": { "subscription": "sub_1" } },
    });
    deliver(&server, &event("evt_1", "invoice.payment_failed", 1, &invoice)).await;
    clock.advance(Duration::from_secs(1));
    invoice["parent"] = Value::Null;
    invoice["subscription"] = json!("sub_1");
    (invoice["amount_paid"], invoice["next_payment_attempt"]) = (json!(1900), Value::Null);
    deliver(&server, &event("evt_2", "invoice.paid", 2, &invoice)).await;
    let mut expected = json!({ "invoice": {
        "id": "in_1", "subscription_id": "sub_1", "currency": "eur", "amount_due": 1900, "amount_paid": 0,
        "attempt_count": 1, "next_payment_attempt": "2026-11-21T12:01:00.000Z",
    } });
    let published = published(&server).await;
    assert_eq!(published[0], ("invoice.payment_failed".to_owned(), expected.clone()));
    (expected["invoice"]["amount_paid"], expected["invoice"]["next_payment_attempt"]) = (json!(1900), Value::Null);
    assert_eq!(published[1..], [("invoice.paid".to_owned(), expected)]);
    assert_eq!(billing(&server).await, before);
    assert!(!format!("{:?}", server.stored().await).contains("Jenny"), "personal data is not stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn irrelevant_events_are_acknowledged() {
    let server = server().await;
    let before = server.stored().await;
    for event_type in ["customer.created", "customer.subscription.trial_will_end", "invoice.created", "ping", ""] {
        deliver(&server, &event("evt_1", event_type, 1, &json!({ "anything": [1] }))).await;
    }
    let mut unmatched = subscription("past_due");
    for customer in [json!("cus_2"), json!("acme"), json!("cus_#"), Value::Null] {
        unmatched["customer"] = customer;
        deliver(&server, &event("evt_2", "customer.subscription.updated", 2, &unmatched)).await;
    }
    assert_eq!(server.stored().await, before);
    unmatched["customer"] = json!("cus_1");
    deliver(&server, &event("evt_2", "customer.subscription.updated", 2, &unmatched)).await;
    assert_eq!(status(&server).await, "past_due", "an event that matched no customer may be sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn ignored_types_may_have_any_envelope() {
    let server = server().await;
    let before = server.stored().await;
    // A thin event of Stripe's API v2: a time in RFC 3339, no `data`, a related object instead.
    let thin = json!({
        "id": "evt_test_65R9Ijk8dKEYZcXeRWn16R9A7j1FSQ3w3TGDPLLGSM4CW0", "object": "v2.core.event",
        "type": "v2.billing.meter.no_meter_found", "livemode": false, "created": "2026-11-21T12:00:00.000Z",
        "related_object": null, "reason": null,
    });
    deliver(&server, &thin).await;
    let whole = event("evt_1", "v1.customer.subscription.updated", 1, &subscription("past_due"));
    deliver(&server, &whole).await;
    let odd = [
        Value::Null,
        json!("2026-11-21T12:00:00Z"),
        json!(-1),
        json!(1.5),
        json!(true),
        json!([]),
        json!({}),
        json!(u64::MAX),
    ];
    for field in ["id", "created", "livemode", "data", "object", "api_version", "account"] {
        let mut without = thin.clone();
        without.as_object_mut().unwrap().remove(field);
        deliver(&server, &without).await;
        for value in &odd {
            let mut strange = thin.clone();
            strange[field] = value.clone();
            deliver(&server, &strange).await;
        }
    }
    for event_type in [Value::Null, json!(1), json!(["ping"]), json!({ "of": "ping" })] {
        let mut untyped = updated("evt_1", 1, "past_due");
        untyped["type"] = event_type;
        deliver(&server, &untyped).await;
    }
    deliver(&server, &json!({})).await;
    assert_eq!(server.stored().await, before);
}

/// Returns JSON values that no field can represent.
fn unusable() -> Vec<String> {
    let nested = |open: &str, close: &str| open.repeat(200) + "1" + &close.repeat(200);
    let mut unusable = vec![nested("[", "]"), nested(r#"{"a":"#, "}")];
    let scalars = ["1e999", "-1e999", "123456789012345678901234567890", r#""\ud83d""#];
    let objects = [r#"{"a":1,"a":1}"#, r#"{"\ud83d":1}"#, r#"[{"b":{"a":"\ude00","a":[]}}]"#];
    unusable.extend(scalars.into_iter().chain(objects).map(ToOwned::to_owned));
    unusable
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_json_is_not_validated() {
    let server = server().await;
    let before = server.stored().await;
    let received = async |body: &str| {
        let reply = signed(&server, body).send().await;
        assert_eq!(reply.expect(200), json!({ "received": true }), "{body}");
    };
    for odd in unusable() {
        received(&format!(r#"{{"type":"customer.created","data":{odd}}}"#)).await;
        received(&format!(r#"{{"id":{odd},"data":{{"object":{{"a":[{odd}]}}}},"id":{odd},"type":"ping"}}"#)).await;
        received(&format!(r#"{{"type":{odd}}}"#)).await;
    }
    received(r#"{"type":"ping","type":"ping"}"#).await;
    assert_eq!(server.stored().await, before);

    let metadata = r#"{"organization_id":"1"}"#;
    for (second, odd) in (1..).zip(unusable()) {
        let expected = if second % 2 == 0 { "active" } else { "past_due" };
        let body = updated(&format!("evt_{second}"), second, expected).to_string();
        received(&body.replace(metadata, &format!(r#"{odd},"metadata":{odd}"#))).await;
        assert_eq!(status(&server).await, expected, "{odd}");
    }

    let before = server.stored().await;
    let event = updated("evt_read", 100, "unpaid").to_string();
    for (field, read, odd) in [
        ("data.object.status", r#""status":"unpaid""#, r#""status":"unpaid","status":"active""#),
        ("data.object.status", r#""status":"unpaid""#, r#""status":"unpaid\ud83d""#),
        ("data.object.customer", r#""customer":"cus_1""#, r#""customer":"cus_1","customer":"cus_2""#),
        ("livemode", r#""livemode":false"#, r#""livemode":false,"livemode":true"#),
        ("type", r#""type":"customer"#, r#""type":"customer.subscription.updated","type":"customer"#),
    ] {
        assert!(event.contains(read), "{event}");
        assert_eq!(signed(&server, &event.replace(read, odd)).send().await.invalid_field(), field);
    }
    assert_eq!(server.stored().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_customers_object_is_not_read() {
    let server = server().await;
    let before = server.stored().await;
    let mut objects = Vec::new();
    for (pointer, value) in [
        ("/status", json!("dormant")),
        ("/status", Value::Null),
        ("/id", json!(5)),
        ("/created", json!("now")),
        ("/cancel_at_period_end", json!("no")),
        ("/items", json!([])),
        ("/items/data/0/price/lookup_key", json!(5)),
        ("/items/data/0/price/id", json!(5)),
    ] {
        let mut object = subscription("active");
        *object.pointer_mut(pointer).unwrap() = value;
        objects.push(object);
    }
    let expanded = |id: Value| json!({ "id": id, "object": "customer", "metadata": {} });
    for customer in
        [json!("cus_2"), expanded(json!("cus_2")), expanded(json!(5)), json!({}), json!(5), json!([]), Value::Null]
    {
        for object in &mut objects {
            object["customer"] = customer.clone();
            for event_type in ["customer.subscription.updated", "customer.subscription.deleted", "invoice.paid"] {
                deliver(&server, &event("evt_1", event_type, 1, object)).await;
            }
        }
    }
    for object in &mut objects {
        object.as_object_mut().unwrap().remove("customer");
        deliver(&server, &event("evt_1", "customer.subscription.updated", 1, object)).await;
    }
    assert_eq!(server.stored().await, before);
    objects[0]["customer"] = json!("cus_1");
    let known = send(&server, &event("evt_1", "customer.subscription.updated", 1, &objects[0])).await;
    assert_eq!(known.invalid_field(), "data.object.status");
}

#[tokio::test(flavor = "multi_thread")]
async fn expanded_objects_are_read_by_their_id() {
    let clock = noon();
    let server = server_at(Arc::clone(&clock)).await;
    let mut object = subscription("past_due");
    object["customer"] = json!({ "object": "customer", "metadata": { "id": "cus_2" }, "id": "cus_1" });
    deliver(&server, &event("evt_1", "customer.subscription.updated", 1, &object)).await;
    assert_eq!(status(&server).await, "past_due");

    let expanded = json!({ "id": "sub_1", "object": "subscription", "customer": "cus_1" });
    let invoice = json!({ "id": "in_1", "customer": object["customer"], "subscription": expanded });
    let details = json!({ "subscription_details": { "subscription": expanded } });
    let newer = json!({ "id": "in_2", "customer": object["customer"], "parent": details });
    for (id, invoice) in [("evt_2", &invoice), ("evt_3", &newer)] {
        clock.advance(Duration::from_secs(1));
        deliver(&server, &event(id, "invoice.paid", 2, invoice)).await;
    }
    let published = published(&server).await;
    let subscriptions: Vec<_> = published[1..].iter().map(|(_, data)| &data["invoice"]["subscription_id"]).collect();
    assert_eq!(subscriptions, [&json!("sub_1"), &json!("sub_1")]);
    for wrong in [json!({ "object": "subscription" }), json!({ "id": "sub#1" }), json!(5)] {
        let invoice = json!({ "id": "in_3", "customer": "cus_1", "subscription": wrong });
        let field = send(&server, &event("evt_4", "invoice.paid", 4, &invoice)).await.invalid_field();
        assert!(field.starts_with("data.object.subscription"), "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn null_flags_are_false() {
    let server = server().await;
    let mut object = subscription("active");
    object["cancel_at_period_end"] = Value::Null;
    object["items"]["data"][0]["deleted"] = Value::Null;
    deliver(&server, &event("evt_1", "customer.subscription.updated", 1, &object)).await;
    let billing = billing(&server).await;
    assert_eq!((&billing["cancel_at_period_end"], &billing["plan"]), (&json!(false), &json!("team")));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_subscription_is_canceled_despite_its_status() {
    let server = server().await;
    for (number, word) in (1..).zip([json!("dormant"), Value::Null, json!(5), json!("active")]) {
        let mut object = subscription("active");
        object["id"] = json!(format!("sub_{number}"));
        deliver(&server, &event(&format!("evt_{number}"), "customer.subscription.updated", number, &object)).await;
        assert_eq!(status(&server).await, "active");
        object["status"] = word;
        let id = format!("evt_deleted_{number}");
        deliver(&server, &event(&id, "customer.subscription.deleted", number, &object)).await;
        assert_eq!(status(&server).await, "canceled", "{object}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_signatures_are_refused() {
    let server = server().await;
    let before = server.stored().await;
    let body = updated("evt_1", 1, "past_due").to_string();
    let missing = server.post(PATH, json!({})).anonymous().raw_body(body.clone());
    assert_eq!(error_code(missing.send().await), "invalid_signature");
    let right = mac(SECRET, NOON, &body);
    for header in [
        String::new(),
        "nonsense".to_owned(),
        format!("v1={right}"),
        format!("t={NOON}"),
        format!("t=,v1={right}"),
        format!("t=now,v1={right}"),
        format!("t={NOON},t={NOON},v1={right}"),
        format!("t={},v1={right}", NOON + 1),
        format!("t={NOON},v0={right}"),
        format!("t={NOON},v1={}", right.to_uppercase()),
        format!("t={NOON},v1={}", &right[1..]),
        signature("whsec_somebodyElsesSecret", NOON, &body),
        signature(SECRET, NOON, &body.replace("past_due", "past_duf")),
        signature(SECRET, NOON - 301, &body),
        signature(SECRET, NOON - 600, &body),
        signature(SECRET, NOON + 301, &body),
    ] {
        let reply = with_header(&server, &header, &body).send().await;
        assert_eq!(error_code(reply), "invalid_signature", "{header}");
    }
    let unreadable = server.post(PATH, json!({})).anonymous().raw_body(body.clone()).header(HEADER, "t=1,v1=é");
    assert_eq!(unreadable.send().await.refused(400)["message"], SignatureError::Malformed.to_string());
    // This route does not accept an API key.
    let reply = server.post(PATH, json!({})).raw_body(body.clone()).send().await;
    assert_eq!(error_code(reply), "invalid_signature");
    assert_eq!(server.stored().await, before);
    for header in [
        signature(SECRET, NOON - 300, &body),
        signature(SECRET, NOON + 300, &body),
        signature(NEXT_SECRET, NOON, &body),
        format!("t={NOON},v1={},v0=x,v1={right},v2=", "0".repeat(64)),
        format!("v1={right}, t={NOON}"),
        format!("t={NOON},junk,,v1={right}"),
    ] {
        with_header(&server, &header, &body).send().await.expect(200);
    }
    assert_eq!(status(&server).await, "past_due");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_changed_byte_invalidates_the_signature() {
    let server = server().await;
    let body = updated("evt_1", 1, "past_due").to_string();
    let header = signature(SECRET, NOON, &body);
    for at in (0..body.len()).step_by(37) {
        let mut changed = body.clone().into_bytes();
        changed[at] ^= 1;
        let request = server.post(PATH, json!({})).anonymous().raw_body(changed).header("stripe-signature", &header);
        assert_eq!(error_code(request.send().await), "invalid_signature", "byte {at}");
    }
    assert_eq!(status(&server).await, "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_body_is_validated() {
    let server = server().await;
    for (body, code) in [("{", "malformed_json"), ("", "malformed_json")] {
        assert_eq!(error_code(signed(&server, body).send().await), code);
    }
    assert_eq!(signed(&server, "[]").send().await.invalid_field(), "body");
    let mut live = updated("evt_1", 1, "past_due");
    live["livemode"] = json!(true);
    assert_eq!(error_code(send(&server, &live).await), "livemode_mismatch");
    for (field, value) in
        [("id", json!("evt#1")), ("created", json!("now")), ("data", json!([])), ("livemode", json!(0))]
    {
        let mut wrong = updated("evt_1", 1, "past_due");
        wrong[field] = value;
        assert_eq!(send(&server, &wrong).await.invalid_field(), field);
    }
    let mut wrong = updated("evt_1", 1, "past_due");
    wrong["data"]["object"] = Value::Null;
    assert_eq!(send(&server, &wrong).await.invalid_field(), "data.object");
    let large = |bytes: usize| updated("evt_1", 1, "past_due").to_string() + &" ".repeat(bytes);
    let fitting = 1_048_576 - large(0).len();
    assert_eq!(signed(&server, &large(fitting + 1)).send().await.refused(413)["error"], "body_too_large");
    for header in ["", "t=1,v1=0", &signature("whsec_somebodyElsesSecret", NOON, &large(fitting + 1))] {
        let unsigned = with_header(&server, header, &large(fitting + 1)).send().await;
        assert_eq!(unsigned.refused(413)["error"], "body_too_large", "checked before the signature: {header}");
    }
    assert_eq!(status(&server).await, "active");
    signed(&server, &large(fitting)).send().await.expect(200);
    assert_eq!(status(&server).await, "past_due");
}

#[tokio::test(flavor = "multi_thread")]
async fn route_without_signing_secret_is_unknown_path() {
    let server = TestServer::start().await;
    let seen = |reply: Reply| {
        let headers = reply.headers.iter().filter(|(name, _)| !["x-request-id", "date"].contains(&name.as_str()));
        let mut headers: Vec<_> = headers.map(|(name, value)| (name.to_string(), value.clone())).collect();
        headers.sort_by(|a, b| a.0.cmp(&b.0));
        (headers, reply.refused(404))
    };
    for body in ["", "{", "[]", &updated("evt_1", 1, "past_due").to_string(), &" ".repeat(1_048_577)] {
        let unknown = seen(server.post("/v1/stripe/nothing", json!({})).raw_body(body.to_owned()).send().await);
        assert_eq!(seen(signed(&server, body).send().await), unknown);
        assert_eq!(seen(server.post(PATH, json!({})).anonymous().raw_body(body.to_owned()).send().await), unknown);
        let odd = server.post(&format!("{PATH}?nonsense=1"), json!({})).raw_body(body.to_owned());
        assert_eq!(seen(odd.send().await), unknown);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_event_has_no_effect() {
    let server = server().await;
    let event = updated("evt_1", 1, "past_due");
    let replies =
        tokio::join!(send(&server, &event), send(&server, &event), send(&server, &event), send(&server, &event));
    for reply in [replies.0, replies.1, replies.2, replies.3] {
        assert_eq!(reply.expect(200), json!({ "received": true }));
    }
    let after = server.stored().await;
    patch(&server, server.organization_id, json!({ "subscription_status": "active" })).await;
    deliver(&server, &event).await;
    assert_eq!(status(&server).await, "active", "the operator's change stays until a new event");
    assert_eq!(published(&server).await.len(), 1);
    assert!(after.iter().filter(|item| item["pk"] == "SEV#evt_1").count() == 1);
    let kept = server.items("SEV#evt_1").await.iter().map(plain).collect::<Vec<_>>();
    assert_eq!(kept[0]["ttl"], NOON + 35 * 86_400);
    deliver(&server, &updated("evt_2", 2, "unpaid")).await;
    assert_eq!(status(&server).await, "unpaid", "a new event overrides the operator");
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_stripe_event_is_ignored() {
    let server = server().await;
    deliver(&server, &updated("evt_2", 20, "past_due")).await;
    let before = (billing(&server).await, published(&server).await, server.audit_events().await);
    deliver(&server, &updated("evt_1", 10, "active")).await;
    deliver(&server, &event("evt_0", "customer.subscription.created", 5, &subscription("incomplete"))).await;
    let mut tied = updated("evt_3", 20, "active");
    tied["data"]["previous_attributes"] = json!({ "status": "incomplete" });
    deliver(&server, &tied).await;
    assert_eq!((billing(&server).await, published(&server).await, server.audit_events().await), before);
    assert_eq!(server.items("SEV#evt_1").await.len(), 1, "the stale event is recorded");

    tied["id"] = json!("evt_4");
    tied["data"]["previous_attributes"] = json!({ "status": "past_due" });
    deliver(&server, &tied).await;
    assert_eq!(
        status(&server).await,
        "active",
        "of two events in a second, the one whose previous state is known is newer"
    );

    deliver(&server, &event("evt_9", "customer.subscription.deleted", 30, &subscription("canceled"))).await;
    deliver(&server, &updated("evt_8", 29, "active")).await;
    deliver(&server, &updated("evt_10", 40, "active")).await;
    assert_eq!(status(&server).await, "canceled", "a deletion is final");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_counting_subscription_changes_billing() {
    let server = server().await;
    deliver(&server, &updated("evt_1", 1, "active")).await;
    let mut other = subscription("canceled");
    (other["id"], other["items"]["data"][0]["price"]["lookup_key"]) = (json!("sub_2"), json!("other"));
    deliver(&server, &event("evt_2", "customer.subscription.deleted", 2, &other)).await;
    other["id"] = json!("sub_3");
    other["status"] = json!("incomplete");
    deliver(&server, &event("evt_3", "customer.subscription.created", 3, &other)).await;
    assert_eq!((billing(&server).await["plan"].take(), status(&server).await), (json!("team"), json!("active")));

    other["status"] = json!("active");
    other["created"] = json!(NOON);
    deliver(&server, &event("evt_4", "customer.subscription.updated", 4, &other)).await;
    assert_eq!(billing(&server).await["plan"], "other", "the newest subscription that allows spending counts");
    deliver(&server, &event("evt_5", "customer.subscription.deleted", 5, &subscription("canceled"))).await;
    assert_eq!((billing(&server).await["plan"].take(), status(&server).await), (json!("other"), json!("active")));

    patch(&server, server.organization_id, json!({ "stripe_customer_id": "cus_2" })).await;
    let fresh = billing(&server).await;
    assert_eq!(fresh["current_period_end"], Value::Null, "the new customer has no subscriptions");
}

#[tokio::test(flavor = "multi_thread")]
async fn subscription_older_than_ten_others_still_counts() {
    let clock = noon();
    let server = server_at(Arc::clone(&clock)).await;
    let of = |number: i64, status: &str| {
        let mut object = subscription(status);
        (object["id"], object["created"]) = (json!(format!("sub_{number}")), json!(NOON - 60 + number));
        object
    };
    for number in 0..11 {
        let id = format!("evt_created_{number}");
        deliver(&server, &event(&id, "customer.subscription.created", number, &of(number, "active"))).await;
    }
    for number in 1..11 {
        let id = format!("evt_deleted_{number}");
        deliver(&server, &event(&id, "customer.subscription.deleted", 20 + number, &of(number, "canceled"))).await;
    }
    assert_eq!(status(&server).await, "active", "the oldest subscription is still active");
    deliver(&server, &event("evt_last", "customer.subscription.updated", 40, &of(0, "past_due"))).await;
    assert_eq!(status(&server).await, "past_due");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_subscription_stays_canceled() {
    let server = server().await;
    let of = |number: i64, status: &str| {
        let mut object = subscription(status);
        (object["id"], object["created"]) = (json!(format!("sub_{number}")), json!(NOON + number));
        object
    };
    for number in 0..60 {
        let id = format!("evt_deleted_{number}");
        deliver(&server, &event(&id, "customer.subscription.deleted", 100 + number, &of(number, "canceled"))).await;
    }
    let (before, events_before) = (billing(&server).await, published(&server).await.len());
    deliver(&server, &event("evt_late", "customer.subscription.updated", 50, &of(0, "active"))).await;
    assert_eq!((billing(&server).await, published(&server).await.len()), (before, events_before));
    assert_eq!(status(&server).await, "canceled");

    let items = server.items(&format!("ORG#{}", server.organization_id)).await;
    let organization = items.iter().map(plain).find(|item| item["sk"] == "META").unwrap();
    assert_eq!(organization["subscriptions"].as_array().unwrap().len(), 10);

    deliver(&server, &event("evt_new", "customer.subscription.created", 200, &of(200, "active"))).await;
    assert_eq!(status(&server).await, "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancellation_at_period_end_is_reported() {
    let server = server().await;
    let end = NOON + 2_592_000;
    for (second, (flag, cancel_at, reported)) in (1..).zip([
        (json!(false), json!(end), true),
        (json!(false), Value::Null, false),
        (json!(true), Value::Null, true),
        (json!(false), json!(end - 1), false),
        (Value::Null, json!(end), true),
        (json!(false), json!(end + 86_400), false),
        (json!(true), json!(end), true),
    ]) {
        let mut object = subscription("active");
        object["cancel_at"] = cancel_at;
        match flag {
            Value::Null => drop(object.as_object_mut().unwrap().remove("cancel_at_period_end")),
            flag => object["cancel_at_period_end"] = flag,
        }
        let id = format!("evt_{second}");
        deliver(&server, &event(&id, "customer.subscription.updated", second, &object)).await;
        assert_eq!(billing(&server).await["cancel_at_period_end"], reported, "{object}");
    }
    // An event of the same second, whose previous state differs only in `cancel_at`.
    let mut object = subscription("past_due");
    object["cancel_at"] = Value::Null;
    let mut tied = event("evt_tied", "customer.subscription.updated", 7, &object);
    tied["data"]["previous_attributes"] = json!({ "cancel_at": end });
    deliver(&server, &tied).await;
    assert_eq!(status(&server).await, "past_due");
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_comes_from_first_named_item() {
    let server = server().await;
    let licensed = |name: &str| json!({ "price": { "lookup_key": name, "recurring": { "usage_type": "licensed" } } });
    let metered = |name: Option<&str>| {
        json!({
            "current_period_end": NOON + 60,
            "price": { "lookup_key": name, "nickname": null, "recurring": { "usage_type": "metered" } },
        })
    };
    let deleted = |name: &str| json!({ "deleted": true, "price": { "lookup_key": name } });
    let unnamed = || json!({ "price": { "lookup_key": null, "nickname": null } });
    let none_of = |name: &str| json!({ "quantity": 0, "price": { "lookup_key": name } });
    for (second, (items, plan)) in (1..).zip([
        (vec![licensed("team")], "team"),
        (vec![metered(None), licensed("pro")], "pro"),
        (vec![metered(Some("tokens")), licensed("team")], "team"),
        (vec![deleted("pro"), licensed("basic")], "basic"),
        (vec![unnamed(), json!({ "price": null }), json!({}), licensed("pro")], "pro"),
        (vec![metered(Some("tokens"))], "pro"),
        (vec![deleted("team")], "pro"),
        (vec![unnamed()], "pro"),
        (vec![], "pro"),
        (vec![licensed("team"), licensed("seats")], "team"),
        (vec![none_of("pro"), licensed("basic")], "basic"),
        (vec![json!(5), json!({ "price": 5 }), json!({ "price": { "lookup_key": 5 } }), licensed("team")], "team"),
    ]) {
        let mut object = subscription("active");
        object["items"]["data"] = json!(items);
        let id = format!("evt_{second}");
        deliver(&server, &event(&id, "customer.subscription.updated", second, &object)).await;
        assert_eq!(billing(&server).await["plan"], plan, "{object}");
        let named = published(&server).await.into_iter().any(|(_, data)| data["subscription"]["plan"] == plan);
        assert!(named, "no webhook event names the plan {plan}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn event_changes_only_its_own_organization() {
    let server = server().await;
    let (theirs, their_admin) = server.another_organization("globex").await;
    set_customer(&server, theirs, "cus_2").await;
    let mut object = subscription("past_due");
    object["customer"] = json!("cus_2");
    // Metadata must be ignored.
    object["metadata"] =
        json!({ "organization_id": server.organization_id.to_string(), "stripe_customer_id": "cus_1" });
    let ours =
        (billing(&server).await, published(&server).await, server.audit_events().await, server.outbox("PSH").await);
    deliver(&server, &event("evt_1", "customer.subscription.updated", 1, &object)).await;
    let after =
        (billing(&server).await, published(&server).await, server.audit_events().await, server.outbox("PSH").await);
    assert_eq!(after, ours);
    let theirs = server.get("/v1/billing").bearer(&their_admin).send().await.expect(200);
    assert_eq!(theirs["status"], "past_due");
}

#[tokio::test(flavor = "multi_thread")]
async fn event_with_lost_response_applies_once() {
    let (server, proxy) = FaultProxy::start_as(configured(noon())).await;
    set_customer(&server, server.organization_id, "cus_1").await;
    proxy.fail("TransactWriteItems", 1, StoreFault::DropResponse);
    deliver(&server, &updated("evt_1", 1, "past_due")).await;
    proxy.fail("TransactWriteItems", ALWAYS, StoreFault::DropResponse);
    send(&server, &updated("evt_2", 2, "active")).await.refused(503);
    proxy.heal();
    deliver(&server, &updated("evt_2", 2, "active")).await;
    assert_eq!((published(&server).await.len(), status(&server).await), (2, json!("active")));
    for operation in ["GetItem", "TransactWriteItems"] {
        proxy.fail(operation, ALWAYS, StoreFault::Close);
        let refused = send(&server, &updated("evt_3", 3, "unpaid")).await;
        assert_eq!(refused.headers["retry-after"], "1");
        refused.refused(503);
        proxy.heal();
    }
    assert_eq!(published(&server).await.len(), 2);
    deliver(&server, &updated("evt_3", 3, "unpaid")).await;
    assert_eq!(status(&server).await, "unpaid", "Stripe sends a rejected event again");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_events_and_patches_all_apply() {
    let server = Arc::new(server().await);
    let mut racing = Vec::new();
    for second in 1..=6 {
        let event = updated(&format!("evt_{second}"), second, if second == 6 { "unpaid" } else { "past_due" });
        let path = format!("/v1/internal/organizations/{}", server.organization_id);
        let model = server.service(Method::PATCH, &path).body(json!({ "model_id": format!("model-{second}") }));
        racing.push(tokio::spawn(signed(&server, &event.to_string()).send()));
        racing.push(tokio::spawn(model.send()));
    }
    for reply in racing {
        reply.await.unwrap().expect(200);
    }
    assert_eq!(status(&server).await, "unpaid");
    assert_eq!(server.items("SEV#evt_1").await.len(), 1);
}

//! Webhook deliveries, from a change to its receivers.

use std::{sync::Arc, time::Duration};

use karta_shared::{
    clock::{Clock, ManualClock, SystemClock},
    config::Ring,
    domain::{Id, Signatures, Timestamp, WebhookSecret},
    store::{Queue, Recovered},
    worker::{Wake, Worker},
};
use serde_json::{Value, json};
use worker_webhook_deliveries::WebhookDeliveries;
use worker_webhook_events::{Waker, WebhookEvents};

use super::{Reaction, Receiver, WebhookServer, deliveries, endpoint, on_loopback, publish_events};
use crate::{
    fault_proxy::{FaultProxy, StoreFault},
    harness::{TestServer, until},
};

fn statuses(deliveries: &[Value]) -> Vec<(&str, usize)> {
    let of = |delivery: &'_ Value| delivery["attempts"].as_array().unwrap().len();
    deliveries.iter().map(|delivery| (delivery["status"].as_str().unwrap(), of(delivery))).collect()
}

async fn read_endpoint(server: &TestServer, endpoint: u64) -> Value {
    server.get(&format!("/v1/webhook_endpoints/{endpoint}")).send().await.expect(200)["webhook_endpoint"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribed_endpoints_receive_signed_events() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let (subscribed, all) = (Receiver::start().await, Receiver::start().await);
    let (id, secret) = endpoint(server, &subscribed.url, &["api_key.created"]).await;
    endpoint(server, &all.url, &["*"]).await;
    let (key, token) = server.key(&["read"]).await;
    server.delete(&format!("/v1/api_keys/{key}")).send().await.expect(200);
    webhooks.deliver().await;

    assert_eq!(subscribed.received_types(), ["api_key.created"]);
    let mut types = all.received_types();
    types.sort();
    assert_eq!(types, ["api_key.created", "api_key.revoked"]);

    let received = &subscribed.received()[0];
    let body = received.json();
    assert_eq!(body["organization_id"], server.organization_id);
    assert_eq!(body["created_at"], "2026-11-21T12:00:00.000Z");
    assert_eq!(body["data"]["api_key"]["id"], key);
    assert_eq!(body["id"], received.header("webhook-id"));
    assert!(body["id"].as_str().unwrap().starts_with("evt_"));
    assert!(!received.body.contains(&token) && !received.body.contains("secret"), "{}", received.body);
    assert_eq!(received.header("content-type"), "application/json");
    assert_eq!(received.header("webhook-timestamp"), "1795262400");
    let secret = WebhookSecret::parse(&secret).unwrap();
    let signed =
        Signatures::sign(&[&secret], body["id"].as_str().unwrap(), clock_now(server), received.body.as_bytes());
    assert_eq!(received.header("karta-signature"), signed.karta_signature);
    assert_eq!(received.header("webhook-signature"), signed.webhook_signature);

    let listed = deliveries(server, id).await;
    assert_eq!(statuses(&listed), [("succeeded", 1)]);
    let attempt = &listed[0]["attempts"][0];
    assert_eq!((&attempt["response_code"], &attempt["error"]), (&json!(200), &Value::Null));
    assert_eq!(listed[0]["event_id"], body["id"]);
    assert_eq!(listed[0]["next_attempt_at"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_delivery_is_attempted_ten_times() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    receiver.react(Reaction::WithBody(500, "no: Bearer kt_live_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"));
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    server.key(&["read"]).await;
    webhooks.work().await;
    let pauses = [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];
    for (retries, pause) in pauses.into_iter().enumerate() {
        webhooks.settled().await;
        let listed = deliveries(server, id).await;
        assert_eq!(statuses(&listed), [("pending", retries + 1)]);
        let next = listed[0]["next_attempt_at"].as_str().unwrap().parse::<Timestamp>().unwrap();
        let waits = next.since(clock_now(server));
        assert!(
            waits >= Duration::from_secs(pause * 9 / 10) && waits <= Duration::from_secs(pause * 11 / 10 + 1),
            "{waits:?}"
        );
        let before = receiver.received().len();
        if retries > 0 {
            clock.advance(waits.saturating_sub(Duration::from_millis(1)));
            webhooks.work().await;
            webhooks.settled().await;
            assert_eq!(receiver.received().len(), before, "no attempt before its time");
            clock.advance(Duration::from_millis(1));
        } else {
            clock.advance(waits);
        }
        webhooks.work().await;
        receiver.wait_for(before + 1).await;
    }
    webhooks.settled().await;
    let listed = deliveries(server, id).await;
    assert_eq!(statuses(&listed), [("failed", 10)]);
    assert_eq!(listed[0]["next_attempt_at"], Value::Null);
    let attempt = &listed[0]["attempts"][9];
    assert_eq!(attempt["error"], "receiver returned 500");
    assert_eq!(attempt["response_body"], "no: Bearer kt_live_AAAAAA[redacted]");
    let ids: Vec<_> = receiver.received().iter().map(|received| received.header("webhook-id").to_owned()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]) && ids.len() == 10, "{ids:?}");
    let bodies: Vec<_> = receiver.received().iter().map(|received| received.body.clone()).collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]), "every attempt carries the same bytes");
    assert_eq!(read_endpoint(server, id).await["consecutive_failures"], 10);

    let reader = server.key(&["read"]).await.1;
    let path = format!("/v1/webhook_endpoints/{id}/deliveries");
    let seen = server.get(&path).bearer(&reader).send().await.expect(200);
    assert_eq!(seen["deliveries"][0]["attempts"][9]["response_body"], Value::Null, "only admins see response bodies");
}

fn clock_now(server: &TestServer) -> Timestamp {
    server.runner.app.clock.now()
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_respected_up_to_a_day() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    for (seconds, waits) in [(600, 600), (1_000_000, 86_400)] {
        clock.advance(Duration::from_millis(1));
        receiver.react(Reaction::RetryAfter(seconds));
        server.key(&["read"]).await;
        webhooks.deliver().await;
        let next = deliveries(server, id).await[0]["next_attempt_at"].as_str().unwrap().to_owned();
        let next: Timestamp = next.parse().unwrap();
        assert_eq!(next.since(clock_now(server)).as_secs(), waits);
        clock.advance(Duration::from_secs(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_makes_the_first_retry_itself() {
    let server = TestServer::start_as(on_loopback(Arc::new(SystemClock)), None).await;
    let webhooks = WebhookServer::new(server, Duration::from_secs(8));
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    receiver.react(Reaction::Status(500));
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    server.key(&["read"]).await;
    webhooks.work().await;
    receiver.wait_for(1).await;
    receiver.react(Reaction::Status(200));
    // No sweep runs.
    receiver.wait_for(2).await;
    webhooks.settled().await;
    assert_eq!(statuses(&deliveries(server, id).await), [("succeeded", 2)]);
    assert_eq!(read_endpoint(server, id).await["consecutive_failures"], 0, "a success resets the count of failures");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_410_disables_and_keeps_pending_deliveries() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let (gone, other) = (Receiver::start().await, Receiver::start().await);
    gone.react(Reaction::Status(500));
    let (id, _) = endpoint(server, &gone.url, &["*"]).await;
    endpoint(server, &other.url, &["webhook_endpoint.disabled"]).await;
    server.key(&["read"]).await;
    webhooks.deliver().await;
    gone.react(Reaction::Status(410));
    clock.advance(Duration::from_secs(10));
    webhooks.deliver().await;
    let disabled = read_endpoint(server, id).await;
    assert_eq!((&disabled["enabled"], &disabled["disabled_reason"]), (&json!(false), &json!("gone")));
    webhooks.deliver().await;
    assert_eq!(other.received_types(), ["webhook_endpoint.disabled"]);
    assert_eq!(other.received()[0].json()["data"]["webhook_endpoint"]["id"], id);
    assert_eq!(server.audited("webhook_endpoint.disabled").await[0]["actor"]["name"], "worker-webhook-deliveries");

    // A disabled endpoint receives nothing, and new events are not queued for it.
    server.key(&["read"]).await;
    clock.advance(Duration::from_hours(1));
    let sent = gone.received().len();
    webhooks.deliver().await;
    assert_eq!(gone.received().len(), sent);
    assert_eq!(statuses(&deliveries(server, id).await), [("pending", 2)]);

    gone.react(Reaction::Status(200));
    let revived =
        server.patch(&format!("/v1/webhook_endpoints/{id}"), json!({ "enabled": true })).send().await.expect(200);
    let revived = &revived["webhook_endpoint"];
    assert_eq!((&revived["enabled"], &revived["consecutive_failures"]), (&json!(true), &json!(0)));
    webhooks.deliver().await;
    assert_eq!(statuses(&deliveries(server, id).await), [("succeeded", 3)]);

    // A recovery sends the missed events.
    let recover = format!("/v1/webhook_endpoints/{id}/recover");
    server.post(&recover, json!({ "since": "2026-11-21T12:00:00Z" })).send().await.expect(202);
    webhooks.deliver().await;
    let mut found = statuses(&deliveries(server, id).await)
        .into_iter()
        .map(|(status, n)| (status.to_owned(), n))
        .collect::<Vec<_>>();
    found.sort();
    let done = |attempts| ("succeeded".to_owned(), attempts);
    assert_eq!(
        found,
        [done(1), done(1), done(3)],
        "the missed key, the disabling of the endpoint itself, and the delivery from before"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_gets_at_most_five_parallel_attempts() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    receiver.react(Reaction::Together(5));
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    for _ in 0..30 {
        server.key(&["read"]).await;
    }
    webhooks.fan_out().await;
    webhooks.work().await;
    // Further workers find that the endpoint is leased.
    for _ in 0..4 {
        webhooks.work().await;
    }
    webhooks.settled().await;
    assert_eq!(receiver.received().len(), 30);
    assert_eq!(receiver.max_parallel(), 5);
    let listed = deliveries(server, id).await;
    assert!(statuses(&listed).iter().all(|found| *found == ("succeeded", 1)));
    let id = |delivery: &Value| Id::new(delivery["id"].as_u64().unwrap()).unwrap();
    assert!(listed.is_sorted_by_key(|delivery| std::cmp::Reverse(id(delivery))), "newest first");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_that_fails_for_a_day_is_disabled() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let (dead, other) = (Receiver::start().await, Receiver::start().await);
    dead.react(Reaction::Status(503));
    let (id, _) = endpoint(server, &dead.url, &["release.created"]).await;
    endpoint(server, &other.url, &["webhook_endpoint.disabled"]).await;
    publish_events(server, 3).await;
    let began = clock_now(server);
    loop {
        webhooks.deliver().await;
        let endpoint = read_endpoint(server, id).await;
        let failures = endpoint["consecutive_failures"].as_u64().unwrap();
        assert_eq!(failures, dead.received().len() as u64);
        if endpoint["enabled"] == false {
            assert_eq!((failures, &endpoint["disabled_reason"]), (25, &json!("failing")));
            assert!(clock_now(server).since(began) >= Duration::from_hours(24));
            break;
        }
        let listed = deliveries(server, id).await;
        let next = listed.iter().filter_map(|delivery| delivery["next_attempt_at"].as_str()).min().unwrap();
        clock.advance(next.parse::<Timestamp>().unwrap().since(clock_now(server)));
    }
    webhooks.deliver().await;
    assert_eq!(other.received_types(), ["webhook_endpoint.disabled"]);
    assert_eq!(deliveries(server, id).await.iter().filter(|kept| kept["status"] == "pending").count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_pauses_after_ten_consecutive_failures() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let dead = Receiver::start().await;
    dead.react(Reaction::Status(500));
    let (id, _) = endpoint(server, &dead.url, &["*"]).await;
    publish_events(server, 60).await;
    webhooks.deliver().await;
    let first = dead.received().len();
    // Attempts in progress may still finish.
    assert!((10..=14).contains(&first), "{first}");
    // A new delivery does not end the pause.
    publish_events(server, 1).await;
    webhooks.work().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(dead.received().len(), first);
    dead.react(Reaction::Status(200));
    clock.advance(Duration::from_secs(31));
    webhooks.deliver().await;
    let listed = deliveries(server, id).await;
    assert!(listed.iter().all(|delivery| delivery["status"] == "succeeded"), "{listed:#?}");
    assert_eq!(dead.received().len(), 61 + first);
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_receiver_does_not_delay_others() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let (hangs, quick) = (Receiver::start().await, Receiver::start().await);
    hangs.react(Reaction::Held);
    let (_, globex) = server.another_organization("globex").await;
    endpoint(server, &hangs.url, &["*"]).await;
    let (beside, _) = endpoint(server, &quick.url, &["*"]).await;
    let elsewhere = json!({ "url": quick.url, "event_types": ["*"] });
    server.post("/v1/webhook_endpoints", elsewhere).bearer(&globex).send().await.expect(201);
    publish_events(server, 60).await;
    server.post("/v1/api_keys", json!({ "name": "k", "scopes": ["read"] })).bearer(&globex).send().await.expect(201);
    webhooks.work().await;
    quick.wait_for(61).await;
    assert_eq!(hangs.received().len(), 5, "these attempts are still in progress");
    assert_eq!(deliveries(server, beside).await.len(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_without_stored_result_is_repeated() {
    const SDK_ATTEMPTS: usize = 5;
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_as(on_loopback(Arc::clone(&clock) as Arc<dyn Clock>)).await;
    let webhooks = WebhookServer::new(server, Duration::ZERO);
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    publish_events(server, 1).await;
    webhooks.work().await;
    webhooks.settled().await;
    assert_eq!(receiver.received().len(), 1);
    // The fan-out succeeds, but every attempt to store the result fails.
    publish_events(server, 1).await;
    proxy.forget();
    proxy.fail_after("TransactWriteItems", 1, SDK_ATTEMPTS, StoreFault::Throttle);
    webhooks.work().await;
    receiver.wait_for(2).await;
    until("the last attempt", async || proxy.seen_of("TransactWriteItems").len() == 1 + SDK_ATTEMPTS).await;
    clock.advance(Duration::from_mins(2));
    webhooks.deliver().await;
    let sent = receiver.received();
    assert_eq!(sent.len(), 3, "at least once");
    assert_eq!(sent[1].header("webhook-id"), sent[2].header("webhook-id"));
    assert_eq!(statuses(&deliveries(server, id).await), [("succeeded", 1), ("succeeded", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_conflict_is_retried() {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_as(on_loopback(Arc::clone(&clock) as Arc<dyn Clock>)).await;
    let webhooks = WebhookServer::new(server, Duration::ZERO);
    let receiver = Receiver::start().await;
    endpoint(&webhooks.server, &receiver.url, &["*"]).await;
    publish_events(&webhooks.server, 1).await;
    proxy.fail("UpdateItem", 2, StoreFault::Exception("TransactionConflictException"));
    webhooks.deliver().await;
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_resealed_under_the_new_key() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, secret) = endpoint(server, &receiver.url, &["*"]).await;
    let both = |ring: &mut Value| {
        ring["k2"] = json!("n".repeat(64));
        ring["current"] = json!("k2");
    };
    let rotated = server.app_with_ring(Ring::SealingWebhooks, both);
    let sweeper = WebhookDeliveries::new(rotated.for_function(WebhookDeliveries::NAME), Vec::new());
    sweeper.work(&Wake::Sweep).await.unwrap();
    let kept = &server.items(&format!("WHS#{}", server.organization_id)).await[0];
    assert_eq!((&kept["kid"]["S"], &kept["sealed_shard"]["S"]), (&json!("k2"), &json!("WHS#0")));

    let only_new = |ring: &mut Value| {
        both(ring);
        ring.as_object_mut().unwrap().remove("k1");
    };
    let app = server.app_with_ring(Ring::SealingWebhooks, only_new);
    publish_events(server, 1).await;
    webhooks.fan_out().await;
    let organization_id = Id::new(server.organization_id).unwrap();
    let wake = Wake::Endpoint { organization_id, webhook_endpoint_id: Id::new(id).unwrap() };
    WebhookDeliveries::new(app.for_function(WebhookDeliveries::NAME), Vec::new()).work(&wake).await.unwrap();
    receiver.wait_for(1).await;
    let sent = &receiver.received()[0];
    let secret = WebhookSecret::parse(&secret).unwrap();
    let signed = Signatures::sign(&[&secret], sent.header("webhook-id"), clock_now(server), sent.body.as_bytes());
    assert_eq!(sent.header("karta-signature"), signed.karta_signature);

    // If a ring loses its key too early, nothing is sent and the sweep reports the fault.
    let lost = |ring: &mut Value| {
        only_new(ring);
        ring["k3"] = json!("m".repeat(64));
        ring["current"] = json!("k3");
        ring.as_object_mut().unwrap().remove("k2");
    };
    let lost = server.app_with_ring(Ring::SealingWebhooks, lost).for_function(WebhookDeliveries::NAME);
    let lost = WebhookDeliveries::new(lost, Vec::new());
    let error = lost.work(&Wake::Sweep).await.unwrap_err().to_string();
    assert!(error.starts_with("1 items are not sealed under the current key, 1 of them"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_fan_outs_create_each_delivery_once() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    publish_events(server, 120).await;
    let app = &server.runner.app;
    let worker = || WebhookEvents::new(app.for_function(WebhookEvents::NAME), Waker::Local(Arc::new(|_, _| ())));
    let (first, second, third) = (worker(), worker(), worker());
    let sweep = Wake::Sweep;
    let (first, second, third) = tokio::join!(first.work(&sweep), second.work(&sweep), third.work(&sweep));
    first.and(second).and(third).unwrap();
    webhooks.deliver().await;
    assert_eq!(receiver.received().len(), 120);
    assert_eq!(deliveries(server, id).await.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_change_applies_to_later_attempts() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let (old, new) = (Receiver::start().await, Receiver::start().await);
    let (id, _) = endpoint(server, &old.url, &["*"]).await;
    old.react(Reaction::Held);
    publish_events(server, 30).await;
    webhooks.work().await;
    old.wait_for(5).await;
    // Attempts in progress end at the old URL and do not affect the new one.
    old.react(Reaction::Status(410));
    server.patch(&format!("/v1/webhook_endpoints/{id}"), json!({ "url": new.url })).send().await.expect(200);
    old.release();
    webhooks.settled().await;
    assert!(old.received().len() <= 10, "{}", old.received().len());
    assert!(new.received().len() >= 20, "{}", new.received().len());
    assert_eq!(read_endpoint(server, id).await["enabled"], true);
    let listed = deliveries(server, id).await;
    assert!(listed.iter().all(|delivery| delivery["status"] != "failed"), "{listed:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_waits_for_pending_fan_out() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["ping"]).await;
    publish_events(server, 2).await;
    let recover = format!("/v1/webhook_endpoints/{id}/recover");
    let change = json!({ "event_types": ["release.created"] });
    clock.advance(Duration::from_secs(1));
    server.post(&recover, json!({ "since": "2026-11-21T12:00:00Z" })).send().await.expect(202);
    // The recovery meets events that are not fanned out. Another worker fans them out with the
    // endpoint's old settings.
    let organization = Id::new(server.organization_id).unwrap();
    let app = &server.runner.app;
    let before = app.store.all_webhook_endpoints(organization).await.unwrap();
    server.patch(&format!("/v1/webhook_endpoints/{id}"), change).send().await.expect(200);
    let due = app.store.due(Queue::Recoveries, clock_now(server)).await.unwrap().items.remove(0);
    let recovery = app.store.recovery(organization, &due.sk).await.unwrap().unwrap();
    let current = app.store.webhook_endpoint(organization, Id::new(id).unwrap()).await.unwrap().unwrap();
    assert_eq!(app.store.recover(&recovery, &current, clock_now(server)).await.unwrap(), Recovered::Waits);
    let waiting = app.store.due(Queue::Events, clock_now(server)).await.unwrap().items;
    let (pending, _) = app.store.pending_events(&waiting).await.unwrap();
    let mut touched = [].into();
    app.store.fan_out(organization, pending, &before, clock_now(server), &mut touched).await.unwrap();
    assert!(touched.is_empty());
    webhooks.deliver().await;
    webhooks.deliver().await;
    assert_eq!(receiver.received().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_event_is_postponed_and_blocks_no_other() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    endpoint(server, &receiver.url, &["*"]).await;
    let unreadable = json!({
        "pk": { "S": format!("EVT#{}", server.organization_id) },
        "sk": { "S": "2026-11-21T12:00:00.000Z#0000000000000007" },
        "organization_id": { "N": server.organization_id.to_string() },
        "type": { "S": "of another version" },
        "due_shard": { "S": "EVT#7" },
        "due_at": { "S": "2026-11-21T12:00:00.000Z" },
    });
    server.dynamodb("PutItem", json!({ "TableName": "karta-outbox", "Item": unreadable })).await;
    publish_events(server, 3).await;
    webhooks.work().await;
    webhooks.settled().await;
    assert_eq!(receiver.received().len(), 3);
    let waiting: Vec<_> = server
        .outbox("EVT")
        .await
        .into_iter()
        .filter_map(|event| event["due_at"].as_str().map(ToOwned::to_owned))
        .collect();
    assert_eq!(waiting, ["2026-11-21T12:01:00.000Z"], "only the unreadable event is postponed");
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_rows_block_no_delivery() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    let organization = server.organization_id;
    let put = async |table: &str, pk: String, sk: &str, fault: &str| {
        let item = json!({ "pk": { "S": pk }, "sk": { "S": sk }, fault: { "S": "?" } });
        server.dynamodb("PutItem", json!({ "TableName": table, "Item": item })).await;
    };
    // More than one query returns, and all are due earlier.
    for n in 0..60 {
        let sk = format!("2026-01-01T00:00:00.000Z#{n:016}");
        put("karta-outbox", format!("DLP#{organization}#{id}"), &sk, "tries").await;
    }
    put("karta-outbox", format!("WHQ#{organization}"), "0000000000000007", "failures").await;
    server.get("/v1/webhook_endpoints").send().await.expect(200);
    put("karta", format!("WH#{organization}"), "0000000000000007", "version").await;
    publish_events(server, 3).await;
    webhooks.deliver().await;
    assert_eq!(receiver.received().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_recovery_is_postponed() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let unreadable = json!({
        "pk": { "S": format!("WHR#{}", server.organization_id) },
        "sk": { "S": "0000000000000007" },
        "organization_id": { "N": server.organization_id.to_string() },
        "due_shard": { "S": "WHR#7" },
        "due_at": { "S": "2026-11-21T12:00:00.000Z" },
    });
    server.dynamodb("PutItem", json!({ "TableName": "karta-outbox", "Item": unreadable })).await;
    let fault = webhooks.events_worker.work(&Wake::Sweep).await.unwrap_err().to_string();
    assert!(fault.starts_with(&format!("organization {}: ", server.organization_id)), "{fault}");
    assert_eq!(server.outbox("WHR").await[0]["due_at"], "2026-11-21T12:01:00.000Z");
    webhooks.work().await;
}

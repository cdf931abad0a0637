//! From a change to its receivers.

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

use super::{Post, Reaction, Receiver, announce, deliveries, endpoint, on_loopback};
use crate::{
    fault_proxy::{Fault, FaultProxy},
    harness::{TestServer, until},
};

fn statuses(deliveries: &[Value]) -> Vec<(&str, usize)> {
    let of = |delivery: &'_ Value| delivery["attempts"].as_array().unwrap().len();
    deliveries.iter().map(|delivery| (delivery["status"].as_str().unwrap(), of(delivery))).collect()
}

async fn at(server: &TestServer, endpoint: u64) -> Value {
    server.get(&format!("/v1/webhook_endpoints/{endpoint}")).send().await.expect(200)["webhook_endpoint"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_reaches_those_that_asked_for_it_signed() {
    let (post, _clock) = Post::start().await;
    let server = &post.server;
    let (wants, all) = (Receiver::start().await, Receiver::start().await);
    let (id, secret) = endpoint(server, &wants.url, &["api_key.created"]).await;
    endpoint(server, &all.url, &["*"]).await;
    let (key, token) = server.key(&["read"]).await;
    server.delete(&format!("/v1/api_keys/{key}")).send().await.expect(200);
    post.deliver().await;

    assert_eq!(wants.told(), ["api_key.created"]);
    let mut told = all.told();
    told.sort();
    assert_eq!(told, ["api_key.created", "api_key.revoked"]);

    let received = &wants.received()[0];
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
async fn failures_are_tried_again_by_the_schedule_and_given_up_after_the_tenth() {
    let (post, clock) = Post::start().await;
    let server = &post.server;
    let receiver = Receiver::start().await;
    receiver.react(Reaction::Says(500, "no: Bearer kt_live_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"));
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    server.key(&["read"]).await;
    post.work().await;
    let about = [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];
    for (tries, pause) in about.into_iter().enumerate() {
        post.settled().await;
        let listed = deliveries(server, id).await;
        assert_eq!(statuses(&listed), [("pending", tries + 1)]);
        let next = listed[0]["next_attempt_at"].as_str().unwrap().parse::<Timestamp>().unwrap();
        let waits = next.since(clock_now(server));
        assert!(
            waits >= Duration::from_secs(pause * 9 / 10) && waits <= Duration::from_secs(pause * 11 / 10 + 1),
            "{waits:?}"
        );
        let before = receiver.received().len();
        if tries > 0 {
            clock.advance(waits.saturating_sub(Duration::from_millis(1)));
            post.work().await;
            post.settled().await;
            assert_eq!(receiver.received().len(), before, "not before its time");
            clock.advance(Duration::from_millis(1));
        } else {
            clock.advance(waits);
        }
        post.work().await;
        receiver.wait_for(before + 1).await;
    }
    post.settled().await;
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
    assert_eq!(at(server, id).await["consecutive_failures"], 10);

    let reader = server.key(&["read"]).await.1;
    let path = format!("/v1/webhook_endpoints/{id}/deliveries");
    let seen = server.get(&path).bearer(&reader).send().await.expect(200);
    assert_eq!(seen["deliveries"][0]["attempts"][9]["response_body"], Value::Null, "for admins only");
}

fn clock_now(server: &TestServer) -> Timestamp {
    server.runner.app.clock.now()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_may_ask_to_be_left_alone_for_a_day_at_most() {
    let (post, clock) = Post::start().await;
    let server = &post.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    for (asked, waits) in [(600, 600), (1_000_000, 86_400)] {
        clock.advance(Duration::from_millis(1));
        receiver.react(Reaction::Later(asked));
        server.key(&["read"]).await;
        post.deliver().await;
        let next = deliveries(server, id).await[0]["next_attempt_at"].as_str().unwrap().to_owned();
        let next: Timestamp = next.parse().unwrap();
        assert_eq!(next.since(clock_now(server)).as_secs(), waits);
        clock.advance(Duration::from_secs(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_retry_is_made_by_the_worker_that_saw_the_failure() {
    let server = TestServer::start_as(on_loopback(Arc::new(SystemClock)), None).await;
    let post = Post::new(server, Duration::from_secs(8));
    let server = &post.server;
    let receiver = Receiver::start().await;
    receiver.react(Reaction::Status(500));
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    server.key(&["read"]).await;
    post.work().await;
    receiver.wait_for(1).await;
    receiver.react(Reaction::Status(200));
    // Nobody sweeps.
    receiver.wait_for(2).await;
    post.settled().await;
    assert_eq!(statuses(&deliveries(server, id).await), [("succeeded", 2)]);
    assert_eq!(at(server, id).await["consecutive_failures"], 0, "a success forgets failures");
}

#[tokio::test(flavor = "multi_thread")]
async fn gone_disables_at_once_and_what_waits_is_kept() {
    let (post, clock) = Post::start().await;
    let server = &post.server;
    let (gone, other) = (Receiver::start().await, Receiver::start().await);
    gone.react(Reaction::Status(500));
    let (id, _) = endpoint(server, &gone.url, &["*"]).await;
    endpoint(server, &other.url, &["webhook_endpoint.disabled"]).await;
    server.key(&["read"]).await;
    post.deliver().await;
    gone.react(Reaction::Status(410));
    clock.advance(Duration::from_secs(10));
    post.deliver().await;
    let disabled = at(server, id).await;
    assert_eq!((&disabled["enabled"], &disabled["disabled_reason"]), (&json!(false), &json!("gone")));
    post.deliver().await;
    assert_eq!(other.told(), ["webhook_endpoint.disabled"]);
    assert_eq!(other.received()[0].json()["data"]["webhook_endpoint"]["id"], id);
    assert_eq!(server.audited("webhook_endpoint.disabled").await[0]["actor"]["name"], "worker-webhook-deliveries");

    // Nothing is sent there, and what happens meanwhile is not queued.
    server.key(&["read"]).await;
    clock.advance(Duration::from_hours(1));
    let sent = gone.received().len();
    post.deliver().await;
    assert_eq!(gone.received().len(), sent);
    assert_eq!(statuses(&deliveries(server, id).await), [("pending", 2)]);

    gone.react(Reaction::Status(200));
    let revived =
        server.patch(&format!("/v1/webhook_endpoints/{id}"), json!({ "enabled": true })).send().await.expect(200);
    let revived = &revived["webhook_endpoint"];
    assert_eq!((&revived["enabled"], &revived["consecutive_failures"]), (&json!(true), &json!(0)));
    post.deliver().await;
    assert_eq!(statuses(&deliveries(server, id).await), [("succeeded", 3)]);

    // What it missed can be had.
    let recover = format!("/v1/webhook_endpoints/{id}/recover");
    server.post(&recover, json!({ "since": "2026-11-21T12:00:00Z" })).send().await.expect(202);
    post.deliver().await;
    let mut found = statuses(&deliveries(server, id).await)
        .into_iter()
        .map(|(status, n)| (status.to_owned(), n))
        .collect::<Vec<_>>();
    found.sort();
    let done = |attempts| ("succeeded".to_owned(), attempts);
    assert_eq!(
        found,
        [done(1), done(1), done(3)],
        "the key that was missed, the endpoint's own end, and what came before"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn five_at_once_and_no_more() {
    let (post, _clock) = Post::start().await;
    let server = &post.server;
    let receiver = Receiver::start().await;
    receiver.react(Reaction::Together(5));
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    for _ in 0..30 {
        server.key(&["read"]).await;
    }
    post.fan_out().await;
    post.work().await;
    // Others who are woken for the same endpoint find that it is served.
    for _ in 0..4 {
        post.work().await;
    }
    post.settled().await;
    assert_eq!(receiver.received().len(), 30);
    assert_eq!(receiver.at_once(), 5);
    let listed = deliveries(server, id).await;
    assert!(statuses(&listed).iter().all(|found| *found == ("succeeded", 1)));
    let id = |delivery: &Value| Id::new(delivery["id"].as_u64().unwrap()).unwrap();
    assert!(listed.is_sorted_by_key(|delivery| std::cmp::Reverse(id(delivery))), "newest first");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_five_failures_in_a_row_over_a_day_disable_and_what_waits_is_kept() {
    let (post, clock) = Post::start().await;
    let server = &post.server;
    let (dead, other) = (Receiver::start().await, Receiver::start().await);
    dead.react(Reaction::Status(503));
    let (id, _) = endpoint(server, &dead.url, &["release.created"]).await;
    endpoint(server, &other.url, &["webhook_endpoint.disabled"]).await;
    announce(server, 3).await;
    let began = clock_now(server);
    loop {
        post.deliver().await;
        let endpoint = at(server, id).await;
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
    post.deliver().await;
    assert_eq!(other.told(), ["webhook_endpoint.disabled"]);
    assert_eq!(deliveries(server, id).await.iter().filter(|kept| kept["status"] == "pending").count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_down_is_left_alone_after_ten_failures_in_a_row() {
    let (post, clock) = Post::start().await;
    let server = &post.server;
    let dead = Receiver::start().await;
    dead.react(Reaction::Status(500));
    let (id, _) = endpoint(server, &dead.url, &["*"]).await;
    announce(server, 60).await;
    post.deliver().await;
    let first = dead.received().len();
    // What was under way ends.
    assert!((10..=14).contains(&first), "{first}");
    // Also where something joins.
    announce(server, 1).await;
    post.work().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(dead.received().len(), first);
    dead.react(Reaction::Status(200));
    clock.advance(Duration::from_secs(31));
    post.deliver().await;
    let listed = deliveries(server, id).await;
    assert!(listed.iter().all(|delivery| delivery["status"] == "succeeded"), "{listed:#?}");
    assert_eq!(dead.received().len(), 61 + first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_holds_up_nobody_else() {
    let (post, _clock) = Post::start().await;
    let server = &post.server;
    let (hangs, quick) = (Receiver::start().await, Receiver::start().await);
    hangs.react(Reaction::Held);
    let (_, globex) = server.another_organization("globex").await;
    endpoint(server, &hangs.url, &["*"]).await;
    let (beside, _) = endpoint(server, &quick.url, &["*"]).await;
    let elsewhere = json!({ "url": quick.url, "event_types": ["*"] });
    server.post("/v1/webhook_endpoints", elsewhere).bearer(&globex).send().await.expect(201);
    announce(server, 60).await;
    server.post("/v1/api_keys", json!({ "name": "k", "scopes": ["read"] })).bearer(&globex).send().await.expect(201);
    post.work().await;
    quick.wait_for(61).await;
    assert_eq!(hangs.received().len(), 5, "these wait still");
    assert_eq!(deliveries(server, beside).await.len(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_down_is_sent_again() {
    const SDK_ATTEMPTS: usize = 5;
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_as(on_loopback(Arc::clone(&clock) as Arc<dyn Clock>)).await;
    let post = Post::new(server, Duration::ZERO);
    let server = &post.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    announce(server, 1).await;
    post.work().await;
    post.settled().await;
    assert_eq!(receiver.received().len(), 1);
    // The fan-out goes through; the result's transaction does not, however often it is tried.
    announce(server, 1).await;
    proxy.forget();
    proxy.fail_after("TransactWriteItems", 1, SDK_ATTEMPTS, Fault::Throttle);
    post.work().await;
    receiver.wait_for(2).await;
    until("the last attempt", async || proxy.seen_of("TransactWriteItems").len() == 1 + SDK_ATTEMPTS).await;
    clock.advance(Duration::from_mins(2));
    post.deliver().await;
    let sent = receiver.received();
    assert_eq!(sent.len(), 3, "at least once");
    assert_eq!(sent[1].header("webhook-id"), sent[2].header("webhook-id"));
    assert_eq!(statuses(&deliveries(server, id).await), [("succeeded", 1), ("succeeded", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_crosses_a_lease_costs_a_repeat_and_no_more() {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_as(on_loopback(Arc::clone(&clock) as Arc<dyn Clock>)).await;
    let post = Post::new(server, Duration::ZERO);
    let receiver = Receiver::start().await;
    endpoint(&post.server, &receiver.url, &["*"]).await;
    announce(&post.server, 1).await;
    proxy.fail("UpdateItem", 2, Fault::Exception("TransactionConflictException"));
    post.deliver().await;
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_move_to_the_rings_new_key_and_the_old_one_may_leave() {
    let (post, _clock) = Post::start().await;
    let server = &post.server;
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

    let new_alone = |ring: &mut Value| {
        both(ring);
        ring.as_object_mut().unwrap().remove("k1");
    };
    let app = server.app_with_ring(Ring::SealingWebhooks, new_alone);
    announce(server, 1).await;
    post.fan_out().await;
    let organization_id = Id::new(server.organization_id).unwrap();
    let wake = Wake::Endpoint { organization_id, webhook_endpoint_id: Id::new(id).unwrap() };
    WebhookDeliveries::new(app.for_function(WebhookDeliveries::NAME), Vec::new()).work(&wake).await.unwrap();
    receiver.wait_for(1).await;
    let sent = &receiver.received()[0];
    let secret = WebhookSecret::parse(&secret).unwrap();
    let signed = Signatures::sign(&[&secret], sent.header("webhook-id"), clock_now(server), sent.body.as_bytes());
    assert_eq!(sent.header("karta-signature"), signed.karta_signature);

    // Under a ring that lost its key too soon nothing is served, and that is told of.
    let lost = |ring: &mut Value| {
        new_alone(ring);
        ring["k3"] = json!("m".repeat(64));
        ring["current"] = json!("k3");
        ring.as_object_mut().unwrap().remove("k2");
    };
    let lost = server.app_with_ring(Ring::SealingWebhooks, lost).for_function(WebhookDeliveries::NAME);
    let lost = WebhookDeliveries::new(lost, Vec::new());
    let told = lost.work(&Wake::Sweep).await.unwrap_err().to_string();
    assert!(told.starts_with("1 items are not sealed under the current key, 1 of them"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_fan_out_the_same_events_at_once_do_it_once_and_without_a_fault() {
    let (post, _clock) = Post::start().await;
    let server = &post.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    announce(server, 120).await;
    let app = &server.runner.app;
    let worker = || WebhookEvents::new(app.for_function(WebhookEvents::NAME), Waker::Local(Arc::new(|_, _| ())));
    let (first, second, third) = (worker(), worker(), worker());
    let sweep = Wake::Sweep;
    let (first, second, third) = tokio::join!(first.work(&sweep), second.work(&sweep), third.work(&sweep));
    first.and(second).and(third).unwrap();
    post.deliver().await;
    assert_eq!(receiver.received().len(), 120);
    assert_eq!(deliveries(server, id).await.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_holds_for_whatever_is_sent_after_it() {
    let (post, _clock) = Post::start().await;
    let server = &post.server;
    let (old, new) = (Receiver::start().await, Receiver::start().await);
    let (id, _) = endpoint(server, &old.url, &["*"]).await;
    old.react(Reaction::Held);
    announce(server, 30).await;
    post.work().await;
    old.wait_for(5).await;
    // What was under way ends there, and says nothing of the new one.
    old.react(Reaction::Status(410));
    server.patch(&format!("/v1/webhook_endpoints/{id}"), json!({ "url": new.url })).send().await.expect(200);
    old.release();
    post.settled().await;
    assert!(old.received().len() <= 10, "{}", old.received().len());
    assert!(new.received().len() >= 20, "{}", new.received().len());
    assert_eq!(at(server, id).await["enabled"], true);
    let listed = deliveries(server, id).await;
    assert!(listed.iter().all(|delivery| delivery["status"] != "failed"), "{listed:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_waits_for_what_is_not_fanned_out_yet() {
    let (post, clock) = Post::start().await;
    let server = &post.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["ping"]).await;
    announce(server, 2).await;
    let recover = format!("/v1/webhook_endpoints/{id}/recover");
    let asked = json!({ "event_types": ["release.created"] });
    clock.advance(Duration::from_secs(1));
    server.post(&recover, json!({ "since": "2026-11-21T12:00:00Z" })).send().await.expect(202);
    // The walk meets events that are not fanned out, and somebody else fans them out as the endpoint was before.
    let organization = Id::new(server.organization_id).unwrap();
    let app = &server.runner.app;
    let before = app.store.all_webhook_endpoints(organization).await.unwrap();
    server.patch(&format!("/v1/webhook_endpoints/{id}"), asked).send().await.expect(200);
    let due = app.store.due(Queue::Recoveries, clock_now(server)).await.unwrap().items.remove(0);
    let wish = app.store.recovery(organization, &due.sk).await.unwrap().unwrap();
    let now_is = app.store.webhook_endpoint(organization, Id::new(id).unwrap()).await.unwrap().unwrap();
    assert_eq!(app.store.recover(&wish, &now_is, clock_now(server)).await.unwrap(), Recovered::Waits);
    let waiting = app.store.due(Queue::Events, clock_now(server)).await.unwrap().items;
    let (untold, _) = app.store.pending_events(&waiting).await.unwrap();
    let mut touched = [].into();
    app.store.fan_out(organization, untold, &before, clock_now(server), &mut touched).await.unwrap();
    assert!(touched.is_empty());
    post.deliver().await;
    post.deliver().await;
    assert_eq!(receiver.received().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_read_is_put_off_and_holds_up_no_other() {
    let (post, _clock) = Post::start().await;
    let server = &post.server;
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
    announce(server, 3).await;
    post.work().await;
    post.settled().await;
    assert_eq!(receiver.received().len(), 3);
    let waiting: Vec<_> = server
        .outbox("EVT")
        .await
        .into_iter()
        .filter_map(|event| event["due_at"].as_str().map(ToOwned::to_owned))
        .collect();
    assert_eq!(waiting, ["2026-11-21T12:01:00.000Z"], "the one that cannot be read, later");
}

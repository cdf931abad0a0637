//! Requests for deliveries: tests, replays and recoveries. Also the list of deliveries.

use std::{collections::BTreeSet, time::Duration};

use http::Method;
use serde_json::{Value, json};

use super::{ROUTE, Reaction, Receiver, URL, WebhookServer, deliveries, endpoint, publish_events};
use crate::harness::{Reply, TestServer};

async fn post(server: &TestServer, endpoint: u64, rest: &str) -> Reply {
    server.request(Method::POST, &format!("{ROUTE}/{endpoint}/{rest}")).send().await
}

async fn recover(server: &TestServer, endpoint: u64, since: &str) -> Reply {
    server.post(&format!("{ROUTE}/{endpoint}/recover"), json!({ "since": since })).send().await
}

async fn list(server: &TestServer, endpoint: u64, query: &str) -> Reply {
    server.get(&format!("{ROUTE}/{endpoint}/deliveries?{query}")).send().await
}

#[tokio::test(flavor = "multi_thread")]
async fn test_request_pings_only_its_endpoint() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let (tested, other) = (Receiver::start().await, Receiver::start().await);
    let (id, _) = endpoint(server, &tested.url, &["invoice.paid"]).await;
    endpoint(server, &other.url, &["*"]).await;
    let answer = post(server, id, "test").await.expect(202);
    let delivery = answer["delivery"].clone();
    assert_eq!(
        answer,
        json!({ "delivery": {
        "id": delivery["id"], "event_id": format!("evt_{}", delivery["id"]), "event_type": "ping", "status": "pending",
        "attempts": [], "next_attempt_at": "2026-11-21T12:00:00.000Z",
    } })
    );
    webhooks.deliver().await;
    assert_eq!((tested.received_types(), other.received_types()), (vec!["ping".to_owned()], Vec::new()));
    let received = tested.received().remove(0);
    assert_eq!(received.header("webhook-id"), delivery["event_id"]);
    let mut endpoint = server.get(&format!("{ROUTE}/{id}")).send().await.expect(200);
    endpoint["webhook_endpoint"]["url"] = json!(tested.url.replace("team=7", "redacted"));
    assert_eq!(received.json()["data"], endpoint);
    let shown = deliveries(server, id).await;
    assert_eq!((&shown[0]["id"], &shown[0]["status"]), (&delivery["id"], &json!("succeeded")));
    for _ in 0..2 {
        server.post(&format!("{ROUTE}/{id}/test"), json!({})).send().await.expect(202);
    }
    webhooks.deliver().await;
    let ids: BTreeSet<_> = tested.received().iter().map(|received| received.header("webhook-id").to_owned()).collect();
    assert_eq!(ids.len(), 3, "each test is a separate event");
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_without_fields_accept_only_empty_bodies() {
    let server = TestServer::start().await;
    let (id, _) = endpoint(&server, URL, &["*"]).await;
    for rest in ["test", "deliveries/1/replay"] {
        let path = format!("{ROUTE}/{id}/{rest}");
        let send = |body: &'static str| server.request(Method::POST, &path).raw_body(body).send();
        assert_eq!(send("{").await.refused(400)["error"], "malformed_json");
        assert_eq!(send("[]").await.invalid_field(), "body");
        assert_eq!(send(r#"{"type":"ping"}"#).await.invalid_field(), "type");
        for body in ["", "{}"] {
            let reply = send(body).await;
            assert_eq!(reply.status.as_u16(), if rest == "test" { 202 } else { 404 }, "{}", reply.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disabled_endpoint_refuses_test_replay_and_recovery() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    let delivery = post(server, id, "test").await.expect(202)["delivery"]["id"].clone();
    webhooks.deliver().await;
    server.patch(&format!("{ROUTE}/{id}"), json!({ "enabled": false })).send().await.expect(200);
    clock.advance(Duration::from_secs(1));
    for reply in [
        post(server, id, "test").await,
        post(server, id, &format!("deliveries/{delivery}/replay")).await,
        recover(server, id, "2026-11-21T12:00:00Z").await,
    ] {
        let refusal = reply.refused(409);
        assert_eq!((&refusal["error"], &refusal["id"]), (&json!("webhook_endpoint_disabled"), &json!(id)));
        assert!(refusal["message"].as_str().unwrap().ends_with("Set enabled to true first."), "{refusal}");
    }
    // A missing delivery returns 404 first.
    post(server, id, "deliveries/1/replay").await.refused(404);
    let sent = receiver.received().len();
    webhooks.deliver().await;
    assert_eq!(receiver.received().len(), sent);
    assert_eq!(deliveries(server, id).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_sends_same_event_and_keeps_attempts() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    server.key(&["read"]).await;
    webhooks.deliver().await;
    let before = deliveries(server, id).await.remove(0);
    clock.advance(Duration::from_hours(24));
    let replay = format!("deliveries/{}/replay", before["id"]);
    let answer = post(server, id, &replay).await.expect(202);
    let mut expected = before.clone();
    expected["status"] = json!("pending");
    expected["next_attempt_at"] = json!("2026-11-22T12:00:00.000Z");
    assert_eq!(answer, json!({ "delivery": expected }));
    assert_eq!(deliveries(server, id).await, [expected]);
    // A second replay before the attempt causes no second attempt.
    post(server, id, &replay).await.expect(202);
    webhooks.deliver().await;
    let posts = receiver.received();
    assert_eq!(posts.len(), 2);
    assert_eq!(posts[0].body, posts[1].body);
    assert_eq!(posts[0].header("webhook-id"), posts[1].header("webhook-id"));
    assert_eq!(posts[1].header("webhook-timestamp"), "1795348800", "signed again");
    let after = deliveries(server, id).await.remove(0);
    assert_eq!((&after["status"], after["attempts"].as_array().unwrap().len()), (&json!("succeeded"), 2));
    assert_eq!(after["attempts"][0], before["attempts"][0]);

    // A replay starts a new round of attempts. A delivery that waits for a retry is sent
    // immediately.
    receiver.react(Reaction::Status(500));
    post(server, id, &replay).await.expect(202);
    webhooks.deliver().await;
    assert_eq!(deliveries(server, id).await[0]["status"], "pending");
    receiver.react(Reaction::Status(200));
    post(server, id, &replay).await.expect(202);
    webhooks.deliver().await;
    assert_eq!(deliveries(server, id).await[0]["status"], "succeeded");
    assert_eq!(receiver.received().len(), 4);
    assert_eq!(server.outbox("WHQ").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_deliveries_are_neither_listed_nor_replayed() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    server.key(&["read"]).await;
    webhooks.deliver().await;
    let delivery = deliveries(server, id).await.remove(0);
    let replay = format!("deliveries/{}/replay", delivery["id"]);
    clock.advance(Duration::from_hours(30 * 24) - Duration::from_millis(1));
    assert_eq!(deliveries(server, id).await.len(), 1);
    post(server, id, &replay).await.expect(202);
    clock.advance(Duration::from_millis(1));
    assert_eq!(list(server, id, "").await.expect(200), json!({ "deliveries": [], "next_cursor": null }));
    post(server, id, &replay).await.refused(404);
    // The replay from the last moment is not sent either.
    webhooks.deliver().await;
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_sends_only_missed_events() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    let path = format!("{ROUTE}/{id}");
    let tick = || clock.advance(Duration::from_secs(1));
    let key = async || server.key(&["read"]).await.0;
    let before = key().await;
    tick();
    let delivered = key().await;
    webhooks.deliver().await;
    tick();
    server.patch(&path, json!({ "enabled": false })).send().await.expect(200);
    let mut missed = vec![key().await];
    tick();
    missed.push(key().await);
    // The endpoint is not subscribed to this type.
    server.delete(&format!("/v1/api_keys/{before}")).send().await.expect(200);
    webhooks.deliver().await;
    server.patch(&path, json!({ "enabled": true })).send().await.expect(200);
    webhooks.deliver().await;
    assert_eq!(receiver.received().len(), 2, "missed events are not sent automatically");
    tick();
    let answer = recover(server, id, "2026-11-21T14:00:01+02:00").await.expect(202);
    assert_eq!(
        answer,
        json!({ "recovery": {
            "webhook_endpoint_id": id, "since": "2026-11-21T12:00:01.000Z", "until": "2026-11-21T12:00:04.000Z",
        } })
    );
    let refusal = recover(server, id, "2026-11-21T12:00:00Z").await.refused(409);
    assert_eq!(refusal["error"], "recovery_under_way");
    assert!(refusal["message"].as_str().unwrap().contains("Try again when it finishes"), "{refusal}");
    webhooks.deliver().await;
    let key_ids = |from: usize| -> BTreeSet<u64> {
        let posts = receiver.received().split_off(from);
        posts.iter().map(|received| received.json()["data"]["api_key"]["id"].as_u64().unwrap()).collect()
    };
    assert_eq!(key_ids(2), missed.into_iter().collect());
    assert!(key_ids(0).contains(&delivered) && receiver.received().len() == 4);
    assert!(server.outbox("WHR").await.is_empty());
    recover(server, id, "2026-11-21T12:00:00Z").await.expect(202);
    webhooks.deliver().await;
    assert_eq!(receiver.received().len(), 4, "all events were delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_skips_an_unreadable_delivery() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    receiver.react(Reaction::Status(500));
    publish_events(server, 3).await;
    webhooks.deliver().await;
    clock.advance(Duration::from_secs(1));
    let mut broken = server.items_of("karta-outbox", &format!("DLV#{}#{id}", server.organization_id)).await.remove(1);
    broken["status"] = json!({ "S": "of another version" });
    server.dynamodb("PutItem", json!({ "TableName": "karta-outbox", "Item": broken })).await;
    receiver.react(Reaction::Status(200));
    recover(server, id, "2026-11-21T11:59:00Z").await.expect(202);
    webhooks.deliver().await;
    assert!(server.outbox("WHR").await.is_empty(), "the recovery ends");
    let succeeded = server.items_of("karta-outbox", &format!("DLV#{}#{id}", server.organization_id)).await;
    assert_eq!(succeeded.iter().filter(|item| item["status"]["S"] == "succeeded").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_reads_many_pages_and_ends_with_endpoint() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    for _ in 0..70 {
        server.key(&["read"]).await;
    }
    webhooks.deliver().await;
    clock.advance(Duration::from_secs(1));
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    let (other, _) = endpoint(server, &receiver.url, &["*"]).await;
    for id in [id, other] {
        recover(server, id, "2026-11-21T12:00:00Z").await.expect(202);
    }
    assert_eq!(server.delete(&format!("{ROUTE}/{other}")).send().await.status.as_u16(), 204);
    assert_eq!(server.outbox("WHR").await.len(), 1, "deletion removes the recovery");
    webhooks.deliver().await;
    let ids: BTreeSet<_> =
        receiver.received().iter().map(|received| received.header("webhook-id").to_owned()).collect();
    assert_eq!((ids.len(), receiver.received().len()), (70, 70), "including events from before the endpoint");
    assert!(server.outbox("WHR").await.is_empty());
    let shown = deliveries(server, id).await;
    assert_eq!(shown.len(), 70);

    // A recovery of an endpoint that is then disabled sends nothing and ends.
    clock.advance(Duration::from_secs(1));
    recover(server, id, "2026-11-21T12:00:00Z").await.expect(202);
    server.patch(&format!("{ROUTE}/{id}"), json!({ "enabled": false })).send().await.expect(200);
    webhooks.deliver().await;
    assert!(server.outbox("WHR").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_recovery_time_is_named() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (id, _) = endpoint(&server, URL, &["*"]).await;
    let not_past = "since must be in the past";
    for (since, message) in [
        (json!("2026-11-21T12:00:00Z"), not_past),
        (json!("2026-11-21T12:00:01Z"), not_past),
        (json!("yesterday"), "RFC 3339"),
        (json!(1_795_262_400), "must be a string"),
        (Value::Null, "must be a string"),
    ] {
        let refusal =
            server.post(&format!("{ROUTE}/{id}/recover"), json!({ "since": since })).send().await.refused(422);
        assert_eq!(refusal["field"], "since", "{refusal}");
        assert!(refusal["message"].as_str().unwrap().contains(message), "{since}: {refusal}");
    }
    let path = format!("{ROUTE}/{id}/recover");
    assert_eq!(server.post(&path, json!({})).send().await.invalid_field(), "since");
    server.request(Method::POST, &path).send().await.refused(400);
    let both = json!({ "since": "2026-11-21T11:00:00Z", "until": "2026-11-21T12:00:00Z" });
    assert_eq!(server.post(&path, both).send().await.invalid_field(), "until");
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_starts_at_the_retention_limit() {
    let (server, _clock) = TestServer::start_at_noon().await;
    for (since, from) in [
        ("2026-10-22T12:00:00.001Z", "2026-10-22T12:00:00.001Z"),
        ("2026-10-22T12:00:00Z", "2026-10-22T12:00:00.000Z"),
        ("2026-10-22T11:59:59.999Z", "2026-10-22T12:00:00.000Z"),
        ("2000-01-01T00:00:00Z", "2026-10-22T12:00:00.000Z"),
    ] {
        let (id, _) = endpoint(&server, URL, &["*"]).await;
        assert_eq!(recover(&server, id, since).await.expect(202)["recovery"]["since"], from, "{since}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_paged_and_filtered_by_status() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    assert_eq!(list(server, id, "").await.expect(200), json!({ "deliveries": [], "next_cursor": null }));
    for at in 0..7 {
        clock.advance(Duration::from_millis(1));
        receiver.react(Reaction::Status(if at % 2 == 0 { 500 } else { 204 }));
        server.key(&["read"]).await;
        webhooks.deliver().await;
    }
    let newest_first = deliveries(server, id).await;
    let ids =
        |deliveries: &[Value]| deliveries.iter().map(|delivery| delivery["id"].as_u64().unwrap()).collect::<Vec<_>>();
    assert!(ids(&newest_first).is_sorted_by(|one, next| one > next));
    for (status, count) in [("pending", 4), ("succeeded", 3), ("failed", 0), ("succeeded,pending", 7)] {
        let (mut visited, mut query) = (Vec::new(), format!("status={status}&limit=2"));
        loop {
            let page = list(server, id, &query).await.expect(200);
            let page_of = page["deliveries"].as_array().unwrap();
            assert!(page_of.len() <= 2);
            visited.extend(page_of.clone());
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            query = format!("status={status}&limit=2&cursor={cursor}");
        }
        assert_eq!(visited.len(), count, "{status}");
        assert!(visited.iter().all(|delivery| status.contains(delivery["status"].as_str().unwrap())));
        assert!(ids(&visited).is_sorted_by(|one, next| one > next));
    }
    let page = list(server, id, "status=pending&limit=1").await.expect(200);
    let cursor = page["next_cursor"].as_str().unwrap();
    for (query, field) in [
        ("status=sent".to_owned(), "status"),
        ("status=".to_owned(), "status"),
        ("status=pending,".to_owned(), "status"),
        ("status=Pending".to_owned(), "status"),
        ("state=pending".to_owned(), "state"),
        (format!("status=failed&cursor={cursor}"), "cursor"),
        (format!("cursor={cursor}"), "cursor"),
    ] {
        assert_eq!(list(server, id, &query).await.invalid_field(), field, "{query}");
    }
    let refusal = list(server, id, "status=sent").await.refused(422);
    assert_eq!(refusal["message"], "status must be one of pending, succeeded, failed");
    let (other, _) = endpoint(server, &receiver.url, &["*"]).await;
    let elsewhere = list(server, other, &format!("status=pending&cursor={cursor}")).await;
    assert_eq!(elsewhere.invalid_field(), "cursor", "a cursor of another endpoint");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_admins_see_response_bodies() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    receiver.react(Reaction::WithBody(503, "busy: 7 in line"));
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    server.key(&["read"]).await;
    webhooks.deliver().await;
    let mut shown = list(server, id, "").await.expect(200);
    let attempt = &mut shown["deliveries"][0]["attempts"][0];
    assert!(attempt["latency_ms"].take().is_u64());
    let expected = json!({
        "at": "2026-11-21T12:00:00.000Z", "response_code": 503, "latency_ms": null, "response_body": "busy: 7 in line",
        "error": "receiver returned 503",
    });
    assert_eq!(*attempt, expected);
    for scopes in [&["read"][..], &["read", "write"]] {
        let token = server.key(scopes).await.1;
        let shown = server.get(&format!("{ROUTE}/{id}/deliveries")).bearer(&token).send().await;
        assert!(!shown.text.contains("busy"), "{}", shown.text);
        let attempt = shown.expect(200)["deliveries"][0]["attempts"][0].take();
        assert_eq!((&attempt["response_code"], &attempt["response_body"]), (&json!(503), &Value::Null));
    }
    // A key with only `admin` cannot list deliveries, but a replay shows it the body.
    let (only_admin, delivery) = (server.key(&["admin"]).await.1, &shown["deliveries"][0]["id"]);
    let unread = server.get(&format!("{ROUTE}/{id}/deliveries")).bearer(&only_admin).send().await;
    assert_eq!(unread.forbidden(), "missing scope: read");
    clock.advance(Duration::from_secs(1));
    let replay = server.request(Method::POST, &format!("{ROUTE}/{id}/deliveries/{delivery}/replay"));
    let replayed = replay.bearer(&only_admin).send().await.expect(202);
    assert_eq!(replayed["delivery"]["attempts"][0]["response_body"], "busy: 7 in line");
}

//! A store that throttles, cancels or loses answers under the routes: what was answered is there, and nothing is half there.

use std::sync::Arc;

use http::Method;
use karta_shared::clock::SystemClock;
use serde_json::{Value, json};

use super::{Post, ROUTE, Receiver, URL, counted, deliveries, endpoint, on_loopback};
use crate::{
    fault_proxy::{ALWAYS, Fault, FaultProxy},
    harness::{Reply, Request, TestServer},
    invariants::Tables,
};

const CROSSED: Fault = Fault::Cancel { code: "TransactionConflict", at: 0 };

fn create(server: &TestServer) -> Request {
    server.post(ROUTE, json!({ "url": URL, "event_types": ["*"] }))
}

fn unavailable(reply: Reply) {
    assert_eq!(reply.headers["retry-after"], "1", "{}", reply.text);
    assert_eq!(reply.refused(503), json!({ "detail": "Service unavailable" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_met_a_fault_is_made_once_and_shown_by_its_repeat() {
    for fault in [Fault::Throttle, Fault::DropAnswer, CROSSED] {
        let (server, proxy) = FaultProxy::start().await;
        // Once is not noticed.
        proxy.fail("TransactWriteItems", 1, fault);
        create(&server).send().await.expect(201);
        assert_eq!(counted(&server).await, (1, 1), "{fault:?}");
        proxy.fail("TransactWriteItems", ALWAYS, fault);
        unavailable(create(&server).idempotency_key("once").send().await);
        proxy.heal();
        let (first, second) = (
            create(&server).idempotency_key("once").send().await,
            create(&server).idempotency_key("once").send().await,
        );
        assert_eq!(first.text, second.text, "{fault:?}");
        first.expect(201);
        assert_eq!(counted(&server).await, (2, 2), "{fault:?}");
        Tables::new(&server).await.assert_consistent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drawn_id_that_is_taken_is_drawn_again_with_another_secret() {
    let (server, proxy) = FaultProxy::start().await;
    server.get("/v1/whoami").send().await.expect(200);
    proxy.forget();
    // The first write is the caller's own check.
    proxy.fail("TransactWriteItems", 2, Fault::Cancel { code: "ConditionalCheckFailed", at: 1 });
    let made = create(&server).send().await.expect(201);
    let sent = proxy.seen_of("TransactWriteItems");
    let drawn: Vec<_> = sent.iter().map(|sent| sent.partitions()[1].clone()).collect();
    assert_eq!(drawn.len(), 3);
    assert_eq!(drawn[2], format!("ID#webhook_endpoint#{}", made["webhook_endpoint"]["id"]));
    assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[0] != drawn[2]);
    assert_eq!(counted(&server).await, (1, 1));
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_met_a_fault_is_done_once() {
    for fault in [Fault::Throttle, Fault::DropAnswer, CROSSED, Fault::Cancel { code: "ConditionalCheckFailed", at: 1 }]
    {
        let (server, proxy) = FaultProxy::start().await;
        let (id, _) = endpoint(&server, URL, &["*"]).await;
        let rotate = || server.request(Method::POST, &format!("{ROUTE}/{id}/rotate_secret"));
        proxy.fail("TransactWriteItems", 1, fault);
        rotate().send().await.expect(201);
        proxy.fail("TransactWriteItems", ALWAYS, fault);
        unavailable(rotate().idempotency_key("once").send().await);
        proxy.heal();
        let (first, second) =
            (rotate().idempotency_key("once").send().await, rotate().idempotency_key("once").send().await);
        assert_eq!(first.text, second.text, "{fault:?}");
        first.expect(201);
        assert_eq!(server.audited("webhook_endpoint.secret_rotated").await.len(), 2, "{fault:?}");
        Tables::new(&server).await.assert_consistent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_met_a_fault_is_done_once() {
    for fault in [Fault::Throttle, CROSSED] {
        let (server, proxy) = FaultProxy::start().await;
        let (id, _) = endpoint(&server, URL, &["*"]).await;
        let delete = || server.delete(&format!("{ROUTE}/{id}")).send();
        proxy.fail("TransactWriteItems", ALWAYS, fault);
        unavailable(delete().await);
        proxy.heal();
        assert_eq!(counted(&server).await, (1, 1), "{fault:?}");
        proxy.fail("TransactWriteItems", 1, fault);
        assert_eq!(delete().await.status.as_u16(), 204, "{fault:?}");
        assert_eq!(counted(&server).await, (0, 0), "{fault:?}");
        Tables::new(&server).await.assert_consistent();
    }
    let (server, proxy) = FaultProxy::start().await;
    for (drops, first, repeat) in [(1, 204, 404), (ALWAYS, 503, 404)] {
        let (id, _) = endpoint(&server, URL, &["*"]).await;
        proxy.fail("TransactWriteItems", drops, Fault::DropAnswer);
        let reply = server.delete(&format!("{ROUTE}/{id}")).send().await;
        proxy.heal();
        assert_eq!(reply.status.as_u16(), first, "{}", reply.text);
        assert_eq!(server.delete(&format!("{ROUTE}/{id}")).send().await.status.as_u16(), repeat);
        assert_eq!(counted(&server).await, (0, 0));
        Tables::new(&server).await.assert_consistent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_met_a_fault_is_sent_or_not_and_never_half() {
    let (server, proxy) = FaultProxy::start_as(on_loopback(Arc::new(SystemClock))).await;
    let post = Post::new(server, std::time::Duration::ZERO);
    let server = &post.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    server.key(&["read"]).await;
    post.deliver().await;
    let delivery = deliveries(server, id).await.remove(0);
    let send_again =
        || server.request(Method::POST, &format!("{ROUTE}/{id}/deliveries/{}/replay", delivery["id"])).send();
    let changed = Fault::Cancel { code: "ConditionalCheckFailed", at: 1 };
    let mut sent = 1;
    for fault in [Fault::Throttle, CROSSED, changed, Fault::DropAnswer] {
        for (count, answered) in [(1, 202), (ALWAYS, 503)] {
            proxy.fail("TransactWriteItems", count, fault);
            let reply = send_again().await;
            proxy.heal();
            assert_eq!(reply.status.as_u16(), answered, "{fault:?}: {}", reply.text);
            post.deliver().await;
            // What was done though nobody heard of it is sent, too.
            sent += usize::from(answered == 202 || matches!(fault, Fault::DropAnswer));
            assert_eq!(receiver.received().len(), sent, "{fault:?}, {count} times");
            let kept = deliveries(server, id).await.remove(0);
            assert_eq!((&kept["status"], &kept["next_attempt_at"]), (&json!("succeeded"), &Value::Null), "{fault:?}");
            let waiting = format!("DLP#{}#{id}", server.organization_id);
            assert!(server.items_of("karta-outbox", &waiting).await.is_empty(), "{fault:?}");
        }
    }
    assert_eq!(server.audited("webhook_delivery.replayed").await.len(), sent - 1, "each that was done is told once");
}

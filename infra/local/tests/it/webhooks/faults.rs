//! Webhook routes with a store that throttles, cancels or loses responses. Acknowledged changes are
//! stored, and no change is partial.

use std::sync::Arc;

use http::Method;
use karta_shared::clock::SystemClock;
use serde_json::{Value, json};

use super::{ROUTE, Receiver, URL, WebhookServer, counted, deliveries, endpoint, on_loopback};
use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::{Reply, Request, TestServer},
    invariants::Tables,
};

const CONFLICT: StoreFault = StoreFault::Cancel { code: "TransactionConflict", at: 0 };

fn create(server: &TestServer) -> Request {
    server.post(ROUTE, json!({ "url": URL, "event_types": ["*"] }))
}

fn unavailable(reply: Reply) {
    assert_eq!(reply.headers["retry-after"], "1", "{}", reply.text);
    assert_eq!(reply.refused(503), json!({ "detail": "Service unavailable" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_with_a_fault_happens_once() {
    for fault in [StoreFault::Throttle, StoreFault::DropResponse, CONFLICT] {
        let (server, proxy) = FaultProxy::start().await;
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
async fn taken_id_is_replaced_by_a_new_one() {
    let (server, proxy) = FaultProxy::start().await;
    server.get("/v1/whoami").send().await.expect(200);
    proxy.forget();
    // Member 0 is the check of the caller. Member 1 claims the id.
    proxy.fail("TransactWriteItems", 2, StoreFault::Cancel { code: "ConditionalCheckFailed", at: 1 });
    let made = create(&server).send().await.expect(201);
    let sent = proxy.seen_of("TransactWriteItems");
    let claims: Vec<_> = sent.iter().map(|sent| sent.partitions()[1].clone()).collect();
    assert_eq!(claims.len(), 3);
    assert_eq!(claims[2], format!("ID#webhook_endpoint#{}", made["webhook_endpoint"]["id"]));
    assert!(claims[0] != claims[1] && claims[1] != claims[2] && claims[0] != claims[2]);
    assert_eq!(counted(&server).await, (1, 1));
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_with_a_fault_happens_once() {
    for fault in [
        StoreFault::Throttle,
        StoreFault::DropResponse,
        CONFLICT,
        StoreFault::Cancel { code: "ConditionalCheckFailed", at: 1 },
    ] {
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
async fn deletion_with_a_fault_happens_once() {
    for fault in [StoreFault::Throttle, CONFLICT] {
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
        proxy.fail("TransactWriteItems", drops, StoreFault::DropResponse);
        let reply = server.delete(&format!("{ROUTE}/{id}")).send().await;
        proxy.heal();
        assert_eq!(reply.status.as_u16(), first, "{}", reply.text);
        assert_eq!(server.delete(&format!("{ROUTE}/{id}")).send().await.status.as_u16(), repeat);
        assert_eq!(counted(&server).await, (0, 0));
        Tables::new(&server).await.assert_consistent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_with_a_fault_is_never_partial() {
    let (server, proxy) = FaultProxy::start_as(on_loopback(Arc::new(SystemClock))).await;
    let webhooks = WebhookServer::new(server, std::time::Duration::ZERO);
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    server.key(&["read"]).await;
    webhooks.deliver().await;
    let delivery = deliveries(server, id).await.remove(0);
    let send_again =
        || server.request(Method::POST, &format!("{ROUTE}/{id}/deliveries/{}/replay", delivery["id"])).send();
    let changed = StoreFault::Cancel { code: "ConditionalCheckFailed", at: 1 };
    let mut sent = 1;
    for fault in [StoreFault::Throttle, CONFLICT, changed, StoreFault::DropResponse] {
        for (count, answered) in [(1, 202), (ALWAYS, 503)] {
            proxy.fail("TransactWriteItems", count, fault);
            let reply = send_again().await;
            proxy.heal();
            assert_eq!(reply.status.as_u16(), answered, "{fault:?}: {}", reply.text);
            webhooks.deliver().await;
            // A replay that was stored but not acknowledged is sent too.
            sent += usize::from(answered == 202 || matches!(fault, StoreFault::DropResponse));
            assert_eq!(receiver.received().len(), sent, "{fault:?}, {count} times");
            let kept = deliveries(server, id).await.remove(0);
            assert_eq!((&kept["status"], &kept["next_attempt_at"]), (&json!("succeeded"), &Value::Null), "{fault:?}");
            let waiting = format!("DLP#{}#{id}", server.organization_id);
            assert!(server.items_of("karta-outbox", &waiting).await.is_empty(), "{fault:?}");
        }
    }
    assert_eq!(server.audited("webhook_delivery.replayed").await.len(), sent - 1, "each stored replay is audited once");
}

//! Tests with a store that throttles, fails, hangs or loses responses. Clients get a 503 or do not
//! notice, no acknowledged write is lost, and no write is partial.

use std::{collections::BTreeSet, sync::Arc};

use http::Method;
use karta_local::Options;
use karta_shared::{clock::SystemClock, config::Deadlines};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    fault_proxy::{ALWAYS, FaultProxy, REFUSALS, Seen, StoreFault},
    harness::{Reply, Request, TestServer, WAIT_TIMEOUT, options},
    invariants::Tables,
    model_keys::{active, provider_key},
};

const CONFLICT: StoreFault = StoreFault::Cancel { code: "TransactionConflict", at: 0 };

fn new_key(server: &TestServer) -> Request {
    server.post("/v1/api_keys", json!({ "name": "ci", "scopes": ["read"] }))
}

/// Asserts a 503 with `Retry-After`.
fn unavailable(reply: Reply) {
    assert_eq!(reply.headers["retry-after"], "1", "{}", reply.text);
    assert_eq!(reply.refused(503), json!({ "detail": "Service unavailable" }));
}

/// Returns the response. The test fails if none arrives. The deadline of a store call ends before
/// the route's, which would return 504.
async fn in_time(request: Request) -> Reply {
    timeout(WAIT_TIMEOUT, request.send()).await.expect("a response")
}

fn id(created: &Value) -> u64 {
    created["api_key"]["id"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn create_is_retried_under_its_request_token() {
    let (server, proxy) = FaultProxy::start().await;
    proxy.forget();
    proxy.fail("TransactWriteItems", 1, StoreFault::DropResponse);
    let created = new_key(&server).send().await.expect(201);
    let tokens: Vec<_> =
        proxy.seen_of("TransactWriteItems").iter().map(|sent| sent.body["ClientRequestToken"].clone()).collect();
    assert_eq!(tokens.len(), 2);
    assert_eq!(tokens[0], tokens[1]);
    let tables = Tables::new(&server).await;
    tables.assert_consistent();
    assert_eq!(tables.key_ids().len(), 2);
    assert!(tables.key_ids().contains(&id(&created)));
    server.get("/v1/whoami").bearer(created["secret"].as_str().unwrap()).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_recovers_a_lost_create() {
    let (server, proxy) = FaultProxy::start().await;
    server.get("/v1/whoami").send().await.expect(200);
    proxy.fail("TransactWriteItems", ALWAYS, StoreFault::DropResponse);
    unavailable(in_time(new_key(&server).idempotency_key("once")).await);
    proxy.heal();
    let first = new_key(&server).idempotency_key("once").send().await.expect(201);
    let second = new_key(&server).idempotency_key("once").send().await.expect(201);
    assert_eq!(first, second);
    let tables = Tables::new(&server).await;
    tables.assert_consistent();
    assert_eq!(tables.key_ids().len(), 2);
    server.get("/v1/whoami").bearer(first["secret"].as_str().unwrap()).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_with_lost_response_is_audited_once() {
    let (server, proxy) = FaultProxy::start().await;
    for drops in [1, ALWAYS] {
        let (key, _) = server.key(&["admin"]).await;
        let path = format!("/v1/api_keys/{key}");
        proxy.fail("TransactWriteItems", drops, StoreFault::DropResponse);
        let reply = in_time(server.delete(&path)).await;
        proxy.heal();
        if drops == ALWAYS {
            unavailable(reply);
        } else {
            reply.expect(200);
        }
        let repeated = server.delete(&path).send().await.expect(200);
        assert_eq!(repeated["api_key"]["status"], "revoked");
        Tables::new(&server).await.assert_consistent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn store_fault_during_authentication_returns_503() {
    for fault in [StoreFault::Throttle, StoreFault::ServerError, StoreFault::Close].into_iter().chain(REFUSALS) {
        for operation in ["Query", "BatchGetItem"] {
            let (server, proxy) = FaultProxy::start().await;
            proxy.fail(operation, ALWAYS, fault);
            for _ in 0..2 {
                unavailable(in_time(server.get("/v1/whoami")).await);
            }
            proxy.heal();
            in_time(server.get("/v1/whoami")).await.expect(200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_store_returns_503_within_the_deadline() {
    let options = Options { deadlines: Deadlines::DEPLOYED, ..options(Arc::new(SystemClock)) };
    let (server, proxy) = FaultProxy::start_as(options).await;
    let project = server.project("app").await;
    assert!(project > 0);
    for operation in ["GetItem", "TransactWriteItems", "Query", "BatchGetItem"] {
        proxy.fail(operation, ALWAYS, StoreFault::Hang);
    }
    let (unproven, read, listed, written) = tokio::join!(
        in_time(server.get("/v1/whoami").authorization(format!("bearer {}", server.admin))),
        in_time(server.get("/v1/agent_projects/app")),
        in_time(server.get("/v1/api_keys")),
        in_time(new_key(&server)),
    );
    for reply in [unproven, read, listed, written] {
        unavailable(reply);
    }
    proxy.heal();
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_conflicts_are_retried_up_to_a_limit() {
    let (server, proxy) = FaultProxy::start().await;
    server.get("/v1/whoami").send().await.expect(200);
    proxy.fail("TransactWriteItems", 4, CONFLICT);
    new_key(&server).send().await.expect(201);
    proxy.fail("TransactWriteItems", ALWAYS, CONFLICT);
    unavailable(in_time(new_key(&server)).await);
    unavailable(in_time(server.post("/v1/agent_projects", json!({ "slug": "app", "name": "App" }))).await);
    let tables = Tables::new(&server).await;
    tables.assert_consistent();
    assert_eq!(tables.key_ids().len(), 2);
    assert_eq!(tables.under("PRJ#").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_random_id_is_replaced() {
    let (server, proxy) = FaultProxy::start().await;
    server.get("/v1/whoami").send().await.expect(200);
    proxy.forget();
    let taken = StoreFault::Cancel { code: "ConditionalCheckFailed", at: 0 };
    proxy.fail("TransactWriteItems", 3, taken);
    let created = new_key(&server).send().await.expect(201);
    let sent = proxy.seen_of("TransactWriteItems");
    let drawn: Vec<_> = sent.iter().map(|sent| sent.partitions()[0].clone()).collect();
    assert_eq!(drawn.len(), 4);
    assert_eq!(drawn[3], format!("ID#api_key#{}", id(&created)));
    assert!((0..3).all(|at| drawn[at] != drawn[3]));
    let tokens: BTreeSet<_> = sent.iter().map(|sent| sent.body["ClientRequestToken"].to_string()).collect();
    assert_eq!(tokens.len(), 4, "each transaction has its own token");

    proxy.fail("TransactWriteItems", ALWAYS, taken);
    unavailable(in_time(new_key(&server)).await);
    let tables = Tables::new(&server).await;
    tables.assert_consistent();
    assert_eq!(tables.key_ids().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn unprocessed_keys_of_a_batch_are_retried() {
    let (server, proxy) = FaultProxy::start().await;
    proxy.fail("BatchGetItem", 2, StoreFault::LeaveUnread);
    let principal = server.get("/v1/whoami").send().await.expect(200);
    assert_eq!(principal["organization_id"], server.organization_id);
    assert_eq!(proxy.seen_of("BatchGetItem").len(), 3);

    let (_, token) = server.key(&["read"]).await;
    proxy.fail("BatchGetItem", ALWAYS, StoreFault::LeaveUnread);
    unavailable(in_time(server.get("/v1/whoami").bearer(&token)).await);
    proxy.heal();
    server.get("/v1/whoami").bearer(&token).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_transient_faults_are_invisible() {
    for fault in [StoreFault::Throttle, StoreFault::ServerError, StoreFault::Close] {
        let (server, proxy) = FaultProxy::start().await;
        for operation in ["Query", "BatchGetItem", "TransactWriteItems", "GetItem"] {
            proxy.fail(operation, 2, fault);
        }
        let created =
            in_time(server.post("/v1/agent_projects", json!({ "slug": "app", "name": "App" }))).await.expect(201);
        let read = in_time(server.get("/v1/agent_projects/app")).await.expect(200);
        assert_eq!(created, read);
        Tables::new(&server).await.assert_consistent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_faults_and_are_complete() {
    let taken = StoreFault::Cancel { code: "ConditionalCheckFailed", at: 1 };
    for fault in
        [StoreFault::Throttle, StoreFault::ServerError, StoreFault::Close, StoreFault::DropResponse, CONFLICT, taken]
    {
        let (server, proxy) = FaultProxy::start().await;
        let mut acknowledged = Vec::new();
        for count in [1, 2, 3, 5, 7] {
            proxy.fail("TransactWriteItems", count, fault);
            let body = json!({ "name": format!("{fault:?}, {count} times"), "scopes": ["admin"] });
            let created = in_time(server.post("/v1/api_keys", body)).await;
            if created.status.is_success() {
                let path = format!("/v1/api_keys/{}", id(&created.json));
                let changed = in_time(server.patch(&path, json!({ "scopes": ["read"] }))).await;
                let revoked = in_time(server.delete(&path)).await;
                acknowledged.push((id(&created.json), changed.status.is_success(), revoked.status.is_success()));
            } else {
                unavailable(created);
            }
            proxy.heal();
        }
        assert!(acknowledged.len() >= 3, "{fault:?}: up to three faults in a row are retried");
        let tables = Tables::new(&server).await;
        tables.assert_consistent();
        for (key, changed, revoked) in acknowledged {
            let kept = tables.under("KEY#").find(|kept| kept["id"] == key).unwrap();
            assert!(!changed || kept["scopes"] == json!(["read"]), "{kept}");
            assert!(!revoked || !kept["revoked_at"].is_null(), "{kept}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_read_is_consistent() {
    let (server, proxy) = FaultProxy::start().await;
    server.project("app").await;
    let (key, token) = server.key(&["read"]).await;
    server.session_token("app", json!({})).await;
    let path = format!("/v1/api_keys/{key}");
    new_key(&server).idempotency_key("once").send().await.expect(201);
    server.get("/v1/whoami").bearer(&token).send().await.expect(200);
    let body = || json!({ "provider": "openai", "key": provider_key("sk-") });
    server.post("/v1/model_keys", body()).send().await.expect(201);
    let replacing = server.post("/v1/model_keys", body()).send().await.expect(201);
    active(&server, "openai").send().await.expect(200);
    let model_key = format!("/v1/model_keys/{}", replacing["model_key"]["id"]);
    server.delete(&model_key).send().await.expect(200);
    let body = json!({ "url": "https://hooks.example.com/", "event_types": ["*"] });
    let made = server.post("/v1/webhook_endpoints", body).idempotency_key("once").send().await.expect(201);
    let endpoint = format!("/v1/webhook_endpoints/{}", made["webhook_endpoint"]["id"]);
    for rest in ["rotate_secret", "test"] {
        assert!(server.request(Method::POST, &format!("{endpoint}/{rest}")).send().await.status.is_success(), "{rest}");
    }
    let deliveries = format!("{endpoint}/deliveries");
    for path in [
        &*path,
        &endpoint,
        &deliveries,
        "/v1/webhook_endpoints",
        "/v1/model_keys",
        "/v1/api_keys",
        "/v1/agent_projects",
        "/v1/agent_projects/app",
        "/v1/projects/app/whoami",
    ] {
        server.get(path).send().await.expect(200);
    }
    server.patch(&endpoint, json!({ "enabled": false })).send().await.expect(200);
    assert_eq!(server.delete(&endpoint).send().await.status.as_u16(), 204);
    server.patch(&path, json!({ "name": "other" })).send().await.expect(200);
    server.delete(&path).send().await.expect(200);
    let unknown = format!("{}00000000{}", &token[..10], &token[18..]);
    server.get("/v1/whoami").bearer(&unknown).send().await.refused(401);

    let seen = proxy.seen();
    for request in &seen {
        assert!(request.is_consistent(), "{} {}", request.operation, request.body);
    }
    for operation in ["Query", "BatchGetItem", "GetItem", "TransactWriteItems"] {
        assert!(seen.iter().any(|request| request.operation == operation), "{operation} was sent");
    }
    let accesses = seen.iter().flat_map(Seen::accesses).filter(|access| access.table == "karta-credentials");
    for access in accesses {
        assert!(["Query", "PutItem"].contains(&access.action.as_str()), "{access:?}");
        assert!(access.partition.starts_with("KP#kt_live_"), "{access:?}");
    }
}

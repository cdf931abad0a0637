//! Lost responses and cancelled transactions: each request takes effect once or not at all.

use serde_json::{Value, json};

use super::{assert_consistent, deploy, releases, report, rollback, statuses};
use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::TestServer,
};

const WRITE: &str = "TransactWriteItems";

async fn start() -> (TestServer, std::sync::Arc<FaultProxy>) {
    let (server, proxy) = FaultProxy::start().await;
    server.project("site").await;
    deploy(&server, "abcdef0").send().await.expect(201);
    (server, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn request_with_lost_response_happens_once() {
    let (server, proxy) = start().await;
    let first = releases(&server).await.remove(0);
    proxy.fail(WRITE, 1, StoreFault::DropResponse);
    assert_eq!(deploy(&server, "abcdef1").send().await.expect(201)["release"]["version"], 2);
    proxy.fail(WRITE, 1, StoreFault::DropResponse);
    rollback(&server, 1).send().await.expect(200);
    proxy.fail(WRITE, 1, StoreFault::DropResponse);
    let body = json!({ "status": "active", "image_ref": "app:1", "build_log": "one" });
    assert_eq!(report(&server, &first, body).send().await.expect(200)["release"]["build_kind"], "image");
    proxy.fail(WRITE, 1, StoreFault::DropResponse);
    server.patch("/v1/agent_projects/site", json!({ "name": "Shop" })).send().await.expect(200);
    assert_eq!(statuses(&server).await, ["active", "superseded"]);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_finds_deploy_with_lost_response() {
    let (server, proxy) = start().await;
    proxy.fail(WRITE, ALWAYS, StoreFault::DropResponse);
    deploy(&server, "abcdef1").idempotency_key("once").send().await.refused(503);
    proxy.heal();
    let first = deploy(&server, "abcdef1").idempotency_key("once").send().await.expect(201);
    assert_eq!(deploy(&server, "abcdef1").idempotency_key("once").send().await.expect(201), first);
    assert_eq!(first["release"]["version"], 2);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_transaction_is_retried_and_applies_once() {
    let (server, proxy) = start().await;
    let first: Value = releases(&server).await.remove(0);
    // Cancel at each member (the project, the claim of the id, the release), then with a
    // transaction conflict.
    let faults = [0, 1, 2].map(|at| StoreFault::Cancel { code: "ConditionalCheckFailed", at });
    for (round, fault) in
        faults.into_iter().chain([StoreFault::Cancel { code: "TransactionConflict", at: 0 }]).enumerate()
    {
        proxy.fail(WRITE, 3, fault);
        let version = round + 2;
        assert_eq!(deploy(&server, "abcdef1").send().await.expect(201)["release"]["version"], version);
        proxy.fail(WRITE, 3, fault);
        rollback(&server, 1).send().await.expect(200);
        proxy.fail(WRITE, 3, fault);
        let body = json!({ "status": "ready", "build_log": format!("round {round}") });
        report(&server, &first, body).send().await.expect(200);
        assert_consistent(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn store_outage_changes_nothing() {
    let (server, proxy) = start().await;
    deploy(&server, "abcdef1").send().await.expect(201);
    let before = releases(&server).await;
    for operation in ["GetItem", WRITE] {
        proxy.fail(operation, ALWAYS, StoreFault::Close);
        for request in [
            deploy(&server, "abcdef2"),
            rollback(&server, 1),
            server.patch("/v1/agent_projects/site", json!({ "name": "Shop" })),
            report(&server, &before[0], json!({ "status": "active", "image_ref": "app:2" })),
        ] {
            let refused = request.send().await;
            assert_eq!(refused.headers["retry-after"], "1");
            refused.refused(503);
        }
        proxy.heal();
    }
    assert_eq!(releases(&server).await, before);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_read_is_consistent() {
    let (server, proxy) = start().await;
    let release = releases(&server).await.remove(0);
    report(&server, &release, json!({ "status": "ready", "build_log": "one" })).send().await.expect(200);
    rollback(&server, 1).send().await.expect(200);
    server.get("/v1/agent_projects/site/releases/1/logs").send().await.expect(200);
    let organization = server.organization_id;
    for path in [
        format!("/v1/internal/projects/site/active_release?organization_id={organization}"),
        format!("/v1/internal/model_settings?organization_id={organization}&project_id={}", release["project_id"]),
    ] {
        server.service(http::Method::GET, &path).send().await.expect(200);
    }
    for request in proxy.seen() {
        assert!(request.is_consistent(), "{} {}", request.operation, request.body);
    }
}

//! Tests of a runner's workers: the store calls of an idle runner, and the wake-ups by writes, due
//! times and a moved clock.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use karta_local::{
    Options,
    template::{TEMPLATE, Template},
};
use karta_shared::{
    clock::{Clock, ManualClock, SystemClock},
    domain::Reach,
};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::{
    data_plane::{DataPlane, Reaction, configured},
    fault_proxy::FaultProxy,
    harness::{TestServer, options, until},
    webhooks::{self, Receiver},
};

/// Queries per minute of the workers with a schedule of one minute: six queues, and running turns,
/// overdue turns and due sessions, each of 16 shards.
const CALLS_PER_MINUTE: usize = (6 + 3) * 16;
/// Shorter than every schedule, so that only another event can have woken the worker.
const WAKE_TIMEOUT: Duration = Duration::from_secs(45);

fn working(clock: Arc<dyn Clock>) -> Options {
    Options { workers: true, outbound_reach: Reach::Loopback, ..options(clock) }
}

fn noon() -> Arc<ManualClock> {
    Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()))
}

/// Waits until the store receives no more requests.
async fn wait_until_idle(proxy: &FaultProxy) {
    let is_idle = async || {
        let before = proxy.seen().len();
        sleep(Duration::from_secs(3)).await;
        proxy.seen().len() == before
    };
    until("an idle store", is_idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_runner_sends_few_store_queries() {
    let clock = noon();
    let (server, proxy) = FaultProxy::start_as(working(Arc::clone(&clock) as Arc<dyn Clock>)).await;
    let receiver = Receiver::start().await;
    for is_fresh in [true, false] {
        if !is_fresh {
            webhooks::endpoint(&server, &receiver.url, &["*"]).await;
            let (id, _) = server.key(&["read"]).await;
            server.key_with(json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-12-21T12:00:00Z" })).await;
            server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
            receiver.wait_for(3).await;
        }
        wait_until_idle(&proxy).await;
        proxy.forget();
        sleep(Duration::from_secs(3)).await;
        assert_eq!(proxy.seen().len(), 0, "the clock has not moved");
        clock.advance(Duration::from_mins(1));
        until("the sweeps of the schedules", async || proxy.seen().len() >= CALLS_PER_MINUTE).await;
        sleep(Duration::from_secs(3)).await;
        let seen = proxy.seen();
        assert!(seen.iter().all(|seen| seen.operation == "Query"), "{seen:?}");
        assert_eq!(seen.len(), CALLS_PER_MINUTE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_runs_at_its_due_time() {
    let (plane, clock) = (DataPlane::start("a").await, noon());
    plane.react(Reaction::Status(500));
    let planes = Some(configured(&[("eu", &plane)]).into());
    let options = Options { data_planes: planes, ..working(Arc::clone(&clock) as Arc<dyn Clock>) };
    let (server, proxy) = FaultProxy::start_as(options).await;
    let (id, _) = server.key(&["read"]).await;
    server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
    for tries in 1..4 {
        let wait = plane.wait_for(tries);
        timeout(WAKE_TIMEOUT, wait).await.expect("a retry at its due time");
        wait_until_idle(&proxy).await;
        assert_eq!(plane.received().len(), tries, "it is not due yet");
        // The pauses are at most 1, 2 and 4 s. The schedule is one minute.
        clock.advance(Duration::from_secs(4));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_index_write_wakes_its_worker() {
    let clock = noon();
    let server = TestServer::start_as(working(Arc::clone(&clock) as Arc<dyn Clock>), None).await;
    let (table, organization) = ("karta-outbox", server.organization_id);
    // A notice of a missing key, which the worker deletes.
    let item = |key: u64, due_at: &str| {
        json!({
            "pk": { "S": format!("XPR#{organization}") },
            "sk": { "S": format!("{key:016}") },
            "organization_id": { "N": organization.to_string() },
            "api_key_id": { "N": key.to_string() },
            "expires_at": { "S": "2026-12-21T12:00:00.000Z" },
            "due_shard": { "S": "XPR#7" },
            "due_at": { "S": due_at },
        })
    };
    let now = "2026-11-21T12:00:00.000Z";
    let put = |key| json!({ "Item": item(key, now) });
    let mut put_in_table = put(2);
    put_in_table["TableName"] = json!(table);
    let later = json!({ "TableName": table, "Item": item(4, "2026-11-21T12:05:00.000Z") });
    server.dynamodb("PutItem", later).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(server.outbox("XPR").await.len(), 1, "it is not due yet");
    for (operation, body) in [
        ("PutItem", json!({ "TableName": table, "Item": item(1, now) })),
        ("TransactWriteItems", json!({ "TransactItems": [{ "Put": put_in_table }] })),
        ("BatchWriteItem", json!({ "RequestItems": { table: [{ "PutRequest": put(3) }] } })),
        (
            "UpdateItem",
            json!({
                "TableName": table,
                "Key": { "pk": { "S": format!("XPR#{organization}") }, "sk": { "S": format!("{:016}", 4) } },
                "UpdateExpression": "SET due_at = :now",
                "ExpressionAttributeValues": { ":now": { "S": now } },
            }),
        ),
    ] {
        let before = server.outbox("XPR").await.len();
        server.dynamodb(operation, body).await;
        let left = if operation == "UpdateItem" { before - 1 } else { before };
        let settled = until("a deleted notice", async || server.outbox("XPR").await.len() == left);
        timeout(WAKE_TIMEOUT, settled).await.unwrap_or_else(|_| panic!("{operation} does not wake the worker"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_delivery_follows_its_commit_within_a_second() {
    let mut server = TestServer::start_as(working(Arc::new(SystemClock)), None).await;
    // The check would chain the log at the same time as the worker.
    server.skip_audit_check();
    let receiver = Receiver::start().await;
    webhooks::endpoint(&server, &receiver.url, &["api_key.created"]).await;
    // A busy machine delays some deliveries, but not all of them.
    let mut on_time = 0;
    for count in 1..=40 {
        server.key(&["read"]).await;
        let committed = Instant::now();
        receiver.wait_for(count).await;
        on_time += usize::from(committed.elapsed() < Duration::from_secs(1));
        if on_time == 3 {
            webhooks::settled(&server).await;
            return;
        }
    }
    panic!("{on_time} of 40 deliveries arrived within a second");
}

#[test]
fn workers_read_the_indexes_of_their_policies() {
    let template = Template::parse(TEMPLATE).unwrap();
    let workers = template.functions.iter().filter_map(|function| {
        let period = function.schedule?;
        let indexes = function.indexes.iter().map(|it| format!("{}/{} {}", it.table, it.name, it.prefixes.join(" ")));
        Some(format!("{} {period:?} {}", function.binary, indexes.collect::<Vec<_>>().join(", ")))
    });
    insta::assert_snapshot!(workers.collect::<Vec<_>>().join("\n"), @r"
    worker-audit-chain 60s KartaTable/unchained UNC
    worker-budget-checks 60s OutboxTable/due BDG
    worker-cache-push 60s OutboxTable/due PSH
    worker-expiry-notices 900s OutboxTable/due XPR
    worker-model-keys-reseal 3600s KartaTable/sealed MKS
    worker-turns-sweep 60s SessionsTable/due SES TRN
    worker-webhook-deliveries 3600s KartaTable/sealed WHS
    worker-webhook-events 60s OutboxTable/due EVT WHQ WHR
    ");
}

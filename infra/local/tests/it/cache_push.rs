//! Tests of the worker that invalidates caches. It notifies data planes of every change that
//! concerns them and flushes the gateway when a change cuts access. It retries a failed push for
//! ten minutes, and no receiver delays another.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::Method;
use karta_local::{Options, Runner, registry};
use karta_shared::{
    App,
    clock::{Clock, ManualClock, SystemClock},
    config::{self, Config, GatewayStage, Secret, SecretSource},
    domain::{CacheEffect, Id, Timestamp},
    store::{OutboxKey, table::Tables},
    worker::{Wake, Worker},
};
use serde_json::{Value, json};
use worker_cache_push::{AuthorizerCache, CachePush};

use crate::{
    calls::record_sent_requests,
    data_plane::{DataPlane, Reaction, configured, token},
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::{TestServer, WAIT_TIMEOUT, options, plain, until},
};

const CACHE_PUSH: &str = "worker-cache-push";
const PATH: &str = "/v1/internal/cache/invalidate";
/// Minimum time between two flushes of the gateway.
const FLUSH_INTERVAL: Duration = Duration::from_secs(2);
const LEASE: Duration = Duration::from_secs(30);

fn noon() -> Arc<ManualClock> {
    Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()))
}

fn options_for(planes: &[(&str, &DataPlane)], clock: Arc<dyn Clock>) -> Options {
    Options { data_planes: Some(configured(planes).into()), ..options(clock) }
}

/// A server at noon with these data planes.
async fn server(planes: &[(&str, &DataPlane)]) -> (TestServer, Arc<ManualClock>) {
    let clock = noon();
    let server = TestServer::start_as(options_for(planes, Arc::clone(&clock) as Arc<dyn Clock>), None).await;
    (server, clock)
}

async fn revoke(server: &TestServer) {
    let (id, _) = server.key(&["read"]).await;
    server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
}

/// Makes a change that cuts no access.
async fn raise_a_budget(server: &TestServer) {
    let (id, _) = server.key(&["read"]).await;
    let change = json!({ "budget": { "total_tokens": 5 } });
    server.patch(&format!("/v1/api_keys/{id}"), change).send().await.expect(200);
}

/// Schedules an invalidation, as a change of the organization does.
async fn changed(server: &TestServer, organization: u64, effect: CacheEffect) {
    let mut transaction = server.runner.app.store.transaction();
    let (organization, now) = (Id::new(organization).unwrap(), server.runner.app.clock.now());
    transaction.invalidate(organization, effect, now).unwrap();
    transaction.commit().await.unwrap();
}

fn due_at(item: &Value) -> Timestamp {
    item["due_at"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_relevant_change_reaches_every_data_plane() {
    let (eu, us) = (DataPlane::start("a").await, DataPlane::start("b").await);
    let (server, clock) = server(&[("eu", &eu), ("us", &us)]).await;
    let organization = format!("/v1/internal/organizations/{}", server.organization_id);
    for change in [
        json!({ "scopes": ["read"] }),
        json!({ "expires_at": "2027-01-01T00:00:00Z" }),
        json!({ "allowed_cidrs": ["10.0.0.0/8"] }),
        json!({ "budget": { "total_tokens": 5 } }),
        json!({ "name": "other" }),
        json!({ "metadata": { "team": "a" } }),
        json!("revoke"),
        json!("rotate"),
        json!({ "plan": "team" }),
        json!({ "subscription_status": "past_due" }),
    ] {
        let (id, _) = server.key(&["read", "write"]).await;
        let path = format!("/v1/api_keys/{id}");
        let (request, status) = match &change {
            Value::String(verb) if verb == "revoke" => (server.delete(&path), 200),
            Value::String(_) => (server.post(&format!("{path}/rotate"), json!({})), 201),
            change if change["plan"].is_null() && change["subscription_status"].is_null() => {
                (server.patch(&path, change.clone()), 200)
            }
            change => (server.service(Method::PATCH, &organization).body(change.clone()), 200),
        };
        request.send().await.expect(status);
        server.work(CACHE_PUSH).await;
        assert_eq!(
            (eu.take_organizations(), us.take_organizations()),
            (vec![server.organization_id], vec![server.organization_id]),
            "{change}"
        );
        assert!(server.outbox("PSH").await.is_empty(), "{change}");
        clock.advance(FLUSH_INTERVAL);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_has_the_organization_and_the_token() {
    let (eu, us) = (DataPlane::start("a").await, DataPlane::start("b").await);
    let (server, _clock) = server(&[("eu", &eu), ("us", &us)]).await;
    revoke(&server).await;
    server.work(CACHE_PUSH).await;
    for plane in [&eu, &us] {
        let received = plane.received();
        assert_eq!(received.len(), 1);
        let request = &received[0];
        assert_eq!((&request.method, request.path.as_str()), (&Method::POST, PATH));
        assert_eq!(request.headers["authorization"], format!("Bearer {}", plane.token));
        assert_eq!(request.headers["content-type"], "application/json");
        assert!(!request.headers.contains_key("accept-encoding"), "the worker does not decompress responses");
        assert_eq!(request.body, json!({ "organization_id": server.organization_id }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_changes_are_pushed_in_one_call() {
    let plane = DataPlane::start("a").await;
    let (server, _clock) = server(&[("eu", &plane)]).await;
    for _ in 0..50 {
        revoke(&server).await;
    }
    assert_eq!(server.outbox("PSH").await.len(), 50);
    server.work(CACHE_PUSH).await;
    assert_eq!(plane.take_organizations(), [server.organization_id]);
    assert!(server.outbox("PSH").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_invalidation_is_postponed_and_blocks_no_other() {
    let plane = DataPlane::start("a").await;
    let (server, _clock) = server(&[("eu", &plane)]).await;
    let unreadable = json!({
        "pk": { "S": format!("PSH#{}", server.organization_id) },
        "sk": { "S": "2026-11-21T11:00:00.000Z#0000000000000007" },
        "organization_id": { "N": server.organization_id.to_string() },
        "due_shard": { "S": "PSH#7" },
        "due_at": { "S": "2026-11-21T11:00:00.000Z" },
    });
    server.dynamodb("PutItem", json!({ "TableName": "karta-outbox", "Item": unreadable })).await;
    revoke(&server).await;
    server.work(CACHE_PUSH).await;
    assert_eq!(plane.take_organizations(), [server.organization_id]);
    let waiting: Vec<_> = server.outbox("PSH").await.iter().map(|item| item["due_at"].clone()).collect();
    assert_eq!(waiting, ["2026-11-21T12:01:00.000Z"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_empties_without_data_planes() {
    let (server, _clock) = TestServer::start_at_noon().await;
    revoke(&server).await;
    raise_a_budget(&server).await;
    server.work(CACHE_PUSH).await;
    assert!(server.outbox("PSH").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_data_plane_delays_nothing_else() {
    let (dead, alive) = (DataPlane::start("a").await, DataPlane::start("b").await);
    dead.react(Reaction::Hang);
    let (server, _clock) = server(&[("dead", &dead), ("alive", &alive)]).await;
    let (id, key) = server.key(&["read"]).await;
    server.get("/v1/whoami").bearer(&key).send().await.expect(200);
    for organization in 1..=40 {
        changed(&server, organization, CacheEffect::Stale).await;
    }
    server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
    let started = Instant::now();
    let flushed = async {
        let received = alive.wait_for(41).await;
        assert_eq!(received.len(), 41);
        let forgotten = async || server.get("/v1/whoami").bearer(&key).send().await.status == 401;
        until("the gateway's flush", forgotten).await;
    };
    tokio::join!(server.work(CACHE_PUSH), flushed);
    // One after the other, the 41 pushes would each wait two seconds for the dead data plane.
    assert!(started.elapsed() < WAIT_TIMEOUT, "took {:?}", started.elapsed());
    assert!(dead.received().len() < 41, "a hanging data plane is skipped for the rest of the run");
    assert_eq!(server.outbox("PSH").await[0]["told"], json!(["GATEWAY", "alive"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_data_plane_is_retried_for_ten_minutes() {
    let (failing, healthy) = (DataPlane::start("a").await, DataPlane::start("b").await);
    failing.react(Reaction::Status(500));
    let (server, clock) = server(&[("failing", &failing), ("healthy", &healthy)]).await;
    revoke(&server).await;
    let written = clock.now();
    let mut pauses = Vec::new();
    loop {
        server.work(CACHE_PUSH).await;
        server.work(CACHE_PUSH).await;
        let scheduled = server.outbox("PSH").await;
        assert_eq!(failing.take_organizations().len(), 1, "one push, at its due time");
        let Some(item) = scheduled.first() else { break };
        let pause = due_at(item).since(clock.now());
        pauses.push(pause.as_secs_f64());
        clock.advance(pause);
    }
    for (at, pause) in pauses.iter().enumerate() {
        let maximum = (1 << at.min(6)).min(60);
        assert!((0.74 * f64::from(maximum)..=f64::from(maximum)).contains(pause), "pause {at} is {pause}");
    }
    let tried_for = clock.now().since(written);
    assert!((600..670).contains(&tried_for.as_secs()), "abandoned after {tried_for:?}");
    assert_eq!(healthy.take_organizations(), [server.organization_id], "notified once");
}

#[tokio::test(flavor = "multi_thread")]
async fn recovered_data_plane_is_notified() {
    let plane = DataPlane::start("a").await;
    let (server, clock) = server(&[("eu", &plane)]).await;
    for failure in [401, 404, 429, 503] {
        plane.react(Reaction::Status(failure));
        revoke(&server).await;
        server.work(CACHE_PUSH).await;
        plane.react(Reaction::Status(200));
        clock.advance(FLUSH_INTERVAL);
        server.work(CACHE_PUSH).await;
        assert_eq!(plane.take_organizations().len(), 2, "{failure}");
        assert!(server.outbox("PSH").await.is_empty(), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_is_a_failure_and_not_followed() {
    let (plane, elsewhere) = (DataPlane::start("a").await, DataPlane::start("b").await);
    plane.react(Reaction::Redirect(format!("{}{PATH}", elsewhere.url)));
    let (server, _clock) = server(&[("eu", &plane)]).await;
    revoke(&server).await;
    server.work(CACHE_PUSH).await;
    assert!(elsewhere.received().is_empty());
    assert_eq!(server.outbox("PSH").await[0]["told"], json!(["GATEWAY"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn store_faults_never_lose_a_push() {
    for fault in [StoreFault::Close, StoreFault::DropResponse, StoreFault::ServerError] {
        for operation in ["UpdateItem", "DeleteItem", "Query"] {
            let (plane, clock) = (DataPlane::start("a").await, noon());
            let options = options_for(&[("eu", &plane)], Arc::clone(&clock) as Arc<dyn Clock>);
            let (server, proxy) = FaultProxy::start_as(options).await;
            proxy.fail("TransactWriteItems", 1, StoreFault::DropResponse);
            revoke(&server).await;
            proxy.fail(operation, ALWAYS, fault);
            let before = plane.received().len();
            server.try_work(CACHE_PUSH).await.ok();
            proxy.heal();
            let case = format!("{operation}, {fault:?}");
            clock.advance(LEASE);
            server.work(CACHE_PUSH).await;
            assert!(plane.received().len() > before, "{case}: notified after the write");
            assert!(server.outbox("PSH").await.is_empty(), "{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn undeleted_push_is_repeated_after_its_lease() {
    let (plane, clock) = (DataPlane::start("a").await, noon());
    let (server, proxy) =
        FaultProxy::start_as(options_for(&[("eu", &plane)], Arc::clone(&clock) as Arc<dyn Clock>)).await;
    revoke(&server).await;
    proxy.fail("DeleteItem", ALWAYS, StoreFault::Close);
    server.try_work(CACHE_PUSH).await.unwrap_err();
    proxy.heal();
    assert_eq!(plane.take_organizations().len(), 1);
    clock.advance(LEASE.saturating_sub(Duration::from_millis(1)));
    server.work(CACHE_PUSH).await;
    assert!(plane.received().is_empty(), "the lease has not ended");
    clock.advance(Duration::from_millis(1));
    server.work(CACHE_PUSH).await;
    assert_eq!(plane.take_organizations().len(), 1);
    assert!(server.outbox("PSH").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_workers_lease_each_change_once() {
    let plane = DataPlane::start("a").await;
    let (server, _clock) = server(&[("eu", &plane)]).await;
    for _ in 0..20 {
        raise_a_budget(&server).await;
    }
    plane.react(Reaction::Status(500));
    let tick = &registry::workers(&server.runner.app, &server.runner.gateway)[CACHE_PUSH];
    let (first, second) = tokio::join!(tick(), tick());
    first.unwrap();
    second.unwrap();
    assert!((1..=2).contains(&plane.take_organizations().len()));
    let scheduled = server.outbox("PSH").await;
    assert_eq!(scheduled.len(), 20);
    assert!(scheduled.iter().all(|item| item["attempts"] == 1), "{scheduled:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_record_pushes_only_its_organization() {
    let plane = DataPlane::start("a").await;
    let (server, _clock) = server(&[("eu", &plane)]).await;
    let (other, _) = server.another_organization("globex").await;
    raise_a_budget(&server).await;
    // The due time is in the future, as from a function whose clock is ahead.
    let item = &server.outbox("PSH").await[0];
    let ahead = json!({
        "TableName": "karta-outbox",
        "Key": { "pk": { "S": item["pk"] }, "sk": { "S": item["sk"] } },
        "UpdateExpression": "SET due_at = :ahead",
        "ExpressionAttributeValues": { ":ahead": { "S": "2026-11-21T12:00:05.000Z" } },
    });
    server.dynamodb("UpdateItem", ahead).await;
    let worker =
        CachePush::new(server.runner.app.for_function(CachePush::NAME), AuthorizerCache::Local(Arc::new(|| ())));
    for (organization, expected) in [(other, vec![]), (server.organization_id, vec![server.organization_id])] {
        worker.work(&stream_of(organization)).await.unwrap();
        assert_eq!(plane.take_organizations(), expected);
    }
}

/// A wake-up by a stream record of an organization.
fn stream_of(organization: u64) -> Wake {
    Wake::Written([OutboxKey { organization_id: Id::new(organization).unwrap(), sk: "place".to_owned() }].into())
}

/// A worker and the times of its flushes.
fn flushing(app: &App) -> (CachePush, Arc<Mutex<Vec<Timestamp>>>) {
    let flushes = Arc::new(Mutex::new(Vec::new()));
    let (noted, clock) = (Arc::clone(&flushes), Arc::clone(&app.clock));
    let cache = AuthorizerCache::Local(Arc::new(move || noted.lock().unwrap().push(clock.now())));
    (CachePush::new(app.for_function(CachePush::NAME), cache), flushes)
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_one_flush_per_two_seconds() {
    let clock = noon();
    let (server, proxy) = FaultProxy::start_with(Arc::clone(&clock) as Arc<dyn Clock>).await;
    let ((first, flushed), (second, flushed_again)) = (flushing(&server.runner.app), flushing(&server.runner.app));
    for _ in 0..10 {
        revoke(&server).await;
    }
    first.work(&Wake::Sweep).await.unwrap();
    assert_eq!(flushed.lock().unwrap().len(), 1, "one flush for all ten changes");
    raise_a_budget(&server).await;
    second.work(&Wake::Sweep).await.unwrap();
    assert!(flushed_again.lock().unwrap().is_empty(), "no flush if no access was cut");

    clock.advance(Duration::from_millis(1));
    revoke(&server).await;
    let written = clock.now();
    let (third, flushed_too) = flushing(&server.runner.app);
    let asked = || proxy.seen().iter().filter(|seen| seen.partitions()[0].starts_with("FLS#")).count();
    let other = async {
        until("the second worker's lease", async || server.outbox("PSH").await[0]["attempts"] != 0).await;
        changed(&server, 1, CacheEffect::AccessReduced).await;
        third.work(&stream_of(1)).await
    };
    let time = async {
        let is_taken = async || !server.items_of("karta-outbox", "PSH#1").await.is_empty();
        until("the third worker's change", is_taken).await;
        let is_leased = async || plain(&server.items_of("karta-outbox", "PSH#1").await[0])["attempts"] != 0;
        until("the third worker's lease", is_leased).await;
        // Both workers ask every 200 ms. After six requests, both have asked.
        let before = asked();
        until("requests for a flush", async || asked() >= before + 6).await;
        clock.advance(FLUSH_INTERVAL);
    };
    let (second, third, ()) = tokio::join!(second.work(&Wake::Sweep), other, time);
    second.unwrap();
    third.unwrap();
    let flushed_since = [flushed_again, flushed_too].map(|flushes| flushes.lock().unwrap().clone()).concat();
    assert_eq!(flushed_since.len(), 1, "the waiting worker uses the flush of the other");
    assert_eq!(flushed_since[0], written.plus(FLUSH_INTERVAL), "the flush waits for the interval");
    assert!(server.outbox("PSH").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_flush_is_retried_and_delays_no_push() {
    let (plane, gateway) = (DataPlane::start("a").await, DataPlane::start("b").await);
    let (server, clock) = server(&[("eu", &plane)]).await;
    let sdk = config::local_sdk(&gateway.url, &"a-key-id".into()).await;
    let stage = GatewayStage { rest_api_id: "a1b2c3".to_owned(), stage: "prod".to_owned() };
    let worker = CachePush::new(server.runner.app.for_function(CachePush::NAME), AuthorizerCache::gateway(&sdk, stage));
    gateway.react(Reaction::Status(404));
    revoke(&server).await;
    worker.work(&Wake::Sweep).await.unwrap_err();
    assert_eq!(plane.take_organizations(), [server.organization_id]);
    assert_eq!(server.outbox("PSH").await[0]["told"], json!(["eu"]));
    gateway.react(Reaction::Status(202));
    clock.advance(FLUSH_INTERVAL);
    worker.work(&Wake::Sweep).await.unwrap();
    assert!(plane.received().is_empty(), "the data plane was notified before");
    assert!(server.outbox("PSH").await.is_empty());
    for request in gateway.received() {
        let asked = (request.method.as_str(), request.path.as_str());
        assert_eq!(asked, ("DELETE", "/restapis/a1b2c3/stages/prod/cache/authorizers"));
        let signature = request.headers["authorization"].to_str().unwrap();
        assert!(signature.contains("/us-east-1/apigateway/aws4_request"), "{signature}");
    }
    assert_eq!(gateway.received().len(), 2);
    record_sent_requests(CachePush::NAME, &gateway.received());
}

#[tokio::test(flavor = "multi_thread")]
async fn data_plane_token_must_not_be_service_token() {
    let plane = DataPlane::start("a").await;
    let tokens = Some(plane.token.clone().into());
    let options = Options { service_tokens: tokens, ..options_for(&[("eu", &plane)], Arc::new(SystemClock)) };
    let refusal = Runner::start(options).await.err().unwrap().to_string();
    let expected = "the token of the data plane eu is also a service token: give the data plane its own token";
    assert_eq!(refusal, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_plane_with_a_service_token_is_skipped() {
    let (eu, us) = (DataPlane::start("a").await, DataPlane::start("b").await);
    let (server, _clock) = TestServer::start_at_noon().await;
    revoke(&server).await;
    let SecretSource::Fixed(mut texts) = server.runner.secrets.source() else { panic!("a local run's secrets") };
    texts.insert(Secret::DataPlanes, configured(&[("eu", &eu), ("us", &us)]).into());
    let tokens = BTreeMap::from([("eu-too", &eu.token)]);
    let mut tokens = json!(tokens);
    tokens["powers"] = json!({ "eu-too": ["validate"] });
    texts.insert(Secret::ServiceTokens, tokens.to_string().into());
    let emulator = &server.runner.emulator;
    let sdk = config::local_sdk(&emulator.endpoint(), emulator.access_key()).await;
    let config = Config::local(Tables::local(), Some(4)).unwrap();
    let App { clock, entropy, call_observer, .. } = server.runner.app.clone();
    let mut app = App::new(config, &sdk, SecretSource::Fixed(texts), clock, entropy);
    app.call_observer = call_observer;
    CachePush::new(app.for_function(CachePush::NAME), AuthorizerCache::Local(Arc::new(|| ())))
        .work(&Wake::Sweep)
        .await
        .unwrap();
    assert!(eu.received().is_empty());
    assert_eq!(us.take_organizations(), [server.organization_id]);
    assert_eq!(server.outbox("PSH").await[0]["told"], json!(["GATEWAY", "us"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn debug_output_hides_data_plane_tokens() {
    let secret = token("q");
    let planes = json!({ "eu": { "url": "http://127.0.0.1:9", "token": secret } });
    let options = Options { data_planes: Some(planes.to_string().into()), ..options(Arc::new(SystemClock)) };
    let server = TestServer::start_as(options, None).await;
    let worker =
        CachePush::new(server.runner.app.for_function(CachePush::NAME), AuthorizerCache::Local(Arc::new(|| ())));
    let planes = server.runner.app.secrets.data_planes().await.unwrap();
    let printed = format!("{worker:?} {planes:?} {:?}", server.runner.app.secrets);
    assert!(!printed.contains("qqqq"), "{printed}");
    revoke(&server).await;
    worker.work(&Wake::Sweep).await.unwrap();
    assert_eq!(server.outbox("PSH").await[0]["told"], json!(["GATEWAY"]), "the data plane is unreachable");
}

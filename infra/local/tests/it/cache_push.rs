//! Who keeps verdicts is told to forget them: data planes of every change that concerns them, the gateway where access was cut; whatever fails,
//! nothing is lost before ten minutes are over, and nobody waits for somebody else.

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
    store::{DueItem, table::Tables},
    worker::{Wake, Worker},
};
use serde_json::{Value, json};
use worker_cache_push::{AuthorizerCache, CachePush};

use crate::{
    calls::keep_sent,
    data_plane::{DataPlane, Reaction, configured, token},
    fault_proxy::{ALWAYS, Fault, FaultProxy},
    harness::{PATIENCE, TestServer, options, plain, until},
};

const CACHE_PUSH: &str = "worker-cache-push";
const PATH: &str = "/v1/internal/cache/invalidate";
/// After this the gateway may be flushed again.
const FLUSHED_EVERY: Duration = Duration::from_secs(2);
const LEASE: Duration = Duration::from_secs(30);

fn noon() -> Arc<ManualClock> {
    Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()))
}

fn told_to(planes: &[(&str, &DataPlane)], clock: Arc<dyn Clock>) -> Options {
    Options { data_planes: Some(configured(planes).into()), ..options(clock) }
}

/// A server at noon with data planes, each of which answers 204.
async fn server(planes: &[(&str, &DataPlane)]) -> (TestServer, Arc<ManualClock>) {
    let clock = noon();
    let server = TestServer::start_as(told_to(planes, Arc::clone(&clock) as Arc<dyn Clock>), None).await;
    (server, clock)
}

async fn revoke(server: &TestServer) {
    let (id, _) = server.key(&["read"]).await;
    server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
}

/// A change that cuts nobody's access.
async fn raise_a_budget(server: &TestServer) {
    let (id, _) = server.key(&["read"]).await;
    let change = json!({ "budget": { "total_tokens": 5 } });
    server.patch(&format!("/v1/api_keys/{id}"), change).send().await.expect(200);
}

/// Writes what a change of some organization would.
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
async fn every_change_that_concerns_them_reaches_every_data_plane() {
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
        assert_eq!((eu.told(), us.told()), (vec![server.organization_id], vec![server.organization_id]), "{change}");
        assert!(server.outbox("PSH").await.is_empty(), "{change}");
        clock.advance(FLUSHED_EVERY);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_names_the_organization_and_proves_itself_with_the_data_planes_own_token() {
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
        assert!(!request.headers.contains_key("accept-encoding"), "nothing is to be decompressed");
        assert_eq!(request.body, json!({ "organization_id": server.organization_id }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_changes_of_an_organization_are_one_call() {
    let plane = DataPlane::start("a").await;
    let (server, _clock) = server(&[("eu", &plane)]).await;
    for _ in 0..50 {
        revoke(&server).await;
    }
    assert_eq!(server.outbox("PSH").await.len(), 50);
    server.work(CACHE_PUSH).await;
    assert_eq!(plane.told(), [server.organization_id]);
    assert!(server.outbox("PSH").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_data_plane_the_gateway_alone_forgets() {
    let (server, _clock) = TestServer::start_at_noon().await;
    revoke(&server).await;
    raise_a_budget(&server).await;
    server.work(CACHE_PUSH).await;
    assert!(server.outbox("PSH").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_that_hangs_delays_neither_another_one_nor_the_gateway_nor_the_next_organization() {
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
    // One after the other, they would wait two seconds for the dead one each.
    assert!(started.elapsed() < PATIENCE, "took {:?}", started.elapsed());
    assert!(dead.received().len() < 41, "a data plane that hangs is left alone for the rest of the run");
    assert_eq!(server.outbox("PSH").await[0]["told"], json!(["GATEWAY", "alive"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_that_fails_is_told_again_after_growing_pauses_and_given_up_after_ten_minutes() {
    let (failing, healthy) = (DataPlane::start("a").await, DataPlane::start("b").await);
    failing.react(Reaction::Status(500));
    let (server, clock) = server(&[("failing", &failing), ("healthy", &healthy)]).await;
    revoke(&server).await;
    let written = clock.now();
    let mut pauses = Vec::new();
    loop {
        server.work(CACHE_PUSH).await;
        server.work(CACHE_PUSH).await;
        let waiting = server.outbox("PSH").await;
        assert_eq!(failing.told().len(), 1, "once, and not before it is due");
        let Some(item) = waiting.first() else { break };
        let pause = due_at(item).since(clock.now());
        pauses.push(pause.as_secs_f64());
        clock.advance(pause);
    }
    for (at, pause) in pauses.iter().enumerate() {
        let most = (1 << at.min(6)).min(60);
        assert!((0.74 * f64::from(most)..=f64::from(most)).contains(pause), "pause {at} is {pause}");
    }
    let tried_for = clock.now().since(written);
    assert!((600..670).contains(&tried_for.as_secs()), "given up after {tried_for:?}");
    assert_eq!(healthy.told(), [server.organization_id], "told once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_that_comes_back_is_told() {
    let plane = DataPlane::start("a").await;
    let (server, clock) = server(&[("eu", &plane)]).await;
    for failure in [401, 404, 429, 503] {
        plane.react(Reaction::Status(failure));
        revoke(&server).await;
        server.work(CACHE_PUSH).await;
        plane.react(Reaction::Status(200));
        clock.advance(FLUSHED_EVERY);
        server.work(CACHE_PUSH).await;
        assert_eq!(plane.told().len(), 2, "{failure}");
        assert!(server.outbox("PSH").await.is_empty(), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_a_failure_and_not_followed() {
    let (plane, elsewhere) = (DataPlane::start("a").await, DataPlane::start("b").await);
    plane.react(Reaction::Redirect(format!("{}{PATH}", elsewhere.url)));
    let (server, _clock) = server(&[("eu", &plane)]).await;
    revoke(&server).await;
    server.work(CACHE_PUSH).await;
    assert!(elsewhere.received().is_empty());
    assert_eq!(server.outbox("PSH").await[0]["told"], json!(["GATEWAY"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_at_the_store_a_change_is_told_of_in_the_end() {
    for fault in [Fault::Close, Fault::DropAnswer, Fault::ServerError] {
        for operation in ["UpdateItem", "DeleteItem", "Query"] {
            let (plane, clock) = (DataPlane::start("a").await, noon());
            let options = told_to(&[("eu", &plane)], Arc::clone(&clock) as Arc<dyn Clock>);
            let (server, proxy) = FaultProxy::start_as(options).await;
            proxy.fail("TransactWriteItems", 1, Fault::DropAnswer);
            revoke(&server).await;
            proxy.fail(operation, ALWAYS, fault);
            let before = plane.received().len();
            server.try_work(CACHE_PUSH).await.ok();
            proxy.heal();
            let case = format!("{operation}, {fault:?}");
            clock.advance(LEASE);
            server.work(CACHE_PUSH).await;
            assert!(plane.received().len() > before, "{case}: told after it was written");
            assert!(server.outbox("PSH").await.is_empty(), "{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_and_not_taken_away_is_told_again_when_its_lease_has_ended() {
    let (plane, clock) = (DataPlane::start("a").await, noon());
    let (server, proxy) = FaultProxy::start_as(told_to(&[("eu", &plane)], Arc::clone(&clock) as Arc<dyn Clock>)).await;
    revoke(&server).await;
    proxy.fail("DeleteItem", ALWAYS, Fault::Close);
    server.try_work(CACHE_PUSH).await.unwrap_err();
    proxy.heal();
    assert_eq!(plane.told().len(), 1);
    clock.advance(LEASE.saturating_sub(Duration::from_millis(1)));
    server.work(CACHE_PUSH).await;
    assert!(plane.received().is_empty(), "it may still be under way");
    clock.advance(Duration::from_millis(1));
    server.work(CACHE_PUSH).await;
    assert_eq!(plane.told().len(), 1);
    assert!(server.outbox("PSH").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_at_once_take_each_change_once() {
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
    assert!((1..=2).contains(&plane.told().len()));
    let waiting = server.outbox("PSH").await;
    assert_eq!(waiting.len(), 20);
    assert!(waiting.iter().all(|item| item["attempts"] == 1), "{waiting:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_has_just_the_organizations_told_that_it_names() {
    let plane = DataPlane::start("a").await;
    let (server, _clock) = server(&[("eu", &plane)]).await;
    let (other, _) = server.another_organization("globex").await;
    raise_a_budget(&server).await;
    // As if whoever wrote it had a clock that is ahead.
    let item = &server.outbox("PSH").await[0];
    let ahead = json!({
        "TableName": "karta-outbox",
        "Key": { "pk": { "S": item["pk"] }, "sk": { "S": item["sk"] } },
        "UpdateExpression": "SET due_at = :ahead",
        "ExpressionAttributeValues": { ":ahead": { "S": "2026-11-21T12:00:05.000Z" } },
    });
    server.dynamodb("UpdateItem", ahead).await;
    let worker =
        CachePush::new(server.runner.app.of_function(CachePush::NAME), AuthorizerCache::Local(Arc::new(|| ())));
    for (organization, told) in [(other, vec![]), (server.organization_id, vec![server.organization_id])] {
        worker.work(&stream_of(organization)).await.unwrap();
        assert_eq!(plane.told(), told);
    }
}

/// What the stream tells of an organization.
fn stream_of(organization: u64) -> Wake {
    Wake::Written([DueItem { organization_id: Id::new(organization).unwrap(), sk: "place".to_owned() }].into())
}

/// A worker that writes down when it flushed.
fn flushing(app: &App) -> (CachePush, Arc<Mutex<Vec<Timestamp>>>) {
    let flushes = Arc::new(Mutex::new(Vec::new()));
    let (noted, clock) = (Arc::clone(&flushes), Arc::clone(&app.clock));
    let cache = AuthorizerCache::Local(Arc::new(move || noted.lock().unwrap().push(clock.now())));
    (CachePush::new(app.of_function(CachePush::NAME), cache), flushes)
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_flush_once_in_two_seconds_together_and_wait_for_their_turn() {
    let clock = noon();
    let (server, proxy) = FaultProxy::start_with(Arc::clone(&clock) as Arc<dyn Clock>).await;
    let ((first, flushed), (second, flushed_again)) = (flushing(&server.runner.app), flushing(&server.runner.app));
    for _ in 0..10 {
        revoke(&server).await;
    }
    first.work(&Wake::Sweep).await.unwrap();
    assert_eq!(flushed.lock().unwrap().len(), 1, "one for all ten");
    raise_a_budget(&server).await;
    second.work(&Wake::Sweep).await.unwrap();
    assert!(flushed_again.lock().unwrap().is_empty(), "none where nobody lost access");

    clock.advance(Duration::from_millis(1));
    revoke(&server).await;
    let written = clock.now();
    let (third, flushed_too) = flushing(&server.runner.app);
    let asked = || proxy.seen().iter().filter(|seen| seen.partitions()[0].starts_with("FLS#")).count();
    let other = async {
        until("the lease of the second", async || server.outbox("PSH").await[0]["attempts"] != 0).await;
        changed(&server, 1, CacheEffect::AccessCut).await;
        third.work(&stream_of(1)).await
    };
    let time = async {
        let is_taken = async || !server.items_of("karta-outbox", "PSH#1").await.is_empty();
        until("the change of the third", is_taken).await;
        let is_leased = async || plain(&server.items_of("karta-outbox", "PSH#1").await[0])["attempts"] != 0;
        until("the lease of the third", is_leased).await;
        // Each asks every 200 ms: by now both have.
        let before = asked();
        until("questions for a turn", async || asked() >= before + 6).await;
        clock.advance(FLUSHED_EVERY);
    };
    let (second, third, ()) = tokio::join!(second.work(&Wake::Sweep), other, time);
    second.unwrap();
    third.unwrap();
    let flushed_since = [flushed_again, flushed_too].map(|flushes| flushes.lock().unwrap().clone()).concat();
    assert_eq!(flushed_since.len(), 1, "whoever waits is content with the flush of the other");
    assert_eq!(flushed_since[0], written.plus(FLUSHED_EVERY), "not before the turn");
    assert!(server.outbox("PSH").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_fails_is_tried_again_and_holds_up_no_data_plane() {
    let (plane, gateway) = (DataPlane::start("a").await, DataPlane::start("b").await);
    let (server, clock) = server(&[("eu", &plane)]).await;
    let sdk = config::local_sdk(&gateway.url, &"a-key-id".into()).await;
    let stage = GatewayStage { rest_api_id: "a1b2c3".to_owned(), stage: "prod".to_owned() };
    let worker = CachePush::new(server.runner.app.of_function(CachePush::NAME), AuthorizerCache::gateway(&sdk, stage));
    gateway.react(Reaction::Status(404));
    revoke(&server).await;
    worker.work(&Wake::Sweep).await.unwrap_err();
    assert_eq!(plane.told(), [server.organization_id]);
    assert_eq!(server.outbox("PSH").await[0]["told"], json!(["eu"]));
    gateway.react(Reaction::Status(202));
    clock.advance(FLUSHED_EVERY);
    worker.work(&Wake::Sweep).await.unwrap();
    assert!(plane.received().is_empty(), "it knows already");
    assert!(server.outbox("PSH").await.is_empty());
    for request in gateway.received() {
        let asked = (request.method.as_str(), request.path.as_str());
        assert_eq!(asked, ("DELETE", "/restapis/a1b2c3/stages/prod/cache/authorizers"));
        let signature = request.headers["authorization"].to_str().unwrap();
        assert!(signature.contains("/us-east-1/apigateway/aws4_request"), "{signature}");
    }
    assert_eq!(gateway.received().len(), 2);
    keep_sent(CachePush::NAME, &gateway.received());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_opens_the_internal_routes_stops_the_start() {
    let plane = DataPlane::start("a").await;
    let tokens = Some(plane.token.clone().into());
    let options = Options { service_tokens: tokens, ..told_to(&[("eu", &plane)], Arc::new(SystemClock)) };
    let refusal = Runner::start(options).await.err().unwrap().to_string();
    let told = "the token of the data plane eu is a service token too: give the data plane one of its own";
    assert_eq!(refusal, told);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_whose_token_became_a_service_token_is_not_called() {
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
    let App { clock, entropy, witness, .. } = server.runner.app.clone();
    let mut app = App::new(config, &sdk, SecretSource::Fixed(texts), clock, entropy);
    app.witness = witness;
    CachePush::new(app.of_function(CachePush::NAME), AuthorizerCache::Local(Arc::new(|| ())))
        .work(&Wake::Sweep)
        .await
        .unwrap();
    assert!(eu.received().is_empty());
    assert_eq!(us.told(), [server.organization_id]);
    assert_eq!(server.outbox("PSH").await[0]["told"], json!(["GATEWAY", "us"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_printed_holds_a_data_planes_token() {
    let secret = token("q");
    let planes = json!({ "eu": { "url": "http://127.0.0.1:9", "token": secret } });
    let options = Options { data_planes: Some(planes.to_string().into()), ..options(Arc::new(SystemClock)) };
    let server = TestServer::start_as(options, None).await;
    let worker =
        CachePush::new(server.runner.app.of_function(CachePush::NAME), AuthorizerCache::Local(Arc::new(|| ())));
    let planes = server.runner.app.secrets.data_planes().await.unwrap();
    let printed = format!("{worker:?} {planes:?} {:?}", server.runner.app.secrets);
    assert!(!printed.contains("qqqq"), "{printed}");
    revoke(&server).await;
    worker.work(&Wake::Sweep).await.unwrap();
    assert_eq!(server.outbox("PSH").await[0]["told"], json!(["GATEWAY"]), "nobody listens there");
}

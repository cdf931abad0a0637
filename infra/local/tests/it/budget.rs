//! Tests of budgets: caps on the counted usage, their check at every validation, and their events.

use http::Method;
use karta_shared::{
    domain::{Id, Tally, UsageKind},
    store::OutboxKey,
    worker::{Wake, Worker},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use worker_budget_checks::BudgetChecks;

use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::TestServer,
};

const CHECKS: &str = "worker-budget-checks";

pub(crate) async fn put(server: &TestServer, budget: Value) -> Value {
    server.request(Method::PUT, "/v1/budget").body(budget).send().await.expect(200)["budget"].take()
}

/// Reports `tokens` input tokens of a key.
pub(crate) async fn spend(server: &TestServer, key: u64, tokens: u64) {
    let now = server.runner.app.clock.now().to_string();
    let id = format!("{:?}", std::time::Instant::now());
    let event = json!({
        "api_key_id": key, "kind": "input_tokens", "quantity": tokens, "model": "gpt-4o", "occurred_at": now,
        "client_event_id": id,
    });
    let body = json!({ "events": [event] });
    let answer = server.service(Method::POST, "/v1/internal/usage/events").body(body).send().await.expect(202);
    assert_eq!(answer["accepted"], 1);
}

/// Validates a key. Returns `budget_ok` and `budget_reason`.
pub(crate) async fn verdict(server: &TestServer, token: &str) -> (bool, Value) {
    let body = json!({ "key": token });
    let mut answer = server.service(Method::POST, "/v1/internal/keys/validate").body(body).send().await.expect(200);
    assert_eq!(answer["valid"], true);
    (answer["budget_ok"].as_bool().unwrap(), answer["budget_reason"].take())
}

/// Runs the worker and returns the type and data of all budget events.
async fn check_and_list(server: &TestServer) -> Vec<(String, Value)> {
    server.work(CHECKS).await;
    let events =
        server.outbox("EVT").await.into_iter().filter(|event| event["type"].as_str().unwrap().starts_with("budget."));
    let parsed = events.map(|event| {
        (event["type"].as_str().unwrap().to_owned(), serde_json::from_str(event["data"].as_str().unwrap()).unwrap())
    });
    parsed.collect()
}

/// Runs the worker and returns the number of threshold, exhausted and restored events.
async fn check_and_count(server: &TestServer) -> [usize; 3] {
    let events = check_and_list(server).await;
    ["budget.threshold", "budget.exhausted", "budget.restored"]
        .map(|kind| events.iter().filter(|(event_type, _)| event_type == kind).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn put_replaces_the_whole_budget() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let none = json!({
        "input_tokens": null, "output_tokens": null, "total_tokens": null, "cost_cents": null,
        "alert_percents": [50, 80, 100],
    });
    assert_eq!(server.get("/v1/budget").send().await.expect(200), json!({ "budget": none }));
    let set = put(&server, json!({ "total_tokens": 1000, "alert_percents": [90] })).await;
    assert_eq!((&set["total_tokens"], &set["alert_percents"]), (&json!(1000), &json!([90])));
    assert_eq!(put(&server, json!({ "cost_cents": 5 })).await["total_tokens"], Value::Null);
    assert_eq!(server.get("/v1/budget").send().await.expect(200)["budget"]["cost_cents"], 5);
    for (body, field) in [
        (json!({ "total_tokens": -1 }), "total_tokens"),
        (json!({ "total_tokens": 9_007_199_254_740_992_u64 }), "total_tokens"),
        (json!({ "tokens": 1 }), "tokens"),
        (json!({ "alert_percents": [101] }), "alert_percents[0]"),
        (json!({ "alert_percents": [1, 1.5] }), "alert_percents[1]"),
    ] {
        assert_eq!(server.request(Method::PUT, "/v1/budget").body(body).send().await.invalid_field(), field);
    }
    let (_, read) = server.key(&["read"]).await;
    let refused = server.request(Method::PUT, "/v1/budget").bearer(&read).body(json!({})).send().await;
    assert_eq!(refused.forbidden(), "missing scope: admin");
    let audited = server.audited("budget.updated").await;
    assert_eq!(audited.len(), 2);
    assert!(audited.iter().any(|event| event["changes"]["budget"]["before"] == Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn reached_cap_blocks_spending_until_it_is_raised() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (key, token) = server.key(&["read", "write"]).await;
    server.project("app").await;
    put(&server, json!({ "total_tokens": 100 })).await;
    spend(&server, key, 99).await;
    assert_eq!(verdict(&server, &token).await, (true, Value::Null));
    spend(&server, key, 1).await;
    assert_eq!(verdict(&server, &token).await, (false, json!("monthly token cap reached")));
    let mint = || server.post("/v1/agent_projects/app/session_tokens", json!({})).bearer(&token).send();
    let refused = mint().await.refused(402);
    let body = json!({
        "error": "budget_exhausted", "reason": "monthly token cap reached", "cap": "total_tokens", "of": "organization",
        "resets_at": "2026-12-01T00:00:00.000Z",
    });
    assert_eq!(refused, body);
    let usage = server.get("/v1/usage").send().await.expect(200)["budget"].take();
    assert_eq!((&usage["ok"], &usage["reason"]), (&json!(false), &json!("monthly token cap reached")));
    put(&server, json!({ "total_tokens": 101 })).await;
    assert_eq!(verdict(&server, &token).await, (true, Value::Null));
    mint().await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_budget_refusal_names_cap_and_owner() {
    let (server, _clock) = TestServer::start_at_noon().await;
    server.project("app").await;
    for (cap, owner) in CAPS.iter().flat_map(|cap| ["organization", "api_key"].map(|owner| (*cap, owner))) {
        let (key, token) = server.key(&["write"]).await;
        let budget = json!({ cap: 0 });
        if owner == "organization" {
            put(&server, budget).await;
        } else {
            put(&server, json!({})).await;
            server.patch(&format!("/v1/api_keys/{key}"), json!({ "budget": budget })).send().await.expect(200);
        }
        let mint = server.post("/v1/agent_projects/app/session_tokens", json!({})).bearer(&token).send().await;
        let refused = mint.refused(402);
        assert_eq!((&refused["cap"], &refused["of"]), (&json!(cap), &json!(owner)), "{refused}");
        assert_eq!(refused["resets_at"], "2026-12-01T00:00:00.000Z");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_cap_blocks_the_key_and_its_successor() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (key, token) =
        server.key_with(json!({ "name": "a", "scopes": ["read"], "budget": { "input_tokens": 10 } })).await;
    let (_, other) = server.key(&["read"]).await;
    spend(&server, key, 10).await;
    assert_eq!(verdict(&server, &token).await, (false, json!("key: monthly input token cap reached")));
    assert!(verdict(&server, &other).await.0);
    let rotated = server.post(&format!("/v1/api_keys/{key}/rotate"), json!({})).send().await.expect(201);
    let successor = rotated["secret"].as_str().unwrap();
    assert_eq!(verdict(&server, successor).await, (false, json!("key: monthly input token cap reached")));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_month_resets_the_spending() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (key, token) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 5, "alert_percents": [100] })).await;
    spend(&server, key, 5).await;
    assert_eq!(check_and_count(&server).await, [1, 1, 0]);
    clock.advance(
        "2026-12-01T00:00:00Z".parse::<karta_shared::domain::Timestamp>().unwrap().since(server.runner.app.clock.now()),
    );
    assert_eq!(verdict(&server, &token).await, (true, Value::Null));
    assert_eq!(check_and_count(&server).await, [1, 1, 1], "the return is published");
    spend(&server, key, 5).await;
    assert_eq!(check_and_count(&server).await, [2, 2, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn session_token_lives_60_seconds_near_the_cap() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (key, _) = server.key(&["read"]).await;
    server.project("app").await;
    put(&server, json!({ "total_tokens": 100 })).await;
    let ttl = async || {
        let minted = server.post("/v1/agent_projects/app/session_tokens", json!({})).send().await.expect(201);
        minted["expires_in"].as_u64().unwrap()
    };
    spend(&server, key, 94).await;
    assert_eq!(ttl().await, 900);
    spend(&server, key, 1).await;
    assert_eq!(ttl().await, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_threshold_is_published_once() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (key, _) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 100 })).await;
    spend(&server, key, 49).await;
    assert_eq!(check_and_count(&server).await, [0, 0, 0]);
    spend(&server, key, 36).await;
    let events = check_and_list(&server).await;
    let (percents, spent): (Vec<_>, Vec<_>) =
        events.iter().map(|(_, data)| (data["percent"].as_u64().unwrap(), data["spent"].as_u64().unwrap())).unzip();
    assert_eq!((events.len(), percents.iter().sum::<u64>(), spent), (2, 130, vec![85, 85]));
    assert_eq!(events[0].1["subject"], json!({ "kind": "organization", "id": server.organization_id }));
    spend(&server, key, 15).await;
    assert_eq!(check_and_count(&server).await, [3, 1, 0]);
    spend(&server, key, 15).await;
    assert_eq!(check_and_count(&server).await, [3, 1, 0]);
    put(&server, json!({ "total_tokens": 1000 })).await;
    assert_eq!(check_and_count(&server).await, [3, 1, 1]);
    assert!(server.outbox("PSH").await.len() >= 4, "data planes are notified of the end and the return");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_workers_publish_a_threshold_once() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (key, _) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 100 })).await;
    spend(&server, key, 100).await;
    let tick = &karta_local::registry::workers(&server.runner.app, &server.runner.gateway)[CHECKS];
    // A worker that loses the race may fail. `check_and_count` runs it again.
    let _outcomes = tokio::join!(tick(), tick(), tick());
    assert_eq!(check_and_count(&server).await, [3, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lineage_has_the_budget_of_its_newest_key() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (old, _) =
        server.key_with(json!({ "name": "ci", "scopes": ["read"], "budget": { "total_tokens": 100 } })).await;
    let rotated = server.post(&format!("/v1/api_keys/{old}/rotate"), json!({})).send().await.expect(201);
    let new = rotated["api_key"]["id"].as_u64().unwrap();
    let budget = |cap: u64| json!({ "budget": { "total_tokens": cap, "alert_percents": [100] } });
    server.patch(&format!("/v1/api_keys/{new}"), budget(1_000)).send().await.expect(200);
    for key in [old, new, old] {
        spend(&server, key, 60).await;
        assert_eq!(check_and_count(&server).await, [0, 0, 0], "the old key's cap does not apply");
    }
    server.patch(&format!("/v1/api_keys/{new}"), budget(150)).send().await.expect(200);
    spend(&server, old, 1).await;
    assert_eq!(check_and_count(&server).await, [1, 1, 0], "the new key's cap applies to both keys");
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_budget_schedules_one_check_next_month() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (key, _) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 1 })).await;
    for _ in 0..3 {
        spend(&server, key, 1).await;
        server.work(CHECKS).await;
    }
    let scheduled = server.outbox("BDG").await;
    assert_eq!(scheduled.len(), 1, "{scheduled:?}");
    assert_eq!(scheduled[0]["sk"], "AT#2026-12-01T00:00:00.000Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_record_checks_only_its_organization() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (key, _) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 100 })).await;
    spend(&server, key, 100).await;
    let worker = BudgetChecks::new(server.runner.app.for_function(BudgetChecks::NAME));
    let due = |id: u64| OutboxKey { organization_id: Id::new(id).unwrap(), sk: "CHECK".to_owned() };
    let written = |id: u64| Wake::Written([due(id)].into());
    worker.work(&written(server.organization_id + 1)).await.unwrap();
    assert!(server.outbox("BST").await.is_empty(), "no other organization is checked");
    worker.work(&written(server.organization_id)).await.unwrap();
    assert_eq!(server.outbox("BST").await.len(), 1, "only the organization has a budget");
    assert_eq!(check_and_count(&server).await, [3, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_check_is_repeated() {
    let (server, proxy) = FaultProxy::start().await;
    let (key, _) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 100 })).await;
    spend(&server, key, 100).await;
    let tick = karta_local::registry::workers(&server.runner.app, &server.runner.gateway)[CHECKS].clone();
    // The first transaction postpones the check. Every later one fails.
    proxy.fail_after("TransactWriteItems", 1, ALWAYS, StoreFault::Close);
    tick().await.unwrap_err();
    proxy.heal();
    let postponed = server.outbox("BDG").await;
    assert_eq!(postponed.len(), 1);
    let due: karta_shared::domain::Timestamp = postponed[0]["due_at"].as_str().unwrap().parse().unwrap();
    let wait = due.since(server.runner.app.clock.now());
    assert!(wait > std::time::Duration::from_secs(30), "the retry waits until the first check must have ended");
    assert_eq!(check_and_count(&server).await, [0, 0, 0]);
    let update = json!({
        "TableName": "karta-outbox",
        "Key": { "pk": { "S": format!("BDG#{}", server.organization_id) }, "sk": { "S": postponed[0]["sk"] } },
        "UpdateExpression": "SET due_at = :past",
        "ExpressionAttributeValues": { ":past": { "S": "2026-01-01T00:00:00.000Z" } },
    });
    server.dynamodb("UpdateItem", update).await;
    assert_eq!(check_and_count(&server).await, [3, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_check_is_postponed_and_blocks_no_other() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (other, _) = server.another_organization("other").await;
    let unreadable = json!({
        "pk": { "S": format!("BDG#{other}") },
        "sk": { "S": "CHECK" },
        "organization_id": { "N": other.to_string() },
        "due_shard": { "S": "BDG#7" },
        "due_at": { "S": "2026-01-01T00:00:00.000Z" },
    });
    server.dynamodb("PutItem", json!({ "TableName": "karta-outbox", "Item": unreadable })).await;
    let (key, _) = server.key(&["read"]).await;
    let (damaged, _) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 100 })).await;
    spend(&server, key, 50).await;
    spend(&server, damaged, 50).await;
    // The organization's budget is checked although one of the keys is unreadable.
    let update = json!({
        "TableName": "karta",
        "Key": { "pk": { "S": format!("KEY#{}", server.organization_id) }, "sk": { "S": format!("{damaged:016}") } },
        "UpdateExpression": "SET scopes = :fault",
        "ExpressionAttributeValues": { ":fault": { "N": "1" } },
    });
    server.dynamodb("UpdateItem", update).await;
    let fault = server.try_work(CHECKS).await.unwrap_err().to_string();
    assert!(fault.starts_with(&format!("organization {other}: ")), "{fault}");
    let postponed = server.items_of("karta-outbox", &format!("BDG#{other}")).await;
    assert_eq!(postponed[0]["due_at"]["S"], "2026-11-21T12:01:00.000Z");
    assert_eq!(check_and_count(&server).await, [3, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_batches_publish_each_threshold_once() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (key, _) =
        server.key_with(json!({ "name": "ci", "scopes": ["read"], "budget": { "total_tokens": 1_000 } })).await;
    put(&server, json!({ "total_tokens": 1_000 })).await;
    let now = server.runner.app.clock.now().to_string();
    let event = |id: usize| {
        json!({
            "api_key_id": key, "kind": "input_tokens", "quantity": 10, "occurred_at": now,
            "client_event_id": id.to_string(),
        })
    };
    let tick = &karta_local::registry::workers(&server.runner.app, &server.runner.gateway)[CHECKS];
    for from in (0..100).step_by(10) {
        let body = json!({ "events": (from..from + 10).map(event).collect::<Vec<_>>() });
        let send = || server.service(Method::POST, "/v1/internal/usage/events").body(body.clone()).send();
        // A request that loses the race may fail. It is sent again below.
        let _outcomes = tokio::join!(send(), send(), tick(), tick(), tick());
        send().await.expect(202);
    }
    assert_eq!(check_and_count(&server).await, [6, 2, 0], "for the organization and for the key");
}

#[tokio::test(flavor = "multi_thread")]
async fn subscription_end_and_return_are_published() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let path = format!("/v1/internal/organizations/{}", server.organization_id);
    for (status, expected) in [("past_due", [0, 1, 0]), ("unpaid", [0, 1, 0]), ("active", [0, 1, 1])] {
        let body = json!({ "subscription_status": status });
        server.service(Method::PATCH, &path).body(body).send().await.expect(200);
        assert_eq!(check_and_count(&server).await, expected, "{status}");
    }
}

const CAPS: [&str; 4] = ["input_tokens", "output_tokens", "total_tokens", "cost_cents"];
const KINDS: [UsageKind; 4] =
    [UsageKind::InputTokens, UsageKind::OutputTokens, UsageKind::CacheReadTokens, UsageKind::CacheWriteTokens];
const MODELS: [&str; 5] = ["gpt-4o", "gpt-4o-mini", "claude-haiku-4-5", "claude-sonnet-4", "no-price"];

/// The index of a cap in `CAPS`, and its value. `None` sets no cap.
type Capped = (usize, Option<u64>);

fn budget((kind, cap): Capped) -> Value {
    // A thousand tokens cost about one cent.
    json!({ CAPS[kind]: cap.map(|cap| if CAPS[kind] == "cost_cents" { cap / 1_000 } else { cap }) })
}

/// A step of the property test.
#[derive(Debug, Clone)]
enum Step {
    /// Events of a key, number of tokens, index of a kind, and index of a model. The batch is sent
    /// twice.
    Batch(Vec<(prop::sample::Index, u64, usize, usize)>),
    OrganizationCap(Capped),
    /// Sets the budget of the newest key of a lineage.
    KeyCap(usize, Capped),
    Rotate(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let cap = || (0..CAPS.len(), proptest::option::of(0..40_000_u64));
    let event = (any::<prop::sample::Index>(), 1..10_000_u64, 0..KINDS.len(), 0..MODELS.len());
    prop_oneof![
        3 => proptest::collection::vec(event, 1..5).prop_map(Step::Batch),
        2 => cap().prop_map(Step::OrganizationCap),
        2 => (0..2_usize, cap()).prop_map(|(lineage, cap)| Step::KeyCap(lineage, cap)),
        1 => (0..2_usize).prop_map(Step::Rotate),
    ]
}

/// An organization with two lineages of keys, and the usage reported for each.
struct Scenario {
    server: TestServer,
    /// Id, token and lineage of each key.
    keys: Vec<(u64, String, usize)>,
    newest: [u64; 2],
    used: [Tally; 2],
    sent: usize,
}

impl Scenario {
    async fn start() -> Self {
        let (server, _clock) = TestServer::start_at_noon().await;
        let (mut keys, mut newest) = (Vec::new(), [0; 2]);
        for (lineage, newest) in newest.iter_mut().enumerate() {
            let (key, token) = server.key(&["read"]).await;
            *newest = key;
            keys.push((key, token, lineage));
        }
        Self { server, keys, newest, used: Default::default(), sent: 0 }
    }

    async fn apply(&mut self, step: Step) {
        match step {
            Step::Batch(events) => self.report(events).await,
            Step::OrganizationCap(cap) => drop(put(&self.server, budget(cap)).await),
            Step::KeyCap(lineage, cap) => {
                let path = format!("/v1/api_keys/{}", self.newest[lineage]);
                self.server.patch(&path, json!({ "budget": budget(cap) })).send().await.expect(200);
            }
            Step::Rotate(lineage) => {
                let path = format!("/v1/api_keys/{}/rotate", self.newest[lineage]);
                let rotated = self.server.post(&path, json!({})).send().await.expect(201);
                self.newest[lineage] = rotated["api_key"]["id"].as_u64().unwrap();
                self.keys.push((self.newest[lineage], rotated["secret"].as_str().unwrap().to_owned(), lineage));
            }
        }
    }

    async fn report(&mut self, events: Vec<(prop::sample::Index, u64, usize, usize)>) {
        let now = self.server.runner.app.clock.now().to_string();
        let mut reported = Vec::new();
        for (key, quantity, kind, model) in events {
            let (key, _, lineage) = *key.get(&self.keys);
            let (kind, tally) = (KINDS[kind], &mut self.used[lineage]);
            let tokens = match kind {
                UsageKind::InputTokens => &mut tally.input_tokens,
                UsageKind::OutputTokens => &mut tally.output_tokens,
                UsageKind::CacheReadTokens => &mut tally.cache_read_tokens,
                UsageKind::CacheWriteTokens => &mut tally.cache_write_tokens,
            };
            *tokens += u128::from(quantity);
            let price = self.server.runner.app.prices.price(Some(MODELS[model]));
            tally.cost += price.map_or(0, |price| price.cost(kind, quantity.try_into().unwrap()));
            self.sent += 1;
            reported.push(json!({
                "api_key_id": key, "kind": kind, "quantity": quantity, "model": MODELS[model], "occurred_at": now,
                "client_event_id": self.sent.to_string(),
            }));
        }
        for accepted in [reported.len(), 0] {
            let body = json!({ "events": reported });
            let send = self.server.service(Method::POST, "/v1/internal/usage/events").body(body).send();
            assert_eq!(send.await.expect(202)["accepted"], accepted);
        }
    }

    /// Asserts that the returned totals equal the reported usage, and that every key's verdict
    /// follows from the returned totals and caps.
    async fn check(&self) {
        let read = async |path: &str| self.server.get(path).send().await.expect(200);
        let organization = read("/v1/usage").await;
        let [first, second] = &self.used;
        let both = Tally {
            input_tokens: first.input_tokens + second.input_tokens,
            output_tokens: first.output_tokens + second.output_tokens,
            cache_read_tokens: first.cache_read_tokens + second.cache_read_tokens,
            cache_write_tokens: first.cache_write_tokens + second.cache_write_tokens,
            cost: first.cost + second.cost,
        };
        assert_eq!(organization["totals"], totals_json(&both));
        let may_spend = is_within(&read("/v1/budget").await["budget"], &organization["totals"]);
        assert_eq!(organization["budget"]["ok"], may_spend);
        let lineages = read("/v1/usage/keys").await;
        for (key, token, lineage) in &self.keys {
            let newest = |usage: &&Value| usage["api_key_id"] == self.newest[*lineage];
            let usage = lineages["keys"].as_array().unwrap().iter().find(newest).unwrap();
            assert_eq!(usage["totals"], totals_json(&self.used[*lineage]));
            let own = read(&format!("/v1/api_keys/{key}")).await["api_key"]["budget"].take();
            let ok = may_spend && is_within(&own, &usage["totals"]);
            let (budget_ok, reason) = verdict(&self.server, token).await;
            assert_eq!((budget_ok, reason.is_null()), (ok, ok), "{own} {usage} {organization}");
        }
    }
}

fn totals_json(tally: &Tally) -> Value {
    let number = |number: u128| u64::try_from(number).unwrap();
    json!({
        "input_tokens": number(tally.input_tokens), "output_tokens": number(tally.output_tokens),
        "cache_read_tokens": number(tally.cache_read_tokens), "cache_write_tokens": number(tally.cache_write_tokens),
        "total_tokens": number(tally.total_tokens()), "cost_cents": number(tally.cost_cents()),
    })
}

fn is_within(budget: &Value, totals: &Value) -> bool {
    let number = |field: &str| totals[field].as_u64().unwrap();
    let spent = |cap: &str| match cap {
        "input_tokens" => number(cap) + number("cache_read_tokens") + number("cache_write_tokens"),
        _ => number(cap),
    };
    CAPS.iter().all(|kind| budget[kind].as_u64().is_none_or(|cap| spent(kind) < cap))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn verdict_follows_from_the_reported_usage(steps in proptest::collection::vec(step(), 1..16)) {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
            let mut scenario = Scenario::start().await;
            for step in steps {
                scenario.apply(step).await;
                scenario.check().await;
            }
        });
    }
}

//! Budgets: caps over what was really counted, judged at every validation, and told of once.

use http::Method;
use karta_shared::{
    domain::{Id, Tally, UsageKind},
    store::DueItem,
    worker::{Wake, Worker},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use worker_budget_checks::BudgetChecks;

use crate::{
    fault_proxy::{ALWAYS, Fault, FaultProxy},
    harness::TestServer,
};

const CHECKS: &str = "worker-budget-checks";

async fn put(server: &TestServer, budget: Value) -> Value {
    server.request(Method::PUT, "/v1/budget").body(budget).send().await.expect(200)["budget"].take()
}

/// Reports this many input tokens of a key.
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

/// Whether a data plane may spend for the key, and if not, why.
async fn verdict(server: &TestServer, token: &str) -> (bool, Value) {
    let body = json!({ "key": token });
    let mut answer = server.service(Method::POST, "/v1/internal/keys/validate").body(body).send().await.expect(200);
    assert_eq!(answer["valid"], true);
    (answer["budget_ok"].as_bool().unwrap(), answer["budget_reason"].take())
}

async fn told(server: &TestServer) -> Vec<(String, Value)> {
    server.work(CHECKS).await;
    let events =
        server.outbox("EVT").await.into_iter().filter(|event| event["type"].as_str().unwrap().starts_with("budget."));
    let told = events.map(|event| {
        (event["type"].as_str().unwrap().to_owned(), serde_json::from_str(event["data"].as_str().unwrap()).unwrap())
    });
    told.collect()
}

/// How often each kind of news was told.
async fn counts(server: &TestServer) -> [usize; 3] {
    let told = told(server).await;
    ["budget.threshold", "budget.exhausted", "budget.restored"]
        .map(|kind| told.iter().filter(|(event_type, _)| event_type == kind).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_replaced_whole() {
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
        (json!({ "alert_percents": [101] }), "alert_percents"),
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
async fn a_cap_that_is_reached_stops_spending_and_a_raised_one_restores_it() {
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
async fn a_keys_own_caps_stop_that_key_and_its_successor_alone() {
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
async fn a_new_month_starts_with_nothing_spent() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (key, token) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 5, "alert_percents": [100] })).await;
    spend(&server, key, 5).await;
    assert_eq!(counts(&server).await, [1, 1, 0]);
    clock.advance(
        "2026-12-01T00:00:00Z".parse::<karta_shared::domain::Timestamp>().unwrap().since(server.runner.app.clock.now()),
    );
    assert_eq!(verdict(&server, &token).await, (true, Value::Null));
    assert_eq!(counts(&server).await, [1, 1, 1], "and is told of");
    spend(&server, key, 5).await;
    assert_eq!(counts(&server).await, [2, 2, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_token_lives_a_minute_once_little_is_left() {
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
async fn each_threshold_is_told_once_and_with_what_was_spent() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (key, _) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 100 })).await;
    spend(&server, key, 49).await;
    assert_eq!(counts(&server).await, [0, 0, 0]);
    spend(&server, key, 36).await;
    let news = told(&server).await;
    let (percents, spent): (Vec<_>, Vec<_>) =
        news.iter().map(|(_, data)| (data["percent"].as_u64().unwrap(), data["spent"].as_u64().unwrap())).unzip();
    assert_eq!((news.len(), percents.iter().sum::<u64>(), spent), (2, 130, vec![85, 85]));
    assert_eq!(news[0].1["subject"], json!({ "kind": "organization", "id": server.organization_id }));
    spend(&server, key, 15).await;
    assert_eq!(counts(&server).await, [3, 1, 0]);
    spend(&server, key, 15).await;
    assert_eq!(counts(&server).await, [3, 1, 0]);
    put(&server, json!({ "total_tokens": 1000 })).await;
    assert_eq!(counts(&server).await, [3, 1, 1]);
    assert!(server.outbox("PSH").await.len() >= 4, "data planes are told of either turn");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_at_once_tell_a_threshold_once() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (key, _) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 100 })).await;
    spend(&server, key, 100).await;
    let tick = &karta_local::registry::workers(&server.runner.app, &server.runner.gateway)[CHECKS];
    // The loser of the race is asked again.
    let _outcomes = tokio::join!(tick(), tick(), tick());
    assert_eq!(counts(&server).await, [3, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_keys_has_the_budget_of_its_newest_key() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (old, _) =
        server.key_with(json!({ "name": "ci", "scopes": ["read"], "budget": { "total_tokens": 100 } })).await;
    let rotated = server.post(&format!("/v1/api_keys/{old}/rotate"), json!({})).send().await.expect(201);
    let new = rotated["api_key"]["id"].as_u64().unwrap();
    let budget = |cap: u64| json!({ "budget": { "total_tokens": cap, "alert_percents": [100] } });
    server.patch(&format!("/v1/api_keys/{new}"), budget(1_000)).send().await.expect(200);
    for key in [old, new, old] {
        spend(&server, key, 60).await;
        assert_eq!(counts(&server).await, [0, 0, 0], "the old key's cap is not the line's");
    }
    server.patch(&format!("/v1/api_keys/{new}"), budget(150)).send().await.expect(200);
    spend(&server, old, 1).await;
    assert_eq!(counts(&server).await, [1, 1, 0], "and the new one's is, whichever key is used");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_budget_leaves_one_wish_for_the_next_month_however_often_it_is_looked_at() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (key, _) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 1 })).await;
    for _ in 0..3 {
        spend(&server, key, 1).await;
        server.work(CHECKS).await;
    }
    let waiting = server.outbox("BDG").await;
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    assert_eq!(waiting[0]["sk"], "AT#2026-12-01T00:00:00.000Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_has_those_looked_at_that_it_names() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (key, _) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 100 })).await;
    spend(&server, key, 100).await;
    let worker = BudgetChecks::new(server.runner.app.of_function(BudgetChecks::NAME));
    let due = |id: u64| DueItem { organization_id: Id::new(id).unwrap(), sk: "CHECK".to_owned() };
    let written = |id: u64| Wake::Written([due(id)].into());
    worker.work(&written(server.organization_id + 1)).await.unwrap();
    assert!(server.outbox("BST").await.is_empty(), "nobody else is looked at");
    worker.work(&written(server.organization_id)).await.unwrap();
    assert_eq!(server.outbox("BST").await.len(), 1, "the organization; the key has no budget");
    assert_eq!(counts(&server).await, [3, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_was_cut_off_is_made_again() {
    let (server, proxy) = FaultProxy::start().await;
    let (key, _) = server.key(&["read"]).await;
    put(&server, json!({ "total_tokens": 100 })).await;
    spend(&server, key, 100).await;
    let tick = karta_local::registry::workers(&server.runner.app, &server.runner.gateway)[CHECKS].clone();
    // The wish is put aside, and then nothing can be written.
    proxy.fail_after("TransactWriteItems", 1, ALWAYS, Fault::Close);
    tick().await.unwrap_err();
    proxy.heal();
    let aside = server.outbox("BDG").await;
    assert_eq!(aside.len(), 1);
    let due: karta_shared::domain::Timestamp = aside[0]["due_at"].as_str().unwrap().parse().unwrap();
    let wait = due.since(server.runner.app.clock.now());
    assert!(wait > std::time::Duration::from_secs(30), "not at once, while the other worker may be at it");
    assert_eq!(counts(&server).await, [0, 0, 0]);
    let update = json!({
        "TableName": "karta-outbox",
        "Key": { "pk": { "S": format!("BDG#{}", server.organization_id) }, "sk": { "S": aside[0]["sk"] } },
        "UpdateExpression": "SET due_at = :past",
        "ExpressionAttributeValues": { ":past": { "S": "2026-01-01T00:00:00.000Z" } },
    });
    server.dynamodb("UpdateItem", update).await;
    assert_eq!(counts(&server).await, [3, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_batches_and_workers_at_once_tell_each_threshold_once() {
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
        // Whoever loses a race is asked again.
        let _outcomes = tokio::join!(send(), send(), tick(), tick(), tick());
        send().await.expect(202);
    }
    assert_eq!(counts(&server).await, [6, 2, 0], "the organization's and the key's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_ends_and_returns_is_told_of() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let path = format!("/v1/internal/organizations/{}", server.organization_id);
    for (status, expected) in [("past_due", [0, 1, 0]), ("unpaid", [0, 1, 0]), ("active", [0, 1, 1])] {
        let body = json!({ "subscription_status": status });
        server.service(Method::PATCH, &path).body(body).send().await.expect(200);
        assert_eq!(counts(&server).await, expected, "{status}");
    }
}

const CAPS: [&str; 4] = ["input_tokens", "output_tokens", "total_tokens", "cost_cents"];
const MODELS: [&str; 5] = ["gpt-4o", "gpt-4o-mini", "claude-haiku-4-5", "claude-sonnet-4", "no-price"];

/// A budget of one cap, or of none.
type Capped = (usize, Option<u64>);

fn budget((kind, cap): Capped) -> Value {
    // A cent or so is spent for a thousand tokens.
    json!({ CAPS[kind]: cap.map(|cap| if CAPS[kind] == "cost_cents" { cap / 1_000 } else { cap }) })
}

/// One step of an organization's life.
#[derive(Debug, Clone)]
enum Step {
    /// Events by a key, old or new, that use this many tokens, input or output, of a model. They are sent twice.
    Batch(Vec<(prop::sample::Index, u64, bool, usize)>),
    OrganizationCap(Capped),
    /// Of the newest key of a line.
    KeyCap(usize, Capped),
    Rotate(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let cap = || (0..CAPS.len(), proptest::option::of(0..40_000_u64));
    let event = (any::<prop::sample::Index>(), 1..10_000_u64, any::<bool>(), 0..MODELS.len());
    prop_oneof![
        3 => proptest::collection::vec(event, 1..5).prop_map(Step::Batch),
        2 => cap().prop_map(Step::OrganizationCap),
        2 => (0..2_usize, cap()).prop_map(|(line, cap)| Step::KeyCap(line, cap)),
        1 => (0..2_usize).prop_map(Step::Rotate),
    ]
}

/// An organization with two lines of keys, and what was really reported of it.
struct Life {
    server: TestServer,
    /// Id, token, line.
    keys: Vec<(u64, String, usize)>,
    newest: [u64; 2],
    used: [Tally; 2],
    sent: usize,
}

impl Life {
    async fn start() -> Self {
        let (server, _clock) = TestServer::start_at_noon().await;
        let (mut keys, mut newest) = (Vec::new(), [0; 2]);
        for (line, newest) in newest.iter_mut().enumerate() {
            let (key, token) = server.key(&["read"]).await;
            *newest = key;
            keys.push((key, token, line));
        }
        Self { server, keys, newest, used: Default::default(), sent: 0 }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Batch(events) => self.report(events).await,
            Step::OrganizationCap(cap) => drop(put(&self.server, budget(cap)).await),
            Step::KeyCap(line, cap) => {
                let path = format!("/v1/api_keys/{}", self.newest[line]);
                self.server.patch(&path, json!({ "budget": budget(cap) })).send().await.expect(200);
            }
            Step::Rotate(line) => {
                let path = format!("/v1/api_keys/{}/rotate", self.newest[line]);
                let rotated = self.server.post(&path, json!({})).send().await.expect(201);
                self.newest[line] = rotated["api_key"]["id"].as_u64().unwrap();
                self.keys.push((self.newest[line], rotated["secret"].as_str().unwrap().to_owned(), line));
            }
        }
    }

    async fn report(&mut self, events: Vec<(prop::sample::Index, u64, bool, usize)>) {
        let now = self.server.runner.app.clock.now().to_string();
        let mut reported = Vec::new();
        for (key, quantity, is_input, model) in events {
            let (key, _, line) = *key.get(&self.keys);
            let kind = if is_input { UsageKind::InputTokens } else { UsageKind::OutputTokens };
            let tally = &mut self.used[line];
            *(if is_input { &mut tally.input_tokens } else { &mut tally.output_tokens }) += u128::from(quantity);
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

    /// What is told is what was reported, and every key's verdict follows from what is told and from the caps that are shown.
    async fn check(&self) {
        let read = async |path: &str| self.server.get(path).send().await.expect(200);
        let organization = read("/v1/usage").await;
        let [first, second] = &self.used;
        let both = Tally {
            input_tokens: first.input_tokens + second.input_tokens,
            output_tokens: first.output_tokens + second.output_tokens,
            cost: first.cost + second.cost,
        };
        assert_eq!(organization["totals"], shown(&both));
        let may_spend = is_within(&read("/v1/budget").await["budget"], &organization["totals"]);
        assert_eq!(organization["budget"]["ok"], may_spend);
        let lines = read("/v1/usage/keys").await;
        for (key, token, line) in &self.keys {
            let newest = |usage: &&Value| usage["api_key_id"] == self.newest[*line];
            let usage = lines["keys"].as_array().unwrap().iter().find(newest).unwrap();
            assert_eq!(usage["totals"], shown(&self.used[*line]));
            let own = read(&format!("/v1/api_keys/{key}")).await["api_key"]["budget"].take();
            let ok = may_spend && is_within(&own, &usage["totals"]);
            let (told, reason) = verdict(&self.server, token).await;
            assert_eq!((told, reason.is_null()), (ok, ok), "{own} {usage} {organization}");
        }
    }
}

fn shown(tally: &Tally) -> Value {
    let number = |number: u128| u64::try_from(number).unwrap();
    json!({
        "input_tokens": number(tally.input_tokens), "output_tokens": number(tally.output_tokens),
        "total_tokens": number(tally.total_tokens()), "cost_cents": number(tally.cost_cents()),
    })
}

fn is_within(budget: &Value, totals: &Value) -> bool {
    CAPS.iter().all(|kind| budget[kind].as_u64().is_none_or(|cap| totals[kind].as_u64().unwrap() < cap))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn the_verdict_never_disagrees_with_what_was_reported(steps in proptest::collection::vec(step(), 1..16)) {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
            let mut life = Life::start().await;
            for step in steps {
                life.take(step).await;
                life.check().await;
            }
        });
    }
}

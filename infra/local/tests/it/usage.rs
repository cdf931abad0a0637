//! `/v1/internal/usage/events` and the sums of `/v1/usage`. Each event counts exactly once, despite
//! repeats, races and interrupted writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use http::Method;
use karta_shared::{
    clock::{Clock, SystemClock},
    domain::{Entropy, Timestamp},
    entropy::SeededEntropy,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    fault_proxy::{ALWAYS, FaultProxy, Seen, StoreFault},
    harness::{Reply, TestServer},
    process::Karta,
};

const EVENTS: &str = "/v1/internal/usage/events";

async fn report(server: &TestServer, events: &[Value]) -> Reply {
    server.service(Method::POST, EVENTS).body(json!({ "events": events })).send().await
}

fn event(key: u64, id: &str) -> Value {
    json!({
        "api_key_id": key, "kind": "input_tokens", "quantity": 10, "model": "gpt-4o",
        "occurred_at": "2026-11-21T11:00:00Z", "client_event_id": id,
    })
}

#[expect(clippy::needless_pass_by_value, reason = "callers write the changes in place")]
fn with(mut event: Value, changes: Value) -> Value {
    event.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    event
}

async fn usage(server: &TestServer, query: &str) -> Value {
    server.get(&format!("/v1/usage{query}")).send().await.expect(200)
}

async fn key_of(server: &TestServer) -> u64 {
    server.get("/v1/whoami").send().await.expect(200)["api_key_id"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_summed_by_model_and_day() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let key = key_of(&server).await;
    let events = [
        with(event(key, "1"), json!({ "quantity": 1_000_000 })),
        with(event(key, "2"), json!({ "kind": "output_tokens", "quantity": 5 })),
        with(event(key, "3"), json!({ "model": "gpt-4o-mini", "occurred_at": "2026-11-20T00:00:00Z" })),
        with(event(key, "4"), json!({ "model": null, "occurred_at": "2026-11-01T00:00:00+01:00" })),
    ];
    let unpriced = json!([{ "model": "unspecified", "tokens": 10 }]);
    let answer = json!({ "accepted": 4, "duplicates": 0, "rejected": [], "unpriced": unpriced });
    assert_eq!(report(&server, &events).await.expect(202), answer);
    let tally = |input: u64, output: u64, cents: u64| {
        json!({
            "input_tokens": input, "output_tokens": output, "cache_read_tokens": 0, "cache_write_tokens": 0,
            "total_tokens": input + output, "cost_cents": cents,
        })
    };
    let part = |name: &str, of: &str, tally: Value| with(json!({ name: of }), tally);
    let november = usage(&server, "").await;
    assert_eq!((&november["period"], &november["unpriced"]), (&json!("2026-11"), &json!([])));
    assert_eq!(
        november["totals"],
        tally(1_000_010, 5, 251),
        "$2.50 for a million tokens, plus a fraction of a cent that is rounded up"
    );
    assert_eq!(
        november["by_model"],
        json!([part("model", "gpt-4o", tally(1_000_000, 5, 251)), part("model", "gpt-4o-mini", tally(10, 0, 1))])
    );
    assert_eq!(
        november["by_day"],
        json!([part("date", "2026-11-20", tally(10, 0, 1)), part("date", "2026-11-21", tally(1_000_000, 5, 251))])
    );
    let october = usage(&server, "?period=2026-10").await;
    assert_eq!(october["totals"], tally(10, 0, 0), "a UTC offset may move an event to another month");
    assert_eq!(october["by_model"], json!([part("model", "unspecified", tally(10, 0, 0))]));
    assert_eq!(october["unpriced"], unpriced);
    let keys = server.get("/v1/usage/keys").send().await.expect(200);
    assert_eq!((&keys["keys"][0]["api_key_id"], &keys["keys"][0]["by_day"]), (&json!(key), &november["by_day"]));
    assert_eq!(usage(&server, "?period=2025-01").await["totals"], tally(0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_tokens_are_priced_and_counted_apart() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let key = key_of(&server).await;
    let kinds = ["input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"];
    let events = |model: &str| {
        kinds.map(|kind| {
            let id = format!("{model} {kind}");
            with(event(key, &id), json!({ "kind": kind, "quantity": 1_000_000, "model": model }))
        })
    };
    report(&server, &events("claude-opus-5-5")).await.expect(202);
    let tally = json!({
        "input_tokens": 1_000_000, "output_tokens": 1_000_000, "cache_read_tokens": 1_000_000,
        "cache_write_tokens": 1_000_000, "total_tokens": 4_000_000, "cost_cents": 400 + 2_000 + 20 + 500,
    });
    let month = usage(&server, "").await;
    assert_eq!(month["totals"], tally);
    assert_eq!(month["by_model"], json!([with(json!({ "model": "claude-opus-5-5" }), tally.clone())]));
    assert_eq!(month["by_day"], json!([with(json!({ "date": "2026-11-21" }), tally)]));
    report(&server, &events("acme-1")).await.expect(202);
    assert_eq!(usage(&server, "").await["unpriced"], json!([{ "model": "acme-1", "tokens": 4_000_000 }]));
    let keys = server.get("/v1/usage/keys").send().await.expect(200);
    assert_eq!(keys["keys"][0]["totals"], usage(&server, "").await["totals"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unpriced_models_are_named_with_their_tokens() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let key = key_of(&server).await;
    let events = [
        with(event(key, "1"), json!({ "model": "acme-1", "quantity": 100_000_000 })),
        with(event(key, "2"), json!({ "model": "acme-1", "kind": "output_tokens", "quantity": 7 })),
        with(event(key, "3"), json!({ "model": "acme-2", "quantity": 5 })),
        with(event(key, "4"), json!({ "model": "us.anthropic.claude-sonnet-4-5-20250929-v1:0" })),
        event(key, "5"),
        with(event(key, "6"), json!({ "model": "acme-3", "quantity": 0 })),
    ];
    let unpriced = json!([{ "model": "acme-1", "tokens": 100_000_007 }, { "model": "acme-2", "tokens": 5 }]);
    assert_eq!(report(&server, &events).await.expect(202)["unpriced"], unpriced);
    report(&server, &events).await.expect(202);
    let month = usage(&server, "").await;
    assert_eq!((&month["unpriced"], &month["totals"]["cost_cents"]), (&unpriced, &json!(1)), "each event counts once");
    let keys = server.get("/v1/usage/keys").send().await.expect(200);
    assert_eq!(keys["keys"][0]["unpriced"], unpriced);
    assert_eq!(usage(&server, "?period=2026-10").await["unpriced"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_event_is_reported_and_others_count() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let key = key_of(&server).await;
    let prefix = server.get("/v1/whoami").send().await.expect(200)["api_key_prefix"].take();
    let bad = [
        (json!("text"), "The value must be an object"),
        (with(event(key, "x"), json!({ "quantity": 0 })), "quantity must be an integer from 1 to 1000000000000"),
        (with(event(key, "x"), json!({ "quantity": -1 })), "quantity must be an integer from 1 to 1000000000000"),
        (with(event(key, "x"), json!({ "quantity": 1.5 })), "quantity must be an integer"),
        (
            with(event(key, "x"), json!({ "quantity": 1_000_000_000_001_u64 })),
            "quantity must be an integer from 1 to 1000000000000",
        ),
        (with(event(key, "x"), json!({ "kind": "images" })), "kind must be one of input_tokens"),
        (with(event(key, "x"), json!({ "organization_id": 1 })), "organization_id is not a field here"),
        (with(event(key, "x"), json!({ "model": "" })), "model must be"),
        (with(event(key, "x"), json!({ "model": "m".repeat(129) })), "model must be"),
        (with(event(key, "x"), json!({ "client_event_id": "" })), "client_event_id must be 1 to 255 characters"),
        (with(event(key, "x"), json!({ "occurred_at": "yesterday" })), "occurred_at must be an RFC 3339 date"),
        (
            with(event(key, "x"), json!({ "occurred_at": "2025-10-17T11:59:59Z" })),
            "occurred_at must be within the last",
        ),
        (with(event(key, "x"), json!({ "occurred_at": "2026-11-21T13:00:00.001Z" })), "occurred_at must be within"),
        (with(event(key, "x"), json!({ "api_key_id": null })), "api_key_id or api_key_prefix is required"),
        (with(event(key, "x"), json!({ "api_key_id": key + 1 })), "api_key_id does not exist"),
        (
            with(event(key, "x"), json!({ "api_key_id": null, "api_key_prefix": "kt_live_000000" })),
            "api_key_prefix does not exist",
        ),
        (
            with(event(key, "x"), json!({ "api_key_prefix": "kt_live_000000" })),
            "api_key_prefix does not match api_key_id",
        ),
    ];
    let good = [
        event(key, "1"),
        with(event(key, "2"), json!({ "occurred_at": "2025-10-17T12:00:00Z" })),
        with(event(key, "3"), json!({ "occurred_at": "2026-11-21T13:00:00Z" })),
        with(event(key, "4"), json!({ "quantity": 1_000_000_000_000_u64 })),
        with(event(key, "5"), json!({ "api_key_id": null, "api_key_prefix": prefix })),
        with(
            event(key, "6"),
            json!({ "api_key_prefix": prefix, "session_id": "s", "model_key_id": 1, "embed_key_id": 2 }),
        ),
    ];
    let events: Vec<_> = bad.iter().map(|(event, _)| event.clone()).chain(good.clone()).collect();
    let answer = report(&server, &events).await.expect(202);
    assert_eq!((&answer["accepted"], &answer["duplicates"]), (&json!(good.len()), &json!(0)));
    let rejected = answer["rejected"].as_array().unwrap();
    assert_eq!(rejected.len(), bad.len());
    for ((index, (event, message)), rejection) in bad.iter().enumerate().zip(rejected) {
        assert_eq!(rejection["index"], index);
        assert!(rejection["message"].as_str().unwrap().starts_with(message), "{event}: {}", rejection["message"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_is_limited_to_a_thousand_events() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let key = key_of(&server).await;
    let events: Vec<_> = (0..1_001).map(|id| event(key, &id.to_string())).collect();
    assert_eq!(report(&server, &events).await.invalid_field(), "events");
    assert_eq!(report(&server, &events[..1_000]).await.expect(202)["accepted"], 1_000);
    assert_eq!(report(&server, &[]).await.expect(202)["accepted"], 0);
    for body in [json!({}), json!({ "events": {} }), json!({ "events": [], "more": 1 })] {
        server.service(Method::POST, EVENTS).body(body).send().await.invalid_field();
    }
    let large = json!({ "events": ["x".repeat(1024 * 1024)] });
    assert_eq!(server.service(Method::POST, EVENTS).body(large).send().await.refused(413)["error"], "body_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn event_counts_once_per_organization() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let key = key_of(&server).await;
    let (_, other) = server.another_organization("globex").await;
    let foreign = server.get("/v1/whoami").bearer(&other).send().await.expect(200)["api_key_id"].as_u64().unwrap();
    let batch = [event(key, "1"), event(key, "1"), event(foreign, "1"), event(key, "2")];
    let first = report(&server, &batch).await.expect(202);
    assert_eq!((&first["accepted"], &first["duplicates"]), (&json!(3), &json!(1)), "event ids are per organization");
    let changed = with(event(key, "2"), json!({ "quantity": 99 }));
    let again = report(&server, &[changed, event(key, "1"), event(key, "3")]).await.expect(202);
    assert_eq!((&again["accepted"], &again["duplicates"]), (&json!(1), &json!(2)), "the first report counts");
    assert_eq!(usage(&server, "").await["totals"]["input_tokens"], 30);
    let theirs = server.get("/v1/usage").bearer(&other).send().await.expect(200);
    assert_eq!(theirs["totals"]["input_tokens"], 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn successor_keeps_the_counters_of_its_key() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (old, _) =
        server.key_with(json!({ "name": "ci", "scopes": ["read"], "budget": { "total_tokens": 100 } })).await;
    report(&server, &[event(old, "1")]).await.expect(202);
    let rotated = server.post(&format!("/v1/api_keys/{old}/rotate"), json!({})).send().await.expect(201);
    let new = rotated["api_key"]["id"].as_u64().unwrap();
    report(&server, &[event(new, "2"), event(old, "3")]).await.expect(202);
    let keys = server.get("/v1/usage/keys").send().await.expect(200);
    let keys = keys["keys"].as_array().unwrap();
    let listed: Vec<_> = keys.iter().filter(|key| key["totals"]["input_tokens"] == 30).collect();
    assert_eq!(listed.len(), 1, "the lineage is listed once");
    assert_eq!(
        (&listed[0]["api_key_id"], &listed[0]["budget"]["spent_percent"]["total_tokens"]),
        (&json!(new), &json!(30))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reserved_model_names_share_their_rows() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let key = key_of(&server).await;
    let events: Vec<_> = [json!(null), json!("unspecified"), json!("other")]
        .into_iter()
        .zip(["1", "2", "3"])
        .map(|(model, id)| with(event(key, id), json!({ "model": model })))
        .collect();
    report(&server, &events).await.expect(202);
    let unpriced = json!([{ "model": "unspecified", "tokens": 20 }, { "model": "other", "tokens": 10 }]);
    assert_eq!(usage(&server, "").await["unpriced"], unpriced);
}

#[tokio::test(flavor = "multi_thread")]
async fn month_counts_200_models_separately() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let key = key_of(&server).await;
    let named = |id: usize| with(event(key, &id.to_string()), json!({ "model": format!("model-{id}") }));
    for batch in (0..205).map(named).collect::<Vec<_>>().chunks(41) {
        report(&server, batch).await.expect(202);
    }
    let again = with(event(key, "again"), json!({ "model": "model-7" }));
    report(&server, &[again, with(event(key, "new"), json!({ "model": "model-new" }))]).await.expect(202);
    let by_model = usage(&server, "").await["by_model"].take();
    let tokens = |name: &str| {
        let found = by_model.as_array().unwrap().iter().find(|part| part["model"] == name);
        found.map(|part| part["input_tokens"].as_u64().unwrap())
    };
    assert_eq!(by_model.as_array().unwrap().len(), 201);
    assert_eq!((tokens("other"), tokens("model-7"), tokens("model-new")), (Some(60), Some(20), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_batches_keep_the_model_limit() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let key = key_of(&server).await;
    let server = &server;
    let batch = |from: usize| {
        let events: Vec<_> = (from..from + 60)
            .map(|id| with(event(key, &id.to_string()), json!({ "model": format!("model-{id}") })))
            .collect();
        async move { report(server, &events).await.expect(202) }
    };
    tokio::join!(batch(0), batch(1_000), batch(2_000), batch(3_000));
    let month = usage(server, "").await;
    assert_eq!(month["totals"]["input_tokens"], 2_400);
    assert_eq!(month["by_model"].as_array().unwrap().len(), 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_routes_require_their_credentials() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let key = key_of(&server).await;
    server.post(EVENTS, json!({ "events": [event(key, "1")] })).send().await.refused(401);
    assert_eq!(usage(&server, "").await["totals"]["total_tokens"], 0);
    for query in ["period=2026-13", "period=", "periods=2026-11"] {
        server.get(&format!("/v1/usage?{query}")).send().await.invalid_field();
        server.get(&format!("/v1/usage/keys?{query}")).send().await.invalid_field();
    }
    let (_, write) = server.key(&["write", "admin"]).await;
    for path in ["/v1/usage", "/v1/usage/keys", "/v1/budget"] {
        assert_eq!(server.get(path).bearer(&write).send().await.forbidden(), "missing scope: read");
    }
}

/// Input and output tokens by group: all, a model, a date, a key, or a key's model or date.
type Sums = BTreeMap<String, (u64, u64)>;

/// Generated events of the current month, and their sums.
#[derive(Default)]
struct Generated {
    events: Vec<Value>,
    sums: Sums,
}

fn generate(keys: &[u64], count: usize, seed: u64, now: Timestamp) -> Generated {
    let entropy = SeededEntropy::new(seed);
    let mut generated = Generated::default();
    let draw = |below: u64| {
        let mut random = [0; 8];
        entropy.fill(&mut random);
        u64::from_be_bytes(random) % below
    };
    for id in 0..count {
        let key = keys[usize::try_from(draw(keys.len() as u64)).unwrap()];
        let (day, quantity, model) = (draw(now.day().into()) + 1, draw(5_000) + 1, format!("model-{}", draw(20)));
        let kind = if draw(2) == 0 { "input_tokens" } else { "output_tokens" };
        let date = format!("{}-{day:02}", now.month());
        generated.events.push(json!({
            "api_key_id": key, "kind": kind, "quantity": quantity, "model": model,
            "occurred_at": format!("{date}T00:00:00Z"), "client_event_id": format!("event-{id}"),
        }));
        for of in ["all".to_owned(), format!("key {key}")] {
            for part in [of.clone(), format!("{of} {model}"), format!("{of} {date}")] {
                let sums = generated.sums.entry(part).or_default();
                *(if kind == "input_tokens" { &mut sums.0 } else { &mut sums.1 }) += quantity;
            }
        }
    }
    // Repeat 30 % of the events and shuffle all.
    for at in 0..count * 3 / 10 {
        generated.events.push(generated.events[at * 3 % count].clone());
    }
    for at in (1..generated.events.len()).rev() {
        generated.events.swap(at, usize::try_from(draw(at as u64 + 1)).unwrap());
    }
    generated
}

/// Returns the sums in the responses of `/v1/usage` and `/v1/usage/keys`.
fn reported_sums(all: &Value, keys: &Value) -> Sums {
    let mut sums = Sums::new();
    let keys = keys["keys"].as_array().unwrap().iter().map(|key| (format!("key {}", key["api_key_id"]), key));
    for (of, usage) in keys.chain([("all".to_owned(), all)]) {
        let tokens = |part: &Value| (part["input_tokens"].as_u64().unwrap(), part["output_tokens"].as_u64().unwrap());
        if usage["totals"]["total_tokens"] != 0 {
            sums.insert(of.clone(), tokens(&usage["totals"]));
        }
        for (name, list) in [("model", "by_model"), ("date", "by_day")] {
            for part in usage[list].as_array().unwrap() {
                sums.insert(format!("{of} {}", part[name].as_str().unwrap()), tokens(part));
            }
        }
    }
    sums
}

async fn assert_sums(server: &TestServer, expected: &Sums) {
    let keys = server.get("/v1/usage/keys?limit=100").send().await.expect(200);
    assert_eq!(&reported_sums(&usage(server, "").await, &keys), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_batches_from_eight_writers_sum_exactly() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let mut keys = vec![key_of(&server).await];
    for _ in 0..4 {
        keys.push(server.key(&["read"]).await.0);
    }
    let generated = Arc::new(generate(&keys, 3_000, 1, server.runner.app.clock.now()));
    let server = Arc::new(server);
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let (server, generated) = (Arc::clone(&server), Arc::clone(&generated));
        writers.spawn(async move {
            // Each writer sends three eighths of the events, so that three writers send each event.
            for batch in generated.events.chunks(generated.events.len().div_ceil(8)).cycle().skip(writer).take(3) {
                for batch in batch.chunks(250) {
                    // A busy store may time out. The writer then sends the batch again.
                    while report(&server, batch).await.status != 202 {}
                }
            }
        });
    }
    writers.join_all().await;
    assert_sums(&server, &generated.sums).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_across_keys_models_and_months_sums_exactly() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let mut keys = Vec::new();
    for _ in 0..25 {
        keys.push(server.key(&["read"]).await.0);
    }
    let now = server.runner.app.clock.now();
    let mut months = BTreeMap::<_, Sums>::new();
    let mut events = Vec::new();
    for id in 0..2_000_u64 {
        // Most events are in one month. Its keys have more models than fit inline, in more than one
        // item.
        let days = if id % 4 == 0 { id % 400 } else { id % 20 };
        let (at, model) = (now.minus(Duration::from_hours(24 * days)), format!("model-{}", id * 7 % 150));
        let key = keys[usize::try_from(id / 3 % 25).unwrap()];
        events.push(with(event(key, &id.to_string()), json!({ "occurred_at": at.to_string(), "model": model })));
        for of in ["all".to_owned(), format!("key {key}")] {
            let date = at.to_string()[..10].to_owned();
            for part in [of.clone(), format!("{of} {model}"), format!("{of} {date}")] {
                months.entry(at.month()).or_default().entry(part).or_default().0 += 10;
            }
        }
    }
    // Both batches introduce the same months and models at the same time.
    let [first, second] = [0, 1].map(|half| events.iter().skip(half).step_by(2).cloned().collect::<Vec<_>>());
    let (first, second) = tokio::join!(report(&server, &first), report(&server, &second));
    for answer in [first, second] {
        assert_eq!(answer.expect(202)["accepted"], 1_000);
    }
    for (month, sums) in months {
        let keys = server.get(&format!("/v1/usage/keys?period={month}&limit=100")).send().await.expect(200);
        assert_eq!(reported_sums(&usage(&server, &format!("?period={month}")).await, &keys), sums, "{month}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_writers_with_faults_sum_exactly() {
    let (server, proxy) = FaultProxy::start().await;
    let mut keys = vec![key_of(&server).await];
    for _ in 0..4 {
        keys.push(server.key(&["read"]).await.0);
    }
    let Generated { events, sums } = generate(&keys, 4_000, 2, server.runner.app.clock.now());
    for turn in 0..20 {
        proxy.fail_after("TransactWriteItems", 2, 1, StoreFault::Cancel { code: "TransactionConflict", at: turn });
        proxy.fail_after("TransactWriteItems", 2, 1, StoreFault::DropResponse);
        // More faults than the SDK retries.
        proxy.fail_after("TransactWriteItems", 2, if turn % 5 == 0 { 16 } else { 0 }, StoreFault::DropResponse);
    }
    let (server, mut writers) = (Arc::new(server), JoinSet::new());
    for events in events.chunks(events.len().div_ceil(8)) {
        let (server, events) = (Arc::clone(&server), events.to_vec());
        writers.spawn(async move {
            for batch in events.chunks(200) {
                while report(&server, batch).await.status != 202 {}
            }
        });
    }
    writers.join_all().await;
    proxy.heal();
    assert_sums(&server, &sums).await;
}

/// Sends one batch repeatedly and interrupts it one write later each time, until it completes. Then
/// compares the reported sums with the batch.
async fn interrupt_at_every_write(fault: StoreFault) {
    let (server, proxy) = FaultProxy::start().await;
    let now = server.runner.app.clock.now();
    let keys = [key_of(&server).await, server.key(&["read"]).await.0, server.key(&["read"]).await.0];
    let mut months = BTreeMap::<_, u64>::new();
    let mut events = Vec::new();
    for id in 0..500 {
        let occurred_at = now.minus(Duration::from_hours(24 * 30 * (id as u64 % 4)));
        let changes = json!({ "occurred_at": occurred_at.to_string(), "model": format!("model-{}", id % 7) });
        events.push(with(event(keys[id % 3], &id.to_string()), changes));
        *months.entry(occurred_at.month()).or_default() += 10;
    }
    let mut cuts = 0;
    loop {
        proxy.fail_after("TransactWriteItems", cuts, ALWAYS, fault);
        let answer = report(&server, &events).await;
        proxy.heal();
        if answer.status == 202 {
            break;
        }
        assert_eq!(answer.status, 503, "{fault:?}: {}", answer.text);
        cuts += 1;
    }
    assert!(cuts > 5, "{fault:?}: {cuts}");
    for (month, tokens) in months {
        let total = usage(&server, &format!("?period={month}")).await;
        let keys = server.get(&format!("/v1/usage/keys?period={month}")).send().await.expect(200);
        let input = |part: &Value| part["input_tokens"].as_u64().unwrap();
        let of_keys = || keys["keys"].as_array().unwrap().iter();
        let parts = |usage: &Value, list: &str| usage[list].as_array().unwrap().iter().map(input).sum::<u64>();
        let by_key = of_keys().map(|key| input(&key["totals"])).sum();
        let [by_model, by_day] = ["by_model", "by_day"].map(|list| of_keys().map(|key| parts(key, list)).sum());
        let sums = [parts(&total, "by_model"), parts(&total, "by_day"), by_key, by_model, by_day];
        assert_eq!((input(&total["totals"]), sums), (tokens, [tokens; 5]), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_interrupted_before_any_write_counts_once() {
    interrupt_at_every_write(StoreFault::Close).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_interrupted_after_any_write_counts_once() {
    interrupt_at_every_write(StoreFault::DropResponse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn throttled_or_conflicting_batch_counts_once() {
    interrupt_at_every_write(StoreFault::Throttle).await;
    interrupt_at_every_write(StoreFault::Cancel { code: "TransactionConflict", at: 3 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_process_counts_each_event_once() {
    const KILLS: u64 = 12;
    let folder = tempfile::tempdir().unwrap();
    let start = || Karta::start(&["--data-dir", folder.path().to_str().unwrap()]);
    let mut karta = start();
    let (admin, service) = (karta.says("api_key").to_owned(), karta.says("service_token").to_owned());
    let (_, caller) = karta.request(Method::GET, "/v1/whoami", &admin, &Value::Null).await;
    let generated = generate(&[caller["api_key_id"].as_u64().unwrap()], 1_200, 3, SystemClock.now());
    let mut unsent = generated.events.chunks(40).map(<[Value]>::to_vec);
    let (mut unacknowledged, mut interrupted) = (Vec::new(), 0);
    for kill in 0..KILLS {
        unacknowledged.extend(unsent.by_ref().take(3));
        let mut senders = JoinSet::new();
        for batch in unacknowledged.drain(..) {
            let request = reqwest::Client::new().post(format!("{}{EVENTS}", karta.says("base_url")));
            let request = request.bearer_auth(&service).body(json!({ "events": batch }).to_string());
            senders.spawn(async move {
                let taken = request.send().await.is_ok_and(|answer| answer.status() == 202);
                (!taken).then_some(batch)
            });
        }
        // The delay varies: from before the first write to after the last one.
        tokio::time::sleep(Duration::from_millis(kill * 37 % 12 * 25)).await;
        drop(karta);
        unacknowledged.extend(senders.join_all().await.into_iter().flatten());
        interrupted += usize::from(!unacknowledged.is_empty());
        karta = start();
    }
    assert!(interrupted > 2, "some kills must interrupt batches");
    for batch in unacknowledged.into_iter().chain(unsent) {
        let body = json!({ "events": batch });
        while karta.request(Method::POST, EVENTS, &service, &body).await.0 != 202 {}
    }
    let month = SystemClock.now().month();
    let read =
        async |path: &str| karta.request(Method::GET, &format!("{path}?period={month}"), &admin, &Value::Null).await.1;
    assert_eq!(reported_sums(&read("/v1/usage").await, &read("/v1/usage/keys").await), generated.sums);
}

#[tokio::test(flavor = "multi_thread")]
async fn organizations_fault_does_not_affect_others() {
    let (server, proxy) = FaultProxy::start().await;
    let now = server.runner.app.clock.now().to_string();
    let (_, other) = server.another_organization("globex").await;
    let whoami = server.get("/v1/whoami").bearer(&other).send().await.expect(200);
    let keys = [key_of(&server).await, whoami["api_key_id"].as_u64().unwrap()];
    let events = keys.map(|key| with(event(key, "1"), json!({ "occurred_at": now })));
    proxy.fail("TransactWriteItems", 1, StoreFault::Cancel { code: "ValidationError", at: 0 });
    report(&server, &events).await.refused(500);
    let mut counted = 0;
    for token in [&server.admin, &other] {
        let month = server.get("/v1/usage").bearer(token).send().await.expect(200);
        counted += month["totals"]["input_tokens"].as_u64().unwrap();
    }
    assert_eq!(counted, 10, "the event of the other organization");
    assert_eq!(report(&server, &events).await.expect(202)["accepted"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_over_many_organizations_counts_completely() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let mut events = Vec::new();
    for name in 0..20 {
        let (_, token) = server.another_organization(&format!("other-{name}")).await;
        let key = server.get("/v1/whoami").bearer(&token).send().await.expect(200);
        events.push(event(key["api_key_id"].as_u64().unwrap(), "1"));
    }
    for _ in 0..40 {
        events.push(event(server.key(&["read"]).await.0, &format!("line-{}", events.len())));
    }
    assert_eq!(report(&server, &events).await.expect(202)["accepted"], 60);
    assert_eq!(report(&server, &events).await.expect(202)["duplicates"], 60);
    assert_eq!(usage(&server, "").await["totals"]["input_tokens"], 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn overlong_model_name_counts_as_other() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let key = key_of(&server).await;
    let model = "é".repeat(128);
    report(&server, &[with(event(key, "1"), json!({ "model": model }))]).await.expect(202);
    assert_eq!(usage(&server, "").await["by_model"][0]["model"], "other");
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_conflicts_and_lost_responses_are_retried() {
    let (server, proxy) = FaultProxy::start().await;
    let now = server.runner.app.clock.now().to_string();
    let key = key_of(&server).await;
    let events: Vec<_> = (0..300).map(|id| with(event(key, &id.to_string()), json!({ "occurred_at": now }))).collect();
    for fault in [StoreFault::Cancel { code: "TransactionConflict", at: 0 }, StoreFault::DropResponse] {
        proxy.fail("TransactWriteItems", 1, fault);
        report(&server, &events).await.expect(202);
    }
    assert_eq!(usage(&server, "").await["totals"]["input_tokens"], 3_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn summary_reads_few_items() {
    let (server, proxy) = FaultProxy::start().await;
    let now = server.runner.app.clock.now().to_string();
    let key = key_of(&server).await;
    let named = |id: usize| {
        with(event(key, &id.to_string()), json!({ "occurred_at": now, "model": format!("model-{}", id % 20) }))
    };
    report(&server, &(0..500).map(named).collect::<Vec<_>>()).await.expect(202);
    server.get("/v1/whoami").send().await.expect(200);
    proxy.forget();
    assert_eq!(usage(&server, "").await["by_model"].as_array().unwrap().len(), 20);
    let read: BTreeSet<_> = proxy.seen().iter().flat_map(Seen::partitions).collect();
    let of_usage = read.iter().filter(|partition| !partition.starts_with("KEY#"));
    assert!(of_usage.count() <= 4, "{read:?}");
    let items: usize = proxy.seen().iter().map(|request| request.partitions().len()).sum();
    assert!(items <= 20, "{items}");
}

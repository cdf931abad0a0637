//! Metrics that functions write, as log lines in CloudWatch's embedded format.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use authorizer::{Authorizer, AuthorizerEvent};
use http::Method;
use karta_local::registry;
use karta_shared::{
    App,
    clock::{Clock, ManualClock},
    config::Ring,
    telemetry::Metrics,
    worker::{Wake, Worker},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use worker_audit_chain::AuditChain;
use worker_model_keys_reseal::ModelKeysReseal;

use crate::{
    harness::TestServer,
    internal::{Plane, request},
    model_keys::{provider_key, rotated},
    monitoring::{alarms, metric_of, metrics_of},
    webhooks::{Reaction, Receiver, endpoint, events_worker, on_loopback, settled},
};

#[derive(Debug, Clone, Default)]
struct Lines(Arc<Mutex<Vec<Value>>>);

impl Lines {
    /// Returns an empty capture and a copy of the app that writes its metrics to it.
    fn new(app: &App) -> (Self, App) {
        let lines = Self::default();
        let app = lines.app(app, "test");
        (lines, app)
    }

    fn app(&self, app: &App, function: &'static str) -> App {
        let (mut app, kept) = (app.clone(), Arc::clone(&self.0));
        app.metrics =
            Metrics::with_writer("Karta/test".to_owned(), function, move |line| kept.lock().unwrap().push(line));
        app
    }

    /// Returns the values of a metric and removes all lines.
    fn take(&self, metric: &str) -> Vec<f64> {
        std::mem::take(&mut *self.0.lock().unwrap()).iter().filter_map(|line| line[metric].as_f64()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_credential_check_is_counted_with_outcome() {
    let server = TestServer::start().await;
    let (lines, app) = Lines::new(&server.runner.app);
    let authorizer = Authorizer::new(app);
    let (key, token) = server.key(&["read"]).await;
    server.post("/v1/agent_projects", json!({ "slug": "app", "name": "App" })).send().await.expect(201);
    let minted = server.post("/v1/agent_projects/app/session_tokens", json!({})).send().await.expect(201);
    let authorize = async |header: String| {
        let event = AuthorizerEvent::token(header, "arn:aws:execute-api:local:000000000000:karta/local/GET/v1/whoami");
        authorizer.authorize(&event).await.unwrap();
        let mut written = std::mem::take(&mut *lines.0.lock().unwrap());
        assert_eq!(written.len(), 1, "one line per check: {written:?}");
        let line = written.remove(0);
        assert!(!line.to_string().contains(&server.organization_id.to_string()), "{line}");
        (line["Outcome"].as_str().unwrap().to_owned(), line["ProofCacheHits"].as_f64(), line["BcryptTime"].as_f64())
    };
    let bearer = |token: &str| format!("Bearer {token}");

    let (outcome, hit, bcrypt) = authorize(bearer(&token)).await;
    assert_eq!((outcome.as_str(), hit), ("valid", Some(0.0)));
    assert!(bcrypt.is_some_and(|milliseconds| milliseconds > 0.0));
    assert_eq!(authorize(bearer(&token)).await, ("valid".to_owned(), Some(1.0), None));
    server.delete(&format!("/v1/api_keys/{key}")).send().await.expect(200);
    assert_eq!(authorize(bearer(&token)).await, ("revoked".to_owned(), Some(1.0), None));
    assert_eq!(authorize(bearer(&format!("kt_live_{}", "a".repeat(32)))).await, ("tag".to_owned(), None, None));
    assert_eq!(authorize(bearer(minted["token"].as_str().unwrap())).await, ("valid".to_owned(), None, None));
    assert_eq!(authorize(bearer("a.b.c")).await, ("malformed".to_owned(), None, None));
    assert_eq!(authorize("Basic YQ==".to_owned()).await, ("malformed".to_owned(), None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_lag_is_the_oldest_events_age() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (lines, app) = Lines::new(&server.runner.app);
    let plane = Plane::new(&app);
    let (key, _) = server.key(&["read"]).await;
    clock.advance(Duration::from_mins(1));
    let event = |id: &str, at: &str, key: u64| json!({ "api_key_id": key, "kind": "input_tokens", "quantity": 1, "occurred_at": at, "client_event_id": id });
    let report = async |batch: Value| {
        let token = server.runner.secrets.service_token.expose_secret();
        let request = request(&Method::POST, "/v1/internal/usage/events", Some(token));
        let body = json!({ "events": batch }).to_string();
        plane.send("127.0.0.1", "localhost", request, body).await.expect(202);
        lines.take("UsageLag")
    };
    let batch = json!([event("1", "2026-11-21T12:00:45Z", key), event("2", "2026-11-21T12:00:58.500Z", key)]);
    assert_eq!(report(batch).await, [15_000.0]);
    assert_eq!(
        report(json!([event("3", "2026-11-21T12:01:30Z", key)])).await,
        [0.0],
        "an event from the future has no lag"
    );
    assert!(
        report(json!([event("4", "2026-11-21T12:00:45Z", 7)])).await.is_empty(),
        "an event of an unknown key has no lag"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_first_attempts_count_as_delivery_lag() {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let server = TestServer::start_as(on_loopback(Arc::clone(&clock) as Arc<dyn Clock>), None).await;
    let (lines, app) = Lines::new(&server.runner.app);
    let (receiver, worker) = (Receiver::start().await, events_worker(&app, Duration::ZERO));
    let (id, _) = endpoint(&server, &receiver.url, &["*"]).await;
    let work = async || {
        worker.work(&Wake::Sweep).await.unwrap();
        settled(&server).await;
        std::mem::take(&mut *lines.0.lock().unwrap())
    };
    let values =
        |written: &[Value], metric: &str| written.iter().filter_map(|line| line[metric].as_f64()).collect::<Vec<_>>();
    let oldest = |written: &[Value], queue: &str| {
        let of_queue: Vec<_> = written.iter().filter(|line| line["Queue"] == queue).cloned().collect();
        values(&of_queue, "OutboxAge").into_iter().fold(f64::NAN, f64::max)
    };
    work().await;

    receiver.react(Reaction::Status(500));
    server.key(&["read"]).await;
    clock.advance(Duration::from_millis(1_500));
    let written = work().await;
    assert_eq!((values(&written, "DeliveryLag"), oldest(&written, "events")), (vec![1_500.0], 1.5));

    receiver.react(Reaction::Status(200));
    clock.advance(Duration::from_secs(30));
    let written = work().await;
    assert!(values(&written, "DeliveryLag").is_empty(), "a retry does not count");
    assert!((15.0..=30.0).contains(&oldest(&written, "deliveries")), "the age counts from the retry's due time");
    assert!(oldest(&written, "events") < 0.001, "the event queue is empty");

    let page = server.get(&format!("/v1/webhook_endpoints/{id}/deliveries")).send().await.expect(200);
    let replay = format!("/v1/webhook_endpoints/{id}/deliveries/{}/replay", page["deliveries"][0]["id"]);
    server.request(Method::POST, &replay).send().await.expect(202);
    let written = work().await;
    assert_eq!(receiver.received().len(), 3);
    assert!(values(&written, "DeliveryLag").is_empty(), "a replay does not count");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_worker_metric_has_a_missing_data_alarm() {
    let server = TestServer::start().await;
    let lines = Lines::default();
    let names: Vec<_> = registry::workers(&server.runner.app, &server.runner.gateway).into_keys().collect();
    for name in names {
        registry::workers(&lines.app(&server.runner.app, name), &server.runner.gateway)[name]().await.unwrap();
    }
    let written: BTreeSet<_> = lines.0.lock().unwrap().iter().flat_map(metrics_of).collect();
    let alarms = alarms().into_values().filter(|alarm| alarm["TreatMissingData"] == "breaching");
    let watched: Vec<_> = alarms.map(|alarm| metric_of(&alarm)).collect();
    assert_eq!(watched.iter().cloned().collect::<BTreeSet<_>>(), written);
    assert_eq!(watched.len(), written.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_chain_reports_lag_and_rewritten_events() {
    let (mut server, clock) = TestServer::start_at_noon().await;
    let (lines, app) = Lines::new(&server.runner.app);
    let worker = AuditChain::new(app);
    clock.advance(Duration::from_secs(90));
    let work = async |metric: &str| {
        worker.work(&Wake::Sweep).await.unwrap();
        lines.take(metric)
    };
    assert_eq!(work("AuditChainLag").await, [90.0]);
    assert_eq!(work("AuditChainLag").await, [0.0]);
    assert!(work("AuditEventsRewritten").await.is_empty());

    server.skip_audit_check();
    let mut item = server.items(&format!("AUD#{}", server.organization_id)).await.remove(0);
    item["unchained"] = json!({ "S": "UNC#1" });
    item.as_object_mut().unwrap().remove("link");
    server.dynamodb("PutItem", json!({ "TableName": "karta", "Item": item })).await;
    assert_eq!(work("AuditEventsRewritten").await, [1.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn reseal_sweep_reports_the_remaining_keys() {
    let server = TestServer::start().await;
    let body = json!({ "provider": "openai", "key": provider_key("sk-") });
    server.post("/v1/model_keys", body).send().await.expect(201);
    let lost = server.app_with_ring(Ring::SealingByok, |ring| {
        *ring = json!({ "current": "k2", "k2": "2".repeat(64) });
    });
    for (app, left) in [(lost, 1.0), (rotated(&server), 0.0)] {
        let (lines, app) = Lines::new(&app);
        assert_eq!(ModelKeysReseal::new(app).work(&Wake::Sweep).await.is_err(), left > 0.0);
        assert_eq!(lines.take("SealedRemaining"), [left]);
    }
}

//! Webhooks: endpoints, events and deliveries.

mod deliveries;
mod endpoints;
mod events;
mod faults;
mod kills;
mod receiver;
mod requests;
mod secrets;
mod waking;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use karta_local::{Options, registry};
use karta_shared::{
    App,
    clock::{Clock, ManualClock},
    domain::{Event, EventType, Id, Reach},
    store::{CommitError, Conflict},
    worker::{Wake, Worker},
};
use serde_json::{Value, json};
use worker_webhook_deliveries::WebhookDeliveries;
use worker_webhook_events::{Waker, WebhookEvents};

use crate::harness::{TestServer, note_secret, options, plain, until};
pub(crate) use receiver::{Reaction, Receiver};

const ROUTE: &str = "/v1/webhook_endpoints";
/// The URL of a receiver that the tests send nothing to.
const URL: &str = "https://hooks.example.com/T000?team=7";

/// Returns options of a server that may send webhooks to this machine.
pub(crate) fn on_loopback(clock: Arc<dyn Clock>) -> Options {
    Options { outbound_reach: Reach::Loopback, ..options(clock) }
}

/// A server that may send webhooks to this machine, and its workers.
struct WebhookServer {
    server: TestServer,
    events_worker: WebhookEvents,
}

/// Returns the worker that fans out events. The delivery worker that it wakes waits at most
/// `max_wait` for the next attempt.
pub(crate) fn events_worker(app: &App, max_wait: Duration) -> WebhookEvents {
    let deliveries =
        WebhookDeliveries::new(app.for_function(WebhookDeliveries::NAME), Vec::new()).with_max_wait(max_wait);
    WebhookEvents::new(app.for_function(WebhookEvents::NAME), registry::waker(deliveries))
}

/// Writes events of `acme` without any other change.
async fn publish_events(server: &TestServer, count: usize) {
    let app = &server.runner.app;
    let organization = Id::new(server.organization_id).unwrap();
    let mut published = 0;
    while published < count {
        let mut ids = BTreeSet::new();
        while ids.len() < (count - published).min(50) {
            let age = Duration::from_millis((published + ids.len()) as u64 / 64);
            ids.insert(Id::draw(app.clock.now().minus(age), &*app.entropy));
        }
        let mut transaction = app.store.transaction();
        for id in &ids {
            let event = Event {
                id: *id,
                event_type: EventType::ReleaseCreated,
                created_at: id.drawn_at(),
                organization_id: organization,
                data: json!({ "number": id }).to_string(),
                only_endpoint: None,
            };
            transaction.publish(&event).unwrap();
        }
        match transaction.commit().await {
            Ok(()) => published += ids.len(),
            // The clock does not move, so an id of an earlier call may be drawn again.
            Err(CommitError::Conflict(Conflict::IdTaken)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

impl WebhookServer {
    /// Starts on a manual clock. Workers do not wait for retries.
    async fn start() -> (Self, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
        let server = TestServer::start_as(on_loopback(Arc::clone(&clock) as Arc<dyn Clock>), None).await;
        (Self::new(server, Duration::ZERO), clock)
    }

    fn new(server: TestServer, max_wait: Duration) -> Self {
        Self { events_worker: events_worker(&server.runner.app, max_wait), server }
    }

    /// Fans out pending events and serves every endpoint that has due deliveries.
    async fn work(&self) {
        self.events_worker.work(&Wake::Sweep).await.unwrap();
    }

    /// Fans out pending events and serves no endpoint.
    async fn fan_out(&self) {
        let silent_waker = Waker::Local(Arc::new(|_, _| {}));
        WebhookEvents::new(self.server.runner.app.for_function(WebhookEvents::NAME), silent_waker)
            .work(&Wake::Sweep)
            .await
            .unwrap();
    }

    /// Calls `work` and waits until no delivery is due.
    async fn deliver(&self) {
        self.work().await;
        self.settled().await;
    }

    async fn settled(&self) {
        settled(&self.server).await;
    }
}

/// Waits until no delivery is due and no endpoint is leased.
pub(crate) async fn settled(server: &TestServer) {
    let is_quiet = async || {
        let queues = server.outbox("WHQ").await;
        let now = server.runner.app.clock.now().to_string();
        let is_busy =
            |queue: &Value| queue["lease"].is_string() || queue["due_at"].as_str().is_some_and(|at| at <= now.as_str());
        !queues.iter().any(is_busy)
    };
    until("idle webhook queues", is_quiet).await;
}

/// Creates an endpoint of `acme` and returns its id and secret.
pub(crate) async fn endpoint(server: &TestServer, url: &str, event_types: &[&str]) -> (u64, String) {
    let created = server.post("/v1/webhook_endpoints", json!({ "url": url, "event_types": event_types }));
    let created = created.send().await.expect(201);
    let secret = created["secret"].as_str().unwrap().to_owned();
    note_secret(&secret);
    (created["webhook_endpoint"]["id"].as_u64().unwrap(), secret)
}

/// Returns the deliveries of an endpoint, newest first.
async fn deliveries(server: &TestServer, endpoint: u64) -> Vec<Value> {
    let path = format!("/v1/webhook_endpoints/{endpoint}/deliveries?limit=100");
    let mut page = server.get(&path).send().await.expect(200);
    page["deliveries"].as_array_mut().unwrap().split_off(0)
}

/// Returns the number of endpoints of `acme`, and the count that the store keeps.
async fn counted(server: &TestServer) -> (usize, usize) {
    let items = server.items(&format!("WH#{}", server.organization_id)).await;
    let (count, endpoints): (Vec<_>, Vec<_>) = items.iter().map(plain).partition(|item| item["sk"] == "COUNT");
    (endpoints.len(), count.first().map_or(0, |count| count["endpoints"].as_u64().unwrap().try_into().unwrap()))
}

//! Workers that are killed while they work.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use karta_shared::{
    clock::{Clock, ManualClock},
    domain::Id,
    store::OutboxKey,
    worker::{Wake, Worker},
};
use tokio::time::{sleep, timeout};
use worker_webhook_deliveries::WebhookDeliveries;
use worker_webhook_events::{Waker, WebhookEvents};

use super::{Reaction, Receiver, WebhookServer, deliveries, endpoint, events_worker, on_loopback, publish_events};
use crate::fault_proxy::{ALWAYS, ANY, FaultProxy, StoreFault};

/// A time longer than any lease.
const LATER: Duration = Duration::from_mins(2);

/// Counts how often each event was received.
fn arrivals(receiver: &Receiver) -> BTreeMap<String, usize> {
    let mut arrivals = BTreeMap::new();
    for delivery in receiver.received() {
        *arrivals.entry(delivery.header("webhook-id").to_owned()).or_default() += 1;
    }
    arrivals
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_after_any_call_loses_nothing() {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_as(on_loopback(Arc::clone(&clock) as Arc<dyn Clock>)).await;
    let webhooks = WebhookServer::new(server, Duration::ZERO);
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    let organization_id = Id::new(server.organization_id).unwrap();
    let serve = Wake::Endpoint { organization_id, webhook_endpoint_id: Id::new(id).unwrap() };
    let app = &server.runner.app;
    let events_worker = WebhookEvents::new(app.for_function(WebhookEvents::NAME), Waker::Local(Arc::new(|_, _| ())));
    let mut published = 0;
    for fails in [false, true] {
        for which in ["events", "deliveries"] {
            for calls in 0.. {
                receiver.react(Reaction::Status(if fails { 500 } else { 200 }));
                publish_events(server, 1).await;
                published += 1;
                // The delivery worker is killed after the events are fanned out.
                if which == "deliveries" {
                    events_worker.work(&Wake::Sweep).await.unwrap();
                }
                let pending = server.outbox("EVT").await.into_iter().filter(|event| event["due_at"].is_string());
                let pending =
                    pending.map(|event| OutboxKey { organization_id, sk: event["sk"].as_str().unwrap().to_owned() });
                let written = Wake::Written(pending.collect());
                proxy.fail_after(ANY, calls, ALWAYS, StoreFault::HoldResponse);
                let deliveries_worker = WebhookDeliveries::new(app.for_function(WebhookDeliveries::NAME), Vec::new())
                    .with_max_wait(Duration::ZERO);
                let work = async {
                    match which {
                        "events" => events_worker.work(&written).await,
                        _ => deliveries_worker.work(&serve).await,
                    }
                };
                // Dropping the future kills the worker while it waits for the response.
                let is_completed = tokio::select! {
                    done = work => { done.unwrap(); true }
                    () = proxy.held() => false,
                };
                proxy.heal();
                proxy.release();
                receiver.react(Reaction::Status(200));
                clock.advance(LATER);
                webhooks.deliver().await;
                clock.advance(Duration::from_mins(10));
                webhooks.deliver().await;
                let arrived = arrivals(&receiver).len();
                assert_eq!(arrived, published, "{which} after {calls} calls, failing: {fails}");
                let listed = deliveries(server, id).await;
                assert!(
                    listed.iter().all(|delivery| delivery["status"] == "succeeded"),
                    "{which} {calls}: {listed:#?}"
                );
                if is_completed {
                    assert!(calls > 2, "{which} makes more calls than {calls}");
                    break;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_is_repeated_after_kill_during_response() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    receiver.react(Reaction::Held);
    publish_events(server, 1).await;
    let killed = events_worker(&server.runner.app, Duration::ZERO);
    killed.work(&Wake::Sweep).await.unwrap();
    receiver.wait_for(1).await;
    drop(killed);
    receiver.react(Reaction::Status(200));
    // The lease is still valid, so no other worker sends.
    webhooks.work().await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(receiver.received().len(), 1);
    clock.advance(LATER);
    webhooks.deliver().await;
    assert_eq!(receiver.received().len(), 2);
    assert_eq!(deliveries(server, id).await[0]["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_arrives_despite_random_kills() {
    const EVENTS: usize = 300;
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let (first, second) = (Receiver::start().await, Receiver::start().await);
    endpoint(server, &first.url, &["*"]).await;
    endpoint(server, &second.url, &["release.created"]).await;
    publish_events(server, EVENTS).await;
    let mut killed = 0;
    for round in 0.. {
        let worker = events_worker(&server.runner.app, Duration::ZERO);
        let mut random = [0];
        server.runner.app.entropy.fill(&mut random);
        let alive = Duration::from_millis(20 + u64::from(random[0]) + 5 * round);
        timeout(alive, async {
            worker.work(&Wake::Sweep).await.unwrap();
            sleep(alive).await;
        })
        .await
        .ok();
        drop(worker);
        killed += 1;
        clock.advance(LATER);
        if [&first, &second].iter().all(|receiver| arrivals(receiver).len() == EVENTS) {
            break;
        }
    }
    assert!(killed > 3, "{killed}");
    webhooks.deliver().await;
    let ids = |receiver: &Receiver| arrivals(receiver).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(ids(&first), ids(&second), "with the same ids");
    let twice = arrivals(&first).values().filter(|times| **times > 1).count();
    // A kill repeats at most the five attempts in progress, and the five of a queue that was leased
    // just before.
    assert!(twice <= 10 * killed, "{twice} of {EVENTS} came more than once, after {killed} kills");
}

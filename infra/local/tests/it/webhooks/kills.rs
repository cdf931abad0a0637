//! Workers that end in the middle of what they do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use karta_shared::{
    clock::{Clock, ManualClock},
    domain::Id,
    store::DueItem,
    worker::{Wake, Worker},
};
use tokio::time::{sleep, timeout};
use worker_webhook_deliveries::WebhookDeliveries;
use worker_webhook_events::{Waker, WebhookEvents};

use super::{Post, Reaction, Receiver, announce, deliveries, endpoint, events, on_loopback};
use crate::fault_proxy::{ALWAYS, ANY, Fault, FaultProxy};

/// Longer than any lease.
const LATER: Duration = Duration::from_mins(2);

/// How often each event was received.
fn arrivals(receiver: &Receiver) -> BTreeMap<String, usize> {
    let mut arrivals = BTreeMap::new();
    for delivery in receiver.received() {
        *arrivals.entry(delivery.header("webhook-id").to_owned()).or_default() += 1;
    }
    arrivals
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_any_call_to_the_store_a_worker_loses_nothing() {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_as(on_loopback(Arc::clone(&clock) as Arc<dyn Clock>)).await;
    let post = Post::new(server, Duration::ZERO);
    let server = &post.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    let organization_id = Id::new(server.organization_id).unwrap();
    let serve = Wake::Endpoint { organization_id, webhook_endpoint_id: Id::new(id).unwrap() };
    let app = &server.runner.app;
    let silent = WebhookEvents::new(app.for_function(WebhookEvents::NAME), Waker::Local(Arc::new(|_, _| ())));
    let mut told = 0;
    for fails in [false, true] {
        for which in ["events", "deliveries"] {
            for calls in 0.. {
                receiver.react(Reaction::Status(if fails { 500 } else { 200 }));
                announce(server, 1).await;
                told += 1;
                if which == "deliveries" {
                    silent.work(&Wake::Sweep).await.unwrap();
                }
                let waits = server.outbox("EVT").await.into_iter().filter(|event| event["due_at"].is_string());
                let waits =
                    waits.map(|event| DueItem { organization_id, sk: event["sk"].as_str().unwrap().to_owned() });
                let written = Wake::Written(waits.collect());
                proxy.fail_after(ANY, calls, ALWAYS, Fault::HoldAnswer);
                let courier = WebhookDeliveries::new(app.for_function(WebhookDeliveries::NAME), Vec::new())
                    .with_max_wait(Duration::ZERO);
                let work = async {
                    match which {
                        "events" => silent.work(&written).await,
                        _ => courier.work(&serve).await,
                    }
                };
                // Whoever waits for the answer is dropped with it.
                let is_whole = tokio::select! {
                    done = work => { done.unwrap(); true }
                    () = proxy.held() => false,
                };
                proxy.heal();
                proxy.release();
                receiver.react(Reaction::Status(200));
                clock.advance(LATER);
                post.deliver().await;
                clock.advance(Duration::from_mins(10));
                post.deliver().await;
                let arrived = arrivals(&receiver).len();
                assert_eq!(arrived, told, "{which} after {calls} calls, failing: {fails}");
                let listed = deliveries(server, id).await;
                assert!(
                    listed.iter().all(|delivery| delivery["status"] == "succeeded"),
                    "{which} {calls}: {listed:#?}"
                );
                if is_whole {
                    assert!(calls > 2, "{which} makes more calls than {calls}");
                    break;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_the_receiver_answers_a_worker_sends_again() {
    let (post, clock) = Post::start().await;
    let server = &post.server;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    receiver.react(Reaction::Held);
    announce(server, 1).await;
    let killed = events(&server.runner.app, Duration::ZERO);
    killed.work(&Wake::Sweep).await.unwrap();
    receiver.wait_for(1).await;
    drop(killed);
    receiver.react(Reaction::Status(200));
    // The lease holds: nobody else sends meanwhile.
    post.work().await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(receiver.received().len(), 1);
    clock.advance(LATER);
    post.deliver().await;
    assert_eq!(receiver.received().len(), 2);
    assert_eq!(deliveries(server, id).await[0]["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_under_random_kills_all_arrive_at_least_once() {
    const EVENTS: usize = 300;
    let (post, clock) = Post::start().await;
    let server = &post.server;
    let (first, second) = (Receiver::start().await, Receiver::start().await);
    endpoint(server, &first.url, &["*"]).await;
    endpoint(server, &second.url, &["release.created"]).await;
    announce(server, EVENTS).await;
    let mut killed = 0;
    for round in 0.. {
        let worker = events(&server.runner.app, Duration::ZERO);
        let mut random = [0];
        server.runner.app.entropy.fill(&mut random);
        // Its deliveries end with it.
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
    post.deliver().await;
    let ids = |receiver: &Receiver| arrivals(receiver).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(ids(&first), ids(&second), "with the same ids");
    let twice = arrivals(&first).values().filter(|times| **times > 1).count();
    // A kill leaves at most the five that are under way, and the five of a queue that was taken just before.
    assert!(twice <= 10 * killed, "{twice} of {EVENTS} came more than once, after {killed} kills");
}

//! A webhook receiver on loopback.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::sleep};

use crate::harness::until;

#[derive(Debug, Clone)]
pub(crate) enum Reaction {
    Status(u16),
    WithBody(u16, &'static str),
    /// 503 with `Retry-After` in seconds.
    RetryAfter(u64),
    /// 200, once the test releases it.
    Held,
    /// 200 to a group of this many requests, once the last of them has arrived.
    Together(usize),
}

#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

struct Shared {
    reaction: Mutex<Reaction>,
    received: Mutex<Vec<Received>>,
    /// The number of requests in progress, and its maximum.
    in_progress: Mutex<(usize, usize)>,
    released: watch::Sender<usize>,
    groups: watch::Sender<usize>,
}

pub(crate) struct Receiver {
    pub(crate) url: String,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hooks?team=7", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            reaction: Mutex::new(Reaction::Status(200)),
            received: Mutex::default(),
            in_progress: Mutex::default(),
            released: watch::Sender::new(0),
            groups: watch::Sender::new(0),
        });
        let router = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared, server }
    }

    pub(crate) fn react(&self, reaction: Reaction) {
        *self.shared.reaction.lock().unwrap() = reaction;
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    pub(crate) fn release(&self) {
        self.shared.released.send_modify(|released| *released += 1);
    }

    /// Waits for `count` requests and returns all that have arrived.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Received> {
        until(&format!("{count} deliveries"), async || self.received().len() >= count).await;
        self.received()
    }

    pub(crate) fn max_parallel(&self) -> usize {
        self.shared.in_progress.lock().unwrap().1
    }

    pub(crate) fn received_types(&self) -> Vec<String> {
        self.received().iter().map(|received| received.json()["type"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let body = String::from_utf8(body.to_vec()).unwrap();
    let before = {
        let mut received = shared.received.lock().unwrap();
        received.push(Received { headers, body });
        received.len() - 1
    };
    let mut released = shared.released.subscribe();
    let mut groups = shared.groups.subscribe();
    {
        let mut in_progress = shared.in_progress.lock().unwrap();
        in_progress.0 += 1;
        in_progress.1 = in_progress.1.max(in_progress.0);
    }
    let reaction = shared.reaction.lock().unwrap().clone();
    let status = |status: u16| StatusCode::from_u16(status).unwrap();
    let answer = match reaction {
        Reaction::Status(code) => status(code).into_response(),
        Reaction::WithBody(code, text) => (status(code), text).into_response(),
        Reaction::RetryAfter(seconds) => (status(503), [("retry-after", seconds.to_string())]).into_response(),
        Reaction::Held => {
            released.changed().await.unwrap();
            status(200).into_response()
        }
        Reaction::Together(count) => {
            let group = before / count;
            if before % count == count - 1 {
                // Wait in case one request too many arrives.
                sleep(Duration::from_millis(20)).await;
                shared.groups.send_modify(|groups| *groups = group + 1);
            } else {
                groups.wait_for(|groups| *groups > group).await.unwrap();
            }
            status(200).into_response()
        }
    };
    shared.in_progress.lock().unwrap().0 -= 1;
    answer
}

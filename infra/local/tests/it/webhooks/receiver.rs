//! A receiver of webhooks, on loopback.

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

/// How it answers.
#[derive(Debug, Clone)]
pub(crate) enum Reaction {
    Status(u16),
    /// With this body.
    Says(u16, &'static str),
    /// A refusal, and for how many seconds it asks to be left alone.
    Later(u64),
    /// 200, once the test releases it.
    Held,
    /// 200, in groups of so many: once the last of a group has arrived.
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

struct Desk {
    reaction: Mutex<Reaction>,
    received: Mutex<Vec<Received>>,
    /// How many are being answered, and how many were at most.
    at_once: Mutex<(usize, usize)>,
    /// Counts the releases of answers that are held.
    released: watch::Sender<usize>,
    /// Counts the groups that were answered.
    groups: watch::Sender<usize>,
}

pub(crate) struct Receiver {
    pub(crate) url: String,
    desk: Arc<Desk>,
    served: JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hooks?team=7", listener.local_addr().unwrap());
        let desk = Arc::new(Desk {
            reaction: Mutex::new(Reaction::Status(200)),
            received: Mutex::default(),
            at_once: Mutex::default(),
            released: watch::Sender::new(0),
            groups: watch::Sender::new(0),
        });
        let router = Router::new().fallback(receive).with_state(Arc::clone(&desk));
        let served = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, desk, served }
    }

    pub(crate) fn react(&self, reaction: Reaction) {
        *self.desk.reaction.lock().unwrap() = reaction;
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.desk.received.lock().unwrap().clone()
    }

    /// Lets the answers go that are held.
    pub(crate) fn release(&self) {
        self.desk.released.send_modify(|released| *released += 1);
    }

    /// The requests, once there are `count` of them.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Received> {
        until(&format!("{count} deliveries"), async || self.received().len() >= count).await;
        self.received()
    }

    /// The most that were under way at once.
    pub(crate) fn at_once(&self) -> usize {
        self.desk.at_once.lock().unwrap().1
    }

    /// The types of what it was sent, in order.
    pub(crate) fn told(&self) -> Vec<String> {
        self.received().iter().map(|received| received.json()["type"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn receive(State(desk): State<Arc<Desk>>, headers: HeaderMap, body: Bytes) -> Response {
    let body = String::from_utf8(body.to_vec()).unwrap();
    let before = {
        let mut received = desk.received.lock().unwrap();
        received.push(Received { headers, body });
        received.len() - 1
    };
    let mut released = desk.released.subscribe();
    let mut groups = desk.groups.subscribe();
    {
        let mut at_once = desk.at_once.lock().unwrap();
        at_once.0 += 1;
        at_once.1 = at_once.1.max(at_once.0);
    }
    let reaction = desk.reaction.lock().unwrap().clone();
    let status = |status: u16| StatusCode::from_u16(status).unwrap();
    let answer = match reaction {
        Reaction::Status(code) => status(code).into_response(),
        Reaction::Says(code, text) => (status(code), text).into_response(),
        Reaction::Later(seconds) => (status(503), [("retry-after", seconds.to_string())]).into_response(),
        Reaction::Held => {
            released.changed().await.unwrap();
            status(200).into_response()
        }
        Reaction::Together(count) => {
            let group = before / count;
            if before % count == count - 1 {
                // Time for one too many to arrive.
                sleep(Duration::from_millis(20)).await;
                desk.groups.send_modify(|groups| *groups = group + 1);
            } else {
                groups.wait_for(|groups| *groups > group).await.unwrap();
            }
            status(200).into_response()
        }
    };
    desk.at_once.lock().unwrap().0 -= 1;
    answer
}

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
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

/// How it answers.
#[derive(Debug, Clone)]
pub(crate) enum Reaction {
    Status(u16),
    /// With this body.
    Says(u16, &'static str),
    /// A refusal, and for how many seconds it asks to be left alone.
    Later(u64),
    /// 200, after a while.
    Slow(Duration),
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
    desk.received.lock().unwrap().push(Received { headers, body });
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
        Reaction::Slow(pause) => {
            sleep(pause).await;
            status(200).into_response()
        }
    };
    desk.at_once.lock().unwrap().0 -= 1;
    answer
}

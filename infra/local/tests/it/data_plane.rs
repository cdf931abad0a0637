//! A fake data plane. It records every request and responds with a [`Reaction`].

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Instant,
};

use axum::{Router, body::Bytes, extract::State, response::IntoResponse};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::harness::{note_secret, until};

#[derive(Debug, Clone)]
pub(crate) enum Reaction {
    Status(u16),
    /// Accepts the call and never responds.
    Hang,
    /// Redirects to this URL.
    Redirect(String),
}

/// A received request.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) at: Instant,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

pub(crate) struct DataPlane {
    pub(crate) url: String,
    pub(crate) token: String,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    reaction: Mutex<Reaction>,
    received: Mutex<Vec<Received>>,
}

impl DataPlane {
    /// Starts a data plane that returns 204. Its token repeats `letter`.
    pub(crate) async fn start(letter: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { reaction: Mutex::new(Reaction::Status(204)), received: Mutex::default() });
        let router = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url: format!("http://{address}"), token: token(letter), shared, server }
    }

    pub(crate) fn react(&self, reaction: Reaction) {
        *self.shared.reaction.lock().unwrap() = reaction;
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// Removes the received requests and returns their organizations in order.
    pub(crate) fn take_organizations(&self) -> Vec<u64> {
        let received: Vec<_> = self.shared.received.lock().unwrap().drain(..).collect();
        received.iter().map(|request| request.body["organization_id"].as_u64().unwrap()).collect()
    }

    /// Waits for `count` requests and returns all received ones.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Received> {
        until(&format!("{count} requests"), async || self.received().len() >= count).await;
        self.received()
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The JSON of the secret that configures these data planes.
pub(crate) fn configured(planes: &[(&str, &DataPlane)]) -> String {
    let planes = planes.iter().map(|(name, plane)| {
        let url: &str = &plane.url;
        ((*name).to_owned(), json!({ "url": url, "token": plane.token }))
    });
    planes.collect::<Value>().to_string()
}

pub(crate) fn token(letter: &str) -> String {
    let token = format!("outbound_{}", letter.repeat(32));
    note_secret(&token);
    token
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let (at, path) = (Instant::now(), uri.to_string());
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    shared.received.lock().unwrap().push(Received { at, method, path, headers, body });
    let reaction = shared.reaction.lock().unwrap().clone();
    match reaction {
        Reaction::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Reaction::Hang => std::future::pending().await,
        Reaction::Redirect(url) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, url)]).into_response(),
    }
}

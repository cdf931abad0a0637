use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    response::Response,
};
use http::HeaderMap;
use tokio::net::TcpListener;

type Counts = Arc<Mutex<BTreeMap<String, usize>>>;

/// A proxy between the SDK and the embedded store that counts requests by operation.
pub(crate) struct CountingProxy {
    listener: Mutex<Option<TcpListener>>,
    url: String,
    counts: Counts,
}

impl CountingProxy {
    pub(crate) async fn bind() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        Ok(Self { listener: Mutex::new(Some(listener)), url, counts: Counts::default() })
    }

    /// Starts the proxy in front of `store`, once, and returns the URL to call instead.
    pub(crate) fn serve(&self, store: &str) -> String {
        let taken = self.listener.lock().ok().and_then(|mut listener| listener.take());
        if let Some(listener) = taken {
            let state = (store.to_owned(), reqwest::Client::new(), Arc::clone(&self.counts));
            let service = Router::new().fallback(pass).with_state(state);
            tokio::spawn(async move { axum::serve(listener, service).await });
        }
        self.url.clone()
    }

    pub(crate) fn reset(&self) {
        if let Ok(mut counts) = self.counts.lock() {
            counts.clear();
        }
    }

    /// Returns a text such as `500 Query, 500 BatchGetItem`.
    pub(crate) fn counts(&self) -> String {
        let counts = self.counts.lock().map(|counts| counts.clone()).unwrap_or_default();
        let counts = counts.iter().map(|(operation, count)| format!("{count} {operation}"));
        counts.collect::<Vec<_>>().join(", ")
    }
}

async fn pass(
    State((store, client, counts)): State<(String, reqwest::Client, Counts)>,
    mut headers: HeaderMap,
    body: Bytes,
) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
    if let Ok(mut counts) = counts.lock() {
        *counts.entry(operation).or_default() += 1;
    }
    headers.remove(http::header::HOST);
    let mut response = Response::new(Body::empty());
    match client.post(store).headers(headers).body(body).send().await {
        Ok(answer) => {
            *response.status_mut() = answer.status();
            *response.body_mut() = Body::from(answer.bytes().await.unwrap_or_default());
        }
        Err(_) => *response.status_mut() = http::StatusCode::BAD_GATEWAY,
    }
    response
}

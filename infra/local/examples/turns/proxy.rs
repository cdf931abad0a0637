//! A proxy between the SDK and the embedded store.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    response::Response,
};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const TRANSACTION: &str = "TransactWriteItems";

/// Counts calls by operation and, if enabled, makes transactions conflict.
pub(crate) struct CountingProxy {
    listener: Mutex<Option<TcpListener>>,
    url: String,
    client: reqwest::Client,
    calls: Mutex<BTreeMap<String, usize>>,
    /// One of this many transactions conflicts; 0 disables conflicts.
    conflict_every: AtomicUsize,
    transactions: AtomicUsize,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Faults {
    None,
    /// Of this many transactions one conflicts with another writer, and does not reach the store.
    ConflictEvery(usize),
}

/// Numbers of calls by operation, of this many turns.
pub(crate) struct Calls {
    calls: BTreeMap<String, usize>,
    turns: usize,
}

impl Calls {
    pub(crate) fn mean(self, turns: usize) -> Self {
        Self { turns, ..self }
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "a count of calls")]
        let mean = |calls: usize| calls as f64 / self.turns as f64;
        write!(f, "{}:", mean(self.calls.values().sum()))?;
        self.calls.iter().try_for_each(|(operation, calls)| write!(f, " {operation} {}", mean(*calls)))
    }
}

impl CountingProxy {
    pub(crate) async fn bind() -> Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        Ok(Arc::new(Self {
            listener: Mutex::new(Some(listener)),
            url,
            client: reqwest::Client::new(),
            calls: Mutex::default(),
            conflict_every: AtomicUsize::new(0),
            transactions: AtomicUsize::new(0),
        }))
    }

    /// Serves in front of `store`. Returns the proxy's URL.
    pub(crate) fn serve(self: &Arc<Self>, store: &str) -> String {
        if let Some(listener) = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let service = Router::new().fallback(pass).with_state((Arc::clone(self), store.to_owned()));
            tokio::spawn(async move { axum::serve(listener, service).await });
        }
        self.url.clone()
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        let every = match faults {
            Faults::None => 0,
            Faults::ConflictEvery(every) => every,
        };
        self.conflict_every.store(every, Ordering::Relaxed);
    }

    /// Returns the calls since the last time, as those of one turn.
    pub(crate) fn take_calls(&self) -> Calls {
        Calls { calls: std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner)), turns: 1 }
    }

    /// Counts a call. Returns whether it conflicts.
    fn note(&self, operation: &str) -> bool {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner).entry(operation.to_owned()).or_default() += 1;
        let every = self.conflict_every.load(Ordering::Relaxed);
        operation == TRANSACTION && every > 0 && self.transactions.fetch_add(1, Ordering::Relaxed).is_multiple_of(every)
    }
}

async fn pass(
    State((proxy, store)): State<(Arc<CountingProxy>, String)>,
    mut headers: HeaderMap,
    body: Bytes,
) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    if proxy.note(target.rsplit('.').next().unwrap_or_default()) {
        return conflict(&body);
    }
    headers.remove(header::HOST);
    headers.remove(header::CONTENT_LENGTH);
    let sent = proxy.client.post(store).headers(headers).body(body).send().await;
    let Ok(answer) = sent else { return response(StatusCode::BAD_GATEWAY, Bytes::new()) };
    response(answer.status(), answer.bytes().await.unwrap_or_default())
}

/// The response to a transaction that conflicts with another one.
fn conflict(request: &[u8]) -> Response {
    let request: Value = serde_json::from_slice(request).unwrap_or_default();
    let members = request["TransactItems"].as_array().map_or(0, Vec::len);
    let reasons = (0..members).map(|at| json!({ "Code": if at == 0 { "TransactionConflict" } else { "None" } }));
    let body = json!({
        "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
        "CancellationReasons": reasons.collect::<Vec<_>>(),
    });
    response(StatusCode::BAD_REQUEST, body.to_string().into())
}

fn response(status: StatusCode, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    response::Response,
};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A proxy between the SDK and the embedded store. It sums the write units of transactions, counts
/// the items that are read and, if enabled, makes transactions fail.
#[derive(Default)]
pub(crate) struct FaultProxy {
    listener: Mutex<Option<TcpListener>>,
    client: reqwest::Client,
    counts: Mutex<Counts>,
    faulty: AtomicBool,
    transactions: AtomicUsize,
}

#[derive(Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) units: f64,
    pub(crate) transactions: usize,
    pub(crate) reads: usize,
    /// Items requested by key or found by the read calls.
    pub(crate) items: usize,
}

impl FaultProxy {
    pub(crate) async fn bind() -> Result<(Arc<Self>, String)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        Ok((Arc::new(Self { listener: Mutex::new(Some(listener)), ..Self::default() }), url))
    }

    /// Starts the proxy in front of `store`; later calls do nothing.
    pub(crate) fn serve(self: &Arc<Self>, store: &str) {
        if let Some(listener) = self.listener.lock().ok().and_then(|mut listener| listener.take()) {
            let service = Router::new().fallback(pass).with_state((Arc::clone(self), store.to_owned()));
            tokio::spawn(async move { axum::serve(listener, service).await });
        }
    }

    /// Returns the counts since the last call.
    pub(crate) fn take_counts(&self) -> Counts {
        self.counts.lock().map(|mut counts| std::mem::take(&mut *counts)).unwrap_or_default()
    }

    /// Turns faults on or off. Of every 100 transactions, 10 conflict, 10 are throttled, 10 lose
    /// their responses, and 16 in a row lose their responses until the caller gives up.
    pub(crate) fn set_faults(&self, faulty: bool) {
        self.faulty.store(faulty, Ordering::Relaxed);
    }

    fn count(&self, operation: &str, request: &Value, answer: &Value) {
        let Ok(mut counts) = self.counts.lock() else { return };
        match operation {
            "TransactWriteItems" => {
                counts.transactions += 1;
                let tables = answer["ConsumedCapacity"].as_array().into_iter().flatten();
                counts.units += tables.filter_map(|table| table["CapacityUnits"].as_f64()).sum::<f64>();
            }
            "BatchGetItem" => {
                counts.reads += 1;
                let tables = request["RequestItems"].as_object().into_iter().flat_map(|tables| tables.values());
                counts.items += tables.filter_map(|table| Some(table["Keys"].as_array()?.len())).sum::<usize>();
            }
            "Query" | "GetItem" => {
                counts.reads += 1;
                counts.items +=
                    answer["Count"].as_u64().map_or(1, |count| usize::try_from(count).unwrap_or(usize::MAX));
            }
            _ => {}
        }
    }
}

async fn pass(
    State((proxy, store)): State<(Arc<FaultProxy>, String)>,
    mut headers: HeaderMap,
    body: Bytes,
) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
    let mut request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let writes = operation == "TransactWriteItems";
    let turn = (writes && proxy.faulty.load(Ordering::Relaxed))
        .then(|| proxy.transactions.fetch_add(1, Ordering::Relaxed) % 100);
    match turn.map(|turn| turn % 10) {
        Some(3) => return conflict(&request),
        Some(5) => return throttled(),
        _ => {}
    }
    if writes {
        request["ReturnConsumedCapacity"] = json!("TOTAL");
    }
    headers.remove(http::header::HOST);
    headers.remove(http::header::CONTENT_LENGTH);
    let sent = proxy.client.post(store).headers(headers).body(request.to_string()).send().await;
    let Ok(answer) = sent else { return with_status(StatusCode::BAD_GATEWAY) };
    let (status, answer) = (answer.status(), answer.bytes().await.unwrap_or_default());
    if status.is_success() {
        proxy.count(&operation, &request, &serde_json::from_slice(&answer).unwrap_or_default());
    }
    if turn.is_some_and(|turn| turn % 10 == 7 || (20..36).contains(&turn)) {
        return with_status(StatusCode::INTERNAL_SERVER_ERROR);
    }
    let mut response = with_status(status);
    *response.body_mut() = Body::from(answer);
    response
}

/// The response to a transaction that conflicts with another transaction.
fn conflict(request: &Value) -> Response {
    let members = request["TransactItems"].as_array().map_or(0, Vec::len);
    let reasons = (0..members).map(|at| json!({ "Code": if at == 0 { "TransactionConflict" } else { "None" } }));
    let body = json!({
        "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
        "CancellationReasons": reasons.collect::<Vec<_>>(),
    });
    error_response(&body)
}

fn throttled() -> Response {
    error_response(&json!({ "__type": "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException" }))
}

fn error_response(body: &Value) -> Response {
    let mut response = with_status(StatusCode::BAD_REQUEST);
    *response.body_mut() = Body::from(body.to_string());
    response
}

fn with_status(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

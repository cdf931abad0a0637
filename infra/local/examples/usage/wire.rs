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

/// A proxy between the SDK and the embedded store. It asks for each transaction's write units and sums them, counts the items that are read,
/// and, when told to, makes transactions fail.
#[derive(Default)]
pub(crate) struct Wire {
    listener: Mutex<Option<TcpListener>>,
    client: reqwest::Client,
    counted: Mutex<Counted>,
    faulty: AtomicBool,
    transactions: AtomicUsize,
}

#[derive(Default, Clone, Copy)]
pub(crate) struct Counted {
    pub(crate) units: f64,
    pub(crate) transactions: usize,
    /// Calls that read.
    pub(crate) reads: usize,
    /// Items that they asked for by key, or found.
    pub(crate) items: usize,
}

impl Wire {
    pub(crate) async fn tap() -> Result<(Arc<Self>, String)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        Ok((Arc::new(Self { listener: Mutex::new(Some(listener)), ..Self::default() }), url))
    }

    /// Serves before `store`, once.
    pub(crate) fn serve(self: &Arc<Self>, store: &str) {
        if let Some(listener) = self.listener.lock().ok().and_then(|mut listener| listener.take()) {
            let service = Router::new().fallback(pass).with_state((Arc::clone(self), store.to_owned()));
            tokio::spawn(async move { axum::serve(listener, service).await });
        }
    }

    /// What passed since this was asked last.
    pub(crate) fn take(&self) -> Counted {
        self.counted.lock().map(|mut counted| std::mem::take(&mut *counted)).unwrap_or_default()
    }

    /// From here on, of every hundred transactions ten meet another one, ten are throttled, ten lose their answers, and sixteen in a row do so
    /// until nobody tries on.
    pub(crate) fn trouble(&self, faulty: bool) {
        self.faulty.store(faulty, Ordering::Relaxed);
    }

    fn count(&self, operation: &str, asked: &Value, answer: &Value) {
        let Ok(mut counted) = self.counted.lock() else { return };
        match operation {
            "TransactWriteItems" => {
                counted.transactions += 1;
                let tables = answer["ConsumedCapacity"].as_array().into_iter().flatten();
                counted.units += tables.filter_map(|table| table["CapacityUnits"].as_f64()).sum::<f64>();
            }
            "BatchGetItem" => {
                counted.reads += 1;
                let tables = asked["RequestItems"].as_object().into_iter().flat_map(|tables| tables.values());
                counted.items += tables.filter_map(|table| Some(table["Keys"].as_array()?.len())).sum::<usize>();
            }
            "Query" | "GetItem" => {
                counted.reads += 1;
                counted.items +=
                    answer["Count"].as_u64().map_or(1, |count| usize::try_from(count).unwrap_or(usize::MAX));
            }
            _ => {}
        }
    }
}

async fn pass(State((wire, store)): State<(Arc<Wire>, String)>, mut headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
    let mut asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let writes = operation == "TransactWriteItems";
    let turn = (writes && wire.faulty.load(Ordering::Relaxed))
        .then(|| wire.transactions.fetch_add(1, Ordering::Relaxed) % 100);
    match turn.map(|turn| turn % 10) {
        Some(3) => return crossed(&asked),
        Some(5) => return throttled(),
        _ => {}
    }
    if writes {
        asked["ReturnConsumedCapacity"] = json!("TOTAL");
    }
    headers.remove(http::header::HOST);
    headers.remove(http::header::CONTENT_LENGTH);
    let sent = wire.client.post(store).headers(headers).body(asked.to_string()).send().await;
    let Ok(answer) = sent else { return with_status(StatusCode::BAD_GATEWAY) };
    let (status, answer) = (answer.status(), answer.bytes().await.unwrap_or_default());
    if status.is_success() {
        wire.count(&operation, &asked, &serde_json::from_slice(&answer).unwrap_or_default());
    }
    if turn.is_some_and(|turn| turn % 10 == 7 || (20..36).contains(&turn)) {
        return with_status(StatusCode::INTERNAL_SERVER_ERROR);
    }
    let mut response = with_status(status);
    *response.body_mut() = Body::from(answer);
    response
}

/// That the transaction met another one.
fn crossed(asked: &Value) -> Response {
    let members = asked["TransactItems"].as_array().map_or(0, Vec::len);
    let reasons = (0..members).map(|at| json!({ "Code": if at == 0 { "TransactionConflict" } else { "None" } }));
    let body = json!({
        "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
        "CancellationReasons": reasons.collect::<Vec<_>>(),
    });
    refused(&body)
}

fn throttled() -> Response {
    refused(&json!({ "__type": "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException" }))
}

fn refused(body: &Value) -> Response {
    let mut response = with_status(StatusCode::BAD_REQUEST);
    *response.body_mut() = Body::from(body.to_string());
    response
}

fn with_status(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

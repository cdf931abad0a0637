//! The Lambda Runtime API on loopback, for tests of a function's process. It shows the bytes that a
//! function sends to Lambda.

use std::process::{Child, Command, Stdio};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    response::IntoResponse,
    routing::{get, post},
};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use crate::harness::WAIT_TIMEOUT;

/// The delimiter between the head and the body of a streamed response.
const DELIMITER: [u8; 8] = [0; 8];

/// A function's process. Dropping it kills the process.
pub(crate) struct FunctionProcess {
    process: Child,
    calls: mpsc::UnboundedReceiver<RuntimeCall>,
    served: JoinHandle<()>,
}

enum RuntimeCall {
    /// The function waits for an event.
    Next(oneshot::Sender<String>),
    Response(StreamedResponse),
    Failure(Bytes),
}

type CallSender = mpsc::UnboundedSender<RuntimeCall>;

impl FunctionProcess {
    /// Starts a function's binary. The command has its arguments; the environment is set here.
    pub(crate) async fn start(mut command: Command, environment: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, calls) = mpsc::unbounded_channel();
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(failure))
            .route("/2018-06-01/runtime/init/error", post(failure))
            .with_state(sender);
        let served = tokio::spawn(async move {
            axum::serve(listener, router).await.ok();
        });
        let basics = [
            ("AWS_LAMBDA_RUNTIME_API", address.as_str()),
            ("AWS_LAMBDA_FUNCTION_NAME", "karta"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "unused"),
            ("AWS_SECRET_ACCESS_KEY", "unused"),
            ("KARTA_STAGE", "test"),
            ("KARTA_TABLE", "karta"),
            ("KARTA_CREDENTIALS_TABLE", "karta-credentials"),
            ("KARTA_OUTBOX_TABLE", "karta-outbox"),
            ("KARTA_USAGE_TABLE", "karta-usage"),
            ("KARTA_ANCHORS_TABLE", "karta-anchors"),
            ("KARTA_SESSIONS_TABLE", "karta-sessions"),
        ];
        command.env_clear().envs(basics).envs(environment.iter().copied());
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        Self { process, calls, served }
    }

    /// Invokes the function. Returns its response as soon as it begins.
    pub(crate) async fn invoke(&mut self, event: String) -> StreamedResponse {
        match self.call().await {
            RuntimeCall::Next(waiting) => waiting.send(event).unwrap(),
            RuntimeCall::Response(_) => panic!("a response without an event"),
            RuntimeCall::Failure(report) => panic!("{}", String::from_utf8_lossy(&report)),
        }
        match self.call().await {
            RuntimeCall::Response(response) => response,
            RuntimeCall::Next(_) => panic!("no response to the event"),
            RuntimeCall::Failure(report) => panic!("{}", String::from_utf8_lossy(&report)),
        }
    }

    async fn call(&mut self) -> RuntimeCall {
        let call = timeout(WAIT_TIMEOUT, self.calls.recv()).await.expect("the function calls the Runtime API");
        call.expect("the Runtime API runs")
    }
}

impl Drop for FunctionProcess {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        self.served.abort();
    }
}

/// A response of a streaming function, as it arrives.
pub(crate) struct StreamedResponse {
    pub(crate) headers: HeaderMap,
    received: Vec<u8>,
    chunks: mpsc::UnboundedReceiver<Bytes>,
}

impl StreamedResponse {
    /// Reads the head: the JSON before the delimiter.
    pub(crate) async fn head(&mut self) -> Value {
        loop {
            let found = self.received.windows(DELIMITER.len()).position(|bytes| bytes == DELIMITER);
            if let Some(end) = found {
                let rest = self.received.split_off(end + DELIMITER.len());
                let head = std::mem::replace(&mut self.received, rest);
                return serde_json::from_slice(&head[..end]).unwrap();
            }
            assert!(self.read().await, "the response ends in its head");
        }
    }

    /// Reads the next chunk after the head; `None` at the end.
    pub(crate) async fn chunk(&mut self) -> Option<String> {
        if self.received.is_empty() && !self.read().await {
            return None;
        }
        Some(String::from_utf8(std::mem::take(&mut self.received)).unwrap())
    }

    /// Reads the body to its end.
    pub(crate) async fn body(&mut self) -> String {
        while self.read().await {}
        String::from_utf8(std::mem::take(&mut self.received)).unwrap()
    }

    async fn read(&mut self) -> bool {
        let chunk = timeout(WAIT_TIMEOUT, self.chunks.recv()).await.expect("the response goes on or ends");
        chunk.inspect(|chunk| self.received.extend_from_slice(chunk)).is_some()
    }
}

async fn next(State(sender): State<CallSender>) -> impl IntoResponse {
    let (event_sender, event) = oneshot::channel();
    sender.send(RuntimeCall::Next(event_sender)).ok();
    let headers = [
        ("lambda-runtime-aws-request-id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd"),
        ("lambda-runtime-deadline-ms", "4102444800000"),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:123456789012:function:karta"),
        ("content-type", "application/json"),
    ];
    event.await.map(|event| (headers, event)).map_err(|_| StatusCode::GONE)
}

/// Passes the chunks on as they arrive, and ends with the response.
async fn response(
    State(sender): State<CallSender>,
    Path(_): Path<String>,
    headers: HeaderMap,
    mut body: Body,
) -> StatusCode {
    let (chunk_sender, chunks) = mpsc::unbounded_channel();
    sender.send(RuntimeCall::Response(StreamedResponse { headers, received: Vec::new(), chunks })).ok();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(chunk) = frame.into_data() {
            chunk_sender.send(chunk).ok();
        }
    }
    StatusCode::ACCEPTED
}

async fn failure(State(sender): State<CallSender>, report: Bytes) -> StatusCode {
    sender.send(RuntimeCall::Failure(report)).ok();
    StatusCode::ACCEPTED
}

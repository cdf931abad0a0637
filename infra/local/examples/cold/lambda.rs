use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use axum::{
    Router,
    body::Bytes,
    extract::{self, State},
    response::IntoResponse,
    routing::{get, post},
};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Id of every invocation. Invocations do not overlap.
const REQUEST_ID: &str = "8476a536-e9f4-11e8-9739-2dfe598c3fcd";
/// Maximum time for a start, a response or an exit.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The process of a function, and its Runtime API on loopback.
pub(crate) struct Lambda {
    process: Child,
    log: File,
    started: Instant,
    calls: mpsc::UnboundedReceiver<RuntimeCall>,
    served: JoinHandle<()>,
}

/// A function's call to the Runtime API, and its time.
enum RuntimeCall {
    /// The function waits for an event.
    Next(Instant, oneshot::Sender<Vec<u8>>),
    Response(Instant, FunctionResponse),
    Failure(Bytes),
}

/// A function's response, as it was sent.
struct FunctionResponse {
    is_streamed: bool,
    body: Bytes,
}

/// The delimiter between the head and the body of a streamed response.
const DELIMITER: [u8; 8] = [0; 8];

impl FunctionResponse {
    /// Returns a response as API Gateway takes it. That of a streaming function has `streamed`.
    fn into_value(self) -> Result<Value> {
        if !self.is_streamed {
            return Ok(serde_json::from_slice(&self.body)?);
        }
        let end = self.body.windows(DELIMITER.len()).position(|bytes| bytes == DELIMITER).context("no delimiter")?;
        let (head, rest) = self.body.split_at(end);
        let mut response: Value = serde_json::from_slice(head)?;
        response["body"] = String::from_utf8(rest[DELIMITER.len()..].to_vec())?.into();
        response["streamed"] = json!(true);
        Ok(response)
    }
}

type CallSender = Arc<mpsc::UnboundedSender<RuntimeCall>>;

impl Lambda {
    /// Starts the binary with exactly this environment.
    pub(crate) async fn start(binary: &Path, environment: &BTreeMap<String, String>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (sender, calls) = mpsc::unbounded_channel();
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(failure))
            .route("/2018-06-01/runtime/init/error", post(failure))
            .with_state(Arc::new(sender));
        let served = tokio::spawn(async move {
            axum::serve(listener, router).await.ok();
        });
        let log = tempfile::tempfile()?;
        let mut command = Command::new(binary);
        command.env_clear().envs(environment).env("AWS_LAMBDA_RUNTIME_API", address);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        let started = Instant::now();
        let process = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        Ok(Self { process, log, started, calls, served })
    }

    pub(crate) async fn ready(&mut self) -> Result<Ready<'_>> {
        match timeout(TIMEOUT, self.calls.recv()).await {
            Ok(Some(RuntimeCall::Next(at, event))) => Ok(Ready { init_time: at - self.started, event, lambda: self }),
            Ok(Some(RuntimeCall::Failure(report))) => bail!("{}\n{}", String::from_utf8_lossy(&report), self.log()?),
            _ => bail!("the function did not ask for an event\n{}", self.log()?),
        }
    }

    /// Waits until the process exits. Returns whether it succeeded, and its log.
    pub(crate) async fn exit(&mut self) -> Result<(bool, String)> {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                return Ok((status.success(), self.log()?));
            }
            ensure!(
                !matches!(self.calls.try_recv(), Ok(RuntimeCall::Next(..))),
                "the function started with an invalid setting"
            );
            sleep(Duration::from_millis(1)).await;
        }
        bail!("the function did not exit")
    }

    /// Returns the peak resident memory in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")?.trim().parse().ok());
        let kilobytes: u64 = peak.context("no VmHWM")?;
        Ok(kilobytes * 1024)
    }

    fn log(&mut self) -> Result<String> {
        let mut text = String::new();
        self.log.seek(SeekFrom::Start(0))?;
        self.log.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Lambda {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        self.served.abort();
    }
}

pub(crate) struct Ready<'a> {
    lambda: &'a mut Lambda,
    event: oneshot::Sender<Vec<u8>>,
    /// Time from the start of the process.
    pub(crate) init_time: Duration,
}

impl Ready<'_> {
    /// Invokes the function. Returns its response and the time that it took.
    pub(crate) async fn invoke(self, event: &Value) -> Result<(Value, Duration)> {
        let event = event.to_string().into_bytes();
        let sent = Instant::now();
        ensure!(self.event.send(event).is_ok(), "the function closed the connection\n{}", self.lambda.log()?);
        match timeout(TIMEOUT, self.lambda.calls.recv()).await {
            Ok(Some(RuntimeCall::Response(at, response))) => Ok((response.into_value()?, at - sent)),
            Ok(Some(RuntimeCall::Failure(report))) => {
                bail!("{}\n{}", String::from_utf8_lossy(&report), self.lambda.log()?)
            }
            _ => bail!("the function did not respond\n{}", self.lambda.log()?),
        }
    }
}

async fn next(State(sender): State<CallSender>) -> impl IntoResponse {
    let (event_sender, event) = oneshot::channel();
    sender.send(RuntimeCall::Next(Instant::now(), event_sender)).ok();
    let headers = [
        ("lambda-runtime-aws-request-id", REQUEST_ID),
        ("lambda-runtime-deadline-ms", "4102444800000"),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:123456789012:function:karta"),
        ("content-type", "application/json"),
    ];
    event.await.map(|event| (headers, event)).map_err(|_| StatusCode::GONE)
}

async fn response(
    State(sender): State<CallSender>,
    extract::Path(_): extract::Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let is_streamed = headers.get("lambda-runtime-function-response-mode").is_some_and(|mode| mode == "streaming");
    sender.send(RuntimeCall::Response(Instant::now(), FunctionResponse { is_streamed, body })).ok();
    StatusCode::ACCEPTED
}

async fn failure(State(sender): State<CallSender>, report: Bytes) -> StatusCode {
    sender.send(RuntimeCall::Failure(report)).ok();
    StatusCode::ACCEPTED
}

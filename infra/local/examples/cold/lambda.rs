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
use http::StatusCode;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};

/// The id of every invocation; there is one at a time.
const REQUEST_ID: &str = "8476a536-e9f4-11e8-9739-2dfe598c3fcd";
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A function's process under a Runtime API of its own, on loopback.
pub(crate) struct Lambda {
    process: Child,
    log: File,
    started: Instant,
    told: mpsc::UnboundedReceiver<Told>,
    served: JoinHandle<()>,
}

/// What a function tells the Runtime API, and when.
enum Told {
    /// It asks for an event, and waits for it.
    Next(Instant, oneshot::Sender<Vec<u8>>),
    Answer(Instant, Bytes),
    Failure(Bytes),
}

type Desk = Arc<mpsc::UnboundedSender<Told>>;

impl Lambda {
    /// Starts the binary with this environment and nothing else.
    pub(crate) async fn start(binary: &Path, environment: &BTreeMap<String, String>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (desk, told) = mpsc::unbounded_channel();
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(failure))
            .route("/2018-06-01/runtime/init/error", post(failure))
            .with_state(Arc::new(desk));
        let served = tokio::spawn(async move {
            axum::serve(listener, router).await.ok();
        });
        let log = tempfile::tempfile()?;
        let mut command = Command::new(binary);
        command.env_clear().envs(environment).env("AWS_LAMBDA_RUNTIME_API", address);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        let started = Instant::now();
        let process = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        Ok(Self { process, log, started, told, served })
    }

    /// Waits until the function asks for an event.
    pub(crate) async fn ready(&mut self) -> Result<Ready<'_>> {
        match timeout(PATIENCE, self.told.recv()).await {
            Ok(Some(Told::Next(at, event))) => Ok(Ready { after: at - self.started, event, lambda: self }),
            Ok(Some(Told::Failure(report))) => bail!("{}\n{}", String::from_utf8_lossy(&report), self.log()?),
            _ => bail!("it asks for no event\n{}", self.log()?),
        }
    }

    /// Waits until the process ends by itself: whether it said that all is well, and what it logged.
    pub(crate) async fn ended(&mut self) -> Result<(bool, String)> {
        let ends = Instant::now() + PATIENCE;
        while Instant::now() < ends {
            if let Some(status) = self.process.try_wait()? {
                return Ok((status.success(), self.log()?));
            }
            ensure!(!matches!(self.told.try_recv(), Ok(Told::Next(..))), "it starts all the same");
            sleep(Duration::from_millis(1)).await;
        }
        bail!("it neither ends nor asks for an event")
    }

    /// The most that was resident at once, in bytes.
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

/// A function that waits for an event.
pub(crate) struct Ready<'a> {
    lambda: &'a mut Lambda,
    event: oneshot::Sender<Vec<u8>>,
    /// How long after the start of the process.
    pub(crate) after: Duration,
}

impl Ready<'_> {
    /// Gives it the event: its answer, and how long that took.
    pub(crate) async fn invoke(self, event: &Value) -> Result<(Value, Duration)> {
        let event = event.to_string().into_bytes();
        let sent = Instant::now();
        ensure!(self.event.send(event).is_ok(), "it hung up\n{}", self.lambda.log()?);
        match timeout(PATIENCE, self.lambda.told.recv()).await {
            Ok(Some(Told::Answer(at, answer))) => Ok((serde_json::from_slice(&answer)?, at - sent)),
            Ok(Some(Told::Failure(report))) => bail!("{}\n{}", String::from_utf8_lossy(&report), self.lambda.log()?),
            _ => bail!("it does not answer\n{}", self.lambda.log()?),
        }
    }
}

async fn next(State(desk): State<Desk>) -> impl IntoResponse {
    let (give, given) = oneshot::channel();
    desk.send(Told::Next(Instant::now(), give)).ok();
    let headers = [
        ("lambda-runtime-aws-request-id", REQUEST_ID),
        ("lambda-runtime-deadline-ms", "4102444800000"),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:123456789012:function:karta"),
        ("content-type", "application/json"),
    ];
    given.await.map(|event| (headers, event)).map_err(|_| StatusCode::GONE)
}

async fn response(State(desk): State<Desk>, extract::Path(_): extract::Path<String>, answer: Bytes) -> StatusCode {
    desk.send(Told::Answer(Instant::now(), answer)).ok();
    StatusCode::ACCEPTED
}

async fn failure(State(desk): State<Desk>, report: Bytes) -> StatusCode {
    desk.send(Told::Failure(report)).ok();
    StatusCode::ACCEPTED
}

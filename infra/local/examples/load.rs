//! Load on the local runner, from this process to a runner of its own: `cargo run --release -p karta-local --example load`.
//!
//! Prints requests per second beside those of a bare server with a fixed answer in the same minute, memory after the load, and the time
//! from start to first answer over existing data. Traffic stays on loopback; counts are fixed.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

const FIXED: &str = "--serve-fixed";
const ANSWER: &str = r#"{"kind":"api_key"}"#;

#[tokio::main]
async fn main() -> Result<()> {
    if env::args().any(|argument| argument == FIXED) {
        return serve_fixed().await;
    }
    // Under cargo run the example lies in target/<profile>/examples.
    let karta = env::current_exe()?.parent().and_then(Path::parent).context("no target folder")?.join("karta");
    let total: usize = env::args().nth(1).map_or(Ok(200_000), |text| text.parse())?;
    let data = env::temp_dir().join(format!("karta-load-{}", std::process::id()));
    let outcome = measure(&karta, &data, total).await;
    std::fs::remove_dir_all(&data).ok();
    outcome
}

async fn measure(karta: &Path, data: &Path, total: usize) -> Result<()> {
    let mut out = std::io::stdout();
    let runner = Server::karta(karta, data)?;
    let key = runner.line["api_key"].as_str().context("no api_key")?.to_owned();
    for index in 0..60 {
        let body = json!({ "name": format!("key {index}"), "scopes": ["read"] }).to_string();
        send(&runner.address(), &request("POST", "/v1/api_keys", &key, &body), 1, 1).await?;
    }
    let fixed = Server::fixed()?;
    let get = |path: &str| request("GET", path, &key, "");
    let list = get("/v1/api_keys?limit=50");

    let bare = rate(&fixed.address(), &get("/"), total, 32).await?;
    writeln!(out, "{:<44} {bare:>9.0}/s", "bare server, fixed answer, 32 connections")?;
    for (name, request, count, connections) in [
        ("whoami, gateway cache hit, 1 connection", get("/v1/whoami"), total / 8, 1),
        ("whoami, gateway cache hit, 32 connections", get("/v1/whoami"), total, 32),
        ("list of 50 keys, 1 connection", list.clone(), total / 40, 1),
        ("list of 50 keys, 32 connections", list, total / 10, 32),
    ] {
        let rate = rate(&runner.address(), &request, count, connections).await?;
        writeln!(out, "{name:<44} {rate:>9.0}/s  {:>5.2} of the bare server", rate / bare)?;
    }
    writeln!(out, "{:<44} {:>9.1} MB", "resident after the load", runner.resident_megabytes()?)?;
    runner.stop()?;
    fixed.stop()?;

    let mut starts = Vec::new();
    for _ in 0..11 {
        let started = Instant::now();
        let runner = Server::karta(karta, data)?;
        send(&runner.address(), &get("/healthz"), 1, 1).await?;
        starts.push(started.elapsed());
        runner.stop()?;
    }
    starts.sort_unstable();
    writeln!(out, "{:<44} {:>9.1} ms", "start to first answer, existing data", starts[5].as_secs_f64() * 1_000.0)?;
    Ok(())
}

/// A server process that says where it listens in a line of JSON.
struct Server {
    child: Child,
    line: Value,
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    fn karta(binary: &Path, data: &Path) -> Result<Self> {
        let mut command = Command::new(binary);
        command
            .args(["--json", "--port", "0", "--data-dir"])
            .arg(data)
            .env("KARTA_BCRYPT_COST", "4")
            .env_remove("RUST_LOG");
        Self::start(command)
    }

    fn fixed() -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.arg(FIXED);
        Self::start(command)
    }

    fn start(mut command: Command) -> Result<Self> {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("cargo build --release first")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        Ok(Self { child, line: serde_json::from_str(&line).context("the server did not start")?, _stdout: stdout })
    }

    fn address(&self) -> String {
        self.line["base_url"].as_str().unwrap_or_default().trim_start_matches("http://").to_owned()
    }

    fn resident_megabytes(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1_024.0)
    }

    fn stop(mut self) -> Result<()> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        self.child.wait()?;
        Ok(())
    }
}

async fn serve_fixed() -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let line = json!({ "base_url": format!("http://{}", listener.local_addr()?) });
    writeln!(std::io::stdout(), "{line}")?;
    axum::serve(listener, axum::Router::new().fallback(|| async { ANSWER })).await?;
    Ok(())
}

fn request(method: &str, path: &str, key: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// Requests per second: the median of three rounds after a short one.
async fn rate(address: &str, request: &str, total: usize, connections: usize) -> Result<f64> {
    send(address, request, total / 10 + connections, connections).await?;
    let mut rates = Vec::new();
    for _ in 0..3 {
        let took = send(address, request, total / 3, connections).await?;
        rates.push(f64::from(u32::try_from(total / 3)?) / took.as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[1])
}

/// Sends `total` requests over `connections`, one at a time on each; every answer must be a success.
async fn send(address: &str, request: &str, total: usize, connections: usize) -> Result<Duration> {
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        clients.spawn(client(address.to_owned(), request.to_owned(), total / connections));
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(started.elapsed())
}

async fn client(address: String, request: String, count: usize) -> Result<()> {
    let mut connection = TcpStream::connect(&address).await?;
    connection.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..count {
        connection.write_all(request.as_bytes()).await?;
        let mut filled = 0;
        loop {
            let read = connection.read(&mut buffer[filled..]).await?;
            if read == 0 {
                bail!("the server hung up");
            }
            filled += read;
            if is_whole(&buffer[..filled])? {
                break;
            }
        }
    }
    Ok(())
}

/// Whether the answer is all there. Fails on one that is no success.
fn is_whole(answer: &[u8]) -> Result<bool> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(false);
    };
    let head = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
    if !head.starts_with("http/1.1 2") {
        bail!("{head}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
    Ok(answer.len() >= end + 4 + length.parse::<usize>()?)
}

//! Measures the local runner under load.
//!
//! Run `cargo run --release -p karta-local --example load`, with the number of requests as an
//! optional argument (default: 200,000).
//!
//! Starts a runner and prints each figure with its goal:
//!
//! - requests per second, compared with a bare server that returns a fixed response
//! - memory after the load
//! - the time from start to first response over existing data
//! - validations, with and without floods of invalid keys
//!
//! Traffic stays on loopback. The argument `peers` runs [`peers`] instead.

mod client;
mod peers;
mod server;
mod validation;

use std::{env, io::Write, path::Path, time::Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{
    client::{once, rate, request},
    server::{FIXED, Server, serve_fixed},
};

#[tokio::main]
async fn main() -> Result<()> {
    if env::args().any(|argument| argument == FIXED) {
        return serve_fixed().await;
    }
    // This example is in target/<profile>/examples, and the runner in target/<profile>.
    let karta = env::current_exe()?.parent().and_then(Path::parent).context("no target folder")?.join("karta");
    if env::args().nth(1).as_deref() == Some("peers") {
        let folder = env::temp_dir().join(format!("karta-peers-{}", std::process::id()));
        let outcome = peers::compare(&karta, &folder).await;
        std::fs::remove_dir_all(folder).ok();
        return outcome;
    }
    let total: usize = env::args().nth(1).map_or(Ok(200_000), |text| text.parse())?;
    let folder = |name: &str| env::temp_dir().join(format!("karta-load-{}-{name}", std::process::id()));
    let (cheap, real) = (folder("cheap"), folder("real"));
    let outcome = all(&karta, &cheap, &real, total).await;
    for folder in [cheap, real] {
        std::fs::remove_dir_all(folder).ok();
    }
    outcome
}

async fn all(karta: &Path, cheap: &Path, real: &Path, total: usize) -> Result<()> {
    requests(karta, cheap, total).await?;
    starts(karta, cheap).await?;
    validation::measure(karta, real, total).await
}

async fn requests(karta: &Path, data: &Path, total: usize) -> Result<()> {
    let runner = Server::karta(karta, data, 4)?;
    let key = runner.secret("api_key")?;
    for index in 0..60 {
        let body = json!({ "name": format!("key {index}"), "scopes": ["read"] }).to_string();
        once(&runner.address(), &request("POST", "/v1/api_keys", &key, &body)).await?;
    }
    let fixed = Server::fixed()?;
    let get = |path: &str| request("GET", path, &key, "");
    let list = get("/v1/api_keys?limit=50");

    let bare = rate(&fixed.address(), &get("/"), total, 32).await?;
    report("bare server, fixed response, 32 connections", &format!("{bare:.0}/s"), "")?;
    for (name, request, count, connections, goal) in [
        ("whoami, gateway cache hit, 1 connection", get("/v1/whoami"), total / 8, 1, ""),
        ("whoami, gateway cache hit, 32 connections", get("/v1/whoami"), total, 32, "10,000/s"),
        ("list of 50 keys, 1 connection", list.clone(), total / 40, 1, ""),
        ("list of 50 keys, 32 connections", list, total / 10, 32, "1,500/s"),
    ] {
        let rate = rate(&runner.address(), &request, count, connections).await?;
        report(name, &format!("{rate:.0}/s, {:.2} of the bare server", rate / bare), goal)?;
    }
    report("resident memory after the load", &format!("{:.1} MB", runner.resident_megabytes()?), "60 MB")?;
    runner.stop()?;
    fixed.stop()
}

async fn starts(karta: &Path, data: &Path) -> Result<()> {
    let mut starts = Vec::new();
    for _ in 0..11 {
        let started = Instant::now();
        let runner = Server::karta(karta, data, 4)?;
        once(&runner.address(), &request("GET", "/healthz", "none", "")).await?;
        starts.push(started.elapsed());
        runner.stop()?;
    }
    starts.sort_unstable();
    let median = format!("{:.1} ms", starts[5].as_secs_f64() * 1_000.0);
    report("start to first response, existing data", &median, "170 ms")
}

/// Prints a line of the report. `goal` is empty if the figure has none.
fn report(name: &str, figure: &str, goal: &str) -> Result<()> {
    let goal = if goal.is_empty() { String::new() } else { format!("  goal {goal}") };
    Ok(writeln!(std::io::stdout(), "{name:<44} {figure:<36}{goal}")?)
}

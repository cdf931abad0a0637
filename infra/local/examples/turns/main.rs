//! Measures turns beside direct calls to the same scripted provider.
//!
//! Run `just bench-turns`. A part of the report runs on its own, by its name: `just bench-turns latency`.
//!
//! - `latency`: the time that Karta adds to the first token and to a whole stream, at one connection
//! - `streams`: gaps between tokens and memory of 200 concurrent streams
//! - `rates`: turns per second, also while transactions conflict
//! - `resume`: the time to the first replayed event
//! - `calls`: calls of the store for each turn
//!
//! The provider and the clients run in this process. Karta runs in a process of its own, with its
//! data in a folder. Where calls of the store are counted or fail, it runs in this process behind a
//! proxy, with its data in memory. Traffic stays on loopback.

mod calls;
mod client;
mod karta;
mod latency;
mod proxy;
mod rates;
mod resume;
#[path = "../load/server.rs"]
#[expect(dead_code, reason = "the load test uses the rest")]
mod server;
mod streams;

use std::{env, fmt::Display, io::Write, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use karta_local::provider::{FakeProvider, Script};

use crate::karta::Karta;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PARTS: [&str; 5] = ["latency", "streams", "rates", "resume", "calls"];

#[tokio::main]
async fn main() -> Result<()> {
    let only = env::args().nth(1);
    ensure!(only.as_deref().is_none_or(|only| PARTS.contains(&only)), "the parts are {}", PARTS.join(", "));
    let runs = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let folder = env::temp_dir().join(format!("karta-turns-{}", std::process::id()));
    let outcome = Box::pin(measure(&folder, &runs)).await;
    std::fs::remove_dir_all(folder).ok();
    outcome
}

async fn measure(folder: &Path, runs: &dyn Fn(&str) -> bool) -> Result<()> {
    // This example is in target/<profile>/examples, and the runner in target/<profile>.
    let binary = env::current_exe()?.parent().and_then(Path::parent).context("no target folder")?.join("karta");
    let provider = FakeProvider::start(Script::default()).await?;
    let start = async |name: &str| Karta::start(&binary, &folder.join(name), &provider).await;
    if runs("latency") {
        latency::measure(start("latency").await?, &provider).await?;
    }
    if runs("streams") {
        streams::measure(&start("streams").await?, &provider).await?;
    }
    if runs("rates") {
        Box::pin(rates::measure(start("rates").await?, &provider)).await?;
    }
    if runs("resume") {
        resume::measure(&start("resume").await?, &provider).await?;
    }
    if runs("calls") {
        calls::measure(&provider).await?;
    }
    Ok(())
}

/// Prints a line of the report. `goal` is empty if the figure has none.
fn report(name: &str, figure: impl Display, goal: &str) -> Result<()> {
    let goal = if goal.is_empty() { String::new() } else { format!("  goal {goal}") };
    Ok(writeln!(std::io::stdout(), "{name:<64} {:<28}{goal}", figure.to_string())?)
}

/// Times in ascending order.
struct Times(Vec<Duration>);

impl Times {
    fn new(mut times: Vec<Duration>) -> Result<Self> {
        ensure!(!times.is_empty(), "nothing was measured");
        times.sort_unstable();
        Ok(Self(times))
    }

    fn median(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    fn p99(&self) -> Duration {
        self.0[self.0.len() * 99 / 100]
    }

    fn max(&self) -> Duration {
        self.0[self.0.len() - 1]
    }
}

/// Returns milliseconds, negative if `time` is less than `base`.
fn added(time: Duration, base: Duration) -> String {
    format!("{:.2} ms", (time.as_secs_f64() - base.as_secs_f64()) * 1_000.0)
}

fn milliseconds(time: Duration) -> String {
    added(time, Duration::ZERO)
}

//! Measures the cost of counting usage.
//!
//! Run `cargo run --release -p karta-local --example usage`, with the number of events as an optional
//! argument (default: 100,000).
//!
//! Prints these figures with their goals:
//!
//! - write units per event, which the embedded store computes by DynamoDB's rules
//! - items read
//! - events per second over HTTP into a runner in memory
//! - whether all events, replayed through store faults, add up to exactly the right sums

mod plane;
mod proxy;
mod replay;

use std::{env, io::Write, sync::Arc, time::Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use crate::{
    plane::{Plane, Used, batch},
    proxy::{Counts, FaultProxy},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> Result<()> {
    let count: usize = env::args().nth(1).map_or(Ok(100_000), |text| text.parse())?;
    costs().await?;
    for writers in [1, 8] {
        let rate = rate(count, writers).await?;
        report(&format!("events per second, {writers} writers"), &format!("{rate:.0}"), "10,000")?;
    }
    let retries = replay::replay(count).await?;
    report(&format!("{count} events replayed through faults"), &format!("exact; {retries} batches retried"), "exact")
}

async fn costs() -> Result<()> {
    let (proxy, url) = FaultProxy::bind().await?;
    let before = |store: &str| {
        proxy.serve(store);
        url.clone()
    };
    let plane = Plane::start(false, Some(&before)).await?;
    let keys = plane.keys(701).await?;
    let (key, keys) = (keys[700], &keys[..700]);
    let months = plane.months(13);
    let used = |key, model, month: usize, day| Used { key, model, month: months[month % 13], day };
    let cost = async |name: &str, goal: f64, count: usize, of: &dyn Fn(usize) -> Used| {
        let kinds = ["input_tokens", "output_tokens"];
        let event = |at| of(at).event(kinds[at % 2], 12_345, &format!("{name} {at}"));
        proxy.take_counts();
        plane.report(batch(&(0..count).map(event).collect::<Vec<_>>())).await?;
        let Counts { units, transactions, .. } = proxy.take_counts();
        #[expect(clippy::cast_precision_loss, reason = "a count of events")]
        let units = units / count as f64;
        let goal = if goal > 0.0 { format!("{goal}") } else { String::new() };
        report(&format!("units per event: {name}"), &format!("{units:.2} in {transactions} transactions"), &goal)
    };
    let fill = async |name: &str, quantity: u64, count: usize, of: &dyn Fn(usize) -> Used| {
        for kind in ["input_tokens", "output_tokens"] {
            let event = |at| of(at).event(kind, quantity, &format!("{name} {kind} {at}"));
            for events in (0..count).map(event).collect::<Vec<_>>().chunks(1_000) {
                plane.report(batch(events)).await?;
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    let model = |at: usize| at * 37 % 200;

    cost("a single event", 0.0, 1, &|_| used(key, 0, 0, 0)).await?;
    cost("1,000 of a key, a day, 3 models", 2.5, 1_000, &|at| used(key, at % 3, 0, 0)).await?;
    cost("100 of a key, a day, 3 models", 2.5, 100, &|at| used(key, at % 3, 0, 0)).await?;
    cost("1,000 of a key, a month, 20 models", 6.0, 1_000, &|at| used(key, at % 20, 1, at)).await?;
    cost("100 of 10 keys, 20 days, 20 models", 6.0, 100, &|at| used(keys[at * 7 % 10], at * 11 % 20, 0, at)).await?;
    cost("100 of 100 keys, 100 days, 100 models", 6.0, 100, &|at| used(keys[at], model(at), at, at / 13)).await?;
    fill("months", 12_345_678_901, 2_600, &|at| used(key, at / 13, at, at / 13)).await?;
    report("below: 13 months with 200 models on all days", "", "")?;
    cost("1,000 of a key, a day, 3 models in the full month", 2.5, 1_000, &|at| used(keys[99], at % 3, 0, 0)).await?;
    cost("1,000 of a key, a day, 200 models", 6.0, 1_000, &|at| used(key, model(at), 0, 0)).await?;
    cost("100 of a key, 100 days, 100 models", 6.0, 100, &|at| used(key, model(at), at, at / 13)).await?;
    cost("1,000 of 100 keys, a day, 200 models", 6.0, 1_000, &|at| used(keys[100 + at % 100], model(at / 2), 0, 0))
        .await?;
    cost("100 of 100 keys, a day, 100 models", 6.0, 100, &|at| used(keys[200 + at], model(at), 0, 0)).await?;
    cost("100 of 100 keys, 100 days, 100 models, full", 6.0, 100, &|at| used(keys[300 + at], model(at), at, at / 13))
        .await?;
    fill("two", 1_234_567_891, 6_200, &|at| used(keys[600 + at % 100], at / 100 % 2, 1, at / 100)).await?;
    cost("100 of 100 keys that used 2 models on all days", 6.0, 100, &|at| used(keys[600 + at], at % 2, 1, at)).await?;
    cost("100 of the same keys, another model", 6.0, 100, &|at| used(keys[600 + at], model(at) | 2, 1, at)).await?;
    fill("keys", 1_234_567_891, 20_000, &|at| used(keys[400 + at % 100], at / 100, 1, at / 100)).await?;
    report("below: keys that used 200 models each on all days of the month", "", "")?;
    cost("1,000 of 100 keys, a month, 200 models", 6.0, 1_000, &|at| used(keys[400 + at % 100], model(at / 2), 1, at))
        .await?;
    cost("100 of 100 keys, a month, 100 models", 6.0, 100, &|at| used(keys[400 + at], model(at), 1, at)).await?;
    fill("both", 1_234_567_891, 20_000, &|at| used(keys[500 + at % 100], at / 100, at % 100, at / 100)).await?;
    cost("100 of 100 keys, 13 months, 100 models", 6.0, 100, &|at| used(keys[500 + at], model(at), at, at / 13))
        .await?;

    plane.get("/v1/whoami").await?;
    plane.validate().await?;
    proxy.take_counts();
    plane.get(&format!("/v1/usage?period={}", months[1].0)).await?;
    report("items read for a month's summary, 200 models", &proxy.take_counts().items.to_string(), "70")?;
    plane.get(&format!("/v1/usage/keys?period={}", months[1].0)).await?;
    report("items read for a page of 50 keys", &proxy.take_counts().items.to_string(), "")?;
    plane.validate().await?;
    let validated = proxy.take_counts();
    report("read calls of a validation", &format!("{} ({} items)", validated.reads, validated.items), "2")
}

/// Returns events per second, in batches of 1,000 over 10 keys, 3 days and 20 models.
async fn rate(count: usize, writers: usize) -> Result<f64> {
    let plane = Arc::new(Plane::start(true, None).await?);
    let keys = plane.keys(10).await?;
    let month = plane.months(1)[0];
    let of = |at: usize| Used { key: keys[at % 10], model: at % 20, month, day: at % 3 };
    let events: Vec<_> = (0..count).map(|at| of(at).event("input_tokens", 12_345, &format!("event-{at}"))).collect();
    let batches: Vec<_> = events.chunks(1_000).map(batch).collect();
    ensure!(batches.len() >= writers, "at least one batch for each writer");
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for batches in batches.chunks(batches.len().div_ceil(writers)) {
        let (plane, batches) = (Arc::clone(&plane), batches.to_vec());
        tasks.spawn(async move {
            for batch in batches {
                plane.report(batch).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of events")]
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// Prints a line of the report. `goal` is empty if the figure has none.
fn report(name: &str, figure: &str, goal: &str) -> Result<()> {
    let goal = if goal.is_empty() { String::new() } else { format!("  goal {goal}") };
    Ok(writeln!(std::io::stdout(), "{name:<68} {figure:<32}{goal}")?)
}

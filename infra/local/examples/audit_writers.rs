//! Measures how much the audit chain slows writers down.
//!
//! Run `cargo run --release -p karta-local --example audit_writers`, with the seconds per turn as an
//! optional argument (default: 5).
//!
//! 32 writers of one organization rename keys, in turns without the chain worker and with the chain
//! worker always running. Prints both rates and their ratio. The store is in memory, so that the
//! figures show contention and not the disk.

use std::{
    env,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use karta_local::{Options, Runner, audit, registry};
use karta_shared::{
    clock::{Clock, SystemClock},
    config::{Deadlines, Ring, TurnLimits},
    domain::{InternalGuard, Reach, Slug},
    entropy::OsEntropy,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const WRITERS: usize = 32;
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> Result<()> {
    let seconds = env::args().nth(1).map_or(Ok(5), |text| text.parse())?;
    let turn = Duration::from_secs(seconds);
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        idle.push(rate(turn, false).await?);
        busy.push(rate(turn, true).await?);
    }
    let (idle, busy) = (median(idle), median(busy));
    let mut out = std::io::stdout();
    writeln!(out, "{:<44} {idle:>9.0}/s", format!("{WRITERS} writers, chain worker idle"))?;
    writeln!(out, "{:<44} {busy:>9.0}/s", format!("{WRITERS} writers, chain worker busy"))?;
    writeln!(out, "{:<44} {:>9.2}", "ratio", busy / idle)?;
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_unstable_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Returns changes per second. With `chaining`, also verifies that the audit log is intact at the
/// end.
async fn rate(turn: Duration, chaining: bool) -> Result<f64> {
    let runner = Runner::start(options()?).await?;
    let token = runner.bootstrap.api_key.as_ref().context("no first key")?.expose().to_owned();
    let (client, url) = (reqwest::Client::new(), format!("{}/v1/api_keys", runner.base_url));
    let mut keys = Vec::new();
    for at in 0..WRITERS {
        let body = json!({ "name": format!("key {at}"), "scopes": ["read"] }).to_string();
        let created: Value = client.post(&url).bearer_auth(&token).body(body).send().await?.json().await?;
        keys.push(format!("{url}/{}", created["api_key"]["id"]));
    }
    let (done, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    let tick = Arc::clone(&registry::workers(&runner.app, &runner.gateway)["worker-audit-chain"]);
    if chaining {
        let (tick, done) = (Arc::clone(&tick), Arc::clone(&done));
        tasks.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                tick().await.map_err(anyhow::Error::from_boxed)?;
            }
            Ok(())
        });
    }
    let started = Instant::now();
    for key in keys {
        let (client, token, done, written) = (client.clone(), token.clone(), Arc::clone(&done), Arc::clone(&written));
        tasks.spawn(async move {
            for round in 0.. {
                let body = json!({ "name": format!("round {round}") }).to_string();
                let answer = client.patch(&key).bearer_auth(&token).body(body).send().await?;
                ensure!(answer.status().is_success(), "{}", answer.text().await?);
                if done.load(Ordering::Relaxed) {
                    break;
                }
                written.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    tokio::time::sleep(turn).await;
    let elapsed = started.elapsed();
    let count = written.load(Ordering::Relaxed);
    done.store(true, Ordering::Relaxed);
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    if chaining {
        tick().await.map_err(anyhow::Error::from_boxed)?;
        let report = audit::verify(
            &runner.app.store.audit_reader(),
            &*runner.app.secrets.ring(Ring::Audit).await?,
            SystemClock.now(),
        )
        .await?;
        ensure!(report.is_clean(), "{:#?}", report.lines());
    }
    runner.stop().await;
    #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
    Ok(count as f64 / elapsed.as_secs_f64())
}

fn options() -> Result<Options> {
    Ok(Options {
        host: [127, 0, 0, 1].into(),
        port: 0,
        data_dir: None,
        organization: Slug::try_from("acme".to_owned())?,
        bcrypt_cost: Some(4),
        session_token_secret: None,
        service_tokens: None,
        data_planes: None,
        stripe_secrets: None,
        internal: InternalGuard::default(),
        outbound_reach: Reach::Public,
        deadlines: Deadlines::DEPLOYED,
        turn_limits: TurnLimits::DEFAULT,
        provider_base_urls: None,
        demo: false,
        workers: false,
        call_observer: None,
        clock: Arc::new(SystemClock),
        entropy: Arc::new(OsEntropy),
    })
}

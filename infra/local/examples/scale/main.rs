//! Compares validations over many keys with validations over few.
//!
//! Run `cargo run --release -p karta-local --example scale`, with the number of keys as an optional
//! argument (default: 1,000,000).
//!
//! Seeds two stores on disk, one of them with a thousand keys, and validates in both in turns.
//! bcrypt does not depend on the store, so only the reads of a first validation are measured.

mod proxy;
mod seeds;

use std::{
    env,
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use karta_local::{Options, Runner};
use karta_shared::{
    auth::{Validator, Verdict},
    clock::SystemClock,
    config::{Deadlines, TurnLimits},
    domain::{ApiKeyToken, InternalGuard, Reach, Slug},
    entropy::OsEntropy,
};

use crate::{proxy::CountingProxy, seeds::Seeds};

const FEW: usize = 1_000;
const MANY: usize = 1_000_000;
const GOAL: f64 = 1.2;
const ROUNDS: usize = 10_000;

#[tokio::main]
async fn main() -> Result<()> {
    let many: usize = env::args().nth(1).map_or(Ok(MANY), |text| text.parse())?;
    ensure!(many >= FEW, "at least {FEW} keys");
    let folder = env::temp_dir().join(format!("karta-scale-{}", std::process::id()));
    let outcome = compare(&folder, many).await;
    std::fs::remove_dir_all(&folder).ok();
    outcome
}

async fn compare(folder: &Path, many: usize) -> Result<()> {
    let mut subjects = Vec::new();
    for (name, count) in [("few", FEW), ("many", many)] {
        let data = folder.join(name);
        let seeds = Seeds::create(&data, count).await?;
        print_calls(&data, &seeds).await?;
        subjects.push(Subject::open(&data, seeds).await?);
    }
    let [mut known, mut first] = [(); 2].map(|()| vec![Vec::with_capacity(ROUNDS); subjects.len()]);
    for round in 0..ROUNDS {
        for turn in 0..subjects.len() {
            let at = (round + turn) % subjects.len();
            known[at].push(subjects[at].known(round).await?);
            first[at].push(subjects[at].first_reads(round).await?);
        }
    }
    for (what, times) in [("known proof", known), ("first validation, reads only", first)] {
        let [few, many] = [0, 1].map(|at| median(times[at].clone()).as_secs_f64() * 1_000_000.0);
        print_line(&format!("{what:<30} {few:>7.1} µs, {many:>7.1} µs: {:.3}  goal <= {GOAL}", many / few))?;
    }
    for subject in subjects {
        subject.runner.stop().await;
    }
    Ok(())
}

/// Prints how often validations of the proven keys call the store, as counted by a proxy.
async fn print_calls(data: &Path, seeds: &Seeds) -> Result<()> {
    let proxy = CountingProxy::bind().await?;
    let runner = Runner::start_with_proxy(options(data)?, Some(&|store: &str| proxy.serve(store))).await?;
    let validator = Validator::new(runner.app.clone());
    for what in ["first validations", "later validations"] {
        proxy.reset();
        for token in &seeds.proven {
            validate(&validator, token).await?;
        }
        print_line(&format!("  {} {what}: {}", seeds.proven.len(), proxy.counts()))?;
    }
    runner.stop().await;
    Ok(())
}

/// An open store with seeded keys that have been validated once.
struct Subject {
    runner: Runner,
    validator: Validator,
    seeds: Seeds,
}

impl Subject {
    async fn open(data: &Path, seeds: Seeds) -> Result<Self> {
        let runner = Runner::start(options(data)?).await?;
        let validator = Validator::new(runner.app.clone());
        for token in &seeds.proven {
            validate(&validator, token).await?;
        }
        Ok(Self { runner, validator, seeds })
    }

    async fn known(&self, round: usize) -> Result<Duration> {
        let token = &self.seeds.proven[round % self.seeds.proven.len()];
        let started = Instant::now();
        validate(&self.validator, token).await?;
        Ok(started.elapsed())
    }

    /// Measures the reads of a first validation, before and after its bcrypt.
    async fn first_reads(&self, round: usize) -> Result<Duration> {
        let (prefix, id) = &self.seeds.visited[round % self.seeds.visited.len()];
        let (store, organization) = (&self.runner.app.store, self.runner.bootstrap.organization.id);
        let started = Instant::now();
        let candidates = store.credentials(prefix).await?;
        store.access_to_spend(organization, *id, *id, self.runner.app.clock.now()).await?;
        let took = started.elapsed();
        ensure!(candidates.iter().any(|candidate| candidate.api_key_id == *id), "a credential is missing");
        Ok(took)
    }
}

async fn validate(validator: &Validator, token: &ApiKeyToken) -> Result<()> {
    let verdict = validator.validate(token.expose()).await?;
    ensure!(matches!(verdict, Verdict::Valid(_)), "{verdict:?}");
    Ok(())
}

fn options(data: &Path) -> Result<Options> {
    Ok(Options {
        host: [127, 0, 0, 1].into(),
        port: 0,
        data_dir: Some(data.to_owned()),
        organization: Slug::try_from("acme".to_owned()).map_err(anyhow::Error::msg)?,
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

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn print_line(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

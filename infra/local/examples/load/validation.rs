//! `POST /v1/internal/keys/validate` at bcrypt's real cost: known keys, a storm on one new key, and floods beside a known key.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use karta_local::secrets::{Given, LocalSecrets};
use karta_shared::{
    clock::SystemClock,
    config::{Ring, Secrets},
    domain::{ApiKeyToken, Keyring},
    entropy::OsEntropy,
};
use serde_json::json;
use tokio::{sync::Barrier, task::JoinSet};

use crate::{
    client::{Connection, once, rate, request},
    report,
    server::Server,
};

const STORM: usize = 200;
const FLOOD_CONNECTIONS: usize = 32;

pub(crate) async fn measure(karta: &Path, data: &Path, total: usize) -> Result<()> {
    let runner = Server::karta(karta, data, 12)?;
    let secrets = LocalSecrets::open(Some(data), Given::default(), &OsEntropy)?;
    let secrets = Secrets::new(secrets.source(), Arc::new(SystemClock));
    let plane = Plane {
        address: runner.address(),
        admin: runner.secret("api_key")?,
        service: runner.secret("service_token")?,
        ring: secrets.ring(Ring::KeyTag).await?,
    };
    plane.known(total).await?;
    plane.storm().await?;
    let plane = Arc::new(plane);
    let junk = |plane: &Plane| {
        let genuine = plane.unknown_token();
        format!("{}{}", &genuine[..39], if genuine.ends_with('a') { "b" } else { "a" })
    };
    plane.flood("junk of the right shape", junk, "p99 < 50 ms", total / 40).await?;
    plane.flood("deleted keys", Plane::unknown_token, "p99 < 100 ms", total / 40).await?;
    runner.stop()
}

struct Plane {
    address: String,
    admin: String,
    service: String,
    ring: Arc<Keyring>,
}

impl Plane {
    fn validation(&self, token: &str) -> String {
        request("POST", "/v1/internal/keys/validate", &self.service, &json!({ "key": token }).to_string())
    }

    /// A token with a right tag that no key is stored for, as of a key that is deleted.
    fn unknown_token(&self) -> String {
        ApiKeyToken::mint(&self.ring, &OsEntropy).expose().to_owned()
    }

    async fn new_key(&self) -> Result<String> {
        let body = json!({ "name": "load", "scopes": ["read"] }).to_string();
        let created = once(&self.address, &request("POST", "/v1/api_keys", &self.admin, &body)).await?;
        Ok(created["secret"].as_str().context("no secret")?.to_owned())
    }

    async fn known(&self, total: usize) -> Result<()> {
        let validation = self.validation(&self.admin);
        for (connections, goal) in [(1, "1,200/s"), (32, "2,500/s")] {
            let rate = rate(&self.address, &validation, total / 20, connections).await?;
            let plural = if connections == 1 { "" } else { "s" };
            report(&format!("validate a known key, {connections} connection{plural}"), &format!("{rate:.0}/s"), goal)?;
        }
        Ok(())
    }

    /// First validations of one key, all at once, against one alone; medians of five.
    async fn storm(&self) -> Result<()> {
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            alone.push(self.first_validations(1).await?);
            together.push(self.first_validations(STORM).await?);
        }
        let (alone, together) = (median(alone), median(together));
        report("first validation of a key", &millis(alone), "")?;
        let ratio = together.as_secs_f64() / alone.as_secs_f64();
        let figure = format!("{}, {ratio:.2} of one", millis(together));
        report(&format!("{STORM} first validations of one key at once"), &figure, "one bcrypt")
    }

    /// From the moment that all connections are open to the last answer.
    async fn first_validations(&self, count: usize) -> Result<Duration> {
        let validation: Arc<str> = self.validation(&self.new_key().await?).into();
        let start = Arc::new(Barrier::new(count + 1));
        let mut storm = JoinSet::new();
        for _ in 0..count {
            let mut connection = Connection::open(&self.address).await?;
            let (validation, start) = (Arc::clone(&validation), Arc::clone(&start));
            storm.spawn(async move {
                start.wait().await;
                is_valid(&mut connection, &validation).await
            });
        }
        start.wait().await;
        let started = Instant::now();
        while let Some(validated) = storm.join_next().await {
            validated??;
        }
        Ok(started.elapsed())
    }

    /// What a known key's validations take while others send tokens, each of them new, as fast as they are answered.
    async fn flood(
        self: &Arc<Self>,
        of: &str,
        token: impl Fn(&Self) -> String + Copy + Send + 'static,
        goal: &str,
        count: usize,
    ) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut flood = JoinSet::new();
        for _ in 0..FLOOD_CONNECTIONS {
            let (plane, stop) = (Arc::clone(self), Arc::clone(&stop));
            flood.spawn(async move { plane.pour(token, &stop).await });
        }
        let known = self.validation(&self.admin);
        let mut connection = Connection::open(&self.address).await?;
        let started = Instant::now();
        // Until the flood has filled what there is to fill.
        while started.elapsed() < Duration::from_secs(1) {
            is_valid(&mut connection, &known).await?;
        }
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let asked = Instant::now();
            is_valid(&mut connection, &known).await?;
            times.push(asked.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        let took = started.elapsed().as_secs_f64();
        let (mut judged, mut busy) = (0, 0);
        while let Some(answers) = flood.join_next().await {
            let answers = answers??;
            (judged, busy) = (judged + answers.judged, busy + answers.busy);
        }
        times.sort_unstable();
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        report(&format!("known key beside {of}"), &format!("p50 {}, p99 {}", millis(p50), millis(p99)), goal)?;
        let per_second = |count: u32| f64::from(count) / took;
        let answers = format!("{:.1}/s judged, {:.0}/s 503", per_second(judged), per_second(busy));
        report(&format!("  {of}, {FLOOD_CONNECTIONS} connections"), &answers, "")
    }

    /// Sends one new token after the other. Each must be judged invalid or, by a 503 or 504 that says when to come back, not judged.
    async fn pour(&self, token: impl Fn(&Self) -> String, stop: &AtomicBool) -> Result<Answers> {
        let mut connection = Connection::open(&self.address).await?;
        let mut answers = Answers::default();
        while !stop.load(Ordering::Relaxed) {
            let answer = connection.ask(&self.validation(&token(self))).await?;
            if [503, 504].contains(&answer.status) {
                ensure!(answer.head.contains("\r\nretry-after: "), "{}", answer.head);
                answers.busy += 1;
            } else {
                answer.succeeded()?;
                ensure!(
                    answer.body == br#"{"valid":false,"code":"not_found"}"#,
                    "{}",
                    String::from_utf8_lossy(answer.body)
                );
                answers.judged += 1;
            }
        }
        Ok(answers)
    }
}

#[derive(Default)]
struct Answers {
    judged: u32,
    busy: u32,
}

async fn is_valid(connection: &mut Connection, validation: &str) -> Result<()> {
    let answer = connection.ask(validation).await?;
    answer.succeeded()?;
    ensure!(answer.body.starts_with(br#"{"valid":true,"#), "{}", String::from_utf8_lossy(answer.body));
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
}

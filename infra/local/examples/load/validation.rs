//! Measures `POST /v1/internal/keys/validate` at bcrypt cost 12: known keys, simultaneous first
//! validations of one key, and a known key during floods of invalid ones.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use karta_local::secrets::{LocalSecrets, ProvidedSecrets};
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
    let secrets = LocalSecrets::open(Some(data), ProvidedSecrets::default(), &OsEntropy)?;
    let secrets = Secrets::new(secrets.source(), Arc::new(SystemClock));
    let client = ValidationClient {
        address: runner.address(),
        admin: runner.secret("api_key")?,
        service: runner.secret("service_token")?,
        ring: secrets.ring(Ring::KeyTag).await?,
    };
    client.known(total).await?;
    client.storm().await?;
    let client = Arc::new(client);
    let junk = |client: &ValidationClient| {
        let genuine = client.unknown_token();
        format!("{}{}", &genuine[..39], if genuine.ends_with('a') { "b" } else { "a" })
    };
    client.flood("well-formed junk", junk, "p99 < 50 ms", total / 40).await?;
    client.flood("deleted keys", ValidationClient::unknown_token, "p99 < 100 ms", total / 40).await?;
    runner.stop()
}

struct ValidationClient {
    address: String,
    admin: String,
    service: String,
    ring: Arc<Keyring>,
}

impl ValidationClient {
    fn validation(&self, token: &str) -> String {
        request("POST", "/v1/internal/keys/validate", &self.service, &json!({ "key": token }).to_string())
    }

    /// Returns a token with a valid tag and no stored key, like that of a deleted key.
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

    /// Compares simultaneous first validations of one key with a single one. Prints medians of
    /// five.
    async fn storm(&self) -> Result<()> {
        let (mut single, mut together) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            single.push(self.first_validations(1).await?);
            together.push(self.first_validations(STORM).await?);
        }
        let (single, together) = (median(single), median(together));
        report("first validation of a key", &millis(single), "")?;
        let ratio = together.as_secs_f64() / single.as_secs_f64();
        let figure = format!("{}, {ratio:.2} of one", millis(together));
        report(&format!("{STORM} first validations of one key at once"), &figure, "one bcrypt")
    }

    /// Returns the time from all connections being open to the last response.
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

    /// Measures validations of a known key while other connections send new tokens as fast as they
    /// get responses.
    async fn flood(
        self: &Arc<Self>,
        tokens: &str,
        token: impl Fn(&Self) -> String + Copy + Send + 'static,
        goal: &str,
        count: usize,
    ) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut flood = JoinSet::new();
        for _ in 0..FLOOD_CONNECTIONS {
            let (client, stop) = (Arc::clone(self), Arc::clone(&stop));
            flood.spawn(async move { client.flood_with(token, &stop).await });
        }
        let known = self.validation(&self.admin);
        let mut connection = Connection::open(&self.address).await?;
        let started = Instant::now();
        // Wait until the flood has filled the queues.
        while started.elapsed() < Duration::from_secs(1) {
            is_valid(&mut connection, &known).await?;
        }
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let sent = Instant::now();
            is_valid(&mut connection, &known).await?;
            times.push(sent.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        let took = started.elapsed().as_secs_f64();
        let (mut rejected, mut busy) = (0, 0);
        while let Some(answers) = flood.join_next().await {
            let answers = answers??;
            (rejected, busy) = (rejected + answers.rejected, busy + answers.busy);
        }
        times.sort_unstable();
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        report(&format!("known key during {tokens}"), &format!("p50 {}, p99 {}", millis(p50), millis(p99)), goal)?;
        let per_second = |count: u32| f64::from(count) / took;
        let answers = format!("{:.1}/s rejected, {:.0}/s 503", per_second(rejected), per_second(busy));
        report(&format!("  {tokens}, {FLOOD_CONNECTIONS} connections"), &answers, "")
    }

    /// Sends new tokens until `stop`. Each response must be `not_found`, or a 503 or 504 with
    /// `Retry-After`.
    async fn flood_with(&self, token: impl Fn(&Self) -> String, stop: &AtomicBool) -> Result<Answers> {
        let mut connection = Connection::open(&self.address).await?;
        let mut answers = Answers::default();
        while !stop.load(Ordering::Relaxed) {
            let answer = connection.send(&self.validation(&token(self))).await?;
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
                answers.rejected += 1;
            }
        }
        Ok(answers)
    }
}

#[derive(Default)]
struct Answers {
    rejected: u32,
    busy: u32,
}

async fn is_valid(connection: &mut Connection, validation: &str) -> Result<()> {
    let answer = connection.send(validation).await?;
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

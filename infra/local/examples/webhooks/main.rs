//! Measures webhook deliveries.
//!
//! Run `cargo run --release -p karta-local --example webhooks`, with the number of events as an
//! optional argument (default: 10,000). It prints:
//!
//! - the time from the commit of a change to the first attempt, with the runner's workers
//! - deliveries per second to one receiver and to five, on this machine
//! - the time to the first attempt while all events are due for another, dead endpoint
//! - all events with workers that are killed repeatedly: fails unless every event arrives with its
//!   id
//!
//! The store is in memory, and the receivers run in the same process.

mod receiver;

use std::{
    collections::BTreeSet,
    env,
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use karta_local::{Options, Runner, registry};
use karta_shared::{
    clock::{Clock, ManualClock, SystemClock},
    config::{Deadlines, TurnLimits},
    domain::{Event, EventType, Id, InternalGuard, Reach, Slug},
    entropy::OsEntropy,
};
use receiver::Receiver;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

/// Nothing listens on this address.
const DEAD: &str = "http://127.0.0.1:9/";
const TIMEOUT: Duration = Duration::from_mins(5);

#[tokio::main]
async fn main() -> Result<()> {
    let events = env::args().nth(1).map_or(Ok(10_000), |text| text.parse())?;
    let mut out = io::stdout();
    let mut report = |what: &str, figure: String| writeln!(out, "{what:<72} {figure:>14}");
    let (median, p99) = first_attempts(1_000).await?;
    report("commit to first attempt, 50 changes per second, median", milliseconds(median))?;
    report("commit to first attempt, 50 changes per second, p99", milliseconds(p99))?;
    report("deliveries to one receiver", format!("{:.0}/s", rate(events, 1).await?))?;
    report("deliveries to five receivers", format!("{:.0}/s", rate(events / 5, 5).await?))?;
    let (idle, backlogged) = (first_attempt_with_backlog(0).await?, first_attempt_with_backlog(events).await?);
    report("first attempt without other deliveries, median", milliseconds(idle))?;
    report(&format!("first attempt with {events} due for a dead endpoint, median"), milliseconds(backlogged))?;
    report("ratio", format!("{:.2}", backlogged.as_secs_f64() / idle.as_secs_f64()))?;
    let (kills, repeats) = with_kills(events).await?;
    report(&format!("{events} events with {kills} kills: all arrived; arrived more than once"), repeats.to_string())?;
    Ok(())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
}

/// A runner that sends webhooks to this machine.
struct WebhookRunner {
    runner: Runner,
    organization: Id,
    token: String,
}

impl WebhookRunner {
    async fn start(workers: bool, clock: Arc<dyn Clock>) -> Result<Self> {
        let runner = Runner::start(Options {
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
            outbound_reach: Reach::Loopback,
            deadlines: Deadlines::DEPLOYED,
            turn_limits: TurnLimits::DEFAULT,
            provider_base_urls: None,
            demo: false,
            workers,
            call_observer: None,
            clock,
            entropy: Arc::new(OsEntropy),
        });
        let runner = runner.await?;
        let token = runner.bootstrap.api_key.as_ref().context("no first key")?.expose().to_owned();
        Ok(Self { organization: runner.bootstrap.organization.id, token, runner })
    }

    async fn endpoint(&self, url: &str, event_type: EventType) -> Result<()> {
        let body = json!({ "url": url, "event_types": [event_type] }).to_string();
        let made = reqwest::Client::new().post(format!("{}/v1/webhook_endpoints", self.runner.base_url));
        let made = made.bearer_auth(&self.token).body(body).send().await?;
        ensure!(made.status().as_u16() == 201, "{}", made.json::<Value>().await?);
        Ok(())
    }

    /// Writes events as changes do and returns their ids. The last event is from now.
    async fn write_events(&self, event_type: EventType, count: usize) -> Result<BTreeSet<Id>> {
        let app = &self.runner.app;
        let now = app.clock.now();
        let ids = (0..count).map(|back| {
            let back = Duration::from_millis(u64::try_from(back).unwrap_or(u64::MAX));
            // 16 events per millisecond, so that all are later than their endpoints.
            Id::draw(now.minus(back / 16), &*app.entropy)
        });
        let ids: BTreeSet<_> = ids.collect();
        for chunk in ids.iter().collect::<Vec<_>>().chunks(90) {
            let mut transaction = app.store.transaction();
            for id in chunk {
                transaction.publish(&Event {
                    id: **id,
                    event_type,
                    created_at: id.drawn_at(),
                    organization_id: self.organization,
                    data: json!({ "number": id }).to_string(),
                    only_endpoint: None,
                })?;
            }
            transaction.commit().await?;
        }
        Ok(ids)
    }
}

/// Returns the time from the commit of a change to its arrival: median and 99th percentile.
async fn first_attempts(changes: usize) -> Result<(Duration, Duration)> {
    let sender = WebhookRunner::start(true, Arc::new(SystemClock)).await?;
    let receiver = Receiver::start().await?;
    sender.endpoint(&receiver.url, EventType::ReleaseCreated).await?;
    let mut committed = Vec::with_capacity(changes);
    for _ in 0..changes {
        let id = sender.write_events(EventType::ReleaseCreated, 1).await?.pop_first().context("an event")?;
        committed.push((id, Instant::now()));
        sleep(Duration::from_millis(20)).await;
    }
    timeout(TIMEOUT, receiver.wait_for(changes)).await?;
    let mut waits: Vec<_> = committed
        .into_iter()
        .map(|(id, at)| receiver.first(id).map(|first| first.saturating_duration_since(at)))
        .collect::<Option<_>>()
        .context("an event did not arrive")?;
    waits.sort_unstable();
    sender.runner.stop().await;
    Ok((waits[waits.len() / 2], waits[waits.len() * 99 / 100]))
}

async fn rate(events: usize, receivers: usize) -> Result<f64> {
    let sender = WebhookRunner::start(true, Arc::new(SystemClock)).await?;
    let mut all = Vec::new();
    for _ in 0..receivers {
        let receiver = Receiver::start().await?;
        sender.endpoint(&receiver.url, EventType::ReleaseCreated).await?;
        all.push(receiver);
    }
    sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    let sent = sender.write_events(EventType::ReleaseCreated, events).await?.len();
    for receiver in &all {
        timeout(TIMEOUT, receiver.wait_for(sent)).await?;
    }
    let elapsed = started.elapsed();
    sender.runner.stop().await;
    #[expect(clippy::cast_precision_loss, reason = "a count of deliveries")]
    Ok((sent * receivers) as f64 / elapsed.as_secs_f64())
}

/// Returns the median time of 100 changes to their first attempt, with `due` deliveries due for a
/// dead endpoint.
async fn first_attempt_with_backlog(due: usize) -> Result<Duration> {
    let sender = WebhookRunner::start(true, Arc::new(SystemClock)).await?;
    let receiver = Receiver::start().await?;
    sender.endpoint(DEAD, EventType::ReleaseActivated).await?;
    sender.endpoint(&receiver.url, EventType::ReleaseCreated).await?;
    sleep(Duration::from_secs(1)).await;
    if due > 0 {
        sender.write_events(EventType::ReleaseActivated, due).await?;
        // Wait until the events are fanned out.
        sleep(Duration::from_secs(2)).await;
    }
    let mut waits = Vec::new();
    for _ in 0..100 {
        let id = sender.write_events(EventType::ReleaseCreated, 1).await?.pop_first().context("an event")?;
        let committed = Instant::now();
        timeout(TIMEOUT, receiver.wait_for(waits.len() + 1)).await?;
        waits.push(receiver.first(id).context("another event arrived")?.saturating_duration_since(committed));
        sleep(Duration::from_millis(50)).await;
    }
    waits.sort_unstable();
    sender.runner.stop().await;
    Ok(waits[waits.len() / 2])
}

/// Returns how often workers were killed until every event had arrived, and how many events arrived
/// more than once.
async fn with_kills(events: usize) -> Result<(usize, usize)> {
    let clock = Arc::new(ManualClock::at(SystemClock.now()));
    let sender = WebhookRunner::start(false, Arc::clone(&clock) as Arc<dyn Clock>).await?;
    let receiver = Receiver::start().await?;
    sender.endpoint(&receiver.url, EventType::ReleaseCreated).await?;
    clock.advance(Duration::from_secs(1_000));
    let sent = sender.write_events(EventType::ReleaseCreated, events).await?;
    let mut kills = 0;
    while receiver.count() < sent.len() {
        let workers = registry::workers(&sender.runner.app, &sender.runner.gateway);
        let mut random = [0];
        sender.runner.app.entropy.fill(&mut random);
        let alive = Duration::from_millis(10 + 2 * u64::from(random[0]));
        let work = async {
            let worked = workers["worker-webhook-events"]().await;
            sleep(alive).await;
            worked
        };
        timeout(alive, work).await.ok();
        // Aborts the running deliveries.
        drop(workers);
        kills += 1;
        ensure!(kills < 100_000, "{} of {} have arrived", receiver.count(), sent.len());
        // Longer than a lease, so that the next worker can take over.
        clock.advance(Duration::from_mins(2));
    }
    ensure!(receiver.ids() == sent, "the arrived events differ from the sent events");
    Ok((kills, receiver.repeated()))
}

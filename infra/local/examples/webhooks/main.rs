//! What webhooks promise, with numbers: `cargo run --release -p karta-local --example webhooks`.
//!
//! - from the commit of a change to its first attempt, with the runner's own workers;
//! - deliveries a second to one receiver and to five, on the same machine;
//! - the first attempt at one endpoint while 10,000 deliveries are due for another one that is dead;
//! - 10,000 events under workers that are killed again and again: fails unless each arrives, with its id.
//!
//! Over an embedded store in memory. The receivers run in the same process.

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
    config::Deadlines,
    domain::{Event, EventType, Id, InternalGuard, Reach, Slug},
    entropy::OsEntropy,
};
use receiver::Receiver;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

/// Nobody listens there.
const DEAD: &str = "http://127.0.0.1:9/";
const PATIENCE: Duration = Duration::from_mins(5);

#[tokio::main]
async fn main() -> Result<()> {
    let events = env::args().nth(1).map_or(Ok(10_000), |text| text.parse())?;
    let mut out = io::stdout();
    let mut say = |what: &str, found: String| writeln!(out, "{what:<72} {found:>14}");
    let (median, p99) = first_attempts(1_000).await?;
    say("commit to first attempt, 50 changes a second, median", milliseconds(median))?;
    say("commit to first attempt, 50 changes a second, p99", milliseconds(p99))?;
    say("deliveries to one receiver", format!("{:.0}/s", rate(events, 1).await?))?;
    say("deliveries to five receivers", format!("{:.0}/s", rate(events / 5, 5).await?))?;
    let (alone, beside) = (beside_the_dead(0).await?, beside_the_dead(events).await?);
    say("first attempt, nobody else waits, median", milliseconds(alone))?;
    say(&format!("first attempt beside {events} due for a dead endpoint, median"), milliseconds(beside))?;
    say("ratio", format!("{:.2}", beside.as_secs_f64() / alone.as_secs_f64()))?;
    let (kills, repeats) = under_kills(events).await?;
    say(&format!("{events} events under {kills} kills: all arrived; sent more than once"), repeats.to_string())?;
    Ok(())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
}

/// A runner whose webhooks may lead to this machine.
struct World {
    runner: Runner,
    organization: Id,
    token: String,
}

impl World {
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
            webhooks: Reach::Loopback,
            deadlines: Deadlines::DEPLOYED,
            workers,
            witness: None,
            clock,
            entropy: Arc::new(OsEntropy),
        });
        let runner = runner.await?;
        let token = runner.founded.api_key.as_ref().context("no first key")?.expose().to_owned();
        Ok(Self { organization: runner.founded.organization.id, token, runner })
    }

    async fn endpoint(&self, url: &str, event_type: EventType) -> Result<()> {
        let body = json!({ "url": url, "event_types": [event_type] }).to_string();
        let made = reqwest::Client::new().post(format!("{}/v1/webhook_endpoints", self.runner.base_url));
        let made = made.bearer_auth(&self.token).body(body).send().await?;
        ensure!(made.status().as_u16() == 201, "{}", made.json::<Value>().await?);
        Ok(())
    }

    /// Writes events as changes do; says which. Each has a millisecond of its own, the last one now.
    async fn announce(&self, event_type: EventType, count: usize) -> Result<BTreeSet<Id>> {
        let app = &self.runner.app;
        let now = app.clock.now();
        let ids = (0..count).map(|back| {
            let back = Duration::from_millis(u64::try_from(back).unwrap_or(u64::MAX));
            // Not before the endpoints were made.
            Id::draw(now.minus(back / 16), &*app.entropy)
        });
        let ids: BTreeSet<_> = ids.collect();
        for chunk in ids.iter().collect::<Vec<_>>().chunks(90) {
            let mut transaction = app.store.transaction();
            for id in chunk {
                transaction.announce(&Event {
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

/// From the commit of a change to its arrival: median and 99th percentile.
async fn first_attempts(changes: usize) -> Result<(Duration, Duration)> {
    let world = World::start(true, Arc::new(SystemClock)).await?;
    let receiver = Receiver::start().await?;
    world.endpoint(&receiver.url, EventType::ReleaseCreated).await?;
    let mut committed = Vec::with_capacity(changes);
    for _ in 0..changes {
        let id = world.announce(EventType::ReleaseCreated, 1).await?.pop_first().context("an event")?;
        committed.push((id, Instant::now()));
        sleep(Duration::from_millis(20)).await;
    }
    timeout(PATIENCE, receiver.wait_for(changes)).await?;
    let mut waits: Vec<_> = committed
        .into_iter()
        .map(|(id, at)| receiver.first(id).map(|first| first.saturating_duration_since(at)))
        .collect::<Option<_>>()
        .context("an event did not arrive")?;
    waits.sort_unstable();
    world.runner.stop().await;
    Ok((waits[waits.len() / 2], waits[waits.len() * 99 / 100]))
}

/// Deliveries a second.
async fn rate(events: usize, receivers: usize) -> Result<f64> {
    let world = World::start(true, Arc::new(SystemClock)).await?;
    let mut all = Vec::new();
    for _ in 0..receivers {
        let receiver = Receiver::start().await?;
        world.endpoint(&receiver.url, EventType::ReleaseCreated).await?;
        all.push(receiver);
    }
    sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    let sent = world.announce(EventType::ReleaseCreated, events).await?.len();
    for receiver in &all {
        timeout(PATIENCE, receiver.wait_for(sent)).await?;
    }
    let elapsed = started.elapsed();
    world.runner.stop().await;
    #[expect(clippy::cast_precision_loss, reason = "a count of deliveries")]
    Ok((sent * receivers) as f64 / elapsed.as_secs_f64())
}

/// How long a change waits for its first attempt while so much is due for an endpoint that is dead: the median of 100.
async fn beside_the_dead(due: usize) -> Result<Duration> {
    let world = World::start(true, Arc::new(SystemClock)).await?;
    let receiver = Receiver::start().await?;
    world.endpoint(DEAD, EventType::ReleaseActivated).await?;
    world.endpoint(&receiver.url, EventType::ReleaseCreated).await?;
    sleep(Duration::from_secs(1)).await;
    if due > 0 {
        world.announce(EventType::ReleaseActivated, due).await?;
        // Until they are fanned out.
        sleep(Duration::from_secs(2)).await;
    }
    let mut waits = Vec::new();
    for _ in 0..100 {
        let id = world.announce(EventType::ReleaseCreated, 1).await?.pop_first().context("an event")?;
        let committed = Instant::now();
        timeout(PATIENCE, receiver.wait_for(waits.len() + 1)).await?;
        waits.push(receiver.first(id).context("another event came")?.saturating_duration_since(committed));
        sleep(Duration::from_millis(50)).await;
    }
    waits.sort_unstable();
    world.runner.stop().await;
    Ok(waits[waits.len() / 2])
}

/// How often workers were killed until everything had arrived, and how many events came more than once.
async fn under_kills(events: usize) -> Result<(usize, usize)> {
    let clock = Arc::new(ManualClock::at(SystemClock.now()));
    let world = World::start(false, Arc::clone(&clock) as Arc<dyn Clock>).await?;
    let receiver = Receiver::start().await?;
    world.endpoint(&receiver.url, EventType::ReleaseCreated).await?;
    clock.advance(Duration::from_secs(1_000));
    let sent = world.announce(EventType::ReleaseCreated, events).await?;
    let mut kills = 0;
    while receiver.count() < sent.len() {
        let workers = registry::workers(&world.runner.app, &world.runner.gateway);
        let mut random = [0];
        world.runner.app.entropy.fill(&mut random);
        let alive = Duration::from_millis(10 + 2 * u64::from(random[0]));
        let work = async {
            let worked = workers["worker-webhook-events"]().await;
            sleep(alive).await;
            worked
        };
        timeout(alive, work).await.ok();
        // Its deliveries end with it, wherever they are.
        drop(workers);
        kills += 1;
        ensure!(kills < 100_000, "{} of {} have arrived", receiver.count(), sent.len());
        // Longer than a lease.
        clock.advance(Duration::from_mins(2));
    }
    ensure!(receiver.ids() == sent, "something else arrived");
    Ok((kills, receiver.repeated()))
}

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use tokio::task::JoinSet;

use crate::{
    client::{Connection, request},
    server::Server,
};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);
/// Uncounted time before a round, in which caches fill that expired during the other subjects'
/// rounds.
const WARM_UP: Duration = Duration::from_millis(200);
const STARTS: usize = 11;

/// A request, and a text that a correct response contains `times` times.
pub(super) struct Probe {
    pub(super) request: String,
    pub(super) expected: String,
    pub(super) times: usize,
}

impl Probe {
    pub(super) fn new(request: String, expected: impl Into<String>) -> Self {
        Self { request, expected: expected.into(), times: 1 }
    }

    async fn send(&self, connection: &mut Connection) -> Result<()> {
        let answer = connection.send(&self.request).await?;
        answer.succeeded()?;
        let body = std::str::from_utf8(answer.body)?;
        ensure!(
            body.matches(&self.expected).count() == self.times,
            "expected {} times {}: {body}",
            self.times,
            self.expected
        );
        Ok(())
    }
}

/// A server, and the probes that are sent to it in turn.
pub(super) struct Subject {
    address: String,
    probes: Arc<[Probe]>,
}

impl Subject {
    pub(super) fn new(server: &Server, probes: impl IntoIterator<Item = Probe>) -> Self {
        Self { address: server.address(), probes: probes.into_iter().collect() }
    }

    async fn warm_up(&self) -> Result<()> {
        let mut connection = Connection::open(&self.address).await?;
        for probe in self.probes.iter() {
            probe.send(&mut connection).await?;
        }
        Ok(())
    }

    /// Returns responses per second in a round, with one probe at a time on each connection.
    async fn round(&self, connections: usize) -> Result<f64> {
        let mut open = Vec::new();
        for _ in 0..connections {
            open.push(Connection::open(&self.address).await?);
        }
        let mut clients = JoinSet::new();
        for (at, connection) in open.into_iter().enumerate() {
            let first = at * self.probes.len() / connections;
            clients.spawn(rate(connection, Arc::clone(&self.probes), first));
        }
        let mut total = 0.0;
        while let Some(client) = clients.join_next().await {
            total += client??;
        }
        Ok(total)
    }
}

/// Returns responses per second of one connection. Counting starts after `WARM_UP` and lasts at
/// least `ROUND`.
async fn rate(mut connection: Connection, probes: Arc<[Probe]>, first: usize) -> Result<f64> {
    let started = Instant::now();
    let mut counted: Option<(Instant, u32)> = None;
    for probe in probes.iter().cycle().skip(first) {
        probe.send(&mut connection).await?;
        match &mut counted {
            None if started.elapsed() >= WARM_UP => counted = Some((Instant::now(), 0)),
            None => {}
            Some((since, answers)) => {
                *answers += 1;
                let took = since.elapsed();
                if took >= ROUND {
                    return Ok(f64::from(*answers) / took.as_secs_f64());
                }
            }
        }
    }
    bail!("no probes")
}

/// Measures the subjects in turns. Returns the median of each in responses per second.
pub(super) async fn rates<const N: usize>(subjects: [&Subject; N], connections: usize) -> Result<[f64; N]> {
    for subject in subjects {
        subject.warm_up().await?;
    }
    let mut rates = [(); N].map(|()| Vec::with_capacity(ROUNDS));
    for round in 0..ROUNDS {
        for turn in 0..N {
            let at = (round + turn) % N;
            rates[at].push(subjects[at].round(connections).await?);
        }
    }
    Ok(rates.map(median))
}

pub(super) fn fixed(server: &Server) -> Subject {
    Subject::new(server, [Probe::new(request("GET", "/", "none", ""), r#"{"valid":true}"#)])
}

type Start<'a> = &'a dyn Fn() -> Result<(Server, Probe)>;

/// Starts the servers in turns. Returns the median milliseconds from each start to the first
/// correct response.
pub(super) async fn starts<const N: usize>(kinds: [Start<'_>; N]) -> Result<[f64; N]> {
    let mut times = [(); N].map(|()| Vec::with_capacity(STARTS));
    for _ in 0..STARTS {
        for (kind, times) in kinds.iter().zip(&mut times) {
            let started = Instant::now();
            let (server, probe) = kind()?;
            probe.send(&mut Connection::open(&server.address()).await?).await?;
            times.push(started.elapsed().as_secs_f64() * 1_000.0);
            server.stop()?;
        }
    }
    Ok(times.map(median))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

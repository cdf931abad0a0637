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
/// What goes before a round and does not count: caches fill up again that the others' rounds let lapse.
const LEAD: Duration = Duration::from_millis(200);
const STARTS: usize = 11;

/// A request, and a text that a good answer to it holds so many times.
pub(super) struct Question {
    pub(super) request: String,
    pub(super) holds: String,
    pub(super) times: usize,
}

impl Question {
    pub(super) fn new(request: String, holds: impl Into<String>) -> Self {
        Self { request, holds: holds.into(), times: 1 }
    }

    async fn ask(&self, connection: &mut Connection) -> Result<()> {
        let answer = connection.ask(&self.request).await?;
        answer.succeeded()?;
        let body = std::str::from_utf8(answer.body)?;
        ensure!(body.matches(&self.holds).count() == self.times, "not {} times {}: {body}", self.times, self.holds);
        Ok(())
    }
}

/// A server and what it is asked, in turn.
pub(super) struct Subject {
    address: String,
    questions: Arc<[Question]>,
}

impl Subject {
    pub(super) fn new(server: &Server, questions: impl IntoIterator<Item = Question>) -> Self {
        Self { address: server.address(), questions: questions.into_iter().collect() }
    }

    /// Every question once, as a warm-up.
    async fn ask_all(&self) -> Result<()> {
        let mut connection = Connection::open(&self.address).await?;
        for question in self.questions.iter() {
            question.ask(&mut connection).await?;
        }
        Ok(())
    }

    /// Answers per second in a round, one question at a time on each connection.
    async fn round(&self, connections: usize) -> Result<f64> {
        let mut open = Vec::new();
        for _ in 0..connections {
            open.push(Connection::open(&self.address).await?);
        }
        let mut clients = JoinSet::new();
        for (at, connection) in open.into_iter().enumerate() {
            let first = at * self.questions.len() / connections;
            clients.spawn(rate(connection, Arc::clone(&self.questions), first));
        }
        let mut together = 0.0;
        while let Some(client) = clients.join_next().await {
            together += client??;
        }
        Ok(together)
    }
}

/// Answers per second over a connection, from an answer after the lead to one after the round.
async fn rate(mut connection: Connection, questions: Arc<[Question]>, first: usize) -> Result<f64> {
    let started = Instant::now();
    let mut counted: Option<(Instant, u32)> = None;
    for question in questions.iter().cycle().skip(first) {
        question.ask(&mut connection).await?;
        match &mut counted {
            None if started.elapsed() >= LEAD => counted = Some((Instant::now(), 0)),
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
    bail!("no question")
}

/// Answers per second of each, by turns, medians.
pub(super) async fn rates<const N: usize>(subjects: [&Subject; N], connections: usize) -> Result<[f64; N]> {
    for subject in subjects {
        subject.ask_all().await?;
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

/// The answer of `fixed.mjs`.
pub(super) fn fixed(server: &Server) -> Subject {
    Subject::new(server, [Question::new(request("GET", "/", "none", ""), r#"{"valid":true}"#)])
}

type Start<'a> = &'a dyn Fn() -> Result<(Server, Question)>;

/// Milliseconds from a server's start to its first good answer, by turns, medians.
pub(super) async fn starts<const N: usize>(kinds: [Start<'_>; N]) -> Result<[f64; N]> {
    let mut times = [(); N].map(|()| Vec::with_capacity(STARTS));
    for _ in 0..STARTS {
        for (kind, times) in kinds.iter().zip(&mut times) {
            let started = Instant::now();
            let (server, question) = kind()?;
            question.ask(&mut Connection::open(&server.address()).await?).await?;
            times.push(started.elapsed().as_secs_f64() * 1_000.0);
            server.stop()?;
        }
    }
    Ok(times.map(median))
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

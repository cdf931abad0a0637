//! Many streams at once: gaps between tokens, and memory.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use karta_local::provider::{FakeProvider, Script};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    Times,
    client::{Arrivals, Connection},
    karta::{Direct, Karta, TOKEN},
    milliseconds, report,
};

const STREAMS: usize = 200;
const TOKENS: usize = 500;
/// With the granularity of the timer, about 50 tokens a second.
const PAUSE: Duration = Duration::from_millis(19);

pub(crate) async fn measure(karta: &Karta, provider: &FakeProvider) -> Result<()> {
    // So that the memory before the load includes what every process needs.
    let warm = Script { tokens: 4, ..Script::default() };
    let mut connection = karta.connection().await?;
    for session in &karta.sessions(50).await? {
        provider.push(warm.clone());
        karta.stream(&mut connection, session).await?;
    }

    let direct = Arc::new(Direct::new(provider)?);
    push_scripts(provider);
    let mut clients = JoinSet::new();
    for _ in 0..STREAMS {
        let direct = Arc::clone(&direct);
        clients.spawn(async move { direct.stream(&mut direct.connection().await?).await });
    }
    report_gaps(&format!("{STREAMS} direct streams"), &all(clients).await?, "")?;

    let sessions = karta.sessions(STREAMS).await?;
    push_scripts(provider);
    let before = karta.resident_megabytes()?;
    let mut clients = JoinSet::new();
    for session in &sessions {
        let (address, turn) = (karta.address.clone(), karta.turn(session, true));
        clients.spawn(async move { Connection::open(&address).await?.stream(&turn, TOKEN).await });
    }
    let (streams, peak) = tokio::join!(all(clients), peak(karta));
    report_gaps(&format!("{STREAMS} streams"), &streams?, "60 ms")?;
    report("resident memory before the streams", format!("{before:.1} MB"), "")?;
    report("resident memory of Karta and its store, peak", format!("{:.1} MB", peak?), "120 MB")
}

fn push_scripts(provider: &FakeProvider) {
    for _ in 0..STREAMS {
        provider.push(Script { tokens: TOKENS, pause: PAUSE, ..Script::default() });
    }
}

/// Waits for the streams. Fails unless each has all tokens.
async fn all(mut clients: JoinSet<Result<Arrivals>>) -> Result<Vec<Arrivals>> {
    let mut streams = Vec::with_capacity(STREAMS);
    while let Some(client) = clients.join_next().await {
        let stream = client??;
        ensure!(stream.tokens.len() == TOKENS, "a stream has {} tokens", stream.tokens.len());
        streams.push(stream);
    }
    Ok(streams)
}

fn report_gaps(name: &str, streams: &[Arrivals], goal: &str) -> Result<()> {
    let gaps = Times::new(streams.iter().flat_map(Arrivals::gaps).collect())?;
    let whole = Times::new(streams.iter().map(Arrivals::whole).collect())?;
    let tokens = f64::from(u32::try_from(TOKENS)?);
    let rate = tokens / whole.median().as_secs_f64();
    report(&format!("{name}: tokens a second each, median"), format!("{rate:.1}"), "")?;
    report(&format!("{name}: gap between tokens, p99"), milliseconds(gaps.p99()), goal)?;
    report(&format!("{name}: gap between tokens, maximum"), milliseconds(gaps.max()), "")
}

/// Returns the highest resident memory, in megabytes, during the time of the streams.
async fn peak(karta: &Karta) -> Result<f64> {
    let ends = Instant::now() + (PAUSE + Duration::from_millis(2)) * u32::try_from(TOKENS)?;
    let mut peak = 0.0_f64;
    while Instant::now() < ends {
        peak = peak.max(karta.resident_megabytes()?);
        sleep(Duration::from_millis(100)).await;
    }
    Ok(peak)
}

//! Turns per second of one organization, whose answers are not streamed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use karta_local::provider::FakeProvider;
use tokio::task::JoinSet;

use crate::{
    calls::start_behind,
    client::Connection,
    karta::Karta,
    proxy::{CountingProxy, Faults},
    report,
};

const CONNECTIONS: usize = 32;
const TURNS: usize = 100;

/// The result of a load.
struct Load {
    turns_per_second: f64,
    /// Turns that ended with another status than 200.
    failed: usize,
}

pub(crate) async fn measure(mut karta: Karta, provider: &FakeProvider) -> Result<()> {
    let plain = load(&karta).await?;
    ensure!(plain.failed == 0, "{} turns failed", plain.failed);
    report(&format!("turns per second, {CONNECTIONS} connections"), format!("{:.0}", plain.turns_per_second), "")?;
    karta.set_caps().await?;
    let capped = load(&karta).await?;
    ensure!(capped.failed == 0, "{} turns failed", capped.failed);
    let name = format!("turns per second, {CONNECTIONS} connections, with caps");
    report(&name, format!("{:.0}", capped.turns_per_second), "")?;

    let proxy = CountingProxy::bind().await?;
    let karta = start_behind(&proxy, provider).await?;
    for every in [0, 10, 4, 2] {
        proxy.set_faults(if every == 0 { Faults::None } else { Faults::ConflictEvery(every) });
        let Load { turns_per_second, failed } = load(&karta).await?;
        let name = match every {
            0 => "turns per second behind a proxy, no conflicts".to_owned(),
            _ => format!("turns per second behind a proxy, 1 of {every} transactions conflicts"),
        };
        report(&name, format!("{turns_per_second:.0}, {failed} failed"), "")?;
    }
    Ok(())
}

async fn load(karta: &Karta) -> Result<Load> {
    let sessions = karta.sessions(CONNECTIONS * TURNS).await?;
    let mut clients = JoinSet::new();
    let started = Instant::now();
    for sessions in sessions.chunks(TURNS) {
        let turns: Vec<_> = sessions.iter().map(|session| karta.turn(session, false)).collect();
        let address = karta.address.clone();
        clients.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            let mut failed = 0;
            for turn in &turns {
                let (status, _) = connection.send(turn).await?;
                failed += usize::from(status != 200);
            }
            Ok::<_, anyhow::Error>(failed)
        });
    }
    let mut failed = 0;
    while let Some(client) = clients.join_next().await {
        failed += client??;
    }
    Ok(Load { turns_per_second: per_second(CONNECTIONS * TURNS, started.elapsed())?, failed })
}

fn per_second(count: usize, time: Duration) -> Result<f64> {
    Ok(f64::from(u32::try_from(count)?) / time.as_secs_f64())
}

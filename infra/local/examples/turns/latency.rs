//! The time that Karta adds to a turn, at one connection.

use std::time::Duration;

use anyhow::{Result, ensure};
use karta_local::provider::{FakeProvider, Script};

use crate::{
    Times, added,
    client::Arrivals,
    karta::{Direct, Karta},
    milliseconds, report,
};

const WARM_UP: usize = 50;
const TURNS: usize = 1_000;
const LONG_TOKENS: usize = 500;

/// First tokens and whole streams.
struct Measured {
    first: Times,
    whole: Times,
}

pub(crate) async fn measure(mut karta: Karta, provider: &FakeProvider) -> Result<()> {
    let direct = Direct::new(provider)?;
    let short = Script { tokens: 4, ..Script::default() };
    alternate(&karta, &direct, provider, &short, WARM_UP).await?;
    let (with_karta, alone) = alternate(&karta, &direct, provider, &short, TURNS).await?;
    report("first token of a direct call, median", milliseconds(alone.first.median()), "")?;
    report("first token of a direct call, p99", milliseconds(alone.first.p99()), "")?;
    report_first("without caps", &with_karta, &alone, "5 ms")?;

    // The timer of the provider has a granularity of a millisecond.
    for (pause, turns) in [(0, 60), (1, 30)] {
        let long = Script { tokens: LONG_TOKENS, pause: Duration::from_millis(pause), ..Script::default() };
        let (with_karta, alone) = alternate(&karta, &direct, provider, &long, turns).await?;
        let (whole, base) = (with_karta.whole.median(), alone.whole.median());
        let name = format!("added to a stream of {LONG_TOKENS} tokens with pauses of {pause} ms, median");
        report(&name, format!("{} to {}", added(whole, base), milliseconds(base)), "10 ms")?;
    }

    karta.set_caps().await?;
    alternate(&karta, &direct, provider, &short, WARM_UP).await?;
    let (with_karta, alone) = alternate(&karta, &direct, provider, &short, TURNS).await?;
    report_first("with caps", &with_karta, &alone, "7 ms")
}

/// The base of both figures is the median of the direct calls, so that p99 has the whole tail.
fn report_first(name: &str, with_karta: &Measured, alone: &Measured, goal: &str) -> Result<()> {
    let base = alone.first.median();
    report(&format!("added to the first token, {name}, median"), added(with_karta.first.median(), base), goal)?;
    report(&format!("added to the first token, {name}, p99"), added(with_karta.first.p99(), base), "15 ms")
}

/// Runs turns through Karta and direct calls in turn. Each turn has a new session.
async fn alternate(
    karta: &Karta,
    direct: &Direct,
    provider: &FakeProvider,
    script: &Script,
    turns: usize,
) -> Result<(Measured, Measured)> {
    let sessions = karta.sessions(turns).await?;
    let (mut to_karta, mut to_provider) = (karta.connection().await?, direct.connection().await?);
    let (mut with_karta, mut alone) = (Vec::with_capacity(turns), Vec::with_capacity(turns));
    for session in &sessions {
        for _ in 0..2 {
            provider.push(script.clone());
        }
        alone.push(direct.stream(&mut to_provider).await?);
        with_karta.push(karta.stream(&mut to_karta, session).await?);
    }
    let measured = |arrivals: Vec<Arrivals>| {
        ensure!(arrivals.iter().all(|stream| stream.tokens.len() == script.tokens), "a stream lacks tokens");
        Ok(Measured {
            first: Times::new(arrivals.iter().map(Arrivals::first_token).collect::<Result<_>>()?)?,
            whole: Times::new(arrivals.iter().map(Arrivals::whole).collect())?,
        })
    };
    Ok((measured(with_karta)?, measured(alone)?))
}

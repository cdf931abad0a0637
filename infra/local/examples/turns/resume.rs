//! Resuming the stream of a turn.

use anyhow::{Context, Result};
use karta_local::provider::{FakeProvider, Script};

use crate::{
    Times,
    karta::{Karta, TOKEN},
    milliseconds, report,
};

const RESUMES: usize = 500;
const TOKENS: usize = 500;

pub(crate) async fn measure(karta: &Karta, provider: &FakeProvider) -> Result<()> {
    let session = karta.sessions(1).await?.pop().context("no session")?;
    provider.push(Script { tokens: TOKENS, ..Script::default() });
    let mut connection = karta.connection().await?;
    let turn = connection.json(&karta.turn(&session, false), 200).await?;
    let turn = turn["turn_id"].as_str().context("no turn")?;
    for after in [0, TOKENS / 2, TOKENS - 1] {
        let request = karta.request("GET", &format!("{session}/stream?after={turn}.{after}"), "");
        let mut first = Vec::with_capacity(RESUMES);
        for _ in 0..RESUMES {
            first.push(connection.stream(&request, TOKEN).await?.first_token()?);
        }
        let first = Times::new(first)?;
        let name = format!("resume after event {after} of {TOKENS}: first event");
        report(&format!("{name}, median"), milliseconds(first.median()), "20 ms")?;
        report(&format!("{name}, p99"), milliseconds(first.p99()), "")?;
    }
    Ok(())
}

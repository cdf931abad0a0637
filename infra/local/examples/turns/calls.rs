//! Calls of the store for each turn.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use karta_local::{
    Options, Runner,
    provider::{FakeProvider, Script},
};
use karta_shared::{
    clock::SystemClock,
    config::{Deadlines, TurnLimits},
    domain::{InternalGuard, Provider, ProviderBaseUrls, Reach, Slug},
    entropy::OsEntropy,
};

use crate::{karta::Karta, proxy::CountingProxy, report};

const TURNS: usize = 20;

pub(crate) async fn measure(provider: &FakeProvider) -> Result<()> {
    let proxy = CountingProxy::bind().await?;
    let mut karta = start_behind(&proxy, provider).await?;
    print_calls(&karta, &proxy, "turn of a new session", "7").await?;
    karta.set_caps().await?;
    print_calls(&karta, &proxy, "turn of a new session with caps", "9").await?;

    let session = karta.sessions(1).await?.pop().context("no session")?;
    let mut connection = karta.connection().await?;
    karta.stream(&mut connection, &session).await?;
    proxy.take_calls();
    karta.stream(&mut connection, &session).await?;
    report("calls of a turn with history and caps", proxy.take_calls(), "9")?;
    for (name, pause) in [("sent at once", Duration::ZERO), ("in 10 s", Duration::from_millis(19))] {
        let session = karta.sessions(1).await?.pop().context("no session")?;
        provider.push(Script { tokens: 500, pause, ..Script::default() });
        proxy.take_calls();
        karta.stream(&mut connection, &session).await?;
        report(&format!("calls of a stream of 500 tokens {name}, with caps"), proxy.take_calls(), "")?;
    }
    Ok(())
}

/// Starts a runner without workers in this process, whose calls of the store pass the proxy.
pub(crate) async fn start_behind(proxy: &Arc<CountingProxy>, provider: &FakeProvider) -> Result<Karta> {
    let options = Options {
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
        outbound_reach: Reach::Public,
        deadlines: Deadlines::DEPLOYED,
        turn_limits: TurnLimits::DEFAULT,
        provider_base_urls: Some(provider.replace(ProviderBaseUrls::default(), Provider::Anthropic)),
        demo: false,
        workers: false,
        call_observer: None,
        clock: Arc::new(SystemClock),
        entropy: Arc::new(OsEntropy),
    };
    let runner = Runner::start_with_proxy(options, Some(&|store: &str| proxy.serve(store))).await?;
    Karta::in_process(runner).await
}

/// Prints the mean of some turns after a first one.
async fn print_calls(karta: &Karta, proxy: &CountingProxy, name: &str, goal: &str) -> Result<()> {
    let sessions = karta.sessions(TURNS + 1).await?;
    let mut connection = karta.connection().await?;
    for (at, session) in sessions.iter().enumerate() {
        if at == 1 {
            proxy.take_calls();
        }
        karta.stream(&mut connection, session).await?;
    }
    report(&format!("calls of a {name}, mean of {TURNS}"), proxy.take_calls().mean(TURNS), goal)
}

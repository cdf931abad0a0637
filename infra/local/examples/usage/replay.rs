use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result, ensure};
use karta_shared::{
    domain::{Entropy, Quantity, Tally, UsageKind},
    entropy::SeededEntropy,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    plane::{Plane, batch},
    proxy::FaultProxy,
};

const WRITERS: usize = 8;
const BATCH: usize = 500;

/// Sums of usage by group: all, a model, a date, a key, or a model or date of a key.
type Sums = BTreeMap<String, Tally>;

/// Sends shuffled events, 30 % of them twice, from eight writers through a store proxy with faults.
/// Fails unless the usage of the month equals the events to the token. Returns the number of
/// retried batches.
pub(crate) async fn replay(count: usize) -> Result<usize> {
    let (proxy, url) = FaultProxy::bind().await?;
    let before = |store: &str| {
        proxy.serve(store);
        url.clone()
    };
    let plane = Arc::new(Plane::start(true, Some(&before)).await?);
    let keys = plane.keys(10).await?;
    let (events, generated) = generate(&plane, &keys, count)?;
    proxy.set_faults(true);
    let batches: Vec<_> = events.chunks(BATCH).map(batch).collect();
    let sent = batches.len();
    let mut writers = JoinSet::new();
    for batches in batches.chunks(sent.div_ceil(WRITERS)) {
        let (plane, batches) = (Arc::clone(&plane), batches.to_vec());
        writers.spawn(async move {
            let mut sent = 0;
            for batch in batches {
                sent += plane.report(batch).await?;
            }
            Ok::<_, anyhow::Error>(sent)
        });
    }
    let mut times = 0;
    while let Some(writer) = writers.join_next().await {
        times += writer??;
    }
    proxy.set_faults(false);
    compare(&plane, &generated).await?;
    Ok(times - sent)
}

fn generate(plane: &Plane, keys: &[u64], count: usize) -> Result<(Vec<Value>, Sums)> {
    let entropy = SeededEntropy::new(1);
    let draw = |below: usize| {
        let mut random = [0; 4];
        entropy.fill(&mut random);
        u32::from_be_bytes(random) as usize % below
    };
    let (now, mut events, mut sums) = (plane.now.to_string(), Vec::with_capacity(count * 13 / 10), Sums::new());
    let (month, today) = (now.get(..7).context("no month")?, now.get(8..10).context("no day")?.parse()?);
    for id in 0..count {
        let (key, model, day) = (keys[draw(keys.len())], draw(20), draw(today) + 1);
        let (quantity, input) = (Quantity::try_from(draw(5_000) as u64 + 1)?, draw(2) == 0);
        let kind = if input { UsageKind::InputTokens } else { UsageKind::OutputTokens };
        let (model, date) = (format!("gpt-4o-mini-2024-07-{:02}", model + 1), format!("{month}-{day:02}"));
        events.push(json!({
            "api_key_id": key, "kind": kind, "quantity": quantity, "model": model,
            "occurred_at": format!("{date}T00:00:00Z"), "client_event_id": format!("event-{id}"),
        }));
        let price = plane.runner.app.prices.price(Some(&model)).context("no price")?;
        for of in ["all".to_owned(), format!("key {key}")] {
            for part in [of.clone(), format!("{of} {model}"), format!("{of} {date}")] {
                let sum = sums.entry(part).or_default();
                *(if input { &mut sum.input_tokens } else { &mut sum.output_tokens }) += u128::from(quantity.get());
                sum.cost += price.cost(kind, quantity);
            }
        }
    }
    events.extend_from_within(..count * 3 / 10);
    for at in (1..events.len()).rev() {
        events.swap(at, draw(at + 1));
    }
    Ok((events, sums))
}

/// Fails unless the reported tokens, and the cost in cents rounded up, equal those of the events.
async fn compare(plane: &Plane, generated: &Sums) -> Result<()> {
    let (all, keys) = (plane.get("/v1/usage").await?, plane.get("/v1/usage/keys?limit=100").await?);
    let keys = keys["keys"].as_array().into_iter().flatten().map(|key| (format!("key {}", key["api_key_id"]), key));
    let mut reported = BTreeMap::new();
    for (of, usage) in keys.chain([("all".to_owned(), &all)]) {
        let parts = [("model", "by_model"), ("date", "by_day")].into_iter().flat_map(|(name, list)| {
            let parts = usage[list].as_array().into_iter().flatten();
            parts.map(move |part| (format!(" {}", part[name].as_str().unwrap_or_default()), part))
        });
        for (part, tally) in parts.chain([(String::new(), &usage["totals"])]) {
            let [input, output, cents] = ["input_tokens", "output_tokens", "cost_cents"].map(|sum| tally[sum].as_u64());
            if (input, output) != (Some(0), Some(0)) {
                reported.insert(format!("{of}{part}"), [input, output, cents].map(|sum| sum.map(u128::from)));
            }
        }
    }
    let expected = generated
        .iter()
        .map(|(part, tally)| (part.clone(), [tally.input_tokens, tally.output_tokens, tally.cost_cents()].map(Some)));
    ensure!(reported == expected.collect(), "the reported usage differs from the events");
    Ok(())
}

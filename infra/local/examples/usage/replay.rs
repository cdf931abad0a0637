use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result, ensure};
use karta_shared::{domain::Entropy, entropy::SeededEntropy};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    plane::{Plane, batch},
    wire::Wire,
};

const WRITERS: usize = 8;
const BATCH: usize = 500;

/// Input and output tokens by what they were summed over: a model, a day, a key, or all.
type Sums = BTreeMap<(&'static str, String), (u64, u64)>;

/// Sends generated events, 30 % of them twice, shuffled, from eight writers through a troubled wire. What the month then tells must be what was
/// generated, to the token. Says how many times a batch had to be sent again.
pub(crate) async fn replay(count: usize) -> Result<usize> {
    let (wire, url) = Wire::tap().await?;
    let before = |store: &str| {
        wire.serve(store);
        url.clone()
    };
    let plane = Arc::new(Plane::start(true, Some(&before)).await?);
    let keys = plane.keys(10).await?;
    let (events, generated) = generate(&plane, &keys, count)?;
    wire.trouble(true);
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
    wire.trouble(false);
    ensure!(told(&plane).await? == generated, "what is told is not what was generated");
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
        let (quantity, input) = (draw(5_000) as u64 + 1, draw(2) == 0);
        let (model, date) = (format!("model-{model}"), format!("{month}-{day:02}"));
        events.push(json!({
            "api_key_id": key, "kind": if input { "input_tokens" } else { "output_tokens" }, "quantity": quantity,
            "model": model, "occurred_at": format!("{date}T00:00:00Z"), "client_event_id": format!("event-{id}"),
        }));
        for part in [("model", model), ("date", date), ("api_key_id", key.to_string()), ("all", String::new())] {
            let sum = sums.entry(part).or_default();
            *(if input { &mut sum.0 } else { &mut sum.1 }) += quantity;
        }
    }
    events.extend_from_within(..count * 3 / 10);
    for at in (1..events.len()).rev() {
        events.swap(at, draw(at + 1));
    }
    Ok((events, sums))
}

async fn told(plane: &Plane) -> Result<Sums> {
    let tokens =
        |part: &Value| (part["input_tokens"].as_u64().unwrap_or(0), part["output_tokens"].as_u64().unwrap_or(0));
    let month = plane.get("/v1/usage").await?;
    let mut sums = Sums::from([(("all", String::new()), tokens(&month["totals"]))]);
    for (name, list) in [("model", "by_model"), ("date", "by_day")] {
        for part in month[list].as_array().into_iter().flatten() {
            sums.insert((name, part[name].as_str().unwrap_or_default().to_owned()), tokens(part));
        }
    }
    let keys = plane.get("/v1/usage/keys?limit=100").await?;
    for key in keys["keys"].as_array().into_iter().flatten().filter(|key| key["totals"]["total_tokens"] != 0) {
        sums.insert(("api_key_id", key["api_key_id"].to_string()), tokens(&key["totals"]));
    }
    Ok(sums)
}

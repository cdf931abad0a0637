//! The ledger: after many turns with cancels, clients that leave, and faults of the provider and of
//! the store, the counted usage equals what the provider billed.

use std::{collections::HashMap, time::Duration};

use karta_local::provider::{Fault as ProviderFault, Script};
use karta_shared::entropy::SeededEntropy;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use super::{Chat, FLAT, IN_APP};
use crate::{budget::put, fault_proxy::Fault, harness::until, reservations::assert_all_released};

/// Turns of the normal run, because [`MANY_TURNS`] take minutes in a debug build.
const TURNS: usize = 200;
const MANY_TURNS: usize = 1_000;
const WORKERS: usize = 8;

/// A small deterministic source of choices.
struct Dice(SeededEntropy);

impl Dice {
    fn roll(&self, sides: usize) -> usize {
        use karta_shared::domain::Entropy;
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        usize::try_from(u64::from_le_bytes(bytes) % sides as u64).unwrap()
    }

    fn script(&self) -> Script {
        let tokens = 4 + self.roll(9);
        let status = |status| ProviderFault::Status { status, body: "{}".to_owned(), retry_after: None };
        let fault = match self.roll(24) {
            0 => ProviderFault::CutAfter(self.roll(tokens)),
            1 => ProviderFault::EndAfter(self.roll(tokens)),
            2 => ProviderFault::NoUsage,
            3 => ProviderFault::ErrorEventAfter(self.roll(tokens)),
            4 => ProviderFault::BrokenFrameAfter(self.roll(tokens)),
            5 => status(400),
            6 => status(401),
            7 => ProviderFault::TrailingGarbage,
            _ => ProviderFault::None,
        };
        // Slow answers give cancels and leaving clients something to interrupt.
        let pause = Duration::from_millis(if self.roll(5) == 0 { 15 } else { 0 });
        let cache_read_tokens = self.roll(3) as u64;
        Script { tokens, fault, pause, cache_read_tokens, ..Script::default() }
    }
}

/// Runs a worker's share of the turns in a session of its own.
async fn converse(
    client: reqwest::Client,
    base: String,
    bearer: String,
    worker: usize,
    turns: usize,
    family: &'static str,
    session: String,
) {
    let dice = Dice(SeededEntropy::new(worker as u64));
    let url = format!("{base}{family}/{session}");
    let post = |path: &str, body: Value| {
        client.post(format!("{url}{path}")).bearer_auth(&bearer).body(body.to_string()).send()
    };
    for turn in 0..turns {
        let text = format!("turn {worker}-{turn} {}", "x".repeat(dice.roll(30)));
        let model = if dice.roll(2) == 0 { "default" } else { "gpt-4o" };
        let body = |stream: bool| json!({ "text": text, "stream": stream, "model": model });
        match dice.roll(6) {
            // The client leaves after the head, or after the first chunk.
            0 => drop(post("/messages", body(true)).await),
            1 => {
                if let Ok(mut response) = post("/messages", body(true)).await {
                    response.chunk().await.ok();
                }
            }
            2 => {
                let canceled = async {
                    sleep(Duration::from_millis(dice.roll(120) as u64)).await;
                    post("/cancel", json!({})).await.ok();
                };
                let (response, ()) = tokio::join!(post("/messages", body(true)), canceled);
                response.unwrap().text().await.ok();
            }
            3 => drop(post("/messages", body(false)).await.unwrap().text().await),
            _ => drop(post("/messages", body(true)).await.unwrap().text().await),
        }
        // The next turn needs the end of this one.
        loop {
            let session: Value = client.get(&url).bearer_auth(&bearer).send().await.unwrap().json().await.unwrap();
            if session["turn"]["status"] != "running" && !session["status"].is_null() {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_equals_the_providers_ledger() {
    println!("{}", balance(TURNS).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn usage_of_many_turns_equals_the_ledger() {
    println!("{}", balance(MANY_TURNS).await);
}

/// Runs this many turns and compares what was counted with what was billed. Returns a summary.
async fn balance(turns: usize) -> String {
    let (chat, proxy) = Chat::behind_proxy().await;
    put(&chat.server, json!({ "total_tokens": 100_000_000 })).await;
    let dice = Dice(SeededEntropy::new(u64::MAX));
    for _ in 0..2 * turns {
        chat.provider.push(dice.script());
    }
    // The scheduled faults last for the whole run: some are left over.
    for _ in 0..turns {
        proxy.fail_after("TransactWriteItems", dice.roll(12), 1, Fault::Cancel { code: "TransactionConflict", at: 0 });
        proxy.fail_after("TransactWriteItems", 6 + dice.roll(12), 1, Fault::DropResponse);
        proxy.fail_after("UpdateItem", dice.roll(12), 1, Fault::DropResponse);
        proxy.fail_after("PutItem", dice.roll(4), 1, Fault::Throttle);
    }
    let (client, mut workers) = (reqwest::Client::new(), JoinSet::new());
    for worker in 0..WORKERS {
        let family = if worker % 2 == 0 { FLAT } else { IN_APP };
        let session = chat.session(family).await;
        let (base, bearer) = (chat.server.runner.base_url.clone(), chat.server.admin.clone());
        let share = turns / WORKERS;
        workers.spawn(converse(client.clone(), base, bearer, worker, share, family, session));
    }
    workers.join_all().await;
    proxy.heal();
    until("the provider's last answer", async || {
        let before: u64 = chat.provider.ledger().iter().map(|entry| entry.output_tokens).sum();
        sleep(Duration::from_millis(300)).await;
        chat.provider.ledger().iter().map(|entry| entry.output_tokens).sum::<u64>() == before
    })
    .await;
    check(&chat, turns).await
}

/// What the provider billed, or what was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bill {
    input: u64,
    output: u64,
    cached: u64,
}

impl Bill {
    fn add(&mut self, more: Self) {
        self.input += more.input;
        self.output += more.output;
        self.cached += more.cached;
    }

    fn total(self) -> u64 {
        self.input + self.output + self.cached
    }
}

async fn check(chat: &Chat, expected_turns: usize) -> String {
    // The text of each message, by turn.
    let mut texts = HashMap::new();
    for family in [FLAT, IN_APP] {
        let sessions = chat.server.get(&format!("{family}?limit=100")).send().await.expect(200)["sessions"].take();
        for session in sessions.as_array().unwrap() {
            let mut cursor = String::new();
            loop {
                let path = format!("/v1/sessions/{}/messages?limit=100{cursor}", session["id"].as_str().unwrap());
                let page = chat.server.get(&path).send().await.expect(200);
                for message in page["messages"].as_array().unwrap().iter().filter(|message| message["role"] == "user") {
                    texts.insert(message["turn_id"].clone().to_string(), message["text"].as_str().unwrap().to_owned());
                }
                match page["next_cursor"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
        }
    }
    let mut billed: HashMap<String, Bill> = HashMap::new();
    for entry in chat.provider.ledger() {
        let call: Value = serde_json::from_slice(&entry.body).unwrap();
        let content = &call["messages"].as_array().unwrap().last().unwrap()["content"];
        let text = content.as_str().or(content[0]["text"].as_str()).unwrap().to_owned();
        let cached = entry.cache_read_tokens + entry.cache_write_tokens;
        billed.entry(text).or_default().add(Bill { input: entry.input_tokens, output: entry.output_tokens, cached });
    }
    let (mut counted, mut exact, mut estimated, mut in_estimates) = (Bill::default(), 0, 0, (0, 0));
    let turns = chat.turns().await;
    let mut statuses: HashMap<String, usize> = HashMap::new();
    for turn in &turns {
        *statuses.entry(turn["status"].as_str().unwrap().to_owned()).or_default() += 1;
        let usage = |kind: &str| turn["usage"][kind].as_u64().unwrap();
        let cached = usage("cache_read_tokens") + usage("cache_write_tokens");
        let bill = Bill { input: usage("input_tokens"), output: usage("output_tokens"), cached };
        counted.add(bill);
        let expected = billed.get(&texts[&turn["id"].to_string()]).copied().unwrap_or_default();
        if turn["estimated"] == true {
            estimated += 1;
            in_estimates.0 += bill.total();
            in_estimates.1 += expected.total();
        } else {
            exact += 1;
            assert_eq!(bill, expected, "{turn}");
        }
    }
    let all = billed.values().fold(0, |sum, bill| sum + bill.total());
    assert!(turns.len() * 10 >= expected_turns * 9, "{} turns", turns.len());
    assert!(estimated * 3 < turns.len(), "{estimated} estimated");
    let (tokens, of) = in_estimates;
    assert!(tokens.abs_diff(of) * 20 <= of, "estimated as {tokens} of {of} tokens, which is not within 5 %");
    let totals = chat.totals().await;
    let reported = ["input_tokens", "output_tokens", "cache_read_tokens"].map(|kind| totals[kind].as_u64().unwrap());
    assert_eq!(reported, [counted.input, counted.output, counted.cached], "each turn is counted once");
    assert!(!statuses.contains_key("running"));
    assert_all_released(&chat.server).await;
    format!(
        "{} turns {statuses:?}: {exact} exact, {estimated} estimated as {tokens} of {of} tokens; {} of {all} counted",
        turns.len(),
        counted.total(),
    )
}

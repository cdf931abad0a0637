//! The ledger: after many turns with cancels, clients that leave, processes that are killed, and
//! faults of the provider and of the store, the counted usage equals what the provider billed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use karta_local::provider::{Fault as ProviderFault, Script};
use karta_shared::{config::TurnLimits, entropy::SeededEntropy};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Chat, FLAT, IN_APP, TURN_LIMITS};
use crate::{budget::put, fault_proxy::StoreFault, harness::until, reservations::assert_all_released, turns::Process};

/// Turns of the normal run, because [`MANY_TURNS`] take minutes in a debug build.
const TURNS: usize = 200;
const MANY_TURNS: usize = 1_000;
const WORKERS: usize = 8;
/// The next turn of a session waits this long after a kill.
const LEASE: Duration = Duration::from_secs(3);

/// A small deterministic source of choices.
pub(super) struct Dice(pub(super) SeededEntropy);

impl Dice {
    pub(super) fn roll(&self, sides: usize) -> usize {
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

/// Runs a worker's share of the turns in a session of its own, and in a process of its own that is
/// killed now and then.
async fn converse(chat: Arc<Chat>, store: String, worker: usize, turns: usize, family: &'static str, session: String) {
    let dice = Dice(SeededEntropy::new(worker as u64));
    let (client, bearer) = (reqwest::Client::new(), chat.server.admin.clone());
    let path = format!("{family}/{session}");
    let post = |base: &str, rest: &str, body: Value| {
        client.post(format!("{base}{path}{rest}")).bearer_auth(&bearer).body(body.to_string()).send()
    };
    let mut process = Process::start_with_store(&chat.server, &store).await;
    for turn in 0..turns {
        let text = format!("turn {worker}-{turn} {}", "x".repeat(dice.roll(30)));
        let model = if dice.roll(2) == 0 { "default" } else { "gpt-4o" };
        let ask = |stream: bool| {
            let body = json!({ "text": text, "stream": stream, "model": model });
            post(&process.peer.base_url, "/messages", body)
        };
        match dice.roll(7) {
            // The client leaves after the head, or after the first chunk.
            0 => drop(ask(true).await),
            1 => {
                if let Ok(mut response) = ask(true).await {
                    response.chunk().await.ok();
                }
            }
            // Another process takes the request to cancel.
            2 => {
                let canceled = async {
                    sleep(Duration::from_millis(dice.roll(120) as u64)).await;
                    post(&chat.server.runner.base_url, "/cancel", json!({})).await.ok();
                };
                let (response, ()) = tokio::join!(ask(true), canceled);
                response.unwrap().text().await.ok();
            }
            3 => drop(ask(false).await.unwrap().text().await),
            4 => {
                let asked = async { ask(true).await.unwrap().text().await };
                timeout(Duration::from_millis(dice.roll(200) as u64), asked).await.ok();
                process.kill().await;
                process = Process::start_with_store(&chat.server, &store).await;
            }
            _ => drop(ask(true).await.unwrap().text().await),
        }
        // The next turn needs the end of this one.
        loop {
            let session = chat.server.get(&path).send().await.json;
            if session["turn"]["status"] != "running" && !session["status"].is_null() {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Sweeps again and again. Some of the sweeps are killed.
async fn sweep(chat: Arc<Chat>) {
    let dice = Dice(SeededEntropy::new(u64::MAX - 1));
    loop {
        let alive = Duration::from_millis(if dice.roll(2) == 0 { dice.roll(100) as u64 } else { 10_000 });
        // A fault of the store fails a sweep, and the next one goes on.
        timeout(alive, chat.server.try_work("worker-turns-sweep")).await.ok();
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_equals_the_providers_ledger() {
    println!("{:?}", balance(TURNS).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn usage_of_many_turns_equals_the_ledger() {
    println!("{:?}", balance(MANY_TURNS).await);
}

/// Runs this many turns and compares what was counted with what was billed.
async fn balance(turns: usize) -> Balance {
    let (chat, proxy) = Chat::behind_proxy_with(TurnLimits { lease: LEASE, ..TURN_LIMITS }).await;
    put(&chat.server, json!({ "total_tokens": 100_000_000 })).await;
    let dice = Dice(SeededEntropy::new(u64::MAX));
    for _ in 0..2 * turns {
        chat.provider.push(dice.script());
    }
    // The scheduled faults last for the whole run: some are left over.
    for _ in 0..turns {
        proxy.fail_after(
            "TransactWriteItems",
            dice.roll(12),
            1,
            StoreFault::Cancel { code: "TransactionConflict", at: 0 },
        );
        proxy.fail_after("TransactWriteItems", 6 + dice.roll(12), 1, StoreFault::DropResponse);
        proxy.fail_after("UpdateItem", dice.roll(12), 1, StoreFault::DropResponse);
        proxy.fail_after("PutItem", dice.roll(4), 1, StoreFault::Throttle);
    }
    let (chat, mut workers, mut sweeps) = (Arc::new(chat), JoinSet::new(), JoinSet::new());
    sweeps.spawn(sweep(Arc::clone(&chat)));
    for worker in 0..WORKERS {
        let family = if worker % 2 == 0 { FLAT } else { IN_APP };
        let session = chat.session(family).await;
        let (chat, store, share) = (Arc::clone(&chat), proxy.url.clone(), turns / WORKERS);
        workers.spawn(converse(chat, store, worker, share, family, session));
    }
    workers.join_all().await;
    sweeps.shutdown().await;
    proxy.heal();
    until("the provider's last answer", async || {
        let before: u64 = chat.provider.ledger().iter().map(|entry| entry.output_tokens).sum();
        sleep(Duration::from_millis(300)).await;
        chat.provider.ledger().iter().map(|entry| entry.output_tokens).sum::<u64>() == before
    })
    .await;
    let balance = check(&chat).await;
    // Few turns have too few tokens to outweigh a kill before the request.
    assert!(turns < MANY_TURNS || is_within_five_percent(balance.in_all), "{balance:?}");
    // On a busy machine more clients give up before their turn starts.
    assert!(balance.turns() * 4 >= turns * 3, "{balance:?}");
    assert!(balance.estimated * 3 < balance.turns(), "{balance:?}");
    assert!(balance.interrupted() > 0, "kills interrupt turns: {balance:?}");
    balance
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

fn is_within_five_percent((counted, billed): (u64, u64)) -> bool {
    counted.abs_diff(billed) * 20 <= billed
}

/// Returns all items of a list.
pub(super) async fn listed(chat: &Chat, path: &str, field: &str) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let mut page = chat.server.get(&format!("{path}?limit=100{cursor}")).send().await.expect(200);
        items.append(page[field].as_array_mut().unwrap());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

/// The turns of a run, after they were compared with the provider's ledger.
#[derive(Debug, Default)]
pub(super) struct Balance {
    pub(super) statuses: BTreeMap<String, usize>,
    /// Turns whose usage is the provider's.
    exact: usize,
    estimated: usize,
    /// Tokens of the estimated turns: counted, and billed.
    in_estimates: (u64, u64),
    /// Turns whose process was killed between their reservation and their request to the provider. The
    /// sweep cannot know this, and estimates their input.
    unsent: usize,
    in_unsent: u64,
    /// Tokens of all turns: counted, and billed.
    in_all: (u64, u64),
}

impl Balance {
    pub(super) fn turns(&self) -> usize {
        self.exact + self.estimated + self.unsent
    }

    /// Tokens of all turns as counted.
    pub(super) fn counted(&self) -> u64 {
        self.in_all.0
    }

    pub(super) fn interrupted(&self) -> usize {
        self.statuses.get("interrupted").copied().unwrap_or_default()
    }
}

/// Asserts that every request to the provider belongs to a turn, that every turn has ended and is
/// counted once, with the provider's number or an estimate, and that the estimates of the requests
/// and the sum of all requests are within 5 %. The messages' texts are unique.
pub(super) async fn check(chat: &Chat) -> Balance {
    // The text of each message, by turn.
    let mut texts = HashMap::new();
    for family in [FLAT, IN_APP] {
        for session in listed(chat, family, "sessions").await {
            let path = format!("/v1/sessions/{}/messages", session["id"].as_str().unwrap());
            let messages = listed(chat, &path, "messages").await;
            for message in messages.iter().filter(|message| message["role"] == "user") {
                texts.insert(message["turn_id"].to_string(), message["text"].as_str().unwrap().to_owned());
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
    let known: HashSet<_> = texts.values().collect();
    assert!(billed.keys().all(|text| known.contains(text)), "a request to the provider without a turn");
    let (mut balance, mut counted) = (Balance::default(), Bill::default());
    for turn in chat.turns().await {
        *balance.statuses.entry(turn["status"].as_str().unwrap().to_owned()).or_default() += 1;
        let usage = |kind: &str| turn["usage"][kind].as_u64().unwrap();
        let cached = usage("cache_read_tokens") + usage("cache_write_tokens");
        let bill = Bill { input: usage("input_tokens"), output: usage("output_tokens"), cached };
        counted.add(bill);
        let expected = billed.get(&texts[&turn["id"].to_string()]).copied().unwrap_or_default();
        if turn["estimated"] == true && turn["status"] == "interrupted" && expected == Bill::default() {
            balance.unsent += 1;
            balance.in_unsent += bill.total();
        } else if turn["estimated"] == true {
            balance.estimated += 1;
            balance.in_estimates.0 += bill.total();
            balance.in_estimates.1 += expected.total();
        } else {
            balance.exact += 1;
            assert_eq!(bill, expected, "{turn}");
        }
    }
    balance.in_all = (counted.total(), billed.values().map(|bill| bill.total()).sum());
    let (counted_in_all, billed_in_all) = balance.in_all;
    for sums in [balance.in_estimates, (counted_in_all - balance.in_unsent, billed_in_all)] {
        assert!(is_within_five_percent(sums), "{sums:?}: {balance:?}");
    }
    let totals = chat.totals().await;
    let reported = ["input_tokens", "output_tokens", "cache_read_tokens"].map(|kind| totals[kind].as_u64().unwrap());
    assert_eq!(reported, [counted.input, counted.output, counted.cached], "each turn is counted once");
    assert!(!balance.statuses.contains_key("running"));
    assert_all_released(&chat.server).await;
    balance
}

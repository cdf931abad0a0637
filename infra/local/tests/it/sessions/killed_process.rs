//! The `karta` binary is killed while it streams turns, and started again on its data. After the
//! lease's end the sweep settles each turn once, and the usage balances.
//!
//! The normal run opens the data with a clock ahead of the lease's end instead of waiting for it.

use std::{path::Path, sync::Arc, time::Duration};

use http::Method;
use karta_local::{
    Options,
    provider::{FakeProvider, Script},
};
use karta_shared::{
    clock::{Clock, ManualClock, SystemClock},
    config::TurnLimits,
    entropy::SeededEntropy,
    worker::{Wake, Worker},
};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use worker_turns_sweep::TurnsSweep;

use super::{
    Chat, FLAT, IN_APP, MODEL, chat_options,
    ledger::{Balance, Dice, check, listed},
};
use crate::{
    harness::{TestServer, until},
    model_keys::provider_key,
    process::Karta,
};

const SWEEP: &str = "worker-turns-sweep";
/// Kills of the normal run, because each takes a second or two.
const KILLS: usize = 4;
const MANY_KILLS: usize = 60;
/// Conversations at once.
const SESSIONS: usize = 4;

fn start(data: &Path, provider: &FakeProvider) -> Karta {
    let arguments = ["--port", "0", "--json", "--data-dir", data.to_str().unwrap()];
    Karta::start_with(&arguments, &[("KARTA_PROVIDER_BASE_URLS", &provider.base_urls())])
}

/// Prepares what turns need.
async fn set_up(karta: &Karta, admin: &str) {
    for (method, path, body, status) in [
        (Method::PUT, "/v1/budget", json!({ "total_tokens": 1_000_000_000 }), 200),
        (Method::POST, "/v1/model_keys", json!({ "provider": "anthropic", "key": provider_key("sk-ant-api03-") }), 201),
        (Method::POST, "/v1/model_keys", json!({ "provider": "openai", "key": provider_key("sk-proj-") }), 201),
        (Method::POST, "/v1/agent_projects", json!({ "slug": "app", "name": "App" }), 201),
        (Method::POST, "/v1/agent_projects/app/deploys", json!({ "commit_sha": "abcdef1" }), 201),
    ] {
        let (answered, body) = karta.request(method, path, admin, &body).await;
        assert_eq!(answered, status, "{path}: {body}");
    }
}

/// Runs turns in a new session until the process dies. Returns the ids of the turns whose end the
/// client has seen.
async fn converse(base_url: String, admin: String, number: usize) -> Vec<String> {
    let (client, family) = (reqwest::Client::new(), if number.is_multiple_of(2) { FLAT } else { IN_APP });
    let model = if number % 4 < 2 { MODEL } else { "gpt-4o" };
    let post = async |path: String, body: Value| {
        let answer = client.post(format!("{base_url}{path}")).bearer_auth(&admin).body(body.to_string()).send().await?;
        answer.text().await
    };
    let mut ended = Vec::new();
    let Ok(created) = post(family.to_owned(), json!({})).await else { return ended };
    let created: Value = serde_json::from_str(&created).unwrap();
    let path = format!("{family}/{}/messages", created["id"].as_str().unwrap());
    for turn in 0.. {
        // A kill loses the events of the last second at most, which is little beside the input of a
        // conversation.
        let text = format!("{number}-{turn} {}", "x".repeat(4_000));
        let answer = post(path.clone(), json!({ "text": text, "stream": true, "model": model })).await;
        let Ok(answer) = answer else { return ended };
        let (_, done) = answer.split_once("\nevent: done\ndata: ").expect("an answer");
        let done: Value = serde_json::from_str(done.trim_end()).unwrap();
        ended.push(done["turn_id"].as_str().unwrap().to_owned());
    }
    unreachable!("the process is killed")
}

/// The process that settles the turns of the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sweep {
    /// The workers of a server whose clock is ahead of the lease's end.
    Ahead,
    /// The binary itself, in real time.
    Binary,
}

/// Waits until the binary has settled the turns of earlier processes: within a minute of the end of
/// their lease.
async fn settle_in_real_time(karta: &Karta, admin: &str) {
    let is_running = async || {
        for family in [FLAT, IN_APP] {
            let path = format!("{family}?limit={}", 2 * SESSIONS);
            let (status, listed) = karta.request(Method::GET, &path, admin, &json!({})).await;
            assert_eq!(status, 200, "{listed}");
            let mut sessions = listed["sessions"].as_array().unwrap().iter();
            if sessions.any(|session| session["turn"]["status"] == "running") {
                return true;
            }
        }
        false
    };
    assert!(is_running().await, "the lease has not ended");
    let settled = timeout(TurnLimits::DEFAULT.lease + Duration::from_mins(1), async {
        while is_running().await {
            sleep(Duration::from_millis(100)).await;
        }
    });
    settled.await.expect("all turns are settled within a minute of the lease's end");
}

/// Kills the binary this many times, and compares what was counted with what was billed.
async fn balance(kills: usize, sweep: Sweep) -> Balance {
    let script = Script { tokens: 20, pause: Duration::from_millis(10), ..Script::default() };
    let (provider, folder) = (FakeProvider::start(script).await.unwrap(), tempfile::tempdir().unwrap());
    let (dice, mut admin, mut ended) = (Dice(SeededEntropy::new(29)), None, Vec::new());
    for kill in 0..kills {
        let karta = start(folder.path(), &provider);
        if admin.is_none() {
            admin = Some(karta.says("api_key").to_owned());
            set_up(&karta, karta.says("api_key")).await;
        }
        let (mut conversations, earlier) = (JoinSet::new(), provider.ledger().len());
        for number in 0..SESSIONS {
            let (base_url, admin) = (karta.says("base_url").to_owned(), admin.clone().unwrap());
            conversations.spawn(converse(base_url, admin, kill * SESSIONS + number));
        }
        let requests = earlier + SESSIONS + dice.roll(2 * SESSIONS);
        until("turns run", async || provider.ledger().len() >= requests).await;
        sleep(Duration::from_millis(dice.roll(300) as u64)).await;
        karta.kill();
        ended.extend(conversations.join_all().await.into_iter().flatten());
    }
    let admin = admin.unwrap();
    if sweep == Sweep::Binary {
        settle_in_real_time(&start(folder.path(), &provider), &admin).await;
    }

    let lease = TurnLimits::DEFAULT.lease;
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(SystemClock.now().plus(lease)));
    let options = Options { data_dir: Some(folder.path().to_owned()), ..chat_options(&provider, clock) };
    let server = TestServer::start_over_as(options, &admin).await;
    let chat = Chat { server, provider };
    let is_running = |turn: &Value| turn["status"] == "running";
    assert!(sweep == Sweep::Ahead || !chat.turns().await.iter().any(is_running));
    let other = TurnsSweep::new(chat.server.runner.app.clone());
    let (first, second) = tokio::join!(chat.server.try_work(SWEEP), other.work(&Wake::Sweep));
    first.and(second).unwrap();
    let balance = check(&chat).await;
    let completed = chat.turns().await.into_iter().filter(|turn| turn["status"] == "completed");
    let completed: Vec<_> = completed.map(|turn| turn["id"].as_str().unwrap().to_owned()).collect();
    assert!(ended.iter().all(|turn| completed.contains(turn)), "an end that a client has seen is lost");
    chat.server.work(SWEEP).await;
    assert_eq!(chat.totals().await["total_tokens"], balance.counted(), "a second sweep counts nothing");
    for family in [FLAT, IN_APP] {
        for session in listed(&chat, family, "sessions").await {
            let body = json!({ "text": "Hello", "model": MODEL });
            chat.turn(family, session["id"].as_str().unwrap(), body).send().await.expect(200);
        }
    }
    balance
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_balances_after_kills_of_the_binary() {
    let balance = balance(KILLS, Sweep::Ahead).await;
    println!("{balance:?}");
    assert!(balance.interrupted() >= KILLS, "{balance:?}");
}

/// Takes about four minutes:
///
/// ```sh
/// cargo test --workspace --test it -- --ignored --nocapture usage_balances_after_many_kills
/// ```
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn usage_balances_after_many_kills_of_the_binary() {
    let balance = balance(MANY_KILLS, Sweep::Binary).await;
    println!("{balance:?}");
    assert!(balance.interrupted() >= MANY_KILLS, "{balance:?}");
}

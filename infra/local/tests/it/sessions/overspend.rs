//! The bound of overspending: racing turns pass a cap by at most one slice and the input of each
//! open turn, even if writes conflict.

use std::sync::Arc;

use karta_local::provider::Script;
use serde_json::json;
use tokio::task::JoinSet;

use super::{Chat, FLAT};
use crate::{
    budget::put,
    fault_proxy::{FaultProxy, StoreFault},
    reservations::assert_all_released,
};

const RACERS: u64 = 64;
/// Output tokens that are reserved at a time.
const SLICE: u64 = 1_024;
/// Tokens of each racer's message.
const INPUT: u64 = 10;
/// Output tokens of each turn.
const OUTPUT: u64 = 500;

/// Runs one turn in each session at once. Returns how many had an answer and how many a 402.
async fn race(chat: &Chat, proxy: &Arc<FaultProxy>) -> (u64, u64) {
    let mut sessions = Vec::new();
    for _ in 0..RACERS {
        sessions.push(chat.session(FLAT).await);
    }
    for _ in 0..24 {
        proxy.fail_after("TransactWriteItems", 3, 2, StoreFault::Cancel { code: "TransactionConflict", at: 0 });
        proxy.fail_after("UpdateItem", 4, 1, StoreFault::Exception("TransactionConflictException"));
        proxy.fail_after("UpdateItem", 7, 1, StoreFault::DropResponse);
    }
    let (client, mut turns) = (reqwest::Client::new(), JoinSet::new());
    for session in &sessions {
        let url = format!("{}{FLAT}/{session}/messages", chat.server.runner.base_url);
        let body = json!({ "text": "x".repeat(40), "max_tokens": 2_000 }).to_string();
        let request = client.post(url).bearer_auth(&chat.server.admin).body(body);
        turns.spawn(async move {
            // A busy store may cause a 503. The client then asks again.
            loop {
                let status = request.try_clone().unwrap().send().await.unwrap().status().as_u16();
                if status != 503 {
                    return status;
                }
            }
        });
    }
    let statuses = turns.join_all().await;
    proxy.heal();
    let count = |status: u16| statuses.iter().filter(|found| **found == status).count() as u64;
    let (answered, refused) = (count(200), count(402));
    assert_eq!(answered + refused, RACERS, "{statuses:?}");
    (answered, refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn racers_pass_the_cap_by_the_stated_bound() {
    const CAP: u64 = 8_000;
    let (chat, proxy) = Chat::behind_proxy().await;
    put(&chat.server, json!({ "total_tokens": CAP })).await;
    let script = Script { tokens: usize::try_from(OUTPUT).unwrap(), ..Script::default() };
    for _ in 0..RACERS {
        chat.provider.push(script.clone());
    }
    let (answered, refused) = race(&chat, &proxy).await;
    let spent = chat.totals().await["total_tokens"].as_u64().unwrap();
    let billed: u64 = chat.provider.ledger().iter().map(|entry| entry.input_tokens + entry.output_tokens).sum();
    assert_eq!(spent, billed);
    assert!(answered >= 1 && refused >= 1, "{answered} answered, {refused} refused");
    assert!(spent <= CAP + SLICE + RACERS * INPUT, "{spent} of {CAP}");
    assert_all_released(&chat.server).await;
    // Until the cap is spent, later turns are not refused.
    let session = chat.session(FLAT).await;
    let mut spent = spent;
    while spent < CAP {
        chat.say(FLAT, &session, "next").await;
        spent = chat.totals().await["total_tokens"].as_u64().unwrap();
    }
    chat.turn(FLAT, &session, json!({ "text": "over" })).send().await.refused(402);
    assert_all_released(&chat.server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sufficient_cap_refuses_no_racer() {
    let (chat, proxy) = Chat::behind_proxy().await;
    put(&chat.server, json!({ "total_tokens": RACERS * (2 * INPUT + SLICE) + 1 })).await;
    let (answered, refused) = race(&chat, &proxy).await;
    assert_eq!((answered, refused), (RACERS, 0));
    assert_eq!(chat.totals().await["total_tokens"], RACERS * (INPUT + 12));
    assert_all_released(&chat.server).await;
}

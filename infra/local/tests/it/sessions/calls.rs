//! The number of calls to DynamoDB of a turn.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use karta_local::provider::Script;
use karta_shared::config::TurnLimits;
use serde_json::json;

use super::{Chat, FLAT, IN_APP};
use crate::{budget::put, fault_proxy::FaultProxy};

/// Runs a warm turn. Returns the number of calls by operation.
async fn calls_of(
    chat: &Chat,
    proxy: &Arc<FaultProxy>,
    family: &str,
    session: &str,
    bearer: &str,
    key: Option<&str>,
) -> BTreeMap<String, usize> {
    let request = || {
        let request = chat.turn(family, session, json!({ "text": "hi", "stream": true })).bearer(bearer);
        match key {
            Some(key) => request.idempotency_key(format!("{key}{:?}", std::time::Instant::now())),
            None => request,
        }
    };
    request().send().await;
    proxy.forget();
    let reply = request().send().await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let mut calls = BTreeMap::new();
    for call in proxy.seen() {
        *calls.entry(call.operation).or_default() += 1;
    }
    calls
}

fn total(calls: &BTreeMap<String, usize>) -> usize {
    calls.values().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn warm_turn_makes_at_most_seven_calls() {
    let (chat, proxy) = Chat::behind_proxy_with(TurnLimits::DEFAULT).await;
    let token = chat.token(Some("ann")).await;
    for (family, bearer) in [(FLAT, &chat.server.admin), (IN_APP, &chat.server.admin), (IN_APP, &token)] {
        let session = chat.session_as(family, bearer, json!({})).await;
        let free = calls_of(&chat, &proxy, family, &session, bearer, None).await;
        assert!(total(&free) <= 7, "{family}: {free:?}");
        let keyed = calls_of(&chat, &proxy, family, &session, bearer, Some("k")).await;
        assert!(total(&keyed) <= 8, "one more with an Idempotency-Key: {keyed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn caps_add_two_calls() {
    let (chat, proxy) = Chat::behind_proxy_with(TurnLimits::DEFAULT).await;
    let (key, token) = chat.server.key(&["read", "write"]).await;
    let session = chat.session_as(FLAT, &token, json!({})).await;
    let free = calls_of(&chat, &proxy, FLAT, &session, &token, None).await;
    let budget = json!({ "total_tokens": 1_000_000 });
    put(&chat.server, budget.clone()).await;
    let one = calls_of(&chat, &proxy, FLAT, &session, &token, None).await;
    chat.server.patch(&format!("/v1/api_keys/{key}"), json!({ "budget": budget })).send().await.expect(200);
    let both = calls_of(&chat, &proxy, FLAT, &session, &token, None).await;
    assert_eq!((total(&one) - total(&free), total(&both) - total(&free)), (1, 2), "{free:?} {one:?} {both:?}");
    assert!(total(&both) <= 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_turn_adds_log_and_lease() {
    let (chat, proxy) = Chat::behind_proxy().await;
    let session = chat.session(FLAT).await;
    let short = calls_of(&chat, &proxy, FLAT, &session, &chat.server.admin, None).await;
    chat.provider.push(Script::default());
    chat.provider.push(Script { tokens: 125, pause: Duration::from_millis(20), ..Script::default() });
    let long = calls_of(&chat, &proxy, FLAT, &session, &chat.server.admin, None).await;
    let added = |operation: &str| long.get(operation).unwrap_or(&0) - short.get(operation).unwrap_or(&0);
    // A batch of the log after a second or 4 KiB of frames, and the lease with the state of the key
    // after each renewal, which these tests shorten from 10 s to 50 ms.
    assert!((2..=12).contains(&added("PutItem")), "{long:?}");
    assert!(added("UpdateItem") >= 20 && added("UpdateItem").abs_diff(added("BatchGetItem")) <= 1, "{long:?}");
    assert_eq!(added("TransactWriteItems"), 0);
}

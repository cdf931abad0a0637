//! Caps: where they refuse, what a refused slice does, and what stays committed.

use std::time::Duration;

use http::Method;
use karta_local::provider::{Fault, Script};
use serde_json::{Value, json};

use super::{Chat, FLAT, IN_APP, INPUT_PRICE, OUTPUT_PRICE, events};
use crate::{
    budget::{put, spend},
    harness::until,
    reservations::assert_all_released,
};

const CAPS: [&str; 4] = ["total_tokens", "input_tokens", "output_tokens", "cost_cents"];

/// A key of `acme`, and what it calls with.
struct Spender {
    key: u64,
    token: String,
    session_token: String,
    flat: String,
    in_app: String,
}

impl Spender {
    async fn create(chat: &Chat) -> Self {
        let (key, token) = chat.server.key(&["read", "write"]).await;
        let minted = chat.server.post("/v1/agent_projects/app/session_tokens", json!({})).bearer(&token);
        let session_token = minted.send().await.expect(201)["token"].as_str().unwrap().to_owned();
        let flat = chat.session_as(FLAT, &token, json!({})).await;
        let in_app = chat.session_as(IN_APP, &session_token, json!({})).await;
        Self { key, token, session_token, flat, in_app }
    }

    async fn cap(&self, chat: &Chat, budget: Value) {
        let path = format!("/v1/api_keys/{}", self.key);
        chat.server.patch(&path, json!({ "budget": budget })).send().await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reached_cap_refuses_creation_and_turns_only() {
    let chat = Chat::start().await;
    let spender = Spender::create(&chat).await;
    let Spender { key, token, session_token, flat, in_app } = &spender;
    // Spends all four kinds: 5 and 12 tokens, and more than a cent.
    chat.turn(FLAT, flat, json!({ "text": "spend some tokens" })).bearer(token).send().await.expect(200);
    spend(&chat.server, *key, 100_000).await;
    for (cap, owner) in CAPS.iter().flat_map(|cap| ["organization", "api_key"].map(|owner| (*cap, owner))) {
        match owner {
            "organization" => drop(put(&chat.server, json!({ cap: 1 })).await),
            _ => spender.cap(&chat, json!({ cap: 1 })).await,
        }
        for (family, bearer, session) in [(FLAT, token, flat), (IN_APP, token, flat), (IN_APP, session_token, in_app)] {
            let what = format!("{cap} of {owner} under {family}");
            let mut refused =
                vec![chat.server.post(family, json!({})), chat.server.post(family, json!({ "session_id": session }))];
            for stream in [false, true] {
                refused.push(chat.turn(family, session, json!({ "text": "hi", "stream": stream })));
            }
            for request in refused {
                let body = request.bearer(bearer).send().await.refused(402);
                let named = json!([body["error"], body["cap"], body["of"]]);
                assert_eq!(named, json!(["budget_exhausted", cap, owner]), "{what}");
                assert!(body["resets_at"].as_str().unwrap().ends_with("-01T00:00:00.000Z"), "{body}");
            }
        }
        for (family, bearer, session) in [(FLAT, token, flat), (IN_APP, session_token, in_app)] {
            let path = format!("{family}/{session}");
            for suffix in ["", "/messages"] {
                chat.server.get(&format!("{path}{suffix}")).bearer(bearer).send().await.expect(200);
            }
            chat.server.request(Method::POST, &format!("{path}/cancel")).bearer(bearer).send().await.refused(409);
        }
        chat.server.get(FLAT).bearer(token).send().await.expect(200);
        put(&chat.server, json!({})).await;
        spender.cap(&chat, Value::Null).await;
        chat.turn(FLAT, flat, json!({ "text": "hi" })).bearer(token).send().await.expect(200);
    }
    put(&chat.server, json!({ "total_tokens": 1 })).await;
    for (family, bearer, session) in [(FLAT, token, flat), (IN_APP, session_token, in_app)] {
        chat.server.delete(&format!("{family}/{session}")).bearer(bearer).send().await.expect(204);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cap_of_another_key_does_not_matter() {
    let chat = Chat::start().await;
    let (capped, other) = (Spender::create(&chat).await, Spender::create(&chat).await);
    capped.cap(&chat, json!({ "total_tokens": 0 })).await;
    let say = |spender: &Spender| chat.turn(FLAT, &spender.flat, json!({ "text": "hi" })).bearer(&spender.token).send();
    say(&capped).await.refused(402);
    say(&other).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_cap_refuses_nothing_before_it_is_spent() {
    let chat = Chat::start().await;
    for cap in CAPS {
        for owner in ["organization", "api_key"] {
            let spender = Spender::create(&chat).await;
            let spent = chat.totals().await;
            match owner {
                "organization" => drop(put(&chat.server, json!({ cap: spent[cap].as_u64().unwrap() + 1 })).await),
                _ => spender.cap(&chat, json!({ cap: 1 })).await,
            }
            let body = json!({ "text": "hi", "max_tokens": 1_000_000 });
            let said = chat.turn(FLAT, &spender.flat, body).bearer(&spender.token).send().await;
            said.expect(200);
            assert_all_released(&chat.server).await;
            put(&chat.server, json!({})).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_slice_ends_the_turn() {
    let chat = Chat::start().await;
    for (cap, limit) in [("total_tokens", 900), ("output_tokens", 900), ("cost_cents", 1)] {
        for stream in [true, false] {
            let spender = Spender::create(&chat).await;
            spender.cap(&chat, json!({ cap: limit })).await;
            chat.provider.push(Script { tokens: 4_000, pause: Duration::from_micros(200), ..Script::default() });
            let body = json!({ "text": "hi", "stream": stream });
            let reply = chat.turn(FLAT, &spender.flat, body).bearer(&spender.token).send().await;
            let messages = chat.server.get(&format!("{FLAT}/{}/messages", spender.flat)).send().await.expect(200);
            let text = messages["messages"][1]["text"].as_str().unwrap().to_owned();
            if stream {
                let events = events(&reply.text);
                let (last, data) = events.last().unwrap();
                assert_eq!(
                    (reply.status.as_u16(), last.as_str(), &data["code"]),
                    (200, "error", &json!("budget_exhausted"))
                );
                assert_eq!(super::streamed_text(&reply.text), text, "what was sent is kept");
            } else {
                assert_eq!(reply.refused(402)["error"], "budget_exhausted");
            }
            let usage = chat.server.get("/v1/usage/keys").send().await.expect(200);
            let of_key = usage["keys"].as_array().unwrap().iter().find(|of| of["api_key_id"] == spender.key).unwrap();
            let output = of_key["totals"]["output_tokens"].as_u64().unwrap();
            assert!((limit.min(500)..=2_048).contains(&output), "{cap}: {output} tokens");
            let turn = chat.get(FLAT, &spender.flat).await["turn"].take();
            assert_eq!(turn["status"], "failed");
            assert_all_released(&chat.server).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_output_is_limited_by_the_cap() {
    let chat = Chat::start().await;
    let sent = |limit: &str| -> u64 {
        let call: Value = serde_json::from_slice(&chat.provider.ledger().pop().unwrap().body).unwrap();
        call[limit].as_u64().unwrap()
    };
    let spender = Spender::create(&chat).await;
    let say = |body: Value| chat.turn(FLAT, &spender.flat, body).bearer(&spender.token).send();
    spender.cap(&chat, json!({ "output_tokens": 500 })).await;
    say(json!({ "text": "hi", "model": "gpt-4o" })).await.expect(200);
    assert_eq!(sent("max_completion_tokens"), 500);
    say(json!({ "text": "hi", "thinking": true })).await.expect(200);
    assert_eq!(sent("max_tokens"), 500 - 12);
    say(json!({ "text": "hi" })).await.expect(200);
    assert_eq!(sent("max_tokens"), 4_096, "visible output is reserved in slices");
    say(json!({ "text": "hi", "model": "gpt-4o", "max_tokens": 9 })).await.expect(200);
    assert_eq!(sent("max_completion_tokens"), 9);
    assert_all_released(&chat.server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_turn_shows_no_reservation_in_usage() {
    let chat = Chat::start().await;
    put(&chat.server, json!({ "total_tokens": 1_000_000, "cost_cents": 10_000 })).await;
    let session = chat.session(FLAT).await;
    chat.provider.push(Script { tokens: 40, pause: Duration::from_millis(20), ..Script::default() });
    let running = tokio::spawn(chat.turn(FLAT, &session, json!({ "text": "hello" })).send());
    let held = async || {
        let items = chat.server.scan("karta-usage").await;
        items.iter().any(|item| item.as_object().unwrap().keys().any(|name| name.starts_with('h')))
    };
    crate::harness::until("a reservation", held).await;
    let totals = chat.totals().await;
    assert_eq!((&totals["total_tokens"], &totals["cost_cents"]), (&json!(0), &json!(0)));
    let usage = chat.get(FLAT, &session).await["usage"].take();
    assert_eq!(usage["output_tokens"], 0);
    running.await.unwrap().expect(200);
    assert!(!held().await);
    let totals = chat.totals().await;
    assert_eq!((&totals["input_tokens"], &totals["output_tokens"]), (&json!(2), &json!(40)));
    assert_all_released(&chat.server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_turns_release_what_they_hold() {
    let chat = Chat::start().await;
    let spender = Spender::create(&chat).await;
    spender.cap(&chat, json!({ "total_tokens": 1_000_000, "cost_cents": 100 })).await;
    put(&chat.server, json!({ "total_tokens": 1_000_000 })).await;
    let rejected = Fault::Status { status: 400, body: "{}".to_owned(), retry_after: None };
    for fault in [rejected, Fault::CutAfter(3), Fault::EndAfter(0), Fault::NoUsage, Fault::ErrorEventAfter(2)] {
        chat.provider.push(Script { fault: fault.clone(), ..Script::default() });
        chat.turn(FLAT, &spender.flat, json!({ "text": "hi" })).bearer(&spender.token).send().await;
        assert_all_released(&chat.server).await;
        chat.turn(FLAT, &spender.flat, json!({ "text": "hi" })).bearer(&spender.token).send().await.expect(200);
        assert_all_released(&chat.server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cost_is_exact_and_rounded_up_once() {
    let chat = Chat::start().await;
    let session = chat.session(FLAT).await;
    chat.provider.push(Script { tokens: 900, cache_read_tokens: 40, cache_write_tokens: 7, ..Script::default() });
    let answer = chat.say(FLAT, &session, &"x".repeat(4_000)).await;
    let nano = 1_000 * INPUT_PRICE + 900 * OUTPUT_PRICE + 40 * 20_000 + 7 * 250_000;
    let usage = json!({
        "input_tokens": 1_000, "output_tokens": 900, "cache_read_tokens": 40, "cache_write_tokens": 7,
        "cost_cents": nano.div_ceil(1_000_000_000),
    });
    assert_eq!(answer["usage"], usage);
    let turns = chat.turns().await;
    let stored = chat.server.scan("karta-usage").await;
    let total = stored.iter().find(|item| item["pk"].as_str().unwrap().starts_with("UMO#")).unwrap();
    assert_eq!((&total["c"], turns.len()), (&json!(nano), 1));
}

/// A turn whose provider may hide output reserves all of its `max_tokens`: for a session token at most
/// the default, so that others can still spend.
#[tokio::test(flavor = "multi_thread")]
async fn held_budget_is_refused_for_a_moment() {
    let chat = Chat::start().await;
    let spender = Spender::create(&chat).await;
    spender.cap(&chat, json!({ "output_tokens": 500 })).await;
    chat.provider.push(Script { head_pause: Duration::from_mins(1), ..Script::default() });
    let body = json!({ "text": "hi", "thinking": true, "max_tokens": 1_000_000 });
    let held = chat.turn(FLAT, &spender.flat, body).bearer(&spender.token);
    tokio::select! {
        reply = held.send() => panic!("answered: {}", reply.text),
        () = async {
            until("the provider is called", async || !chat.provider.ledger().is_empty()).await;
            let other = chat.turn(IN_APP, &spender.in_app, json!({ "text": "hi" })).bearer(&spender.session_token).send().await;
            assert_eq!(other.headers.get("retry-after").map(|after| after.to_str().unwrap()), Some("10"), "{}", other.text);
            assert_eq!(other.refused(402)["error"], "budget_exhausted");
        } => {}
    }
    chat.server
        .post(&format!("{FLAT}/{}/cancel", spender.flat), json!({}))
        .bearer(&spender.token)
        .send()
        .await
        .expect(202);
    until("the turn ends", async || {
        let path = format!("{FLAT}/{}", spender.flat);
        chat.server.get(&path).bearer(&spender.token).send().await.expect(200)["turn"]["status"] != "running"
    })
    .await;
    chat.turn(IN_APP, &spender.in_app, json!({ "text": "hi" })).bearer(&spender.session_token).send().await.expect(200);
}

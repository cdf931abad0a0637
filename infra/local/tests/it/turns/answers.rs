//! Turns that end well: unary and streamed, in both families and with every provider.

use karta_local::provider::Script;
use karta_shared::domain::TurnStatus;
use serde_json::{Value, json};

use super::{ANTHROPIC, Conversation, EventReader, PROVIDERS, TurnServer, assert_whole, joined, text};

const TOKENS: usize = 12;
const ANSWER: &str = "one two six ten red sky sea sun one two six ten ";

/// Returns the usage of a turn as responses show it, from the provider's ledger. `cost` is in cents.
fn billed(turns: &TurnServer, cost: &Value) -> Value {
    let ledger = turns.provider.ledger();
    let last = ledger.last().unwrap();
    json!({
        "input_tokens": last.input_tokens, "output_tokens": last.output_tokens,
        "cache_read_tokens": last.cache_read_tokens, "cache_write_tokens": last.cache_write_tokens,
        "cost_cents": cost,
    })
}

/// Runs a unary and a streamed turn and compares both with the provider's ledger and the session.
async fn both_kinds_agree(turns: &TurnServer, session: &Conversation<'_>) {
    let asked = text();
    let unary = session.post(json!({ "text": asked })).send().await.expect(200);
    assert_eq!(unary["text"], ANSWER);
    assert_eq!((&unary["session_id"], &unary["agent"]), (&json!(session.id), &json!("default")));
    assert_eq!(unary["stop_reason"], "end_turn");
    assert_eq!(unary["usage"], billed(turns, &unary["usage"]["cost_cents"]));
    assert_eq!((&unary["messages"][0]["role"], &unary["messages"][0]["text"]), (&json!("user"), &json!(asked)));
    assert_eq!((&unary["messages"][1]["role"], &unary["messages"][1]["text"]), (&json!("assistant"), &json!(ANSWER)));
    assert_eq!(session.messages().await, *unary["messages"].as_array().unwrap());

    let events = session.stream().await.rest().await;
    let done = assert_whole(&events, 0);
    assert_eq!((events.len(), &*joined(&events, "text")), (TOKENS + 1, ANSWER));
    assert_eq!((&*done.kind, &done.data["data"]["stop_reason"]), ("done", &json!("end_turn")));
    let usage = &done.data["data"]["usage"];
    assert_eq!(*usage, billed(turns, &usage["cost_cents"]));

    let turn = session.last_turn().await;
    assert_eq!((turn.status, turn.estimated, turn.last_seq), (TurnStatus::Completed, false, 13));
    let messages = session.messages().await;
    assert_eq!(messages.len(), 4);
    assert_eq!((&messages[3]["id"], &messages[3]["text"]), (&done.data["data"]["message_id"], &json!(ANSWER)));
    let sum = |field: &str| unary["usage"][field].as_u64().unwrap() + usage[field].as_u64().unwrap();
    let shown = session.get().await;
    assert_eq!(shown["usage"]["input_tokens"], sum("input_tokens"));
    assert_eq!(shown["usage"]["output_tokens"], sum("output_tokens"));
    assert_eq!(shown["turn"]["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn unary_and_streamed_turns_agree() {
    let turns = TurnServer::start().await;
    for (provider, _, model) in PROVIDERS {
        both_kinds_agree(&turns, &turns.session(model).await).await;

        turns.project(provider, model).await;
        let admin = turns.server.admin.clone();
        both_kinds_agree(&turns, &turns.project_session(provider, &admin).await).await;
        let token = turns.server.session_token(provider, json!({ "user_id": "ada" })).await;
        both_kinds_agree(&turns, &turns.project_session(provider, &token).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_gets_the_whole_history() {
    let turns = TurnServer::start().await;
    for (_, _, model) in PROVIDERS {
        let session = turns.session(model).await;
        let mut expected = Vec::new();
        for turn in 0..3 {
            let asked = text();
            expected.push(json!({ "role": "user", "content": asked }));
            session.post(json!({ "text": asked, "stream": turn == 1 })).open().await.text().await.unwrap();
            let ledger = turns.provider.ledger();
            let sent: Value = serde_json::from_slice(&ledger.last().unwrap().body).unwrap();
            assert_eq!(sent["messages"], json!(expected), "{model}");
            assert_eq!((&sent["stream"], sent.get("system")), (&json!(true), None));
            expected.push(json!({ "role": "assistant", "content": ANSWER }));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_is_shown_but_not_sent_back() {
    let turns = TurnServer::start().await;
    for (_, _, model) in PROVIDERS {
        let session = turns.session(model).await;
        turns.provider.push(Script { reasoning_tokens: 3, ..Script::default() });
        let body = json!({ "text": text(), "stream": true, "thinking": true, "max_tokens": 4_000 });
        let events = EventReader::new(session.post(body).open().await).rest().await;
        assert_eq!(assert_whole(&events, 0).data["data"]["usage"]["output_tokens"], 15);
        assert_eq!((joined(&events, "reasoning"), &*joined(&events, "text")), ("one two six ".to_owned(), ANSWER));

        let messages = session.messages().await;
        assert_eq!(messages[1]["text"], ANSWER);
        let kinds: Vec<_> = messages[1]["parts"].as_array().unwrap().iter().map(|part| &part["type"]).collect();
        assert_eq!(kinds, ["reasoning", "text"]);

        session.answer().await;
        let ledger = turns.provider.ledger();
        let sent: Value = serde_json::from_slice(&ledger.last().unwrap().body).unwrap();
        assert_eq!(sent["messages"][1], json!({ "role": "assistant", "content": ANSWER }));
    }
}

/// Providers reject blank messages.
#[tokio::test(flavor = "multi_thread")]
async fn blank_messages_are_not_sent_again() {
    let turns = TurnServer::start().await;
    let session = turns.session(ANTHROPIC).await;
    session.post(json!({ "text": "\n\n " })).send().await.expect(200);
    session.answer().await;
    let ledger = turns.provider.ledger();
    let sent: Value = serde_json::from_slice(&ledger.last().unwrap().body).unwrap();
    assert_eq!(sent["messages"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_tokens_are_kinds_of_their_own() {
    let turns = TurnServer::start().await;
    for (_, _, model) in PROVIDERS {
        let session = turns.session(model).await;
        let cache_write_tokens = if model == ANTHROPIC { 7 } else { 0 };
        turns.provider.push(Script { cache_read_tokens: 40, cache_write_tokens, ..Script::default() });
        let usage = session.answer().await["usage"].take();
        assert_eq!(usage, billed(&turns, &usage["cost_cents"]));
        let sum = 47 - 7 + cache_write_tokens + turns.provider.ledger().last().unwrap().input_tokens;
        assert_eq!(session.get().await["usage"]["input_tokens"], sum);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn null_means_an_absent_field() {
    let turns = TurnServer::start().await;
    turns.server.post("/v1/sessions", json!({ "metadata": null, "session_id": null })).send().await.expect(201);
    let session = turns.session(ANTHROPIC).await;
    let body = json!({ "text": "hi", "stream": null, "thinking": null, "max_tokens": null });
    assert!(session.post(body).send().await.expect(200)["text"].is_string());
}

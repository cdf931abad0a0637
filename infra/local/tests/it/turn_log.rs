//! The event log of turns: batches, large increments, and a store that takes no events.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use karta_local::{
    Options,
    provider::{FakeProvider, Script},
};
use karta_shared::{
    clock::SystemClock,
    domain::{Provider, ProviderBaseUrls},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::{TestServer, options, until},
    model_keys::provider_key,
};

const TOKENS: usize = 500;

/// An answer whose events have more bytes than a batch takes by itself.
fn long() -> Script {
    Script { tokens: TOKENS, ..Script::default() }
}

struct LoggedTurns {
    server: TestServer,
    proxy: Arc<FaultProxy>,
    provider: FakeProvider,
    /// The path of a session.
    session: String,
}

impl LoggedTurns {
    async fn start() -> Self {
        let provider = FakeProvider::start(Script::default()).await.unwrap();
        let urls = provider.replace(ProviderBaseUrls::default(), Provider::Anthropic);
        let options = Options { provider_base_urls: Some(urls), ..options(Arc::new(SystemClock)) };
        let (server, proxy) = FaultProxy::start_as(options).await;
        let key = json!({ "provider": "anthropic", "key": provider_key("sk-ant-api03-") });
        server.post("/v1/model_keys", key).send().await.expect(201);
        let session = server.post("/v1/sessions", json!({})).send().await.expect(201);
        let session = format!("/v1/sessions/{}", session["id"].as_str().unwrap());
        Self { server, proxy, provider, session }
    }

    async fn answer(&self, text: &str) -> Value {
        let body = json!({ "text": text, "model": "claude-sonnet-4-5" });
        self.server.post(&format!("{}/messages", self.session), body).send().await.expect(200)
    }

    /// Returns the frames of the latest turn.
    async fn replayed(&self) -> Vec<String> {
        let reply = self.server.get(&format!("{}/stream", self.session)).send().await;
        assert_eq!(reply.status.as_u16(), 200, "{}", reply.text);
        reply.text.split_terminator("\n\n").map(ToOwned::to_owned).collect()
    }
}

/// Asserts that frames are numbered without gaps and end with `done`. Returns their text.
fn text_of(frames: &[String]) -> String {
    let mut text = String::new();
    for (at, frame) in frames.iter().enumerate() {
        let data: Value = serde_json::from_str(frame.split_once("\ndata: ").unwrap().1).unwrap();
        assert_eq!(data["seq"], at + 1);
        assert_eq!(data["type"], if at + 1 == frames.len() { "done" } else { "text" });
        text.push_str(data["data"]["part"]["text"].as_str().unwrap_or_default());
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn large_increment_becomes_several_events() {
    let turns = LoggedTurns::start().await;
    turns.provider.push(Script { echoes: true, ..Script::default() });
    // One word of the provider, larger than an item of the store. A character has three bytes, so
    // that a piece cannot end at any byte.
    let word = "字".repeat(200_000);
    let answer = turns.answer(&word).await;
    let frames = turns.replayed().await;
    assert!(frames.iter().all(|frame| frame.len() < 200_000));
    let text = text_of(&frames);
    assert!(text.ends_with(&word) && text == answer["text"], "{} bytes", text.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_events_share_a_batch() {
    let turns = LoggedTurns::start().await;
    turns.provider.push(long());
    turns.proxy.fail("PutItem", 1, StoreFault::HoldResponse);
    turns.proxy.forget();
    let release = async {
        turns.proxy.held().await;
        until("all tokens", async || turns.provider.ledger()[0].output_tokens == TOKENS as u64).await;
        // The last tokens may be on their way.
        sleep(Duration::from_millis(300)).await;
        turns.proxy.release();
    };
    tokio::join!(turns.answer("Hello"), release);
    // The settlement writes the others.
    assert!(turns.proxy.seen_of("PutItem").len() <= 2);
    assert_eq!(text_of(&turns.replayed().await).len(), TOKENS * 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_stream_is_written_in_few_batches() {
    let turns = LoggedTurns::start().await;
    turns.provider.push(long());
    turns.proxy.forget();
    let started = Instant::now();
    turns.answer("Hello").await;
    // A batch holds a second or 4 KiB, of which a token takes 30 bytes at most.
    let most = 5 + usize::try_from(started.elapsed().as_secs()).unwrap();
    assert!(turns.proxy.seen_of("PutItem").len() <= most);
    assert_eq!(text_of(&turns.replayed().await).len(), TOKENS * 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_survives_unwritable_log() {
    let turns = LoggedTurns::start().await;
    turns.provider.push(long());
    turns.proxy.fail("PutItem", ALWAYS, StoreFault::Exception("AccessDeniedException"));
    let answer = turns.answer("Hello").await;
    assert_eq!(answer["usage"]["output_tokens"], TOKENS);
    assert_eq!(text_of(&turns.replayed().await).len(), TOKENS * 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_reads_session_turn_and_log_once() {
    let turns = LoggedTurns::start().await;
    turns.answer("Hello").await;
    turns.proxy.forget();
    text_of(&turns.replayed().await);
    let seen =
        turns.proxy.seen().into_iter().filter(|call| call.tables().iter().any(|table| table == "karta-sessions"));
    let operations: Vec<_> = seen.map(|call| call.operation).collect();
    assert_eq!(operations, ["GetItem", "GetItem", "Query"]);
}

//! Sessions and turns over HTTP: who reaches them, which input and models they accept, and what
//! turns cost. A scripted provider answers.

mod calls;
mod caps;
mod create;
mod input;
mod killed_process;
mod ledger;
mod list;
mod models;
mod overspend;
mod preflights;
mod reach;
mod retention;
mod routes;
mod transcripts;

use std::{sync::Arc, time::Duration};

use http::Method;
use karta_local::{
    Options,
    provider::{FakeProvider, Script},
};
use karta_shared::{
    clock::{Clock, ManualClock, SystemClock},
    config::TurnLimits,
    domain::{Provider, ProviderBaseUrls},
};
use serde_json::{Value, json};

use crate::{
    fault_proxy::FaultProxy,
    harness::{Reply, Request, TestServer, options},
    model_keys::provider_key,
};

/// The family of paths for API keys.
const FLAT: &str = "/v1/sessions";
/// The family of paths of the project `app`.
const IN_APP: &str = "/v1/projects/app/sessions";
const FAMILIES: [&str; 2] = [FLAT, IN_APP];
/// $2 for a million input tokens, $10 for a million output tokens.
const MODEL: &str = "claude-sonnet-5";
/// Nano-cents of an input and of an output token of [`MODEL`].
const INPUT_PRICE: u64 = 200_000;
const OUTPUT_PRICE: u64 = 1_000_000;

/// Short intervals, so that turns notice a cancel at once.
const TURN_LIMITS: TurnLimits = TurnLimits {
    renewal: Duration::from_millis(50),
    poll: Duration::from_millis(10),
    latency: Duration::from_hours(1),
    ..TurnLimits::DEFAULT
};

/// A route of one session.
#[derive(Debug)]
struct ByIdRoute {
    method: Method,
    suffix: &'static str,
    /// The scope that an API key needs.
    scope: &'static str,
    body: Option<&'static str>,
}

const fn route(method: Method, suffix: &'static str, scope: &'static str, body: Option<&'static str>) -> ByIdRoute {
    ByIdRoute { method, suffix, scope, body }
}

static BY_ID: [ByIdRoute; 7] = [
    route(Method::GET, "", "read", None),
    route(Method::GET, "/messages", "read", None),
    route(Method::GET, "/stream", "read", None),
    route(Method::POST, "/cancel", "write", None),
    route(Method::POST, "/messages", "write", Some(r#"{"text":"hi"}"#)),
    route(Method::POST, "/messages", "write", Some(r#"{"text":"hi","stream":true}"#)),
    route(Method::DELETE, "", "write", None),
];

impl ByIdRoute {
    fn to(&self, server: &TestServer, family: &str, id: &str) -> Request {
        let request = server.request(self.method.clone(), &format!("{family}/{id}{}", self.suffix));
        match self.body {
            Some(body) => request.raw_body(body),
            None => request,
        }
    }
}

/// A server with a scripted provider, a key of each provider, [`MODEL`] as the model of `acme`, and
/// the project `app` with a release.
struct Chat {
    server: TestServer,
    provider: FakeProvider,
}

impl Chat {
    async fn start() -> Self {
        let provider = FakeProvider::start(Script::default()).await.unwrap();
        let server = TestServer::start_as(chat_options(&provider, Arc::new(SystemClock)), None).await;
        Self::on(server, provider).await
    }

    async fn start_at_noon() -> (Self, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
        let provider = FakeProvider::start(Script::default()).await.unwrap();
        let server = TestServer::start_as(chat_options(&provider, Arc::clone(&clock) as _), None).await;
        (Self::on(server, provider).await, clock)
    }

    /// Starts a server whose store is behind a proxy.
    async fn behind_proxy() -> (Self, Arc<FaultProxy>) {
        Self::behind_proxy_with(TURN_LIMITS).await
    }

    async fn behind_proxy_with(turn_limits: TurnLimits) -> (Self, Arc<FaultProxy>) {
        let provider = FakeProvider::start(Script::default()).await.unwrap();
        let options = Options { turn_limits, ..chat_options(&provider, Arc::new(SystemClock)) };
        let (server, proxy) = FaultProxy::start_as(options).await;
        (Self::on(server, provider).await, proxy)
    }

    async fn on(server: TestServer, provider: FakeProvider) -> Self {
        let chat = Self { server, provider };
        for (name, start) in [("anthropic", "sk-ant-api03-"), ("openai", "sk-proj-"), ("openrouter", "sk-or-v1-")] {
            let body = json!({ "provider": name, "key": provider_key(start) });
            chat.server.post("/v1/model_keys", body).send().await.expect(201);
        }
        chat.provision(json!({ "model_id": MODEL })).await;
        chat.server.project("app").await;
        chat.deploy("app").await;
        chat
    }

    async fn deploy(&self, slug: &str) -> Value {
        self.server.deploy(slug, json!({ "commit_sha": "abcdef1" })).await["version"].take()
    }

    /// Changes `acme` as its operator.
    async fn provision(&self, change: Value) {
        let path = format!("/v1/internal/organizations/{}", self.server.organization_id);
        self.server.service(Method::PATCH, &path).body(change).send().await.expect(200);
    }

    /// Mints a session token of the project `app`.
    async fn token(&self, user: Option<&str>) -> String {
        self.server.session_token("app", json!({ "user_id": user })).await
    }

    /// Creates a session with the admin key. Returns its id.
    async fn session(&self, family: &str) -> String {
        self.session_as(family, &self.server.admin, json!({})).await
    }

    async fn session_as(&self, family: &str, bearer: &str, metadata: Value) -> String {
        let created = self.server.post(family, json!({ "metadata": metadata })).bearer(bearer).send().await;
        created.expect(201)["id"].as_str().unwrap().to_owned()
    }

    /// Builds a request for a turn with the admin key.
    fn turn(&self, family: &str, session: &str, body: Value) -> Request {
        self.server.post(&format!("{family}/{session}/messages"), body)
    }

    /// Runs a turn to its end. Returns the answer.
    async fn say(&self, family: &str, session: &str, text: &str) -> Value {
        self.turn(family, session, json!({ "text": text })).send().await.expect(200)
    }

    async fn get(&self, family: &str, session: &str) -> Value {
        self.server.get(&format!("{family}/{session}")).send().await.expect(200)
    }

    /// Returns every stored item of the sessions table.
    async fn stored(&self) -> Vec<Value> {
        self.server.scan("karta-sessions").await
    }

    /// Returns every stored turn.
    async fn turns(&self) -> Vec<Value> {
        let items = self.stored().await;
        items.into_iter().filter(|item| item["id"].as_str().is_some_and(|id| id.starts_with("turn_"))).collect()
    }

    /// Returns the totals of the month as reported.
    async fn totals(&self) -> Value {
        self.server.get("/v1/usage").send().await.expect(200)["totals"].take()
    }
}

fn chat_options(provider: &FakeProvider, clock: Arc<dyn Clock>) -> Options {
    let local = |urls, provider_name| provider.replace(urls, provider_name);
    let replaced = [Provider::Anthropic, Provider::OpenAi, Provider::OpenRouter];
    let urls = replaced.into_iter().fold(ProviderBaseUrls::default(), local);
    Options { provider_base_urls: Some(urls), turn_limits: TURN_LIMITS, ..options(clock) }
}

/// Returns the type and the data of each event of a streamed answer.
fn events(streamed: &str) -> Vec<(String, Value)> {
    let frames = streamed.split("\n\n").filter_map(|frame| frame.split_once("\ndata: "));
    let events = frames.map(|(_, data)| serde_json::from_str::<Value>(data).unwrap());
    events.map(|mut event| (event["type"].as_str().unwrap().to_owned(), event["data"].take())).collect()
}

/// Returns the text of a streamed answer.
fn streamed_text(streamed: &str) -> String {
    let texts = events(streamed).into_iter().filter(|(kind, _)| kind == "text");
    texts.map(|(_, data)| data["part"]["text"].as_str().unwrap().to_owned()).collect()
}

/// Returns what a client sees of a response, except the values that differ in every response.
fn seen(reply: Reply) -> (u16, Vec<(String, String)>, Value) {
    let headers = reply.headers.iter().filter(|(name, _)| !["x-request-id", "date"].contains(&name.as_str()));
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let status = reply.status.as_u16();
    (status, headers, reply.refused(status))
}

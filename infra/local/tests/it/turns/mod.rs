//! Turns over HTTP with a scripted provider: answers, faults of the provider, clients that leave or
//! come back, repeated requests, cancellation, revocation, deadlines and processes that die.

mod answers;
mod attach;
mod cancel;
mod endpoint;
mod faults;
mod kill_points;
mod killed;
mod leaving;
mod limits;
mod outgoing;
mod resume;
mod revoked;
mod store_faults;

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    Router,
    extract::{ConnectInfo, State},
    response::Response,
};
use http::Method;
use karta_local::{
    Options,
    gateway::Gateway,
    provider::{FakeProvider, LedgerEntry, Script},
    template::{TEMPLATE, Template},
};
use karta_shared::{
    App,
    clock::SystemClock,
    config::{self, Config, Ring, TurnLimits},
    domain::{Id, Provider, ProviderBaseUrls, SessionId, Turn, TurnId, TurnStatus},
    entropy::{OsEntropy, uuid},
    store::table::Tables,
    transcripts::{TranscriptContext, TranscriptPart},
    turn_events::{EventBatch, TurnEventContext},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    runtime::{Handle, Runtime},
    task::{JoinHandle, spawn_blocking},
};

use crate::{
    fault_proxy::FaultProxy,
    harness::{Reply, Request, TestServer, WAIT_TIMEOUT, note_secret, options, until},
    model_keys::provider_key,
};

/// A provider, the beginning of its keys, and a model with a price.
pub(crate) const PROVIDERS: [(&str, &str, &str); 3] = [
    ("anthropic", "sk-ant-api03-", ANTHROPIC),
    ("openai", "sk-proj-", OPENAI),
    ("openrouter", "sk-or-v1-", OPENROUTER),
];
pub(crate) const ANTHROPIC: &str = "claude-sonnet-4-5";
pub(crate) const OPENAI: &str = "gpt-4o";
pub(crate) const OPENROUTER: &str = "openrouter/openai/gpt-4o";
/// A model of each dialect.
pub(crate) const DIALECTS: [&str; 2] = [ANTHROPIC, OPENAI];

/// Frequent renewals and looks at the log. The time limits are long, because the machine may be
/// busy: tests shorten the one that they reach.
pub(crate) const LIMITS: TurnLimits = TurnLimits {
    renewal: Duration::from_millis(100),
    poll: Duration::from_millis(20),
    latency: Duration::from_hours(1),
    ..TurnLimits::DEFAULT
};

/// A server whose model providers are scripted.
pub(crate) struct TurnServer {
    pub(crate) server: TestServer,
    pub(crate) provider: FakeProvider,
}

impl TurnServer {
    /// Starts a server whose provider answers with 12 tokens.
    pub(crate) async fn start() -> Self {
        Self::start_with(LIMITS).await
    }

    pub(crate) async fn start_with(turn_limits: TurnLimits) -> Self {
        Self::start_as(Options { turn_limits, ..options(Arc::new(SystemClock)) }).await
    }

    /// Starts a server with a key of every provider. The scripted provider replaces all hosts, unless
    /// the options have base URLs.
    pub(crate) async fn start_as(options: Options) -> Self {
        let provider = FakeProvider::start(Script::default()).await.unwrap();
        let server = TestServer::start_as(with_provider(options, &provider), None).await;
        Self::new(server, provider).await
    }

    /// Like [`start_as`](Self::start_as), with a proxy in front of the store.
    pub(crate) async fn start_with_proxy(options: Options) -> (Self, Arc<FaultProxy>) {
        let provider = FakeProvider::start(Script::default()).await.unwrap();
        let (server, proxy) = FaultProxy::start_as(with_provider(options, &provider)).await;
        (Self::new(server, provider).await, proxy)
    }

    async fn new(server: TestServer, provider: FakeProvider) -> Self {
        let this = Self { server, provider };
        for (provider, start, _) in PROVIDERS {
            this.store_key(provider, start).await;
        }
        this
    }

    /// Stores a provider key. Returns it.
    pub(crate) async fn store_key(&self, provider: &str, start: &str) -> String {
        let key = provider_key(start);
        self.server.post("/v1/model_keys", json!({ "provider": provider, "key": key })).send().await.expect(201);
        key
    }

    /// Creates a project with an active release.
    pub(crate) async fn project(&self, slug: &str, model: &str) {
        self.server.project(slug).await;
        let body = json!({ "model_id": model });
        self.server.patch(&format!("/v1/agent_projects/{slug}"), body).send().await.expect(200);
        self.server.deploy(slug, json!({ "commit_sha": "abcdef1" })).await;
    }

    /// Creates a session of no project, for the admin key.
    pub(crate) async fn session(&self, model: &'static str) -> Conversation<'_> {
        let conversation = Conversation {
            turns: self,
            sessions: "/v1/sessions".to_owned(),
            id: String::new(),
            token: self.server.admin.clone(),
            model: Some(model),
        };
        conversation.create().await
    }

    /// Creates a session of a project with this credential.
    pub(crate) async fn project_session(&self, slug: &str, token: &str) -> Conversation<'_> {
        let sessions = format!("/v1/projects/{slug}/sessions");
        let conversation =
            Conversation { turns: self, sessions, id: String::new(), token: token.to_owned(), model: None };
        conversation.create().await
    }

    /// Returns the requests that reached the provider since `earlier` of them.
    pub(crate) fn ledger_after(&self, earlier: usize) -> Vec<LedgerEntry> {
        self.provider.ledger().split_off(earlier)
    }

    /// Waits until the provider has a request for each script. A turn is running before.
    pub(crate) async fn until_provider_is_called(&self) {
        until("the provider is called", async || self.provider.unused_scripts() == 0).await;
    }

    pub(crate) fn organization(&self) -> Id {
        Id::new(self.server.organization_id).unwrap()
    }
}

fn with_provider(options: Options, provider: &FakeProvider) -> Options {
    let replaced = [Provider::Anthropic, Provider::OpenAi, Provider::OpenRouter].into_iter();
    let urls = replaced.fold(ProviderBaseUrls::default(), |urls, replaced| provider.replace(urls, replaced));
    Options { provider_base_urls: options.provider_base_urls.or(Some(urls)), ..options }
}

/// A session and a credential that reaches it.
#[derive(Clone)]
pub(crate) struct Conversation<'a> {
    pub(crate) turns: &'a TurnServer,
    sessions: String,
    pub(crate) id: String,
    pub(crate) token: String,
    /// Named by every request; `None` for the configured model.
    model: Option<&'static str>,
}

impl Conversation<'_> {
    async fn create(mut self) -> Self {
        let request = self.turns.server.post(&self.sessions, json!({})).bearer(&self.token);
        request.send().await.expect(201)["id"].as_str().unwrap().clone_into(&mut self.id);
        self
    }

    /// Returns the same session with another credential.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    pub(crate) fn path(&self, rest: &str) -> String {
        format!("{}/{}{rest}", self.sessions, self.id)
    }

    pub(crate) fn request(&self, method: Method, rest: &str) -> Request {
        self.turns.server.request(method, &self.path(rest)).bearer(&self.token)
    }

    /// Builds a request for a turn.
    pub(crate) fn post(&self, mut body: Value) -> Request {
        if let Some(model) = self.model {
            body["model"] = model.into();
        }
        self.request(Method::POST, "/messages").body(body)
    }

    /// Builds a request for a turn whose answer is JSON.
    pub(crate) fn ask(&self) -> Request {
        self.post(json!({ "text": text() }))
    }

    /// Builds a request for a turn whose answer is a stream.
    pub(crate) fn ask_streamed(&self) -> Request {
        self.post(json!({ "text": text(), "stream": true }))
    }

    /// Starts a streamed turn.
    pub(crate) async fn stream(&self) -> EventReader {
        EventReader::new(self.ask_streamed().open().await)
    }

    /// Runs a turn to its end. Returns its response.
    pub(crate) async fn answer(&self) -> Value {
        self.ask().send().await.expect(200)
    }

    pub(crate) async fn get(&self) -> Value {
        self.request(Method::GET, "").send().await.expect(200)
    }

    pub(crate) fn cancel(&self) -> Request {
        self.request(Method::POST, "/cancel").body(json!({}))
    }

    /// Follows the latest turn, or the one of the event `after`.
    pub(crate) async fn follow(&self, after: Option<&str>) -> EventReader {
        EventReader::new(self.follow_request(after).open().await)
    }

    pub(crate) fn follow_request(&self, after: Option<&str>) -> Request {
        let query = after.map(|after| format!("?after={after}")).unwrap_or_default();
        self.request(Method::GET, &format!("/stream{query}"))
    }

    /// Returns the session's last turn as it is stored.
    pub(crate) async fn last_turn(&self) -> Turn {
        let session = self.get().await;
        self.stored_turn(session["turn"]["id"].as_str().unwrap()).await
    }

    pub(crate) async fn stored_turn(&self, id: &str) -> Turn {
        let (session, turn) = (SessionId::parse(&self.id).unwrap(), TurnId::parse(id).unwrap());
        let store = &self.turns.server.runner.app.store;
        store.turn(self.turns.organization(), &session, &turn).await.unwrap().unwrap().turn
    }

    /// Waits for the end of the session's last turn. Returns the turn.
    pub(crate) async fn ended_turn(&self) -> Turn {
        until("the turn ends", async || self.last_turn().await.status != TurnStatus::Running).await;
        self.last_turn().await
    }

    /// Returns whether the log of the session's turn has a batch.
    pub(crate) async fn has_logged(&self) -> bool {
        let session = self.get().await;
        match session["turn"]["id"].as_str() {
            Some(turn) => !self.logged(&TurnId::parse(turn).unwrap()).await.is_empty(),
            None => false,
        }
    }

    /// Returns the frames in the log of a turn.
    pub(crate) async fn logged(&self, turn: &TurnId) -> String {
        let (app, session) = (&self.turns.server.runner.app, SessionId::parse(&self.id).unwrap());
        let (organization, ring) = (self.turns.organization(), app.secrets.ring(Ring::SealingSessions).await.unwrap());
        let context = TranscriptContext { organization, session: &session, turn };
        let shared = TurnEventContext { session_id: session.as_str(), turn_id: turn.as_str() };
        let (mut last_seq, mut frames) = (0, Vec::new());
        loop {
            let now = app.clock.now();
            let batches = app.store.next_turn_events(organization, &session, turn, last_seq, now).await.unwrap();
            let Some(last) = batches.last() else { return String::from_utf8(frames).unwrap() };
            last_seq = last.last_seq;
            for batch in &batches {
                let part = TranscriptPart::Events { first_seq: batch.first_seq };
                let opened = context.open(&ring, part, &batch.content).unwrap();
                let events = EventBatch::decode(batch.first_seq, &opened).unwrap();
                frames.extend(events.frames_after(shared, 0).unwrap().concat());
            }
        }
    }

    pub(crate) async fn messages(&self) -> Vec<Value> {
        let listed = self.request(Method::GET, "/messages").send().await.expect(200);
        listed["messages"].as_array().unwrap().clone()
    }

    /// Asserts that another turn can run.
    pub(crate) async fn assert_usable(&self) {
        self.answer().await;
    }
}

/// Returns a unique message. No log may contain it.
pub(crate) fn text() -> String {
    let text = format!("Tell me about {}", uuid(&OsEntropy));
    note_secret(&text);
    text
}

/// An event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// `None` for an error that the log does not have.
    id: Option<String>,
    pub(crate) kind: String,
    pub(crate) data: Value,
}

impl Event {
    /// Returns `None` for a comment.
    fn parse(frame: &str) -> Option<Self> {
        let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let data = serde_json::from_str(field("data")?).unwrap();
        let event = Self { id: field("id").map(ToOwned::to_owned), kind: field("event").unwrap().to_owned(), data };
        assert_eq!(event.data["type"], *event.kind);
        if let Some(id) = &event.id {
            assert_eq!(*id, format!("{}.{}", event.turn_id(), event.seq()));
        }
        Some(event)
    }

    pub(crate) fn id(&self) -> &str {
        self.id.as_deref().unwrap()
    }

    pub(crate) fn turn_id(&self) -> &str {
        self.data["turn_id"].as_str().unwrap()
    }

    fn seq(&self) -> u64 {
        self.data["seq"].as_u64().unwrap()
    }

    fn is_terminal(&self) -> bool {
        matches!(&*self.kind, "done" | "error")
    }

    /// Returns the code of an `error` event.
    pub(crate) fn code(&self) -> Option<&str> {
        self.data["data"]["code"].as_str()
    }
}

/// Reads the events of a response. Dropping it closes the connection.
pub(crate) struct EventReader {
    response: reqwest::Response,
    unread: String,
}

impl EventReader {
    /// Asserts a response that streams.
    pub(crate) fn new(response: reqwest::Response) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        assert!(response.headers().contains_key("x-request-id"));
        Self { response, unread: String::new() }
    }

    /// Returns the next event; `None` at the end of the response.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.unread.find("\n\n") {
                let event = Event::parse(&self.unread[..end]);
                self.unread.drain(..end + 2);
                if event.is_some() {
                    return event;
                }
            } else if let Some(chunk) = self.response.chunk().await.unwrap() {
                self.unread.push_str(str::from_utf8(&chunk).unwrap());
            } else {
                assert!(self.unread.is_empty(), "cut off: {}", self.unread);
                return None;
            }
        }
    }

    pub(crate) async fn take(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(self.next().await.expect("an event"));
        }
        events
    }

    /// Returns the events to the end of the response.
    pub(crate) async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// Asserts that the events are all events of one turn after `after`, with one terminal event at the
/// end. Returns that one.
pub(crate) fn assert_whole(events: &[Event], after: u64) -> &Event {
    let last = events.last().expect("a terminal event");
    for (event, seq) in events.iter().zip(after + 1..) {
        assert_eq!((event.turn_id(), event.is_terminal()), (last.turn_id(), event == last), "{events:?}");
        // An error that is not in the log has the number of the event before it.
        assert_eq!(event.seq(), if event.id.is_some() { seq } else { seq - 1 }, "{events:?}");
        assert!(event.id.is_some() || event.kind == "error");
    }
    last
}

/// Returns the texts of the events of a kind.
pub(crate) fn joined(events: &[Event], kind: &str) -> String {
    let texts = events.iter().filter(|event| event.kind == kind);
    texts.map(|event| event.data["data"]["part"]["text"].as_str().unwrap()).collect()
}

/// The status and the code of a failed turn's response.
pub(crate) fn failed(reply: &Reply) -> (u16, String) {
    (reply.status.as_u16(), reply.json["error"].as_str().unwrap_or_default().to_owned())
}

/// Parsed once, because that takes a tenth of a second and tests start many processes.
static PARSED_TEMPLATE: LazyLock<Template> = LazyLock::new(|| Template::parse(TEMPLATE).unwrap());

/// Another instance of the control plane over the store of a server, as another Lambda function.
pub(crate) struct Peer {
    pub(crate) base_url: String,
    served: JoinHandle<()>,
}

impl Peer {
    pub(crate) async fn start(turns: &TurnServer) -> Self {
        let server = &turns.server;
        Self::start_on(&Handle::current(), server, &server.runner.emulator.endpoint()).await
    }

    /// Serves requests on this runtime, with the store at this URL.
    async fn start_on(runtime: &Handle, server: &TestServer, store: &str) -> Self {
        let app = peer_app(server, store).await;
        let gateway = Arc::new(Gateway::new(&app, &PARSED_TEMPLATE).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let service =
            Router::new().fallback(answer).with_state(gateway).into_make_service_with_connect_info::<SocketAddr>();
        let task = runtime.spawn(async move {
            axum::serve(TcpListener::from_std(listener).unwrap(), service).await.unwrap();
        });
        Self { base_url, served: task }
    }

    /// Builds a request of a conversation to this instance.
    pub(crate) fn request(&self, conversation: &Conversation<'_>, method: Method, rest: &str) -> Request {
        let url = format!("{}{}", self.base_url, conversation.path(rest));
        conversation.turns.server.request_to(method, &url).bearer(&conversation.token)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.served.abort();
    }
}

/// Returns the app of another instance of a server, with the store at this URL.
async fn peer_app(server: &TestServer, store: &str) -> App {
    let runner = &server.runner;
    let mut config = Config::local(Tables::local(), Some(4)).unwrap();
    config.turn_limits = runner.app.turn_limits;
    config.provider_base_urls = (*runner.app.provider_base_urls).clone();
    let sdk = config::local_sdk(store, runner.emulator.access_key()).await;
    App::new(config, &sdk, runner.secrets.source(), Arc::clone(&runner.app.clock), Arc::new(OsEntropy))
}

/// A [`Peer`] that can die: its tasks run on a runtime of their own.
pub(crate) struct Process {
    pub(crate) peer: Peer,
    /// Taken when the process ends.
    runtime: Option<Runtime>,
}

impl Process {
    pub(crate) async fn start(server: &TestServer) -> Self {
        Self::start_with_store(server, &server.runner.emulator.endpoint()).await
    }

    /// Starts a process with the store at this URL.
    pub(crate) async fn start_with_store(server: &TestServer, store: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let peer = Peer::start_on(runtime.handle(), server, store).await;
        Self { peer, runtime: Some(runtime) }
    }

    /// Ends every task where it waits. Nothing of the process runs after this.
    pub(crate) async fn kill(mut self) {
        end(self.runtime.take().unwrap()).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime cannot be dropped in an asynchronous context.
            runtime.shutdown_background();
        }
    }
}

/// Ends every task of a runtime where it waits.
async fn end(runtime: Runtime) {
    spawn_blocking(move || runtime.shutdown_timeout(WAIT_TIMEOUT)).await.unwrap();
}

async fn answer(
    State(gateway): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: axum::extract::Request,
) -> Response {
    gateway.answer(peer, request).await
}

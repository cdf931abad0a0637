//! The API document that handlers generate, and the file `openapi.json`. The tests call every
//! operation and validate each response against its schema. These responses are the examples in the
//! file. `KARTA_UPDATE=1` rewrites it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use http::{Method, header};
use jsonschema::{Draft, Validator};
use karta_local::{
    Options, openapi,
    provider::{FakeProvider, Fault, Script},
};
use karta_shared::{
    clock::{Clock, ManualClock, SystemClock},
    domain::LocalProviderBaseUrls,
    worker::{Wake, Worker},
};
use regex::Regex;
use serde_json::{Map, Value, json};
use worker_webhook_events::{Waker, WebhookEvents};

use crate::{
    harness::{Reply, Request, TestServer, options, until},
    model_keys::provider_key,
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi.json");
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// Iterates over the operations: path, method and operation object.
fn operations(document: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    paths.flat_map(|(path, methods)| methods.as_object().unwrap().iter().map(move |(method, of)| (path, method, of)))
}

fn operation<'a>(document: &'a Value, id: &str) -> &'a Value {
    let found = operations(document).find(|(.., operation)| operation["operationId"] == id);
    found.unwrap_or_else(|| panic!("no operation {id}")).2
}

/// Returns the status, media type and schema of an operation's success response, the highest status
/// if there are several.
fn success(operation: &Value) -> (u16, Option<(&String, &Value)>) {
    let responses = operation["responses"].as_object().unwrap();
    let successes = responses.iter().filter(|(status, _)| status.starts_with('2'));
    let (status, response) = successes.max_by_key(|(status, _)| status.as_str()).unwrap();
    let content = response["content"].as_object().and_then(|content| content.iter().next());
    (status.parse().unwrap(), content.map(|(media, content)| (media, &content["schema"])))
}

/// Returns a validator for a schema of the document. It also checks formats. If `is_strict`, it
/// rejects properties that are not described.
fn validator(document: &Value, schema: &Value, is_strict: bool) -> Validator {
    let mut components = document["components"].clone();
    if is_strict {
        let text = components.to_string();
        let joined = Regex::new(r##""allOf":\[\{"\$ref":"#/components/schemas/([A-Za-z]+)""##).unwrap();
        let parts: BTreeSet<_> = joined.captures_iter(&text).map(|part| part[1].to_owned()).collect();
        for (name, schema) in components["schemas"].as_object_mut().unwrap() {
            let is_object = schema["properties"].is_object() || schema["allOf"].is_array();
            if is_object && !parts.contains(name) {
                schema["unevaluatedProperties"] = json!(false);
            }
        }
    }
    let schema = json!({ "allOf": [schema], "components": components });
    jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true).build(&schema).unwrap()
}

#[track_caller]
fn assert_valid(validator: &Validator, value: &Value, of: &str) {
    let faults: Vec<_> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(faults.is_empty(), "{of}: {faults:#?}\n{value:#}");
}

/// Asserts that every reference in `within` resolves in the document.
fn assert_resolved(document: &Value, within: &Value) {
    match within {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference} does not resolve");
            }
            fields.values().for_each(|field| assert_resolved(document, field));
        }
        Value::Array(items) => items.iter().for_each(|item| assert_resolved(document, item)),
        _ => {}
    }
}

/// Returns the document without the examples of requests and responses.
fn without_examples(mut document: Value) -> Value {
    for methods in document["paths"].as_object_mut().unwrap().values_mut() {
        for operation in methods.as_object_mut().unwrap().values_mut() {
            if let Some(request) = operation.get_mut("requestBody") {
                request["content"]["application/json"].as_object_mut().unwrap().remove("example");
            }
            for response in operation["responses"].as_object_mut().unwrap().values_mut() {
                for media in
                    response.get_mut("content").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
                {
                    media.as_object_mut().unwrap().remove("example");
                }
            }
        }
    }
    document
}

/// Returns a response as the document may show it, with truncated secrets.
fn as_example(response: &str) -> Value {
    let secrets = Regex::new(
        r"(kt_live_[0-9A-Za-z]{6})[0-9A-Za-z]{26}|(whsec_)[0-9A-Za-z+/=]+|(eyJ[0-9A-Za-z_-]{6})[0-9A-Za-z_.-]+",
    )
    .unwrap();
    serde_json::from_str(&secrets.replace_all(response, "$1$2$3…")).unwrap()
}

/// Starts a server with a scripted model provider.
async fn start(clock: Arc<dyn Clock>) -> (TestServer, FakeProvider) {
    let provider = FakeProvider::start(Script::default()).await.unwrap();
    let LocalProviderBaseUrls(urls) = serde_json::from_str(&provider.base_urls()).unwrap();
    let options = Options { provider_base_urls: Some(urls), ..options(clock) };
    (TestServer::start_as(options, None).await, provider)
}

fn noon() -> Arc<dyn Clock> {
    Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()))
}

async fn store_provider_keys(server: &TestServer) {
    for (provider, start) in [("anthropic", "sk-ant-api03-"), ("openai", "sk-proj-")] {
        let body = json!({ "provider": provider, "key": provider_key(start) });
        server.post("/v1/model_keys", body).send().await.expect(201);
    }
}

/// Returns the events of a stream: objects with `id`, `event` and `data`.
fn events(stream: &str) -> Vec<Value> {
    let fields = |event: &str| event.lines().filter_map(|line| line.split_once(": ")).map(owned).collect();
    stream.split_terminator("\n\n").map(fields).collect()
}

fn owned((name, value): (&str, &str)) -> (String, Value) {
    (name.to_owned(), json!(value))
}

/// The operations of a family of sessions.
struct SessionOperations {
    create: &'static str,
    send: &'static str,
    follow: &'static str,
    messages: &'static str,
    get: &'static str,
    list: &'static str,
    cancel: &'static str,
    delete: &'static str,
}

const ORGANIZATION_SESSIONS: SessionOperations = SessionOperations {
    create: "sessionsCreate",
    send: "messagesCreate",
    follow: "sessionStreamGet",
    messages: "messagesList",
    get: "sessionsGet",
    list: "sessionsList",
    cancel: "sessionsCancel",
    delete: "sessionsDelete",
};
const PROJECT_SESSIONS: SessionOperations = SessionOperations {
    create: "projectSessionsCreate",
    send: "projectMessagesCreate",
    follow: "projectSessionStreamGet",
    messages: "projectMessagesList",
    get: "projectSessionsGet",
    list: "projectSessionsList",
    cancel: "projectSessionsCancel",
    delete: "projectSessionsDelete",
};

/// Calls every operation once, in an order in which each call succeeds.
struct Tour<'a> {
    server: &'a TestServer,
    provider: &'a FakeProvider,
    replies: Vec<(&'static str, Reply)>,
    /// The request body of each operation that takes one.
    bodies: BTreeMap<&'static str, Value>,
}

impl<'a> Tour<'a> {
    async fn new((server, provider): &'a (TestServer, FakeProvider)) -> Self {
        let mut tour = Self { server, provider, replies: Vec::new(), bodies: BTreeMap::new() };
        tour.service().await;
        tour.api_keys().await;
        tour.spending().await;
        tour.model_keys().await;
        let token = tour.agent_projects().await;
        store_provider_keys(server).await;
        let message = json!({ "text": "Hello", "model": "gpt-4o", "max_tokens": 256 });
        tour.sessions(ORGANIZATION_SESSIONS, "/v1/sessions", &server.admin, message).await;
        let message = json!({ "text": "Hello" });
        tour.sessions(PROJECT_SESSIONS, "/v1/projects/my-app/sessions", &token, message).await;
        tour.webhooks().await;
        tour.audit_events().await;
        tour
    }

    async fn call(&mut self, id: &'static str, request: Request) -> Value {
        let reply = request.send().await;
        assert!(reply.status.is_success(), "{id}: {}", reply.text);
        let json = reply.json.clone();
        self.replies.push((id, reply));
        json
    }

    async fn get(&mut self, id: &'static str, path: &str) -> Value {
        self.call(id, self.server.get(path)).await
    }

    async fn post(&mut self, id: &'static str, path: &str, body: Value) -> Value {
        self.send(id, Method::POST, path, body).await
    }

    async fn send(&mut self, id: &'static str, method: Method, path: &str, body: Value) -> Value {
        let request = self.server.request(method, path).body(body.clone());
        self.bodies.insert(id, body);
        self.call(id, request).await
    }

    async fn service(&mut self) {
        for (id, path) in [("healthz", "/healthz"), ("openapiGet", "/openapi.json"), ("docsGet", "/docs")] {
            self.call(id, self.server.get(path).anonymous()).await;
        }
        self.get("whoami", "/v1/whoami").await;
        self.get("billingGet", "/v1/billing").await;
    }

    async fn api_keys(&mut self) {
        let key = json!({
            "name": "ci-runner",
            "scopes": ["read", "write"],
            "expires_at": "2035-01-31T12:00:00Z",
            "budget": { "total_tokens": 1_000_000, "alert_percents": [80, 100] },
            "metadata": { "team": "platform" },
        });
        let created = self.post("apiKeysCreate", "/v1/api_keys", key).await;
        let path = format!("/v1/api_keys/{}", created["api_key"]["id"]);
        self.report(&created["api_key"]).await;
        let cidrs = json!({ "allowed_cidrs": ["203.0.113.0/24", "2001:db8::/32"] });
        self.send("apiKeysUpdate", Method::PATCH, &path, cidrs).await;
        self.post("apiKeysRotate", &format!("{path}/rotate"), json!({ "grace_seconds": 3_600 })).await;
        self.get("apiKeysGet", &path).await;
        self.get("apiKeysList", "/v1/api_keys?limit=2&status=active,rotating").await;
        self.call("apiKeysRevoke", self.server.delete(&path)).await;
    }

    async fn report(&self, api_key: &Value) {
        let now = self.server.runner.app.clock.now();
        let event = |kind: &str, quantity: u32| {
            json!({
                "api_key_id": api_key["id"],
                "kind": kind,
                "quantity": quantity,
                "model": "claude-sonnet-4-5",
                "occurred_at": now.minus(Duration::from_mins(1)),
                "client_event_id": kind,
            })
        };
        let events = json!({ "events": [event("input_tokens", 12_000), event("output_tokens", 3_400)] });
        self.server.service(Method::POST, "/v1/internal/usage/events").body(events).send().await.expect(202);
    }

    async fn spending(&mut self) {
        let budget = json!({ "total_tokens": 50_000_000, "cost_cents": 20_000 });
        self.send("budgetUpdate", Method::PUT, "/v1/budget", budget).await;
        self.get("budgetGet", "/v1/budget").await;
        self.get("usageGet", "/v1/usage?period=2026-11").await;
        self.get("usageKeysList", "/v1/usage/keys").await;
    }

    async fn model_keys(&mut self) {
        let key = json!({ "provider": "openai", "key": "sk-proj-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghij", "name": "production" });
        let created = self.post("modelKeysCreate", "/v1/model_keys", key).await;
        self.get("modelKeysList", "/v1/model_keys").await;
        let path = format!("/v1/model_keys/{}", created["model_key"]["id"]);
        self.call("modelKeysRevoke", self.server.delete(&path)).await;
    }

    /// Returns a session token.
    async fn agent_projects(&mut self) -> String {
        let project = "/v1/agent_projects/my-app";
        self.post("agentProjectsCreate", "/v1/agent_projects", json!({ "slug": "my-app", "name": "My app" })).await;
        self.send("agentProjectsUpdate", Method::PATCH, project, json!({ "model_id": "claude-sonnet-4-5" })).await;
        let deploy = |commit: &str| json!({ "commit_sha": commit, "artifact_url": "https://artifacts.example.com/my-app.tar.gz" });
        self.post("deploysCreate", &format!("{project}/deploys"), deploy("9fceb02")).await;
        let built = self.server.deploy("my-app", deploy("b1973e0d5c")).await;
        self.server.set_build(&built, "building").await;
        let report = self.server.service(Method::POST, &format!("/v1/internal/releases/{}/status", built["id"]));
        report.body(json!({ "status": "ready", "build_log": "step 1\nstep 2\n" })).send().await.expect(200);
        self.get("releaseLogsList", &format!("{project}/releases/2/logs")).await;
        self.post("releasesRollback", &format!("{project}/rollback"), json!({ "version": 1 })).await;
        self.get("releasesList", &format!("{project}/releases")).await;
        self.get("agentProjectsGet", project).await;
        self.get("agentProjectsList", "/v1/agent_projects").await;
        let tokens = format!("{project}/session_tokens");
        let minted = self.post("sessionTokensCreate", &tokens, json!({ "user_id": "user-7" })).await;
        self.post("sessionTokensCreateUnversioned", &tokens["/v1".len()..], json!({ "user_id": "user-7" })).await;
        let token = minted["token"].as_str().unwrap();
        self.call("projectsWhoami", self.server.get("/v1/projects/my-app/whoami").bearer(token)).await;
        token.to_owned()
    }

    async fn sessions(&mut self, operations: SessionOperations, sessions: &str, token: &str, message: Value) {
        let SessionOperations { create, send, follow, messages, get, list, cancel, delete } = operations;
        let server = self.server;
        let post = |path: &str, body: &Value| server.post(path, body.clone()).bearer(token);
        let body = json!({ "metadata": { "ticket": "4711" } });
        let created = self.call(create, post(sessions, &body)).await;
        self.bodies.insert(create, body);
        let session = format!("{sessions}/{}", created["id"].as_str().unwrap());
        self.call(send, post(&format!("{session}/messages"), &message)).await;
        self.call(follow, server.get(&format!("{session}/stream")).bearer(token)).await;
        self.call(messages, server.get(&format!("{session}/messages?limit=10")).bearer(token)).await;
        self.call(get, server.get(&session).bearer(token)).await;
        self.call(list, server.get(&format!("{sessions}?limit=10")).bearer(token)).await;
        self.call(delete, server.delete(&session).bearer(token)).await;

        let other = post(sessions, &json!({})).send().await.expect(201);
        let session = format!("{sessions}/{}", other["id"].as_str().unwrap());
        self.provider.push(Script { fault: Fault::SilentAfter(1), ..Script::default() });
        let mut streamed = message.clone();
        streamed["stream"] = json!(true);
        let turn = tokio::spawn(post(&format!("{session}/messages"), &streamed).send());
        until("the provider is called", async || self.provider.unused_scripts() == 0).await;
        self.call(cancel, post(&format!("{session}/cancel"), &json!({}))).await;
        turn.abort();
        self.bodies.insert(send, message);
        self.bodies.insert(cancel, json!({}));
    }

    async fn webhooks(&mut self) {
        let endpoint = json!({
            "url": "https://hooks.example.com/karta",
            "event_types": ["api_key.revoked", "budget.exhausted"],
            "description": "On-call",
        });
        let created = self.post("webhookEndpointsCreate", "/v1/webhook_endpoints", endpoint).await;
        let path = format!("/v1/webhook_endpoints/{}", created["webhook_endpoint"]["id"]);
        self.send("webhookEndpointsUpdate", Method::PATCH, &path, json!({ "event_types": ["*"] })).await;
        self.get("webhookEndpointsGet", &path).await;
        self.get("webhookEndpointsList", "/v1/webhook_endpoints").await;
        let grace = json!({ "grace_seconds": 3_600 });
        self.post("webhookEndpointsRotateSecret", &format!("{path}/rotate_secret"), grace).await;
        let sent = self.post("webhookEndpointsTest", &format!("{path}/test"), json!({})).await;
        // Create the deliveries without sending them.
        let fan_out = WebhookEvents::new(
            self.server.runner.app.for_function(WebhookEvents::NAME),
            Waker::Local(Arc::new(|_, _| ())),
        );
        fan_out.work(&Wake::Sweep).await.unwrap();
        self.get("webhookDeliveriesList", &format!("{path}/deliveries?status=pending")).await;
        let replay = format!("{path}/deliveries/{}/replay", sent["delivery"]["id"]);
        self.post("webhookDeliveriesReplay", &replay, json!({})).await;
        let since = json!({ "since": "2026-11-01T00:00:00Z" });
        self.post("webhookEndpointsRecover", &format!("{path}/recover"), since).await;
        self.call("webhookEndpointsDelete", self.server.delete(&path)).await;
    }

    async fn audit_events(&mut self) {
        self.get("auditEventsList", "/v1/audit_events?limit=3").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_matches_the_openapi_document() {
    let mut document = openapi::document().unwrap();
    assert_resolved(&document, &document);
    let server = start(noon()).await;
    let tour = Tour::new(&server).await;
    let called: BTreeSet<_> = tour.replies.iter().map(|(id, _)| *id).collect();
    let documented: BTreeSet<_> = operations(&document).map(|(.., of)| of["operationId"].as_str().unwrap()).collect();
    assert_eq!(called, documented);

    let described = document.clone();
    for (id, reply) in &tour.replies {
        let (status, content) = success(operation(&described, id));
        assert_eq!(reply.status.as_u16(), status, "{id}");
        let media = reply.headers.get(header::CONTENT_TYPE).map(|media| media.to_str().unwrap());
        let media =
            media.map(|media| if media.starts_with("text/event-stream;") { "text/event-stream" } else { media });
        assert_eq!(media, content.map(|(media, _)| media.as_str()), "{id}");
        assert!(reply.headers.contains_key("x-request-id"), "{id}");
        let Some((media, schema)) = content else { continue };
        let valid = validator(&described, schema, true);
        if media == "text/event-stream" {
            for event in events(&reply.text) {
                assert_valid(&valid, &event, id);
            }
        } else {
            assert_valid(&valid, &reply.json, id);
        }
        if media == "application/json" && *id != "openapiGet" {
            let (path, method, _) = operations(&described).find(|(.., of)| of["operationId"] == *id).unwrap();
            let example = as_example(&reply.text);
            assert_valid(&valid, &example, id);
            document["paths"][path][method]["responses"][status.to_string()]["content"][media]["example"] = example;
        }
    }
    for (path, method, of) in operations(&described) {
        let id = of["operationId"].as_str().unwrap();
        let body = tour.bodies.get(id);
        assert_eq!(body.is_some(), of.get("requestBody").is_some(), "{id}");
        let Some(body) = body else { continue };
        let content = &of["requestBody"]["content"]["application/json"];
        assert_valid(&validator(&described, &content["schema"], false), body, id);
        document["paths"][path][method]["requestBody"]["content"]["application/json"]["example"] = body.clone();
    }
    if env::var_os("KARTA_UPDATE").is_some() {
        fs::write(Path::new(FILE), openapi::print(&document).unwrap()).unwrap();
    }
    let file: Value = serde_json::from_str(&fs::read_to_string(FILE).unwrap()).unwrap();
    for (path, method, of) in operations(&document) {
        let shown = &file["paths"][path][method]["requestBody"];
        assert_eq!(shown, &of["requestBody"], "{method} {path}: openapi.json shows a different request");
    }
}

/// A reader may send an example long after it was written.
#[tokio::test(flavor = "multi_thread")]
async fn request_examples_are_accepted_in_later_years() {
    let server = start(Arc::new(ManualClock::at("2034-06-30T12:00:00Z".parse().unwrap()))).await;
    let tour = Tour::new(&server).await;
    assert!(tour.bodies.len() >= 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_events_match_the_openapi_document() {
    let document = openapi::document().unwrap();
    let (server, provider) = start(Arc::new(SystemClock)).await;
    store_provider_keys(&server).await;
    let created = server.post("/v1/sessions", json!({})).send().await.expect(201);
    let messages = format!("/v1/sessions/{}/messages", created["id"].as_str().unwrap());
    let schema = &operation(&document, "messagesCreate")["responses"]["200"]["content"]["text/event-stream"]["schema"];
    let framed = validator(&document, schema, true);
    let decoded = validator(&document, &schema["properties"]["data"]["contentSchema"], true);
    provider.push(Script { tokens: 3, reasoning_tokens: 2, ..Script::default() });
    provider.push(Script { fault: Fault::ErrorEventAfter(2), ..Script::default() });
    for end in ["done", "error"] {
        let message = json!({ "text": "Hello", "model": "claude-sonnet-4-5", "thinking": true, "stream": true });
        let events = events(&server.post(&messages, message).send().await.text);
        assert!(events.len() > 2 && events.last().unwrap()["event"] == end, "{events:#?}");
        for event in &events {
            assert_valid(&framed, event, end);
            let data: Value = serde_json::from_str(event["data"].as_str().unwrap()).unwrap();
            assert_valid(&decoded, &data, end);
            assert_eq!(data["type"], event["event"]);
        }
    }
}

#[test]
fn operations_are_printed_in_order_of_use() {
    let text = fs::read_to_string(FILE).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(text, openapi::print(&document).unwrap());
    let ids = Regex::new(r#""operationId": "([A-Za-z]+)""#).unwrap();
    let printed: Vec<_> = ids.captures_iter(&text).map(|id| id[1].to_owned()).collect();
    assert_eq!(printed[..4], ["apiKeysCreate", "apiKeysList", "apiKeysGet", "apiKeysUpdate"]);
    assert_eq!(printed.last().unwrap(), "docsGet");
    let at = |id: &str| printed.iter().position(|printed| printed == id).unwrap();
    assert_eq!(at("sessionTokensCreate") + 1, at("sessionTokensCreateUnversioned"));
    let mut groups: Vec<_> = printed.iter().map(|id| operation(&document, id)["tags"][0].clone()).collect();
    groups.dedup();
    let tags = document["tags"].as_array().unwrap();
    assert_eq!(groups, tags.iter().map(|tag| tag["name"].clone()).collect::<Vec<_>>());
}

#[test]
fn every_operation_names_its_task_and_scope() {
    let document = openapi::document().unwrap();
    let mut summaries = BTreeMap::new();
    for (path, method, of) in operations(&document) {
        let summary = of["summary"].as_str().unwrap();
        let verb = summary.split(' ').next().unwrap();
        assert!(!verb.ends_with('s') && !summary.ends_with('.'), "{method} {path}: {summary}");
        let id = of["operationId"].as_str().unwrap().trim_end_matches("Unversioned").to_owned();
        let other = summaries.insert(summary.to_owned(), id.clone());
        assert!(other.is_none_or(|other| other == id), "{summary} names two operations");
        if let Some(scope) = of["security"][0]["api_key"][0].as_str() {
            let description = of["description"].as_str().unwrap();
            let required = match of["security"][1].as_object() {
                None => format!("Requires an API key with scope `{scope}`."),
                Some(_) => format!("Accepts a session token of this project or an API key with scope `{scope}`."),
            };
            assert!(description.starts_with(&required), "{method} {path}: {description}");
        }
    }
}

#[test]
fn openapi_file_is_current_and_has_examples() {
    let file: Value = serde_json::from_str(&fs::read_to_string(FILE).unwrap()).unwrap();
    let document = openapi::document().unwrap();
    let fix = "KARTA_UPDATE=1 cargo test -p karta-local --test it openapi";
    assert_eq!(without_examples(file.clone()), document, "openapi.json is not up to date: {fix}");
    for (path, method, operation) in operations(&file) {
        let (status, content) = success(operation);
        let Some((media, schema)) = content else { continue };
        if media == "application/json" && path != "/openapi.json" {
            let example = &operation["responses"][status.to_string()]["content"][media]["example"];
            assert_valid(&validator(&file, schema, true), example, &format!("{method} {path}: {fix}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openapi_file_is_public_and_cacheable() {
    let server = TestServer::start().await;
    let reply = server.get("/openapi.json").anonymous().send().await;
    assert_eq!(reply.headers[header::CACHE_CONTROL], "public, max-age=300");
    assert_eq!(reply.text, fs::read_to_string(FILE).unwrap());
    reply.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn docs_page_may_run_only_its_own_script() {
    let server = TestServer::start().await;
    let reply = server.get("/docs?from=elsewhere").anonymous().send().await;
    let policy = reply.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    // Like a browser, treat an opening tag inside a script as text.
    let (_, script) = reply.text.split_once("<script>").unwrap();
    let (script, rest) = script.split_once("</script>").unwrap();
    assert!(!rest.contains("<script"), "the page must have only one script");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, script.as_bytes());
    let hash = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, digest);
    assert!(policy.contains(&format!("script-src 'sha256-{hash}';")), "the script's hash is {hash}");
    assert!(policy.starts_with("default-src 'none';") && !policy.contains("http") && !policy.contains("unsafe-eval"));
    // The policy would block an external logo and the console would show an error.
    assert!(!script.contains("cdn.redoc.ly"), "Redoc's logo is loaded from elsewhere");
    // The URL is relative to the page, so it works under every stage path.
    assert!(script.contains(r#"Redoc.init("openapi.json""#));
    // Lambda limits a response to 6 MB, including the JSON escapes of the text.
    assert!(json!(reply.text).to_string().len() < 2 << 20);
}

/// Valid and invalid values of a message's fields.
fn changes_of_messages() -> Vec<(&'static str, Value)> {
    vec![
        ("text", json!("Hello")),
        ("text", json!("")),
        ("text", json!(null)),
        ("text", json!(["Hello"])),
        ("stream", json!("yes")),
        ("model", json!("x".repeat(129))),
        ("model", json!("")),
        ("max_tokens", json!(1)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(1_000_001)),
        ("max_tokens", json!(null)),
        ("thinking", json!(1)),
        ("temperature", json!(1)),
    ]
}

/// The schema rejects a body exactly when the handler does.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn schemas_and_handlers_accept_the_same_bodies() {
    let document = openapi::document().unwrap();
    let (server, _provider) = start(noon()).await;
    server.project("site").await;
    store_provider_keys(&server).await;
    let session = server.post("/v1/sessions", json!({})).send().await.expect(201);
    let messages = format!("/v1/sessions/{}/messages", session["id"].as_str().unwrap());
    let (key, _) = server.key(&["read"]).await;
    let key = format!("/v1/api_keys/{key}");
    let with = |change: &str, value: Value| {
        let mut body = json!({ "name": "ci", "scopes": ["read"] });
        body[change] = value;
        body
    };
    let long = |count: usize| "x".repeat(count);
    let mut cases = vec![
        ("apiKeysCreate", "/v1/api_keys", json!({ "name": "ci" })),
        ("apiKeysCreate", "/v1/api_keys", json!([])),
        ("apiKeysUpdate", &key, json!({ "name": null })),
        ("apiKeysUpdate", &key, json!({ "scopes": null })),
        ("apiKeysUpdate", &key, json!({ "expires_at": null, "budget": null, "metadata": null, "allowed_cidrs": null })),
        ("apiKeysUpdate", &key, json!({})),
        ("budgetUpdate", "/v1/budget", json!({ "cost_cents": null, "alert_percents": null })),
        ("budgetUpdate", "/v1/budget", json!({ "cost_cents": 9_007_199_254_740_992_u64 })),
        ("budgetUpdate", "/v1/budget", json!({ "total": 5 })),
        ("agentProjectsCreate", "/v1/agent_projects", json!({ "slug": "UPPER", "name": "x" })),
        ("agentProjectsCreate", "/v1/agent_projects", json!({ "slug": long(64), "name": "x" })),
        ("agentProjectsUpdate", "/v1/agent_projects/site", json!({ "name": null })),
        ("agentProjectsUpdate", "/v1/agent_projects/site", json!({ "model_id": null, "endpoint_url": null })),
        ("agentProjectsUpdate", "/v1/agent_projects/site", json!({ "model_id": long(129) })),
        ("deploysCreate", "/v1/agent_projects/site/deploys", json!({ "commit_sha": "9fceb0" })),
        ("deploysCreate", "/v1/agent_projects/site/deploys", json!({ "commit_sha": "9FCEB02", "activate": null })),
        ("deploysCreate", "/v1/agent_projects/site/deploys", json!({ "commit_sha": "9fceb02", "activate": 1 })),
        ("sessionTokensCreate", "/v1/agent_projects/site/session_tokens", json!({ "ttl_seconds": 59 })),
        (
            "sessionTokensCreate",
            "/v1/agent_projects/site/session_tokens",
            json!({ "ttl_seconds": 3600, "user_id": null }),
        ),
        ("sessionTokensCreate", "/v1/agent_projects/site/session_tokens", json!({ "user_id": "" })),
        (
            "modelKeysCreate",
            "/v1/model_keys",
            json!({ "provider": "acme", "key": "sk-proj-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghij" }),
        ),
        (
            "webhookEndpointsCreate",
            "/v1/webhook_endpoints",
            json!({ "url": "https://hooks.example.com/", "event_types": [] }),
        ),
        (
            "webhookEndpointsCreate",
            "/v1/webhook_endpoints",
            json!({ "url": "https://hooks.example.com/", "event_types": ["ping", "ping"] }),
        ),
        (
            "webhookEndpointsCreate",
            "/v1/webhook_endpoints",
            json!({ "url": "https://hooks.example.com/", "event_types": ["all"] }),
        ),
        ("sessionsCreate", "/v1/sessions", json!({})),
        ("sessionsCreate", "/v1/sessions", json!({ "metadata": { "user_id": "user-7" }, "session_id": null })),
        ("sessionsCreate", "/v1/sessions", json!({ "metadata": { "user_id": 7 } })),
        ("sessionsCreate", "/v1/sessions", json!({ "session_id": 7 })),
        ("sessionsCreate", "/v1/sessions", json!({ "user_id": "user-7" })),
        ("messagesCreate", &messages, json!({})),
    ];
    for (change, value) in changes_of_messages() {
        let mut body = json!({ "text": "Hello", "model": "gpt-4o" });
        body[change] = value;
        cases.push(("messagesCreate", &messages, body));
    }
    for (change, value) in [
        ("name", json!("")),
        ("name", json!(long(100))),
        ("name", json!(long(101))),
        ("name", json!(7)),
        ("scopes", json!(["read", "root"])),
        ("scopes", json!(["read", "read"])),
        ("scopes", json!([])),
        ("budget", json!({ "total_tokens": 5.0 })),
        ("budget", json!({ "total_tokens": 5.5 })),
        ("budget", json!({ "alert_percents": vec![1; 11] })),
        ("budget", json!({ "alert_percents": [80, 80.0] })),
        ("expires_at", json!("soon")),
        ("expires_at", json!("2027-01-31T12:00:00.123456+01:00")),
        ("expires_at", json!(null)),
        ("allowed_cidrs", json!("10.0.0.0/8")),
        ("allowed_cidrs", json!(vec!["10.0.0.0/8"; 21])),
        ("budget", json!({ "total_tokens": -1 })),
        ("budget", json!({ "alert_percents": [0] })),
        ("budget", json!([1])),
        ("metadata", json!({ "team": 1 })),
        ("metadata", json!({ long(41): "" })),
        ("metadata", json!({ "team": long(501) })),
        ("metadata", json!({ "team": long(500) })),
        ("owner", json!("me")),
    ] {
        cases.push(("apiKeysCreate", "/v1/api_keys", with(change, value)));
    }
    let (mut accepted, mut refused) = (0, 0);
    for (id, path, body) in cases {
        let (_, method, operation) = operations(&document).find(|(.., of)| of["operationId"] == id).unwrap();
        assert!(METHODS.contains(&method.as_str()));
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        let is_valid = validator(&document, schema, false).is_valid(&body);
        let method = method.to_ascii_uppercase().parse().unwrap();
        let reply = server.request(method, path).body(body.clone()).send().await;
        let is_accepted = reply.status.is_success();
        assert!(is_accepted || reply.status == 422, "{id} {body}: {}", reply.text);
        assert_eq!(is_accepted, is_valid, "{id} {body}: {}", reply.text);
        *if is_accepted { &mut accepted } else { &mut refused } += 1;
    }
    assert!(accepted >= 10 && refused >= 25, "{accepted} {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn error_responses_match_the_openapi_document() {
    let document = openapi::document().unwrap();
    let (server, provider) = start(Arc::new(SystemClock)).await;
    server.project("site").await;
    let (_, reader) = server.key(&["read"]).await;
    let keys = || server.request(Method::POST, "/v1/api_keys");
    let mismatch = || keys().idempotency_key("1").body(json!({ "name": "a", "scopes": ["read"] }));
    mismatch().send().await.expect(201);
    let mut calls = vec![
        (400, keys().raw_body("{")),
        (401, server.get("/v1/whoami").anonymous()),
        (403, server.post("/v1/api_keys", json!({})).bearer(&reader)),
        (404, server.get("/v1/api_keys/7")),
        (409, server.post("/v1/agent_projects", json!({ "slug": "site", "name": "Again" }))),
        (413, keys().raw_body("x".repeat(65 * 1024))),
        (415, keys().raw_body("{}").header("content-encoding", "gzip")),
        (422, keys().body(json!({ "name": "a" }))),
        (422, server.post("/v1/model_keys", json!({ "provider": "openai", "key": "short" }))),
        (422, mismatch().body(json!({ "name": "b", "scopes": ["read"] }))),
    ];
    server.set_subscription("past_due").await;
    calls.push((402, server.post("/v1/agent_projects/site/session_tokens", json!({}))));
    let assert_documented = |id: &str, status: u16, body: &Value| {
        let reference = operation(&document, id)["responses"][status.to_string()]["$ref"].as_str().unwrap();
        let response = document.pointer(&reference[1..]).unwrap();
        let schema = &response["content"]["application/json"]["schema"];
        assert_valid(&validator(&document, schema, true), body, &format!("{id}: {status}"));
    };
    for (status, call) in calls {
        assert_documented("sessionTokensCreate", status, &call.send().await.expect(status));
    }

    server.set_subscription("active").await;
    let session = server.post("/v1/sessions", json!({})).send().await.expect(201);
    let session = format!("/v1/sessions/{}", session["id"].as_str().unwrap());
    let assert_refused = async |body: Value, status: u16, code: &str| {
        let body = server.post(&format!("{session}/messages"), body).send().await.expect(status);
        assert_eq!(body["error"], code);
        assert_documented("messagesCreate", status, &body);
    };
    let named = |model: &str| json!({ "text": "Hello", "model": model });
    assert_refused(json!({ "text": "Hello" }), 422, "model_required").await;
    assert_refused(named("gpt-4o"), 422, "model_not_allowed").await;
    assert_refused(json!({ "text": "" }), 422, "validation_failed").await;
    store_provider_keys(&server).await;
    for (status, answered, code) in [
        (400, 422, "provider_rejected"),
        (401, 422, "byok_key_rejected"),
        (402, 422, "provider_credit_exhausted"),
        (429, 429, "provider_rate_limited"),
        (500, 502, "provider_error"),
    ] {
        // Only some faults are retried.
        let fault = Fault::Status { status, body: "{}".to_owned(), retry_after: None };
        for _ in 0..if [429, 500].contains(&status) { 2 } else { 1 } {
            provider.push(Script { fault: fault.clone(), ..Script::default() });
        }
        assert_refused(named("gpt-4o"), answered, code).await;
    }
    let idle = server.request(Method::POST, &format!("{session}/cancel")).send().await.expect(409);
    assert_eq!(idle["error"], "no_turn_in_progress");
    assert_documented("sessionsCancel", 409, &idle);
}

//! Streamed responses and functions with several routes, with routes of this file: through the
//! local gateway, and as the process of a Lambda function.

use std::{collections::BTreeMap, net::SocketAddr, process::Command, sync::Arc, time::Duration};

use axum::body::Body;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use karta_local::{
    Options,
    gateway::Gateway,
    provider::{FakeProvider, Script},
    registry::{self, Mounted},
    template::{Function, TEMPLATE, Template, TemplateRoute},
};
use karta_shared::{
    App,
    clock::{Clock, SystemClock},
    config::SecretSource,
    domain::{Provider, ProviderBaseUrls},
    http::{
        ApiResponse, Call, Cors, Error, EventStream, GatewayEvent, NoBody, NoQuery, Public, Route, RouteTable,
        Verbatim, event_channel,
    },
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, time::sleep};

use crate::{
    current_credential::context,
    harness::{TestServer, options, unknown_route},
    lambda_events::event,
    model_keys::provider_key,
    runtime_api::{FunctionProcess, StreamedResponse},
    secrets_manager::SecretsManager,
};

const FUNCTION: &str = "ticks";
/// Time between two events, so that they are not sent as one.
const PAUSE: Duration = Duration::from_millis(300);

/// Streams two events.
struct TicksFollow;

impl Route for TicksFollow {
    const NAME: &'static str = "ticks-follow";
    const USES_STORE: bool = false;
    const STREAMS: bool = true;
    const CORS: Option<Cors> = Some(Cors::DATA_PLANE);
    type Access = Public;
    type Path = ();
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Verbatim;

    async fn handle(_: &App, _: &Call<Self>) -> Result<ApiResponse<Verbatim>, Error> {
        Ok(ApiResponse::stream(ticks()))
    }
}

fn ticks() -> EventStream {
    let (sender, events) = event_channel(64);
    tokio::spawn(async move {
        sender.send("data: 1\n\n").await;
        sleep(PAUSE).await;
        sender.send("data: 2\n\n").await;
    });
    events
}

/// Returns JSON.
struct TicksCount;

impl Route for TicksCount {
    const NAME: &'static str = "ticks-count";
    const USES_STORE: bool = false;
    type Access = Public;
    type Path = ();
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Value;

    async fn handle(_: &App, _: &Call<Self>) -> Result<ApiResponse<Value>, Error> {
        ApiResponse::ok(&json!({ "ticks": 2 }))
    }
}

fn table() -> RouteTable {
    RouteTable::new(FUNCTION)
        .route::<TicksFollow>(Method::GET, "/v1/ticks/stream")
        .route::<TicksCount>(Method::GET, "/v1/ticks")
}

/// Not a test: the function's process. [`start_function`] runs it with this name.
#[test]
#[ignore = "the process that the other tests start"]
fn function_process() {
    Runtime::new().unwrap().block_on(table().run());
}

/// Not a test: the process of `turns`.
#[test]
#[ignore = "the process that another test starts"]
fn turns_process() {
    Runtime::new().unwrap().block_on(turns::routes().run());
}

/// Starts the function's process.
async fn start_function(environment: &[(&str, &str)]) -> FunctionProcess {
    start_process("function_process", environment).await
}

async fn start_process(test: &str, environment: &[(&str, &str)]) -> FunctionProcess {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("streaming::{test}"), "--ignored", "--nocapture"]);
    FunctionProcess::start(command, environment).await
}

fn request(path: &str) -> String {
    event("GET", path, &Value::Null, &json!({}), &Value::Null)
}

/// Asserts the framing of a response that a streaming function sends. Returns its head.
async fn head(response: &mut StreamedResponse) -> Value {
    assert_eq!(response.headers["lambda-runtime-function-response-mode"], "streaming");
    assert_eq!(response.headers["content-type"], "application/vnd.awslambda.http-integration-response");
    response.head().await
}

#[tokio::test(flavor = "multi_thread")]
async fn function_streams_head_delimiter_and_chunks() {
    let mut function = start_function(&[]).await;
    let mut response = function.invoke(request("/v1/ticks/stream")).await;
    let head = head(&mut response).await;
    assert_eq!((&head["statusCode"], &head["cookies"]), (&json!(200), &json!([])));
    for (name, value) in [
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-store, no-transform"),
        ("x-accel-buffering", "no"),
        ("x-request-id", "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"),
        ("access-control-allow-origin", "*"),
        ("access-control-expose-headers", "x-request-id, retry-after, x-should-retry"),
    ] {
        assert_eq!(head["headers"][name], value, "{name}");
    }
    assert_eq!(response.chunk().await.unwrap(), "data: 1\n\n");
    assert_eq!(response.chunk().await.unwrap(), "data: 2\n\n");
    assert_eq!(response.chunk().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn streaming_function_sends_json_as_body() {
    let mut function = start_function(&[]).await;
    for (event, status, expected) in [
        (request("/v1/ticks"), 200, json!({ "ticks": 2 })),
        (request("/v1/elsewhere"), 404, unknown_route()),
        ("{}".to_owned(), 404, unknown_route()),
        (request("/v1/ticks/stream").replace("\"GET\"", "\"OPTIONS\""), 404, unknown_route()),
        (request("/v1/ticks").replace("passed-through", "\u{7f}\\ud83d"), 200, json!({ "ticks": 2 })),
    ] {
        let mut response = function.invoke(event.clone()).await;
        let head = head(&mut response).await;
        assert_eq!(
            (&head["statusCode"], &head["headers"]["content-type"]),
            (&json!(status), &json!("application/json"))
        );
        let mut body: Value = serde_json::from_str(&response.body().await).unwrap();
        body.as_object_mut().unwrap().remove("request_id");
        assert_eq!(body, expected, "{event}");
    }
}

/// The function attaches to a turn that ended, because a deployed one calls providers by `https` only.
/// `just starts` does the same with the built binary.
#[tokio::test(flavor = "multi_thread")]
async fn turns_function_streams_the_events_of_a_turn() {
    let (clock, provider): (Arc<dyn Clock>, _) =
        (Arc::new(SystemClock), FakeProvider::start(Script::default()).await.unwrap());
    let urls = provider.replace(ProviderBaseUrls::default(), Provider::OpenAi);
    let options = Options { provider_base_urls: Some(urls), ..options(Arc::clone(&clock)) };
    let server = TestServer::start_as(options, None).await;
    let organization = format!("/v1/internal/organizations/{}", server.organization_id);
    let here = json!({ "endpoint_url": "https://a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com/v1" });
    server.service(Method::PATCH, &organization).body(here).send().await.expect(200);
    for (provider, start) in [("openai", "sk-proj-"), ("anthropic", "sk-ant-api03-")] {
        let key = json!({ "provider": provider, "key": provider_key(start) });
        server.post("/v1/model_keys", key).send().await.expect(201);
    }
    let session = server.post("/v1/sessions", json!({})).send().await.expect(201)["id"].take();
    let message = json!({ "text": "Hello", "model": "gpt-4o", "stream": true });
    let messages = format!("/v1/sessions/{}/messages", session.as_str().unwrap());
    let streamed = server.post(&messages, message.clone()).idempotency_key("1").send().await;
    assert!(streamed.text.contains("\nevent: done\n"), "{}", streamed.text);

    let secrets = SecretsManager::start(clock).await;
    let SecretSource::Fixed(texts) = server.runner.secrets.source() else { panic!("a local run's secrets") };
    for (secret, text) in &texts {
        secrets.put(secret.name(), "1", text.expose_secret());
    }
    let (emulator, store) = (&server.runner.emulator, server.runner.emulator.endpoint());
    let environment = [
        ("AWS_ACCESS_KEY_ID", emulator.access_key().expose_secret()),
        ("AWS_ENDPOINT_URL", &secrets.url),
        ("AWS_ENDPOINT_URL_DYNAMODB", &store),
        ("KARTA_OWN_HOSTS", "{api}.execute-api.eu-central-1.amazonaws.com,api.example.com"),
        ("KARTA_SECRET_SEALING_BYOK", "sealing-byok"),
        ("KARTA_SECRET_SEALING_SESSIONS", "sealing-sessions"),
    ];
    let mut function = start_process("turns_process", &environment).await;
    let context = context(&server, &server.admin).await.unwrap();
    let missing = json!(format!("sess_{}", "0".repeat(32)));
    for (session, status) in [(&session, 200), (&missing, 404)] {
        let event = event("POST", "/v1/sessions/{id}/messages", &json!({ "id": session }), &context, &message);
        let mut event: Value = serde_json::from_str(&event.replace("passed-through", &server.admin)).unwrap();
        if status == 200 {
            event["headers"]["Idempotency-Key"] = json!("1");
            event["multiValueHeaders"]["Idempotency-Key"] = json!(["1"]);
        }
        let mut response = function.invoke(event.to_string()).await;
        let head = head(&mut response).await;
        let body = response.body().await;
        assert_eq!(head["statusCode"], status, "{body}");
        if status == 200 {
            assert_eq!(head["headers"]["content-type"], "text/event-stream; charset=utf-8");
            assert_eq!(body, streamed.text, "a replay is identical");
        } else {
            assert_eq!(head["headers"]["content-type"], "application/json");
            assert!(body.contains("Not found"), "{body}");
        }
    }

    // The base URL of the organization leads to the API that the event names.
    let message = json!({ "text": "Hello", "model": "claude-sonnet-4-5", "stream": true });
    let event = event("POST", "/v1/sessions/{id}/messages", &json!({ "id": session }), &context, &message);
    let mut response = function.invoke(event).await;
    assert_eq!(head(&mut response).await["statusCode"], 502);
    let last = server.get(&format!("/v1/sessions/{}", session.as_str().unwrap())).send().await.expect(200);
    assert_eq!(last["turn"]["status"], "completed", "no turn was started");
}

/// For gateways that cannot stream.
#[tokio::test(flavor = "multi_thread")]
async fn streaming_function_can_buffer_its_responses() {
    let mut function = start_function(&[("KARTA_RESPONSE_TRANSFER_MODE", "BUFFERED")]).await;
    let mut response = function.invoke(request("/v1/ticks/stream")).await;
    assert!(!response.headers.contains_key("lambda-runtime-function-response-mode"));
    let answer: Value = serde_json::from_str(&response.body().await).unwrap();
    assert_eq!((&answer["statusCode"], &answer["isBase64Encoded"]), (&json!(200), &json!(false)));
    assert_eq!(answer["multiValueHeaders"]["content-type"], json!(["text/event-stream; charset=utf-8"]));
    assert_eq!(answer["body"], "data: 1\n\ndata: 2\n\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn table_serves_the_listed_pairs() {
    let server = TestServer::start().await;
    let table = table();
    for (method, path, status) in [
        ("GET", "/v1/ticks", 200),
        ("POST", "/v1/ticks", 404),
        ("GET", "/v1/ticks/", 404),
        ("GET", "/v1/ticks/{id}", 404),
    ] {
        let event: GatewayEvent =
            serde_json::from_str(&event(method, path, &Value::Null, &json!({}), &Value::Null)).unwrap();
        let response = table.serve_event(&server.runner.app, event).await;
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
    }
}

#[test]
fn streaming_table_refuses_empty_responses() {
    let table = table().route::<karta_shared::http::Preflight>(Method::OPTIONS, "/v1/ticks");
    assert!(table.check().unwrap_err().contains("status 204"));
}

/// The template with the function of this file.
fn template(routes: &[(&str, &str)]) -> Template {
    let mut template = Template::parse(TEMPLATE).unwrap();
    let route = |(name, path): &(&str, &str)| {
        let (name, path) = ((*name).to_owned(), (*path).to_owned());
        TemplateRoute { name, method: Method::GET, path, authorizer: None }
    };
    template.functions.push(Function {
        binary: FUNCTION.to_owned(),
        routes: routes.iter().map(route).collect(),
        outbox_prefixes: Vec::new(),
        schedule: None,
        indexes: Vec::new(),
    });
    template
}

fn handlers(app: &App) -> BTreeMap<&'static str, Vec<Mounted>> {
    let mut handlers = registry::handlers(app);
    handlers.extend([registry::mount_table(app, table())]);
    handlers
}

const ROUTES: [(&str, &str); 2] = [("ticks-follow", "/v1/ticks/stream"), ("ticks-count", "/v1/ticks")];

async fn get(gateway: &Gateway, path: &str) -> http::Response<Body> {
    let request = http::Request::get(path).header("host", "localhost").body(Body::empty()).unwrap();
    gateway.answer(SocketAddr::from(([127, 0, 0, 1], 1)), request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_passes_chunks_on_unbuffered() {
    let server = TestServer::start().await;
    let app = &server.runner.app;
    let gateway = Gateway::with_handlers(app, &template(&ROUTES), handlers(app)).unwrap();
    assert_eq!(get(&gateway, "/v1/ticks").await.status(), StatusCode::OK);
    let mut response = get(&gateway, "/v1/ticks/stream").await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let mut chunks = Vec::new();
    while let Some(Ok(frame)) = response.body_mut().frame().await {
        chunks.push(frame.into_data().unwrap());
    }
    assert_eq!(chunks, ["data: 1\n\n", "data: 2\n\n"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn template_must_list_the_tables_routes() {
    let server = TestServer::start().await;
    let app = &server.runner.app;
    for (routes, fault) in [
        (&ROUTES[..1], "the route ticks-count of ticks is not in template.yaml"),
        (&[("ticks-count", "/v1/tocks")][..], "template.yaml lists GET /v1/tocks, which its function does not serve"),
        (
            &[("ticks-list", "/v1/ticks")][..],
            "GET /v1/ticks is named ticks-list in template.yaml and ticks-count in its function: use one name",
        ),
    ] {
        let refused = Gateway::with_handlers(app, &template(routes), handlers(app)).unwrap_err();
        assert_eq!(refused.to_string(), fault);
    }
}

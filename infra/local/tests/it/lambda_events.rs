//! Tests of functions with events in the format of AWS. All other tests use the local gateway.

use std::sync::Arc;

use authorizer::Authorizer;
use base64::{Engine, engine::general_purpose::STANDARD};
use karta_shared::{
    config::{Secret, SecretSource, Secrets},
    domain::InternalGuard,
    http::{GatewayEvent, Route, serve_event},
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    harness::{TestServer, unauthorized, unknown_route},
    stripe_events,
};

const METHOD_ARN: &str = "arn:aws:execute-api:eu-central-1:123456789012:a1b2c3d4e5/prod/GET/v1/whoami";

/// Sends a TOKEN authorizer event. Returns the policy statements and the context of the response.
async fn authorize(server: &TestServer, token: &str) -> (Value, Value) {
    let event = json!({ "type": "TOKEN", "authorizationToken": format!("Bearer {token}"), "methodArn": METHOD_ARN });
    let event = serde_json::from_value(event).unwrap();
    let answer = Authorizer::new(server.runner.app.for_function(authorizer::NAME)).authorize(&event).await.unwrap();
    let answer = serde_json::to_value(answer).unwrap();
    assert!(answer["principalId"].is_string());
    assert_eq!(answer["policyDocument"]["Version"], "2012-10-17");
    (answer["policyDocument"]["Statement"].clone(), answer["context"].clone())
}

/// Builds a REST proxy event for this path with the authorizer's context, as API Gateway does.
pub(crate) fn event(method: &str, resource: &str, variables: &Value, context: &Value, body: &Value) -> String {
    let mut authorizer = context.clone();
    authorizer["principalId"] = json!("someone");
    authorizer["integrationLatency"] = json!(31);
    let mut path = resource.to_owned();
    for (name, value) in variables.as_object().into_iter().flatten() {
        path = path.replace(&format!("{{{name}}}"), value.as_str().unwrap());
    }
    json!({
        "resource": resource,
        "path": path,
        "httpMethod": method,
        "headers": { "Host": "a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com", "Authorization": "Bearer passed-through" },
        "multiValueHeaders": {
            "Host": ["a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com"],
            "Authorization": ["Bearer passed-through"],
        },
        "queryStringParameters": null,
        "multiValueQueryStringParameters": null,
        "pathParameters": variables,
        "stageVariables": null,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "a1b2c3d4e5",
            "authorizer": authorizer,
            "domainName": "a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com",
            "extendedRequestId": "Zxy12EXAMPLE=",
            "httpMethod": method,
            "identity": { "sourceIp": "203.0.113.9", "userAgent": "curl/8", "accessKey": null },
            "path": format!("/prod{path}"),
            "protocol": "HTTP/1.1",
            "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
            "requestTime": "21/Nov/2026:12:00:00 +0000",
            "requestTimeEpoch": 1_795_262_400_000_u64,
            "resourceId": "abc123",
            "resourcePath": resource,
            "stage": "prod",
        },
        "body": if body.is_null() { Value::Null } else { json!(body.to_string()) },
        "isBase64Encoded": false,
    })
    .to_string()
}

/// Sends an event to a function. Returns the status and the body of the response.
async fn response<R: Route>(server: &TestServer, event: &str) -> (u16, Value) {
    let answer = Box::pin(handle::<R>(server, event)).await;
    assert_eq!(answer["multiValueHeaders"]["x-request-id"], json!(["c6af9ac6-7b61-11e6-9a41-93e8deadbeef"]));
    assert_eq!(answer["isBase64Encoded"], false);
    let status = u16::try_from(answer["statusCode"].as_u64().unwrap()).unwrap();
    (status, serde_json::from_str(answer["body"].as_str().unwrap()).unwrap())
}

/// Handles an event as the Lambda runtime does: parses it, calls the function and serializes the
/// response.
async fn handle<R: Route>(server: &TestServer, event: &str) -> Value {
    let event: GatewayEvent = serde_json::from_str(event).unwrap();
    serde_json::to_value(serve_event::<R>(&server.runner.app.for_function(R::NAME), event).await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn authorizer_response_has_the_api_gateway_format() {
    let server = TestServer::start().await;
    let (statement, context) = authorize(&server, &server.admin).await;
    let stage = "arn:aws:execute-api:eu-central-1:123456789012:a1b2c3d4e5/prod/*";
    assert_eq!(statement, json!([{ "Action": ["execute-api:Invoke"], "Effect": "Allow", "Resource": [stage] }]));
    assert!(context.as_object().unwrap().values().all(Value::is_string), "API Gateway accepts only flat values");
    assert!(context.to_string().len() < 4_096);

    let (statement, context) = authorize(&server, "kt_live_0123456789abcdefghijklmnopqrstuv").await;
    assert_eq!(statement[0]["Effect"], "Deny");
    assert_eq!(context, json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_handle_rest_api_events() {
    let server = TestServer::start().await;
    let (_, context) = authorize(&server, &server.admin).await;
    let (status, principal) =
        response::<whoami::Whoami>(&server, &event("GET", "/v1/whoami", &Value::Null, &context, &Value::Null)).await;
    assert_eq!((status, &principal["organization_id"]), (200, &json!(server.organization_id)));

    let body = json!({ "name": "ci", "scopes": ["read"] });
    let created = event("POST", "/v1/api_keys", &Value::Null, &context, &body);
    let (status, created) = response::<api_keys_create::ApiKeysCreate>(&server, &created).await;
    assert_eq!(status, 201, "{created}");
    crate::harness::note_secret(created["secret"].as_str().unwrap());

    let id = created["api_key"]["id"].to_string();
    let read = event("GET", "/v1/api_keys/{id}", &json!({ "id": id }), &context, &Value::Null);
    let (status, read) = response::<api_keys_get::ApiKeysGet>(&server, &read).await;
    assert_eq!((status, &read["api_key"]), (200, &created["api_key"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_request_id_is_replaced() {
    let server = TestServer::start().await;
    let event = event("GET", "/healthz", &Value::Null, &json!({}), &Value::Null);
    for chosen in ["a\\r\\nset-cookie: x", "\\\"},{", "", &"a".repeat(129)] {
        let event = event.replace("c6af9ac6-7b61-11e6-9a41-93e8deadbeef", chosen);
        let answer = handle::<healthz::Healthz>(&server, &event).await;
        let id = &answer["multiValueHeaders"]["x-request-id"][0];
        assert_eq!(id.as_str().unwrap().len(), 36, "{chosen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn internal_route_checks_source_address_and_host() {
    let mut server = TestServer::start().await;
    let bare = event("GET", "/v1/internal/whoami", &Value::Null, &json!({}), &Value::Null);
    let host = "a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com";
    let lists = |addresses: &str, hosts: &str| {
        Arc::new(InternalGuard { addresses: addresses.parse().ok(), hosts: hosts.parse().ok() })
    };
    for (addresses, hosts, status) in [
        ("203.0.113.0/24", host, 401),
        ("203.0.114.0/24", host, 404),
        ("203.0.113.9", "control.example.com", 404),
        ("0.0.0.0/0, ::/0", "", 404),
        ("", host, 404),
    ] {
        server.runner.app.internal = lists(addresses, hosts);
        for event in [bare.clone(), bare.replace("\"203.0.113.9\"", "\"::ffff:203.0.113.9\"")] {
            let (actual, _) = response::<internal_whoami::InternalWhoami>(&server, &event).await;
            assert_eq!(actual, status, "{addresses} at {hosts}");
        }
    }
    server.runner.app.internal = lists("203.0.113.9", host);
    let token = format!("Bearer {}", server.runner.secrets.service_token.expose_secret());
    let (status, _) =
        response::<internal_whoami::InternalWhoami>(&server, &bare.replace("Bearer passed-through", &token)).await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn stripe_signature_covers_the_decoded_body() {
    let (mut server, clock) = TestServer::start_at_noon().await;
    let live = json!({ "livemode": true, "signing_secrets": [stripe_events::SECRET] }).to_string();
    let source = SecretSource::Fixed([(Secret::Stripe, live.into())].into());
    server.runner.app.secrets = Arc::new(Secrets::new(source, clock));
    for (livemode, status) in [(true, 200), (false, 400)] {
        let mut body = stripe_events::updated("evt_1", 1, "active");
        body["livemode"] = json!(livemode);
        let plain = event("POST", "/v1/stripe/events", &Value::Null, &json!({}), &body);
        let mut plain: Value = serde_json::from_str(&plain).unwrap();
        let header = stripe_events::signature(stripe_events::SECRET, stripe_events::NOON, &body.to_string());
        plain["multiValueHeaders"]["Stripe-Signature"] = json!([header]);
        let mut encoded = plain.clone();
        encoded["isBase64Encoded"] = json!(true);
        encoded["body"] = json!(STANDARD.encode(body.to_string()));
        for event in [plain, encoded] {
            let answer = response::<stripe_events_create::StripeEventsCreate>(&server, &event.to_string()).await;
            assert_eq!(answer.0, status, "{}", answer.1);
            assert_eq!(answer.1["error"].as_str(), (!livemode).then_some("livemode_mismatch"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn event_without_a_caller_returns_401() {
    let server = TestServer::start().await;
    let anonymous = event("GET", "/v1/whoami", &Value::Null, &json!({}), &Value::Null);
    let (status, body) = response::<whoami::Whoami>(&server, &anonymous).await;
    assert_eq!((status, &body["detail"]), (401, &json!("Unauthorized")));
}

/// Placeholder for half a surrogate pair, which a Rust string cannot hold. See [`to_json_text`].
const HALF: &str = "\u{e000}";

fn to_json_text(event: &Value) -> String {
    event.to_string().replace(HALF, "\\ud83d")
}

/// Any text that a client can put into a header, a query, a path or a body.
fn client_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<String>(),
        vec(0_u32..256, 0..8).prop_map(|bytes| bytes.into_iter().filter_map(char::from_u32).collect::<String>()),
        select(vec!["://", "\u{7f}", "\0", "\r\n", HALF, "%", "%61", "[::", "https", "kt_live_", "Bearer ", "=", ","])
            .prop_map(str::to_owned),
    ];
    vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

fn header_name() -> impl Strategy<Value = String> {
    let known = [
        "X-Forwarded-Proto",
        "X-Forwarded-For",
        "Host",
        "Authorization",
        "User-Agent",
        "Idempotency-Key",
        "Stripe-Signature",
        "Content-Type",
        "Cookie",
    ];
    prop_oneof![4 => select(known.to_vec()).prop_map(str::to_owned), 1 => client_text()]
}

/// Sends events with these headers and this text to a route of each kind. Asserts the responses.
async fn check_responses(server: &TestServer, headers: &[(String, String)], text: &str) {
    let mut hostile: Value =
        serde_json::from_str(&event("GET", "/healthz", &Value::Null, &json!({}), &Value::Null)).unwrap();
    for (name, value) in headers {
        hostile["headers"][name] = json!(value);
        hostile["multiValueHeaders"][name] = json!([value]);
    }
    hostile["path"] = json!(text);
    hostile["requestContext"]["path"] = json!(text);
    hostile["requestContext"]["identity"]["userAgent"] = json!(text);
    hostile["body"] = json!(text);
    hostile["pathParameters"] = json!({ "proxy": text });
    let of = |query: bool| {
        let mut event = hostile.clone();
        if query {
            event["multiValueQueryStringParameters"] = json!({ text: [text, text] });
        }
        to_json_text(&event)
    };
    for query in [false, true] {
        let (status, body) = response::<healthz::Healthz>(server, &of(query)).await;
        assert_eq!((status, body), (200, json!({ "status": "ok" })));
        for (status, mut body) in [
            response::<internal_whoami::InternalWhoami>(server, &of(query)).await,
            response::<internal_keys_validate::InternalKeysValidate>(server, &of(query)).await,
            response::<stripe_events_create::StripeEventsCreate>(server, &of(query)).await,
        ] {
            body.as_object_mut().unwrap().remove("request_id");
            assert_eq!((status, body), (404, unknown_route()), "outside the allowlist, or not configured");
        }
        let (status, mut body) = response::<whoami::Whoami>(server, &of(query)).await;
        body.as_object_mut().unwrap().remove("request_id");
        assert_eq!((status, body), (401, unauthorized()));
    }
}

#[test]
fn no_client_text_fails_an_invocation() {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(TestServer::start());
    let seen = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    for headers in [
        seen("X-Forwarded-Proto", "://"),
        seen("X-Forwarded-Proto", ""),
        seen("Host", "a b"),
        seen("Host", "[::"),
        seen("User-Agent", "curl\u{7f}"),
        seen("Authorization", "Bearer \u{7f}"),
        seen("Stripe-Signature", "t=1,v1=\u{7f}"),
        seen("a b", "c"),
        seen("", ""),
        seen("X-Odd", HALF),
    ] {
        runtime.block_on(check_responses(&server, &headers, "://\u{7f}"));
    }
    let inputs = (vec((header_name(), client_text()), 0..5), client_text());
    let mut runner = TestRunner::new(Config { cases: 256, failure_persistence: None, ..Config::default() });
    runner
        .run(&inputs, |(headers, text)| {
            runtime.block_on(check_responses(&server, &headers, &text));
            Ok(())
        })
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_with_control_character_is_refused() {
    let server = TestServer::start().await;
    let (_, context) = authorize(&server, &server.admin).await;
    let body = json!({ "name": "ci", "scopes": ["read"] });
    let plain = event("POST", "/v1/api_keys", &Value::Null, &context, &body);
    for sent in ["a\u{7f}", "\0", "a\nb"] {
        let mut event: Value = serde_json::from_str(&plain).unwrap();
        event["multiValueHeaders"]["Idempotency-Key"] = json!([sent]);
        let (status, refused) = response::<api_keys_create::ApiKeysCreate>(&server, &event.to_string()).await;
        assert_eq!((status, &refused["field"]), (422, &json!("Idempotency-Key")), "{sent:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_of_a_repeated_header_is_seen() {
    let server = TestServer::start().await;
    let (_, context) = authorize(&server, &server.admin).await;
    let body = json!({ "name": "ci", "scopes": ["read"] });
    let mut event: Value = serde_json::from_str(&event("POST", "/v1/api_keys", &Value::Null, &context, &body)).unwrap();
    let mut refused = Vec::new();
    for (name, values) in [
        ("Authorization", json!(["Bearer one", "Bearer passed-through"])),
        ("authorization", json!(["Bearer passed-through"])),
        ("Idempotency-Key", json!(["a", "b"])),
        ("idempotency-key", json!(["a", "a"])),
    ] {
        let before = event.clone();
        event["multiValueHeaders"][name] = values.clone();
        event["headers"][name] = values.as_array().unwrap().last().unwrap().clone();
        let (status, body) = response::<api_keys_create::ApiKeysCreate>(&server, &event.to_string()).await;
        refused.push((status, body["error"].as_str().unwrap_or_default().to_owned()));
        event = before;
    }
    let unauthorized = (401, String::new());
    let twice = (400, "duplicate_header".to_owned());
    assert_eq!(refused, [unauthorized.clone(), unauthorized, twice.clone(), twice]);
    // An event without `multiValueHeaders`.
    event["headers"]["Idempotency-Key"] = json!("a");
    event.as_object_mut().unwrap().remove("multiValueHeaders");
    let (status, created) = response::<api_keys_create::ApiKeysCreate>(&server, &event.to_string()).await;
    assert_eq!(status, 201, "{created}");
    crate::harness::note_secret(created["secret"].as_str().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn path_variable_may_be_percent_encoded() {
    let server = TestServer::start().await;
    server.project("my-app").await;
    let (_, context) = authorize(&server, &server.admin).await;
    for (slug, status) in [("%6Dy%2Dapp", 200), ("my-app", 200), ("my%2Fapp", 404)] {
        let read = event("GET", "/v1/agent_projects/{slug}", &json!({ "slug": slug }), &context, &Value::Null);
        let (actual, _) = response::<agent_projects_get::AgentProjectsGet>(&server, &read).await;
        assert_eq!(actual, status, "{slug}");
    }
}

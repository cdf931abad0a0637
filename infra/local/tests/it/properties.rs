//! Random input to every route. The server never returns a 5xx, and every error has the documented
//! shape.

use http::Method;
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    sample::select,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::harness::{Reply, Request, TestServer, note_secret};

const CASES: u32 = 256;
/// A secret that the tests send in fields where it does not belong. No error may repeat it.
const SECRET: &str = "kt_live_0123456789abcdefghijklmnopqrstuv";

/// Builds requests from each input, sends them and checks every response against the contract.
fn check<S: Strategy>(inputs: S, requests: impl Fn(&TestServer, S::Value) -> Vec<Request>) {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(TestServer::start());
    runtime.block_on(server.project("my-app"));
    note_secret(SECRET);
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&inputs, |input| {
        requests(&server, input).into_iter().try_for_each(|request| check_reply(&runtime.block_on(request.send())))
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

fn check_reply(reply: &Reply) -> Result<(), TestCaseError> {
    let (status, text) = (reply.status.as_u16(), &reply.text);
    let request_id = reply.headers.get("x-request-id").and_then(|id| id.to_str().ok());
    prop_assert!(request_id.is_some(), "no request id: {status} {text}");
    prop_assert!(status < 500, "{status} {text}");
    if reply.status.is_success() {
        return Ok(());
    }
    let mut body = reply.json.clone();
    let body_id = body.as_object_mut().and_then(|body| body.remove("request_id"));
    prop_assert_eq!(body_id, request_id.map(Value::from), "{} {}", status, text);
    prop_assert!(is_documented_error(status, &body), "{status} {text}");
    prop_assert!(!text.contains(SECRET), "an error repeats a secret: {text}");
    Ok(())
}

/// Returns whether an error body has the shape that its status requires.
fn is_documented_error(status: u16, body: &Value) -> bool {
    let has_text = |field: &str| body[field].as_str().is_some_and(|text| !text.is_empty());
    let has = |fields: &[&str]| body.as_object().is_some_and(|body| body.keys().eq(fields));
    let is_error = |code: &str| body["error"] == code && has_text("message");
    match status {
        400 => is_error("malformed_json") && has(&["error", "message"]),
        401 => *body == crate::harness::unauthorized(),
        403 => has_text("detail") && has(&["detail"]),
        404 => *body == json!({ "detail": "Not found" }) || *body == crate::harness::unknown_route(),
        409 => is_error("slug_taken") && has(&["error", "message"]),
        413 => is_error("body_too_large") && has(&["error", "message"]),
        422 => is_error("validation_failed") && body["field"].is_string() && has(&["error", "field", "message"]),
        _ => false,
    }
}

/// Generates values of headers from all bytes that HTTP allows.
fn header_value() -> impl Strategy<Value = Vec<u8>> {
    let byte =
        any::<u8>().prop_filter("no control character", |byte| (*byte >= 0x20 && *byte != 0x7f) || *byte == b'\t');
    vec(byte, 0..200)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => any::<String>(),
        1 => Just(SECRET.to_owned()),
        1 => "[a-z0-9-]{1,63}",
        1 => select(vec!["", ", expected ", "`, expected `", "missing field `", "unknown field `", "unknown field `, there are no fields"])
            .prop_map(|before| format!("{before}{SECRET}")),
        1 => Just(format!("x`, expected {SECRET}, there are no fields")),
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
        select(vec!["2027-01-31T12:00:00Z", "10.0.0.0/8", "read", "write"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(prop_oneof![text(), field()], inner, 0..6).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn field() -> impl Strategy<Value = String> {
    let names =
        ["name", "scopes", "expires_at", "allowed_cidrs", "budget", "metadata", "slug", "user_id", "ttl_seconds"];
    let of_releases = ["model_id", "endpoint_url", "commit_sha", "artifact_url", "activate", "version"];
    select([&names[..], &of_releases].concat()).prop_map(str::to_owned)
}

/// Generates a valid body with one to three changed fields.
fn nearly_valid_body() -> impl Strategy<Value = Value> {
    let valid = select(vec![
        json!({ "name": "ci", "scopes": ["read"] }),
        json!({ "name": "App", "slug": "app" }),
        json!({ "name": "ci" }),
        json!({ "user_id": "u", "ttl_seconds": 60 }),
        json!({ "commit_sha": "abcdef0", "artifact_url": "https://artifacts.example.com/app.zip" }),
        json!({ "version": 1 }),
        json!({}),
    ]);
    let changes = btree_map(prop_oneof![8 => field(), 1 => text()], json_value(), 1..4);
    (valid, changes).prop_map(|(mut body, changes)| {
        body.as_object_mut().unwrap().extend(changes);
        body
    })
}

/// Returns a request with this body to every route that takes one.
fn with_body(server: &TestServer, body: &[u8]) -> Vec<Request> {
    let key = server.runner.bootstrap.organization.id;
    [
        (Method::POST, "/v1/api_keys".to_owned()),
        // No key has the organization's id, but the body is checked first.
        (Method::PATCH, format!("/v1/api_keys/{key}")),
        (Method::POST, "/v1/agent_projects".to_owned()),
        (Method::PATCH, "/v1/agent_projects/my-app".to_owned()),
        (Method::POST, "/v1/agent_projects/my-app/deploys".to_owned()),
        (Method::POST, "/v1/agent_projects/my-app/rollback".to_owned()),
        (Method::POST, "/v1/agent_projects/my-app/session_tokens".to_owned()),
        (Method::POST, "/agent_projects/my-app/session_tokens".to_owned()),
    ]
    .map(|(method, path)| server.request(method, &path).raw_body(body.to_vec()))
    .into()
}

fn percent_encoded(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "%{byte:02X}").unwrap();
        text
    })
}

/// Generates parts of a path or query, raw or percent-encoded.
fn url_part() -> impl Strategy<Value = String> {
    prop_oneof![
        vec(any::<u8>(), 0..40).prop_map(|bytes| percent_encoded(&bytes)),
        "[A-Za-z0-9._~!$'()*+,;:@%-]{0,40}",
        any::<u64>().prop_map(|number| number.to_string()),
        "[a-z0-9-]{1,63}",
        Just(SECRET.to_owned()),
    ]
}

#[test]
fn any_authorization_header_gets_an_answer() {
    let credentials = prop_oneof![
        header_value(),
        header_value().prop_map(|value| [b"Bearer ".to_vec(), value].concat()),
        "[Bb]earer kt_live_[0-9A-Za-z]{32}".prop_map(String::into_bytes),
        "Bearer [0-9A-Za-z_-]{10,60}\\.[0-9A-Za-z_-]{10,200}\\.[0-9A-Za-z_-]{43}".prop_map(String::into_bytes),
        "Bearer eyJ[0-9A-Za-z_.=-]{0,200}".prop_map(String::into_bytes),
    ];
    check(credentials, |server, header| {
        ["/v1/whoami", "/v1/projects/my-app/whoami", "/v1/api_keys"]
            .map(|path| server.get(path).authorization(header.clone()))
            .into()
    });
}

#[test]
fn any_idempotency_key_gets_an_answer() {
    check(header_value(), |server, key| {
        let body = json!({ "name": "x", "scopes": ["read"] });
        vec![server.post("/v1/api_keys", body).header("idempotency-key", key)]
    });
}

#[test]
fn any_cursor_gets_an_answer() {
    let cursors = prop_oneof![url_part(), "[0-9A-Za-z_-]{32}", "[0-9A-Za-z_-]{0,64}"];
    check(cursors, |server, cursor| {
        ["api_keys", "agent_projects", "agent_projects/my-app/releases"]
            .map(|list| server.get(&format!("/v1/{list}?cursor={cursor}")))
            .into()
    });
}

#[test]
fn any_query_gets_an_answer() {
    let name = prop_oneof![url_part(), select(vec!["limit", "cursor", "status"]).prop_map(str::to_owned)];
    let pair = (name, url_part()).prop_map(|(name, value)| format!("{name}={value}"));
    let parameter = prop_oneof![8 => pair, 1 => url_part()];
    let query = vec(parameter, 0..4).prop_map(|parameters| parameters.join("&"));
    let doubled = prop_oneof![3 => query.clone(), 1 => query.prop_map(|query| format!("{query}&{query}"))];
    check(doubled, |server, query| {
        ["/v1/api_keys", "/v1/agent_projects", "/v1/whoami", "/v1/api_keys/1", "/healthz"]
            .map(|path| server.get(&format!("{path}?{query}")))
            .into()
    });
}

#[test]
fn any_id_in_a_path_gets_an_answer() {
    check(url_part(), |server, part| {
        vec![
            server.get(&format!("/v1/api_keys/{part}")),
            server.delete(&format!("/v1/api_keys/{part}")),
            server.patch(&format!("/v1/api_keys/{part}"), json!({ "name": "x" })),
            server.get(&format!("/v1/agent_projects/{part}")),
            server.get(&format!("/v1/agent_projects/{part}/releases")),
            server.get(&format!("/v1/agent_projects/my-app/releases/{part}/logs")),
            server.get(&format!("/v1/projects/{part}/whoami")),
            server.post(&format!("/v1/agent_projects/{part}/session_tokens"), json!({})),
            server.post(&format!("/agent_projects/{part}/session_tokens"), json!({})),
        ]
    });
}

#[test]
fn any_bytes_as_a_body_get_an_answer() {
    let bytes = prop_oneof![
        vec(any::<u8>(), 0..300),
        "[\\[\\]{}\",:0-9a-z\\\\ ]{0,80}".prop_map(String::into_bytes),
        (1_usize..2_000).prop_map(|depth| "[".repeat(depth).into_bytes()),
        (1_usize..2_000).prop_map(|depth| format!(r#"{{"name":{}"#, r#"{"a":"#.repeat(depth)).into_bytes()),
    ];
    check(bytes, |server, body| with_body(server, &body));
}

#[test]
fn any_json_as_a_body_gets_an_answer() {
    check(json_value(), |server, body| with_body(server, body.to_string().as_bytes()));
}

#[test]
fn any_value_in_any_field_gets_an_answer() {
    check(nearly_valid_body(), |server, body| with_body(server, body.to_string().as_bytes()));
}

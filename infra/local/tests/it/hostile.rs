//! Tests every field of every route with hostile values. The routes come from the template, and the
//! fields from the error message for an unknown field. New routes and fields need no change here.

use std::collections::BTreeSet;

use http::Method;
use karta_local::template::{TEMPLATE, Template};
use karta_shared::domain::secret_examples;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{Reply, Request, TestServer, note_secret};

/// Fields that accept any text, including secrets. None is stored unchanged.
const ANY_TEXT: [(&str, &str); 6] = [
    ("internal-keys-validate", "key"),
    ("internal-releases-status", "build_log"),
    ("model-keys-create", "key"),
    ("turns", "text"),
    ("webhook-endpoints-create", "url"),
    ("webhook-endpoints-update", "url"),
];
/// Names a resource, so any other text is a missing one.
const RESOURCE: (&str, &str) = ("sessions", "session_id");
/// Validates each event separately. `invalid_event_does_not_affect_the_others` tests it.
const BATCH: &str = "internal-usage-events-create";
/// Reads only bodies that Stripe has signed.
const SIGNED: &str = "stripe-events-create";

struct Target {
    name: String,
    method: Method,
    path: String,
}

impl Target {
    fn request(&self, server: &TestServer, body: String) -> Request {
        let request = if self.path.starts_with("/v1/internal/") {
            server.service(self.method.clone(), &self.path)
        } else {
            server.request(self.method.clone(), &self.path)
        };
        request.raw_body(body)
    }
}

/// Returns every route that reads a body. The body is validated before the path's resource is read,
/// so the resource need not exist.
fn targets() -> Vec<Target> {
    let template = Template::parse(TEMPLATE).unwrap();
    let functions = template.functions.iter().filter(|function| function.binary != SIGNED);
    let routes = functions.flat_map(|function| function.routes.iter().map(|route| (function.binary.clone(), route)));
    let reads = |method: &Method| [Method::POST, Method::PUT, Method::PATCH].contains(method);
    let variable = regex::Regex::new(r"\{[a-z_]+\}").unwrap();
    let target = |(name, route): (String, &karta_local::template::TemplateRoute)| Target {
        name,
        method: route.method.clone(),
        path: variable.replace_all(&route.path, "1").into_owned(),
    };
    routes.filter(|(_, route)| reads(&route.method)).map(target).collect()
}

/// Returns the known fields that the message for an unknown field lists.
fn listed(message: &str) -> Vec<String> {
    let Some((_, known)) = message.split_once("is not a field here: use ") else { return Vec::new() };
    let known = known.strip_prefix("one of ").unwrap_or(known).replace(" or ", ", ");
    known.split(", ").map(ToOwned::to_owned).collect()
}

/// Returns the fields of a target's body. Nested fields have a path with dots.
async fn fields(server: &TestServer, target: &Target) -> Vec<String> {
    let message = |body: Value| {
        let request = target.request(server, body.to_string());
        async move { request.send().await.refused(422)["message"].as_str().unwrap().to_owned() }
    };
    let mut fields = Vec::new();
    for field in listed(&message(json!({ "nonsense": 1 })).await) {
        let inner = listed(&message(json!({ field.clone(): { "nonsense": 1 } })).await);
        fields.extend(inner.into_iter().map(|inner| format!("{field}.{inner}")));
        fields.push(field);
    }
    fields
}

/// Returns a body with only this field.
fn body(field: &str, value: &str) -> String {
    field.rsplit('.').fold(value.to_owned(), |inner, name| format!(r#"{{"{name}":{inner}}}"#))
}

/// Returns JSON values that every field rejects.
fn unusable() -> Vec<String> {
    let deep = "[".repeat(200) + &"]".repeat(200);
    let plain = [
        r#"{"value":null}"#,
        "[[]]",
        "[{}]",
        "0.5",
        "-1",
        "1e400",
        "-1e400",
        "1e-400",
        "99999999999999999999",
        r#""\ud83d""#,
        r#""a\udc00b""#,
        r#"["\ud83d"]"#,
        r#"{"k":"\ud83d"}"#,
        r#"{"\ud83d":"v"}"#,
        r#"{"k":"v","k":"v"}"#,
        "[1e400]",
        r#"{"k":1e400}"#,
        &deep,
    ];
    plain.map(ToOwned::to_owned).into()
}

/// Returns texts that every field rejects, except those of [`ANY_TEXT`].
fn texts(secrets: &[String]) -> Vec<String> {
    let hidden = [
        "a\0b",
        "a\u{1b}[31mb",
        "a\u{202e}b",
        "a\u{200b}b",
        "a\u{feff}b",
        "\u{200d}a",
        "a\u{fe0f}b",
        "a\u{2800}",
        "a\u{ffff}b",
    ];
    let long = "a".repeat(60_000);
    let plain: Vec<&str> = hidden.into_iter().chain(secrets.iter().map(String::as_str)).collect();
    let nested =
        |text: &&str| [json!([text]), json!({ "k": text }), json!({ *text: "v" })].map(|value| value.to_string());
    let bare = plain.iter().copied().chain([&*long]).map(|text| json!(text).to_string());
    bare.chain(plain.iter().flat_map(nested)).collect()
}

fn contains_none(text: &str, secrets: &[String]) -> bool {
    secrets.iter().all(|secret| !text.contains(secret.as_str()))
}

fn assert_refused(reply: Reply, target: &str, field: &str, secrets: &[String], what: &str) {
    assert!(contains_none(&reply.text, secrets), "{what}: {}", reply.text);
    if (target, field) == RESOURCE && reply.status == 404 {
        return;
    }
    assert_eq!(reply.status, 422, "{what}: {}", reply.text);
    let named = reply.invalid_field();
    let below = named.strip_prefix(field);
    assert!(below.is_some_and(|below| below.is_empty() || below.starts_with(['.', '['])), "{what}: {named}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_values_are_refused_in_every_field() {
    let server = TestServer::start().await;
    let examples: Vec<String> = secret_examples().into_iter().filter(|secret| !secret.contains('\n')).collect();
    for secret in &examples {
        note_secret(secret);
    }
    let own = [server.admin.clone(), server.runner.secrets.service_token.expose_secret().to_owned()];
    let (mut tasks, mut seen_fields) = (JoinSet::new(), BTreeSet::new());
    for target in targets() {
        for (at, field) in fields(&server, &target).await.into_iter().enumerate() {
            seen_fields.insert(format!("{} {field}", target.name));
            if target.name == BATCH {
                continue;
            }
            // Each field gets four kinds of secrets. Together the fields cover many kinds.
            let mut secrets: Vec<String> =
                (0..4).map(|n| examples[(7 * at + 17 * n) % examples.len()].clone()).collect();
            secrets.extend(own.clone());
            let takes_text = ANY_TEXT.contains(&(target.name.as_str(), field.as_str()));
            let twice = format!(r#"{{"{0}":null,"{0}":null}}"#, field.rsplit('.').next().unwrap());
            let twice = field.rsplit_once('.').map_or(twice.clone(), |(outer, _)| body(outer, &twice));
            let mut bodies: Vec<String> = unusable().iter().map(|value| body(&field, value)).chain([twice]).collect();
            let with_text: Vec<String> = texts(&secrets).iter().map(|value| body(&field, value)).collect();
            let any_text = if takes_text {
                with_text
            } else {
                bodies.extend(with_text);
                Vec::new()
            };
            let huge = target.request(&server, body(&field, &json!("a".repeat(1_000_000)).to_string()));
            let refused: Vec<_> =
                bodies.into_iter().map(|body| (target.request(&server, body.clone()), body)).collect();
            let allowed: Vec<_> =
                any_text.into_iter().map(|body| target.request(&server, body)).chain([huge]).collect();
            let name = target.name.clone();
            tasks.spawn(async move {
                for (request, body) in refused {
                    assert_refused(request.send().await, &name, &field, &secrets, &format!("{name}: {body:.200}"));
                }
                for request in allowed {
                    let reply = request.send().await;
                    assert!(
                        reply.status.as_u16() < 500 && contains_none(&reply.text, &secrets),
                        "{name}: {}",
                        reply.text
                    );
                }
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for known in ["api-keys-create budget.cost_cents", "internal-organizations-create plan", &format!("{BATCH} events")]
    {
        assert!(seen_fields.contains(known), "{known} is not among {seen_fields:#?}");
    }
    let stored = Value::from(server.stored().await).to_string();
    assert!(contains_none(&stored, &examples) && contains_none(&stored, &own));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_event_does_not_affect_the_others() {
    let server = TestServer::start().await;
    let key = server.get("/v1/whoami").send().await.expect(200)["api_key_id"].clone();
    let now = server.runner.app.clock.now();
    let event = |id: &str| json!({ "api_key_id": key, "kind": "input_tokens", "quantity": 1, "model": "gpt-4o", "occurred_at": now, "client_event_id": id });
    let report = |events: String| {
        server.service(Method::POST, "/v1/internal/usage/events").raw_body(format!(r#"{{"events":[{events}]}}"#))
    };
    let unknown = report(r#"{"nonsense":1}"#.to_owned()).send().await.expect(202);
    let fields = listed(unknown["rejected"][0]["message"].as_str().unwrap());
    assert!(fields.contains(&"session_id".to_owned()) && fields.len() >= 10, "{fields:?}");
    let secrets: Vec<String> =
        secret_examples().into_iter().chain([server.runner.secrets.service_token.expose_secret().to_owned()]).collect();
    let values: Vec<String> = unusable().into_iter().chain(texts(&secrets)).collect();
    for field in &fields {
        let bad: Vec<String> = values
            .iter()
            .map(|value| {
                // The bad field comes first, so that no other field is rejected before it. If the
                // event has the field too, it occurs twice.
                let rest = event(&format!("bad {field}")).to_string();
                format!(r#"{{"{field}":{value},{}"#, &rest[1..])
            })
            .collect();
        let single: Vec<String> = values.iter().map(|value| body(field, value)).collect();
        for bad in [bad, single] {
            for (number, chunk) in bad.chunks(100).enumerate() {
                let good = event(&format!("good {field} {number} {}", chunk.len())).to_string();
                let reply = report(chunk.iter().chain([&good]).cloned().collect::<Vec<_>>().join(",")).send().await;
                assert!(contains_none(&reply.text, &secrets), "{}", reply.text);
                let answer = reply.expect(202);
                let rejected = answer["rejected"].as_array().unwrap();
                let places: Vec<_> = rejected.iter().map(|event| event["index"].as_u64().unwrap()).collect();
                assert_eq!(places, (0..chunk.len() as u64).collect::<Vec<_>>(), "{field}: {answer}");
                for (event, sent) in rejected.iter().zip(chunk) {
                    let message = event["message"].as_str().unwrap();
                    assert!(message.starts_with(field), "{message}: {sent:.200}");
                }
            }
        }
    }
    let stored = Value::from(server.stored().await).to_string();
    assert!(contains_none(&stored, &secrets));
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_in_a_text_field_is_not_stored() {
    let server = TestServer::start().await;
    let (_, token) = server.key(&["read"]).await;
    let before = server.stored().await.len();
    for (path, body, field) in [
        ("/v1/api_keys", json!({ "name": token, "scopes": ["read"] }), "name"),
        ("/v1/api_keys", json!({ "name": format!("key {token}!"), "scopes": ["read"] }), "name"),
        ("/v1/api_keys", json!({ "name": "x", "scopes": ["read"], "metadata": { "key": token } }), "metadata.key"),
        (
            "/v1/api_keys",
            json!({ "name": "x", "scopes": ["read"], "metadata": { token.clone(): "" } }),
            "metadata.[redacted]",
        ),
        ("/v1/agent_projects", json!({ "slug": "site", "name": token }), "name"),
        (
            "/v1/webhook_endpoints",
            json!({ "url": format!("https://example.com/{token}"), "event_types": ["*"] }),
            "url",
        ),
        (
            "/v1/webhook_endpoints",
            json!({ "url": format!("https://example.com/?k={token}"), "event_types": ["*"] }),
            "url",
        ),
        (
            "/v1/webhook_endpoints",
            json!({ "url": "https://example.com/", "event_types": ["*"], "description": token }),
            "description",
        ),
    ] {
        let reply = server.post(path, body).send().await;
        assert!(!reply.text.contains(&token), "{}", reply.text);
        assert_eq!(reply.invalid_field(), field);
    }
    let stored = server.stored().await;
    assert_eq!(stored.len(), before);
    assert!(!Value::from(stored).to_string().contains(&token[14..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn encoded_body_returns_415_on_every_route() {
    let server = TestServer::start().await;
    for target in targets() {
        for encoding in ["gzip", "br", "identity, gzip"] {
            let request = target.request(&server, "\u{1f}\u{8b}".to_owned()).header("content-encoding", encoding);
            let refusal = request.send().await.refused(415);
            assert_eq!(refusal["error"], "unsupported_encoding", "{}", target.path);
        }
        for encoding in ["identity", "identity, Identity", ""] {
            let plain = target.request(&server, r#"{"nonsense":1}"#.to_owned()).header("content-encoding", encoding);
            assert_eq!(plain.send().await.invalid_field(), "nonsense", "{}", target.path);
        }
        let empty = target.request(&server, String::new()).header("content-encoding", "gzip").send().await;
        assert_ne!(empty.status, 415, "{}: there is no encoded body", target.path);
        let anonymous =
            target.request(&server, "x".to_owned()).header("content-encoding", "gzip").anonymous().send().await;
        assert_eq!(anonymous.status, 401, "{}", target.path);
    }
}

#[test]
fn openapi_enumerations_are_strings() {
    fn check(schema: &Value, found: &mut usize) {
        match schema {
            Value::Object(fields) => {
                if fields.get("enum").is_some_and(Value::is_array) {
                    let types = fields.get("type").map(ToString::to_string).unwrap_or_default();
                    assert!(types.contains("\"string\""), "{schema}");
                    assert!(!types.contains("\"object\""), "{schema}");
                    *found += 1;
                }
                fields.values().for_each(|field| check(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| check(item, found)),
            _ => {}
        }
    }
    let document = include_str!("../../../../openapi.json");
    let mut found = 0;
    check(&serde_json::from_str(document).unwrap(), &mut found);
    assert!(found >= 8, "{found} enumerations");
}

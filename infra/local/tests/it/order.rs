//! The order of the checks: credential, scope, query and body, budget, then the resource. An
//! idempotency key is checked before conflicts.

use http::Method;
use karta_local::openapi;
use serde_json::{Value, json};

use crate::harness::{Request, TestServer};

/// A route that requires a credential: method, path to a missing resource, and required scope.
type Route = (Method, &'static str, Option<&'static str>);

static FLAT: [Route; 44] = [
    (Method::GET, "/v1/api_keys", Some("read")),
    (Method::POST, "/v1/api_keys", Some("admin")),
    (Method::GET, "/v1/api_keys/1", Some("read")),
    (Method::PATCH, "/v1/api_keys/1", Some("admin")),
    (Method::DELETE, "/v1/api_keys/1", Some("admin")),
    (Method::POST, "/v1/api_keys/1/rotate", Some("admin")),
    (Method::GET, "/v1/agent_projects", Some("read")),
    (Method::POST, "/v1/agent_projects", Some("write")),
    (Method::GET, "/v1/agent_projects/nothing", Some("read")),
    (Method::PATCH, "/v1/agent_projects/nothing", Some("admin")),
    (Method::GET, "/v1/agent_projects/nothing/releases", Some("read")),
    (Method::POST, "/v1/agent_projects/nothing/deploys", Some("write")),
    (Method::POST, "/v1/agent_projects/nothing/rollback", Some("admin")),
    (Method::GET, "/v1/agent_projects/nothing/releases/1/logs", Some("read")),
    (Method::POST, "/v1/agent_projects/nothing/session_tokens", Some("write")),
    (Method::POST, "/agent_projects/nothing/session_tokens", Some("write")),
    (Method::GET, "/v1/audit_events", Some("admin")),
    (Method::GET, "/v1/budget", Some("read")),
    (Method::PUT, "/v1/budget", Some("admin")),
    (Method::GET, "/v1/usage", Some("read")),
    (Method::GET, "/v1/usage/keys", Some("read")),
    (Method::GET, "/v1/model_keys", Some("read")),
    (Method::POST, "/v1/model_keys", Some("admin")),
    (Method::DELETE, "/v1/model_keys/1", Some("admin")),
    (Method::GET, "/v1/webhook_endpoints", Some("read")),
    (Method::POST, "/v1/webhook_endpoints", Some("admin")),
    (Method::GET, "/v1/webhook_endpoints/1", Some("read")),
    (Method::PATCH, "/v1/webhook_endpoints/1", Some("admin")),
    (Method::DELETE, "/v1/webhook_endpoints/1", Some("admin")),
    (Method::POST, "/v1/webhook_endpoints/1/rotate_secret", Some("admin")),
    (Method::POST, "/v1/webhook_endpoints/1/test", Some("admin")),
    (Method::POST, "/v1/webhook_endpoints/1/recover", Some("admin")),
    (Method::GET, "/v1/webhook_endpoints/1/deliveries", Some("read")),
    (Method::POST, "/v1/webhook_endpoints/1/deliveries/1/replay", Some("admin")),
    (Method::GET, "/v1/billing", Some("read")),
    (Method::GET, "/v1/sessions", Some("read")),
    (Method::POST, "/v1/sessions", Some("write")),
    (Method::GET, "/v1/sessions/1", Some("read")),
    (Method::DELETE, "/v1/sessions/1", Some("write")),
    (Method::GET, "/v1/sessions/1/messages", Some("read")),
    (Method::POST, "/v1/sessions/1/messages", Some("write")),
    (Method::GET, "/v1/sessions/1/stream", Some("read")),
    (Method::POST, "/v1/sessions/1/cancel", Some("write")),
    (Method::GET, "/v1/whoami", None),
];
/// Routes that also accept session tokens. The scope is that of API keys.
static IN_PROJECT: [Route; 9] = [
    (Method::GET, "/v1/projects/nothing/whoami", None),
    (Method::GET, "/v1/projects/nothing/sessions", Some("read")),
    (Method::POST, "/v1/projects/nothing/sessions", Some("write")),
    (Method::GET, "/v1/projects/nothing/sessions/1", Some("read")),
    (Method::DELETE, "/v1/projects/nothing/sessions/1", Some("write")),
    (Method::GET, "/v1/projects/nothing/sessions/1/messages", Some("read")),
    (Method::POST, "/v1/projects/nothing/sessions/1/messages", Some("write")),
    (Method::GET, "/v1/projects/nothing/sessions/1/stream", Some("read")),
    (Method::POST, "/v1/projects/nothing/sessions/1/cancel", Some("write")),
];

const BAD_BODIES: [&str; 3] = ["{", "[]", r#"{"nonsense":1}"#];
const BAD_QUERY: &str = "?nonsense=1";

/// Returns a body that is larger than the route's limit.
fn too_large(path: &str) -> String {
    " ".repeat(if path.ends_with("/messages") { (4 << 20) + 1 } else { 65_537 })
}

/// Returns requests whose body, query and idempotency key are all invalid.
fn invalid_requests(server: &TestServer, (method, path, _): &Route) -> Vec<Request> {
    let bodies = BAD_BODIES.map(ToOwned::to_owned).into_iter().chain([too_large(path)]);
    let request =
        |body| server.request(method.clone(), &format!("{path}{BAD_QUERY}")).raw_body(body).idempotency_key("");
    bodies.map(request).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_is_checked_first() {
    let server = TestServer::start().await;
    let well_shaped = "Bearer kt_live_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let forged = format!("Bearer eyJhbGciOiJub25lIn0.eyJzY29wZSI6InNlc3Npb24ifQ.{}", "A".repeat(43));
    let no_bearer = server.admin.clone();
    let basic = format!("Basic {}", server.admin);
    for route in FLAT.iter().chain(&IN_PROJECT) {
        for header in [None, Some(""), Some("Bearer"), Some(well_shaped), Some(&forged), Some(&no_bearer), Some(&basic)]
        {
            for request in invalid_requests(&server, route) {
                let request = match header {
                    None => request.anonymous(),
                    Some(header) => request.authorization(header),
                };
                let refusal = request.send().await.refused(401);
                assert_eq!(refusal, crate::harness::unauthorized(), "{route:?} with {header:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_scope_is_reported_before_invalid_body() {
    let server = TestServer::start().await;
    for (held, lacking) in [
        (&["read", "write"][..], "admin"),
        (&["read", "admin"], "write"),
        (&["write", "admin"], "read"),
        (&[], "admin"),
        (&[], "write"),
        (&[], "read"),
    ] {
        let (_, token) = server.key_with(json!({ "name": "held", "scopes": held })).await;
        for route in FLAT.iter().chain(&IN_PROJECT).filter(|route| route.2 == Some(lacking)) {
            for request in invalid_requests(&server, route) {
                let detail = request.bearer(&token).send().await.forbidden();
                assert_eq!(detail, format!("missing scope: {lacking}"), "{route:?}");
            }
        }
    }
}

/// Keys without scopes are for customers.
#[tokio::test(flavor = "multi_thread")]
async fn key_without_scopes_opens_only_whoami() {
    let server = TestServer::start().await;
    server.project("site").await;
    let (id, created) = server.key_with(json!({ "name": "globex", "scopes": [] })).await;
    let (patched_id, patched) = server.key(&["read", "write", "admin"]).await;
    let answer = server.patch(&format!("/v1/api_keys/{patched_id}"), json!({ "scopes": [] })).send().await.expect(200);
    assert_eq!(answer["api_key"]["scopes"], json!([]));
    let rotation = server.post(&format!("/v1/api_keys/{id}/rotate"), json!({})).send().await.expect(201);
    assert_eq!(rotation["api_key"]["scopes"], json!([]));
    let successor = rotation["secret"].as_str().unwrap().to_owned();
    let rescue = format!("/v1/internal/organizations/{}/api_keys", server.organization_id);
    let rescue = server.service(Method::POST, &rescue).body(json!({ "name": "rescue", "scopes": [] })).send().await;
    let internal = rescue.expect(201)["secret"].as_str().unwrap().to_owned();
    for token in [created, patched, successor, internal] {
        for (method, path, needed) in &FLAT {
            let reply = server.request(method.clone(), path).body(json!({})).bearer(&token).send().await;
            match needed {
                Some(scope) => assert_eq!(reply.forbidden(), format!("missing scope: {scope}"), "{method} {path}"),
                None => assert_eq!(reply.expect(200)["scopes"], json!([]), "{method} {path}"),
            }
        }
        let whoami = server.get("/v1/projects/site/whoami").bearer(&token).send().await.expect(200);
        assert_eq!(whoami["scopes"], json!([]));
        let verdict = server.service(Method::POST, "/v1/internal/keys/validate").body(json!({ "key": token }));
        let verdict = verdict.send().await.expect(200);
        assert_eq!((&verdict["valid"], &verdict["scopes"]), (&json!(true), &json!([])));
    }
    let list = server.get("/v1/api_keys").send().await.expect(200);
    let without = list["api_keys"].as_array().unwrap().iter().filter(|key| key["scopes"] == json!([]));
    assert_eq!(without.count(), 4);
}

#[test]
fn table_holds_every_route_with_its_scope() {
    let document = openapi::document().unwrap();
    let mut documented = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let Some(security) = operation["security"].as_array().unwrap().first() else { continue };
            let path =
                ["{id}", "{delivery_id}", "{version}"].iter().fold(path.clone(), |path, id| path.replace(id, "1"));
            let scope = security["api_key"][0].as_str().map(ToOwned::to_owned);
            let path = path.replace("{slug}", "nothing").replace("{ref}", "nothing");
            documented.push((method.to_ascii_uppercase(), path, scope));
        }
    }
    let mut table: Vec<_> = FLAT
        .iter()
        .chain(&IN_PROJECT)
        .map(|(method, path, scope)| (method.to_string(), (*path).to_owned(), scope.map(ToOwned::to_owned)))
        .collect();
    documented.sort();
    table.sort();
    assert_eq!(table, documented);
}

#[tokio::test(flavor = "multi_thread")]
async fn session_token_project_is_checked_before_body() {
    let server = TestServer::start().await;
    server.project("site").await;
    let token = server.session_token("site", json!({})).await;
    for route in &FLAT {
        for request in invalid_requests(&server, route) {
            let detail = request.bearer(&token).send().await.forbidden();
            assert_eq!(detail, "session tokens are valid only under /v1/projects/{ref}/", "{route:?}");
        }
    }
    for route in &IN_PROJECT {
        for request in invalid_requests(&server, route) {
            let detail = request.bearer(&token).send().await.forbidden();
            assert_eq!(detail, "wrong project: the session token is for another project", "{route:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scope_opens_only_the_routes_requiring_it() {
    let server = TestServer::start().await;
    for held in ["read", "write", "admin"] {
        let (_, token) = server.key(&[held]).await;
        for route in FLAT.iter().chain(&IN_PROJECT) {
            let (method, path, needed) = route;
            let reply = server.request(method.clone(), path).raw_body("{").bearer(&token).send().await;
            let is_allowed = needed.is_none_or(|scope| scope == held);
            assert_eq!(reply.status != 403, is_allowed, "{route:?} with {held}: {}", reply.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_body_is_reported_before_unknown_resource() {
    let server = TestServer::start().await;
    for (method, path, valid) in [
        (Method::PATCH, "/v1/api_keys/1", "{}"),
        (Method::PATCH, "/v1/api_keys/not-an-id", "{}"),
        (Method::PATCH, "/v1/agent_projects/nothing", "{}"),
        (Method::PATCH, "/v1/agent_projects/Not_A_Slug", "{}"),
        (Method::POST, "/v1/agent_projects/nothing/deploys", r#"{"commit_sha":"abcdef0"}"#),
        (Method::POST, "/v1/agent_projects/nothing/rollback", r#"{"version":1}"#),
        (Method::PATCH, "/v1/webhook_endpoints/1", "{}"),
        (Method::PATCH, "/v1/webhook_endpoints/not-an-id", "{}"),
        (Method::POST, "/v1/webhook_endpoints/1/rotate_secret", "{}"),
        (Method::POST, "/v1/webhook_endpoints/1/test", "{}"),
        (Method::POST, "/v1/webhook_endpoints/1/deliveries/1/replay", "{}"),
        (Method::POST, "/v1/agent_projects/nothing/session_tokens", "{}"),
        (Method::POST, "/agent_projects/Not_A_Slug/session_tokens", "{}"),
        (Method::POST, "/v1/projects/nothing/sessions", "{}"),
        (Method::POST, "/v1/sessions/1/messages", r#"{"text":"Hello"}"#),
        (Method::POST, "/v1/projects/Not_A_Slug/sessions/1/messages", r#"{"text":"Hello"}"#),
        (Method::POST, "/v1/sessions/1/cancel", "{}"),
        (Method::POST, "/v1/projects/nothing/sessions/1/cancel", "{}"),
    ] {
        let send = |body: String| server.request(method.clone(), path).raw_body(body).send();
        assert_eq!(send("{".to_owned()).await.refused(400)["error"], "malformed_json", "{path}");
        assert_eq!(send(too_large(path)).await.refused(413)["error"], "body_too_large", "{path}");
        assert_eq!(send("[]".to_owned()).await.invalid_field(), "body", "{path}");
        assert_eq!(send(r#"{"nonsense":1}"#.to_owned()).await.invalid_field(), "nonsense", "{path}");
        assert_eq!(send(valid.to_owned()).await.refused(404), json!({ "detail": "Not found" }), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_query_is_reported_before_unknown_resource() {
    let server = TestServer::start().await;
    for (method, path, _) in FLAT.iter().chain(&IN_PROJECT) {
        let request = server.request(method.clone(), &format!("{path}{BAD_QUERY}")).raw_body("{}");
        assert_eq!(request.send().await.invalid_field(), "nonsense", "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_mismatch_is_reported_before_conflict() {
    let server = TestServer::start().await;
    let post = |body: Value| server.post("/v1/agent_projects", body).idempotency_key("once").send();
    post(json!({ "slug": "site", "name": "Site" })).await.expect(201);
    let refusal = post(json!({ "slug": "site", "name": "Other" })).await.refused(422);
    assert_eq!(refusal["error"], "idempotency_mismatch");
    let deploy = |slug: &str, sha: &str| {
        let path = format!("/v1/agent_projects/{slug}/deploys");
        server.post(&path, json!({ "commit_sha": sha })).idempotency_key("once").send()
    };
    deploy("site", "abcdef0").await.expect(201);
    assert_eq!(deploy("site", "abcdef1").await.refused(422)["error"], "idempotency_mismatch");
    deploy("nothing", "abcdef0").await.refused(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn budget_is_checked_after_body_before_resource() {
    let server = TestServer::start().await;
    server.set_subscription("past_due").await;
    let mint = |body: Value| server.post("/v1/agent_projects/nothing/session_tokens", body).send();
    assert_eq!(mint(json!({ "ttl_seconds": 1 })).await.invalid_field(), "ttl_seconds");
    let refusal = mint(json!({})).await.refused(402);
    let exhausted = json!({
        "error": "budget_exhausted", "reason": "subscription past_due", "cap": null, "of": "organization",
        "resets_at": null,
    });
    assert_eq!(refusal, exhausted);
    let (_, reader) = server.key(&["read"]).await;
    let refusal = server.post("/v1/agent_projects/nothing/session_tokens", json!({})).bearer(&reader).send().await;
    assert_eq!(refusal.forbidden(), "missing scope: write");
}

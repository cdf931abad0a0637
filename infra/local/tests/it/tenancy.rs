//! Tenant isolation: an organization cannot read or change another's resources, and it cannot learn
//! whether they exist.

use std::{collections::BTreeSet, sync::Arc};

use http::Method;
use karta_shared::worker::{Wake, Worker};
use serde_json::{Value, json};
use worker_webhook_events::{Waker, WebhookEvents};

use crate::{
    harness::{Reply, Request, TestServer},
    model_keys::provider_key,
};

/// A request to one resource, by its id or slug.
struct Route {
    method: Method,
    path: &'static str,
    scope: Option<&'static str>,
    body: Option<&'static str>,
}

const fn route(method: Method, path: &'static str, scope: Option<&'static str>, body: Option<&'static str>) -> Route {
    Route { method, path, scope, body }
}

static BY_ID: [Route; 5] = [
    route(Method::GET, "/v1/api_keys/{}", Some("read"), None),
    route(Method::PATCH, "/v1/api_keys/{}", Some("admin"), Some(r#"{"name":"ours now"}"#)),
    route(Method::PATCH, "/v1/api_keys/{}", Some("admin"), Some(r#"{"scopes":["root"]}"#)),
    route(Method::DELETE, "/v1/api_keys/{}", Some("admin"), None),
    route(Method::POST, "/v1/api_keys/{}/rotate", Some("admin"), Some(r#"{"grace_seconds":0}"#)),
];

static BY_MODEL_KEY: [Route; 1] = [route(Method::DELETE, "/v1/model_keys/{}", Some("admin"), None)];

static BY_WEBHOOK_ENDPOINT: [Route; 9] = [
    route(Method::GET, "/v1/webhook_endpoints/{}", Some("read"), None),
    route(Method::PATCH, "/v1/webhook_endpoints/{}", Some("admin"), Some(r#"{"enabled":false}"#)),
    route(Method::PATCH, "/v1/webhook_endpoints/{}", Some("admin"), Some(r#"{"event_types":[]}"#)),
    route(Method::DELETE, "/v1/webhook_endpoints/{}", Some("admin"), None),
    route(Method::POST, "/v1/webhook_endpoints/{}/rotate_secret", Some("admin"), Some(r#"{"grace_seconds":0}"#)),
    route(Method::POST, "/v1/webhook_endpoints/{}/test", Some("admin"), None),
    route(Method::GET, "/v1/webhook_endpoints/{}/deliveries", Some("read"), None),
    route(Method::GET, "/v1/webhook_endpoints/{}/deliveries?status=sent", Some("read"), None),
    route(Method::POST, "/v1/webhook_endpoints/{}/recover", Some("admin"), Some(r#"{"since":"2020-01-01T00:00:00Z"}"#)),
];

static BY_DELIVERY: [Route; 1] = [route(Method::POST, "/v1/webhook_endpoints/{}/replay", Some("admin"), None)];

static BY_SESSION: [Route; 6] = [
    route(Method::GET, "/v1/{}", Some("read"), None),
    route(Method::DELETE, "/v1/{}", Some("write"), None),
    route(Method::GET, "/v1/{}/messages", Some("read"), None),
    route(Method::POST, "/v1/{}/messages", Some("write"), Some(r#"{"text":"Hello"}"#)),
    route(Method::GET, "/v1/{}/stream", Some("read"), None),
    route(Method::POST, "/v1/{}/cancel", Some("write"), None),
];

static BY_SLUG: [Route; 14] = [
    route(Method::GET, "/v1/agent_projects/{}", Some("read"), None),
    route(Method::PATCH, "/v1/agent_projects/{}", Some("admin"), Some(r#"{"name":"ours now","model_id":"m"}"#)),
    route(Method::PATCH, "/v1/agent_projects/{}", Some("admin"), Some(r#"{"endpoint_url":"http://x"}"#)),
    route(Method::GET, "/v1/agent_projects/{}/releases", Some("read"), None),
    route(Method::POST, "/v1/agent_projects/{}/deploys", Some("write"), Some(r#"{"commit_sha":"abcdef1"}"#)),
    route(Method::POST, "/v1/agent_projects/{}/deploys", Some("write"), Some(r#"{"commit_sha":"x"}"#)),
    route(Method::POST, "/v1/agent_projects/{}/rollback", Some("admin"), Some(r#"{"version":1}"#)),
    route(Method::GET, "/v1/agent_projects/{}/releases/1/logs", Some("read"), None),
    route(Method::POST, "/v1/agent_projects/{}/session_tokens", Some("write"), Some(r#"{"user_id":"user-7"}"#)),
    route(Method::POST, "/agent_projects/{}/session_tokens", Some("write"), Some("{}")),
    route(Method::POST, "/v1/agent_projects/{}/session_tokens", Some("write"), Some(r#"{"ttl_seconds":1}"#)),
    route(Method::GET, "/v1/projects/{}/whoami", None, None),
    route(Method::GET, "/v1/projects/{}/sessions", Some("read"), None),
    route(Method::POST, "/v1/projects/{}/sessions", Some("write"), None),
];

impl Route {
    fn to(&self, server: &TestServer, resource: &str) -> Request {
        let request = server.request(self.method.clone(), &self.path.replace("{}", resource));
        match self.body {
            Some(body) => request.raw_body(body),
            None => request,
        }
    }
}

/// Returns what a client sees of a response, except the values that differ in every response.
fn seen(reply: Reply) -> (u16, Vec<(String, String)>, Value) {
    let headers = reply.headers.iter().filter(|(name, _)| !["x-request-id", "date"].contains(&name.as_str()));
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let status = reply.status.as_u16();
    (status, headers, reply.refused(status))
}

/// Two organizations: `acme`, and another with a key, a project, a provider key, a webhook endpoint
/// and sessions.
struct Neighbours {
    server: TestServer,
    their_admin: String,
    their_key: u64,
    their_model_key: u64,
    their_endpoint: u64,
    their_delivery: u64,
    their_session: String,
    their_project_session: String,
}

impl Neighbours {
    async fn start() -> Self {
        let server = TestServer::start().await;
        let (_, their_admin) = server.another_organization("other").await;
        let made = server.post("/v1/api_keys", json!({ "name": "theirs", "scopes": ["read"] })).bearer(&their_admin);
        let their_key = made.send().await.expect(201)["api_key"]["id"].as_u64().unwrap();
        let made =
            server.post("/v1/agent_projects", json!({ "slug": "theirs", "name": "Theirs" })).bearer(&their_admin);
        made.send().await.expect(201);
        for sha in ["abcdef0", "abcdef1"] {
            let deploy = server.post("/v1/agent_projects/theirs/deploys", json!({ "commit_sha": sha }));
            deploy.bearer(&their_admin).send().await.expect(201);
        }
        let body = json!({ "provider": "anthropic", "key": provider_key("sk-ant-") });
        let made = server.post("/v1/model_keys", body).bearer(&their_admin).send().await.expect(201);
        let their_model_key = made["model_key"]["id"].as_u64().unwrap();
        let body = json!({ "url": "https://hooks.example.com/", "event_types": ["*"] });
        let made = server.post("/v1/webhook_endpoints", body).bearer(&their_admin).send().await.expect(201);
        let their_endpoint = made["webhook_endpoint"]["id"].as_u64().unwrap();
        let ping = server.request(Method::POST, &format!("/v1/webhook_endpoints/{their_endpoint}/test"));
        let sent = ping.bearer(&their_admin).send().await.expect(202);
        let their_delivery = sent["delivery"]["id"].as_u64().unwrap();
        // No worker is woken, so the delivery stays pending.
        let events =
            WebhookEvents::new(server.runner.app.for_function(WebhookEvents::NAME), Waker::Local(Arc::new(|_, _| {})));
        events.work(&Wake::Sweep).await.unwrap();
        let session = async |path: &str| {
            let created = server.post(path, json!({})).bearer(&their_admin).send().await.expect(201);
            created["id"].as_str().unwrap().to_owned()
        };
        let their_session = session("/v1/sessions").await;
        let their_project_session = session("/v1/projects/theirs/sessions").await;
        Self {
            server,
            their_admin,
            their_key,
            their_model_key,
            their_endpoint,
            their_delivery,
            their_session,
            their_project_session,
        }
    }

    /// Returns the other organization's resources, as it sees them.
    async fn their_view(&self) -> [Value; 7] {
        let read = async |path: &str| self.server.get(path).bearer(&self.their_admin).send().await.expect(200);
        let releases = read("/v1/agent_projects/theirs/releases").await;
        let endpoint = format!("/v1/webhook_endpoints/{}", self.their_endpoint);
        [
            read("/v1/api_keys").await,
            read("/v1/agent_projects").await,
            read("/v1/model_keys").await,
            releases,
            read(&endpoint).await,
            read(&format!("{endpoint}/deliveries")).await,
            read("/v1/sessions").await,
        ]
    }

    /// Returns every route with two requests: to a resource of the other organization and to a
    /// missing resource.
    fn pairs(&self) -> Vec<(&'static Route, Request, Request)> {
        let (server, theirs, missing) = (&self.server, self.their_key.to_string(), (self.their_key ^ 1).to_string());
        let by_id = BY_ID.iter().map(|route| (route, route.to(server, &theirs), route.to(server, &missing)));
        let by_slug = BY_SLUG.iter().map(|route| (route, route.to(server, "theirs"), route.to(server, "missing")));
        let (model_key, missing) = (self.their_model_key.to_string(), (self.their_model_key ^ 1).to_string());
        let by_model_key =
            BY_MODEL_KEY.iter().map(|route| (route, route.to(server, &model_key), route.to(server, &missing)));
        let (endpoint, missing) = (self.their_endpoint.to_string(), (self.their_endpoint ^ 1).to_string());
        let by_endpoint =
            BY_WEBHOOK_ENDPOINT.iter().map(|route| (route, route.to(server, &endpoint), route.to(server, &missing)));
        let delivery = format!("{endpoint}/deliveries/{}", self.their_delivery);
        let missing = format!("{missing}/deliveries/{}", self.their_delivery ^ 1);
        let by_delivery =
            BY_DELIVERY.iter().map(|route| (route, route.to(server, &delivery), route.to(server, &missing)));
        let missing = format!("sess_{}", "0".repeat(32));
        let theirs = [
            (format!("sessions/{}", self.their_session), format!("sessions/{missing}")),
            (
                format!("projects/theirs/sessions/{}", self.their_project_session),
                format!("projects/missing/sessions/{missing}"),
            ),
        ];
        let by_session = theirs.into_iter().flat_map(|(theirs, missing)| {
            BY_SESSION.iter().map(move |route| (route, route.to(server, &theirs), route.to(server, &missing)))
        });
        by_id.chain(by_slug).chain(by_session).chain(by_model_key).chain(by_endpoint).chain(by_delivery).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_resource_answers_like_a_missing_one() {
    let neighbours = Neighbours::start().await;
    let server = &neighbours.server;
    let before = neighbours.their_view().await;
    let credentials = [
        ("read", server.key(&["read"]).await.1),
        ("write", server.key(&["write"]).await.1),
        ("admin", server.key(&["admin"]).await.1),
        ("every scope", server.admin.clone()),
    ];
    for (held, token) in credentials {
        for (route, to_theirs, to_missing) in neighbours.pairs() {
            let what = format!("{} {} with {held}", route.method, route.path);
            let theirs = seen(to_theirs.bearer(&token).send().await);
            assert_eq!(theirs, seen(to_missing.bearer(&token).send().await), "{what}");
            let suffices = held == "every scope" || route.scope.is_none_or(|scope| scope == held);
            let (status, _, body) = theirs;
            match status {
                422 => assert!(suffices && body["error"] == "validation_failed", "{what}: {body}"),
                404 => assert!(suffices && body == json!({ "detail": "Not found" }), "{what}: {body}"),
                _ => assert_eq!((status, suffices), (403, false), "{what}: {body}"),
            }
        }
    }
    assert_eq!(neighbours.their_view().await, before, "the other organization's resources are unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn session_token_gets_same_refusal_for_foreign_resources() {
    let neighbours = Neighbours::start().await;
    let server = &neighbours.server;
    server.project("site").await;
    let token = server.session_token("site", json!({})).await;
    for (route, to_theirs, to_missing) in neighbours.pairs() {
        let theirs = seen(to_theirs.bearer(&token).send().await);
        assert_eq!(theirs.0, 403, "{} {}", route.method, route.path);
        assert_eq!(theirs, seen(to_missing.bearer(&token).send().await), "{} {}", route.method, route.path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_contain_only_own_resources() {
    let neighbours = Neighbours::start().await;
    let server = &neighbours.server;
    server.project("site").await;
    let read = async |path| server.get(path).send().await.expect(200);
    let ours = [read("/v1/api_keys").await, read("/v1/agent_projects").await, read("/v1/model_keys").await];
    let counts = |[keys, projects, model_keys]: [&Value; 3]| {
        let lists = [&keys["api_keys"], &projects["agent_projects"], &model_keys["model_keys"]];
        lists.map(|list| list.as_array().unwrap().len())
    };
    assert_eq!(counts([&ours[0], &ours[1], &ours[2]]), [1, 1, 0]);
    let theirs = neighbours.their_view().await;
    assert_eq!(counts([&theirs[0], &theirs[1], &theirs[2]]), [2, 1, 1]);
    for mine in ours[0]["api_keys"].as_array().unwrap() {
        assert!(!theirs[0]["api_keys"].as_array().unwrap().contains(mine));
    }
    assert_ne!(ours[1], theirs[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_appear_only_in_own_audit_log() {
    let neighbours = Neighbours::start().await;
    let server = &neighbours.server;
    let before = server.audit_events().await;
    let path = format!("/v1/api_keys/{}", neighbours.their_key);
    server.delete(&path).send().await.refused(404);
    server.delete(&path).bearer(&neighbours.their_admin).send().await.expect(200);
    assert_eq!(server.audit_events().await, before);
    let shown = async |token: &str| {
        let list = server.get("/v1/audit_events").bearer(token).send().await.expect(200);
        let ids = list["audit_events"].as_array().unwrap().iter().map(|event| event["id"].as_u64().unwrap());
        ids.collect::<BTreeSet<_>>()
    };
    let (ours, theirs) = (shown(&server.admin).await, shown(&neighbours.their_admin).await);
    assert_eq!((ours.len(), theirs.len()), (2, 12));
    assert!(ours.is_disjoint(&theirs));
}

//! The internal plane, over HTTP as a data plane on this machine sees it, and behind a gateway whose clients the test places.

mod active_release;
mod api_keys_create;
mod guard;
pub(crate) mod keys_validate;
mod model_keys_active;
mod model_settings;
mod organizations_create;
mod organizations_update;
mod releases_status;

use std::net::SocketAddr;

use axum::body::Body;
use http::Method;
use karta_local::{
    gateway::Gateway,
    template::{TEMPLATE, Template},
};
use karta_shared::{
    App,
    config::{self, Config, Secret, SecretSource},
    domain::InternalGuard,
    store::table::Tables,
};
use serde_json::{Value, json};

use crate::harness::{Reply, TestServer, note_secret};

/// Every internal route: method, path to nothing that exists, and the power it takes.
static ROUTES: [(Method, &str, Option<&str>); 10] = [
    (Method::GET, "/v1/internal/whoami", None),
    (Method::POST, "/v1/internal/organizations", Some("provision")),
    (Method::GET, "/v1/internal/organizations/1", Some("provision")),
    (Method::PATCH, "/v1/internal/organizations/1", Some("provision")),
    (Method::POST, "/v1/internal/organizations/1/api_keys", Some("provision")),
    (Method::POST, "/v1/internal/keys/validate", Some("validate")),
    (Method::POST, "/v1/internal/releases/1/status", Some("releases")),
    (Method::GET, "/v1/internal/projects/nothing/active_release", Some("releases")),
    (Method::GET, "/v1/internal/model_settings", Some("releases")),
    (Method::GET, "/v1/internal/model_keys/active?organization_id=1&provider=openai", Some("byok")),
];

fn guard(addresses: &str, hosts: &str) -> InternalGuard {
    InternalGuard { addresses: Some(addresses.parse().unwrap()), hosts: Some(hosts.parse().unwrap()) }
}

fn token(letter: &str) -> String {
    let token = format!("karta_service_{}", letter.repeat(32));
    note_secret(&token);
    token
}

/// The functions as a deployed stack runs them: lists that are set, tokens with powers of their own.
pub(crate) struct Plane {
    gateway: Gateway,
}

impl Plane {
    /// Over the data of `server`; `tokens` is the secret's JSON.
    async fn over(server: &TestServer, internal: InternalGuard, tokens: &Value) -> Self {
        let SecretSource::Fixed(mut texts) = server.runner.secrets.source() else { panic!("a local run's secrets") };
        texts.insert(Secret::ServiceTokens, tokens.to_string().into());
        let tables = Tables::local();
        let mut config = Config::local(tables, Some(4)).unwrap();
        config.internal = internal;
        let emulator = &server.runner.emulator;
        let sdk = config::local_sdk(&emulator.endpoint(), emulator.access_key()).await;
        let App { clock, entropy, witness, .. } = server.runner.app.clone();
        let mut app = App::new(config, &sdk, SecretSource::Fixed(texts), clock, entropy);
        app.witness = witness;
        Self::new(&app)
    }

    pub(crate) fn new(app: &App) -> Self {
        Self { gateway: Gateway::new(app, &Template::parse(TEMPLATE).unwrap()).unwrap() }
    }

    /// Answers a client at an address that asked for a host.
    pub(crate) async fn send(
        &self,
        address: &str,
        host: &str,
        request: http::request::Builder,
        body: impl Into<Body>,
    ) -> Reply {
        let peer = SocketAddr::new(address.parse().unwrap(), 50_000);
        let request = request.header("host", host).body(body.into()).unwrap();
        let (parts, body) = self.gateway.answer(peer, request).await.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        json["secret"].as_str().into_iter().for_each(note_secret);
        Reply { status: parts.status, headers: parts.headers, json, text }
    }
}

/// The request of a route, with a token unless there is none.
pub(crate) fn request(method: &Method, path: &str, token: Option<&str>) -> http::request::Builder {
    let request = http::Request::builder().method(method).uri(path);
    match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    }
}

/// Bodies that are wrong in every way, and one that is right for nothing.
fn bodies() -> [String; 4] {
    ["{".to_owned(), "[]".to_owned(), json!({ "nonsense": 1 }).to_string(), " ".repeat(65_537)]
}

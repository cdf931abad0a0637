//! The internal routes, tested over HTTP from this machine and through a gateway with any client
//! address.

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

/// Every internal route: method, path to a missing resource, and required power.
static ROUTES: [(Method, &str, Option<&str>); 11] = [
    (Method::GET, "/v1/internal/whoami", None),
    (Method::POST, "/v1/internal/organizations", Some("provision")),
    (Method::GET, "/v1/internal/organizations/1", Some("provision")),
    (Method::PATCH, "/v1/internal/organizations/1", Some("provision")),
    (Method::POST, "/v1/internal/organizations/1/api_keys", Some("provision")),
    (Method::POST, "/v1/internal/keys/validate", Some("validate")),
    (Method::POST, "/v1/internal/usage/events", Some("usage")),
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

/// The functions as in a deployed stack, with configured allowlists and tokens.
pub(crate) struct Plane {
    gateway: Gateway,
}

impl Plane {
    /// Returns a plane over the data of `server`. `tokens` is the JSON of the secret with the
    /// service tokens.
    async fn over(server: &TestServer, internal: InternalGuard, tokens: &Value) -> Self {
        let SecretSource::Fixed(mut texts) = server.runner.secrets.source() else { panic!("a local run's secrets") };
        texts.insert(Secret::ServiceTokens, tokens.to_string().into());
        let tables = Tables::local();
        let mut config = Config::local(tables, Some(4)).unwrap();
        config.internal = internal;
        let emulator = &server.runner.emulator;
        let sdk = config::local_sdk(&emulator.endpoint(), emulator.access_key()).await;
        let App { clock, entropy, call_observer, .. } = server.runner.app.clone();
        let mut app = App::new(config, &sdk, SecretSource::Fixed(texts), clock, entropy);
        app.call_observer = call_observer;
        Self::new(&app)
    }

    pub(crate) fn new(app: &App) -> Self {
        Self { gateway: Gateway::new(app, &Template::parse(TEMPLATE).unwrap()).unwrap() }
    }

    /// Sends a request from a client address to a host.
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

pub(crate) fn request(method: &Method, path: &str, token: Option<&str>) -> http::request::Builder {
    let request = http::Request::builder().method(method).uri(path);
    match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    }
}

/// Returns invalid bodies: malformed, of a wrong type, with an unknown field, and large.
fn bodies() -> [String; 4] {
    ["{".to_owned(), "[]".to_owned(), json!({ "nonsense": 1 }).to_string(), " ".repeat(65_537)]
}

//! Provider keys: creation, listing, revocation and sealing.

mod create;
mod list;
mod races;
mod revoke;
mod rotation;
mod sealed;

use std::sync::LazyLock;

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::Method;
use karta_shared::{
    App,
    config::Ring,
    entropy::{OsEntropy, uuid},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::{
    harness::{Reply, Request, TestServer, note_secret},
    internal::{Plane, request},
};

const ROUTE: &str = "/v1/model_keys";

/// Returns a unique key that begins with `start`.
pub(crate) fn provider_key(start: &str) -> String {
    let body: String = (0..3).map(|_| uuid(&OsEntropy)).collect();
    let key = format!("{start}{:.84}", body.replace('-', ""));
    note_secret(&key);
    key
}

/// Returns an AWS access key as pretty JSON, with a unique secret.
fn access_key() -> String {
    let secret = format!("wJalrXU/{}", uuid(&OsEntropy).replace('-', ""));
    note_secret(&secret);
    format!("{{\n  \"access_key_id\": \"AKIAIOSFODNN7EXAMPLE\",\n  \"secret_access_key\": \"{secret}\"\n}}")
}

/// An RSA key in PKCS #8 PEM. All tests share it, because generating one is slow.
static PRIVATE_KEY: LazyLock<String> = LazyLock::new(|| {
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let base64 = BASE64_STANDARD.encode(der.as_ref());
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
    // The first line contains the algorithm. Each other line is a secret.
    lines[1..lines.len() - 1].iter().for_each(|line| note_secret(line));
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
});

fn service_account() -> String {
    service_account_with(&PRIVATE_KEY)
}

fn service_account_with(private_key: &str) -> String {
    let file = json!({
        "type": "service_account",
        "project_id": "acme-1",
        "private_key_id": "0123456789abcdef0123456789abcdef01234567",
        "private_key": private_key,
        "client_email": "karta@acme-1.iam.gserviceaccount.com",
        "client_id": "100000000000000000000",
        "token_uri": "https://oauth2.googleapis.com/token",
    });
    serde_json::to_string_pretty(&file).unwrap()
}

fn one_of_each() -> [(&'static str, String); 5] {
    [
        ("anthropic", provider_key("sk-ant-api03-")),
        ("openai", provider_key("sk-proj-")),
        ("bedrock", access_key()),
        ("vertex", service_account()),
        ("openrouter", provider_key("sk-or-v1-")),
    ]
}

fn post(server: &TestServer, provider: &str, key: &str) -> Request {
    server.post(ROUTE, json!({ "provider": provider, "key": key }))
}

async fn create(server: &TestServer, provider: &str, key: &str) -> Value {
    post(server, provider, key).send().await.expect(201)["model_key"].take()
}

fn path(model_key: &Value) -> String {
    format!("{ROUTE}/{}", model_key["id"])
}

fn active_path(organization: u64, provider: &str) -> String {
    format!("/v1/internal/model_keys/active?organization_id={organization}&provider={provider}")
}

pub(crate) fn active(server: &TestServer, provider: &str) -> Request {
    server.service(Method::GET, &active_path(server.organization_id, provider))
}

/// Requests the active key of `acme` from another app over the same store.
pub(crate) async fn active_of(app: &App, server: &TestServer, provider: &str) -> Reply {
    let token = server.runner.secrets.service_token.expose_secret();
    let request = request(&Method::GET, &active_path(server.organization_id, provider), Some(token));
    Plane::new(app).send("127.0.0.1", "localhost", request, "").await
}

/// Returns an app after a rotation of the sealing ring: `k2` is current, and the ring still
/// contains `k1`.
pub(crate) fn rotated(server: &TestServer) -> App {
    server.app_with_ring(Ring::SealingByok, |ring| {
        ring["k2"] = json!("2".repeat(64));
        ring["current"] = json!("k2");
    })
}

/// Reads the sealed keys of an organization directly from the store.
async fn sealed(server: &TestServer, organization: u64) -> Vec<Value> {
    server.items(&format!("MKS#{organization}")).await
}

async fn list(server: &TestServer) -> Vec<Value> {
    server.get(ROUTE).send().await.expect(200)["model_keys"].as_array().unwrap().clone()
}

//! The system under test, and direct calls to its provider.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};
use karta_local::{Runner, provider::FakeProvider};
use karta_shared::entropy::{OsEntropy, uuid};
use serde_json::{Value, json};

use crate::{
    client::{Arrivals, Connection, request},
    server::Server,
};

const MODEL: &str = "claude-sonnet-4-5";
const TEXT: &str = "Describe the sky, the sea and the sun in ten words each.";
/// Far from what the measurements use.
const CAP: u64 = 1_000_000_000_000;
/// The beginning of Karta's event with a token.
pub(crate) const TOKEN: &[u8] = b"event: text\n";
/// The beginning of the provider's event with a token.
const DIRECT_TOKEN: &[u8] = b"event: content_block_delta\n";

/// A running control plane with a provider key.
pub(crate) struct Karta {
    pub(crate) address: String,
    key: String,
    /// `None` if it runs in this process.
    process: Option<Server>,
    _runner: Option<Runner>,
}

impl Karta {
    /// Starts a process with its data in `folder`.
    pub(crate) async fn start(binary: &Path, folder: &Path, provider: &FakeProvider) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut command = Command::new(binary);
        command
            .args(["--json", "--port", "0", "--bcrypt-cost", "4", "--data-dir"])
            .arg(folder.join("data"))
            .env("KARTA_PROVIDER_BASE_URLS", provider.base_urls())
            .env_remove("RUST_LOG");
        let process = Server::start(command)?;
        let (address, key) = (process.address(), process.secret("api_key")?);
        Self { address, key, process: Some(process), _runner: None }.with_provider_key().await
    }

    /// Takes over a runner of this process.
    pub(crate) async fn in_process(runner: Runner) -> Result<Self> {
        let key = runner.bootstrap.api_key.as_ref().context("no first key")?.expose().to_owned();
        let address = runner.base_url.trim_start_matches("http://").to_owned();
        Self { address, key, process: None, _runner: Some(runner) }.with_provider_key().await
    }

    async fn with_provider_key(self) -> Result<Self> {
        let body = json!({ "provider": "anthropic", "key": format!("sk-ant-{}", uuid(&OsEntropy)) });
        self.call("POST", "/v1/model_keys", &body, 201).await?;
        Ok(self)
    }

    pub(crate) async fn connection(&self) -> Result<Connection> {
        Connection::open(&self.address).await
    }

    async fn call(&self, method: &str, path: &str, body: &Value, expected: u16) -> Result<Value> {
        let request = self.request(method, path, &body.to_string());
        self.connection().await?.json(&request, expected).await
    }

    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> String {
        request(method, path, &format!("Authorization: Bearer {}", self.key), body)
    }

    /// Sets caps of the organization, and continues with a key that has caps too.
    pub(crate) async fn set_caps(&mut self) -> Result<()> {
        let caps = json!({ "total_tokens": CAP, "cost_cents": CAP });
        self.call("PUT", "/v1/budget", &caps, 200).await?;
        let key = json!({ "name": "capped", "scopes": ["read", "write"], "budget": caps });
        let created = self.call("POST", "/v1/api_keys", &key, 201).await?;
        created["secret"].as_str().context("no secret")?.clone_into(&mut self.key);
        Ok(())
    }

    /// Creates sessions. Returns their paths.
    pub(crate) async fn sessions(&self, count: usize) -> Result<Vec<String>> {
        let mut connection = self.connection().await?;
        let request = self.request("POST", "/v1/sessions", "{}");
        let mut paths = Vec::with_capacity(count);
        for _ in 0..count {
            let session = connection.json(&request, 201).await?;
            paths.push(format!("/v1/sessions/{}", session["id"].as_str().context("no id")?));
        }
        Ok(paths)
    }

    /// Returns a request for a turn.
    pub(crate) fn turn(&self, session: &str, is_streamed: bool) -> String {
        let body = json!({ "text": TEXT, "model": MODEL, "stream": is_streamed });
        self.request("POST", &format!("{session}/messages"), &body.to_string())
    }

    /// Runs a streamed turn.
    pub(crate) async fn stream(&self, connection: &mut Connection, session: &str) -> Result<Arrivals> {
        connection.stream(&self.turn(session, true), TOKEN).await
    }

    pub(crate) fn resident_megabytes(&self) -> Result<f64> {
        self.process.as_ref().context("Karta runs in this process")?.resident_megabytes()
    }
}

/// A provider that is called without Karta.
pub(crate) struct Direct {
    address: String,
    request: String,
}

impl Direct {
    pub(crate) fn new(provider: &FakeProvider) -> Result<Self> {
        let urls: Value = serde_json::from_str(&provider.base_urls())?;
        let address = urls["anthropic"].as_str().context("no URL")?.trim_start_matches("http://").to_owned();
        let messages = json!([{ "role": "user", "content": TEXT }]);
        let body = json!({ "model": MODEL, "max_tokens": 4_096, "stream": true, "messages": messages });
        let request = request("POST", "/v1/messages", "Content-Type: application/json", &body.to_string());
        Ok(Self { address, request })
    }

    pub(crate) async fn connection(&self) -> Result<Connection> {
        Connection::open(&self.address).await
    }

    pub(crate) async fn stream(&self, connection: &mut Connection) -> Result<Arrivals> {
        connection.stream(&self.request, DIRECT_TOKEN).await
    }
}

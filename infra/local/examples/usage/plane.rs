use std::{iter, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use karta_local::{Options, Runner};
use karta_shared::{
    clock::{Clock, SystemClock},
    config::{Deadlines, TurnLimits},
    domain::{InternalGuard, Month, Reach, Slug, Timestamp},
    entropy::OsEntropy,
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

/// A data plane with its own runner in memory.
pub(crate) struct Plane {
    pub(crate) runner: Runner,
    client: reqwest::Client,
    admin: String,
    pub(crate) now: Timestamp,
}

impl Plane {
    pub(crate) async fn start(workers: bool, proxy: Option<&dyn Fn(&str) -> String>) -> Result<Self> {
        let options = Options {
            host: [127, 0, 0, 1].into(),
            port: 0,
            data_dir: None,
            organization: Slug::try_from("acme".to_owned())?,
            bcrypt_cost: Some(4),
            session_token_secret: None,
            service_tokens: None,
            data_planes: None,
            stripe_secrets: None,
            internal: InternalGuard::default(),
            outbound_reach: Reach::Public,
            deadlines: Deadlines::DEPLOYED,
            turn_limits: TurnLimits::DEFAULT,
            provider_base_urls: None,
            demo: false,
            workers,
            call_observer: None,
            clock: Arc::new(SystemClock),
            entropy: Arc::new(OsEntropy),
        };
        let runner = Runner::start_with_proxy(options, proxy).await?;
        let admin = runner.bootstrap.api_key.as_ref().context("no first key")?.expose().to_owned();
        Ok(Self { runner, client: reqwest::Client::new(), admin, now: SystemClock.now() })
    }

    pub(crate) async fn keys(&self, count: usize) -> Result<Vec<u64>> {
        let mut keys = Vec::with_capacity(count);
        for at in 0..count {
            let url = format!("{}/v1/api_keys", self.runner.base_url);
            let body = json!({ "name": format!("key {at}"), "scopes": ["read"] }).to_string();
            let created: Value = self.client.post(url).bearer_auth(&self.admin).body(body).send().await?.json().await?;
            keys.push(created["api_key"]["id"].as_u64().context("no key")?);
        }
        Ok(keys)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let url = format!("{}{path}", self.runner.base_url);
        let answer = self.client.get(url).bearer_auth(&self.admin).send().await?;
        ensure!(answer.status() == StatusCode::OK, "{}", answer.text().await?);
        Ok(answer.json().await?)
    }

    async fn post(&self, path: &str, body: String) -> Result<reqwest::Response> {
        let url = format!("{}{path}", self.runner.base_url);
        let service = self.runner.secrets.service_token.expose_secret();
        Ok(self.client.post(url).bearer_auth(service).body(body).send().await?)
    }

    pub(crate) async fn validate(&self) -> Result<()> {
        let answer = self.post("/v1/internal/keys/validate", json!({ "key": self.admin }).to_string()).await?;
        ensure!(answer.json::<Value>().await?["valid"] == true, "the key is not valid");
        Ok(())
    }

    /// Sends a batch until it is accepted. Returns the number of attempts.
    pub(crate) async fn report(&self, body: String) -> Result<usize> {
        for sent in 1..50 {
            let answer = self.post("/v1/internal/usage/events", body.clone()).await?;
            if answer.status() == StatusCode::ACCEPTED {
                let result: Value = answer.json().await?;
                ensure!(result["rejected"] == json!([]), "{result}");
                return Ok(sent);
            }
            ensure!(answer.status() == StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text().await?);
        }
        anyhow::bail!("a batch was never accepted")
    }

    /// Returns this month and the months before it, newest first, each with its number of days
    /// until now.
    pub(crate) fn months(&self, count: usize) -> Vec<(Month, u8)> {
        let before = |month: Month| month.start().minus(DAY).month();
        let months = iter::successors(Some(self.now.month()), |month| Some(before(*month))).take(count);
        months.map(|month| (month, self.now.min(month.next().start().minus(DAY)).day())).collect()
    }
}

const DAY: Duration = Duration::from_hours(24);

/// A use of tokens that an event reports.
#[derive(Clone, Copy)]
pub(crate) struct Used {
    pub(crate) key: u64,
    pub(crate) model: usize,
    pub(crate) month: (Month, u8),
    /// Day of the month, modulo the days of the month.
    pub(crate) day: usize,
}

impl Used {
    pub(crate) fn event(self, kind: &str, quantity: u64, id: &str) -> Value {
        let (month, days) = self.month;
        json!({
            "api_key_id": self.key, "kind": kind, "quantity": quantity, "model": format!("claude-sonnet-4-2024{:02}{:02}", self.model / 28 + 1, self.model % 28 + 1),
            "occurred_at": format!("{month}-{:02}T00:00:00Z", self.day % usize::from(days) + 1), "client_event_id": id,
        })
    }
}

pub(crate) fn batch(events: &[Value]) -> String {
    json!({ "events": events }).to_string()
}

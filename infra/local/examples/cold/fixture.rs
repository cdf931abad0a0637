use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result, ensure};
use authorizer::Authorizer;
use http::{Method, StatusCode};
use karta_local::{
    Options, Runner,
    provider::{FakeProvider, Script},
};
use karta_shared::{
    clock::SystemClock,
    config::{Deadlines, SecretSource, TurnLimits},
    domain::{InternalGuard, Provider, ProviderBaseUrls, Reach, Slug},
    entropy::OsEntropy,
    worker::{Wake, Worker},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use worker_webhook_events::{Waker, WebhookEvents};

use crate::aws::{self, Aws};

pub(crate) const STRIPE_SECRET: &str = "whsec_nV3rT0beUsedInAnyStack0";
/// Client address and host of every request in API Gateway's events.
pub(crate) const ADDRESS: &str = "203.0.113.9";
pub(crate) const HOST: &str = "a1b2c3d4e5.execute-api.us-east-1.amazonaws.com";
pub(crate) const METHOD_ARN: &str = "arn:aws:execute-api:us-east-1:123456789012:a1b2c3d4e5/prod/GET/v1/whoami";
pub(crate) const IDEMPOTENCY_KEY: &str = "hello";
/// The lowest bcrypt cost of a deployed function.
pub(crate) const BCRYPT_COST: u32 = 10;

/// A runner in memory with an organization that has one or two resources of each kind, and emulated
/// AWS services.
pub(crate) struct Fixture {
    pub(crate) runner: Runner,
    pub(crate) organization: u64,
    pub(crate) admin: String,
    pub(crate) session_token: String,
    /// The authorizer's contexts for the admin key and for the session token.
    pub(crate) admin_context: Value,
    pub(crate) session_token_context: Value,
    /// The id of a session with a turn that [`message`] and [`IDEMPOTENCY_KEY`] started.
    pub(crate) session_id: String,
    /// Ids of the organization's resources by kind.
    pub(crate) ids: BTreeMap<&'static str, u64>,
    aws: Aws,
    client: reqwest::Client,
    _provider: FakeProvider,
}

impl Fixture {
    pub(crate) async fn start() -> Result<Self> {
        let provider = FakeProvider::start(Script::default()).await?;
        let runner = Runner::start(Options {
            host: [127, 0, 0, 1].into(),
            port: 0,
            data_dir: None,
            organization: Slug::try_from("acme".to_owned())?,
            bcrypt_cost: Some(4),
            session_token_secret: None,
            service_tokens: None,
            data_planes: None,
            stripe_secrets: Some(STRIPE_SECRET.into()),
            internal: InternalGuard::default(),
            outbound_reach: Reach::Public,
            deadlines: Deadlines::DEPLOYED,
            turn_limits: TurnLimits::DEFAULT,
            provider_base_urls: Some(provider.replace(ProviderBaseUrls::default(), Provider::OpenAi)),
            demo: false,
            workers: false,
            call_observer: None,
            clock: Arc::new(SystemClock),
            entropy: Arc::new(OsEntropy),
        })
        .await?;
        let SecretSource::Fixed(secrets) = runner.secrets.source() else { anyhow::bail!("the secrets are not fixed") };
        let mut fixture = Self {
            organization: runner.bootstrap.organization.id.get(),
            admin: runner.bootstrap.api_key.as_ref().context("no first key")?.expose().to_owned(),
            session_token: String::new(),
            admin_context: Value::Null,
            session_token_context: Value::Null,
            session_id: String::new(),
            ids: BTreeMap::new(),
            aws: Aws::start(&secrets).await?,
            client: reqwest::Client::new(),
            _provider: provider,
            runner,
        };
        // Boxed: the compiler limits how deep the types of futures nest.
        Box::pin(fixture.seed()).await?;
        Ok(fixture)
    }

    /// Creates the resources that the events refer to.
    async fn seed(&mut self) -> Result<()> {
        let project = self.post("/v1/agent_projects", json!({ "slug": "site", "name": "Site" })).await?;
        let key = self.post("/v1/api_keys", json!({ "name": "ci", "scopes": ["read"] })).await?;
        let openai = json!({ "provider": "openai", "key": "sk-proj-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghij" });
        self.post("/v1/model_keys", openai).await?;
        for commit in ["9fceb02", "b1973e0"] {
            let release = self.deploy(commit).await?;
            self.service(Method::POST, &format!("/v1/internal/releases/{release}/status"), status_report(commit))
                .await?;
        }
        let settings = json!({ "url": "https://hooks.example.com", "event_types": ["webhook_endpoint.disabled"] });
        let endpoint = self.post("/v1/webhook_endpoints", settings.clone()).await?;
        let endpoint = id(&endpoint["webhook_endpoint"])?;
        let idle = self.post("/v1/webhook_endpoints", settings).await?;
        let ping = self.post(&format!("/v1/webhook_endpoints/{endpoint}/test"), json!({})).await?;
        self.fan_out().await?;
        let organization = format!("/v1/internal/organizations/{}", self.organization);
        self.service(Method::PATCH, &organization, json!({ "stripe_customer_id": "cus_1" })).await?;
        let minted = self.post("/v1/agent_projects/site/session_tokens", json!({})).await?;
        minted["token"].as_str().context("no token")?.clone_into(&mut self.session_token);
        self.ids = BTreeMap::from([
            ("project", id(&project["agent_project"])?),
            ("key", id(&key["api_key"])?),
            ("endpoint", endpoint),
            ("idle endpoint", id(&idle["webhook_endpoint"])?),
            ("delivery", id(&ping["delivery"])?),
        ]);
        let session = self.post("/v1/sessions", json!({})).await?;
        session["id"].as_str().context("no id")?.clone_into(&mut self.session_id);
        let messages = format!("{}/v1/sessions/{}/messages", self.runner.base_url, self.session_id);
        let message = self.client.post(messages).bearer_auth(&self.admin).body(message().to_string());
        let turn = message.header("idempotency-key", IDEMPOTENCY_KEY).send().await?;
        ensure!(turn.status().is_success(), "{}", turn.text().await?);
        turn.text().await?;
        self.admin_context = self.context(&self.admin).await?;
        self.session_token_context = self.context(&self.session_token).await?;
        Ok(())
    }

    async fn context(&self, token: &str) -> Result<Value> {
        let event = json!({ "authorizationToken": format!("Bearer {token}"), "methodArn": METHOD_ARN });
        let (authorizer, event) = (Authorizer::new(self.runner.app.clone()), serde_json::from_value(event)?);
        let response = Box::pin(authorizer.authorize(&event)).await?;
        Ok(response.context)
    }

    pub(crate) async fn deploy(&self, commit: &str) -> Result<u64> {
        id(&self.post("/v1/agent_projects/site/deploys", json!({ "commit_sha": commit })).await?["release"])
    }

    /// Creates the deliveries of pending events without sending them.
    pub(crate) async fn fan_out(&self) -> Result<()> {
        let events = WebhookEvents::new(self.runner.app.clone(), Waker::Local(Arc::new(|_, _| ())));
        Box::pin(events.work(&Wake::Sweep)).await.map_err(anyhow::Error::from_boxed)
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.request(Method::POST, path, &self.admin, body).await
    }

    pub(crate) async fn service(&self, method: Method, path: &str, body: Value) -> Result<Value> {
        self.request(method, path, self.service_token(), body).await
    }

    pub(crate) fn service_token(&self) -> &str {
        self.runner.secrets.service_token.expose_secret()
    }

    pub(crate) async fn request(&self, method: Method, path: &str, bearer: &str, body: Value) -> Result<Value> {
        let request = self.client.request(method, format!("{}{path}", self.runner.base_url)).bearer_auth(bearer);
        let answer = if body.is_null() { request } else { request.body(body.to_string()) }.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{path}: {text}");
        if status == StatusCode::NO_CONTENT { Ok(Value::Null) } else { Ok(serde_json::from_str(&text)?) }
    }

    pub(crate) fn environment(&self, function: &Value) -> Result<BTreeMap<String, String>> {
        let emulator = &self.runner.emulator;
        let mut environment = BTreeMap::from(
            [
                ("AWS_LAMBDA_FUNCTION_NAME", "karta"),
                ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
                ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512"),
                ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
                ("AWS_REGION", "us-east-1"),
                ("AWS_ACCESS_KEY_ID", emulator.access_key().expose_secret()),
                ("AWS_SECRET_ACCESS_KEY", "unused"),
                ("AWS_SESSION_TOKEN", "unused"),
                ("AWS_ENDPOINT_URL", &self.aws.url),
                ("AWS_ENDPOINT_URL_DYNAMODB", &emulator.endpoint()),
                ("TZ", ":UTC"),
                ("LANG", "en_US.UTF-8"),
            ]
            .map(|(variable, value)| (variable.to_owned(), value.to_owned())),
        );
        let variables = function["Properties"]["Environment"]["Variables"].as_object();
        for (variable, _) in variables.into_iter().flatten() {
            environment.insert(variable.clone(), value(variable)?);
        }
        Ok(environment)
    }
}

fn value(variable: &str) -> Result<String> {
    if let Some(secret) = variable.strip_prefix("KARTA_SECRET_") {
        return Ok(aws::id(&secret.to_ascii_lowercase().replace('_', "-")));
    }
    Ok(match variable {
        "KARTA_TABLE" => "karta".to_owned(),
        "KARTA_CREDENTIALS_TABLE" => "karta-credentials".to_owned(),
        "KARTA_OUTBOX_TABLE" => "karta-outbox".to_owned(),
        "KARTA_USAGE_TABLE" => "karta-usage".to_owned(),
        "KARTA_ANCHORS_TABLE" => "karta-anchors".to_owned(),
        "KARTA_SESSIONS_TABLE" => "karta-sessions".to_owned(),
        "KARTA_BCRYPT_COST" => BCRYPT_COST.to_string(),
        "KARTA_INTERNAL_ALLOWED_IPS" => ADDRESS.to_owned(),
        "KARTA_INTERNAL_HOSTS" | "KARTA_OWN_HOSTS" => HOST.to_owned(),
        "KARTA_PRICES" => r#"{"*": {"input": 1000000, "output": 5000000}}"#.to_owned(),
        "KARTA_PROVIDER_BASE_URLS" => r#"{"openai": "https://proxy.example.com/openai"}"#.to_owned(),
        "KARTA_REST_API_ID" => "a1b2c3d4e5".to_owned(),
        "KARTA_RESPONSE_TRANSFER_MODE" => "RESPONSE_STREAM".to_owned(),
        "KARTA_SESSION_RETENTION_DAYS" => "30".to_owned(),
        "KARTA_STAGE" => "prod".to_owned(),
        "KARTA_WEBHOOK_DELIVERIES_FUNCTION" => "karta-prod-worker-webhook-deliveries".to_owned(),
        _ => anyhow::bail!("unknown variable {variable}"),
    })
}

/// Returns the message of the session's turn.
pub(crate) fn message() -> Value {
    json!({ "text": "Hello", "model": "gpt-4o", "stream": true })
}

/// Returns a builder's status report with a build log.
pub(crate) fn status_report(text: &str) -> Value {
    json!({ "status": "ready", "build_log": format!("step 1\nstep 2 {text}\n") })
}

pub(crate) fn id(resource: &Value) -> Result<u64> {
    resource["id"].as_u64().with_context(|| format!("no id in {resource}"))
}

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::hmac;
use http::Method;
use karta_local::registry;
use karta_shared::{
    clock::{Clock, SystemClock},
    domain::Id,
    store::Queue,
    worker::Wake,
};
use serde_json::{Value, json};

use crate::{
    aws,
    fixture::{ADDRESS, Fixture, HOST, IDEMPOTENCY_KEY, METHOD_ARN, STRIPE_SECRET, id, message, status_report},
};

/// An event for a function, and the expected result.
pub(crate) struct Event {
    pub(crate) event: Value,
    expected: Expected,
}

enum Expected {
    Status(u16),
    /// A response with this status and this field in its body.
    Field(u16, &'static str, Value),
    /// A streamed response whose last event is `done`.
    Stream,
    Allow,
    /// An empty result of a worker.
    Done,
}

impl Event {
    pub(crate) fn check(&self, answer: &Value) -> Result<()> {
        let is_right = match &self.expected {
            Expected::Status(status) => answer["statusCode"] == *status,
            Expected::Field(status, field, value) => {
                let body: Value = serde_json::from_str(answer["body"].as_str().unwrap_or_default())?;
                answer["statusCode"] == *status && body[field] == *value
            }
            Expected::Stream => {
                let body = answer["body"].as_str().unwrap_or_default();
                answer["statusCode"] == 200 && answer["streamed"] == true && body.contains("\nevent: done\n")
            }
            Expected::Allow => answer["policyDocument"]["Statement"][0]["Effect"] == "Allow",
            Expected::Done => answer.is_null(),
        };
        ensure!(is_right, "{answer}");
        Ok(())
    }

    fn done(event: Value) -> Self {
        Self { event, expected: Expected::Done }
    }
}

/// A request from which API Gateway's event is built.
struct Request<'a> {
    method: Method,
    resource: &'a str,
    variables: BTreeMap<&'static str, String>,
    query: &'a [(&'static str, String)],
    body: Value,
}

impl<'a> Request<'a> {
    fn new(method: Method, resource: &'a str, body: Value) -> Self {
        Self { method, resource, variables: BTreeMap::new(), query: &[], body }
    }

    fn get(resource: &'a str) -> Self {
        Self::new(Method::GET, resource, Value::Null)
    }

    fn post(resource: &'a str, body: Value) -> Self {
        Self::new(Method::POST, resource, body)
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers pass ids and borrowed texts alike")]
    fn variable(mut self, name: &'static str, value: impl ToString) -> Self {
        self.variables.insert(name, value.to_string());
        self
    }

    fn query(self, query: &'a [(&'static str, String)]) -> Self {
        Self { query, ..self }
    }

    fn event(&self, bearer: &str, context: &Value, headers: &[(&str, String)]) -> Value {
        let mut path = self.resource.to_owned();
        for (name, value) in &self.variables {
            path = path.replace(&format!("{{{name}}}"), value);
        }
        let mut all = BTreeMap::from([
            ("Host", HOST.to_owned()),
            ("User-Agent", "curl/8.5.0".to_owned()),
            ("Accept", "*/*".to_owned()),
            ("X-Forwarded-For", ADDRESS.to_owned()),
            ("X-Forwarded-Port", "443".to_owned()),
            ("X-Forwarded-Proto", "https".to_owned()),
            ("X-Amzn-Trace-Id", "Root=1-6921a2c0-0123456789abcdef01234567".to_owned()),
        ]);
        if !bearer.is_empty() {
            all.insert("Authorization", format!("Bearer {bearer}"));
        }
        all.extend(headers.iter().cloned());
        let mut authorizer = context.clone();
        if authorizer.is_object() {
            authorizer["principalId"] = json!("someone");
            authorizer["integrationLatency"] = json!(31);
        }
        let many = |pairs: &BTreeMap<&str, String>| -> Value {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), json!([value]))).collect()
        };
        let query: BTreeMap<_, _> = self.query.iter().cloned().collect();
        json!({
            "resource": self.resource,
            "path": path,
            "httpMethod": self.method.as_str(),
            "headers": all,
            "multiValueHeaders": many(&all),
            "queryStringParameters": if query.is_empty() { Value::Null } else { json!(query) },
            "multiValueQueryStringParameters": if query.is_empty() { Value::Null } else { many(&query) },
            "pathParameters": if self.variables.is_empty() { Value::Null } else { json!(self.variables) },
            "stageVariables": null,
            "requestContext": {
                "accountId": "123456789012",
                "apiId": "a1b2c3d4e5",
                "authorizer": authorizer,
                "domainName": HOST,
                "extendedRequestId": "Zxy12EXAMPLE=",
                "httpMethod": self.method.as_str(),
                "identity": { "sourceIp": ADDRESS, "userAgent": "curl/8.5.0", "accessKey": null },
                "path": format!("/prod{path}"),
                "protocol": "HTTP/1.1",
                "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
                "requestTime": "21/Nov/2026:12:00:00 +0000",
                "requestTimeEpoch": 1_795_262_400_000_u64,
                "resourceId": "abc123",
                "resourcePath": self.resource,
                "stage": "prod",
            },
            "body": if self.body.is_null() { Value::Null } else { json!(self.body.to_string()) },
            "isBase64Encoded": false,
        })
    }
}

/// Returns the `number`th event of a case and creates the resources that it needs. `case` is the
/// name of a function, with the kind of event after a colon if the function has several.
pub(crate) async fn event(fixture: &Fixture, case: &str, number: usize) -> Result<Event> {
    if let Some(event) = worker_event(fixture, case, number).await? {
        return Ok(event);
    }
    if let Some((request, status)) = public_request(case) {
        return Ok(Event { event: request.event("", &Value::Null, &[]), expected: Expected::Status(status) });
    }
    if case == "stripe-events-create" {
        return Ok(stripe(number));
    }
    if case == "projects-whoami" {
        let request = Request::get("/v1/projects/{ref}/whoami").variable("ref", "site");
        let event = request.event(&fixture.session_token, &fixture.session_token_context, &[]);
        return Ok(Event { event, expected: Expected::Field(200, "kind", json!("session")) });
    }
    if let Some(event) = session_event(fixture, case) {
        return Ok(event);
    }
    if case.starts_with("internal-") {
        return service_event(fixture, case, number).await;
    }
    let (request, status) = if case.starts_with("webhook-") {
        webhook_request(fixture, case).await?
    } else if let Some(found) = key_request(fixture, case).await? {
        found
    } else {
        project_request(case, number)?
    };
    let event = request.event(&fixture.admin, &fixture.admin_context, &[]);
    Ok(Event { event, expected: Expected::Status(status) })
}

/// Returns the event of a function of sessions. `turns` attaches to a turn that ended, because it
/// calls providers by `https` only.
fn session_event(fixture: &Fixture, function: &str) -> Option<Event> {
    const SESSION: &str = "/v1/sessions/{id}";
    const MESSAGES: &str = "/v1/sessions/{id}/messages";
    let (request, headers, expected) = match function {
        "sessions" => (Request::get(SESSION), vec![], Expected::Status(200)),
        "turns" => {
            let headers = vec![("Idempotency-Key", IDEMPOTENCY_KEY.to_owned())];
            (Request::post(MESSAGES, message()), headers, Expected::Stream)
        }
        "turn-streams" => (Request::get("/v1/sessions/{id}/stream"), vec![], Expected::Stream),
        _ => return None,
    };
    let request = request.variable("id", &fixture.session_id);
    Some(Event { event: request.event(&fixture.admin, &fixture.admin_context, &headers), expected })
}

fn public_request(function: &str) -> Option<(Request<'static>, u16)> {
    let resource = match function {
        "docs-get" => "/docs",
        "healthz" => "/healthz",
        "openapi-get" => "/openapi.json",
        _ => return None,
    };
    Some((Request::get(resource), 200))
}

async fn key_request(fixture: &Fixture, function: &str) -> Result<Option<(Request<'static>, u16)>> {
    const KEY: &str = "/v1/api_keys/{id}";
    let settings = || json!({ "name": "ci-runner", "scopes": ["read", "write"] });
    let fresh = async || id(&fixture.post("/v1/api_keys", settings()).await?["api_key"]);
    let provider = |provider: &str| json!({ "provider": provider, "key": "sk-ant-0123456789abcdefghij" });
    let key = fixture.ids["key"];
    Ok(Some(match function {
        "whoami" => (Request::get("/v1/whoami"), 200),
        "billing-get" => (Request::get("/v1/billing"), 200),
        "usage-get" => (Request::get("/v1/usage"), 200),
        "usage-keys-list" => (Request::get("/v1/usage/keys"), 200),
        "budget-get" => (Request::get("/v1/budget"), 200),
        "budget-update" => (Request::new(Method::PUT, "/v1/budget", json!({ "total_tokens": 50_000_000 })), 200),
        "audit-events-list" => (Request::get("/v1/audit_events"), 200),
        "api-keys-list" => (Request::get("/v1/api_keys"), 200),
        "api-keys-get" => (Request::get(KEY).variable("id", key), 200),
        "api-keys-create" => (Request::post("/v1/api_keys", settings()), 201),
        "api-keys-update" => {
            (Request::new(Method::PATCH, KEY, json!({ "name": "ci-runner" })).variable("id", key), 200)
        }
        "api-keys-revoke" => (Request::new(Method::DELETE, KEY, Value::Null).variable("id", fresh().await?), 200),
        "api-keys-rotate" => (Request::post("/v1/api_keys/{id}/rotate", json!({})).variable("id", fresh().await?), 201),
        "model-keys-list" => (Request::get("/v1/model_keys"), 200),
        "model-keys-create" => (Request::post("/v1/model_keys", provider("anthropic")), 201),
        "model-keys-revoke" => {
            let made = fixture.post("/v1/model_keys", provider("anthropic")).await?;
            let request = Request::new(Method::DELETE, "/v1/model_keys/{id}", Value::Null);
            (request.variable("id", id(&made["model_key"])?), 200)
        }
        _ => return Ok(None),
    }))
}

fn project_request(function: &str, number: usize) -> Result<(Request<'static>, u16)> {
    const PROJECT: &str = "/v1/agent_projects/{slug}";
    let (request, status) = match function {
        "agent-projects-list" => (Request::get("/v1/agent_projects"), 200),
        "agent-projects-create" => {
            let body = json!({ "slug": format!("project-{number}"), "name": "Project" });
            return Ok((Request::post("/v1/agent_projects", body), 201));
        }
        "agent-projects-get" => (Request::get(PROJECT), 200),
        "agent-projects-update" => (Request::new(Method::PATCH, PROJECT, json!({ "name": "Site" })), 200),
        "releases-list" => (Request::get("/v1/agent_projects/{slug}/releases"), 200),
        "deploys-create" => {
            (Request::post("/v1/agent_projects/{slug}/deploys", json!({ "commit_sha": "0a1b2c3d" })), 201)
        }
        "releases-rollback" => {
            (Request::post("/v1/agent_projects/{slug}/rollback", json!({ "version": 1 + number % 2 })), 200)
        }
        "release-logs-list" => {
            (Request::get("/v1/agent_projects/{slug}/releases/{version}/logs").variable("version", 1), 200)
        }
        "session-tokens-create" => (Request::post("/v1/agent_projects/{slug}/session_tokens", json!({})), 201),
        _ => bail!("no event for {function}"),
    };
    Ok((request.variable("slug", "site"), status))
}

async fn webhook_request(fixture: &Fixture, function: &str) -> Result<(Request<'static>, u16)> {
    const ENDPOINTS: &str = "/v1/webhook_endpoints";
    const ENDPOINT: &str = "/v1/webhook_endpoints/{id}";
    let settings = || json!({ "url": "https://hooks.example.com/new", "event_types": ["webhook_endpoint.disabled"] });
    let endpoint_id = fixture.ids["endpoint"];
    let (request, status) = match function {
        "webhook-endpoints-list" => (Request::get(ENDPOINTS), 200),
        "webhook-endpoints-create" => {
            // An organization can have 20 endpoints: delete those of earlier events.
            let found = fixture.request(Method::GET, ENDPOINTS, &fixture.admin, Value::Null).await?;
            for endpoint in found["webhook_endpoints"].as_array().context("no list")? {
                let endpoint = id(endpoint)?;
                if ![endpoint_id, fixture.ids["idle endpoint"]].contains(&endpoint) {
                    fixture
                        .request(Method::DELETE, &format!("{ENDPOINTS}/{endpoint}"), &fixture.admin, Value::Null)
                        .await?;
                }
            }
            (Request::post(ENDPOINTS, settings()), 201)
        }
        "webhook-endpoints-delete" => {
            let made = id(&fixture.post(ENDPOINTS, settings()).await?["webhook_endpoint"])?;
            return Ok((Request::new(Method::DELETE, ENDPOINT, Value::Null).variable("id", made), 204));
        }
        "webhook-endpoints-get" => (Request::get(ENDPOINT), 200),
        "webhook-endpoints-update" => (Request::new(Method::PATCH, ENDPOINT, json!({ "description": "On call" })), 200),
        "webhook-endpoints-rotate-secret" => {
            (Request::post("/v1/webhook_endpoints/{id}/rotate_secret", json!({ "grace_seconds": 0 })), 201)
        }
        "webhook-endpoints-test" => (Request::post("/v1/webhook_endpoints/{id}/test", Value::Null), 202),
        "webhook-endpoints-recover" => {
            // Only one recovery can run: finish the last one first.
            fixture.fan_out().await?;
            let since = json!({ "since": SystemClock.now().minus(Duration::from_hours(1)) });
            (Request::post("/v1/webhook_endpoints/{id}/recover", since), 202)
        }
        "webhook-deliveries-list" => (Request::get("/v1/webhook_endpoints/{id}/deliveries"), 200),
        "webhook-deliveries-replay" => {
            let resource = "/v1/webhook_endpoints/{id}/deliveries/{delivery_id}/replay";
            (Request::post(resource, Value::Null).variable("delivery_id", fixture.ids["delivery"]), 202)
        }
        _ => bail!("no event for {function}"),
    };
    Ok((request.variable("id", endpoint_id), status))
}

async fn service_event(fixture: &Fixture, function: &str, number: usize) -> Result<Event> {
    const ORGANIZATION: &str = "/v1/internal/organizations/{id}";
    let organization = fixture.organization;
    let parameters = [
        ("organization_id", organization.to_string()),
        ("project_id", fixture.ids["project"].to_string()),
        ("provider", "openai".to_owned()),
    ];
    let mut field = None;
    let (request, status) = match function {
        "internal-whoami" => (Request::get("/v1/internal/whoami"), 200),
        "internal-active-release-get" => (
            Request::get("/v1/internal/projects/{slug}/active_release")
                .variable("slug", "site")
                .query(&parameters[..1]),
            200,
        ),
        "internal-model-settings-get" => (Request::get("/v1/internal/model_settings").query(&parameters[..2]), 200),
        "internal-model-keys-active" => {
            let parameters = &[parameters[0].clone(), parameters[2].clone()];
            let event = Request::get("/v1/internal/model_keys/active").query(parameters);
            return Ok(Event {
                event: event.event(fixture.service_token(), &Value::Null, &[]),
                expected: Expected::Status(200),
            });
        }
        "internal-keys-validate" => {
            field = Some(("valid", json!(true)));
            (Request::post("/v1/internal/keys/validate", json!({ "key": fixture.admin })), 200)
        }
        "internal-organizations-create" => {
            let body = json!({ "slug": format!("globex-{number}"), "name": "Globex" });
            (Request::post("/v1/internal/organizations", body), 201)
        }
        "internal-organizations-get" => (Request::get(ORGANIZATION).variable("id", organization), 200),
        "internal-organizations-update" => {
            let body = json!({ "model_id": format!("claude-{number}") });
            (Request::new(Method::PATCH, ORGANIZATION, body).variable("id", organization), 200)
        }
        "internal-api-keys-create" => {
            let body = json!({ "name": "rescue", "scopes": ["admin"] });
            (Request::post("/v1/internal/organizations/{id}/api_keys", body).variable("id", organization), 201)
        }
        "internal-releases-status" => {
            let release = fixture.deploy("0a1b2c3d").await?;
            (Request::post("/v1/internal/releases/{id}/status", status_report("3")).variable("id", release), 200)
        }
        "internal-usage-events-create" => {
            field = Some(("accepted", json!(1)));
            let event = json!({
                "api_key_id": fixture.ids["key"], "kind": "input_tokens", "quantity": 1_200, "model": "gpt-4o",
                "occurred_at": SystemClock.now(), "client_event_id": format!("event-{number}"),
            });
            (Request::post("/v1/internal/usage/events", json!({ "events": [event] })), 202)
        }
        _ => bail!("no event for {function}"),
    };
    let event = request.event(fixture.service_token(), &Value::Null, &[]);
    let expected = match field {
        Some((field, value)) => Expected::Field(status, field, value),
        None => Expected::Status(status),
    };
    Ok(Event { event, expected })
}

/// Returns a signed event that renews a subscription.
fn stripe(number: usize) -> Event {
    let now = SystemClock.now().as_seconds();
    let body = json!({
        "id": format!("evt_{number}"), "object": "event", "created": now, "livemode": false, "type": "customer.subscription.updated",
        "data": { "object": {
            "id": "sub_1", "object": "subscription", "customer": "cus_1", "status": "active", "created": now,
            "cancel_at_period_end": false,
            "items": { "object": "list", "data": [{
                "current_period_start": now, "current_period_end": now + 2_592_000, "price": { "id": "price_1", "lookup_key": "team" },
            }] },
        } },
    });
    let key = hmac::Key::new(hmac::HMAC_SHA256, STRIPE_SECRET.as_bytes());
    let tag = hmac::sign(&key, format!("{now}.{body}").as_bytes());
    let mut header = format!("t={now},v1=");
    for byte in tag.as_ref() {
        write!(header, "{byte:02x}").ok();
    }
    let request = Request::post("/v1/stripe/events", body);
    Event { event: request.event("", &Value::Null, &[("Stripe-Signature", header)]), expected: Expected::Status(200) }
}

async fn worker_event(fixture: &Fixture, case: &str, number: usize) -> Result<Option<Event>> {
    let app = &fixture.runner.app;
    let token = |token: &str| Event {
        event: json!({ "type": "TOKEN", "authorizationToken": format!("Bearer {token}"), "methodArn": METHOD_ARN }),
        expected: Expected::Allow,
    };
    let schedule = || Event::done(json!({ "version": "0", "source": "aws.scheduler", "detail": {} }));
    if number == 0 && case.starts_with("worker-") {
        fixture.fan_out().await?;
        for name in ["worker-audit-chain", "worker-budget-checks", "worker-cache-push"] {
            let workers = registry::workers(app, &fixture.runner.gateway);
            workers[name]().await.map_err(anyhow::Error::from_boxed)?;
        }
    }
    let change = async |cents: usize| {
        let body = json!({ "cost_cents": 20_000 + cents });
        fixture.request(Method::PUT, "/v1/budget", &fixture.admin, body).await
    };
    Ok(Some(match case {
        "authorizer: API key" => token(&fixture.admin),
        "authorizer: session token" => token(&fixture.session_token),
        "worker-audit-chain" => {
            change(number).await?;
            schedule()
        }
        "worker-expiry-notices" | "worker-model-keys-reseal" | "worker-turns-sweep" => schedule(),
        "worker-budget-checks" => {
            change(number).await?;
            stream_event([(format!("BDG#{}", fixture.organization), "CHECK".to_owned())])
        }
        "worker-cache-push" => {
            change(number).await?;
            stream_event(due(fixture, "PSH", Queue::Invalidations).await?)
        }
        "worker-webhook-events" => {
            let key = json!({ "name": "ci-runner", "scopes": ["read"] });
            fixture.post("/v1/api_keys", key).await?;
            stream_event(due(fixture, "EVT", Queue::Events).await?)
        }
        "worker-webhook-deliveries" => {
            let known = |id: u64| Id::new(id).context("an id");
            // The idle endpoint has no due deliveries, so nothing is sent.
            Event::done(Wake::endpoint(known(fixture.organization)?, known(fixture.ids["idle endpoint"])?))
        }
        // Repeats the last step of a rotation that has finished.
        "worker-secrets-rotation" => Event::done(json!({
            "Step": "finishSecret", "SecretId": aws::id("session-signing"), "ClientRequestToken": aws::VERSION,
        })),
        _ => return Ok(None),
    }))
}

async fn due(fixture: &Fixture, partitions: &str, queue: Queue) -> Result<Vec<(String, String)>> {
    let due = fixture.runner.app.store.due(queue, SystemClock.now()).await?;
    ensure!(!due.items.is_empty(), "nothing is due in {partitions}");
    Ok(due.items.into_iter().map(|due| (format!("{partitions}#{}", due.organization_id), due.sk)).collect())
}

/// Returns the event of the outbox's stream for inserted items with these keys.
fn stream_event(keys: impl IntoIterator<Item = (String, String)>) -> Event {
    let record = |(pk, sk): (String, String)| {
        let keys = json!({ "pk": { "S": pk }, "sk": { "S": sk } });
        json!({
            "eventID": "c4ca4238a0b923820dcc509a6f75849b", "eventName": "INSERT", "eventVersion": "1.1",
            "eventSource": "aws:dynamodb", "awsRegion": "us-east-1",
            "dynamodb": { "Keys": keys, "SequenceNumber": "111", "SizeBytes": 26, "StreamViewType": "KEYS_ONLY" },
        })
    };
    Event::done(json!({ "Records": keys.into_iter().map(record).collect::<Vec<_>>() }))
}

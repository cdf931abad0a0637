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
    world::{ADDRESS, HOST, METHOD_ARN, STRIPE_SECRET, World, id, log},
};

/// Something to give a function, and what is to come of it.
pub(crate) struct Event {
    pub(crate) event: Value,
    expected: Expected,
}

enum Expected {
    /// An answer to a request, with this status.
    Status(u16),
    /// An answer to a request that has this field.
    Field(u16, &'static str, Value),
    /// A policy that lets the caller in.
    Allow,
    /// A worker's, which says nothing.
    Done,
}

impl Event {
    /// Fails with the answer if it is another one than expected.
    pub(crate) fn judge(&self, answer: &Value) -> Result<()> {
        let is_right = match &self.expected {
            Expected::Status(status) => answer["statusCode"] == *status,
            Expected::Field(status, field, value) => {
                let body: Value = serde_json::from_str(answer["body"].as_str().unwrap_or_default())?;
                answer["statusCode"] == *status && body[field] == *value
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

/// A request as API Gateway hands it on.
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
    fn of(mut self, variable: &'static str, value: impl ToString) -> Self {
        self.variables.insert(variable, value.to_string());
        self
    }

    fn asking(self, query: &'a [(&'static str, String)]) -> Self {
        Self { query, ..self }
    }

    /// With a bearer token, what the authorizer said of it, and further headers.
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

/// The `number`th event for a function, with what it needs to be there. `case` names what is measured: a function, and behind a colon which
/// kind of event where it has several.
pub(crate) async fn event(world: &World, case: &str, number: usize) -> Result<Event> {
    if let Some(event) = of_workers(world, case, number).await? {
        return Ok(event);
    }
    if let Some((request, status)) = of_anybody(case) {
        return Ok(Event { event: request.event("", &Value::Null, &[]), expected: Expected::Status(status) });
    }
    if case == "stripe-events-create" {
        return Ok(stripe(number));
    }
    if case == "projects-whoami" {
        let request = Request::get("/v1/projects/{ref}/whoami").of("ref", "site");
        let event = request.event(&world.session, &world.session_context, &[]);
        return Ok(Event { event, expected: Expected::Field(200, "kind", json!("session")) });
    }
    if case.starts_with("internal-") {
        return of_services(world, case, number).await;
    }
    let (request, status) = if case.starts_with("webhook-") {
        of_webhooks(world, case).await?
    } else if let Some(found) = of_keys(world, case).await? {
        found
    } else {
        of_projects(case, number)?
    };
    let event = request.event(&world.admin, &world.admin_context, &[]);
    Ok(Event { event, expected: Expected::Status(status) })
}

fn of_anybody(function: &str) -> Option<(Request<'static>, u16)> {
    let resource = match function {
        "docs-get" => "/docs",
        "healthz" => "/healthz",
        "openapi-get" => "/openapi.json",
        _ => return None,
    };
    Some((Request::get(resource), 200))
}

async fn of_keys(world: &World, function: &str) -> Result<Option<(Request<'static>, u16)>> {
    const KEY: &str = "/v1/api_keys/{id}";
    let settings = || json!({ "name": "ci-runner", "scopes": ["read", "write"] });
    let fresh = async || id(&world.post("/v1/api_keys", settings()).await?["api_key"]);
    let provider = |provider: &str| json!({ "provider": provider, "key": "sk-ant-api03-0123456789abcdefghij" });
    let key = world.ids["key"];
    Ok(Some(match function {
        "whoami" => (Request::get("/v1/whoami"), 200),
        "billing-get" => (Request::get("/v1/billing"), 200),
        "usage-get" => (Request::get("/v1/usage"), 200),
        "usage-keys-list" => (Request::get("/v1/usage/keys"), 200),
        "budget-get" => (Request::get("/v1/budget"), 200),
        "budget-update" => (Request::new(Method::PUT, "/v1/budget", json!({ "total_tokens": 50_000_000 })), 200),
        "audit-events-list" => (Request::get("/v1/audit_events"), 200),
        "api-keys-list" => (Request::get("/v1/api_keys"), 200),
        "api-keys-get" => (Request::get(KEY).of("id", key), 200),
        "api-keys-create" => (Request::post("/v1/api_keys", settings()), 201),
        "api-keys-update" => (Request::new(Method::PATCH, KEY, json!({ "name": "ci-runner" })).of("id", key), 200),
        "api-keys-revoke" => (Request::new(Method::DELETE, KEY, Value::Null).of("id", fresh().await?), 200),
        "api-keys-rotate" => (Request::post("/v1/api_keys/{id}/rotate", json!({})).of("id", fresh().await?), 201),
        "model-keys-list" => (Request::get("/v1/model_keys"), 200),
        "model-keys-create" => (Request::post("/v1/model_keys", provider("anthropic")), 201),
        "model-keys-revoke" => {
            let made = world.post("/v1/model_keys", provider("anthropic")).await?;
            let request = Request::new(Method::DELETE, "/v1/model_keys/{id}", Value::Null);
            (request.of("id", id(&made["model_key"])?), 200)
        }
        _ => return Ok(None),
    }))
}

fn of_projects(function: &str, number: usize) -> Result<(Request<'static>, u16)> {
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
            (Request::get("/v1/agent_projects/{slug}/releases/{version}/logs").of("version", 1), 200)
        }
        "session-tokens-create" => (Request::post("/v1/agent_projects/{slug}/session_tokens", json!({})), 201),
        _ => bail!("there is no event for {function}"),
    };
    Ok((request.of("slug", "site"), status))
}

async fn of_webhooks(world: &World, function: &str) -> Result<(Request<'static>, u16)> {
    const ENDPOINTS: &str = "/v1/webhook_endpoints";
    const ENDPOINT: &str = "/v1/webhook_endpoints/{id}";
    let settings = || json!({ "url": "https://hooks.example.com/new", "event_types": ["webhook_endpoint.disabled"] });
    let kept = world.ids["endpoint"];
    let (request, status) = match function {
        "webhook-endpoints-list" => (Request::get(ENDPOINTS), 200),
        "webhook-endpoints-create" => {
            // An organization has twenty at most.
            let found = world.ask(Method::GET, ENDPOINTS, &world.admin, Value::Null).await?;
            for endpoint in found["webhook_endpoints"].as_array().context("no list")? {
                let endpoint = id(endpoint)?;
                if ![kept, world.ids["idle endpoint"]].contains(&endpoint) {
                    world.ask(Method::DELETE, &format!("{ENDPOINTS}/{endpoint}"), &world.admin, Value::Null).await?;
                }
            }
            (Request::post(ENDPOINTS, settings()), 201)
        }
        "webhook-endpoints-delete" => {
            let made = id(&world.post(ENDPOINTS, settings()).await?["webhook_endpoint"])?;
            return Ok((Request::new(Method::DELETE, ENDPOINT, Value::Null).of("id", made), 204));
        }
        "webhook-endpoints-get" => (Request::get(ENDPOINT), 200),
        "webhook-endpoints-update" => (Request::new(Method::PATCH, ENDPOINT, json!({ "description": "On call" })), 200),
        "webhook-endpoints-rotate-secret" => {
            (Request::post("/v1/webhook_endpoints/{id}/rotate_secret", json!({ "grace_seconds": 0 })), 201)
        }
        "webhook-endpoints-test" => (Request::post("/v1/webhook_endpoints/{id}/test", Value::Null), 202),
        "webhook-endpoints-recover" => {
            // One at a time: the last one has to be done.
            world.fan_out().await?;
            let since = json!({ "since": SystemClock.now().minus(Duration::from_hours(1)) });
            (Request::post("/v1/webhook_endpoints/{id}/recover", since), 202)
        }
        "webhook-deliveries-list" => (Request::get("/v1/webhook_endpoints/{id}/deliveries"), 200),
        "webhook-deliveries-replay" => {
            let resource = "/v1/webhook_endpoints/{id}/deliveries/{delivery_id}/replay";
            (Request::post(resource, Value::Null).of("delivery_id", world.ids["delivery"]), 202)
        }
        _ => bail!("there is no event for {function}"),
    };
    Ok((request.of("id", kept), status))
}

async fn of_services(world: &World, function: &str, number: usize) -> Result<Event> {
    const ORGANIZATION: &str = "/v1/internal/organizations/{id}";
    let organization = world.organization;
    let asked = [
        ("organization_id", organization.to_string()),
        ("project_id", world.ids["project"].to_string()),
        ("provider", "openai".to_owned()),
    ];
    let mut field = None;
    let (request, status) = match function {
        "internal-whoami" => (Request::get("/v1/internal/whoami"), 200),
        "internal-active-release-get" => {
            (Request::get("/v1/internal/projects/{slug}/active_release").of("slug", "site").asking(&asked[..1]), 200)
        }
        "internal-model-settings-get" => (Request::get("/v1/internal/model_settings").asking(&asked[..2]), 200),
        "internal-model-keys-active" => {
            let asked = &[asked[0].clone(), asked[2].clone()];
            let event = Request::get("/v1/internal/model_keys/active").asking(asked);
            return Ok(Event {
                event: event.event(world.service_token(), &Value::Null, &[]),
                expected: Expected::Status(200),
            });
        }
        "internal-keys-validate" => {
            field = Some(("valid", json!(true)));
            (Request::post("/v1/internal/keys/validate", json!({ "key": world.admin })), 200)
        }
        "internal-organizations-create" => {
            let body = json!({ "slug": format!("globex-{number}"), "name": "Globex" });
            (Request::post("/v1/internal/organizations", body), 201)
        }
        "internal-organizations-get" => (Request::get(ORGANIZATION).of("id", organization), 200),
        "internal-organizations-update" => {
            let body = json!({ "model_id": format!("claude-{number}") });
            (Request::new(Method::PATCH, ORGANIZATION, body).of("id", organization), 200)
        }
        "internal-api-keys-create" => {
            let body = json!({ "name": "rescue", "scopes": ["admin"] });
            (Request::post("/v1/internal/organizations/{id}/api_keys", body).of("id", organization), 201)
        }
        "internal-releases-status" => {
            let release = world.deploy("0a1b2c3d").await?;
            (Request::post("/v1/internal/releases/{id}/status", log("3")).of("id", release), 200)
        }
        "internal-usage-events-create" => {
            field = Some(("accepted", json!(1)));
            let event = json!({
                "api_key_id": world.ids["key"], "kind": "input_tokens", "quantity": 1_200, "model": "gpt-4o",
                "occurred_at": SystemClock.now(), "client_event_id": format!("event-{number}"),
            });
            (Request::post("/v1/internal/usage/events", json!({ "events": [event] })), 202)
        }
        _ => bail!("there is no event for {function}"),
    };
    let event = request.event(world.service_token(), &Value::Null, &[]);
    let expected = match field {
        Some((field, value)) => Expected::Field(status, field, value),
        None => Expected::Status(status),
    };
    Ok(Event { event, expected })
}

/// A subscription that goes on, signed.
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

async fn of_workers(world: &World, case: &str, number: usize) -> Result<Option<Event>> {
    let app = &world.runner.app;
    let token = |token: &str| Event {
        event: json!({ "type": "TOKEN", "authorizationToken": format!("Bearer {token}"), "methodArn": METHOD_ARN }),
        expected: Expected::Allow,
    };
    let schedule = || Event::done(json!({ "version": "0", "source": "aws.scheduler", "detail": {} }));
    if number == 0 && case.starts_with("worker-") {
        world.fan_out().await?;
        for name in ["worker-audit-chain", "worker-budget-checks", "worker-cache-push"] {
            let workers = registry::workers(app, &world.runner.gateway);
            workers[name]().await.map_err(anyhow::Error::from_boxed)?;
        }
    }
    let change = async |cents: usize| {
        let body = json!({ "cost_cents": 20_000 + cents });
        world.ask(Method::PUT, "/v1/budget", &world.admin, body).await
    };
    Ok(Some(match case {
        "authorizer: API key" => token(&world.admin),
        "authorizer: session token" => token(&world.session),
        "worker-audit-chain" => {
            change(number).await?;
            schedule()
        }
        "worker-expiry-notices" | "worker-model-keys-reseal" => schedule(),
        "worker-budget-checks" => {
            change(number).await?;
            written([(format!("BDG#{}", world.organization), "CHECK".to_owned())])
        }
        "worker-cache-push" => {
            change(number).await?;
            written(due(world, "PSH", Queue::Invalidations).await?)
        }
        "worker-webhook-events" => {
            let key = json!({ "name": "ci-runner", "scopes": ["read"] });
            world.post("/v1/api_keys", key).await?;
            written(due(world, "EVT", Queue::Events).await?)
        }
        "worker-webhook-deliveries" => {
            let known = |id: u64| Id::new(id).context("an id");
            // Nothing is due there, so that nothing leaves for anywhere.
            Event::done(Wake::endpoint(known(world.organization)?, known(world.ids["idle endpoint"])?))
        }
        // Asked for again, when all is done.
        "worker-secrets-rotation" => Event::done(json!({
            "Step": "finishSecret", "SecretId": aws::id("session-signing"), "ClientRequestToken": aws::VERSION,
        })),
        _ => return Ok(None),
    }))
}

/// The keys of what is due.
async fn due(world: &World, partitions: &str, queue: Queue) -> Result<Vec<(String, String)>> {
    let due = world.runner.app.store.due(queue, SystemClock.now()).await?;
    ensure!(!due.items.is_empty(), "nothing is due in {partitions}");
    Ok(due.items.into_iter().map(|due| (format!("{partitions}#{}", due.organization_id), due.sk)).collect())
}

/// What the outbox's stream tells of items with these keys.
fn written(keys: impl IntoIterator<Item = (String, String)>) -> Event {
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

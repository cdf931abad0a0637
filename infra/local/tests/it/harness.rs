//! An in-memory runner for each test, and a client that records every secret it receives.
//!
//! The suite writes three folders under `target/run/`: `logs/` with the logs, `secrets/` with every
//! generated secret, one per line, and `calls/` with the AWS calls of functions.
//! `infra/checks/log-secrets.sh` searches the logs for the secrets. `rights.rs` compares the calls
//! with the policies in the template.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::Write,
    net::TcpStream,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::Duration,
};

use authorizer::{Authorizer, AuthorizerEvent};
use aws_lambda_events::iam::IamPolicyEffect;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use karta_local::{
    Options, Runner,
    audit::{self, Report},
    bootstrap, registry,
};
use karta_shared::{
    App,
    clock::{Clock, ManualClock, SystemClock},
    config::{self, Config, Deadlines, Ring, Secret, SecretSource, Secrets, TurnLimits},
    domain::{InternalGuard, Reach, Slug},
    entropy::OsEntropy,
    store::table::Tables,
    telemetry,
    worker::{Fault, Wake, Worker},
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::{
    runtime,
    time::{sleep, timeout},
};
use worker_audit_chain::AuditChain;

use crate::calls::Calls;

/// Maximum wait for an event, so that a test fails instead of hanging.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_mins(1);

/// Waits until `is_so` returns true. Panics with `what` after [`WAIT_TIMEOUT`].
pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let waits = async {
        while !is_so().await {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(WAIT_TIMEOUT, waits).await.unwrap_or_else(|_| panic!("timeout after {WAIT_TIMEOUT:?}: {what}"));
}

/// A running control plane with one organization, `acme`. Dropping it verifies its audit logs.
pub(crate) struct TestServer {
    audit: AuditCheck,
    pub(crate) runner: Runner,
    /// The first key of `acme`, with all scopes.
    pub(crate) admin: String,
    pub(crate) organization_id: u64,
    client: reqwest::Client,
}

impl TestServer {
    /// Starts a server on the system clock.
    pub(crate) async fn start() -> Self {
        Self::start_with(Arc::new(SystemClock), None).await
    }

    /// Starts a server on a clock that the test moves, at 2026-11-21T12:00:00Z.
    pub(crate) async fn start_at_noon() -> (Self, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
        let server = Self::start_with(Arc::clone(&clock) as Arc<dyn Clock>, None).await;
        (server, clock)
    }

    /// Starts a server whose SDK uses the URL that `proxy` returns for the store's URL.
    pub(crate) async fn start_with(clock: Arc<dyn Clock>, proxy: Option<&dyn Fn(&str) -> String>) -> Self {
        Self::start_as(options(clock), proxy).await
    }

    pub(crate) async fn start_as(options: Options, proxy: Option<&dyn Fn(&str) -> String>) -> Self {
        log_to_file();
        let runner = Runner::start_with_proxy(options, proxy).await.unwrap();
        let admin = runner.bootstrap.api_key.as_ref().unwrap().expose().to_owned();
        Self::new(runner, admin)
    }

    /// Starts a server on the data of an earlier run, with the admin key of that run.
    pub(crate) async fn start_over(data_dir: PathBuf, admin: &str) -> Self {
        Self::start_over_as(Options { data_dir: Some(data_dir), ..options(Arc::new(SystemClock)) }, admin).await
    }

    pub(crate) async fn start_over_as(options: Options, admin: &str) -> Self {
        log_to_file();
        Self::new(Runner::start(options).await.unwrap(), admin.to_owned())
    }

    /// Starts a server with this allowlist for its internal routes.
    pub(crate) async fn start_guarded(internal: InternalGuard) -> Self {
        log_to_file();
        let options = Options { internal, ..options(Arc::new(SystemClock)) };
        let runner = Runner::start(options).await.unwrap();
        let admin = runner.bootstrap.api_key.as_ref().unwrap().expose().to_owned();
        Self::new(runner, admin)
    }

    fn new(runner: Runner, admin: String) -> Self {
        note_secret(runner.secrets.service_token.expose_secret());
        note_secret(runner.secrets.session_token_secret.expose_secret());
        note_secret(&admin);
        let organization_id = runner.bootstrap.organization.id.get();
        Self { audit: AuditCheck::new(&runner), runner, admin, organization_id, client: reqwest::Client::new() }
    }

    /// Disables the audit check, for a test that tampers with the audit log.
    pub(crate) fn skip_audit_check(&mut self) {
        self.audit.is_enabled = false;
    }

    /// Creates an organization. Returns its id and the token of its first key.
    pub(crate) async fn another_organization(&self, name: &str) -> (u64, String) {
        let bootstrap = bootstrap::organization(&self.runner.app, &slug(name), "local runner").await.unwrap();
        let token = bootstrap.api_key.unwrap().expose().to_owned();
        note_secret(&token);
        (bootstrap.organization.id.get(), token)
    }

    pub(crate) fn get(&self, path: &str) -> Request {
        self.request(Method::GET, path)
    }

    pub(crate) fn post(&self, path: &str, body: Value) -> Request {
        self.request(Method::POST, path).body(body)
    }

    pub(crate) fn patch(&self, path: &str, body: Value) -> Request {
        self.request(Method::PATCH, path).body(body)
    }

    pub(crate) fn delete(&self, path: &str) -> Request {
        self.request(Method::DELETE, path)
    }

    /// Builds a request with the admin key, which [`Request::bearer`] and [`Request::anonymous`]
    /// replace.
    pub(crate) fn request(&self, method: Method, path: &str) -> Request {
        self.request_to(method, &format!("{}{path}", self.runner.base_url))
    }

    /// Builds a request to the URL of another server.
    pub(crate) fn request_to(&self, method: Method, url: &str) -> Request {
        let request = self.client.request(method, url);
        Request { request, authorization: Some(format!("Bearer {}", self.admin).into_bytes()) }
    }

    /// Returns the handlers' app with an edited ring, as after a rotation.
    pub(crate) fn app_with_ring(&self, ring: Ring, edit: impl FnOnce(&mut Value)) -> App {
        let SecretSource::Fixed(mut texts) = self.runner.secrets.source() else { panic!("a local run's secrets") };
        let mut text = serde_json::from_str(texts[&ring.into()].expose_secret()).unwrap();
        edit(&mut text);
        texts.insert(ring.into(), text.to_string().into());
        let mut app = self.runner.app.clone();
        app.secrets = Arc::new(Secrets::new(SecretSource::Fixed(texts), Arc::clone(&app.clock)));
        app
    }

    /// Builds a request to an internal route with the service token.
    pub(crate) fn service(&self, method: Method, path: &str) -> Request {
        self.request(method, path).bearer(self.runner.secrets.service_token.expose_secret())
    }

    /// Creates a key of `acme` with these scopes. Returns its id and token.
    pub(crate) async fn key(&self, scopes: &[&str]) -> (u64, String) {
        self.key_with(json!({ "name": scopes.join(" "), "scopes": scopes })).await
    }

    /// Creates a key of `acme`. Returns its id and token.
    pub(crate) async fn key_with(&self, body: Value) -> (u64, String) {
        let created = self.post("/v1/api_keys", body).send().await.expect(201);
        (created["api_key"]["id"].as_u64().unwrap(), created["secret"].as_str().unwrap().to_owned())
    }

    /// Creates a project of `acme`. Returns its id.
    pub(crate) async fn project(&self, slug: &str) -> u64 {
        let created = self.post("/v1/agent_projects", json!({ "slug": slug, "name": slug })).send().await.expect(201);
        created["agent_project"]["id"].as_u64().unwrap()
    }

    /// Creates a release of a project of `acme`, which is active unless the body disables that.
    pub(crate) async fn deploy(&self, slug: &str, body: Value) -> Value {
        self.post(&format!("/v1/agent_projects/{slug}/deploys"), body).send().await.expect(201)["release"].take()
    }

    /// Writes the build state of a release directly to the store, for states that no route sets.
    pub(crate) async fn set_build(&self, release: &Value, build: &str) {
        let update = json!({
            "TableName": "karta",
            "Key": {
                "pk": { "S": format!("REL#{}#{}", self.organization_id, release["project_id"]) },
                "sk": { "S": format!("{:016}", release["version"].as_u64().unwrap()) },
            },
            "UpdateExpression": "SET #build = :build",
            "ExpressionAttributeNames": { "#build": "build" },
            "ExpressionAttributeValues": { ":build": { "S": build } },
        });
        self.dynamodb("UpdateItem", update).await;
    }

    /// Mints a session token for a project of `acme` with the admin key.
    pub(crate) async fn session_token(&self, slug: &str, body: Value) -> String {
        let minted = self.post(&format!("/v1/agent_projects/{slug}/session_tokens"), body).send().await.expect(201);
        minted["token"].as_str().unwrap().to_owned()
    }

    /// Reads a partition of the main table directly from the store.
    pub(crate) async fn items(&self, partition: &str) -> Vec<Value> {
        self.items_of("karta", partition).await
    }

    pub(crate) async fn items_of(&self, table: &str, partition: &str) -> Vec<Value> {
        let answer = self.dynamodb(
            "Query",
            json!({
                "TableName": table,
                "KeyConditionExpression": "pk = :pk",
                "ExpressionAttributeValues": { ":pk": { "S": partition } },
            }),
        );
        answer.await["Items"].as_array().unwrap().clone()
    }

    /// Reads a queue of the outbox of `acme`, oldest item first: `EVT`, `PSH` or `XPR`.
    pub(crate) async fn outbox(&self, queue: &str) -> Vec<Value> {
        self.items_of("karta-outbox", &format!("{queue}#{}", self.organization_id)).await.iter().map(plain).collect()
    }

    /// Runs a worker once.
    pub(crate) async fn work(&self, worker: &str) {
        self.try_work(worker).await.unwrap();
    }

    pub(crate) async fn try_work(&self, worker: &str) -> Result<(), Fault> {
        registry::workers(&self.runner.app, &self.runner.gateway)[worker]().await
    }

    /// Reads the audit log of `acme`, oldest event first.
    pub(crate) async fn audit_events(&self) -> Vec<Value> {
        self.items(&format!("AUD#{}", self.organization_id)).await.iter().map(plain).collect()
    }

    /// Reads the events of `action` from the audit log of `acme`.
    pub(crate) async fn audited(&self, action: &str) -> Vec<Value> {
        let events = self.audit_events().await;
        events.into_iter().filter(|event| event["action"] == action).collect()
    }

    /// Reads all items of all tables.
    pub(crate) async fn stored(&self) -> Vec<Value> {
        let mut items = Vec::new();
        for table in ["karta", "karta-credentials", "karta-outbox", "karta-usage", "karta-anchors", "karta-sessions"] {
            let answer = self.dynamodb("Scan", json!({ "TableName": table })).await;
            assert!(answer.get("LastEvaluatedKey").is_none(), "more than one page of {table}");
            items.extend(answer["Items"].as_array().unwrap().iter().map(plain));
        }
        items
    }

    /// Reads all items of a table.
    pub(crate) async fn scan(&self, table: &str) -> Vec<Value> {
        let mut items = Vec::new();
        let mut start = Value::Null;
        loop {
            let mut body = json!({ "TableName": table });
            if !start.is_null() {
                body["ExclusiveStartKey"] = start;
            }
            let mut page = self.dynamodb("Scan", body).await;
            items.extend(page["Items"].as_array().unwrap().iter().map(plain));
            start = page["LastEvaluatedKey"].take();
            if start.is_null() {
                return items;
            }
        }
    }

    /// Writes the subscription status of `acme` directly to the store.
    pub(crate) async fn set_subscription(&self, status: &str) {
        let update = json!({
            "TableName": "karta",
            "Key": { "pk": { "S": format!("ORG#{}", self.organization_id) }, "sk": { "S": "META" } },
            "UpdateExpression": "SET subscription_status = :status",
            "ExpressionAttributeValues": { ":status": { "S": status } },
        });
        self.dynamodb("UpdateItem", update).await;
    }

    /// Sends a DynamoDB operation directly to the embedded store.
    pub(crate) async fn dynamodb(&self, operation: &str, body: Value) -> Value {
        let access_key = self.runner.emulator.access_key().expose_secret();
        let answer = self
            .client
            .post(self.runner.emulator.endpoint())
            .header("x-amz-target", format!("DynamoDB_20120810.{operation}"))
            .header("content-type", "application/x-amz-json-1.0")
            .header("x-amz-date", "20261121T120000Z")
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 Credential={access_key}/20261121/us-east-1/dynamodb/aws4_request"),
            )
            .body(body.to_string())
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        answer.json().await.unwrap()
    }

    /// Returns whether an authorizer with cold caches allows this header, without the gateway's own
    /// checks.
    pub(crate) async fn authorizes(&self, header: &str) -> bool {
        let event = AuthorizerEvent::token(header, "arn:aws:execute-api:local:000000000000:karta/local/GET/v1/whoami");
        let answer = Authorizer::new(self.runner.app.for_function(authorizer::NAME)).authorize(&event).await.unwrap();
        let allowed =
            answer.policy_document.statement.iter().all(|statement| statement.effect == IamPolicyEffect::Allow);
        assert_eq!(allowed, answer.context != json!({}), "a Deny has no context");
        allowed
    }
}

/// Chains the pending events of a server's audit logs when the server is dropped, and verifies all
/// logs. Uses its own thread and runtime, and no proxy.
struct AuditCheck {
    is_enabled: bool,
    endpoint: String,
    access_key: SecretString,
    secrets: HashMap<Secret, SecretString>,
}

impl AuditCheck {
    fn new(runner: &Runner) -> Self {
        let SecretSource::Fixed(secrets) = runner.secrets.source() else { panic!("a local run's secrets") };
        let emulator = &runner.emulator;
        Self { is_enabled: true, endpoint: emulator.endpoint(), access_key: emulator.access_key().clone(), secrets }
    }

    async fn report(endpoint: String, access_key: SecretString, secrets: SecretSource) -> Report {
        let (clock, config) = (Arc::new(SystemClock), Config::local(Tables::local(), Some(4)).unwrap());
        let sdk = config::local_sdk(&endpoint, &access_key).await;
        let app = App::new(config, &sdk, secrets, clock, Arc::new(OsEntropy));
        AuditChain::new(app.clone()).work(&Wake::Sweep).await.unwrap();
        let ring = app.secrets.ring(Ring::Audit).await.unwrap();
        audit::verify(&app.store.audit_reader(), &ring, app.clock.now()).await.unwrap()
    }
}

impl Drop for AuditCheck {
    fn drop(&mut self) {
        let stopped = || TcpStream::connect(self.endpoint.trim_start_matches("http://")).is_err();
        if !self.is_enabled || thread::panicking() || stopped() {
            return;
        }
        let (endpoint, access_key) = (self.endpoint.clone(), self.access_key.clone());
        let secrets = SecretSource::Fixed(std::mem::take(&mut self.secrets));
        let checked = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Self::report(endpoint, access_key, secrets))
        });
        let report = checked.join().expect("the audit logs can be verified");
        let pending: usize = report.organizations.iter().map(|(_, checked)| checked.pending).sum();
        assert!(report.is_clean() && pending == 0, "{:#?}", report.lines());
    }
}

pub(crate) struct Request {
    request: reqwest::RequestBuilder,
    authorization: Option<Vec<u8>>,
}

impl Request {
    pub(crate) fn bearer(self, token: &str) -> Self {
        self.authorization(format!("Bearer {token}"))
    }

    pub(crate) fn authorization(mut self, header: impl Into<Vec<u8>>) -> Self {
        self.authorization = Some(header.into());
        self
    }

    pub(crate) fn anonymous(mut self) -> Self {
        self.authorization = None;
        self
    }

    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.request = self.request.header(name, HeaderValue::from_bytes(value.as_ref()).unwrap());
        self
    }

    pub(crate) fn idempotency_key(self, key: impl AsRef<[u8]>) -> Self {
        self.header("idempotency-key", key)
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers write the body in place")]
    pub(crate) fn body(self, body: Value) -> Self {
        self.raw_body(body.to_string())
    }

    pub(crate) fn raw_body(mut self, body: impl Into<reqwest::Body>) -> Self {
        self.request = self.request.body(body);
        self
    }

    /// Returns the response with its body unread, for a stream.
    pub(crate) async fn open(self) -> reqwest::Response {
        let request = match self.authorization {
            Some(header) => self.request.header("authorization", header),
            None => self.request,
        };
        request.send().await.unwrap()
    }

    pub(crate) async fn send(self) -> Reply {
        Self::read(self.open().await).await
    }

    /// Reads a response to its end.
    pub(crate) async fn read(answer: reqwest::Response) -> Reply {
        let (status, headers) = (answer.status(), answer.headers().clone());
        let text = answer.text().await.unwrap();
        let json: Value =
            if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(json!(text)) };
        for secret in ["secret", "token"] {
            if let Some(secret) = json[secret].as_str() {
                note_secret(secret);
            }
        }
        Reply { status, headers, json, text }
    }
}

/// A response.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Value,
    pub(crate) text: String,
}

impl Reply {
    /// Asserts the status and the headers that every response must have. Returns the body.
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        let request_id = self.headers.get("x-request-id").expect("every response has x-request-id");
        let challenges = ["www-authenticate", "x-amzn-remapped-www-authenticate"];
        let challenges = challenges.iter().flat_map(|name| self.headers.get_all(*name)).collect::<Vec<_>>();
        assert!(challenges.iter().all(|challenge| *challenge == "Bearer"), "{challenges:?}");
        assert_eq!(challenges.len(), usize::from(status == 401), "every 401 has one challenge");
        if !self.status.is_success() {
            assert_eq!(self.json["request_id"], request_id.to_str().unwrap(), "{}", self.text);
        }
        self.json
    }

    /// Asserts a validation error. Returns its field.
    pub(crate) fn invalid_field(self) -> String {
        let body = self.refused(422);
        assert_eq!(body["error"], "validation_failed", "{body}");
        assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        body["field"].as_str().unwrap().to_owned()
    }

    /// Asserts a 403. Returns its detail.
    pub(crate) fn forbidden(self) -> String {
        self.refused(403)["detail"].as_str().unwrap().to_owned()
    }

    /// Asserts the status of an error. Returns its body without the request id.
    pub(crate) fn refused(self, status: u16) -> Value {
        let mut body = self.expect(status);
        body.as_object_mut().unwrap().remove("request_id");
        body
    }
}

/// The body of every 401 without its request id.
pub(crate) fn unauthorized() -> Value {
    json!({
        "detail": "Unauthorized",
        "message": "Send Authorization: Bearer <key>. Use this header once, and no other header such as X-API-Key. If you did, \
                    the key or token is unknown, revoked, expired, not valid on this kind of route, or not allowed from this address.",
    })
}

/// The body of the 404 for an unknown path, without its request id.
pub(crate) fn unknown_route() -> Value {
    json!({ "detail": "Not found", "error": "unknown_route" })
}

/// Converts a DynamoDB item to plain JSON.
pub(crate) fn plain(item: &Value) -> Value {
    let fields = item.as_object().unwrap().iter();
    fields.map(|(name, attribute)| (name.clone(), plain_attribute(attribute))).collect()
}

fn plain_attribute(attribute: &Value) -> Value {
    let (kind, value) = attribute.as_object().unwrap().iter().next().unwrap();
    match kind.as_str() {
        "N" => serde_json::from_str(value.as_str().unwrap()).unwrap(),
        "NULL" => Value::Null,
        "M" => plain(value),
        "L" => value.as_array().unwrap().iter().map(plain_attribute).collect(),
        _ => value.clone(),
    }
}

/// The default options of a server: one organization, no data on disk, no running workers.
pub(crate) fn options(clock: Arc<dyn Clock>) -> Options {
    Options {
        host: [127, 0, 0, 1].into(),
        port: 0,
        data_dir: None,
        organization: slug("acme"),
        bcrypt_cost: Some(4),
        session_token_secret: None,
        service_tokens: None,
        data_planes: None,
        stripe_secrets: None,
        internal: InternalGuard::default(),
        outbound_reach: Reach::Public,
        // Long deadlines, because only tests with a hanging store need those of a deployed stack.
        deadlines: Deadlines::times(10),
        turn_limits: TurnLimits::DEFAULT,
        provider_base_urls: None,
        demo: false,
        workers: false,
        call_observer: Some(Arc::new(Calls::kept())),
        clock,
        entropy: Arc::new(OsEntropy),
    }
}

pub(crate) fn slug(text: &str) -> Slug {
    Slug::try_from(text.to_owned()).unwrap()
}

/// Records a secret for the check of the logs after the run.
pub(crate) fn note_secret(secret: &str) {
    static FILE: OnceLock<Mutex<File>> = OnceLock::new();
    let file = FILE.get_or_init(|| Mutex::new(run_file("secrets", "txt")));
    writeln!(file.lock().unwrap(), "{secret}").unwrap();
}

/// Writes the log of this process to `target/run/logs/`. Panics go to the log and the test runner.
pub(crate) fn log_to_file() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let shown = std::panic::take_hook();
        telemetry::init(telemetry::Output::File(run_file("logs", "log")), "debug").unwrap();
        let logged = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            logged(panic);
            shown(panic);
        }));
    });
}

/// Returns the path of `target/run/<folder>/`.
pub(crate) fn run_folder(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("run").join(folder)
}

/// Opens the file of this process under `target/run/<folder>/`.
pub(crate) fn run_file(folder: &str, extension: &str) -> File {
    let folder = run_folder(folder);
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("it-{}.{extension}", std::process::id()));
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}

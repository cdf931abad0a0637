//! The `karta` binary as a process: flags, signals, files and output.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use karta_local::variables;
use karta_shared::{
    clock::{Clock, SystemClock},
    config::{Ring, Secret, SecretSource},
};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::{
    data_plane::{DataPlane, configured, token},
    harness::{TestServer, WAIT_TIMEOUT, note_secret, run_file, until},
    invariants::Tables,
    webhooks::Receiver,
};

/// Returns the binary's command with a clean environment, so that no variable of the test run
/// affects it.
fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karta"));
    command.args(arguments).env_clear().envs([("KARTA_BCRYPT_COST", "4"), ("KARTA_LOG", "debug")]);
    command.envs(environment.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// A running process, with the values that it printed at its start.
pub(crate) struct Karta {
    child: Child,
    described: Value,
    log: PathBuf,
    folder: TempDir,
    client: reqwest::Client,
}

impl Karta {
    /// Starts with `--port 0 --json` and these flags.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_with(&[&["--port", "0", "--json"], arguments].concat(), &[])
    }

    pub(crate) fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("stderr");
        let mut command = command(arguments, environment);
        let mut child = command.current_dir(&folder).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let described: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("no JSON line: {line}{}", fs::read_to_string(&log).unwrap()));
        for secret in ["api_key", "service_token", "session_token_secret"] {
            described[secret].as_str().into_iter().for_each(note_secret);
        }
        Self { child, described, log, folder, client: reqwest::Client::new() }
    }

    /// Starts without `--json`. `described` has the variables that the greeting exports.
    fn start_with_greeting(data: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("stderr");
        let mut command = command(&["--port", "0", "--data-dir", text(data)], &[]);
        let mut child = command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let exports = lines.take_while(|line| !line.ends_with("Press Ctrl-C to stop.")).filter_map(|line| {
            let (name, value) = line.strip_prefix("  export ")?.split_once('=')?;
            Some((name.to_owned(), Value::from(value)))
        });
        let described = Value::Object(exports.collect());
        described["KARTA_API_KEY"].as_str().into_iter().for_each(note_secret);
        Self { child, described, log, folder, client: reqwest::Client::new() }
    }

    /// Returns a value that the process printed.
    pub(crate) fn says(&self, field: &str) -> &str {
        self.described[field].as_str().unwrap()
    }

    pub(crate) async fn request(&self, method: Method, path: &str, token: &str, body: &Value) -> (StatusCode, Value) {
        let url = format!("{}{path}", self.says("base_url"));
        let request = self.client.request(method, url).bearer_auth(token).body(body.to_string());
        let answer = request.send().await.unwrap();
        let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
        ["secret", "token"].iter().filter_map(|field| body[field].as_str()).for_each(note_secret);
        (status, body)
    }

    async fn create_key(&self, admin: &str) -> String {
        let body = json!({ "name": "ci", "scopes": ["read"] });
        let (status, created) = self.request(Method::POST, "/v1/api_keys", admin, &body).await;
        assert_eq!(status, 201, "{created}");
        created["secret"].as_str().unwrap().to_owned()
    }

    async fn session_token(&self, admin: &str) -> String {
        let project = json!({ "slug": "app", "name": "App" });
        self.request(Method::POST, "/v1/agent_projects", admin, &project).await;
        let path = "/v1/agent_projects/app/session_tokens";
        let (status, minted) = self.request(Method::POST, path, admin, &json!({})).await;
        assert_eq!(status, 201, "{minted}");
        minted["token"].as_str().unwrap().to_owned()
    }

    async fn status(&self, path: &str, token: &str) -> StatusCode {
        self.request(Method::GET, path, token, &json!({})).await.0
    }

    /// Ends the process with SIGKILL.
    pub(crate) fn kill(self) {
        drop(self);
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Sends a signal and waits for the process to exit.
    fn end(mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        let signaled_at = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(signaled_at.elapsed() < WAIT_TIMEOUT, "still running after {WAIT_TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Karta {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        let log = fs::read(&self.log).unwrap_or_default();
        run_file("logs", "process.log").write_all(&log).ok();
    }
}

/// Returns the standard error of a start that fails.
fn startup_error(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(arguments, environment);
    let mut child = command.current_dir(&folder).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > WAIT_TIMEOUT {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.code().is_some_and(|code| code != 0), "it started with {arguments:?} {environment:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn json_line_is_documented_and_shows_key_once() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let karta = Karta::start(&["--data-dir", text(&data)]);
    let first = karta.described.clone();
    let fields: Vec<_> = first.as_object().unwrap().keys().map(String::as_str).collect();
    let documented = [
        "api_key",
        "base_url",
        "data_dir",
        "organization_id",
        "organization_slug",
        "service_token",
        "session_token_secret",
    ];
    assert_eq!(fields, documented);
    assert!(karta.says("base_url").strip_prefix("http://127.0.0.1:").unwrap().parse::<u16>().unwrap() > 0);
    assert_eq!((karta.says("data_dir"), karta.says("organization_slug")), (text(&data), "acme"));
    assert_eq!(karta.status("/healthz", "none").await, 200);
    let (_, principal) = karta.request(Method::GET, "/v1/whoami", karta.says("api_key"), &json!({})).await;
    assert_eq!(principal["organization_id"], first["organization_id"]);
    assert!(karta.end("-TERM").success());

    let again = Karta::start(&["--data-dir", text(&data)]);
    assert!(again.described["api_key"].is_null());
    for kept in ["organization_id", "organization_slug", "service_token", "session_token_secret", "data_dir"] {
        assert_eq!(again.described[kept], first[kept], "{kept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn greeting_exports_url_and_key() {
    let data = tempfile::tempdir().unwrap();
    let karta = Karta::start_with_greeting(data.path());
    let whoami = format!("{}/v1/whoami", karta.says("KARTA_BASE_URL"));
    let answer = karta.client.get(&whoami).bearer_auth(karta.says("KARTA_API_KEY")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(karta.end("-INT").success());

    let again = Karta::start_with_greeting(data.path());
    let exported: Vec<_> = again.described.as_object().unwrap().keys().collect();
    assert_eq!(exported, ["KARTA_BASE_URL"]);
    let health = format!("{}/healthz", again.says("KARTA_BASE_URL"));
    assert_eq!(again.client.get(&health).send().await.unwrap().status(), 200);
}

/// The first key is shown only once, when the organization is created.
#[tokio::test(flavor = "multi_thread")]
async fn taken_port_loses_no_first_key() {
    let data = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let refused =
        command(&["--data-dir", text(data.path()), "--port", &port], &[]).stderr(Stdio::piped()).output().unwrap();
    assert!(!refused.status.success());
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(message.contains("choose another --port"), "{message}");
    let started = Karta::start(&["--data-dir", text(data.path())]);
    assert_eq!(started.status("/v1/whoami", started.says("api_key")).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_organization_gets_its_own_first_key() {
    let data = tempfile::tempdir().unwrap();
    let first = Karta::start(&["--data-dir", text(data.path())]).described.clone();
    let other = Karta::start(&["--data-dir", text(data.path()), "--org", "globex"]);
    assert_eq!(other.says("organization_slug"), "globex");
    assert_ne!(other.described["organization_id"], first["organization_id"]);
    assert_ne!(other.says("api_key"), first["api_key"].as_str().unwrap());
    assert_eq!(other.status("/v1/whoami", other.says("api_key")).await, 200);
    assert_eq!(other.status("/v1/whoami", first["api_key"].as_str().unwrap()).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let mut karta = Karta::start(&["--data-dir", text(folder.path())]);
    let admin = karta.says("api_key").to_owned();
    let session = karta.session_token(&admin).await;
    for _ in 0..3 {
        let key = karta.create_key(&admin).await;
        karta.child.kill().unwrap();
        drop(karta);
        karta = Karta::start(&["--data-dir", text(folder.path())]);
        for token in [&admin, &key] {
            assert_eq!(karta.status("/v1/whoami", token).await, 200);
        }
        assert_eq!(karta.status("/v1/projects/app/whoami", &session).await, 200, "the rings survive a restart");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_during_writes_leaves_no_partial_write() {
    let folder = tempfile::tempdir().unwrap();
    let karta = Karta::start(&["--data-dir", text(folder.path())]);
    let admin = karta.says("api_key").to_owned();
    let url = format!("{}/v1/api_keys", karta.says("base_url"));
    let (sender, mut created_keys) = mpsc::unbounded_channel();
    for _ in 0..64 {
        let body = json!({ "name": "ci", "scopes": ["admin"] }).to_string();
        let (request, sender) = (karta.client.post(&url).bearer_auth(&admin).body(body), sender.clone());
        tokio::spawn(async move {
            let created: Value = request.send().await.ok()?.json().await.ok()?;
            sender.send(created).ok()
        });
    }
    drop(sender);
    let mut acknowledged = Vec::new();
    for _ in 0..8 {
        acknowledged.push(created_keys.recv().await.unwrap());
    }
    drop(karta);
    while let Some(created) = created_keys.recv().await {
        acknowledged.push(created);
    }
    let server = TestServer::start_over(folder.path().to_owned(), &admin).await;
    let tables = Tables::new(&server).await;
    tables.assert_consistent();
    assert!(acknowledged.len() < 64, "the kill must interrupt the writes");
    for created in acknowledged {
        note_secret(created["secret"].as_str().unwrap());
        assert!(tables.key_ids().contains(&created["api_key"]["id"].as_u64().unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_and_sigterm_exit_cleanly() {
    for signal in ["-INT", "-TERM"] {
        let karta = Karta::start(&["--ephemeral"]);
        assert_eq!(karta.status("/healthz", "none").await, 200);
        assert_eq!(karta.end(signal).code(), Some(0), "{signal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_runner_over_same_data_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = text(folder.path());
    let karta = Karta::start(&["--data-dir", data]);
    let message = startup_error(&["--port", "0", "--data-dir", data], &[]);
    assert_eq!(message, format!("karta: {data} is in use by another runner: stop it, or choose another --data-dir\n"));
    assert_eq!(karta.status("/v1/whoami", karta.says("api_key")).await, 200);
    assert!(karta.end("-TERM").success());
    Karta::start(&["--data-dir", data]);
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_override_their_environment_variables() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let environment = [
        ("KARTA_HOST", "127.0.0.2"),
        ("KARTA_PORT", "0"),
        ("KARTA_DATA_DIR", text(&data)),
        ("KARTA_ORG", "initech"),
        ("KARTA_JSON", "1"),
    ];
    let karta = Karta::start_with(&[], &environment);
    assert!(karta.says("base_url").starts_with("http://127.0.0.2:"), "{}", karta.says("base_url"));
    assert_eq!((karta.says("data_dir"), karta.says("organization_slug")), (text(&data), "initech"));
    drop(karta);

    let other = folder.path().join("other");
    let flags = ["--host", "127.0.0.1", "--data-dir", text(&other), "--org", "hooli"];
    let karta = Karta::start_with(&flags, &environment);
    assert!(karta.says("base_url").starts_with("http://127.0.0.1:"));
    assert_eq!((karta.says("data_dir"), karta.says("organization_slug")), (text(&other), "hooli"));
    drop(karta);

    // A port that was free a moment ago, on an address that no other test listens on.
    let free = Karta::start(&["--ephemeral", "--host", "127.0.0.3"]).says("base_url").to_owned();
    let port = free.rsplit(':').next().unwrap();
    let environment = [("KARTA_HOST", "127.0.0.3"), ("KARTA_PORT", port), ("KARTA_EPHEMERAL", "true")];
    let karta = Karta::start_with(&["--json"], &environment);
    assert_eq!(karta.says("base_url"), free);
    assert!(karta.described["data_dir"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_variable_is_reported_without_its_value() {
    // In two parts, because every whole name in the sources must be known.
    let (misspelt, value) = (format!("KARTA_{}", "PROT"), "8788-of-another-variable");
    let environment = [(misspelt.as_str(), value), ("KARTA_BASE_URL", "http://127.0.0.1:8787"), ("KART", value)];
    let karta = Karta::start_with(&["--port", "0", "--json", "--ephemeral"], &environment);
    let log = fs::read_to_string(&karta.log).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .filter(|line| line.contains("unknown environment variable"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert_eq!((&lines[0]["level"], &lines[0]["variable"]), (&json!("WARN"), &json!(misspelt)));
    assert_eq!(lines[0]["closest"], "KARTA_PORT");

    let (code, _, error) = run_to_end(&["openapi"], &environment).await;
    let warning =
        format!("karta: the environment variable {misspelt} is unknown and has no effect: did you mean KARTA_PORT?\n");
    assert_eq!((code, error), (Some(0), warning));
    assert!(!log.contains(value), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_variables_count_as_unset() {
    let known = variables::known();
    let empty: Vec<_> = known.iter().map(|name| (name.as_str(), "")).collect();
    for variable in &empty {
        let (code, _, error) = run_to_end(&["openapi"], &[*variable]).await;
        assert_eq!((code, error.as_str()), (Some(0), ""), "{variable:?}");
    }
    // The address is not used by other runners, which may have the default port.
    let karta = Karta::start_with(&["--host", "127.0.0.87", "--bcrypt-cost", "4", "--json", "--ephemeral"], &empty);
    assert_eq!((karta.says("base_url"), karta.says("organization_slug")), ("http://127.0.0.87:8787", "acme"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bcrypt_cost_is_configurable() {
    for (flags, variable, cost) in [(&["--bcrypt-cost", "5"][..], "4", "05"), (&[], "6", "06")] {
        let folder = tempfile::tempdir().unwrap();
        let data = text(folder.path());
        let arguments = [&["--port", "0", "--json", "--data-dir", data], flags].concat();
        let karta = Karta::start_with(&arguments, &[("KARTA_BCRYPT_COST", variable)]);
        let admin = karta.says("api_key").to_owned();
        karta.end("-TERM");
        let server = TestServer::start_over(folder.path().to_owned(), &admin).await;
        let scan = server.dynamodb("Scan", json!({ "TableName": "karta-credentials" })).await;
        let digest = scan["Items"][0]["digest"]["S"].as_str().unwrap();
        assert!(digest.starts_with(&format!("$2b${cost}$")), "{flags:?} {variable}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_tokens_are_signed_with_configured_secret() {
    let secret = "a secret that a data plane on this machine knows";
    note_secret(secret);
    let flags = ["--port", "0", "--json", "--ephemeral"];
    let karta = Karta::start_with(&flags, &[("KARTA_SESSION_TOKEN_SECRET", secret)]);
    assert_eq!(karta.says("session_token_secret"), secret);
    let token = karta.session_token(karta.says("api_key")).await;
    let key = DecodingKey::from_secret(secret.as_bytes());
    let claims = jsonwebtoken::decode::<Value>(&token, &key, &Validation::new(Algorithm::HS256)).unwrap().claims;
    assert_eq!(claims["org_id"], karta.described["organization_id"]);
    assert_eq!(karta.status("/v1/projects/app/whoami", &token).await, 200);

    let short = "0123456789abcdefghijklmnopqrstu";
    let message = startup_error(&flags, &[("KARTA_SESSION_TOKEN_SECRET", short)]);
    assert!(message.contains("KARTA_SESSION_TOKEN_SECRET") && message.contains("at least 32"), "{message}");
    assert!(!message.contains(short), "{message}");
    let ring = format!(r#"{{"current":"k1","k1":"{secret}"}}"#);
    for (given, problem) in [
        (format!(" {secret}"), "must not start or end with blanks"),
        (format!("{secret}\n"), "must not start or end with blanks"),
        (ring, "must be one plain secret, not the JSON of a ring: use the ring's current key"),
        (r#"{ "key": "0f1e2d3c4b5a69788796a5b4c3d2e1f0" }"#.to_owned(), "must be one plain secret"),
    ] {
        let message = startup_error(&flags, &[("KARTA_SESSION_TOKEN_SECRET", &given)]);
        assert!(message.contains(&format!("KARTA_SESSION_TOKEN_SECRET: {problem}")), "{message}");
        assert!(!message.contains(secret) && !message.contains("0f1e2d3c"), "{message}");
    }
}

#[test]
fn invalid_value_stops_start_and_names_flag() {
    let flags = [
        ("--host", "nowhere"),
        ("--host", "203.0.113.1"),
        ("--port", "70000"),
        ("--port", "-1"),
        ("--data-dir", "/proc/nothing/here"),
        ("--org", "Bad_Slug"),
        ("--org", ""),
        ("--bcrypt-cost", "3"),
        ("--bcrypt-cost", "32"),
        ("--bcrypt-cost", "twelve"),
        ("--log", "==="),
        ("--log", "verbose"),
        ("--log", "info,karta_shared"),
        ("--log", "karta_shared=verbose"),
    ];
    for (flag, value) in flags {
        let port: &[_] = if flag == "--port" { &[] } else { &["--port", "0"] };
        let message = startup_error(&[port, &[&format!("{flag}={value}")]].concat(), &[]);
        assert!(message.contains(flag), "{flag} {value}: {message}");
        if value.is_empty() {
            // An empty variable counts as unset.
            continue;
        }
        let variable = format!("KARTA_{}", flag[2..].to_ascii_uppercase().replace('-', "_"));
        let message = startup_error(port, &[(&variable, value)]);
        assert!(message.contains(flag), "{variable}={value}: {message}");
    }
    for variable in ["KARTA_EPHEMERAL", "KARTA_JSON"] {
        let message = startup_error(&["--port", "0"], &[(variable, "perhaps")]);
        assert!(message.contains(&format!("--{}", variable[6..].to_ascii_lowercase())), "{message}");
    }
    assert!(startup_error(&["--colour"], &[]).contains("--colour"));
    assert!(startup_error(&["--log=verbose"], &[]).contains("must be one of off, error, warn, info, debug, trace"));
}

#[test]
fn guessable_and_shared_secrets_stop_start() {
    let flags = ["--port", "0", "--ephemeral"];
    let (session, service, stripe) = ("KARTA_SESSION_TOKEN_SECRET", "KARTA_SERVICE_TOKENS", "KARTA_STRIPE_SECRETS");
    let good = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
    let zeros = "0".repeat(40);
    for (environment, problem) in [
        (vec![(session, zeros.clone())], "KARTA_SESSION_TOKEN_SECRET: entry 1 has fewer than 8 different characters"),
        (vec![(session, "changeme".repeat(5))], "KARTA_SESSION_TOKEN_SECRET: entry 1 has fewer"),
        (vec![(service, format!("{good},karta_service_{zeros}"))], "KARTA_SERVICE_TOKENS: entry 2 has fewer"),
        (vec![(stripe, format!("whsec_{zeros}"))], "KARTA_STRIPE_SECRETS: entry 1 has fewer"),
        (
            vec![(session, good.to_owned()), (service, format!("a-first-token-of-thirty-two-bytes,{good}"))],
            "KARTA_SESSION_TOKEN_SECRET and KARTA_SERVICE_TOKENS: entry 1 of the first equals entry 2 of the second",
        ),
        (
            vec![(session, format!("whsec_{good}")), (stripe, format!("whsec_{good}"))],
            "KARTA_SESSION_TOKEN_SECRET and KARTA_STRIPE_SECRETS: entry 1",
        ),
    ] {
        let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let message = startup_error(&flags, &environment);
        assert!(message.contains(problem), "{message}");
        assert!(!message.contains(good) && !message.contains(&zeros) && !message.contains("changeme"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn internal_routes_accept_configured_service_tokens() {
    let tokens = ["a-first-token-of-thirty-two-bytes-or-more", "a-second-token-of-thirty-two-bytes-or-more"];
    tokens.into_iter().for_each(note_secret);
    let flags = ["--port", "0", "--json", "--ephemeral"];
    let karta = Karta::start_with(&flags, &[("KARTA_SERVICE_TOKENS", &tokens.join(","))]);
    assert_eq!(karta.says("service_token"), tokens[0]);
    let body = json!({ "key": karta.says("api_key") });
    for token in tokens {
        let (status, verdict) = karta.request(Method::POST, "/v1/internal/keys/validate", token, &body).await;
        assert_eq!((status.as_u16(), &verdict["valid"]), (200, &json!(true)));
    }
    assert_eq!(karta.status("/v1/internal/whoami", &tokens.join(",")).await, 401);

    for (given, problem) in [
        (format!("{},short", tokens[0]), "the token local-2 has 5 bytes; it needs at least 32"),
        (format!("{},", tokens[0]), "the token local-2 has 0 bytes"),
        (format!("{0},{0}", tokens[0]), "the tokens local-1 and local-2 are the same"),
        (format!("{}, {}", tokens[0], tokens[1]), "the token local-2 contains a space"),
    ] {
        let message = startup_error(&flags, &[("KARTA_SERVICE_TOKENS", &given)]);
        assert!(message.contains("KARTA_SERVICE_TOKENS") && message.contains(problem), "{message}");
        assert!(tokens.iter().all(|token| !message.contains(token)), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn internal_routes_beyond_loopback_require_allowlists() {
    let flags = ["--port", "0", "--json", "--ephemeral"];
    let lists = [("KARTA_INTERNAL_ALLOWED_IPS", "127.0.0.0/8"), ("KARTA_INTERNAL_HOSTS", "127.0.0.1, localhost")];
    let everywhere = [&flags[..], &["--host", "0.0.0.0"]].concat();
    for (flags, lists, status) in [
        (&flags[..], &lists[..0], 200),
        (&everywhere, &lists[..0], 404),
        (&everywhere, &lists[..1], 404),
        (&everywhere, &lists[1..], 404),
        (&everywhere, &lists[..], 200),
    ] {
        let karta = Karta::start_with(flags, lists);
        let url = karta.says("base_url").replace("0.0.0.0", "127.0.0.1") + "/v1/internal/whoami";
        let answer = karta.client.get(url).bearer_auth(karta.says("service_token")).send().await.unwrap();
        assert_eq!(answer.status(), status, "{flags:?} {lists:?}");
    }
}

#[test]
fn invalid_list_entry_stops_start_and_is_named() {
    let flags = ["--port", "0", "--ephemeral"];
    for (variable, list, entry) in [
        ("KARTA_INTERNAL_ALLOWED_IPS", "10.0.0.0/8, 10.0.0.1/8", r#"entry 2 ("10.0.0.1/8") must start"#),
        ("KARTA_INTERNAL_ALLOWED_IPS", "anywhere", r#"entry 1 ("anywhere") must be an IPv4 or IPv6 range"#),
        ("KARTA_INTERNAL_HOSTS", "localhost,*.example", r#"entry 2 ("*.example") must be a host name"#),
    ] {
        let message = startup_error(&flags, &[(variable, list)]);
        assert!(message.contains(variable) && message.contains(entry), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_reaches_data_plane_within_a_second() {
    let plane = DataPlane::start("p").await;
    let flags = ["--port", "0", "--json", "--ephemeral"];
    let karta = Karta::start_with(&flags, &[("KARTA_DATA_PLANES", &configured(&[("here", &plane)]))]);
    let admin = karta.says("api_key");
    let body = json!({ "name": "ci", "scopes": ["read"] });
    // A busy machine delays some pushes, but not all of them.
    let mut on_time = 0;
    for count in 1..=40 {
        let (_, created) = karta.request(Method::POST, "/v1/api_keys", admin, &body).await;
        let path = format!("/v1/api_keys/{}", created["api_key"]["id"]);
        let (status, _) = karta.request(Method::DELETE, &path, admin, &json!({})).await;
        let revoked = Instant::now();
        assert_eq!(status, 200);
        let received = plane.wait_for(count).await;
        let latest = received.last().unwrap();
        assert_eq!(latest.body, json!({ "organization_id": karta.described["organization_id"] }));
        on_time += usize::from(latest.at.saturating_duration_since(revoked) < Duration::from_secs(1));
        if on_time == 3 {
            return;
        }
    }
    panic!("{on_time} of 40 changes were pushed within a second");
}

#[test]
fn invalid_data_plane_stops_start_and_names_field() {
    let flags = ["--port", "0", "--ephemeral"];
    let secret = token("s");
    let url = "https://eu.example.com";
    for (given, problem) in [
        (secret.clone(), "it must be a JSON object of data planes by name"),
        (json!([secret]).to_string(), "it must be a JSON object of data planes by name"),
        (
            json!({ "eu": { "url": "http://eu.example.com", "token": secret } }).to_string(),
            "url of the data plane eu must",
        ),
        (json!({ "eu": { "url": secret, "token": secret } }).to_string(), "url of the data plane eu must start with"),
        (json!({ "eu": { "url": url, "token": secret[..31] } }).to_string(), "token of the data plane eu must have"),
        (json!({ secret.clone(): { "url": url, "token": secret } }).to_string(), "invalid name (41 bytes)"),
    ] {
        let message = startup_error(&flags, &[("KARTA_DATA_PLANES", &given)]);
        assert!(message.starts_with("karta: KARTA_DATA_PLANES cannot be read: "), "{message}");
        assert!(message.contains(problem) && !message.contains("ssssssss"), "{message}");
    }
    let shared = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
    let planes = json!({ "eu": { "url": url, "token": shared } }).to_string();
    let message = startup_error(&flags, &[("KARTA_DATA_PLANES", &planes), ("KARTA_SERVICE_TOKENS", shared)]);
    assert!(message.contains("the token of the data plane eu is also a service token"), "{message}");
    assert!(!message.contains(shared), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stripe_signing_secrets_come_from_the_environment() {
    let secrets = ["whsec_ofALaptopAndNobodyElse", "whsec_ofTheSameLaptopToo"];
    secrets.into_iter().for_each(note_secret);
    let flags = ["--port", "0", "--json", "--ephemeral"];
    for (environment, status) in [(&[][..], 404), (&[("KARTA_STRIPE_SECRETS", secrets.join(","))][..], 400)] {
        let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let karta = Karta::start_with(&flags, &environment);
        let (answered, _) = karta.request(Method::POST, "/v1/stripe/events", "nobody", &json!({})).await;
        assert_eq!(answered.as_u16(), status);
    }
    for (given, problem) in [
        (format!("{},whsec_short", secrets[0]), "signing secret 2 is invalid"),
        (format!("{}, {}", secrets[0], secrets[1]), "signing secret 2 is invalid"),
        (secrets[0].replace("whsec_", "sk_test_"), "signing secret 1 is invalid"),
    ] {
        let message = startup_error(&flags, &[("KARTA_STRIPE_SECRETS", &given)]);
        assert!(message.contains("KARTA_STRIPE_SECRETS") && message.contains(problem), "{message}");
        assert!(!message.contains("aptop"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_prices_count_toward_the_cost_cap() {
    let flags = ["--port", "0", "--json", "--ephemeral"];
    let prices = r#"{"Acme-1": {"input": 40000, "output": 40000}, "*": {"input": 20000, "output": 20000}}"#;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prices.json");
    fs::write(&file, prices).unwrap();
    for given in [prices, text(&file)] {
        let karta = Karta::start_with(&flags, &[("KARTA_PRICES", given)]);
        let (admin, service) = (karta.says("api_key"), karta.says("service_token"));
        let (_, who) = karta.request(Method::GET, "/v1/whoami", admin, &json!({})).await;
        let event = |id: u32, model: Value| {
            json!({
                "api_key_id": who["api_key_id"], "kind": "input_tokens", "quantity": 1_000_000, "model": model,
                "occurred_at": SystemClock.now(), "client_event_id": id.to_string(),
            })
        };
        let events = [event(1, json!("acme-1-2026-01-01")), event(2, Value::Null), event(3, json!("unheard-of"))];
        let body = json!({ "events": events });
        let (_, answer) = karta.request(Method::POST, "/v1/internal/usage/events", service, &body).await;
        assert_eq!((&answer["accepted"], &answer["unpriced"]), (&json!(3), &json!([])), "{answer}");
        let (_, budget) = karta.request(Method::PUT, "/v1/budget", admin, &json!({ "cost_cents": 80 })).await;
        assert_eq!(budget["budget"]["cost_cents"], 80);
        let (_, usage) = karta.request(Method::GET, "/v1/usage", admin, &json!({})).await;
        assert_eq!(usage["totals"]["cost_cents"], 80, "40 cents for the priced model, 20 for each other event");
        assert_eq!((&usage["budget"]["ok"], &usage["unpriced"]), (&json!(false), &json!([])));
    }
    for wrong in ["{", r#"{"gpt-4*": {"input": 1, "output": 1}}"#, r#"{"a": {"input": "1", "output": 1}}"#, "/nowhere"]
    {
        let message = startup_error(&flags, &[("KARTA_PRICES", wrong)]);
        assert!(message.contains("KARTA_PRICES"), "{message}");
    }
    fs::write(&file, r#"{"acme-1": {"input": 1, "output": "2"}}"#).unwrap();
    let message = startup_error(&flags, &[("KARTA_PRICES", text(&file))]);
    assert!(message.contains("which has an invalid entry acme-1: output must be an integer"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_webhooks_require_the_flag() {
    let receiver = Receiver::start().await;
    let ephemeral = ["--port", "0", "--json", "--ephemeral"];
    let (route, body) = ("/v1/webhook_endpoints", json!({ "url": receiver.url, "event_types": ["api_key.created"] }));
    let flag = Karta::start(&["--ephemeral", "--allow-loopback-webhooks"]);
    let variable = Karta::start_with(&ephemeral, &[("KARTA_ALLOW_LOOPBACK_WEBHOOKS", "1")]);
    for (sent, karta) in [flag, variable].iter().enumerate() {
        let (status, created) = karta.request(Method::POST, route, karta.says("api_key"), &body).await;
        assert_eq!(status, 201, "{created}");
        karta.create_key(karta.says("api_key")).await;
        until("a delivery", async || receiver.received().len() > sent).await;
    }
    assert_eq!(receiver.received_types(), ["api_key.created"; 2]);
    let karta = Karta::start(&["--ephemeral"]);
    let (status, refusal) = karta.request(Method::POST, route, karta.says("api_key"), &body).await;
    assert_eq!((status.as_u16(), &refusal["field"]), (422, &json!("url")), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_run_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let karta = Karta::start(&["--ephemeral", "--data-dir", text(&data)]);
    karta.create_key(karta.says("api_key")).await;
    assert!(karta.described["data_dir"].is_null());
    let files: Vec<_> = fs::read_dir(karta.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["stderr"], "the working directory has only this test's own file");
    assert!(!data.exists());
    assert!(karta.end("-TERM").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_file_is_readable_only_by_owner() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("deep/data");
    let _karta = Karta::start(&["--data-dir", text(&data)]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join("secrets.json")), 0o600);
    let kept: Value = serde_json::from_slice(&fs::read(data.join("secrets.json")).unwrap()).unwrap();
    for (_, ring) in kept.as_object().unwrap() {
        let ring = ring.as_str().unwrap();
        let members: Value = serde_json::from_str(ring).unwrap_or(json!({ "k1": ring }));
        note_secret(members["k1"].as_str().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_and_command_line_contain_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let given = "a secret that only the environment contains";
    let flags = ["--port", "0", "--json", "--data-dir", text(folder.path())];
    let karta = Karta::start_with(&flags, &[("KARTA_SESSION_TOKEN_SECRET", given), ("KARTA_LOG", "trace")]);
    let admin = karta.says("api_key").to_owned();
    let session = karta.session_token(&admin).await;
    let key = karta.create_key(&admin).await;
    for token in [&*key, &session, karta.says("service_token"), "kt_live_0123456789abcdefghijklmnopqrstuv"] {
        karta.status("/v1/whoami", token).await;
        karta.status(&format!("/v1/projects/app/whoami?token={token}"), token).await;
        karta.status(&format!("/v1/api_keys/{token}"), token).await;
        karta.request(Method::POST, "/v1/api_keys", &admin, &json!({ "name": token, token: token })).await;
    }
    let mut shown = String::new();
    fs::File::open(format!("/proc/{}/cmdline", karta.child.id())).unwrap().read_to_string(&mut shown).unwrap();
    assert!(shown.contains("--json"));
    karta.signal("-TERM");
    shown.push_str(&fs::read_to_string(&karta.log).unwrap());
    assert!(shown.contains("/v1") || shown.contains("whoami"), "the log mentions the requests");
    for secret in [&*admin, &key, &session, given, karta.says("service_token")] {
        assert!(!shown.contains(secret));
    }
}

async fn audit_verify(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    run_to_end(&[&["audit-verify"], arguments].concat(), environment).await
}

/// Runs `karta` with these arguments to its end. Returns exit code, standard output and standard
/// error.
async fn run_to_end(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(arguments, environment);
    let run = move || command.current_dir(&folder).stderr(Stdio::piped()).output().unwrap();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_verify_detects_a_changed_event() {
    let folder = tempfile::tempdir().unwrap();
    let data = text(folder.path());
    let karta = Karta::start(&["--data-dir", data]);
    let (admin, organization) = (karta.says("api_key").to_owned(), karta.described["organization_id"].clone());
    karta.create_key(&admin).await;
    let (code, out, error) = audit_verify(&["--data-dir", data], &[]).await;
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(error.contains("is in use by another runner"), "{error}");
    assert!(karta.end("-TERM").success());

    let (code, out, error) = audit_verify(&[], &[("KARTA_DATA_DIR", data)]).await;
    assert!(out.starts_with(&format!("organization {organization}: intact (3 events, ")), "{out}{error}");
    assert_eq!((code, out.lines().count()), (Some(0), 1));

    let mut server = TestServer::start_over(folder.path().to_owned(), &admin).await;
    server.skip_audit_check();
    server.work("worker-audit-chain").await;
    let mut event = server.items(&format!("AUD#{organization}")).await.pop().unwrap();
    event["ip_address"] = json!({ "S": "192.0.2.1" });
    server.dynamodb("PutItem", json!({ "TableName": "karta", "Item": event })).await;
    server.runner.stop().await;
    let (code, out, _) = audit_verify(&["--data-dir", data], &[]).await;
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with(&format!("organization {organization}: 1 findings (3 events, 0 pending")), "{out}");
    let sk = event["sk"]["S"].as_str().unwrap();
    assert!(lines[1].starts_with(&format!("  event {sk} differs from its digest in link ")), "{out}");
    assert_eq!((code, lines.len()), (Some(1), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_verify_requires_existing_data() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (code, _, error) = audit_verify(&["--data-dir", text(&data)], &[]).await;
    assert_eq!(code, Some(1));
    assert_eq!(error, format!("karta: --data-dir: {} holds no data\n", data.display()));
    assert!(!data.exists());
    let (code, _, error) = audit_verify(&["--deployed"], &[]).await;
    assert_eq!((code, error.as_str()), (Some(1), "karta: KARTA_TABLE is not set\n"));
}

/// Returns the environment of a deployed stack: credentials for this server's tables, and a fake
/// Secrets Manager that has only this ring.
async fn deployed(server: &TestServer, ring: Ring) -> Vec<(&'static str, String)> {
    let SecretSource::Fixed(secrets) = server.runner.secrets.source() else { panic!("a local run's secrets") };
    let ring = secrets[&Secret::Ring(ring)].expose_secret().to_owned();
    let answer = json!({ "SecretString": ring }).to_string();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let secrets_manager = format!("http://{}", listener.local_addr().unwrap());
    let answers = axum::Router::new().fallback(move || async move { answer });
    tokio::spawn(async move { axum::serve(listener, answers).await });
    let emulator = &server.runner.emulator;
    vec![
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", emulator.access_key().expose_secret().to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "unchecked".to_owned()),
        ("AWS_ENDPOINT_URL_DYNAMODB", emulator.endpoint()),
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", secrets_manager),
        ("KARTA_TABLE", "karta".to_owned()),
        ("KARTA_CREDENTIALS_TABLE", "karta-credentials".to_owned()),
        ("KARTA_OUTBOX_TABLE", "karta-outbox".to_owned()),
        ("KARTA_USAGE_TABLE", "karta-usage".to_owned()),
        ("KARTA_ANCHORS_TABLE", "karta-anchors".to_owned()),
        ("KARTA_SESSIONS_TABLE", "karta-sessions".to_owned()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_creates_organization_and_key_only_once() {
    let server = TestServer::start().await;
    let deployed = deployed(&server, Ring::KeyTag).await;
    let mut environment: Vec<_> = deployed.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.push(("KARTA_BCRYPT_COST", "10"));
    let (code, out, error) = run_to_end(&["bootstrap", "--org", "first"], &environment).await;
    let without_ring = "karta: the key-tag ring is not configured for this function: set KARTA_SECRET_KEY_TAG\n";
    assert_eq!((code, out.as_str(), error.as_str()), (Some(1), "", without_ring));

    environment.push(("KARTA_SECRET_KEY_TAG", "karta/prod/key-tag"));
    let (code, out, error) = run_to_end(&["bootstrap", "--org", "first"], &environment).await;
    assert_eq!((code, error.as_str()), (Some(0), ""));
    let created: Value = serde_json::from_str(&out).unwrap();
    let key = created["api_key"].as_str().unwrap();
    note_secret(key);
    let own = server.get("/v1/whoami").bearer(key).send().await.expect(200);
    assert_eq!((&own["organization_id"], &own["organization_slug"]), (&created["organization_id"], &json!("first")));
    let audited = server.get("/v1/audit_events").bearer(key).send().await.expect(200);
    assert_eq!(audited["audit_events"][0]["actor"]["name"], "bootstrap", "{audited}");

    let (code, out, error) = run_to_end(&["bootstrap", "--org", "first"], &environment).await;
    let already_exists = format!(
        "karta: the organization first already exists, and its first key is shown only once: \
         create another key with POST /v1/internal/organizations/{}/api_keys\n",
        created["organization_id"]
    );
    assert_eq!((code, out.as_str(), error), (Some(1), "", already_exists));
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_verify_reads_a_deployed_stack() {
    let mut server = TestServer::start().await;
    server.work("worker-audit-chain").await;
    let deployed = deployed(&server, Ring::Audit).await;
    let mut environment: Vec<_> = deployed.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.push(("KARTA_SECRET_AUDIT", "karta/prod/audit"));
    let (code, out, error) = audit_verify(&["--deployed"], &environment).await;
    assert!(code == Some(0) && out.contains(": intact (2 events, 0 pending, 1 links)"), "{out}{error}");
    server.skip_audit_check();
    for anchor in server.items_of("karta-anchors", &format!("ANC#{}", server.organization_id)).await {
        let key = json!({ "pk": anchor["pk"], "sk": anchor["sk"] });
        server.dynamodb("DeleteItem", json!({ "TableName": "karta-anchors", "Key": key })).await;
    }
    let (code, out, _) = audit_verify(&["--deployed"], &environment).await;
    assert!(code == Some(1) && out.ends_with("\n  link 1 has no anchor\n"), "{out}");
}

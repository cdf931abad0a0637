//! Timing of rejections. An attacker with a stolen log, or with a database without digests, knows
//! prefixes of keys. Time and body of a rejection must not reveal whether a key exists or is
//! revoked.

use std::time::{Duration, Instant};

use karta_local::bootstrap;
use karta_shared::{
    App,
    auth::{BcryptPool, Invalidity, Validator, Verdict},
    config::Ring,
    domain::{ApiKeyToken, Keyring, Prefix},
    entropy::OsEntropy,
};
use serde_json::json;

use crate::harness::{TestServer, note_secret, slug};

/// A bcrypt cost that dominates the time of a rejection.
const COST: u32 = 8;
const SAMPLES: usize = 45;
const ATTEMPTS: usize = 12;

/// A kind of wrong token. `prefix` is the prefix to mint it under; `None` means an unknown one.
struct Probe {
    what: &'static str,
    prefix: Option<Prefix>,
}

impl Probe {
    /// Mints a new token, so that no cache knows it.
    fn token(&self, ring: &Keyring) -> ApiKeyToken {
        let token = match &self.prefix {
            Some(prefix) => ApiKeyToken::mint_under(prefix, ring, &OsEntropy),
            None => ApiKeyToken::mint(ring, &OsEntropy),
        };
        note_secret(token.expose());
        token
    }
}

/// Creates an organization whose digests have the cost of `app`. Returns the token of its first
/// key.
async fn organization(app: &App, name: &str) -> String {
    let created = bootstrap::organization(app, &slug(name), "local runner").await.unwrap();
    let token = created.api_key.unwrap().expose().to_owned();
    note_secret(&token);
    token
}

async fn revoke_first_key(server: &TestServer, token: &str) {
    let body = json!({ "name": "heir", "scopes": ["admin"] });
    server.post("/v1/api_keys", body).bearer(token).send().await.expect(201);
    let id = server.get("/v1/whoami").bearer(token).send().await.expect(200)["api_key_id"].to_string();
    server.delete(&format!("/v1/api_keys/{id}")).bearer(token).send().await.expect(200);
}

/// Returns the lower quartile of the rejection times of each probe. The probes take turns, so that
/// they share the machine's load. Load only adds time, so the lower quartile is more stable than
/// the median.
async fn quartiles(validator: &Validator, ring: &Keyring, probes: &[Probe]) -> Vec<Duration> {
    let mut samples = vec![Vec::with_capacity(SAMPLES); probes.len()];
    for round in 0..SAMPLES {
        for turn in 0..probes.len() {
            let at = (round + turn) % probes.len();
            let token = probes[at].token(ring);
            let started = Instant::now();
            let verdict = validator.validate(token.expose()).await.unwrap();
            samples[at].push(started.elapsed());
            assert!(matches!(verdict, Verdict::Invalid(Invalidity::Unproven)), "{}", probes[at].what);
        }
    }
    samples.into_iter().map(quartile).collect()
}

fn quartile(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 4]
}

fn within_ten_percent(times: &[Duration]) -> bool {
    let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    most.as_secs_f64() <= least.as_secs_f64() * 1.1
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_do_not_reveal_a_prefixs_state() {
    let server = TestServer::start().await;
    let mut app = server.runner.app.clone();
    app.bcrypt = BcryptPool::new(COST);
    let ring = app.secrets.ring(Ring::KeyTag).await.unwrap();
    let prefix = |token: &str| ApiKeyToken::parse(token, &ring).unwrap().prefix();
    let (known, revoked) = (organization(&app, "known").await, organization(&app, "revoked").await);
    revoke_first_key(&server, &revoked).await;
    let probes = [
        Probe { what: "unknown prefix", prefix: None },
        Probe { what: "known prefix, wrong secret", prefix: Some(prefix(&known)) },
        Probe { what: "revoked key, wrong secret", prefix: Some(prefix(&revoked)) },
    ];

    for probe in &probes {
        let refused = server.get("/v1/whoami").bearer(probe.token(&ring).expose()).send().await;
        assert_eq!(refused.refused(401), crate::harness::unauthorized(), "{}", probe.what);
    }

    let validator = Validator::new(app);
    let mut seen = Vec::new();
    for _ in 0..ATTEMPTS {
        let times = quartiles(&validator, &ring, &probes).await;
        if within_ten_percent(&times) {
            return;
        }
        seen.push(times);
    }
    panic!("the times of rejections differ between probes: {seen:?}");
}

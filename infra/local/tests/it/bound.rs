//! Tests of how long a revoked key is still accepted after its revocation was acknowledged: at most
//! 5 s by the gateway and 5.5 s by a data plane. One test measures another process on the system
//! clock. The others move the clock through the longest delays that the components allow.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use http::Method;
use karta_shared::clock::{Clock, ManualClock};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    fault_proxy::{FaultProxy, StoreFault},
    harness::TestServer,
    process::Karta,
};

const DATA_PLANE_BOUND: Duration = Duration::from_millis(5_500);
const OWN_BOUND: Duration = Duration::from_secs(5);
const DATA_PLANE_TTL: Duration = Duration::from_secs(5);
/// A data plane that caches verdicts for this long exceeds the bound, and the test must detect it.
const NEGLIGENT_TTL: Duration = Duration::from_secs(10);
/// Attempts that the measurement gets, because a busy machine can miss the bound.
const ATTEMPTS: usize = 3;

/// A component that accepts or rejects a key. It caches a verdict for `ttl` from its arrival.
struct EnforcementPoint {
    karta: Arc<Karta>,
    key: String,
    /// `None` is the gateway: the test sends it every request.
    ttl: Option<Duration>,
    cached: Option<Cached>,
}

/// A verdict in a data plane's cache.
#[derive(Clone, Copy)]
struct Cached {
    valid: bool,
    arrived: Instant,
    /// The time from request to response. It is close to zero between idle machines.
    travelled: Duration,
}

impl EnforcementPoint {
    /// Returns when the key was accepted, corrected by the travel time of the verdict.
    async fn accept(&mut self) -> Option<Instant> {
        let asked = Instant::now();
        let Some(ttl) = self.ttl else {
            let (status, _) = self.karta.request(Method::GET, "/v1/whoami", &self.key, &json!({})).await;
            return (status == 200).then_some(asked);
        };
        let accepted_at = |cached: Cached, at: Instant| cached.valid.then(|| at.checked_sub(cached.travelled).unwrap());
        if let Some(cached) = self.cached
            && cached.arrived.elapsed() < ttl
        {
            return accepted_at(cached, asked);
        }
        let (body, token) = (json!({ "key": self.key }), self.karta.says("service_token"));
        let (status, verdict) = self.karta.request(Method::POST, "/v1/internal/keys/validate", token, &body).await;
        let (valid, arrived) = (verdict["valid"] == true, Instant::now());
        self.cached = (status == 200).then(|| Cached { valid, arrived, travelled: arrived.duration_since(asked) });
        self.cached.and_then(|cached| accepted_at(cached, arrived))
    }

    /// Returns how long after the revocation the key was last accepted, or `None` if it never was.
    async fn measure(mut self, revoked: Arc<OnceLock<Instant>>) -> Option<Duration> {
        let tried_for = self.ttl.unwrap_or(OWN_BOUND) + Duration::from_millis(2_600);
        let mut last = None;
        while revoked.get().is_none_or(|at| at.elapsed() < tried_for) {
            last = self.accept().await.or(last);
            sleep(Duration::from_millis(20)).await;
        }
        last.map(|last| last.saturating_duration_since(*revoked.get().unwrap()))
    }
}

/// Creates a key, uses it at an enforcement point and revokes it after `lead`. Returns how long
/// after the revocation it was last accepted.
async fn measure_revocation(karta: Arc<Karta>, ttl: Option<Duration>, lead: Duration) -> Option<Duration> {
    let admin = karta.says("api_key").to_owned();
    let body = json!({ "name": "ci", "scopes": ["read"] });
    let (_, created) = karta.request(Method::POST, "/v1/api_keys", &admin, &body).await;
    let key = created["secret"].as_str().unwrap().to_owned();
    let revoked = Arc::new(OnceLock::new());
    let point = EnforcementPoint { karta: Arc::clone(&karta), key, ttl, cached: None };
    let measured = tokio::spawn(point.measure(Arc::clone(&revoked)));
    sleep(lead).await;
    let path = format!("/v1/api_keys/{}", created["api_key"]["id"]);
    let (status, _) = karta.request(Method::DELETE, &path, &admin, &json!({})).await;
    revoked.set(Instant::now()).unwrap();
    assert_eq!(status, 200);
    measured.await.unwrap()
}

/// Returns the longest measurement with this TTL over several values of `lead`.
async fn longest(karta: &Arc<Karta>, ttl: Option<Duration>) -> Duration {
    let leads = [0, 50, 150, 300, 500, 800].map(Duration::from_millis);
    let points: JoinSet<_> = leads.map(|lead| measure_revocation(Arc::clone(karta), ttl, lead)).into_iter().collect();
    points.join_all().await.into_iter().flatten().max().expect("a key was accepted before its revocation")
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_is_refused_within_the_bound() {
    // No data plane is configured, so no push shortens the delay.
    let karta = Arc::new(Karta::start(&["--ephemeral"]));
    let mut measured = Vec::new();
    for _ in 0..ATTEMPTS {
        let (own, plane, negligent_plane) = tokio::join!(
            longest(&karta, None),
            longest(&karta, Some(DATA_PLANE_TTL)),
            longest(&karta, Some(NEGLIGENT_TTL)),
        );
        measured.push((own, plane, negligent_plane));
        let was_cached = plane > Duration::from_secs(2);
        if own <= OWN_BOUND && plane <= DATA_PLANE_BOUND && was_cached && negligent_plane > DATA_PLANE_BOUND {
            return;
        }
    }
    panic!("accepted by the gateway, a data plane and a negligent data plane for: {measured:?}");
}

/// A server on a fixed clock, with a key whose proof is cached and whose verdict has expired.
async fn proven_key() -> (TestServer, Arc<FaultProxy>, Arc<ManualClock>, u64, String) {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_with(Arc::clone(&clock) as Arc<dyn Clock>).await;
    let (id, token) = server.key(&["read"]).await;
    server.get("/v1/whoami").bearer(&token).send().await.expect(200);
    validate(&server, &token).await.unwrap();
    clock.advance(Duration::from_secs(3));
    server.get("/v1/whoami").send().await.expect(200);
    (server, proxy, clock, id, token)
}

/// Returns whether the key is valid, or `None` for a 503.
async fn validate(server: &TestServer, token: &str) -> Option<bool> {
    let reply = server.service(Method::POST, "/v1/internal/keys/validate").body(json!({ "key": token })).send().await;
    if reply.status == 200 {
        return Some(reply.json["valid"] == true);
    }
    reply.refused(503);
    None
}

async fn revoke(server: &TestServer, id: u64) {
    server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_validation_stays_within_the_bound() {
    for (delay, is_returned) in [(0, true), (499, true), (500, true), (501, false), (2_000, false)] {
        let (server, proxy, clock, id, token) = proven_key().await;
        proxy.fail("BatchGetItem", 1, StoreFault::HoldResponse);
        let (verdict, ()) = tokio::join!(validate(&server, &token), async {
            proxy.held().await;
            revoke(&server, id).await;
            clock.advance(Duration::from_millis(delay));
            proxy.release();
        });
        assert_eq!(verdict, Some(is_returned), "after {delay} ms: an old verdict is read again");
        let since_revoked = Duration::from_millis(delay);
        if is_returned {
            assert!(since_revoked + DATA_PLANE_TTL <= DATA_PLANE_BOUND, "cached beyond the bound after {delay} ms");
            clock.advance(DATA_PLANE_TTL);
        }
        assert_eq!(validate(&server, &token).await, Some(false), "second validation after {delay} ms");
    }
}

/// Returns how long after its revocation the key is last accepted, with one request every 50 ms of
/// the manual clock.
async fn accepted_for(server: &TestServer, clock: &ManualClock, token: &str, revoked: Duration) -> Duration {
    let step = Duration::from_millis(50);
    let (mut since, mut last) = (revoked, Duration::ZERO);
    while since < Duration::from_secs(9) {
        if server.get("/v1/whoami").bearer(token).send().await.status == 200 {
            last = since;
        }
        clock.advance(step);
        since += step;
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn late_authorizer_verdict_stays_within_the_bound() {
    for flushed_between in [false, true] {
        for (delay, is_returned) in [(0, true), (1_000, true), (1_500, true), (1_501, false), (4_000, false)] {
            let (server, proxy, clock, id, token) = proven_key().await;
            proxy.fail("BatchGetItem", 1, StoreFault::HoldResponse);
            let (reply, ()) = tokio::join!(server.get("/v1/whoami").bearer(&token).send(), async {
                proxy.held().await;
                revoke(&server, id).await;
                clock.advance(Duration::from_millis(delay));
                if flushed_between {
                    server.work("worker-cache-push").await;
                    assert!(server.outbox("PSH").await.is_empty(), "the flush is complete");
                }
                proxy.release();
            });
            let case = format!("after {delay} ms, flushed between: {flushed_between}");
            // An old verdict is read again.
            assert_eq!(reply.status, if is_returned { 200 } else { 401 }, "{case}");
            let last = accepted_for(&server, &clock, &token, Duration::from_millis(delay)).await;
            assert!(last <= OWN_BOUND, "{case}: accepted for {last:?}");
            assert_eq!(last > Duration::ZERO, is_returned, "{case}: {last:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flush_drops_cached_verdicts_immediately() {
    let (server, _proxy, clock, id, token) = proven_key().await;
    let status = async || server.get("/v1/whoami").bearer(&token).send().await.status.as_u16();
    assert_eq!(status().await, 200);
    revoke(&server, id).await;
    assert_eq!(status().await, 200, "cached by the gateway");
    let revoked = clock.now();
    server.work("worker-cache-push").await;
    assert_eq!(status().await, 401);
    assert_eq!(clock.now(), revoked, "the clock did not move");
    assert_eq!(validate(&server, &token).await, Some(false));
    let own: Value = server.get("/v1/whoami").send().await.expect(200);
    assert_eq!(own["organization_id"], server.organization_id, "other keys are validated again");
}

//! Tests that forged session tokens are rejected. Each token goes through the gateway and directly
//! to the authorizer, because the gateway's `ValidationExpression` rejects some of them first.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use karta_shared::clock::ManualClock;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::harness::TestServer;

struct Target {
    server: TestServer,
    clock: std::sync::Arc<ManualClock>,
    secret: String,
    /// The minted token.
    genuine: String,
    claims: Value,
}

impl Target {
    async fn open() -> Self {
        let (server, clock) = TestServer::start_at_noon().await;
        server.project("my-app").await;
        let genuine = server.session_token("my-app", json!({ "user_id": "u" })).await;
        let claims = BASE64_URL_SAFE_NO_PAD.decode(genuine.split('.').nth(1).unwrap()).unwrap();
        let claims = serde_json::from_slice(&claims).unwrap();
        let secret = server.runner.secrets.session_token_secret.expose_secret().to_owned();
        Self { server, clock, secret, genuine, claims }
    }

    /// Returns the genuine claims with one replaced, or removed by `null`, and a valid signature.
    fn with_claim(&self, name: &str, value: Value) -> String {
        let mut claims = self.claims.clone();
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.to_owned(), value),
        };
        signed(&json!({ "alg": "HS256", "kid": "k1" }), &claims, &self.secret)
    }

    /// Returns the genuine claims with another header and a valid signature.
    fn with_header(&self, header: &Value) -> String {
        signed(header, &self.claims, &self.secret)
    }

    async fn accepts(&self, token: &str) {
        assert!(self.server.authorizes(&format!("Bearer {token}")).await);
        let principal = self.server.get("/v1/projects/my-app/whoami").bearer(token).send().await.expect(200);
        assert_eq!(principal["kind"], "session");
    }

    async fn refuses(&self, what: &str, token: &str) {
        assert!(!self.server.authorizes(&format!("Bearer {token}")).await, "{what}");
        let refused = self.server.get("/v1/projects/my-app/whoami").bearer(token).send().await;
        assert_eq!(refused.refused(401), crate::harness::unauthorized(), "{what}");
    }
}

fn part(value: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(value.to_string())
}

fn signed(header: &Value, claims: &Value, secret: &str) -> String {
    signed_with(Algorithm::HS256, header, claims, secret)
}

fn signed_with(algorithm: Algorithm, header: &Value, claims: &Value, secret: &str) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
    format!("{message}.{signature}")
}

#[tokio::test(flavor = "multi_thread")]
async fn genuine_and_equally_signed_tokens_are_accepted() {
    let target = Target::open().await;
    target.accepts(&target.genuine).await;
    target.accepts(&target.with_header(&json!({ "alg": "HS256", "kid": "k1" }))).await;
    target.accepts(&target.with_claim("a_later_claim", json!(1))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unsigned_token_is_refused() {
    let target = Target::open().await;
    for alg in ["none", "None", "NONE", "nOnE"] {
        let unsigned = format!("{}.{}", part(&json!({ "alg": alg, "kid": "k1" })), part(&target.claims));
        target.refuses("two parts", &unsigned).await;
        target.refuses("an empty signature", &format!("{unsigned}.")).await;
        target.refuses("an arbitrary signature", &format!("{unsigned}.{}", "A".repeat(43))).await;
        target.refuses("a valid HMAC", &target.with_header(&json!({ "alg": alg, "kid": "k1" }))).await;
    }
    let stripped = target.genuine.rsplit_once('.').unwrap().0;
    target.refuses("genuine, signature cut off", stripped).await;
    target.refuses("genuine, signature emptied", &format!("{stripped}.")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_algorithm_except_hs256_is_refused() {
    let target = Target::open().await;
    for alg in ["RS256", "RS512", "PS256", "ES256", "EdDSA", "HS384", "HS512", "hs256", "", "HS256 "] {
        let header = json!({ "alg": alg, "kid": "k1" });
        target.refuses(alg, &target.with_header(&header)).await;
        let signature = BASE64_URL_SAFE_NO_PAD.encode([7; 256]);
        target.refuses(alg, &format!("{}.{}.{signature}", part(&header), part(&target.claims))).await;
    }
    for (alg, algorithm) in [("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)] {
        for named in [alg, "HS256"] {
            let header = json!({ "alg": named, "kid": "k1" });
            target.refuses(alg, &signed_with(algorithm, &header, &target.claims, &target.secret)).await;
        }
    }
    for header in
        [json!({ "kid": "k1" }), json!({ "alg": null, "kid": "k1" }), json!({ "alg": ["HS256"], "kid": "k1" })]
    {
        target.refuses("no algorithm", &target.with_header(&header)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_signed_with_another_secret_is_refused() {
    let target = Target::open().await;
    let header = json!({ "alg": "HS256", "kid": "k1" });
    let upper = target.secret.to_uppercase();
    for secret in ["", "k1", "current", "another secret of at least 32 bytes", &upper, &target.secret[1..]] {
        target.refuses("another secret", &signed(&header, &target.claims, secret)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_kid_is_refused() {
    let target = Target::open().await;
    for kid in ["current", "", "k2", "K1", "k1 ", "k1\0", "k", "../k1", "k1k1"] {
        target.refuses(kid, &target.with_header(&json!({ "alg": "HS256", "kid": kid }))).await;
        // Signed with the kid itself, or with the ring's value of `current`, as the secret.
        for secret in [kid, "k1"] {
            target.refuses(kid, &signed(&json!({ "alg": "HS256", "kid": kid }), &target.claims, secret)).await;
        }
    }
    for header in [
        json!({ "alg": "HS256" }),
        json!({ "alg": "HS256", "kid": null }),
        json!({ "alg": "HS256", "kid": 1 }),
        json!({ "alg": "HS256", "kid": ["k1"] }),
        json!({ "alg": "HS256", "kid": "k1", "crit": ["exp"] }),
        json!(["HS256", "k1"]),
        json!("HS256"),
    ] {
        target.refuses("no kid", &target.with_header(&header)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_must_be_present_and_within_an_hour() {
    let target = Target::open().await;
    let iat = target.claims["iat"].as_i64().unwrap();
    target.accepts(&target.with_claim("exp", json!(iat + 3600))).await;
    let fraction: Value = serde_json::from_str(&format!("{}.5", iat + 60)).unwrap();
    target.accepts(&target.with_claim("exp", fraction)).await;
    for exp in [json!(null), json!(iat + 3601), json!(iat + 10_000_000), json!(iat), json!(iat - 1), json!(i64::MAX)] {
        target.refuses(&format!("exp {exp}"), &target.with_claim("exp", exp)).await;
    }
    target.refuses("without iat", &target.with_claim("iat", json!(null))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_token_is_accepted_for_30_seconds() {
    let target = Target::open().await;
    target.clock.advance(Duration::from_secs(900 + 29));
    target.accepts(&target.genuine).await;
    // After three seconds, the gateway's cached verdict has expired too.
    target.clock.advance(Duration::from_secs(3));
    target.refuses("expired", &target.genuine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_or_invalid_claim_is_refused() {
    let target = Target::open().await;
    for name in "org_id org_slug project_id project_slug scope budget_ok iat exp jti akid".split(' ') {
        for value in [json!(null), json!([1]), json!({ "a": 1 })] {
            target.refuses(&format!("{name} {value}"), &target.with_claim(name, value)).await;
        }
    }
    for (name, value) in [
        ("scope", json!("admin")),
        ("scope", json!("Session")),
        ("scope", json!("session ")),
        ("scope", json!(["session"])),
        ("exp", json!("1795263300")),
        ("org_id", json!("1")),
        ("org_id", json!(0)),
        ("org_id", json!(-1)),
        ("org_id", json!(1_u64 << 53)),
        ("project_id", json!(1.5)),
        ("akid", json!(false)),
        ("budget_ok", json!("true")),
        ("org_slug", json!(1)),
        ("jti", json!(1)),
        ("sub", json!(1)),
        ("sub", json!("")),
        ("sub", json!("u".repeat(256))),
    ] {
        target.refuses(&format!("{name} {value}"), &target.with_claim(name, value)).await;
    }
    for claims in [json!([]), json!("claims"), json!(null), json!({})] {
        target.refuses("other claims", &signed(&json!({ "alg": "HS256", "kid": "k1" }), &claims, &target.secret)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_byte_is_refused() {
    let target = Target::open().await;
    for at in (0..target.genuine.len()).step_by(7).chain([target.genuine.len() - 1]) {
        let original = target.genuine.as_bytes()[at];
        for to in ["A", "B", ".", "-", "=", "+"] {
            if to.as_bytes()[0] != original {
                let mut forged = target.genuine.clone();
                forged.replace_range(at..=at, to);
                target.refuses(&format!("{to} at {at}"), &forged).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_swapped_or_extra_parts_are_refused() {
    let target = Target::open().await;
    let [header, claims, signature] = target.genuine.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let padded = format!("{header}=.{claims}==.{signature}=");
    for token in [
        "..".to_owned(),
        format!(".{claims}.{signature}"),
        format!("{header}..{signature}"),
        format!("{claims}.{header}.{signature}"),
        format!("{header}.{claims}.{signature}.{signature}"),
        format!("{header}.{header}.{claims}.{signature}"),
        format!("{}.", target.genuine),
        format!(".{}", target.genuine),
        format!("{}A", target.genuine),
        padded,
        format!("{header}.{}.{signature}", part(&json!({ "scope": "session" }))),
        format!("{header}.{claims}.{}", "A".repeat(5_000)),
    ] {
        target.refuses("parts", &token).await;
    }
}

//! Tokens that nobody here minted, at a door that a session token opens: through the gateway, and straight at the authorizer,
//! because the gateway's `ValidationExpression` turns some of them away before it.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use karta_shared::clock::ManualClock;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::harness::TestServer;

struct Door {
    server: TestServer,
    clock: std::sync::Arc<ManualClock>,
    secret: String,
    /// A token as it was minted.
    genuine: String,
    claims: Value,
}

impl Door {
    async fn open() -> Self {
        let (server, clock) = TestServer::start_at_noon().await;
        server.project("my-app").await;
        let genuine = server.session_token("my-app", json!({ "user_id": "u" })).await;
        let claims = BASE64_URL_SAFE_NO_PAD.decode(genuine.split('.').nth(1).unwrap()).unwrap();
        let claims = serde_json::from_slice(&claims).unwrap();
        let secret = server.runner.secrets.session_token_secret.expose_secret().to_owned();
        Self { server, clock, secret, genuine, claims }
    }

    /// The usual claims with one replaced, or taken out by `null`, under a right signature.
    fn with_claim(&self, name: &str, value: Value) -> String {
        let mut claims = self.claims.clone();
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.to_owned(), value),
        };
        signed(&json!({ "alg": "HS256", "kid": "k1" }), &claims, &self.secret)
    }

    /// The usual claims under another header and a right signature.
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
async fn a_minted_token_and_one_that_the_ring_signs_alike_are_accepted() {
    let door = Door::open().await;
    door.accepts(&door.genuine).await;
    door.accepts(&door.with_header(&json!({ "alg": "HS256", "kid": "k1" }))).await;
    door.accepts(&door.with_claim("a_later_claim", json!(1))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_token_is_refused() {
    let door = Door::open().await;
    for alg in ["none", "None", "NONE", "nOnE"] {
        let unsigned = format!("{}.{}", part(&json!({ "alg": alg, "kid": "k1" })), part(&door.claims));
        door.refuses("two parts", &unsigned).await;
        door.refuses("an empty signature", &format!("{unsigned}.")).await;
        door.refuses("any signature", &format!("{unsigned}.{}", "A".repeat(43))).await;
        door.refuses("a right HMAC", &door.with_header(&json!({ "alg": alg, "kid": "k1" }))).await;
    }
    let stripped = door.genuine.rsplit_once('.').unwrap().0;
    door.refuses("genuine, signature cut off", stripped).await;
    door.refuses("genuine, signature emptied", &format!("{stripped}.")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_algorithm_but_hs256_is_refused_whatever_the_signature() {
    let door = Door::open().await;
    for alg in ["RS256", "RS512", "PS256", "ES256", "EdDSA", "HS384", "HS512", "hs256", "", "HS256 "] {
        let header = json!({ "alg": alg, "kid": "k1" });
        door.refuses(alg, &door.with_header(&header)).await;
        let signature = BASE64_URL_SAFE_NO_PAD.encode([7; 256]);
        door.refuses(alg, &format!("{}.{}.{signature}", part(&header), part(&door.claims))).await;
    }
    for (alg, algorithm) in [("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)] {
        for named in [alg, "HS256"] {
            let header = json!({ "alg": named, "kid": "k1" });
            door.refuses(alg, &signed_with(algorithm, &header, &door.claims, &door.secret)).await;
        }
    }
    for header in
        [json!({ "kid": "k1" }), json!({ "alg": null, "kid": "k1" }), json!({ "alg": ["HS256"], "kid": "k1" })]
    {
        door.refuses("no algorithm", &door.with_header(&header)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_secret_signs_nothing() {
    let door = Door::open().await;
    let header = json!({ "alg": "HS256", "kid": "k1" });
    let upper = door.secret.to_uppercase();
    for secret in ["", "k1", "current", "another secret of at least 32 bytes", &upper, &door.secret[1..]] {
        door.refuses("another secret", &signed(&header, &door.claims, secret)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kid_that_names_no_key_is_tried_against_nothing() {
    let door = Door::open().await;
    for kid in ["current", "", "k2", "K1", "k1 ", "k1\0", "k", "../k1", "k1k1"] {
        door.refuses(kid, &door.with_header(&json!({ "alg": "HS256", "kid": kid }))).await;
        // As if the kid, or what the ring holds under "current", were the secret.
        for secret in [kid, "k1"] {
            door.refuses(kid, &signed(&json!({ "alg": "HS256", "kid": kid }), &door.claims, secret)).await;
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
        door.refuses("no kid", &door.with_header(&header)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_is_required_near_and_not_past() {
    let door = Door::open().await;
    let iat = door.claims["iat"].as_i64().unwrap();
    door.accepts(&door.with_claim("exp", json!(iat + 3600))).await;
    let fraction: Value = serde_json::from_str(&format!("{}.5", iat + 60)).unwrap();
    door.accepts(&door.with_claim("exp", fraction)).await;
    for exp in [json!(null), json!(iat + 3601), json!(iat + 10_000_000), json!(iat), json!(iat - 1), json!(i64::MAX)] {
        door.refuses(&format!("exp {exp}"), &door.with_claim("exp", exp)).await;
    }
    door.refuses("without iat", &door.with_claim("iat", json!(null))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_passes_for_thirty_more_seconds_and_no_longer() {
    let door = Door::open().await;
    door.clock.advance(Duration::from_secs(900 + 29));
    door.accepts(&door.genuine).await;
    // The gateway may still hold the verdict above.
    door.clock.advance(Duration::from_secs(3));
    door.refuses("expired", &door.genuine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_missing_or_of_a_wrong_type_or_value_is_refused() {
    let door = Door::open().await;
    for name in "org_id org_slug project_id project_slug scope budget_ok iat exp jti akid".split(' ') {
        for value in [json!(null), json!([1]), json!({ "a": 1 })] {
            door.refuses(&format!("{name} {value}"), &door.with_claim(name, value)).await;
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
        door.refuses(&format!("{name} {value}"), &door.with_claim(name, value)).await;
    }
    for claims in [json!([]), json!("claims"), json!(null), json!({})] {
        door.refuses("other claims", &signed(&json!({ "alg": "HS256", "kid": "k1" }), &claims, &door.secret)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_changed_byte_survives() {
    let door = Door::open().await;
    for at in (0..door.genuine.len()).step_by(7).chain([door.genuine.len() - 1]) {
        let was = door.genuine.as_bytes()[at];
        for to in ["A", "B", ".", "-", "=", "+"] {
            if to.as_bytes()[0] != was {
                let mut forged = door.genuine.clone();
                forged.replace_range(at..=at, to);
                door.refuses(&format!("{to} at {at}"), &forged).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_are_missing_swapped_or_too_many_are_refused() {
    let door = Door::open().await;
    let [header, claims, signature] = door.genuine.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let padded = format!("{header}=.{claims}==.{signature}=");
    for token in [
        "..".to_owned(),
        format!(".{claims}.{signature}"),
        format!("{header}..{signature}"),
        format!("{claims}.{header}.{signature}"),
        format!("{header}.{claims}.{signature}.{signature}"),
        format!("{header}.{header}.{claims}.{signature}"),
        format!("{}.", door.genuine),
        format!(".{}", door.genuine),
        format!("{}A", door.genuine),
        padded,
        format!("{header}.{}.{signature}", part(&json!({ "scope": "session" }))),
        format!("{header}.{claims}.{}", "A".repeat(5_000)),
    ] {
        door.refuses("parts", &token).await;
    }
}

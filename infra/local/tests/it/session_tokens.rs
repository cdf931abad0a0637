use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use std::{collections::HashSet, time::Duration};

use crate::harness::{Request, TestServer};

const MINT: &str = "/v1/agent_projects/my-app/session_tokens";
/// 2026-11-21T12:00:00Z
const NOON: u64 = 1_795_262_400;

async fn at_noon_with_a_project() -> (TestServer, u64) {
    let (server, _clock) = TestServer::start_at_noon().await;
    let project = server.project("my-app").await;
    (server, project)
}

fn mint(server: &TestServer, body: Value) -> Request {
    server.post(MINT, body)
}

async fn minted(server: &TestServer, body: Value) -> Value {
    mint(server, body).send().await.expect(201)
}

/// Decodes the claims with a JWT library and the secret that the runner prints for data planes.
fn claims(server: &TestServer, minted: &Value) -> Value {
    let secret = server.runner.secrets.session_token_secret.expose_secret();
    let mut validation = Validation::new(Algorithm::HS256);
    // The library uses the machine's clock.
    validation.validate_exp = false;
    let key = DecodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::decode(minted["token"].as_str().unwrap(), &key, &validation).unwrap().claims
}

async fn set_subscription_status(server: &TestServer, status: &str) {
    let update = json!({
        "TableName": "karta",
        "Key": { "pk": { "S": format!("ORG#{}", server.organization_id) }, "sk": { "S": "META" } },
        "UpdateExpression": "SET subscription_status = :status",
        "ConditionExpression": "attribute_exists(pk)",
        "ExpressionAttributeValues": { ":status": { "S": status } },
    });
    server.dynamodb("UpdateItem", update).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_paths_mint_a_token_for_the_project() {
    let (server, project) = at_noon_with_a_project().await;
    for path in [MINT, "/agent_projects/my-app/session_tokens"] {
        let mut answer = server.post(path, json!({})).send().await.expect(201);
        answer["token"].take();
        assert_eq!(
            answer,
            json!({
                "token": null,
                "expires_at": "2026-11-21T12:15:00.000Z",
                "expires_in": 900,
                "project": { "id": project, "slug": "my-app" },
                "sub": null,
            }),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_contains_exactly_the_documented_claims() {
    let (server, project) = at_noon_with_a_project().await;
    let (key, token) = server.key(&["write"]).await;
    let answer = mint(&server, json!({ "user_id": "user_42", "ttl_seconds": 120 })).bearer(&token).send().await;
    let mut claims = claims(&server, &answer.expect(201));
    let jti = claims["jti"].take();
    assert!(jti.as_str().unwrap().len() >= 22, "{jti} is too short");
    assert_eq!(
        claims,
        json!({
            "org_id": server.organization_id,
            "org_slug": "acme",
            "project_id": project,
            "project_slug": "my-app",
            "scope": "session",
            "budget_ok": true,
            "iat": NOON,
            "exp": NOON + 120,
            "jti": null,
            "akid": key,
            "sub": "user_42",
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn token_header_names_algorithm_and_key() {
    let (server, _) = at_noon_with_a_project().await;
    let answer = minted(&server, json!({})).await;
    let header = answer["token"].as_str().unwrap().split('.').next().unwrap();
    let header: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    assert_eq!(header, json!({ "typ": "JWT", "alg": "HS256", "kid": "k1" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_body_and_nulls_mean_the_defaults() {
    let (server, _) = at_noon_with_a_project().await;
    for body in ["", "{}", r#"{"user_id":null,"ttl_seconds":null}"#] {
        let answer = mint(&server, json!({})).raw_body(body).send().await.expect(201);
        assert_eq!((&answer["expires_in"], &answer["sub"]), (&json!(900), &Value::Null), "{body:?}");
        let claims = claims(&server, &answer);
        assert_eq!(claims["exp"], NOON + 900);
        assert!(claims.get("sub").is_none(), "a token without a user has no sub");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_lifetime_is_one_minute_to_one_hour() {
    let (server, _) = at_noon_with_a_project().await;
    for (ttl, expires_at) in [(60, "2026-11-21T12:01:00.000Z"), (3600, "2026-11-21T13:00:00.000Z")] {
        let answer = minted(&server, json!({ "ttl_seconds": ttl })).await;
        assert_eq!((&answer["expires_in"], &answer["expires_at"]), (&json!(ttl), &json!(expires_at)));
        assert_eq!(claims(&server, &answer)["exp"], NOON + ttl);
    }
    for ttl in [json!(59), json!(3601), json!(0), json!(-1), json!(1.5), json!("900"), json!([900]), json!(u64::MAX)] {
        let refused = mint(&server, json!({ "ttl_seconds": ttl })).send().await;
        assert_eq!(refused.invalid_field(), "ttl_seconds", "{ttl}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn user_id_up_to_255_bytes_becomes_sub() {
    let (server, _) = at_noon_with_a_project().await;
    for user in ["u".to_owned(), "é".repeat(127), "u".repeat(255), "name with spaces \"and\" \\ 日本".to_owned()] {
        let answer = minted(&server, json!({ "user_id": user })).await;
        assert_eq!(answer["sub"], user);
        assert_eq!(claims(&server, &answer)["sub"], user);
    }
    for user in [
        json!(""),
        json!(" "),
        json!("\t\u{3000}"),
        json!("u".repeat(256)),
        json!("é".repeat(128)),
        json!("a\nb"),
        json!(7),
        json!(["u"]),
    ] {
        let refused = mint(&server, json!({ "user_id": user })).send().await;
        assert_eq!(refused.invalid_field(), "user_id", "{user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_of_the_longest_user_passes_gateway() {
    let server = TestServer::start().await;
    let slug = "p".repeat(63);
    server.project(&slug).await;
    for user in ["日".repeat(85), "\"".repeat(255)] {
        let token = server.session_token(&slug, json!({ "user_id": user })).await;
        let principal = server.get(&format!("/v1/projects/{slug}/whoami")).bearer(&token).send().await.expect(200);
        assert_eq!(principal["sub"], user);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_body_is_refused_with_its_field() {
    let (server, _) = at_noon_with_a_project().await;
    assert_eq!(mint(&server, json!({ "ttl": 60 })).send().await.invalid_field(), "ttl");
    assert_eq!(mint(&server, json!([])).send().await.invalid_field(), "body");
    assert_eq!(server.post(&format!("{MINT}?ttl=60"), json!({})).send().await.invalid_field(), "ttl");
    let malformed = mint(&server, json!({})).raw_body("{\"user_id\": ").send().await.refused(400);
    assert_eq!(malformed["error"], "malformed_json");
    let large = mint(&server, json!({ "user_id": "u".repeat(64 * 1024) })).send().await.refused(413);
    assert_eq!(large["error"], "body_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn minting_requires_the_write_scope() {
    let (server, _) = at_noon_with_a_project().await;
    for scopes in [&["read"][..], &["admin"], &["read", "admin"]] {
        let (_, token) = server.key(scopes).await;
        let refused = mint(&server, json!({ "ttl_seconds": 0 })).bearer(&token).send().await;
        assert_eq!(refused.forbidden(), "missing scope: write", "{scopes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_token_cannot_mint_another() {
    let (server, _) = at_noon_with_a_project().await;
    let token = server.session_token("my-app", json!({})).await;
    let refused = mint(&server, json!({})).bearer(&token).send().await;
    assert_eq!(refused.forbidden(), "session tokens are valid only under /v1/projects/{ref}/");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_project_answers_like_a_missing_one() {
    let (server, _) = at_noon_with_a_project().await;
    let (_, globex) = server.another_organization("globex").await;
    server
        .post("/v1/agent_projects", json!({ "slug": "theirs", "name": "x" }))
        .bearer(&globex)
        .send()
        .await
        .expect(201);
    for slug in ["theirs", "no-such", "My-App", "a%2Fb", &"p".repeat(64)] {
        for base in ["/v1", ""] {
            let path = format!("{base}/agent_projects/{slug}/session_tokens");
            assert_eq!(
                server.post(&path, json!({})).send().await.refused(404),
                json!({ "detail": "Not found" }),
                "{path}"
            );
        }
    }
    let refused = server.post("/v1/agent_projects/theirs/session_tokens", json!({ "ttl_seconds": 1 })).send().await;
    assert_eq!(refused.invalid_field(), "ttl_seconds", "the body is checked before the project");
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_is_ignored() {
    let (server, _) = at_noon_with_a_project().await;
    let mut tokens = HashSet::new();
    for key in ["once", "once", "", &"k".repeat(256)] {
        let answer = mint(&server, json!({})).idempotency_key(key).send().await.expect(201);
        tokens.insert(answer["token"].as_str().unwrap().to_owned());
    }
    assert_eq!(tokens.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_budget_blocks_minting_until_restored() {
    let (server, _) = at_noon_with_a_project().await;
    minted(&server, json!({})).await;
    set_subscription_status(&server, "past_due").await;
    let exhausted = json!({
        "error": "budget_exhausted", "reason": "subscription past_due", "cap": null, "of": "organization",
        "resets_at": null,
    });
    assert_eq!(mint(&server, json!({})).send().await.refused(402), exhausted);
    set_subscription_status(&server, "trialing").await;
    minted(&server, json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budget_is_checked_after_body_before_project() {
    let (server, _) = at_noon_with_a_project().await;
    let (_, reader) = server.key(&["read"]).await;
    set_subscription_status(&server, "past_due").await;
    mint(&server, json!({})).bearer(&reader).send().await.refused(403);
    assert_eq!(mint(&server, json!({ "ttl_seconds": 1 })).send().await.invalid_field(), "ttl_seconds");
    for slug in ["no-such", "NO-SLUG", &"p".repeat(64)] {
        let refused = server.post(&format!("/v1/agent_projects/{slug}/session_tokens"), json!({})).send().await;
        assert_eq!(refused.refused(402)["reason"], "subscription past_due", "{slug}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_key_cannot_mint_despite_gateway_cache() {
    let (server, clock) = TestServer::start_at_noon().await;
    server.project("my-app").await;
    let (revoked, revoked_token) = server.key(&["write"]).await;
    let body = json!({ "name": "brief", "scopes": ["write"], "expires_at": "2026-11-21T12:00:01Z" });
    let (_, expiring_token) = server.key_with(body).await;
    for token in [&revoked_token, &expiring_token] {
        mint(&server, json!({})).bearer(token).send().await.expect(201);
    }
    server.delete(&format!("/v1/api_keys/{revoked}")).send().await.expect(200);
    clock.advance(Duration::from_secs(1));
    for token in [&revoked_token, &expiring_token] {
        server.get("/v1/whoami").bearer(token).send().await.expect(200);
        let refused = mint(&server, json!({})).bearer(token).send().await;
        assert_eq!(refused.refused(401), crate::harness::unauthorized());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_opens_only_its_own_project() {
    let (server, project) = at_noon_with_a_project().await;
    server.project("other").await;
    let token = server.session_token("my-app", json!({ "user_id": "u" })).await;
    let principal = server.get("/v1/projects/my-app/whoami").bearer(&token).send().await.expect(200);
    assert_eq!((&principal["kind"], &principal["project_id"]), (&json!("session"), &json!(project)));
    assert_eq!(principal["sub"], "u");
    for path in ["/v1/projects/other/whoami", "/v1/projects/no-such/whoami", "/v1/whoami", "/v1/api_keys"] {
        server.get(path).bearer(&token).send().await.refused(403);
    }
}

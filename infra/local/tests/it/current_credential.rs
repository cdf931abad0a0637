//! The REQUEST authorizer of the data plane: it reads the current state for every request. A test
//! template moves `projects-whoami` behind it.

use std::net::SocketAddr;

use authorizer::{Authorizer, AuthorizerEvent};
use aws_lambda_events::iam::IamPolicyEffect;
use axum::body::Body;
use http_body_util::BodyExt;
use karta_local::{
    gateway::Gateway,
    template::{AuthorizerMode, TEMPLATE, Template},
};
use karta_shared::{
    auth::{SessionClaims, mint, verify},
    config::Ring,
    domain::Id,
};
use serde_json::{Value, json};

use crate::harness::{TestServer, note_secret, unauthorized};

const METHOD_ARN: &str = "arn:aws:execute-api:local:000000000000:karta/local/GET/v1/projects/site/whoami";

/// Returns a gateway whose route `projects-whoami` uses the uncached authorizer.
fn gateway(server: &TestServer) -> Gateway {
    let mut template = Template::parse(TEMPLATE).unwrap();
    let routes = template.functions.iter_mut().flat_map(|function| &mut function.routes);
    for route in routes.filter(|route| route.name == "projects-whoami" && route.is_authorized()) {
        route.authorizer = Some(AuthorizerMode::Uncached);
    }
    Gateway::new(&server.runner.app, &template).unwrap()
}

/// Sends `GET /v1/projects/site/whoami` with these headers. Returns the status and the body without
/// its request id.
async fn whoami(gateway: &Gateway, authorization: &[&str]) -> (u16, Value) {
    let mut request = http::Request::get("/v1/projects/site/whoami").header("host", "localhost");
    for value in authorization {
        request = request.header("authorization", *value);
    }
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let response = gateway.answer(peer, request.body(Body::empty()).unwrap()).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let mut body: Value = serde_json::from_slice(&body).unwrap();
    body.as_object_mut().unwrap().remove("request_id");
    (status, body)
}

async fn status(gateway: &Gateway, token: &str) -> u16 {
    whoami(gateway, &[&format!("Bearer {token}")]).await.0
}

/// Starts a server with the project `site`, a key and a session token that the key minted.
async fn minted(server: &TestServer) -> (u64, String, String) {
    server.project("site").await;
    let (id, key) = server.key(&["write"]).await;
    let path = "/v1/agent_projects/site/session_tokens";
    let token = server.post(path, json!({ "user_id": "ada" })).bearer(&key).send().await.expect(201);
    (id, key, token["token"].as_str().unwrap().to_owned())
}

/// Returns the context of an Allow, or `None` for a Deny.
pub(crate) async fn context(server: &TestServer, token: &str) -> Option<Value> {
    let header = ("Authorization".to_owned(), format!("Bearer {token}"));
    let authorizer = Authorizer::new(server.runner.app.for_function(authorizer::NAME));
    let answer = authorizer.authorize(&AuthorizerEvent::request([header], METHOD_ARN)).await.unwrap();
    let statement = &answer.policy_document.statement[0];
    (statement.effect == IamPolicyEffect::Allow).then_some(answer.context)
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_repeated_headers_are_refused() {
    let server = TestServer::start().await;
    let (_, key, session) = minted(&server).await;
    let gateway = gateway(&server);
    let (key, session) = (format!("Bearer {key}"), format!("Bearer {session}"));
    for accepted in [&key, &session] {
        assert_eq!(whoami(&gateway, &[accepted]).await.0, 200);
        assert_eq!(whoami(&gateway, &[accepted, accepted]).await, (401, unauthorized()));
    }
    for refused in [&[][..], &[""], &["Bearer"], &["Bearer x"], &[&key[7..]], &["Bearer a.b.c"], &[&key, &session]] {
        assert_eq!(whoami(&gateway, refused).await, (401, unauthorized()), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_ends_key_and_its_tokens_immediately() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (id, key, session) = minted(&server).await;
    let gateway = gateway(&server);
    for token in [&key, &session] {
        assert_eq!(status(&gateway, token).await, 200);
    }
    server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
    for token in [&key, &session] {
        assert_eq!(whoami(&gateway, &[&format!("Bearer {token}")]).await, (401, unauthorized()));
    }
    // The TOKEN authorizer verifies session tokens offline.
    server.get("/v1/projects/site/whoami").bearer(&session).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_ends_with_its_expired_minting_key() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, _, session) = minted(&server).await;
    let gateway = gateway(&server);
    let expiry = json!({ "expires_at": "2026-11-21T12:01:00Z" });
    server.patch(&format!("/v1/api_keys/{id}"), expiry).send().await.expect(200);
    assert_eq!(status(&gateway, &session).await, 200);
    clock.advance(std::time::Duration::from_mins(1));
    assert_eq!(status(&gateway, &session).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn minting_keys_addresses_do_not_bind_tokens() {
    let server = TestServer::start().await;
    let (id, key, session) = minted(&server).await;
    let gateway = gateway(&server);
    let elsewhere = json!({ "allowed_cidrs": ["203.0.113.0/24"] });
    server.patch(&format!("/v1/api_keys/{id}"), elsewhere).send().await.expect(200);
    assert_eq!(status(&gateway, &key).await, 401);
    assert_eq!(status(&gateway, &session).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_of_unknown_key_is_refused() {
    let server = TestServer::start().await;
    let (_, _, session) = minted(&server).await;
    let ring = server.runner.app.secrets.ring(Ring::SessionSigning).await.unwrap();
    let now = server.runner.app.clock.now().as_seconds();
    let claims = verify(&ring, &session, now).unwrap();
    let signed = |claims: &SessionClaims| {
        let token = mint(&ring, claims).expose().to_owned();
        note_secret(&token);
        token
    };
    assert!(context(&server, &signed(&claims)).await.is_some());
    for claims in [
        SessionClaims { akid: Id::new(1).unwrap(), ..claims.clone() },
        SessionClaims { org_id: Id::new(1).unwrap(), ..claims.clone() },
    ] {
        assert!(context(&server, &signed(&claims)).await.is_none());
    }
    // Data-plane routes reject a token that has no id.
    let anonymous = context(&server, &signed(&SessionClaims { jti: String::new(), ..claims })).await.unwrap();
    assert!(anonymous.get("jti").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn session_context_names_lineage_and_token() {
    let server = TestServer::start().await;
    let (id, key, session) = minted(&server).await;
    let of_session = context(&server, &session).await.unwrap();
    assert_eq!((&of_session["kind"], &of_session["sub"]), (&json!("session"), &json!("ada")));
    assert_eq!(of_session["api_key_id"], id.to_string());
    assert_eq!(of_session["counted_as"], id.to_string());
    assert_eq!(of_session["api_key_name"], "write");
    assert!(of_session["jti"].as_str().is_some_and(|jti| !jti.is_empty()));
    assert_eq!(of_session["budget_ok"], "true");
    let of_key = context(&server, &key).await.unwrap();
    assert_eq!((&of_key["counted_as"], of_key.get("jti")), (&json!(id.to_string()), None));
    server.set_subscription("past_due").await;
    let unpaid = context(&server, &session).await.unwrap();
    assert_eq!((&unpaid["budget_ok"], &unpaid["budget_reason"]), (&json!("false"), &json!("subscription past_due")));
}

#[tokio::test(flavor = "multi_thread")]
async fn aws_event_may_hold_any_client_text() {
    let server = TestServer::start().await;
    let authorizer = Authorizer::new(server.runner.app.for_function(authorizer::NAME));
    let allows = async |headers: &str| {
        let event =
            format!(r#"{{"type":"REQUEST","methodArn":"{METHOD_ARN}","path":"/","multiValueHeaders":{headers}}}"#);
        let event: AuthorizerEvent = serde_json::from_str(&event).unwrap();
        let answer = authorizer.authorize(&event).await.unwrap();
        answer.policy_document.statement[0].effect == IamPolicyEffect::Allow
    };
    let bearer = format!("\"Bearer {}\"", server.admin);
    assert!(allows(&format!(r#"{{"Authorization":[{bearer}],"X-Odd":["\ud83d"]}}"#)).await);
    assert!(allows(&format!(r#"{{"authorization":[{bearer}]}}"#)).await);
    for refused in [
        "null".to_owned(),
        "{}".to_owned(),
        r#"{"Authorization":[]}"#.to_owned(),
        r#"{"Authorization":["Bearer \ud83d"]}"#.to_owned(),
        format!(r#"{{"Authorization":[{bearer},{bearer}]}}"#),
        format!(r#"{{"Authorization":[{bearer}],"authorization":[{bearer}]}}"#),
    ] {
        assert!(!allows(&refused).await, "{refused}");
    }
}

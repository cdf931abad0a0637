use std::{collections::BTreeSet, time::Duration};

use http::HeaderMap;
use karta_shared::{config::Ring, domain::ApiKeyToken, entropy::OsEntropy};
use serde_json::{Value, json};

use crate::harness::{Request, World, note_secret};

/// A refusal for want of a credential: the one body, and nothing else to tell one reason from another by.
async fn unauthorized(what: &str, request: Request) -> BTreeSet<String> {
    let reply = request.send().await;
    let headers = header_names(&reply.headers);
    assert_eq!(reply.headers["content-type"], "application/json", "{what}");
    assert_eq!(reply.refused(401), json!({ "detail": "Unauthorized" }), "{what}");
    headers
}

fn header_names(headers: &HeaderMap) -> BTreeSet<String> {
    headers.keys().map(ToString::to_string).collect()
}

/// A token of ours by its tag, which no key was ever stored for.
async fn unstored_token(world: &World) -> String {
    let ring = world.runner.app.secrets.ring(Ring::KeyTag).await.unwrap();
    let token = ApiKeyToken::mint(&ring, &OsEntropy).expose().to_owned();
    note_secret(&token);
    token
}

fn with_last(token: &str, last: &str) -> String {
    format!("{}{last}", &token[..token.len() - 1])
}

fn with_wrong_tag(token: &str) -> String {
    with_last(token, if token.ends_with('a') { "b" } else { "a" })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_malformed_header_gets_the_one_body() {
    let world = World::start().await;
    let admin = world.admin.clone();
    unauthorized("no header", world.get("/v1/whoami").anonymous()).await;
    let headers = [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        admin.clone(),
        format!(" {admin}"),
        format!("Bearer{admin}"),
        format!("Bearer  {admin}"),
        format!("Bearer\t{admin}"),
        format!("Bearer {admin}\tx"),
        format!("Bearer {admin} {admin}"),
        format!("Bearer {admin}, Bearer {admin}"),
        format!("Bearer {admin},{admin}"),
        format!("Bearer \"{admin}\""),
        format!("Bearer Bearer {admin}"),
        format!("Basic {admin}"),
        "Basic YWRtaW46YWRtaW4=".to_owned(),
        format!("Token {admin}"),
        format!("Bearer token={admin}"),
        "Bearer null".to_owned(),
        "Bearer undefined".to_owned(),
        format!("Bearer {}", "a".repeat(10 * 1024)),
        format!("Bearer kt_live_{}", "a".repeat(10 * 1024)),
        format!("Bearer {0}.{0}.{0}", "a".repeat(10 * 1024)),
        "Bearer ..".to_owned(),
        "Bearer a.b.c".to_owned(),
    ];
    for header in headers {
        let request = world.get("/v1/whoami").authorization(header.as_str());
        unauthorized(&header, request).await;
        assert!(!world.authorizes(&header).await || header == format!("Bearer  {admin}"), "{header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_get_the_one_body() {
    let world = World::start().await;
    for bytes in [
        format!("Bearer {}é", world.admin).into_bytes(),
        [b"Bearer ", world.admin.as_bytes(), b"\xff"].concat(),
        [b"Bearer \x80", world.admin.as_bytes()].concat(),
        b"\xff\xfe".to_vec(),
        "Веагег kt_live_0123456789abcdefghijklmnopqrstuv".as_bytes().to_vec(),
        format!("Bearer kt_live_{}", "0".repeat(31) + "é").into_bytes(),
    ] {
        unauthorized(&format!("{bytes:?}"), world.get("/v1/whoami").authorization(bytes.clone())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheme_may_be_written_small() {
    let world = World::start().await;
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let header = format!("{scheme} {}", world.admin);
        world.get("/v1/whoami").authorization(header.as_str()).send().await.expect(200);
        assert!(world.authorizes(&header).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_wrong_shape_or_tag_gets_the_one_body() {
    let world = World::start().await;
    let admin = &world.admin;
    let tokens = [
        "kt_live_".to_owned(),
        admin[..39].to_owned(),
        format!("{admin}a"),
        format!("kt_test_{}", &admin[8..]),
        format!("KT_LIVE_{}", &admin[8..]),
        format!("kt_live-{}", &admin[8..]),
        with_last(admin, "_"),
        with_last(admin, "-"),
        with_last(admin, "%61"),
        with_wrong_tag(admin),
        format!("kt_live_{}{}", &admin[34..], &admin[8..34]),
        format!("kt_live_{}", "0".repeat(32)),
    ];
    for token in tokens {
        unauthorized(&token, world.get("/v1/whoami").bearer(&token)).await;
        assert!(!world.authorizes(&format!("Bearer {token}")).await, "{token}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_revoked_expired_and_ill_tagged_keys_cannot_be_told_apart() {
    let (world, clock) = World::start_at_noon().await;
    let (revoked_id, revoked) = world.key(&["read"]).await;
    let body = json!({ "name": "brief", "scopes": ["read"], "expires_at": "2026-11-21T12:01:00Z" });
    let (_, expired) = world.key_with(body).await;
    for token in [&revoked, &expired] {
        world.get("/v1/whoami").bearer(token).send().await.expect(200);
    }
    world.delete(&format!("/v1/api_keys/{revoked_id}")).send().await.expect(200);
    clock.advance(Duration::from_mins(1));

    let unstored = unstored_token(&world).await;
    let ill_tagged = with_wrong_tag(&world.admin);
    let anonymous = unauthorized("none", world.get("/v1/whoami").anonymous()).await;
    for (what, token) in [("revoked", revoked), ("expired", expired), ("unstored", unstored), ("tag", ill_tagged)] {
        for path in ["/v1/whoami", "/v1/api_keys", "/v1/projects/my-app/whoami"] {
            assert_eq!(unauthorized(what, world.get(path).bearer(&token)).await, anonymous, "{what} at {path}");
        }
        assert!(!world.authorizes(&format!("Bearer {token}")).await, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_expires_is_refused_from_that_instant() {
    let (world, clock) = World::start_at_noon().await;
    let body = json!({ "name": "brief", "scopes": ["read"], "expires_at": "2026-11-21T12:00:10Z" });
    let (_, token) = world.key_with(body).await;
    clock.advance(Duration::from_millis(9_999));
    assert!(world.authorizes(&format!("Bearer {token}")).await);
    clock.advance(Duration::from_millis(1));
    assert!(!world.authorizes(&format!("Bearer {token}")).await);
    unauthorized("expired", world.get("/v1/whoami").bearer(&token)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_only_from_its_own_addresses() {
    let world = World::start().await;
    let key = async |cidrs: Value| {
        world.key_with(json!({ "name": "here", "scopes": ["read"], "allowed_cidrs": cidrs })).await.1
    };
    for cidrs in [json!([]), json!(["127.0.0.1/32"]), json!(["10.0.0.0/8", "127.0.0.0/8"]), json!(["0.0.0.0/0"])] {
        let token = key(cidrs).await;
        world.get("/v1/whoami").bearer(&token).send().await.expect(200);
    }
    for cidrs in [json!(["10.0.0.0/8"]), json!(["127.0.0.2/32"]), json!(["::/0"]), json!(["::1/128", "192.0.2.0/24"])] {
        let token = key(cidrs.clone()).await;
        for path in ["/v1/whoami", "/v1/api_keys", "/v1/projects/my-app/whoami"] {
            unauthorized(&cidrs.to_string(), world.get(path).bearer(&token)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_token_is_unknown_outside_the_internal_routes() {
    use secrecy::ExposeSecret;
    let world = World::start().await;
    let token = world.runner.secrets.service_token.expose_secret().to_owned();
    unauthorized("service token", world.get("/v1/whoami").bearer(&token)).await;
    assert!(!world.authorizes(&format!("Bearer {token}")).await);
}

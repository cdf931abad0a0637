use std::{collections::BTreeSet, fs, time::Duration};

use http::{HeaderMap, Method};
use karta_local::template::{TEMPLATE, Template};
use karta_shared::{
    auth::bearer,
    config::Ring,
    domain::{ApiKeyToken, CredentialKind},
    entropy::OsEntropy,
};
use serde_json::{Value, json};

use crate::harness::{Request, TestServer, note_secret, run_folder};

/// Sends a request that must be rejected with the common 401 body. Returns the names of the
/// response headers, which must not depend on the reason either.
async fn unauthorized(what: &str, request: Request) -> BTreeSet<String> {
    let reply = request.send().await;
    let headers = header_names(&reply.headers);
    assert_eq!(reply.headers["content-type"], "application/json", "{what}");
    assert_eq!(reply.refused(401), crate::harness::unauthorized(), "{what}");
    headers
}

fn header_names(headers: &HeaderMap) -> BTreeSet<String> {
    headers.keys().map(ToString::to_string).collect()
}

/// A token with a valid tag that belongs to no stored key.
async fn unstored_token(server: &TestServer) -> String {
    let ring = server.runner.app.secrets.ring(Ring::KeyTag).await.unwrap();
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
async fn malformed_headers_get_the_common_401() {
    let server = TestServer::start().await;
    let admin = server.admin.clone();
    unauthorized("no header", server.get("/v1/whoami").anonymous()).await;
    let headers = [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        admin.clone(),
        format!(" {admin}"),
        format!("Bearer{admin}"),
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
        let request = server.get("/v1/whoami").authorization(header.as_str());
        unauthorized(&header, request).await;
        assert!(!server.authorizes(&header).await, "{header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn non_ascii_headers_get_the_common_401() {
    let server = TestServer::start().await;
    for bytes in [
        format!("Bearer {}é", server.admin).into_bytes(),
        [b"Bearer ", server.admin.as_bytes(), b"\xff"].concat(),
        [b"Bearer \x80", server.admin.as_bytes()].concat(),
        b"\xff\xfe".to_vec(),
        "Веагег kt_live_0123456789abcdefghijklmnopqrstuv".as_bytes().to_vec(),
        format!("Bearer kt_live_{}", "0".repeat(31) + "é").into_bytes(),
    ] {
        unauthorized(&format!("{bytes:?}"), server.get("/v1/whoami").authorization(bytes.clone())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_entry_point_accepts_the_same_header() {
    use secrecy::ExposeSecret;
    let server = TestServer::start().await;
    server.project("my-app").await;
    let session = server.session_token("my-app", json!({})).await;
    let service = server.runner.secrets.service_token.expose_secret().to_owned();
    let template = Template::parse(TEMPLATE).unwrap();
    let expression = regex::Regex::new(&template.authorizer.validation_expression).unwrap();
    let blanks = (0..=10).map(|count| " ".repeat(count)).chain(["\t", " \t", "\t ", "\u{b}"].map(str::to_owned));
    for separator in blanks {
        for scheme in ["Bearer", "bearer", "BEARER", "bEARER", "Basic", "Token"] {
            let start = format!("{scheme}{separator}");
            let is_valid = scheme.eq_ignore_ascii_case("bearer")
                && (1..=8).contains(&separator.len())
                && !separator.contains(['\t', '\u{b}']);
            for (token, path) in [
                (&server.admin, "/v1/whoami"),
                (&server.admin, "/v1/api_keys"),
                (&server.admin, "/v1/projects/my-app/whoami"),
                (&session, "/v1/projects/my-app/whoami"),
            ] {
                let header = format!("{start}{token}");
                assert_eq!(bearer(&header), is_valid.then_some(token.as_str()), "{start:?}");
                assert_eq!(expression.is_match(&header), is_valid, "{start:?}");
                assert_eq!(server.authorizes(&header).await, is_valid, "{start:?}");
                if !separator.contains('\u{b}') {
                    let reply = server.get(path).authorization(header.as_str()).send().await;
                    assert_eq!(reply.status.as_u16(), if is_valid { 200 } else { 401 }, "{start:?} at {path}");
                }
            }
            if !separator.contains('\u{b}') {
                let internal = server.get("/v1/internal/whoami").authorization(format!("{start}{service}"));
                assert_eq!(internal.send().await.status.as_u16(), if is_valid { 200 } else { 401 }, "{start:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_wrongly_tagged_tokens_are_refused() {
    let server = TestServer::start().await;
    let admin = &server.admin;
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
        unauthorized(&token, server.get("/v1/whoami").bearer(&token)).await;
        assert!(!server.authorizes(&format!("Bearer {token}")).await, "{token}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_to_refused_keys_are_indistinguishable() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (revoked_id, revoked) = server.key(&["read"]).await;
    let body = json!({ "name": "brief", "scopes": ["read"], "expires_at": "2026-11-21T12:01:00Z" });
    let (_, expired) = server.key_with(body).await;
    for token in [&revoked, &expired] {
        server.get("/v1/whoami").bearer(token).send().await.expect(200);
    }
    server.delete(&format!("/v1/api_keys/{revoked_id}")).send().await.expect(200);
    clock.advance(Duration::from_mins(1));

    let unstored = unstored_token(&server).await;
    let wrongly_tagged = with_wrong_tag(&server.admin);
    let anonymous = unauthorized("no credential", server.get("/v1/whoami").anonymous()).await;
    for (what, token) in [("revoked", revoked), ("expired", expired), ("unstored", unstored), ("tag", wrongly_tagged)] {
        for path in ["/v1/whoami", "/v1/api_keys", "/v1/projects/my-app/whoami"] {
            assert_eq!(unauthorized(what, server.get(path).bearer(&token)).await, anonymous, "{what} at {path}");
        }
        assert!(!server.authorizes(&format!("Bearer {token}")).await, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_is_refused_from_its_expiry_on() {
    let (server, clock) = TestServer::start_at_noon().await;
    let body = json!({ "name": "brief", "scopes": ["read"], "expires_at": "2026-11-21T12:00:10Z" });
    let (_, token) = server.key_with(body).await;
    clock.advance(Duration::from_millis(9_999));
    assert!(server.authorizes(&format!("Bearer {token}")).await);
    clock.advance(Duration::from_millis(1));
    assert!(!server.authorizes(&format!("Bearer {token}")).await);
    unauthorized("expired", server.get("/v1/whoami").bearer(&token)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_works_only_from_its_allowed_addresses() {
    let server = TestServer::start().await;
    let key = async |cidrs: Value| {
        server.key_with(json!({ "name": "here", "scopes": ["read"], "allowed_cidrs": cidrs })).await.1
    };
    for cidrs in [json!([]), json!(["127.0.0.1/32"]), json!(["10.0.0.0/8", "127.0.0.0/8"]), json!(["0.0.0.0/0"])] {
        let token = key(cidrs).await;
        server.get("/v1/whoami").bearer(&token).send().await.expect(200);
    }
    for cidrs in [json!(["10.0.0.0/8"]), json!(["127.0.0.2/32"]), json!(["::/0"]), json!(["::1/128", "192.0.2.0/24"])] {
        let token = key(cidrs.clone()).await;
        for path in ["/v1/whoami", "/v1/api_keys", "/v1/projects/my-app/whoami"] {
            unauthorized(&cidrs.to_string(), server.get(path).bearer(&token)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn service_token_is_refused_on_public_routes() {
    use secrecy::ExposeSecret;
    let server = TestServer::start().await;
    let token = server.runner.secrets.service_token.expose_secret().to_owned();
    unauthorized("service token", server.get("/v1/whoami").bearer(&token)).await;
    assert!(!server.authorizes(&format!("Bearer {token}")).await);
}

/// Issues one credential of every kind.
async fn issued(server: &TestServer) -> Vec<String> {
    use secrecy::ExposeSecret;
    server.project("my-app").await;
    let endpoint = json!({ "url": "https://hooks.example.com/karta", "event_types": ["*"] });
    let endpoint = server.post("/v1/webhook_endpoints", endpoint).send().await.expect(201);
    let credentials = vec![
        server.key(&["read"]).await.1,
        server.runner.secrets.service_token.expose_secret().to_owned(),
        server.session_token("my-app", json!({})).await,
        endpoint["secret"].as_str().unwrap().to_owned(),
    ];
    for kind in CredentialKind::ALL {
        let of_kind = credentials.iter().filter(|credential| credential.starts_with(kind.brand()));
        assert_eq!(of_kind.count(), 1, "{kind:?}");
    }
    credentials
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_echoes_or_logs_a_credential() {
    let server = TestServer::start().await;
    let credentials = issued(&server).await;
    let event = json!({
        "api_key_id": 1, "kind": "input_tokens", "quantity": 1, "occurred_at": "2026-11-21T11:00:00Z", "client_event_id": "e",
    });
    let variable = regex::Regex::new(r"\{[a-z_]+\}").unwrap();
    for route in Template::parse(TEMPLATE).unwrap().functions.into_iter().flat_map(|function| function.routes) {
        for credential in &credentials {
            let is_internal = route.path.starts_with("/v1/internal/");
            let paths = [
                variable.replace_all(&route.path, "1").into_owned(),
                variable.replace_all(&route.path, credential.as_str()).into_owned(),
                format!("{}?{credential}=1", variable.replace_all(&route.path, "1")),
                format!("{}?limit={credential}", variable.replace_all(&route.path, "1")),
            ];
            let mut with_field = event.clone();
            with_field[credential] = json!(1);
            let mut with_model = event.clone();
            with_model["model"] = json!(credential);
            let bodies = [
                json!({ credential.as_str(): 1 }),
                json!({ "metadata": { credential.as_str(): 1 } }),
                json!({ "scopes": [credential], "provider": credential, "kind": credential, "status": credential }),
                json!({ "events": [with_field, with_model] }),
            ];
            let requests =
                paths.iter().map(|path| (path, &bodies[0])).chain(bodies.iter().map(|body| (&paths[0], body)));
            for (path, body) in requests {
                let method = route.method.clone();
                let request = if is_internal { server.service(method, path) } else { server.request(method, path) };
                let reply = request.body(body.clone()).send().await;
                let secret = &credential[14..];
                assert!(!reply.text.contains(secret), "{} {path} {body}: {}", route.method, reply.text);
            }
        }
    }
    assert!(server.service(Method::GET, "/v1/internal/whoami").send().await.status.is_success());
    let log = fs::read_to_string(run_folder("logs").join(format!("it-{}.log", std::process::id()))).unwrap();
    for credential in &credentials {
        assert!(!log.contains(&credential[14..]), "{}", &credential[..14]);
    }
}

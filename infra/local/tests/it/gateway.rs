use std::{collections::HashSet, sync::Arc, time::Duration};

use http::Method;
use karta_shared::{
    clock::{Clock, ManualClock},
    config::Ring,
    domain::ApiKeyToken,
    entropy::OsEntropy,
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::{Reply, TestServer, note_secret, unauthorized, unknown_route},
};

async fn behind_a_proxy_at_noon() -> (TestServer, Arc<FaultProxy>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_with(Arc::clone(&clock) as Arc<dyn Clock>).await;
    (server, proxy, clock)
}

/// Closes every connection to the store until the proxy is healed.
fn disconnect_store(proxy: &FaultProxy) {
    for operation in ["Query", "GetItem", "BatchGetItem", "TransactWriteItems"] {
        proxy.fail(operation, ALWAYS, StoreFault::Close);
    }
}

/// Asserts a 503 with `Retry-After`.
fn assert_unavailable(reply: Reply) {
    let retry_after = reply.headers.get("retry-after").expect("a 503 has Retry-After");
    assert!(retry_after.to_str().unwrap().parse::<u32>().unwrap() >= 1);
    assert_eq!(reply.refused(503), json!({ "detail": "Service unavailable" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_path_returns_404() {
    let server = TestServer::start().await;
    for path in [
        "/",
        "/v1",
        "/v1/nothing",
        "/v2/whoami",
        "/V1/whoami",
        "/v1/Whoami",
        "/whoami",
        "/v1//whoami",
        "//v1/whoami",
        "/v1/whoami/me",
        "/v1/api_keys/1/2",
        "/v1/agent_projects/my-app/session_tokens/1",
        "/v1/internal/keys/validate",
        "/healthz/x",
        "/v1%2Fwhoami",
        "/v1/whoami%20",
    ] {
        for request in [server.get(path), server.get(path).anonymous()] {
            let reply = request.send().await;
            assert_eq!((path, reply.status.as_u16()), (path, 404));
            assert_eq!(reply.refused(404), unknown_route());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_method_is_unknown_route() {
    let server = TestServer::start().await;
    for (method, path) in [
        (Method::POST, "/healthz"),
        (Method::POST, "/v1/whoami"),
        (Method::PUT, "/v1/api_keys"),
        (Method::DELETE, "/v1/api_keys"),
        (Method::PUT, "/v1/api_keys/1"),
        (Method::GET, "/v1/agent_projects/my-app/session_tokens"),
        (Method::PUT, "/v1/agent_projects/my-app"),
        (Method::POST, "/v1/agent_projects/my-app/releases"),
        (Method::POST, "/v1/projects/my-app/whoami"),
        (Method::OPTIONS, "/v1/whoami"),
        (Method::TRACE, "/v1/whoami"),
        (Method::from_bytes(b"PURGE").unwrap(), "/v1/whoami"),
    ] {
        let refused = server.request(method.clone(), path).send().await;
        assert_eq!(refused.refused(404), unknown_route(), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_a_wrong_method_off_healthz() {
    let server = TestServer::start().await;
    for path in ["/v1/whoami", "/v1/api_keys", "/openapi.json", "/docs"] {
        let refused = server.request(Method::HEAD, path).send().await;
        assert_eq!((refused.status.as_u16(), refused.text.as_str()), (404, ""), "{path}");
        assert!(refused.headers.contains_key("x-request-id"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn encoded_unreserved_characters_equal_themselves() {
    let server = TestServer::start().await;
    let id = server.project("my-app").await;
    for path in ["/%76%31/whoami", "/v1/%77hoami", "/%68ealthz", "/v1/%61%70i%5Fkeys"] {
        server.get(path).send().await.expect(200);
    }
    for path in
        ["/v1/agent_projects/%6Dy-app", "/v1/agent_projects/my%2dapp", "/v1/agent%5fprojects/%6d%79%2D%61%70%70"]
    {
        assert_eq!(server.get(path).send().await.expect(200)["agent_project"]["id"], id, "{path}");
    }
    let token = server.session_token("my%2Dapp", json!({})).await;
    server.get("/v1/projects/%6Dy-app/whoami").bearer(&token).send().await.expect(200);
    server.get("/v1/agent_projects/%256Dy-app").send().await.refused(404);
    // An idempotency key treats both spellings as one path.
    let deploy = |slug: &str, sha: &str| {
        let path = format!("/v1/agent_projects/{slug}/deploys");
        server.post(&path, json!({ "commit_sha": sha })).idempotency_key("once").send()
    };
    let first = deploy("my-app", "abcdef0").await.expect(201);
    assert_eq!(deploy("%6Dy-app", "abcdef0").await.expect(201), first);
    assert_eq!(deploy("%6Dy-app", "abcdef1").await.refused(422)["error"], "idempotency_mismatch");
}

/// Sends a raw request. Returns the status line and the body of the response.
async fn raw(server: &TestServer, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(server.runner.base_url.trim_start_matches("http://")).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_1_requires_one_host() {
    let server = TestServer::start().await;
    let healthz =
        |version: &str, hosts: &str| format!("GET /healthz HTTP/{version}\r\n{hosts}connection: close\r\n\r\n");
    for hosts in ["", "host: localhost\r\nhost: localhost\r\n", "host: localhost\r\nHost: other.example\r\n"] {
        let (status, body) = raw(&server, &healthz("1.1", hosts)).await;
        assert_eq!(status, "HTTP/1.1 400 Bad Request", "{hosts:?}");
        assert!(body.contains(r#""error":"invalid_host""#), "{body}");
    }
    let (status, _) = raw(&server, &healthz("1.0", "host: localhost\r\nhost: localhost\r\n")).await;
    assert!(status.ends_with("400 Bad Request"), "{status}");
    for (version, hosts) in [("1.1", "host: localhost\r\n"), ("1.1", "host:\r\n"), ("1.0", "")] {
        let (status, _) = raw(&server, &healthz(version, hosts)).await;
        assert!(status.ends_with("200 OK"), "{version} {hosts:?}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_host_returns_400() {
    let server = TestServer::start().await;
    let send = async |target: &str, host: &str| {
        raw(&server, &format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await
    };
    for host in [
        "a b",
        "foo/bar@x",
        "u:p@localhost",
        "localhost:99999",
        "localhost:-1",
        "localhost:80:80",
        "localhost:http",
        "<script>",
        "http://localhost",
        "localhost/",
        "localhost?x",
        "localhost, other.example",
        ":80",
        "::1",
        "[::1",
        "[localhost]",
        "[::1]x",
        ".localhost",
        "a..example",
        "bücher.example",
        &format!("{}.example", "a".repeat(64)),
    ] {
        let (status, body) = send("/healthz", host).await;
        assert_eq!(status, "HTTP/1.1 400 Bad Request", "{host:?}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["error"], "invalid_host", "{host:?}");
        assert_eq!(body["message"], "Host must be a host name or an IP address, with or without a port");
        assert!(body["request_id"].as_str().is_some_and(is_random_uuid), "{body}");
    }
    for host in
        ["localhost", "LOCALHOST:8787", "localhost:", "localhost.", "my_service:80", "10.0.0.1", "[::1]", "[::1]:8787"]
    {
        assert_eq!(send("/healthz", host).await.0, "HTTP/1.1 200 OK", "{host:?}");
        assert_eq!(send(&format!("http://{host}/healthz"), "localhost").await.0, "HTTP/1.1 200 OK", "{host:?}");
    }
    for target in ["http://u:p@localhost/healthz", "http://localhost:99999/healthz"] {
        assert_eq!(send(target, "localhost").await.0, "HTTP/1.1 400 Bad Request", "{target}");
    }
    // The header must be valid, even if the target replaces it.
    assert_eq!(send("http://localhost/healthz", "a b").await.0, "HTTP/1.1 400 Bad Request");
}

#[tokio::test(flavor = "multi_thread")]
async fn absolute_target_replaces_the_host_header() {
    let server = TestServer::start().await;
    let whoami = async |target: &str, host: &str| {
        let token = server.runner.secrets.service_token.expose_secret();
        let request = format!(
            "GET {target}/v1/internal/whoami HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        );
        raw(&server, &request).await.0
    };
    for (target, host, status) in [
        ("", "localhost", "200 OK"),
        ("", "evil.example", "404 Not Found"),
        ("http://localhost:8787", "localhost", "200 OK"),
        ("http://localhost", "evil.example", "200 OK"),
        ("http://evil.example", "localhost", "404 Not Found"),
        ("http://evil.example:8787", "localhost", "404 Not Found"),
        ("http://LOCALHOST.evil.example", "localhost", "404 Not Found"),
    ] {
        assert_eq!(whoami(target, host).await, format!("HTTP/1.1 {status}"), "{target} {host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_authorization_headers_are_unauthorized() {
    let server = TestServer::start().await;
    server.project("my-app").await;
    let session = server.session_token("my-app", json!({})).await;
    let admin = format!("Bearer {}", server.admin);
    for other in [admin.as_str(), &format!("Bearer {session}"), "nonsense", ""] {
        for path in ["/v1/whoami", "/v1/api_keys", "/v1/projects/my-app/whoami"] {
            let refused = server.get(path).header("authorization", other).send().await.refused(401);
            assert_eq!(refused, unauthorized(), "{path} with {other:?}");
            let refused =
                server.get(path).header("authorization", &admin).authorization(other).send().await.refused(401);
            assert_eq!(refused, unauthorized(), "{path} with {other:?} last");
        }
        let internal = server.service(Method::GET, "/v1/internal/whoami");
        assert_eq!(internal.header("authorization", other).send().await.refused(401), unauthorized(), "{other:?}");
        // A route without authentication, and an unknown path.
        server.get("/healthz").header("authorization", other).send().await.expect(200);
        assert_eq!(server.get("/v1/nothing").header("authorization", other).send().await.refused(404), unknown_route());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_challenge_under_the_gateways_name() {
    let server = TestServer::start().await;
    let body = json!({ "name": "elsewhere", "scopes": ["read"], "allowed_cidrs": ["203.0.113.0/24"] });
    let (_, elsewhere) = server.key_with(body).await;
    let by_the_gateway = server.get("/v1/whoami").anonymous().send().await;
    let by_a_function = server.get("/v1/whoami").bearer(&elsewhere).send().await;
    assert_eq!(by_the_gateway.headers["www-authenticate"], "Bearer");
    assert_eq!(by_a_function.headers["x-amzn-remapped-www-authenticate"], "Bearer");
    assert!(!by_a_function.headers.contains_key("www-authenticate"), "API Gateway removes the original header");
    assert_eq!(by_the_gateway.refused(401), by_a_function.refused(401));
}

#[tokio::test(flavor = "multi_thread")]
async fn trailing_slash_is_another_path() {
    let server = TestServer::start().await;
    for path in ["/healthz/", "/v1/whoami/", "/v1/api_keys/", "/v1/api_keys/1/", "/v1/agent_projects/"] {
        assert_eq!(server.get(path).send().await.refused(404), unknown_route(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn body_over_ten_mebibytes_returns_413() {
    let server = TestServer::start().await;
    for bytes in [10 * 1024 * 1024, 10 * 1024 * 1024 + 1, 12 * 1024 * 1024] {
        let refused =
            server.request(Method::POST, "/v1/api_keys").raw_body(vec![b' '; bytes]).send().await.refused(413);
        assert_eq!(refused["error"], "body_too_large", "{bytes}");
        assert!(refused["message"].is_string());
        // An internal route off the allowlist returns the response of an unknown path, even for
        // such a body.
        for path in ["/v1/internal/keys/validate", "/v1/nothing"] {
            let request = server.request(Method::POST, path).header("host", "elsewhere.example");
            request.raw_body(vec![b' '; bytes]).send().await.refused(if bytes > 10 * 1024 * 1024 { 413 } else { 404 });
        }
    }
    let request = server.request(Method::POST, "/v1/api_keys").anonymous().raw_body(vec![b' '; 1024 * 1024]);
    request.send().await.refused(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn body_over_64_kibibytes_returns_413() {
    let server = TestServer::start().await;
    let body = r#"{"name":"padded","scopes":["read"]}"#;
    let padded = |bytes: usize| body.to_owned() + &" ".repeat(bytes - body.len());
    let post = |body: String| server.request(Method::POST, "/v1/api_keys").raw_body(body).send();
    post(padded(64 * 1024)).await.expect(201);
    let refused = post(padded(64 * 1024 + 1)).await.refused(413);
    assert_eq!(refused, json!({ "error": "body_too_large", "message": "The body must be at most 65536 bytes" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn authentication_without_a_store_returns_uncached_503() {
    let (server, proxy, _clock) = behind_a_proxy_at_noon().await;
    let ring = server.runner.app.secrets.ring(Ring::KeyTag).await.unwrap();
    let unstored = ApiKeyToken::mint(&ring, &OsEntropy);
    note_secret(unstored.expose());
    disconnect_store(&proxy);
    for token in [server.admin.as_str(), unstored.expose()] {
        assert_unavailable(server.get("/v1/whoami").bearer(token).send().await);
    }
    proxy.heal();
    server.get("/v1/whoami").send().await.expect(200);
    server.get("/v1/whoami").bearer(unstored.expose()).send().await.refused(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_proof_without_a_store_returns_503() {
    let (server, proxy, clock) = behind_a_proxy_at_noon().await;
    server.get("/v1/whoami").send().await.expect(200);
    clock.advance(Duration::from_secs(3));
    disconnect_store(&proxy);
    assert_unavailable(server.get("/v1/whoami").send().await);
    proxy.heal();
    server.get("/v1/whoami").send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn route_without_a_store_returns_503() {
    let (server, proxy, _clock) = behind_a_proxy_at_noon().await;
    server.get("/v1/whoami").send().await.expect(200);
    disconnect_store(&proxy);
    assert_unavailable(server.get("/v1/api_keys").send().await);
    assert_unavailable(server.post("/v1/api_keys", json!({ "name": "x", "scopes": ["read"] })).send().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn storeless_requests_succeed_without_a_store() {
    let (server, proxy, _clock) = behind_a_proxy_at_noon().await;
    server.project("my-app").await;
    let token = server.session_token("my-app", json!({})).await;
    disconnect_store(&proxy);
    proxy.forget();
    server.get("/healthz").anonymous().send().await.expect(200);
    server.get("/v1/projects/my-app/whoami").bearer(&token).send().await.expect(200);
    server.get("/v1/projects/my-app/whoami").bearer(&format!("{}A", &token[1..])).send().await.refused(401);
    server.get("/v1/whoami").bearer(&format!("kt_live_{}", "0".repeat(32))).send().await.refused(401);
    assert!(proxy.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_may_read_the_gateways_own_refusals() {
    let (server, proxy, clock) = behind_a_proxy_at_noon().await;
    let whoami = "/v1/projects/my-app/whoami";
    let large = server.request(Method::POST, "/v1/api_keys").raw_body(vec![b' '; 10 * 1024 * 1024 + 1]).send().await;
    clock.advance(Duration::from_secs(3));
    disconnect_store(&proxy);
    let refusals = [
        (413, large),
        (401, server.get(whoami).anonymous().send().await),
        (401, server.get(whoami).bearer(&format!("kt_live_{}", "0".repeat(32))).send().await),
        (404, server.get("/v1/nothing").send().await),
        (503, server.get(whoami).send().await),
    ];
    for (status, refusal) in refusals {
        assert_eq!(refusal.headers["access-control-allow-origin"], "*");
        assert_eq!(refusal.headers["content-type"], "application/json");
        refusal.refused(status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_has_its_own_request_id() {
    let server = TestServer::start().await;
    let mut seen = HashSet::new();
    for _ in 0..20 {
        for path in ["/healthz", "/v1/whoami", "/v1/nothing", "/v1/api_keys/7"] {
            let reply = server.get(path).header("x-request-id", "mine").send().await;
            let id = reply.headers["x-request-id"].to_str().unwrap().to_owned();
            assert!(is_random_uuid(&id), "{id}");
            assert!(seen.insert(id), "a repeated id");
        }
    }
}

/// Returns whether `id` is a UUID of version 4, as API Gateway's request ids are.
fn is_random_uuid(id: &str) -> bool {
    let shape = "hhhhhhhh-hhhh-4hhh-vhhh-hhhhhhhhhhhh";
    id.len() == shape.len()
        && id.chars().zip(shape.chars()).all(|(c, expected)| match expected {
            'h' => matches!(c, '0'..='9' | 'a'..='f'),
            'v' => matches!(c, '8' | '9' | 'a' | 'b'),
            other => c == other,
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn address_check_ignores_forwarding_headers() {
    let server = TestServer::start().await;
    let key = async |cidr: &str| {
        let body = json!({ "name": cidr, "scopes": ["read"], "allowed_cidrs": [cidr] });
        server.key_with(body).await.1
    };
    let (elsewhere, here) = (key("203.0.113.0/24").await, key("127.0.0.1/32").await);
    for (name, value) in [
        ("x-forwarded-for", "203.0.113.5"),
        ("x-forwarded-for", "203.0.113.5, 127.0.0.1"),
        ("x-real-ip", "203.0.113.5"),
        ("forwarded", "for=203.0.113.5"),
        ("cf-connecting-ip", "203.0.113.5"),
        ("true-client-ip", "203.0.113.5"),
    ] {
        server.get("/v1/whoami").bearer(&elsewhere).header(name, value).send().await.refused(401);
        server.get("/v1/whoami").bearer(&here).header(name, value).send().await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_store_requires_its_access_key() {
    let server = TestServer::start().await;
    let scan = json!({ "TableName": "karta-credentials" }).to_string();
    let client = reqwest::Client::new();
    for credential in ["", "AWS4-HMAC-SHA256 Credential=local/20261121/us-east-1/dynamodb/aws4_request, Signature=00"] {
        let request = client.post(server.runner.emulator.endpoint()).header("x-amz-target", "DynamoDB_20120810.Scan");
        let answer = request.header("authorization", credential).header("origin", "https://evil.example");
        let answer = answer.body(scan.clone()).send().await.unwrap();
        assert_eq!(answer.status(), 400);
        assert!(!answer.headers().contains_key("access-control-allow-origin"));
        assert_eq!(answer.text().await.unwrap(), r#"{"__type":"UnrecognizedClientException"}"#);
    }
    server.dynamodb("Scan", json!({ "TableName": "karta-credentials" })).await;
}

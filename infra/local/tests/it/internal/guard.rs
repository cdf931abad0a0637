//! Access to the internal routes: allowlists of addresses and hosts, and service tokens with
//! powers.

use http::Method;
use karta_shared::domain::InternalGuard;
use serde_json::{Value, json};

use super::{Plane, ROUTES, bodies, guard, request, token};
use crate::harness::{Reply, TestServer};

const INSIDE: (&str, &str) = ("10.1.2.3", "control.example.com");

/// Returns a plane that allows addresses in 10.0.0.0/8 and the host control.example.com, with these
/// tokens and powers.
async fn plane(server: &TestServer, members: &[(&str, &str, &[&str])]) -> Plane {
    let mut tokens = json!({ "powers": {} });
    for (name, token, powers) in members {
        tokens["powers"][name] = json!(powers);
        tokens[name] = json!(token);
    }
    Plane::over(server, guard("10.0.0.0/8, 2001:db8::/32", "control.example.com, [2001:db8::1]"), &tokens).await
}

/// Returns what a client sees of a response, except the request id.
fn seen(reply: Reply) -> (Vec<(String, String)>, Value) {
    let mut headers: Vec<_> = reply
        .headers
        .iter()
        .filter(|(name, _)| *name != "x-request-id")
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    headers.sort();
    (headers, reply.refused(404))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_outside_allowlists_see_unknown_paths() {
    let server = TestServer::start().await;
    let token = token("a");
    let plane = plane(&server, &[("ops", &token, &["validate", "provision"])]).await;
    for (address, host) in [
        ("11.0.0.1", "control.example.com"),
        ("127.0.0.1", "control.example.com"),
        ("2001:db9::1", "control.example.com"),
        ("10.1.2.3", "example.com"),
        ("10.1.2.3", "localhost"),
        ("10.1.2.3", "control.example.com.evil.example"),
        ("10.1.2.3", "10.1.2.3"),
        ("127.0.0.1", "localhost"),
    ] {
        let unknown = request(&Method::GET, "/v1/internal/nothing", None);
        let unknown = seen(plane.send(address, host, unknown, "").await);
        for (method, path, _) in &ROUTES {
            for token in [None, Some("wrong"), Some(token.as_str()), Some(server.admin.as_str())] {
                for body in bodies() {
                    let reply = plane.send(address, host, request(method, path, token), body).await;
                    assert_eq!(seen(reply), unknown, "{method} {path} from {address} at {host}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarding_headers_are_ignored() {
    let server = TestServer::start().await;
    let token = token("a");
    let plane = plane(&server, &[("ops", &token, &["validate"])]).await;
    let claiming = |address: &str, host: &str| {
        request(&Method::GET, "/v1/internal/whoami", Some(&token))
            .header("x-forwarded-for", address)
            .header("x-real-ip", address)
            .header("forwarded", format!("for={address};host={host}"))
            .header("x-forwarded-host", host)
            .header("true-client-ip", address)
    };
    let (address, host) = INSIDE;
    for (from, at) in [("11.0.0.1", host), (address, "example.com"), ("11.0.0.1", "example.com")] {
        plane.send(from, at, claiming(address, host), "").await.refused(404);
    }
    plane.send(address, host, claiming("11.0.0.1", "example.com"), "").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn allowlists_accept_equivalent_notations() {
    let server = TestServer::start().await;
    let token = token("a");
    let plane = plane(&server, &[("ops", &token, &["validate"])]).await;
    for (address, host) in [
        INSIDE,
        ("10.255.255.255", "CONTROL.Example.COM"),
        ("::ffff:10.1.2.3", "control.example.com."),
        ("2001:db8::9", "control.example.com:8443"),
        ("10.1.2.3", "[2001:DB8:0::1]:443"),
    ] {
        let whoami = request(&Method::GET, "/v1/internal/whoami", Some(&token));
        let answer = plane.send(address, host, whoami, "").await.expect(200);
        assert_eq!(answer, json!({ "principal_kind": "service" }), "{address} at {host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_service_token_is_refused_before_the_body() {
    let server = TestServer::start().await;
    server.project("site").await;
    let session = server.session_token("site", json!({})).await;
    let own = token("a");
    let plane = plane(&server, &[("ops", &own, &["validate", "provision"])]).await;
    let (address, host) = INSIDE;
    let wrong = [
        None,
        Some(String::new()),
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some(own.clone()),
        Some(format!("Basic {own}")),
        Some(format!("Bearer{}{own}", " ".repeat(9))),
        Some(format!("Bearer\t{own}")),
        Some(format!("Bearer {own} ")),
        Some(format!("Bearer {own}a")),
        Some(format!("Bearer {}", &own[..own.len() - 1])),
        Some(format!("Bearer {}", own.to_uppercase())),
        Some("Bearer ops".to_owned()),
        Some(format!("Bearer {}", server.admin)),
        Some(format!("Bearer {session}")),
    ];
    for (method, path, _) in &ROUTES {
        for header in &wrong {
            for body in bodies() {
                let request = request(method, path, None);
                let request = match header {
                    Some(header) => request.header("authorization", header),
                    None => request,
                };
                let reply = plane.send(address, host, request, body).await;
                assert_eq!(reply.refused(401), crate::harness::unauthorized(), "{method} {path}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_power_is_reported_before_the_body() {
    let server = TestServer::start().await;
    let (validate, provision, others) = (token("a"), token("b"), token("c"));
    let members: [(&str, &str, &[&str]); 3] = [
        ("plane", &validate, &["validate"]),
        ("ops", &provision, &["provision"]),
        ("rest", &others, &["usage", "byok", "releases"]),
    ];
    let plane = plane(&server, &members).await;
    let (address, host) = INSIDE;
    for (_, token, powers) in members {
        for (method, path, needed) in &ROUTES {
            for body in bodies() {
                let reply = plane.send(address, host, request(method, path, Some(token)), body).await;
                match needed {
                    Some(power) if !powers.contains(power) => {
                        assert_eq!(reply.forbidden(), format!("missing power: {power}"), "{method} {path}");
                    }
                    _ => assert!(![401, 403].contains(&reply.status.as_u16()), "{method} {path}: {}", reply.text),
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_new_tokens_work_during_rotation() {
    let server = TestServer::start().await;
    let (old, new) = (token("a"), token("b"));
    let plane = plane(&server, &[("plane-1", &old, &["validate"]), ("plane-2", &new, &["validate"])]).await;
    for token in [&old, &new] {
        let whoami = request(&Method::GET, "/v1/internal/whoami", Some(token));
        plane.send(INSIDE.0, INSIDE.1, whoami, "").await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_token_secret_returns_503() {
    let server = TestServer::start().await;
    let token = token("a");
    let broken = json!({ "powers": { "ops": ["everything"] }, "ops": token });
    let plane = Plane::over(&server, guard("10.0.0.0/8", "control.example.com"), &broken).await;
    let whoami = request(&Method::GET, "/v1/internal/whoami", Some(&token));
    let reply = plane.send(INSIDE.0, INSIDE.1, whoami, "").await;
    assert_eq!(reply.headers["retry-after"], "1");
    assert_eq!(reply.refused(503), json!({ "detail": "Service unavailable" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn local_run_accepts_only_loopback_names() {
    let server = TestServer::start().await;
    let whoami = || server.service(Method::GET, "/v1/internal/whoami");
    assert_eq!(whoami().send().await.expect(200), json!({ "principal_kind": "service" }));
    for host in ["localhost", "LOCALHOST:1", "[::1]:8787", "127.0.0.1."] {
        whoami().header("host", host).send().await.expect(200);
    }
    for host in ["rebound.example", "localhost.example", "127.0.0.2"] {
        whoami().header("host", host).send().await.refused(404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_allowlist_replaces_loopback() {
    let elsewhere = InternalGuard { addresses: Some("192.0.2.0/24".parse().unwrap()), hosts: None };
    let server = TestServer::start_guarded(elsewhere).await;
    for (method, path, _) in &ROUTES {
        server.service(method.clone(), path).raw_body("{").send().await.refused(404);
    }
    server.get("/v1/whoami").send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn service_token_opens_only_internal_routes() {
    let server = TestServer::start().await;
    for path in ["/v1/whoami", "/v1/api_keys", "/v1/projects/app/whoami"] {
        server.service(Method::GET, path).send().await.refused(401);
    }
}

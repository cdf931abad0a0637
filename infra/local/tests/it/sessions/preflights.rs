//! CORS of the project family: preflights and the headers of every response.

use http::Method;
use serde_json::json;

use super::{BY_ID, Chat, FLAT, IN_APP};
use crate::harness::Reply;

const HEADERS: [(&str, &str); 5] = [
    ("access-control-allow-origin", "*"),
    ("access-control-allow-methods", "GET, POST, DELETE, OPTIONS"),
    ("access-control-allow-headers", "Authorization, Content-Type, Last-Event-ID, Idempotency-Key"),
    ("access-control-expose-headers", "x-request-id, retry-after, x-should-retry"),
    ("access-control-max-age", "3600"),
];

fn assert_allowed(reply: &Reply, what: &str) {
    for (name, value) in HEADERS {
        assert_eq!(reply.headers.get(name).and_then(|value| value.to_str().ok()), Some(value), "{what}: {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_project_path_has_a_preflight() {
    let chat = Chat::start().await;
    let session = chat.session(IN_APP).await;
    for suffix in ["", "/x", "/x/messages", "/x/stream", "/x/cancel", &format!("/{session}")] {
        let preflight = chat.server.request(Method::OPTIONS, &format!("{IN_APP}{suffix}")).anonymous();
        let preflight = preflight.header("origin", "https://app.example.com");
        let reply = preflight.header("access-control-request-method", "POST").send().await;
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (204, ""), "{suffix}");
        assert_allowed(&reply, suffix);
        let flat = chat.server.request(Method::OPTIONS, &format!("{FLAT}{suffix}")).anonymous().send().await;
        assert_eq!(flat.refused(404), crate::harness::unknown_route());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_project_response_allows_browsers() {
    let chat = Chat::start().await;
    let (session, token) = (chat.session(IN_APP).await, chat.token(None).await);
    let (_, other) = chat.server.another_organization("other").await;
    for route in &BY_ID {
        let what = format!("{} …{}", route.method, route.suffix);
        // 404, 403 and 400, then the success or the 409.
        for request in [
            route.to(&chat.server, IN_APP, "missing"),
            route.to(&chat.server, IN_APP, &session).bearer(&other),
            route.to(&chat.server, "/v1/projects/other/sessions", &session).bearer(&token),
            route.to(&chat.server, IN_APP, &session).raw_body("{"),
            route.to(&chat.server, IN_APP, &session),
        ] {
            assert_allowed(&request.send().await, &what);
        }
        let unauthorized = route.to(&chat.server, IN_APP, &session).anonymous().send().await;
        assert_eq!(unauthorized.headers["access-control-allow-origin"], "*", "{what}");
    }
    assert_allowed(&chat.server.post(IN_APP, json!({})).send().await, "create");
    assert_allowed(&chat.server.get(IN_APP).send().await, "list");
    chat.server.set_subscription("past_due").await;
    assert_allowed(&chat.server.post(IN_APP, json!({})).send().await, "402");
}

#[tokio::test(flavor = "multi_thread")]
async fn flat_routes_are_not_for_browsers() {
    let chat = Chat::start().await;
    let session = chat.session(FLAT).await;
    for route in &BY_ID {
        let reply = route.to(&chat.server, FLAT, &session).send().await;
        assert!(!reply.headers.contains_key("access-control-allow-methods"), "{route:?}");
    }
}

use http::Method;
use serde_json::json;

use crate::harness::{TestServer, unknown_route};

#[tokio::test(flavor = "multi_thread")]
async fn healthz_returns_ok_without_authentication() {
    let server = TestServer::start().await;
    for request in [
        server.get("/healthz").anonymous(),
        server.get("/healthz"),
        server.get("/healthz").authorization("nonsense"),
        server.get("/healthz").bearer("kt_live_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    ] {
        assert_eq!(request.send().await.expect(200), json!({ "status": "ok" }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn head_answers_like_get_without_a_body() {
    let server = TestServer::start().await;
    let get = server.get("/healthz").anonymous().send().await;
    for request in [server.request(Method::HEAD, "/healthz"), server.request(Method::HEAD, "/healthz").anonymous()] {
        let head = request.send().await;
        assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
        for header in ["content-type", "content-length", "cache-control"] {
            assert_eq!(head.headers.get(header), get.headers.get(header), "{header}");
        }
        assert!(head.headers.contains_key("x-request-id"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_and_paths_return_404() {
    let server = TestServer::start().await;
    for (method, path) in [
        (Method::POST, "/healthz"),
        (Method::DELETE, "/healthz"),
        (Method::GET, "/v1/healthz"),
        (Method::GET, "/healthz/"),
        (Method::GET, "/"),
        (Method::GET, "/v1"),
        (Method::GET, "/v2/whoami"),
        (Method::POST, "/v1/whoami"),
        (Method::PUT, "/v1/api_keys"),
        (Method::PUT, "/v1/api_keys/1"),
        (Method::DELETE, "/v1/agent_projects/site"),
        (Method::GET, "/v1/agent_projects/site/session_tokens"),
        (Method::OPTIONS, "/v1/api_keys"),
        (Method::GET, "/v1/api_keys/"),
        (Method::GET, "/V1/api_keys"),
    ] {
        for request in [server.request(method.clone(), path), server.request(method.clone(), path).anonymous()] {
            assert_eq!(request.send().await.refused(404), unknown_route(), "{method} {path}");
        }
    }
}

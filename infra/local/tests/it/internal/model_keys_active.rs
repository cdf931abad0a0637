use http::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Request, TestServer},
    model_keys::{active, provider_key},
};

const ROUTE: &str = "/v1/internal/model_keys/active";

fn active_with(server: &TestServer, query: &str) -> Request {
    server.service(Method::GET, &format!("{ROUTE}?{query}"))
}

async fn create(server: &TestServer, token: &str, provider: &str, key: &str) -> Value {
    let body = json!({ "provider": provider, "key": key });
    server.post("/v1/model_keys", body).bearer(token).send().await.expect(201)["model_key"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn data_plane_receives_the_active_key_in_plaintext() {
    let server = TestServer::start().await;
    let key = provider_key("sk-ant-api03-");
    let created = create(&server, &server.admin, "anthropic", &key).await;
    let expected = json!({
        "provider": "anthropic",
        "plaintext": key,
        "key_id": created["id"],
        "tail": key[key.len() - 4..],
    });
    assert_eq!(active(&server, "anthropic").send().await.expect(200), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_organization_has_its_own_key() {
    let server = TestServer::start().await;
    let (other, token) = server.another_organization("other").await;
    let (ours, theirs) = (provider_key("sk-"), provider_key("sk-"));
    create(&server, &server.admin, "openai", &ours).await;
    let other_query = format!("organization_id={other}&provider=openai");
    let not_found = json!({ "detail": "Not found" });
    assert_eq!(active_with(&server, &other_query).send().await.refused(404), not_found);
    create(&server, &token, "openai", &theirs).await;
    assert_eq!(active_with(&server, &other_query).send().await.expect(200)["plaintext"], theirs);
    assert_eq!(active(&server, "openai").send().await.expect(200)["plaintext"], ours);
    for provider in ["anthropic", "bedrock", "vertex", "openrouter"] {
        assert_eq!(active(&server, provider).send().await.refused(404), not_found);
    }
    let unknown = active_with(&server, "organization_id=1&provider=openai").send().await;
    assert_eq!(unknown.refused(404), not_found);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_missing_parameter_is_named() {
    let server = TestServer::start().await;
    let organization = server.organization_id;
    for (query, field) in [
        ("provider=openai".to_owned(), "organization_id"),
        ("organization_id=&provider=openai".to_owned(), "organization_id"),
        ("organization_id=acme&provider=openai".to_owned(), "organization_id"),
        ("organization_id=9007199254740992&provider=openai".to_owned(), "organization_id"),
        (format!("organization_id={organization}"), "provider"),
        (format!("organization_id={organization}&provider=OpenAI"), "provider"),
        (format!("organization_id={organization}&provider=openai&provider=openai"), "provider"),
        (format!("organization_id={organization}&provider=openai&id=1"), "id"),
    ] {
        assert_eq!(active_with(&server, &query).send().await.invalid_field(), field, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_service_tokens_open_a_key() {
    let server = TestServer::start().await;
    let key = provider_key("sk-");
    create(&server, &server.admin, "openai", &key).await;
    server.project("site").await;
    let session = server.session_token("site", json!({})).await;
    for token in [server.admin.as_str(), &session, &key] {
        let reply = active(&server, "openai").bearer(token).send().await;
        assert_eq!(reply.refused(401), crate::harness::unauthorized());
    }
}

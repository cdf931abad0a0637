use http::Method;
use serde_json::{Value, json};

use crate::harness::{Request, TestServer};

fn settings(server: &TestServer, query: &str) -> Request {
    server.service(Method::GET, &format!("/v1/internal/model_settings{query}"))
}

fn answer(model_id: &Value, endpoint_url: &Value) -> Value {
    json!({ "model_id": model_id, "endpoint_url": endpoint_url, "endpoint_kind": "anthropic" })
}

#[tokio::test(flavor = "multi_thread")]
async fn project_settings_override_organization_settings() {
    let server = TestServer::start().await;
    let (organization, project) = (server.organization_id, server.project("site").await);
    let read = async |query: String| settings(&server, &query).send().await.expect(200);
    let (ours, its) =
        (format!("?organization_id={organization}"), format!("?organization_id={organization}&project_id={project}"));
    let nothing = answer(&Value::Null, &Value::Null);
    assert_eq!((read(ours.clone()).await, read(its.clone()).await), (nothing.clone(), nothing));

    let (model, url) = (json!("claude-sonnet-5"), json!("https://llm.example.com/v1"));
    let body = json!({ "model_id": model, "endpoint_url": url });
    let path = format!("/v1/internal/organizations/{organization}");
    server.service(Method::PATCH, &path).body(body).send().await.expect(200);
    assert_eq!((read(ours.clone()).await, read(its.clone()).await), (answer(&model, &url), answer(&model, &url)));

    let change = |body: Value| server.patch("/v1/agent_projects/site", body).send();
    change(json!({ "model_id": "claude-opus-5" })).await.expect(200);
    assert_eq!(read(its.clone()).await, answer(&json!("claude-opus-5"), &url));
    change(json!({ "model_id": null, "endpoint_url": "https://own.example.com" })).await.expect(200);
    assert_eq!(read(its).await, answer(&model, &json!("https://own.example.com")));
    assert_eq!(read(ours).await, answer(&model, &url), "the organization's settings are unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_organization_and_foreign_project_return_404() {
    let server = TestServer::start().await;
    let (ours, (theirs, _)) = (server.organization_id, server.another_organization("other").await);
    let project = server.project("site").await;
    for query in [
        "?organization_id=1".to_owned(),
        format!("?organization_id=1&project_id={project}"),
        format!("?organization_id={theirs}&project_id={project}"),
        format!("?organization_id={ours}&project_id=1"),
    ] {
        assert_eq!(settings(&server, &query).send().await.refused(404), json!({ "detail": "Not found" }), "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_missing_parameter_is_named() {
    let server = TestServer::start().await;
    for (query, field) in [
        ("", "organization_id"),
        ("?project_id=1", "organization_id"),
        ("?organization_id=acme", "organization_id"),
        ("?organization_id=1&project_id=site", "project_id"),
        ("?organization_id=1&project_id=", "project_id"),
        ("?organization_id=1&model_id=m", "model_id"),
    ] {
        assert_eq!(settings(&server, query).send().await.invalid_field(), field, "{query}");
    }
}

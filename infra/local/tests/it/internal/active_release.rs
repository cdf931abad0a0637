use http::Method;
use serde_json::json;

use crate::harness::{Request, TestServer};

fn active(server: &TestServer, slug: &str, query: &str) -> Request {
    server.service(Method::GET, &format!("/v1/internal/projects/{slug}/active_release{query}"))
}

fn organization_query(organization: u64) -> String {
    format!("?organization_id={organization}")
}

#[tokio::test(flavor = "multi_thread")]
async fn active_release_has_exactly_the_documented_fields() {
    let server = TestServer::start().await;
    let id = server.project("site").await;
    let read = async || active(&server, "site", &organization_query(server.organization_id)).send().await.expect(200);
    let first = server.deploy("site", json!({ "commit_sha": "ABCDEF0" })).await;
    let mut expected = json!({
        "project_id": id,
        "version": 1,
        "build_kind": null,
        "template_path": null,
        "commit_sha": "abcdef0",
        "status": "active",
        "image_ref": null,
    });
    assert_eq!(read().await, expected);

    let report = |field: &str, value: &str| {
        let mut body = json!({ "status": "active" });
        body[field] = json!(value);
        server.service(Method::POST, &format!("/v1/internal/releases/{}/status", first["id"])).body(body).send()
    };
    report("template_path", "agents/site.yaml").await.expect(200);
    expected["template_path"] = json!("agents/site.yaml");
    expected["build_kind"] = json!("template");
    assert_eq!(read().await, expected);
    report("image_ref", "registry.example.com/site:1").await.expect(200);
    expected["image_ref"] = json!("registry.example.com/site:1");
    expected["build_kind"] = json!("image");
    assert_eq!(read().await, expected);

    server.deploy("site", json!({ "commit_sha": "abcdef1", "activate": false })).await;
    assert_eq!(read().await, expected, "an inactive release changes nothing");
    server.deploy("site", json!({ "commit_sha": "abcdef2" })).await;
    assert_eq!(read().await["version"], 3);
    server.post("/v1/agent_projects/site/rollback", json!({ "version": 1 })).send().await.expect(200);
    assert_eq!(read().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_active_release_returns_404() {
    let server = TestServer::start().await;
    let (theirs, _) = server.another_organization("other").await;
    server.project("site").await;
    server.deploy("site", json!({ "commit_sha": "abcdef0" })).await;
    server.project("shop").await;
    server.deploy("shop", json!({ "commit_sha": "abcdef0", "activate": false })).await;
    let ours = server.organization_id;
    for (slug, organization) in [("shop", ours), ("nothing", ours), ("Site", ours), ("site", theirs), ("site", 1)] {
        let refusal = active(&server, slug, &organization_query(organization)).send().await.refused(404);
        assert_eq!(refusal, json!({ "detail": "Not found" }), "{slug} of {organization}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_missing_parameter_is_named() {
    let server = TestServer::start().await;
    for (query, field) in [
        ("", "organization_id"),
        ("?organization_id=", "organization_id"),
        ("?organization_id=acme", "organization_id"),
        ("?organization_id=0", "organization_id"),
        ("?organization_id=1&organization_id=1", "organization_id"),
        ("?organization_id=1&version=1", "version"),
    ] {
        assert_eq!(active(&server, "nothing", query).send().await.invalid_field(), field, "{query}");
    }
    let key =
        server.get(&format!("/v1/internal/projects/site/active_release{}", organization_query(server.organization_id)));
    assert_eq!(key.send().await.refused(401), crate::harness::unauthorized());
}

use http::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Request, TestServer, plain},
    invariants::Tables,
};

fn create(server: &TestServer, organization: &str, body: Value) -> Request {
    server.service(Method::POST, &format!("/v1/internal/organizations/{organization}/api_keys")).body(body)
}

fn rescue() -> Value {
    json!({ "name": "rescue", "scopes": ["admin"] })
}

#[tokio::test(flavor = "multi_thread")]
async fn key_is_created_for_the_named_organization() {
    let server = TestServer::start().await;
    let (theirs, _) = server.another_organization("globex").await;
    let created = create(&server, &theirs.to_string(), rescue()).send().await.expect(201);
    let (secret, api_key) = (created["secret"].as_str().unwrap(), &created["api_key"]);
    assert_eq!((&api_key["scopes"], &api_key["created_by"]), (&json!(["admin"]), &json!(null)));
    let principal = server.get("/v1/whoami").bearer(secret).send().await.expect(200);
    assert_eq!((&principal["organization_id"], &principal["api_key_id"]), (&json!(theirs), &api_key["id"]));
    let event = server
        .items(&format!("AUD#{theirs}"))
        .await
        .iter()
        .map(plain)
        .find(|event| event["resource"]["id"] == api_key["id"] && event["action"] == "api_key.created");
    assert_eq!(event.unwrap()["actor"], json!({ "kind": "service", "id": null, "name": "local-1" }));
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn rescued_organization_may_revoke_its_old_key() {
    let server = TestServer::start().await;
    let own = server.get("/v1/whoami").send().await.expect(200)["api_key_id"].clone();
    server.delete(&format!("/v1/api_keys/{own}")).send().await.refused(409);
    create(&server, &server.organization_id.to_string(), rescue()).send().await.expect(201);
    server.delete(&format!("/v1/api_keys/{own}")).send().await.expect(200);
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_organization_returns_404_after_body_checks() {
    let server = TestServer::start().await;
    for organization in ["1", "0", "acme"] {
        let refused = create(&server, organization, rescue()).send().await.refused(404);
        assert_eq!(refused, json!({ "detail": "Not found" }), "{organization}");
        assert_eq!(create(&server, organization, json!({ "name": "rescue" })).send().await.invalid_field(), "scopes");
    }
    let ours = server.organization_id.to_string();
    let extra = json!({ "name": "rescue", "scopes": ["admin"], "metadata": {} });
    assert_eq!(create(&server, &ours, extra).send().await.invalid_field(), "metadata");
    assert_eq!(server.audited("api_key.created").await.len(), 1, "only the first key was created");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeat_with_idempotency_key_creates_no_key() {
    let server = TestServer::start().await;
    let ours = server.organization_id.to_string();
    let first = create(&server, &ours, rescue()).idempotency_key("once").send().await;
    let second = create(&server, &ours, rescue()).idempotency_key("once").send().await;
    assert_eq!(first.text, second.text);
    let (theirs, _) = server.another_organization("globex").await;
    let elsewhere = create(&server, &theirs.to_string(), rescue()).idempotency_key("once").send().await.expect(201);
    assert_ne!(
        elsewhere["api_key"]["id"], first.json["api_key"]["id"],
        "the idempotency key of another path is independent"
    );
    Tables::new(&server).await.assert_consistent();
}

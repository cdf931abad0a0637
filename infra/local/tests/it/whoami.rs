use serde_json::json;

use crate::harness::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn api_key_sees_its_principal() {
    let server = TestServer::start().await;
    let principal = server.get("/v1/whoami").send().await.expect(200);
    let expected = json!({
        "kind": "api_key",
        "organization_id": server.organization_id,
        "organization_slug": "acme",
        "scopes": ["read", "write", "admin"],
        "api_key_id": principal["api_key_id"],
        "api_key_prefix": server.admin[..14],
        "project_id": null,
        "project_slug": null,
        "sub": null,
        "budget_ok": true,
        "budget_reason": null,
    });
    assert_eq!(principal, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_any_scope_is_accepted() {
    let server = TestServer::start().await;
    for scope in ["read", "write", "admin"] {
        let (id, token) = server.key(&[scope]).await;
        let principal = server.get("/v1/whoami").bearer(&token).send().await.expect(200);
        assert_eq!((&principal["api_key_id"], &principal["scopes"]), (&json!(id), &json!([scope])));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_token_is_refused() {
    let server = TestServer::start().await;
    server.project("site").await;
    let token = server.session_token("site", json!({})).await;
    let detail = server.get("/v1/whoami").bearer(&token).send().await.forbidden();
    assert_eq!(detail, "session tokens are valid only under /v1/projects/{ref}/");
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_budget_does_not_block_whoami() {
    let server = TestServer::start().await;
    server.set_subscription("past_due").await;
    let principal = server.get("/v1/whoami").send().await.expect(200);
    assert_eq!(principal["budget_ok"], false);
    assert_eq!(principal["budget_reason"], "subscription past_due");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_credential_returns_401() {
    let server = TestServer::start().await;
    let refusal = server.get("/v1/whoami").anonymous().send().await.refused(401);
    assert_eq!(refusal, crate::harness::unauthorized());
}

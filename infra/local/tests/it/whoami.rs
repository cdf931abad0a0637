use serde_json::json;

use crate::harness::World;

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_sees_its_principal() {
    let world = World::start().await;
    let principal = world.get("/v1/whoami").send().await.expect(200);
    let expected = json!({
        "kind": "api_key",
        "organization_id": world.organization_id,
        "organization_slug": "acme",
        "scopes": ["read", "write", "admin"],
        "api_key_id": principal["api_key_id"],
        "api_key_prefix": world.admin[..14],
        "project_id": null,
        "project_slug": null,
        "sub": null,
        "budget_ok": true,
        "budget_reason": null,
    });
    assert_eq!(principal, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_any_scope_may_ask() {
    let world = World::start().await;
    for scope in ["read", "write", "admin"] {
        let (id, token) = world.key(&[scope]).await;
        let principal = world.get("/v1/whoami").bearer(&token).send().await.expect(200);
        assert_eq!((&principal["api_key_id"], &principal["scopes"]), (&json!(id), &json!([scope])));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_token_may_not() {
    let world = World::start().await;
    world.project("site").await;
    let token = world.session_token("site", json!({})).await;
    let detail = world.get("/v1/whoami").bearer(&token).send().await.forbidden();
    assert_eq!(detail, "session tokens are valid only under /v1/projects/{ref}/");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_budget_is_shown_and_does_not_shut_the_door() {
    let world = World::start().await;
    world.set_subscription("past_due").await;
    let principal = world.get("/v1/whoami").send().await.expect(200);
    assert_eq!(principal["budget_ok"], false);
    assert_eq!(principal["budget_reason"], "subscription past_due");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_unauthorized() {
    let world = World::start().await;
    let refusal = world.get("/v1/whoami").anonymous().send().await.refused(401);
    assert_eq!(refusal, crate::harness::unauthorized());
}

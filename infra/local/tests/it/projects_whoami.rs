use http::Method;
use serde_json::json;

use crate::harness::{Reply, TestServer};

const SITE: &str = "/v1/projects/site/whoami";

fn assert_readable_by_browsers(reply: &Reply) {
    assert_eq!(reply.headers["access-control-allow-origin"], "*", "{}", reply.text);
    assert_eq!(reply.headers.get("access-control-allow-credentials"), None);
}

async fn with_project() -> (TestServer, u64) {
    let server = TestServer::start().await;
    let project = server.project("site").await;
    (server, project)
}

#[tokio::test(flavor = "multi_thread")]
async fn session_token_sees_its_principal() {
    let (server, project) = with_project().await;
    let token = server.session_token("site", json!({ "user_id": "user-7" })).await;
    let own = server.get("/v1/whoami").send().await.expect(200);
    let principal = server.get(SITE).bearer(&token).send().await.expect(200);
    let expected = json!({
        "kind": "session",
        "organization_id": server.organization_id,
        "organization_slug": "acme",
        "scopes": [],
        "api_key_id": own["api_key_id"],
        "api_key_prefix": null,
        "project_id": project,
        "project_slug": "site",
        "sub": "user-7",
        "budget_ok": true,
        "budget_reason": null,
    });
    assert_eq!(principal, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn session_token_without_user_has_no_sub() {
    let (server, _) = with_project().await;
    let token = server.session_token("site", json!({})).await;
    assert_eq!(server.get(SITE).bearer(&token).send().await.expect(200)["sub"], json!(null));
}

#[tokio::test(flavor = "multi_thread")]
async fn api_key_sees_its_principal_in_every_project() {
    let (server, _) = with_project().await;
    server.project("shop").await;
    for scope in ["read", "write", "admin"] {
        let (_, token) = server.key(&[scope]).await;
        let flat = server.get("/v1/whoami").bearer(&token).send().await.expect(200);
        for project in ["site", "shop"] {
            let path = format!("/v1/projects/{project}/whoami");
            assert_eq!(server.get(&path).bearer(&token).send().await.expect(200), flat);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_token_gets_same_refusal_in_other_projects() {
    let (server, project) = with_project().await;
    server.project("shop").await;
    let (_, foreign) = server.another_organization("other").await;
    server
        .post("/v1/agent_projects", json!({ "slug": "theirs", "name": "x" }))
        .bearer(&foreign)
        .send()
        .await
        .expect(201);
    let token = server.session_token("site", json!({})).await;
    for other in ["shop", "theirs", "nothing", "SITE", "site2", "sit", &project.to_string()] {
        let reply = server.get(&format!("/v1/projects/{other}/whoami")).bearer(&token).send().await;
        assert_readable_by_browsers(&reply);
        assert_eq!(reply.forbidden(), "wrong project: the session token is for another project", "{other}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_token_stays_in_its_own_organization() {
    let (server, _) = with_project().await;
    let (other, foreign) = server.another_organization("other").await;
    server.post("/v1/agent_projects", json!({ "slug": "site", "name": "x" })).bearer(&foreign).send().await.expect(201);
    let token = server.session_token("site", json!({})).await;
    let principal = server.get(SITE).bearer(&token).send().await.expect(200);
    assert_eq!(principal["organization_id"], server.organization_id);
    assert_ne!(principal["organization_id"], other);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_project_returns_404_for_api_key() {
    let (server, project) = with_project().await;
    for unknown in ["nothing", "SITE", "my_site", &project.to_string()] {
        let reply = server.get(&format!("/v1/projects/{unknown}/whoami")).send().await;
        assert_readable_by_browsers(&reply);
        assert_eq!(reply.refused(404), json!({ "detail": "Not found" }), "{unknown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_is_readable_by_browsers() {
    let (server, _) = with_project().await;
    let token = server.session_token("site", json!({})).await;
    for (reply, status) in [
        (server.get(SITE).send().await, 200),
        (server.get(SITE).bearer(&token).send().await, 200),
        (server.get(SITE).anonymous().send().await, 401),
        (server.get(SITE).bearer("kt_live_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").send().await, 401),
        (server.get("/v1/projects/shop/whoami").bearer(&token).send().await, 403),
        (server.get("/v1/projects/shop/whoami").send().await, 404),
        (server.get("/v1/projects/site/whoami?x=1").send().await, 422),
    ] {
        assert_readable_by_browsers(&reply);
        reply.expect(status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn preflight_is_anonymous_and_allows_authorization_header() {
    let (server, _) = with_project().await;
    for project in ["site", "nothing", "SITE"] {
        let reply = server
            .request(Method::OPTIONS, &format!("/v1/projects/{project}/whoami"))
            .anonymous()
            .header("origin", "https://shop.example")
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", "authorization")
            .send()
            .await;
        assert_readable_by_browsers(&reply);
        assert_eq!(reply.headers["access-control-allow-headers"], "Authorization, Content-Type");
        assert_eq!(reply.headers["access-control-allow-methods"], "GET, POST, OPTIONS");
        assert_eq!(reply.text, "");
        reply.expect(204);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_budget_does_not_block_whoami() {
    let (server, _) = with_project().await;
    server.set_subscription("canceled").await;
    let (_, token) = server.key(&["read"]).await;
    let principal = server.get(SITE).bearer(&token).send().await.expect(200);
    assert_eq!(
        (&principal["budget_ok"], &principal["budget_reason"]),
        (&json!(false), &json!("subscription canceled"))
    );
}

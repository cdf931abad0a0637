use serde_json::{Value, json};

use super::{deploy, releases};
use crate::harness::TestServer;

const ROUTE: &str = "/v1/agent_projects/site/releases";

#[tokio::test(flavor = "multi_thread")]
async fn project_without_releases_has_an_empty_list() {
    let server = TestServer::start().await;
    server.project("site").await;
    assert_eq!(server.get(ROUTE).send().await.expect(200), json!({ "releases": [], "next_cursor": null }));
}

#[tokio::test(flavor = "multi_thread")]
async fn paging_visits_every_release_once_newest_first() {
    let server = TestServer::start().await;
    server.project("site").await;
    for _ in 0..12 {
        deploy(&server, "abcdef0").send().await.expect(201);
    }
    let (mut visited, mut query) = (Vec::new(), "limit=5".to_owned());
    let mut sizes = Vec::new();
    loop {
        let page = server.get(&format!("{ROUTE}?{query}")).send().await.expect(200);
        let items = page["releases"].as_array().unwrap().clone();
        sizes.push(items.len());
        visited.extend(items);
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("limit=5&cursor={cursor}");
    }
    assert_eq!(sizes, [5, 5, 2]);
    assert_eq!(visited, releases(&server).await);
    let versions: Vec<_> = visited.iter().map(|release| release["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, (1..=12).rev().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_parameter_or_foreign_cursor_is_named() {
    let server = TestServer::start().await;
    for slug in ["site", "shop"] {
        server.project(slug).await;
        for _ in 0..2 {
            server.deploy(slug, json!({ "commit_sha": "abcdef0" })).await;
        }
    }
    let page = server.get("/v1/agent_projects/shop/releases?limit=1").send().await.expect(200);
    let cursor = page["next_cursor"].as_str().unwrap();
    for (query, field) in [
        ("limit=0".to_owned(), "limit"),
        ("status=active".to_owned(), "status"),
        ("cursor=".to_owned(), "cursor"),
        (format!("cursor={cursor}"), "cursor"),
    ] {
        assert_eq!(server.get(&format!("{ROUTE}?{query}")).send().await.invalid_field(), field, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_with_same_slug_have_separate_releases() {
    let server = TestServer::start().await;
    server.project("site").await;
    deploy(&server, "abcdef0").send().await.expect(201);
    let (_, token) = server.another_organization("other").await;
    let not_found = server.get(ROUTE).bearer(&token).send().await.refused(404);
    assert_eq!(not_found, json!({ "detail": "Not found" }));
    let made = server.post("/v1/agent_projects", json!({ "slug": "site", "name": "Theirs" })).bearer(&token);
    made.send().await.expect(201);
    let theirs = deploy(&server, "abcdef1").bearer(&token).send().await.expect(201);
    assert_eq!(theirs["release"]["version"], 1, "versions are counted separately");
    let list = server.get(ROUTE).bearer(&token).send().await.expect(200);
    assert_eq!(list["releases"], Value::from(vec![theirs["release"].clone()]));
    assert_eq!(releases(&server).await[0]["commit_sha"], "abcdef0");
    super::assert_consistent(&server).await;
}

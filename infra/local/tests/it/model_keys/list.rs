use std::time::Duration;

use serde_json::{Value, json};

use super::{ROUTE, create, list, path, provider_key};
use crate::harness::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn list_is_newest_first_and_includes_revoked_keys() {
    let (server, clock) = TestServer::start_at_noon().await;
    assert_eq!(server.get(ROUTE).send().await.expect(200), json!({ "model_keys": [], "next_cursor": null }));
    let mut newest_first = Vec::new();
    for (provider, start) in [("openai", "sk-"), ("anthropic", "sk-ant-"), ("openrouter", "sk-or-")] {
        clock.advance(Duration::from_millis(1));
        newest_first.insert(0, create(&server, provider, &provider_key(start)).await);
    }
    server.delete(&path(&newest_first[1])).send().await.expect(200);
    newest_first[1]["revoked_at"] = json!("2026-11-21T12:00:00.003Z");
    let page = server.get(ROUTE).send().await.expect(200);
    assert_eq!(page, json!({ "model_keys": newest_first, "next_cursor": null }));
    let (_, reader) = server.key(&["read"]).await;
    assert_eq!(server.get(ROUTE).bearer(&reader).send().await.expect(200), page);
}

#[tokio::test(flavor = "multi_thread")]
async fn paging_visits_every_key_once() {
    let (server, clock) = TestServer::start_at_noon().await;
    let mut newest_first = Vec::new();
    for _ in 0..7 {
        clock.advance(Duration::from_millis(1));
        newest_first.insert(0, create(&server, "openai", &provider_key("sk-")).await["id"].clone());
    }
    let (mut visited, mut sizes, mut query) = (Vec::new(), Vec::new(), "limit=3".to_owned());
    loop {
        let page = server.get(&format!("{ROUTE}?{query}")).send().await.expect(200);
        let ids: Vec<_> = page["model_keys"].as_array().unwrap().iter().map(|key| key["id"].clone()).collect();
        sizes.push(ids.len());
        visited.extend(ids);
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("limit=3&cursor={cursor}");
    }
    assert_eq!((visited, sizes), (newest_first, vec![3, 3, 1]));
    assert_eq!(list(&server).await.iter().filter(|key| key["revoked_at"] == Value::Null).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_parameter_is_named() {
    let server = TestServer::start().await;
    for _ in 0..2 {
        create(&server, "openai", &provider_key("sk-")).await;
    }
    server.project("site").await;
    server.project("shop").await;
    let page = server.get(&format!("{ROUTE}?limit=1")).send().await.expect(200);
    let cursor = page["next_cursor"].as_str().unwrap();
    let projects = server.get("/v1/agent_projects?limit=1").send().await.expect(200);
    let other_list = projects["next_cursor"].as_str().unwrap();
    for (query, field) in [
        ("limit=0".to_owned(), "limit"),
        ("limit=101".to_owned(), "limit"),
        ("provider=openai".to_owned(), "provider"),
        ("cursor=".to_owned(), "cursor"),
        (format!("cursor={cursor}{cursor}"), "cursor"),
        (format!("cursor={other_list}"), "cursor"),
    ] {
        assert_eq!(server.get(&format!("{ROUTE}?{query}")).send().await.invalid_field(), field, "{query}");
    }
    let (_, token) = server.another_organization("other").await;
    let foreign = server.get(&format!("{ROUTE}?cursor={cursor}")).bearer(&token);
    assert_eq!(foreign.send().await.invalid_field(), "cursor", "a cursor of another organization");
}

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    harness::{Request, TestServer},
    invariants::Tables,
};

const ROUTE: &str = "/v1/agent_projects";

fn named(slug: &str) -> Value {
    json!({ "slug": slug, "name": "Site" })
}

async fn read(server: &TestServer, slug: &str) -> Value {
    server.get(&format!("{ROUTE}/{slug}")).send().await.expect(200)["agent_project"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn created_project_equals_the_read_project() {
    let (server, _) = TestServer::start_at_noon().await;
    let created = server.post(ROUTE, json!({ "slug": "my-site-2", "name": "My site" })).send().await.expect(201);
    insta::assert_json_snapshot!(created, { ".agent_project.id" => "[id]" }, @r#"
    {
      "agent_project": {
        "created_at": "2026-11-21T12:00:00.000Z",
        "current_version": null,
        "endpoint_url": null,
        "id": "[id]",
        "model_id": null,
        "name": "My site",
        "slug": "my-site-2"
      }
    }
    "#);
    assert!(created["agent_project"]["id"].as_u64().unwrap() < 1 << 53);
    assert_eq!(server.get("/v1/agent_projects/my-site-2").send().await.expect(200), created);
}

#[tokio::test(flavor = "multi_thread")]
async fn slug_is_unique_within_an_organization() {
    let server = TestServer::start().await;
    let id = server.project("site").await;
    let refusal = server.post(ROUTE, json!({ "slug": "site", "name": "Other" })).send().await.refused(409);
    assert_eq!(
        refusal,
        json!({ "error": "slug_taken", "message": "This slug is taken in your organization. Use that project, or choose another slug." })
    );
    let kept = read(&server, "site").await;
    assert_eq!((&kept["id"], &kept["name"]), (&json!(id), &json!("site")));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_organization_can_use_the_same_slug() {
    let server = TestServer::start().await;
    let id = server.project("site").await;
    let (_, token) = server.another_organization("other").await;
    let theirs =
        server.post(ROUTE, json!({ "slug": "site", "name": "Theirs" })).bearer(&token).send().await.expect(201);
    let theirs = &theirs["agent_project"];
    assert_ne!(theirs["id"], id);
    assert_eq!(read(&server, "site").await["id"], id);
    let read_by_them = server.get("/v1/agent_projects/site").bearer(&token).send().await.expect(200);
    assert_eq!(read_by_them["agent_project"], *theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_creates_of_one_slug_succeed_once() {
    let server = TestServer::start().await;
    let mut requests = JoinSet::new();
    for _ in 0..16 {
        requests.spawn(server.post(ROUTE, named("site")).send());
    }
    let (made, refused): (Vec<_>, Vec<_>) =
        requests.join_all().await.into_iter().partition(|reply| reply.status == 201);
    assert_eq!(made.len(), 1);
    for reply in refused {
        assert_eq!(reply.refused(409)["error"], "slug_taken");
    }
    assert_eq!(server.audited("agent_project.created").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn slug_format_is_enforced() {
    let server = TestServer::start().await;
    for slug in ["a", "7", "-", "my-site-2", "--", &"a".repeat(63)] {
        server.post(ROUTE, named(slug)).send().await.expect(201);
        assert_eq!(read(&server, slug).await["slug"], slug);
    }
    for slug in ["", "Site", "my_site", "my site", "my.site", "é", "a/b", "a\n", "a%20b", &"a".repeat(64)] {
        assert_eq!(server.post(ROUTE, named(slug)).send().await.invalid_field(), "slug", "{slug:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_missing_field_is_named() {
    let server = TestServer::start().await;
    for (body, field) in [
        (json!({ "name": "Site" }), "slug"),
        (json!({ "slug": null, "name": "Site" }), "slug"),
        (json!({ "slug": 7, "name": "Site" }), "slug"),
        (json!({ "slug": "site" }), "name"),
        (json!({ "slug": "site", "name": null }), "name"),
        (json!({ "slug": "site", "name": "" }), "name"),
        (json!({ "slug": "site", "name": " " }), "name"),
        (json!({ "slug": "site", "name": "é".repeat(101) }), "name"),
        (json!({ "slug": "site", "name": "Site", "model_id": "x" }), "model_id"),
        (json!({ "slug": "site", "name": "Site", "id": 7 }), "id"),
        (json!(["site", "Site"]), "body"),
        (json!(null), "body"),
    ] {
        assert_eq!(server.post(ROUTE, body.clone()).send().await.invalid_field(), field, "{body}");
    }
    let unknown_parameter = server.post("/v1/agent_projects?force=true", named("site"));
    assert_eq!(unknown_parameter.send().await.invalid_field(), "force");
    assert_eq!(server.audited("agent_project.created").await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_or_oversized_body_is_refused() {
    let server = TestServer::start().await;
    for body in ["", "{", "slug=site"] {
        let refusal = server.post(ROUTE, json!({})).raw_body(body).send().await.refused(400);
        assert_eq!(refusal["error"], "malformed_json");
    }
    let refusal = server.post(ROUTE, json!({})).raw_body(" ".repeat(65_537)).send().await.refused(413);
    assert_eq!(refusal["error"], "body_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_or_malformed_slug_returns_404() {
    let server = TestServer::start().await;
    let id = server.project("site").await.to_string();
    for slug in ["nothing", "Site", "SITE", "site.", "my_site", &"a".repeat(64), &id] {
        let refusal = server.get(&format!("{ROUTE}/{slug}")).send().await.refused(404);
        assert_eq!(refusal, json!({ "detail": "Not found" }), "{slug}");
    }
    assert_eq!(server.get("/v1/agent_projects/site?expand=all").send().await.invalid_field(), "expand");
}

#[tokio::test(flavor = "multi_thread")]
async fn project_creation_is_audited() {
    let (server, _) = TestServer::start_at_noon().await;
    let reply = server.post(ROUTE, named("site")).header("user-agent", "tests/1.0").send().await;
    server.post(ROUTE, named("site")).send().await.refused(409);
    let principal = server.get("/v1/whoami").send().await.expect(200);

    let mut events = server.audited("agent_project.created").await;
    assert_eq!(events.len(), 1, "a rejected create is not audited");
    let mut event = events.remove(0);
    for field in ["id", "pk", "sk", "unchained"] {
        event.as_object_mut().unwrap().remove(field);
    }
    let expected = json!({
        "at": "2026-11-21T12:00:00.000Z",
        "actor": { "kind": "api_key", "id": principal["api_key_id"], "name": "First key" },
        "action": "agent_project.created",
        "resource": { "kind": "agent_project", "id": reply.json["agent_project"]["id"] },
        "changes": { "slug": { "before": null, "after": "site" }, "name": { "before": null, "after": "Site" } },
        "ip_address": "127.0.0.1",
        "user_agent": "tests/1.0",
        "request_id": reply.headers["x-request-id"].to_str().unwrap(),
    });
    assert_eq!(event, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_are_listed_newest_first() {
    let (server, clock) = TestServer::start_at_noon().await;
    let mut newest_first = Vec::new();
    for slug in ["zebra", "ape", "mole"] {
        clock.advance(Duration::from_millis(1));
        server.project(slug).await;
        newest_first.insert(0, read(&server, slug).await);
    }
    let list = server.get(ROUTE).send().await.expect(200);
    assert_eq!(list, json!({ "agent_projects": newest_first, "next_cursor": null }));
    let (_, token) = server.another_organization("other").await;
    let theirs = server.get(ROUTE).bearer(&token).send().await.expect(200);
    assert_eq!(theirs, json!({ "agent_projects": [], "next_cursor": null }));
}

#[tokio::test(flavor = "multi_thread")]
async fn paging_visits_every_project_once() {
    let (server, clock) = TestServer::start_at_noon().await;
    let mut newest_first = Vec::new();
    for project in 0..7 {
        clock.advance(Duration::from_millis(1));
        newest_first.insert(0, server.project(&format!("site-{project}")).await);
    }
    let (mut visited, mut sizes, mut query) = (Vec::new(), Vec::new(), "limit=3".to_owned());
    loop {
        let page = server.get(&format!("{ROUTE}?{query}")).send().await.expect(200);
        let ids: Vec<_> =
            page["agent_projects"].as_array().unwrap().iter().map(|project| project["id"].as_u64().unwrap()).collect();
        sizes.push(ids.len());
        visited.extend(ids);
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("limit=3&cursor={cursor}");
    }
    assert_eq!(visited, newest_first);
    assert_eq!(sizes, [3, 3, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_list_parameter_is_named() {
    let server = TestServer::start().await;
    server.project("site").await;
    server.project("shop").await;
    let page = server.get("/v1/agent_projects?limit=1").send().await.expect(200);
    let cursor = page["next_cursor"].as_str().unwrap();
    for (query, field) in [
        ("limit=0".to_owned(), "limit"),
        ("limit=101".to_owned(), "limit"),
        ("status=active".to_owned(), "status"),
        ("cursor=".to_owned(), "cursor"),
        (format!("cursor={}", cursor.to_lowercase()), "cursor"),
        (format!("cursor={cursor}{cursor}"), "cursor"),
    ] {
        assert_eq!(server.get(&format!("{ROUTE}?{query}")).send().await.invalid_field(), field, "{query}");
    }
    let (_, token) = server.another_organization("other").await;
    let foreign = server.get(&format!("{ROUTE}?cursor={cursor}")).bearer(&token);
    assert_eq!(foreign.send().await.invalid_field(), "cursor", "a cursor of another organization");
}

fn patch(server: &TestServer, body: Value) -> Request {
    server.patch("/v1/agent_projects/site", body)
}

#[tokio::test(flavor = "multi_thread")]
async fn patch_changes_named_fields_and_null_clears() {
    let server = TestServer::start().await;
    server.project("site").await;
    let mut expected = read(&server, "site").await;
    let settings =
        json!({ "name": "Shop", "model_id": "claude-sonnet-5", "endpoint_url": "https://llm.example.com/v1" });
    expected.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    assert_eq!(patch(&server, settings).send().await.expect(200), json!({ "agent_project": expected }));
    assert_eq!(read(&server, "site").await, expected);
    assert_eq!(
        patch(&server, json!({})).send().await.expect(200)["agent_project"],
        expected,
        "an absent field is kept"
    );
    let cleared = json!({ "model_id": null, "endpoint_url": null });
    expected.as_object_mut().unwrap().extend(cleared.as_object().unwrap().clone());
    assert_eq!(patch(&server, cleared).send().await.expect(200)["agent_project"], expected);
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_patch_field_is_named() {
    let server = TestServer::start().await;
    server.project("site").await;
    let before = read(&server, "site").await;
    for (field, wrong) in [
        ("name", json!(null)),
        ("name", json!(" ")),
        ("model_id", json!("a b")),
        ("model_id", json!(7)),
        ("endpoint_url", json!("http://llm.example.com")),
        ("endpoint_url", json!("https://169.254.169.254/")),
        ("endpoint_url", json!("https://xn--a.example.com/")),
        ("endpoint_url", json!("https://llm.example.com/a/../b")),
        ("endpoint_url", json!("https://llm.example.com/%zz")),
        ("endpoint_url", json!("https://user:secret@llm.example.com")),
        ("slug", json!("shop")),
        ("current_version", json!(1)),
        ("version", json!(1)),
    ] {
        assert_eq!(patch(&server, json!({ field: wrong })).send().await.invalid_field(), field, "{wrong}");
    }
    assert_eq!(read(&server, "site").await, before);
    for slug in ["nothing", "Site", "my_site"] {
        let refusal = server.patch(&format!("{ROUTE}/{slug}"), json!({ "name": "Shop" })).send().await.refused(404);
        assert_eq!(refusal, json!({ "detail": "Not found" }), "{slug}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patch_is_audited_and_invalidates_data_planes() {
    let server = TestServer::start().await;
    let id = server.project("site").await;
    for body in [json!({ "name": "Shop" }), json!({ "name": "Shop", "model_id": "m" }), json!({ "model_id": "m" })] {
        patch(&server, body).send().await.expect(200);
    }
    let events = server.audited("agent_project.updated").await;
    let changes: Vec<_> = events.iter().map(|event| event["changes"].clone()).collect();
    let expected = [
        json!({ "name": { "before": "site", "after": "Shop" } }),
        json!({ "model_id": { "before": null, "after": "m" } }),
    ];
    assert_eq!(changes, expected);
    assert_eq!(events[0]["resource"], json!({ "kind": "agent_project", "id": id }));
    let invalidations: Vec<_> = server.outbox("PSH").await.iter().map(|item| item["access_cut"].clone()).collect();
    assert_eq!(invalidations, [false], "data planes do not cache the name");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_patches_of_different_fields_all_apply() {
    let server = TestServer::start().await;
    server.project("site").await;
    let patches =
        [json!({ "name": "Shop" }), json!({ "model_id": "m" }), json!({ "endpoint_url": "https://llm.example.com" })];
    let mut requests = JoinSet::new();
    for body in &patches {
        requests.spawn(patch(&server, body.clone()).send());
    }
    for reply in requests.join_all().await {
        reply.expect(200);
    }
    let project = read(&server, "site").await;
    for (field, value) in patches.iter().flat_map(|patch| patch.as_object().unwrap()) {
        assert_eq!(&project[field], value);
    }
    Tables::new(&server).await.assert_consistent();
}

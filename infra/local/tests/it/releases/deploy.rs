use std::time::Duration;

use serde_json::{Value, json};

use super::{assert_consistent, deploy, events, project, releases, statuses};
use crate::harness::TestServer;

const ROUTE: &str = "/v1/agent_projects/site/deploys";

#[tokio::test(flavor = "multi_thread")]
async fn first_release_is_active_immediately() {
    let (server, _) = TestServer::start_at_noon().await;
    let id = server.project("site").await;
    let body = json!({ "commit_sha": "0A1B2C3", "artifact_url": "https://artifacts.example.com/site/0a1b2c3.zip" });
    let created = server.post(ROUTE, body).send().await.expect(201);
    assert_eq!(created["release"]["project_id"], id);
    insta::assert_json_snapshot!(created, { ".release.id" => "[id]", ".release.project_id" => "[id]" }, @r#"
    {
      "release": {
        "activated_at": "2026-11-21T12:00:00.000Z",
        "artifact_url": "https://artifacts.example.com/site/0a1b2c3.zip",
        "build_kind": null,
        "commit_sha": "0a1b2c3",
        "created_at": "2026-11-21T12:00:00.000Z",
        "id": "[id]",
        "image_ref": null,
        "project_id": "[id]",
        "status": "active",
        "version": 1
      }
    }
    "#);
    assert_eq!(project(&server).await["current_version"], 1);
    assert_eq!(releases(&server).await, [created["release"].clone()]);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn next_release_replaces_the_active_one() {
    let server = TestServer::start().await;
    server.project("site").await;
    for (version, expected) in [(1, vec!["active"]), (2, vec!["superseded", "active"])] {
        let release = deploy(&server, "abcdef0").send().await.expect(201)["release"].take();
        assert_eq!((&release["version"], &release["status"]), (&json!(version), &json!("active")));
        assert_eq!(statuses(&server).await, expected);
        assert_eq!(project(&server).await["current_version"], version);
    }
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn release_without_activation_stays_ready() {
    let server = TestServer::start().await;
    server.project("site").await;
    let waiting = server.deploy("site", json!({ "commit_sha": "abcdef0", "activate": false })).await;
    assert_eq!((&waiting["status"], &waiting["activated_at"]), (&json!("ready"), &json!(null)));
    assert_eq!(project(&server).await["current_version"], json!(null));
    for activate in [json!(true), json!(null)] {
        let release = server.deploy("site", json!({ "commit_sha": "abcdef0", "activate": activate })).await;
        assert_eq!(release["status"], "active");
    }
    assert_eq!(statuses(&server).await, ["ready", "superseded", "active"]);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_counted_per_project() {
    let server = TestServer::start().await;
    for slug in ["site", "shop"] {
        server.project(slug).await;
        for version in 1..=2 {
            assert_eq!(server.deploy(slug, json!({ "commit_sha": "abcdef0" })).await["version"], version);
        }
    }
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_missing_field_is_named() {
    let server = TestServer::start().await;
    server.project("site").await;
    let with = |field: &str, value: Value| {
        let mut body = json!({ "commit_sha": "abcdef0" });
        body[field] = value;
        (field.to_owned(), body)
    };
    for (field, body) in [
        ("commit_sha".to_owned(), json!({})),
        with("commit_sha", json!(null)),
        with("commit_sha", json!(1_234_567)),
        with("commit_sha", json!("abcdef")),
        with("commit_sha", json!("abcdefg")),
        with("commit_sha", json!("a".repeat(65))),
        with("artifact_url", json!("http://artifacts.example.com/app.zip")),
        with("artifact_url", json!("https://10.0.0.1/app.zip")),
        with("artifact_url", json!("https://xn--a.example.com/app.zip")),
        with("artifact_url", json!("https://artifacts.example.com/../app.zip")),
        with("artifact_url", json!("https://user:secret@artifacts.example.com/app.zip")),
        with("artifact_url", json!("https://bucket.example.com/app.zip?X-Amz-Signature=abc")),
        with("artifact_url", json!("https://bucket.example.com/app.zip#abc")),
        with("activate", json!("yes")),
        with("version", json!(7)),
    ] {
        assert_eq!(server.post(ROUTE, body.clone()).send().await.invalid_field(), field, "{body}");
    }
    let signed = with("artifact_url", json!("https://bucket.example.com/app.zip?X-Amz-Signature=f00dface")).1;
    assert!(!server.post(ROUTE, signed).send().await.text.contains("f00dface"), "an error does not repeat a signature");
    assert!(releases(&server).await.is_empty());
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_project_returns_404() {
    let server = TestServer::start().await;
    for slug in ["nothing", "Site", "my_site"] {
        let path = format!("/v1/agent_projects/{slug}/deploys");
        let refusal = server.post(&path, json!({ "commit_sha": "abcdef0" })).send().await.refused(404);
        assert_eq!(refusal, json!({ "detail": "Not found" }), "{slug}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeat_with_idempotency_key_creates_no_release() {
    let server = TestServer::start().await;
    server.project("site").await;
    let first = deploy(&server, "abcdef0").idempotency_key("once").send().await;
    deploy(&server, "abcdef1").send().await.expect(201);
    let repeat = deploy(&server, "abcdef0").idempotency_key("once").send().await;
    assert_eq!((repeat.status, &repeat.text), (first.status, &first.text), "the first response is repeated");
    let mismatch = deploy(&server, "abcdef2").idempotency_key("once").send().await.refused(422);
    assert_eq!(mismatch["error"], "idempotency_mismatch");
    assert_eq!(statuses(&server).await, ["superseded", "active"]);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_repeats_create_one_release() {
    let server = TestServer::start().await;
    server.project("site").await;
    let racing: Vec<_> =
        (0..16).map(|_| tokio::spawn(deploy(&server, "abcdef0").idempotency_key("once").send())).collect();
    let mut answers = std::collections::BTreeSet::new();
    for reply in racing {
        answers.insert(reply.await.unwrap().expect(201).to_string());
    }
    assert_eq!((answers.len(), releases(&server).await.len()), (1, 1));
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deploy_is_audited_and_published_and_invalidates_caches() {
    let (server, clock) = TestServer::start_at_noon().await;
    server.project("site").await;
    let first = server.deploy("site", json!({ "commit_sha": "abcdef0" })).await;
    clock.advance(Duration::from_millis(1));
    let waiting = server.deploy("site", json!({ "commit_sha": "abcdef1", "activate": false })).await;
    clock.advance(Duration::from_millis(1));
    let last = server.deploy("site", json!({ "commit_sha": "abcdef2" })).await;

    let mut published = events(&server).await;
    published.sort_by_key(|(kind, release)| (release["version"].as_u64(), kind == "activated"));
    let expected =
        [("created", &first), ("activated", &first), ("created", &waiting), ("created", &last), ("activated", &last)];
    assert_eq!(published, expected.map(|(kind, release)| (kind.to_owned(), release.clone())));
    let invalidations: Vec<_> = server.outbox("PSH").await.iter().map(|item| item["access_cut"].clone()).collect();
    assert_eq!(invalidations, [false, false], "an inactive release invalidates no cache");

    let created = server.audited("release.created").await;
    assert_eq!(created[1]["resource"], json!({ "kind": "release", "id": waiting["id"] }));
    let changes = json!({
        "version": { "before": null, "after": 2 },
        "commit_sha": { "before": null, "after": "abcdef1" },
    });
    assert_eq!(created[1]["changes"], changes);
    let activated: Vec<_> =
        server.audited("release.activated").await.iter().map(|event| event["changes"].clone()).collect();
    let flips = [(json!(null), 1), (json!(1), 3)]
        .map(|(before, after)| json!({ "current_version": { "before": before, "after": after } }));
    assert_eq!(activated, flips);
}

#[tokio::test(flavor = "multi_thread")]
async fn demoted_key_is_refused_despite_gateway_cache() {
    let (server, _clock) = TestServer::start_at_noon().await;
    server.project("site").await;
    let (id, token) = server.key(&["write", "admin"]).await;
    deploy(&server, "abcdef0").bearer(&token).send().await.expect(201);
    server.patch(&format!("/v1/api_keys/{id}"), json!({ "scopes": ["read"] })).send().await.expect(200);
    // The clock is stopped, so the gateway uses its cached verdict.
    assert_eq!(deploy(&server, "abcdef1").bearer(&token).send().await.forbidden(), "missing scope: write");
    assert_eq!(super::rollback(&server, 1).bearer(&token).send().await.forbidden(), "missing scope: admin");
    let patch = server.patch("/v1/agent_projects/site", json!({ "endpoint_url": "https://evil.example.com" }));
    assert_eq!(patch.bearer(&token).send().await.forbidden(), "missing scope: admin");
    server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
    deploy(&server, "abcdef1").bearer(&token).send().await.refused(401);
    assert_eq!(releases(&server).await.len(), 1);
}

use http::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Request, TestServer, plain},
    invariants::Tables,
};

fn report(server: &TestServer, id: &Value, body: Value) -> Request {
    server.service(Method::POST, &format!("/v1/internal/releases/{id}/status")).body(body)
}

/// Creates an inactive release of `site` with this build status.
async fn built(server: &TestServer, build: &str) -> Value {
    let mut release = server.deploy("site", json!({ "commit_sha": "abcdef0", "activate": false })).await;
    server.set_build(&release, build).await;
    release["status"] = json!(build);
    release
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_advance_the_build_and_set_results() {
    let server = TestServer::start().await;
    server.project("site").await;
    let mut expected = built(&server, "pending").await;
    let id = expected["id"].clone();
    for (body, status) in [
        (json!({ "status": "pending" }), "pending"),
        (json!({ "status": "building", "build_log": "one" }), "building"),
        (json!({ "status": "building", "build_log": null, "image_ref": null, "template_path": null }), "building"),
        (json!({ "status": "ready", "image_ref": "registry.example.com/site:1" }), "ready"),
    ] {
        if body["image_ref"].is_string() {
            expected["image_ref"] = body["image_ref"].clone();
            expected["build_kind"] = json!("image");
        }
        expected["status"] = json!(status);
        for _ in 0..2 {
            let answer = report(&server, &id, body.clone()).send().await.expect(200);
            assert_eq!(answer, json!({ "release": expected }), "a repeat returns the same response");
        }
    }
    let list = server.get("/v1/agent_projects/site/releases").send().await.expect(200);
    assert_eq!(list["releases"][0], expected);
    let logs = server.get("/v1/agent_projects/site/releases/1/logs").send().await.expect(200);
    assert_eq!(logs["logs"], json!([{ "line": 1, "text": "one" }]), "absent fields are kept");
    assert_eq!(server.audited("release.updated").await.len(), 2, "a repeat changes nothing");
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_neither_activate_nor_deactivate_a_release() {
    let server = TestServer::start().await;
    server.project("site").await;
    let superseded = server.deploy("site", json!({ "commit_sha": "abcdef0" })).await;
    let active = server.deploy("site", json!({ "commit_sha": "abcdef0" })).await;
    let (ready, failed) = (built(&server, "ready").await, built(&server, "failed").await);
    for (release, from, refused) in [
        (&active, "active", vec!["pending", "building", "failed", "superseded"]),
        (&superseded, "superseded", vec!["pending", "building", "failed", "active"]),
        (&ready, "ready", vec!["pending", "building", "failed", "active", "superseded"]),
        (&failed, "failed", vec!["pending", "building", "ready", "active", "superseded"]),
    ] {
        for to in refused {
            let body = json!({ "status": to, "image_ref": "app:1", "build_log": "one" });
            let refusal = report(&server, &release["id"], body).send().await.refused(409);
            let expected = json!({
                "error": "release_transition",
                "message": format!("status cannot change from {from} to {to}"),
                "from": from,
                "to": to,
            });
            assert_eq!(refusal, expected);
        }
        let same = report(&server, &release["id"], json!({ "status": from })).send().await.expect(200);
        assert_eq!((&same["release"]["status"], &same["release"]["image_ref"]), (&json!(from), &json!(null)));
    }
    for release in [&active, &superseded] {
        let same = report(&server, &release["id"], json!({ "status": "ready" })).send().await.expect(200);
        assert_ne!(same["release"]["status"], "ready", "a builder's repeat does not change an activated release");
    }
    assert!(server.audited("release.updated").await.is_empty());
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn report_is_audited_with_service_actor() {
    let server = TestServer::start().await;
    server.project("site").await;
    let release = server.deploy("site", json!({ "commit_sha": "abcdef0" })).await;
    let known = server.outbox("PSH").await.len();
    let body = json!({ "status": "active", "template_path": "agents/site.yaml", "build_log": "secret plans" });
    report(&server, &release["id"], body).send().await.expect(200);
    let events = server.audited("release.updated").await;
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!(event["actor"], json!({ "kind": "service", "id": null, "name": "local-1" }));
    assert_eq!(event["resource"], json!({ "kind": "release", "id": release["id"] }));
    let digest = &event["changes"]["build_log"]["after"];
    assert!(digest.as_str().is_some_and(|digest| digest.starts_with("sha256:") && digest.len() == 71), "{digest}");
    let changes = json!({
        "template_path": { "before": null, "after": "agents/site.yaml" },
        "build_log": { "before": null, "after": digest },
    });
    assert_eq!(event["changes"], changes);
    assert_eq!(server.outbox("PSH").await.len(), known + 1, "data planes cache the active release");
    let waiting = built(&server, "ready").await;
    report(&server, &waiting["id"], json!({ "status": "ready", "image_ref": "app:1" })).send().await.expect(200);
    assert_eq!(server.outbox("PSH").await.len(), known + 1, "data planes do not cache inactive releases");
}

#[tokio::test(flavor = "multi_thread")]
async fn report_finds_releases_of_every_organization() {
    let server = TestServer::start().await;
    let (theirs, token) = server.another_organization("other").await;
    let project = server.post("/v1/agent_projects", json!({ "slug": "site", "name": "Site" })).bearer(&token);
    project.send().await.expect(201);
    let deploy = server.post("/v1/agent_projects/site/deploys", json!({ "commit_sha": "abcdef0" })).bearer(&token);
    let release = deploy.send().await.expect(201)["release"].take();
    report(&server, &release["id"], json!({ "status": "active", "image_ref": "app:1" })).send().await.expect(200);
    let list = server.get("/v1/agent_projects/site/releases").bearer(&token).send().await.expect(200);
    assert_eq!(list["releases"][0]["image_ref"], "app:1");
    let audited: Vec<_> = server.items(&format!("AUD#{theirs}")).await.iter().map(plain).collect();
    assert!(audited.iter().any(|event| event["action"] == "release.updated"));
    assert!(server.audited("release.updated").await.is_empty());
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_release_returns_404_after_body_checks() {
    let server = TestServer::start().await;
    let project = json!(server.project("site").await);
    for id in [json!(1), json!(0), json!("abc"), project] {
        let refused = report(&server, &id, json!({ "status": "ready" })).send().await.refused(404);
        assert_eq!(refused, json!({ "detail": "Not found" }), "{id}");
        assert_eq!(report(&server, &id, json!({})).send().await.invalid_field(), "status", "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_missing_field_is_named() {
    let server = TestServer::start().await;
    server.project("site").await;
    let release = server.deploy("site", json!({ "commit_sha": "abcdef0" })).await;
    for (field, wrong) in [
        ("status", json!(null)),
        ("status", json!("done")),
        ("status", json!(1)),
        ("build_log", json!(["one"])),
        ("template_path", json!("../../etc/passwd")),
        ("template_path", json!("")),
        ("template_path", json!("/etc/passwd")),
        ("template_path", json!("a\\b")),
        ("template_path", json!("..%2f..%2Fetc%2fpasswd")),
        ("template_path", json!("%2fetc/passwd")),
        ("template_path", json!("a/%2fb")),
        ("template_path", json!("..%5c..%5Cx")),
        ("template_path", json!("a%00")),
        ("template_path", json!("a%20b")),
        ("template_path", json!("a\0")),
        ("template_path", json!("a/%2e%2E/b")),
        ("template_path", json!("a/100%")),
        ("image_ref", json!("user:secret@registry.example.com/app")),
        ("image_ref", json!("a b")),
        ("image_ref", json!("https://registry.example.com/app")),
        ("image_ref", json!("registry.example.com/App:1")),
        ("image_ref", json!("registry.example.com/app:")),
        ("activated_at", json!("2026-11-21T12:00:00Z")),
    ] {
        let mut body = json!({ "status": "active" });
        body[field] = wrong.clone();
        if field == "status" {
            let refusal = report(&server, &release["id"], body.clone()).send().await.refused(422);
            assert_eq!(refusal["message"], "status must be one of building, ready, failed", "{wrong}");
        }
        assert_eq!(report(&server, &release["id"], body).send().await.invalid_field(), field, "{wrong}");
    }
    assert!(server.audited("release.updated").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn body_is_limited_to_one_mebibyte() {
    let server = TestServer::start().await;
    server.project("site").await;
    let release = server.deploy("site", json!({ "commit_sha": "abcdef0" })).await;
    let body = |bytes: usize| {
        let around = json!({ "status": "active", "build_log": "" }).to_string().len();
        json!({ "status": "active", "build_log": "x".repeat(bytes - around) })
    };
    report(&server, &release["id"], body(1024 * 1024)).send().await.expect(200);
    let refused = report(&server, &release["id"], body(1024 * 1024 + 1)).send().await.refused(413);
    assert_eq!(refused["error"], "body_too_large");
}

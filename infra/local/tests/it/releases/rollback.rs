use std::time::Duration;

use serde_json::{Value, json};

use super::{assert_consistent, deploy, events, project, releases, rollback, statuses};
use crate::harness::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn rollback_activates_earlier_and_later_releases() {
    let (server, clock) = TestServer::start_at_noon().await;
    server.project("site").await;
    for _ in 0..3 {
        deploy(&server, "abcdef0").send().await.expect(201);
    }
    clock.advance(Duration::from_mins(1));
    let back = rollback(&server, 1).send().await.expect(200)["release"].take();
    assert_eq!((&back["version"], &back["status"]), (&json!(1), &json!("active")));
    assert_eq!(back["activated_at"], "2026-11-21T12:01:00.000Z");
    assert_eq!(back["created_at"], "2026-11-21T12:00:00.000Z");
    assert_eq!(project(&server).await["current_version"], 1);
    assert_eq!(statuses(&server).await, ["active", "superseded", "superseded"]);
    rollback(&server, 3).send().await.expect(200);
    assert_eq!(statuses(&server).await, ["superseded", "superseded", "active"]);
    assert_eq!(
        deploy(&server, "abcdef0").send().await.expect(201)["release"]["version"],
        4,
        "version numbers continue"
    );
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_to_ready_release_is_an_activation() {
    let (server, clock) = TestServer::start_at_noon().await;
    server.project("site").await;
    for sha in ["abcdef0", "abcdef1"] {
        server.deploy("site", json!({ "commit_sha": sha, "activate": false })).await;
    }
    let event_of_rollback = async |version: u64| {
        clock.advance(Duration::from_millis(1));
        let release = rollback(&server, version).send().await.expect(200)["release"].take();
        let (kind, about) = events(&server).await.pop().unwrap();
        assert_eq!(about, release);
        kind
    };
    assert_eq!(event_of_rollback(2).await, "activated");
    assert_eq!(statuses(&server).await, ["ready", "active"]);
    assert_eq!(event_of_rollback(1).await, "activated");
    assert_eq!(statuses(&server).await, ["active", "superseded"]);
    assert_eq!(event_of_rollback(2).await, "rolled_back", "the release was active before");
    let [first, second] = &server.audited("release.activated").await[..] else { panic!("two activations") };
    let change = |before: Value, after: u64| json!({ "current_version": { "before": before, "after": after } });
    assert_eq!((&first["changes"], &second["changes"]), (&change(Value::Null, 2), &change(json!(2), 1)));
    assert_eq!(server.audited("release.rolled_back").await.len(), 1);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_to_the_active_release_changes_nothing() {
    let (server, clock) = TestServer::start_at_noon().await;
    server.project("site").await;
    let active = deploy(&server, "abcdef0").send().await.expect(201);
    clock.advance(Duration::from_mins(1));
    for _ in 0..2 {
        assert_eq!(rollback(&server, 1).send().await.expect(200), active);
    }
    assert!(server.audited("release.rolled_back").await.is_empty());
    assert_eq!(events(&server).await.len(), 2);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_is_audited_and_published_and_invalidates_caches() {
    let (server, clock) = TestServer::start_at_noon().await;
    server.project("site").await;
    for _ in 0..2 {
        deploy(&server, "abcdef0").send().await.expect(201);
    }
    clock.advance(Duration::from_millis(1));
    let before = server.outbox("PSH").await.len();
    let back = rollback(&server, 1).send().await.expect(200)["release"].take();
    assert_eq!(events(&server).await.last().unwrap(), &("rolled_back".to_owned(), back.clone()));
    let invalidations = server.outbox("PSH").await;
    assert_eq!((invalidations.len(), &invalidations[before]["access_cut"]), (before + 1, &json!(false)));
    let audited = server.audited("release.rolled_back").await;
    let [event] = &audited[..] else { panic!("{audited:?}") };
    assert_eq!(event["resource"], json!({ "kind": "release", "id": back["id"] }));
    assert_eq!(event["changes"], json!({ "current_version": { "before": 2, "after": 1 } }));
}

#[tokio::test(flavor = "multi_thread")]
async fn unbuilt_release_cannot_be_activated() {
    let server = TestServer::start().await;
    server.project("site").await;
    deploy(&server, "abcdef0").send().await.expect(201);
    let unbuilt = server.deploy("site", json!({ "commit_sha": "abcdef1", "activate": false })).await;
    for build in ["pending", "building", "failed"] {
        server.set_build(&unbuilt, build).await;
        let refusal = rollback(&server, 2).send().await.refused(409);
        assert_eq!((&refusal["error"], &refusal["id"]), (&json!("release_not_ready"), &unbuilt["id"]), "{build}");
        assert_eq!(statuses(&server).await, ["active", build]);
    }
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_invalid_versions_are_refused() {
    let server = TestServer::start().await;
    server.project("site").await;
    deploy(&server, "abcdef0").send().await.expect(201);
    for version in [2, 9_007_199_254_740_991] {
        assert_eq!(rollback(&server, version).send().await.refused(404), json!({ "detail": "Not found" }));
    }
    for body in [
        json!({}),
        json!({ "version": null }),
        json!({ "version": 0 }),
        json!({ "version": -1 }),
        json!({ "version": 1.5 }),
        json!({ "version": "1" }),
        json!({ "version": 9_007_199_254_740_992_u64 }),
    ] {
        let refused = server.post("/v1/agent_projects/site/rollback", body.clone()).send().await;
        assert_eq!(refused.invalid_field(), "version", "{body}");
    }
    assert_eq!(releases(&server).await.len(), 1);
    let elsewhere = server.post("/v1/agent_projects/shop/rollback", json!({ "version": 1 }));
    assert_eq!(elsewhere.send().await.refused(404), json!({ "detail": "Not found" }));
    assert_eq!(project(&server).await["current_version"], 1);
}

//! Concurrent requests: every race ends like some sequential order of them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{assert_consistent, deploy, project, releases, report, rollback, statuses};
use crate::harness::{Reply, Request, TestServer};

async fn send_all(requests: impl IntoIterator<Item = Request>) -> Vec<Reply> {
    let running: Vec<_> = requests.into_iter().map(|request| tokio::spawn(request.send())).collect();
    let mut replies = Vec::with_capacity(running.len());
    for reply in running {
        replies.push(reply.await.unwrap());
    }
    replies
}

/// Starts a server with this many releases of `site`. The last one is active.
async fn with_releases(count: usize) -> TestServer {
    let server = TestServer::start().await;
    server.project("site").await;
    for _ in 0..count {
        deploy(&server, "abcdef0").send().await.expect(201);
    }
    server
}

/// Asserts that one release is active and that the project refers to it. Returns its version.
async fn assert_one_active(server: &TestServer) -> Value {
    let active: Vec<_> = releases(server).await.into_iter().filter(|release| release["status"] == "active").collect();
    let [active] = &active[..] else { panic!("{active:?}") };
    assert_eq!(project(server).await["current_version"], active["version"]);
    active["version"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_deploys_get_consecutive_versions() {
    let server = with_releases(0).await;
    let replies = send_all((0..20).map(|_| deploy(&server, "abcdef0"))).await;
    let versions: BTreeSet<_> =
        replies.into_iter().map(|reply| reply.expect(201)["release"]["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, (1..=20).collect());
    assert_eq!(assert_one_active(&server).await, 20);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_deploy_and_rollback_are_serialized() {
    let server = with_releases(2).await;
    for round in 0..10 {
        let latest = round + 2;
        let replies = send_all([deploy(&server, "abcdef0"), rollback(&server, 1)]).await;
        let [deployed, back] = &replies[..] else { panic!("{replies:?}") };
        assert_eq!((deployed.status.as_u16(), back.status.as_u16()), (201, 200));
        assert_eq!(deployed.json["release"]["version"], latest + 1);
        let active = assert_one_active(&server).await;
        assert!(active == 1 || active == latest + 1, "{active}");
        assert_consistent(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_rollbacks_leave_one_active_release() {
    let server = with_releases(4).await;
    for _ in 0..5 {
        for reply in send_all([1, 2, 3, 1, 2, 3].map(|version| rollback(&server, version))).await {
            assert_eq!(reply.expect(200)["release"]["status"], "active");
        }
        let active = assert_one_active(&server).await;
        assert_ne!(active, 4);
        assert_consistent(&server).await;
        rollback(&server, 4).send().await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_report_and_activation_both_apply() {
    let server = with_releases(1).await;
    for round in 0..10 {
        let waiting = server.deploy("site", json!({ "commit_sha": "abcdef0", "activate": false })).await;
        let version = waiting["version"].as_u64().unwrap();
        let image = format!("registry.example.com/app:{round}");
        let body = json!({ "status": "ready", "image_ref": image, "build_log": "one\ntwo" });
        for reply in send_all([report(&server, &waiting, body), rollback(&server, version)]).await {
            reply.expect(200);
        }
        assert_eq!(assert_one_active(&server).await, version);
        assert_eq!(releases(&server).await[0]["image_ref"], image);
        assert_consistent(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_failure_and_activation_have_one_winner() {
    let server = with_releases(1).await;
    for _ in 0..10 {
        let waiting = server.deploy("site", json!({ "commit_sha": "abcdef0", "activate": false })).await;
        server.set_build(&waiting, "building").await;
        let (ready, failed) = (json!({ "status": "ready" }), json!({ "status": "failed" }));
        let requests = [
            report(&server, &waiting, ready),
            report(&server, &waiting, failed),
            rollback(&server, waiting["version"].as_u64().unwrap()),
        ];
        let replies = send_all(requests).await;
        let status: Vec<_> = replies.iter().map(|reply| reply.status.as_u16()).collect();
        assert!([[200, 409, 200], [200, 409, 409], [409, 200, 409]].map(Vec::from).contains(&status), "{status:?}");
        let expected = match status[..] {
            [200, _, 200] => "active",
            [200, ..] => "ready",
            _ => "failed",
        };
        assert_eq!(statuses(&server).await.last().unwrap(), expected);
        assert_one_active(&server).await;
        assert_consistent(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_settings_and_deploys_all_apply() {
    let server = with_releases(0).await;
    let mut requests: Vec<_> = (0..6).map(|_| deploy(&server, "abcdef0")).collect();
    for change in [
        json!({ "name": "Shop" }),
        json!({ "model_id": "claude-sonnet-5" }),
        json!({ "endpoint_url": "https://llm.example.com" }),
    ] {
        requests.push(server.patch("/v1/agent_projects/site", change));
    }
    for reply in send_all(requests).await {
        assert!(reply.status.is_success(), "{}", reply.text);
    }
    let project = project(&server).await;
    assert_eq!(
        (&project["name"], &project["model_id"], &project["endpoint_url"]),
        (&json!("Shop"), &json!("claude-sonnet-5"), &json!("https://llm.example.com"))
    );
    assert_eq!(assert_one_active(&server).await, 6);
    assert_consistent(&server).await;
}

//! Requests at the same time: every race ends as if they had come one after the other.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{assert_consistent, deploy, project, releases, report, rollback, statuses};
use crate::harness::{Reply, Request, TestServer};

async fn sent(requests: impl IntoIterator<Item = Request>) -> Vec<Reply> {
    let running: Vec<_> = requests.into_iter().map(|request| tokio::spawn(request.send())).collect();
    let mut replies = Vec::with_capacity(running.len());
    for reply in running {
        replies.push(reply.await.unwrap());
    }
    replies
}

/// A project with this many releases, the last one active.
async fn with_releases(count: usize) -> TestServer {
    let server = TestServer::start().await;
    server.project("site").await;
    for _ in 0..count {
        deploy(&server, "abcdef0").send().await.expect(201);
    }
    server
}

/// That the one active release is the project's.
async fn assert_one_active(server: &TestServer) -> Value {
    let active: Vec<_> = releases(server).await.into_iter().filter(|release| release["status"] == "active").collect();
    let [active] = &active[..] else { panic!("{active:?}") };
    assert_eq!(project(server).await["current_version"], active["version"]);
    active["version"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_deploys_are_all_made_and_numbered_without_holes_and_twins() {
    let server = with_releases(0).await;
    let replies = sent((0..20).map(|_| deploy(&server, "abcdef0"))).await;
    let versions: BTreeSet<_> =
        replies.into_iter().map(|reply| reply.expect(201)["release"]["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, (1..=20).collect());
    assert_eq!(assert_one_active(&server).await, 20);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_against_a_rollback_is_one_after_the_other() {
    let server = with_releases(2).await;
    for round in 0..10 {
        let latest = round + 2;
        let replies = sent([deploy(&server, "abcdef0"), rollback(&server, 1)]).await;
        let [deployed, back] = &replies[..] else { panic!("{replies:?}") };
        assert_eq!((deployed.status.as_u16(), back.status.as_u16()), (201, 200));
        assert_eq!(deployed.json["release"]["version"], latest + 1);
        let active = assert_one_active(&server).await;
        assert!(active == 1 || active == latest + 1, "{active}");
        assert_consistent(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_rollbacks_at_once_one_is_the_last() {
    let server = with_releases(4).await;
    for _ in 0..5 {
        for reply in sent([1, 2, 3, 1, 2, 3].map(|version| rollback(&server, version))).await {
            assert_eq!(reply.expect(200)["release"]["status"], "active");
        }
        let active = assert_one_active(&server).await;
        assert_ne!(active, 4);
        assert_consistent(&server).await;
        rollback(&server, 4).send().await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_against_an_activation_loses_neither() {
    let server = with_releases(1).await;
    for round in 0..10 {
        let waiting = server.deploy("site", json!({ "commit_sha": "abcdef0", "activate": false })).await;
        let version = waiting["version"].as_u64().unwrap();
        let image = format!("registry.example.com/app:{round}");
        let told = json!({ "status": "ready", "image_ref": image, "build_log": "one\ntwo" });
        for reply in sent([report(&server, &waiting, told), rollback(&server, version)]).await {
            reply.expect(200);
        }
        assert_eq!(assert_one_active(&server).await, version);
        assert_eq!(releases(&server).await[0]["image_ref"], image);
        assert_consistent(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_against_an_activation_lets_one_of_them_win() {
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
        let replies = sent(requests).await;
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
async fn changes_of_settings_and_deploys_do_not_undo_each_other() {
    let server = with_releases(0).await;
    let mut requests: Vec<_> = (0..6).map(|_| deploy(&server, "abcdef0")).collect();
    for change in [
        json!({ "name": "Shop" }),
        json!({ "model_id": "claude-sonnet-5" }),
        json!({ "endpoint_url": "https://llm.example.com" }),
    ] {
        requests.push(server.patch("/v1/agent_projects/site", change));
    }
    for reply in sent(requests).await {
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

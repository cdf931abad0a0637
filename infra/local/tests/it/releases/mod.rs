//! Deploys, activation, rollback and logs.

mod deploy;
mod faults;
mod list;
mod logs;
mod races;
mod rollback;
mod sequences;

use http::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Request, TestServer},
    invariants::Tables,
};

fn deploy(server: &TestServer, sha: &str) -> Request {
    server.post("/v1/agent_projects/site/deploys", json!({ "commit_sha": sha }))
}

fn rollback(server: &TestServer, version: u64) -> Request {
    server.post("/v1/agent_projects/site/rollback", json!({ "version": version }))
}

fn report(server: &TestServer, release: &Value, body: Value) -> Request {
    server.service(Method::POST, &format!("/v1/internal/releases/{}/status", release["id"])).body(body)
}

async fn project(server: &TestServer) -> Value {
    server.get("/v1/agent_projects/site").send().await.expect(200)["agent_project"].take()
}

/// Returns the releases of `site`, newest first.
async fn releases(server: &TestServer) -> Vec<Value> {
    let page = server.get("/v1/agent_projects/site/releases?limit=100").send().await.expect(200);
    assert_eq!(page["next_cursor"], Value::Null);
    page["releases"].as_array().unwrap().clone()
}

/// Returns the statuses of the releases of `site`, oldest first.
async fn statuses(server: &TestServer) -> Vec<String> {
    releases(server).await.iter().rev().map(|release| release["status"].as_str().unwrap().to_owned()).collect()
}

/// Returns the release events for webhook endpoints of `acme`: type and release, oldest first.
async fn events(server: &TestServer) -> Vec<(String, Value)> {
    let parsed = server.outbox("EVT").await.into_iter().filter_map(|event| {
        let kind = event["type"].as_str().unwrap().strip_prefix("release.")?.to_owned();
        let mut data: Value = serde_json::from_str(event["data"].as_str().unwrap()).unwrap();
        Some((kind, data["release"].take()))
    });
    parsed.collect()
}

/// Asserts that the tables are consistent, and that events and audit log list the same changes of
/// releases.
async fn assert_consistent(server: &TestServer) {
    Tables::new(server).await.assert_consistent();
    let count = |kinds: Vec<String>| {
        ["created", "activated", "rolled_back"].map(|kind| kinds.iter().filter(|other| **other == kind).count())
    };
    let published = events(server).await.into_iter().map(|(kind, _)| kind).collect();
    let audited = server.audit_events().await.into_iter();
    let audited =
        audited.filter_map(|event| event["action"].as_str().unwrap().strip_prefix("release.").map(str::to_owned));
    assert_eq!(count(published), count(audited.collect()));
}

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

/// A deploy of `site`.
fn deploy(server: &TestServer, sha: &str) -> Request {
    server.post("/v1/agent_projects/site/deploys", json!({ "commit_sha": sha }))
}

/// A rollback of `site`.
fn rollback(server: &TestServer, version: u64) -> Request {
    server.post("/v1/agent_projects/site/rollback", json!({ "version": version }))
}

fn report(server: &TestServer, release: &Value, body: Value) -> Request {
    server.service(Method::POST, &format!("/v1/internal/releases/{}/status", release["id"])).body(body)
}

async fn project(server: &TestServer) -> Value {
    server.get("/v1/agent_projects/site").send().await.expect(200)["agent_project"].take()
}

/// The releases of `site`, newest first.
async fn releases(server: &TestServer) -> Vec<Value> {
    let page = server.get("/v1/agent_projects/site/releases?limit=100").send().await.expect(200);
    assert_eq!(page["next_cursor"], Value::Null);
    page["releases"].as_array().unwrap().clone()
}

/// The statuses of the releases of `site`, oldest first.
async fn statuses(server: &TestServer) -> Vec<String> {
    releases(server).await.iter().rev().map(|release| release["status"].as_str().unwrap().to_owned()).collect()
}

/// What endpoints of `acme` are told about releases: type and release, oldest first.
async fn events(server: &TestServer) -> Vec<(String, Value)> {
    let told = server.outbox("EVT").await.into_iter().filter_map(|event| {
        let kind = event["type"].as_str().unwrap().strip_prefix("release.")?.to_owned();
        let mut data: Value = serde_json::from_str(event["data"].as_str().unwrap()).unwrap();
        Some((kind, data["release"].take()))
    });
    told.collect()
}

/// That the tables are whole, and that what the audit log tells of releases their events tell as well.
async fn assert_consistent(server: &TestServer) {
    Tables::new(server).await.assert_consistent();
    let count = |kinds: Vec<String>| {
        ["created", "activated", "rolled_back"].map(|kind| kinds.iter().filter(|other| **other == kind).count())
    };
    let told = events(server).await.into_iter().map(|(kind, _)| kind).collect();
    let audited = server.audit_events().await.into_iter();
    let audited =
        audited.filter_map(|event| event["action"].as_str().unwrap().strip_prefix("release.").map(str::to_owned));
    assert_eq!(count(told), count(audited.collect()));
}

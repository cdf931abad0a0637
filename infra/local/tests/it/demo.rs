//! The demo's project and its scripted provider.

use std::{path::Path, sync::Arc};

use karta_local::{Options, demo};
use karta_shared::clock::SystemClock;
use serde_json::{Value, json};

use crate::harness::{Request, TestServer, options};

async fn start(folder: &Path, demo: bool, admin: Option<&str>) -> TestServer {
    let options = Options { data_dir: Some(folder.to_owned()), demo, ..options(Arc::new(SystemClock)) };
    match admin {
        None => TestServer::start_as(options, None).await,
        Some(admin) => TestServer::start_over_as(options, admin).await,
    }
}

async fn message(server: &TestServer) -> Request {
    let sessions = format!("/v1/projects/{}/sessions", demo::PROJECT);
    let session = server.post(&sessions, json!({})).send().await.expect(201)["id"].as_str().unwrap().to_owned();
    server.post(&format!("{sessions}/{session}/messages"), json!({ "text": "Hello" }))
}

/// Without the script, the demo's model would send messages to OpenRouter.
#[tokio::test(flavor = "multi_thread")]
async fn demo_key_is_revoked_without_the_script() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path(), true, None).await;
    let admin = server.admin.clone();
    message(&server).await.send().await.expect(200);
    drop(server);

    let server = start(folder.path(), false, Some(&admin)).await;
    let refused = message(&server).await.send().await.refused(422);
    assert_eq!((&refused["error"], &refused["provider"]), (&json!("no_model_key"), &json!("openrouter")));
    // A key of the organization's own stays.
    let own = format!("sk-or-v1-{}", "7QxW9z3RkT5mVb2N".repeat(6));
    server.post("/v1/model_keys", json!({ "provider": "openrouter", "key": own })).send().await.expect(201);
    drop(server);
    let server = start(folder.path(), false, Some(&admin)).await;
    let keys = server.get("/v1/model_keys").send().await.expect(200);
    let active = |key: &&Value| key["revoked_at"].is_null();
    let names: Vec<_> = keys["model_keys"].as_array().unwrap().iter().filter(active).map(|key| &key["name"]).collect();
    assert_eq!(names, [&Value::Null]);
    drop(server);

    let server = start(folder.path(), true, Some(&admin)).await;
    message(&server).await.send().await.expect(200);
}

mod audit;
mod create;
mod get;
mod last_admin_key;
mod last_used;
mod list;
mod revoke;
mod rotate;
mod secret;
mod update;

use serde_json::Value;

use crate::harness::TestServer;

fn path(id: u64) -> String {
    format!("/v1/api_keys/{id}")
}

/// Reads a key.
async fn read(server: &TestServer, id: u64) -> Value {
    server.get(&path(id)).send().await.expect(200)["api_key"].take()
}

/// Returns the id of the key that [`TestServer`] sends by default.
async fn own_id(server: &TestServer) -> u64 {
    server.get("/v1/whoami").send().await.expect(200)["api_key_id"].as_u64().unwrap()
}

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

use crate::harness::World;

fn path(id: u64) -> String {
    format!("/v1/api_keys/{id}")
}

/// A key's resource.
async fn read(world: &World, id: u64) -> Value {
    world.get(&path(id)).send().await.expect(200)["api_key"].take()
}

/// The id of the key that the world's requests are sent with.
async fn own_id(world: &World) -> u64 {
    world.get("/v1/whoami").send().await.expect(200)["api_key_id"].as_u64().unwrap()
}

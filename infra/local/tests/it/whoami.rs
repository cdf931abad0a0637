use serde_json::json;

use crate::harness::World;

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_sees_its_principal() {
    let world = World::start().await;
    let principal = world.get("/v1/whoami").send().await.expect(200);
    assert_eq!(principal["kind"], "api_key");
    assert_eq!(principal["scopes"], json!(["read", "write", "admin"]));
}

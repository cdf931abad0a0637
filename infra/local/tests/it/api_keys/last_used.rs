//! Tests of `last_used_at`: it is at most one minute late, costs at most one write per minute and
//! never fails a validation.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use http::Method;
use karta_shared::{
    auth::{Validator, Verdict},
    clock::ManualClock,
};
use serde_json::{Value, json};

use super::{path, read};
use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::TestServer,
};

async fn at_noon() -> (TestServer, Arc<FaultProxy>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_with(Arc::clone(&clock) as Arc<_>).await;
    (server, proxy, clock)
}

async fn is_valid(validator: &Validator, token: &str) -> bool {
    matches!(validator.validate(token).await.unwrap(), Verdict::Valid(_))
}

async fn last_used(server: &TestServer, id: u64) -> Value {
    read(server, id).await["last_used_at"].take()
}

/// Returns how many writes of the key's last use the proxy saw.
fn writes(proxy: &FaultProxy, id: u64) -> usize {
    let sk = format!("{id:016}");
    proxy.seen_of("UpdateItem").iter().filter(|write| write.body["Key"]["sk"]["S"] == sk.as_str()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_key_costs_one_write_per_minute() {
    let (server, proxy, clock) = at_noon().await;
    let (id, token) = server.key(&["read"]).await;
    assert_eq!(last_used(&server, id).await, Value::Null);
    let validator = Validator::new(server.runner.app.clone());
    proxy.forget();
    for _ in 0..60 {
        assert!(is_valid(&validator, &token).await);
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(writes(&proxy, id), 1);
    assert_eq!(last_used(&server, id).await, "2026-11-21T12:00:00.000Z");
    assert!(is_valid(&validator, &token).await);
    assert_eq!(writes(&proxy, id), 2);
    assert_eq!(last_used(&server, id).await, "2026-11-21T12:01:00.000Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn second_process_writes_nothing_within_the_minute() {
    let (server, _proxy, clock) = at_noon().await;
    let (id, token) = server.key(&["read"]).await;
    for _ in 0..2 {
        assert!(is_valid(&Validator::new(server.runner.app.clone()), &token).await);
        clock.advance(Duration::from_secs(30));
    }
    assert_eq!(last_used(&server, id).await, "2026-11-21T12:00:00.000Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn last_use_is_at_most_a_minute_late() {
    let (server, _proxy, clock) = at_noon().await;
    let (id, token) = server.key(&["read"]).await;
    let validators = [(); 2].map(|()| Validator::new(server.runner.app.clone()));
    assert!(is_valid(&validators[0], &token).await);
    clock.advance(Duration::from_secs(59));
    for _ in 0..60 {
        assert!(is_valid(&validators[1], &token).await);
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(last_used(&server, id).await, "2026-11-21T12:01:00.000Z", "the last use was at 12:01:58");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_or_explained_validation_is_not_a_use() {
    let (server, _proxy, _clock) = at_noon().await;
    let body = json!({ "name": "here", "scopes": ["read"], "allowed_cidrs": ["203.0.113.0/24"] });
    let (id, token) = server.key_with(body).await;
    let validate = async |body: Value| {
        let validation = server.service(Method::POST, "/v1/internal/keys/validate").body(body);
        validation.send().await.expect(200)["valid"] == true
    };
    assert!(!validate(json!({ "key": token, "ip_address": "198.51.100.1" })).await, "the address is not allowed");
    assert!(!validate(json!({ "key": token })).await, "the address is unknown");
    assert!(
        validate(json!({ "key": token, "ip_address": "203.0.113.1", "explain": true })).await,
        "explain is not a use"
    );
    assert_eq!(last_used(&server, id).await, Value::Null);
    assert!(validate(json!({ "key": token, "ip_address": "203.0.113.1" })).await);
    assert_eq!(last_used(&server, id).await, "2026-11-21T12:00:00.000Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_write_is_retried_after_five_seconds() {
    let (server, proxy, clock) = at_noon().await;
    let (id, token) = server.key(&["read"]).await;
    let validator = Validator::new(server.runner.app.clone());
    proxy.forget();
    proxy.fail("UpdateItem", 1, StoreFault::Hang);
    for _ in 0..6 {
        assert_eq!(last_used(&server, id).await, Value::Null);
        assert!(is_valid(&validator, &token).await);
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(last_used(&server, id).await, "2026-11-21T12:00:05.000Z");
    assert_eq!(writes(&proxy, id), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_or_expired_key_records_no_use() {
    let (server, _proxy, clock) = at_noon().await;
    let (revoked, revoked_token) = server.key(&["read"]).await;
    server.delete(&path(revoked)).send().await.expect(200);
    let ends = json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-11-21T12:00:01Z" });
    let (expired, expired_token) = server.key_with(ends).await;
    clock.advance(Duration::from_secs(1));
    let validator = Validator::new(server.runner.app.clone());
    for (id, token) in [(revoked, revoked_token), (expired, expired_token)] {
        assert!(!is_valid(&validator, &token).await);
        assert_eq!(last_used(&server, id).await, Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_write_does_not_fail_the_validation() {
    let (server, proxy, _clock) = at_noon().await;
    for fault in [StoreFault::Throttle, StoreFault::ServerError, StoreFault::Hang] {
        let (id, token) = server.key(&["read"]).await;
        proxy.fail("UpdateItem", ALWAYS, fault);
        proxy.forget();
        assert!(is_valid(&Validator::new(server.runner.app.clone()), &token).await, "{fault:?}");
        if fault == StoreFault::Hang {
            assert_eq!(writes(&proxy, id), 1, "the write is abandoned before the store client retries it");
        }
        proxy.heal();
        assert_eq!(last_used(&server, id).await, Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_update_keeps_the_last_use() {
    let (server, _proxy, _clock) = at_noon().await;
    let (id, token) = server.key(&["read"]).await;
    let validator = Validator::new(server.runner.app.clone());
    for round in 0..10 {
        let key = path(id);
        let change = server.patch(&key, json!({ "name": format!("round {round}") })).send();
        let (valid, changed) = tokio::join!(is_valid(&validator, &token), change);
        assert!(valid);
        changed.expect(200);
        assert_eq!(last_used(&server, id).await, "2026-11-21T12:00:00.000Z");
    }
}

/// The item of the key in the partition `prefix` of its organization: `KEY` or `USED`.
async fn item(server: &TestServer, prefix: &str, id: u64) -> Option<Value> {
    let items = server.items(&format!("{prefix}#{}", server.organization_id)).await;
    items.into_iter().find(|item| item["sk"]["S"] == format!("{id:016}"))
}

/// Writes `last_used_at` into the key's own item, as releases without the `USED#` partition do.
async fn set_legacy_use(server: &TestServer, id: u64, at: &str) {
    let update = json!({
        "TableName": "karta",
        "Key": { "pk": { "S": format!("KEY#{}", server.organization_id) }, "sk": { "S": format!("{id:016}") } },
        "UpdateExpression": "SET last_used_at = :at",
        "ExpressionAttributeValues": { ":at": { "S": at } },
    });
    server.dynamodb("UpdateItem", update).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn use_leaves_the_key_item_untouched() {
    let (server, _proxy, _clock) = at_noon().await;
    let (id, token) = server.key(&["read"]).await;
    let before = item(&server, "KEY", id).await;
    assert_eq!(item(&server, "USED", id).await, None);
    assert!(is_valid(&Validator::new(server.runner.app.clone()), &token).await);
    assert_eq!(item(&server, "KEY", id).await, before);
    assert_eq!(item(&server, "USED", id).await.unwrap()["last_used_at"]["S"], "2026-11-21T12:00:00.000Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn last_use_is_read_once_a_minute() {
    let (server, proxy, clock) = at_noon().await;
    let (_, token) = server.key(&["read"]).await;
    let validator = Validator::new(server.runner.app.clone());
    proxy.forget();
    for _ in 0..120 {
        assert!(is_valid(&validator, &token).await);
        clock.advance(Duration::from_secs(1));
    }
    let reads = proxy.seen_of("BatchGetItem");
    let of_uses = reads.iter().filter(|read| read.partitions().iter().any(|partition| partition.starts_with("USED#")));
    assert_eq!((reads.len(), of_uses.count()), (120, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn later_of_both_last_uses_is_shown() {
    let (server, _proxy, clock) = at_noon().await;
    let (id, token) = server.key(&["read"]).await;
    let former = "2026-11-20T08:00:00.000Z";
    set_legacy_use(&server, id, former).await;
    let listed = async || {
        let list = server.get("/v1/api_keys").send().await.expect(200);
        let keys = list["api_keys"].as_array().unwrap();
        keys.iter().find(|key| key["id"] == id).unwrap()["last_used_at"].clone()
    };
    assert_eq!((last_used(&server, id).await, listed().await), (json!(former), json!(former)));
    let renamed = server.patch(&path(id), json!({ "name": "renamed" })).send().await.expect(200);
    assert_eq!((&renamed["api_key"]["last_used_at"], last_used(&server, id).await), (&json!(former), json!(former)));
    assert!(is_valid(&Validator::new(server.runner.app.clone()), &token).await);
    let noon = "2026-11-21T12:00:00.000Z";
    assert_eq!((last_used(&server, id).await, listed().await), (json!(noon), json!(noon)));
    // A function of the previous release writes a later use.
    clock.advance(Duration::from_secs(1));
    set_legacy_use(&server, id, "2026-11-21T12:00:00.500Z").await;
    assert_eq!(last_used(&server, id).await, "2026-11-21T12:00:00.500Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_changes_show_the_last_use() {
    let (server, _proxy, clock) = at_noon().await;
    let (id, token) = server.key(&["admin"]).await;
    server.get("/v1/whoami").bearer(&token).send().await.expect(200);
    clock.advance(Duration::from_secs(30));
    let (change, noon) = (json!({ "name": "renamed" }), "2026-11-21T12:00:00.000Z");
    for bearer in [&server.admin, &token] {
        let changed = server.patch(&path(id), change.clone()).bearer(bearer).send().await.expect(200);
        assert_eq!(changed["api_key"]["last_used_at"], noon);
    }
    let revoked = server.delete(&path(id)).bearer(&token).send().await.expect(200);
    assert_eq!(revoked["api_key"]["last_used_at"], noon);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_shows_and_filters_by_last_use() {
    let (server, _proxy, clock) = at_noon().await;
    let validator = Validator::new(server.runner.app.clone());
    let mut used = Vec::new();
    for at in 0..30 {
        let (id, token) = server.key(&["read"]).await;
        if at % 3 == 0 {
            assert!(is_valid(&validator, &token).await);
            used.push(id);
        }
    }
    used.sort_unstable_by_key(|id| Reverse(*id));
    let keys = async |query: &str| {
        let (mut keys, mut cursor) = (Vec::new(), String::new());
        loop {
            let mut page = server.get(&format!("/v1/api_keys?limit=4{query}{cursor}")).send().await.expect(200);
            keys.append(page["api_keys"].as_array_mut().unwrap());
            let Some(next) = page["next_cursor"].as_str() else { return keys };
            cursor = format!("&cursor={next}");
        }
    };
    let shown = keys("").await;
    assert_eq!(shown.len(), 31);
    let shown = shown.iter().filter(|key| !key["last_used_at"].is_null() && key["name"] == "read");
    assert_eq!(shown.map(|key| key["id"].as_u64().unwrap()).collect::<Vec<_>>(), used);
    clock.advance(Duration::from_hours(24));
    for id in &used[..5] {
        set_legacy_use(&server, *id, "2026-11-21T12:00:01.000Z").await;
    }
    server.get("/v1/whoami").send().await.expect(200);
    let unused = keys("&unused_days=1").await;
    let unused: Vec<_> = unused.iter().map(|key| key["id"].as_u64().unwrap()).collect();
    assert_eq!(unused.len(), 25, "all but the caller and the five keys that were used later");
    assert!(!unused.iter().any(|id| used[..5].contains(id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_last_use_does_not_block_revocation() {
    let server = TestServer::start().await;
    let (id, token) = server.key(&["read"]).await;
    let item = json!({
        "pk": { "S": format!("USED#{}", server.organization_id) },
        "sk": { "S": format!("{id:016}") },
        "last_used_at": { "S": "x" },
    });
    server.dynamodb("PutItem", json!({ "TableName": "karta", "Item": item })).await;
    server.get("/v1/whoami").bearer(&token).send().await.expect(200);
    assert_eq!(last_used(&server, id).await, Value::Null);
    server.get("/v1/api_keys").send().await.expect(200);
    server.patch(&path(id), json!({ "name": "renamed" })).send().await.expect(200);
    server.delete(&path(id)).send().await.expect(200);
    assert!(!is_valid(&Validator::new(server.runner.app.clone()), &token).await);
}

//! Events in the outbox: each is written in the transaction of its change, once and without
//! secrets. Also the notices of expiring keys.

use std::time::Duration;

use karta_local::registry;
use serde_json::{Value, json};

use crate::{
    fault_proxy::{FaultProxy, StoreFault},
    harness::TestServer,
};

const DAY: Duration = Duration::from_hours(24);
const EXPIRY_NOTICES: &str = "worker-expiry-notices";

async fn events(server: &TestServer) -> Vec<(String, Value)> {
    let events = server.outbox("EVT").await;
    let parsed = events.iter().map(|event| {
        assert_eq!(event["organization_id"], server.organization_id);
        (event["type"].as_str().unwrap().to_owned(), serde_json::from_str(event["data"].as_str().unwrap()).unwrap())
    });
    parsed.collect()
}

/// Returns `access_cut` of each pending cache invalidation.
async fn invalidations(server: &TestServer) -> Vec<bool> {
    server.outbox("PSH").await.iter().map(|item| item["access_cut"].as_bool().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_key_is_published_without_its_secret() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let created = server.post("/v1/api_keys", json!({ "name": "ci", "scopes": ["read"] })).send().await.expect(201);
    assert_eq!(events(&server).await, [("api_key.created".to_owned(), json!({ "api_key": created["api_key"] }))]);
    assert!(invalidations(&server).await.is_empty(), "a new key is in no cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_is_published_and_invalidates_caches() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, _) = server.key(&["read"]).await;
    clock.advance(Duration::from_millis(1));
    let mut rotated = server.post(&format!("/v1/api_keys/{id}/rotate"), json!({})).send().await.expect(201);
    rotated.as_object_mut().unwrap().remove("secret");
    assert_eq!(events(&server).await[1], ("api_key.rotated".to_owned(), rotated));
    assert_eq!(invalidations(&server).await, [true], "the old key now expires");
}

#[tokio::test(flavor = "multi_thread")]
async fn update_is_published_only_if_something_changed() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, _) = server.key(&["read"]).await;
    let path = format!("/v1/api_keys/{id}");
    let mut expected = Vec::new();
    for (patch, changes) in [
        (json!({ "name": "cd" }), true),
        (json!({ "name": "cd" }), false),
        (json!({}), false),
        (json!({ "scopes": [] }), true),
        (json!({ "scopes": [], "name": "cd", "budget": null }), false),
        (json!({ "expires_at": "2027-01-31T12:00:00Z" }), true),
        (json!({ "allowed_cidrs": ["203.0.113.0/24"] }), true),
        (json!({ "budget": { "cost_cents": 5 } }), true),
        (json!({ "metadata": { "team": "web" } }), true),
    ] {
        clock.advance(Duration::from_millis(1));
        let updated = server.patch(&path, patch).send().await.expect(200);
        if changes {
            expected.push(("api_key.updated".to_owned(), updated));
        }
    }
    assert_eq!(events(&server).await[1..], expected);
    assert_eq!(server.audited("api_key.updated").await.len(), expected.len());
    server.patch(&path, json!({ "scopes": ["root"] })).send().await.refused(422);
    server.delete(&path).send().await.expect(200);
    server.patch(&path, json!({ "name": "late" })).send().await.refused(409);
    let published = events(&server).await;
    assert_eq!(published.len(), 2 + expected.len(), "a rejected update publishes nothing: {published:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_is_published_once() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (id, _) = server.key(&["read"]).await;
    clock.advance(Duration::from_millis(1));
    let revoked = server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
    server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
    assert_eq!(events(&server).await[1..], [("api_key.revoked".to_owned(), revoked)]);
    assert_eq!(invalidations(&server).await, [true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_relevant_changes_invalidate_caches() {
    let (server, _clock) = TestServer::start_at_noon().await;
    for (before, change, access_cut) in [
        (json!({}), json!({ "name": "other" }), Some(false)),
        (json!({}), json!({ "metadata": { "team": "a" } }), Some(false)),
        (json!({}), json!({ "scopes": ["read", "write"] }), None),
        (json!({}), json!({ "scopes": ["read", "write", "admin"] }), Some(false)),
        (json!({}), json!({ "scopes": ["read"] }), Some(true)),
        (json!({}), json!({ "scopes": [] }), Some(true)),
        (json!({}), json!({ "budget": { "total_tokens": 5 } }), Some(false)),
        (json!({}), json!({ "expires_at": "2027-01-01T00:00:00Z" }), Some(true)),
        (json!({ "expires_at": "2027-01-01T00:00:00Z" }), json!({ "expires_at": "2026-12-31T00:00:00Z" }), Some(true)),
        (json!({ "expires_at": "2027-01-01T00:00:00Z" }), json!({ "expires_at": null }), Some(false)),
        (json!({}), json!({ "allowed_cidrs": ["10.0.0.0/8"] }), Some(true)),
        (json!({ "allowed_cidrs": ["10.0.0.0/8"] }), json!({ "allowed_cidrs": [] }), Some(false)),
    ] {
        let known = count(&server).await;
        let mut settings = json!({ "name": "ci", "scopes": ["read", "write"] });
        settings.as_object_mut().unwrap().extend(before.as_object().unwrap().clone());
        let (id, _) = server.key_with(settings).await;
        server.patch(&format!("/v1/api_keys/{id}"), change.clone()).send().await.expect(200);
        let (all, cuts) = count(&server).await;
        let expected = (usize::from(access_cut.is_some()), usize::from(access_cut == Some(true)));
        assert_eq!((all - known.0, cuts - known.1), expected, "{change}");
    }
}

/// Counts the pending cache invalidations, and those among them that reduce access.
async fn count(server: &TestServer) -> (usize, usize) {
    let all = invalidations(server).await;
    (all.len(), all.into_iter().filter(|reduces_access| *reduces_access).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn organization_change_invalidates_caches() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let path = format!("/v1/internal/organizations/{}", server.organization_id);
    for change in [json!({ "subscription_status": "past_due" }), json!({ "subscription_status": "past_due" })] {
        server.service(http::Method::PATCH, &path).body(change).send().await.expect(200);
    }
    assert_eq!(invalidations(&server).await, [false], "a repeated value invalidates nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn change_with_lost_response_is_published_once() {
    let (server, proxy) = FaultProxy::start().await;
    let (id, _) = server.key(&["read"]).await;
    proxy.fail("TransactWriteItems", 1, StoreFault::DropResponse);
    server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
    let types: Vec<_> = events(&server).await.into_iter().map(|(event_type, _)| event_type).collect();
    assert_eq!(types, ["api_key.created", "api_key.revoked"]);
}

/// Returns the keys with a published expiry notice.
async fn noticed(server: &TestServer) -> Vec<u64> {
    let events = events(server).await.into_iter().filter(|(event_type, _)| event_type == "api_key.expiring");
    events.map(|(_, data)| data["api_key"]["id"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_notice_is_published_once_a_week_before() {
    let (server, clock) = TestServer::start_at_noon().await;
    let key = |end: &str| server.key_with(json!({ "name": "ci", "scopes": ["read"], "expires_at": end }));
    let (ending, _) = key("2026-12-01T12:00:00Z").await;
    let (_short, _) = key("2026-11-28T12:00:00Z").await;
    clock.advance(Duration::from_millis(3 * 86_400_000 - 1));
    server.work(EXPIRY_NOTICES).await;
    assert!(noticed(&server).await.is_empty(), "not earlier, and not for a key that lives for only a week");
    clock.advance(Duration::from_millis(1));
    for _ in 0..2 {
        server.work(EXPIRY_NOTICES).await;
        assert_eq!(noticed(&server).await, [ending]);
    }
    assert!(server.outbox("XPR").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_notices_do_not_delay_others() {
    let (server, clock) = TestServer::start_at_noon().await;
    let end = json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-12-01T12:00:00Z" });
    let (ending, _) = server.key_with(end).await;
    // Every shard has more unreadable notices than one query returns, and all are due earlier.
    let junk = (0..16).flat_map(|shard| (0..101).map(move |n| (shard, n))).map(|(shard, n)| {
        let item = json!({
            "pk": { "S": format!("XPR#{shard}") },
            "sk": { "S": format!("{n:03}") },
            "organization_id": { "S": "?" },
            "due_shard": { "S": format!("XPR#{shard}") },
            "due_at": { "S": "2026-01-01T00:00:00.000Z" },
        });
        json!({ "PutRequest": { "Item": item } })
    });
    for puts in junk.collect::<Vec<_>>().chunks(25) {
        server.dynamodb("BatchWriteItem", json!({ "RequestItems": { "karta-outbox": puts } })).await;
    }
    clock.advance(4 * DAY);
    server.work(EXPIRY_NOTICES).await;
    assert_eq!(noticed(&server).await, [ending]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_notice_is_postponed_and_blocks_no_other() {
    let (server, clock) = TestServer::start_at_noon().await;
    let end = json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-12-01T12:00:00Z" });
    let (ending, _) = server.key_with(end).await;
    // More than a query returns, due earlier, and readable in the index only.
    let junk = (0..101).map(|n| {
        let item = json!({
            "pk": { "S": format!("XPR#{}", server.organization_id) },
            "sk": { "S": format!("{n:03}") },
            "organization_id": { "N": server.organization_id.to_string() },
            "due_shard": { "S": format!("XPR#{}", ending % 16) },
            "due_at": { "S": "2026-01-01T00:00:00.000Z" },
        });
        json!({ "PutRequest": { "Item": item } })
    });
    for puts in junk.collect::<Vec<_>>().chunks(25) {
        server.dynamodb("BatchWriteItem", json!({ "RequestItems": { "karta-outbox": puts } })).await;
    }
    clock.advance(4 * DAY);
    let fault = server.try_work(EXPIRY_NOTICES).await.unwrap_err().to_string();
    assert!(fault.starts_with(&format!("organization {}: ", server.organization_id)), "{fault}");
    assert_eq!(noticed(&server).await, [ending]);
    assert!(server.outbox("XPR").await.iter().all(|notice| notice["due_at"] == "2026-11-25T12:01:00.000Z"));
    server.work(EXPIRY_NOTICES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notice_follows_the_current_expiry() {
    let (server, clock) = TestServer::start_at_noon().await;
    let mut paths = Vec::new();
    for _ in 0..5 {
        let end = json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-12-01T12:00:00Z" });
        paths.push(format!("/v1/api_keys/{}", server.key_with(end).await.0));
    }
    server.patch(&paths[0], json!({ "expires_at": null })).send().await.expect(200);
    server.patch(&paths[1], json!({ "expires_at": "2026-12-11T12:00:00Z" })).send().await.expect(200);
    server.delete(&paths[2]).send().await.expect(200);
    server.post(&format!("{}/rotate", paths[3]), json!({})).send().await.expect(201);
    clock.advance(4 * DAY);
    server.work(EXPIRY_NOTICES).await;
    let names = |ids: Vec<u64>| ids.iter().map(|id| format!("/v1/api_keys/{id}")).collect::<Vec<_>>();
    let first = names(noticed(&server).await);
    assert!(first.contains(&paths[4]), "the unchanged key");
    assert_eq!(first.len(), 2, "the unchanged key and the successor with the same expiry");
    clock.advance(10 * DAY);
    server.work(EXPIRY_NOTICES).await;
    assert!(names(noticed(&server).await).contains(&paths[1]), "the postponed expiry");
    assert_eq!(noticed(&server).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_workers_publish_each_notice_once() {
    let (server, clock) = TestServer::start_at_noon().await;
    for _ in 0..10 {
        server.key_with(json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-12-01T12:00:00Z" })).await;
    }
    clock.advance(4 * DAY);
    let tick = &registry::workers(&server.runner.app, &server.runner.gateway)[EXPIRY_NOTICES];
    let (first, second) = tokio::join!(tick(), tick());
    first.unwrap();
    second.unwrap();
    let mut ids = noticed(&server).await;
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), noticed(&server).await.len()), (10, 10));
}

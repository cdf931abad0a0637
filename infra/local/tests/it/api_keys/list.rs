use std::{collections::BTreeSet, time::Duration};

use karta_shared::clock::ManualClock;
use serde_json::{Value, json};

use super::{own_id, path, read};
use crate::harness::TestServer;

/// Stores `count` copies of the first key, each one millisecond newer than the one before it, with
/// the attributes of `change`.
async fn seed(server: &TestServer, count: u64, change: Value) {
    let partition = format!("KEY#{}", server.organization_id);
    let first = server.items(&partition).await.swap_remove(0);
    let oldest: u64 = first["id"]["N"].as_str().unwrap().parse().unwrap();
    let copies: Vec<_> = (1..=count)
        .map(|age| {
            let id = oldest + (age << 12);
            let mut item = first.clone();
            item["id"] = json!({ "N": id.to_string() });
            item["sk"] = json!({ "S": format!("{id:016}") });
            item.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            json!({ "PutRequest": { "Item": item } })
        })
        .collect();
    for batch in copies.chunks(25) {
        server.dynamodb("BatchWriteItem", json!({ "RequestItems": { "karta": batch } })).await;
    }
}

async fn page(server: &TestServer, query: &str) -> (Vec<u64>, Option<String>) {
    let page = server.get(&format!("/v1/api_keys{query}")).send().await.expect(200);
    let ids = page["api_keys"].as_array().unwrap().iter().map(|key| key["id"].as_u64().unwrap()).collect();
    (ids, page["next_cursor"].as_str().map(ToOwned::to_owned))
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_listed_newest_first() {
    let (server, clock) = TestServer::start_at_noon().await;
    let first = own_id(&server).await;
    let mut newest_first = vec![first];
    for _ in 0..3 {
        clock.advance(Duration::from_millis(1));
        newest_first.insert(0, server.key(&["read"]).await.0);
    }
    let mut resources = Vec::new();
    for id in newest_first {
        resources.push(read(&server, id).await);
    }
    let list = server.get("/v1/api_keys").send().await.expect(200);
    assert_eq!(list, json!({ "api_keys": resources, "next_cursor": null }));
}

#[tokio::test(flavor = "multi_thread")]
async fn first_key_has_every_scope_and_no_creator() {
    let (server, _) = TestServer::start_at_noon().await;
    let list = server.get("/v1/api_keys").send().await.expect(200);
    insta::assert_json_snapshot!(
        list,
        { ".api_keys[].id" => "[id]", ".api_keys[].prefix" => "[prefix]" },
        @r#"
    {
      "api_keys": [
        {
          "allowed_cidrs": [],
          "budget": null,
          "created_at": "2026-11-21T12:00:00.000Z",
          "created_by": null,
          "expires_at": null,
          "id": "[id]",
          "last_used_at": "2026-11-21T12:00:00.000Z",
          "metadata": {},
          "name": "First key",
          "prefix": "[prefix]",
          "replaced_by": null,
          "revoked_at": null,
          "scopes": [
            "read",
            "write",
            "admin"
          ],
          "status": "active"
        }
      ],
      "next_cursor": null
    }
    "#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn paging_visits_every_key_once_despite_creates() {
    let (server, clock) = TestServer::start_at_noon().await;
    seed(&server, 124, json!({})).await;
    clock.advance(Duration::from_mins(1));
    let (mut visited, mut cursor) = page(&server, "?limit=50").await;
    let mut sizes = vec![visited.len()];
    while let Some(at) = cursor {
        server.key(&["read"]).await;
        let (ids, next) = page(&server, &format!("?limit=50&cursor={at}")).await;
        sizes.push(ids.len());
        visited.extend(ids);
        cursor = next;
    }
    assert_eq!(sizes, [50, 50, 25]);
    assert!(visited.is_sorted_by(|newer, older| newer > older));
}

#[tokio::test(flavor = "multi_thread")]
async fn last_page_has_no_cursor() {
    let server = TestServer::start().await;
    seed(&server, 99, json!({})).await;
    let (ids, cursor) = page(&server, "?limit=100").await;
    assert_eq!((ids.len(), cursor), (100, None));
    let (ids, cursor) = page(&server, "").await;
    assert_eq!(ids.len(), 50, "the default limit");
    let (ids, cursor) = page(&server, &format!("?cursor={}", cursor.unwrap())).await;
    assert_eq!((ids.len(), cursor), (50, None));
    let (ids, _) = page(&server, "?limit=1").await;
    assert_eq!(ids.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_filter_lists_only_these_states() {
    let (server, clock) = TestServer::start_at_noon().await;
    let first = own_id(&server).await;
    seed(&server, 1, json!({ "replaced_by": { "N": "7" } })).await;
    let rotating = first + (1 << 12);
    clock.advance(Duration::from_mins(1));
    let (revoked, _) = server.key(&["read"]).await;
    server.delete(&path(revoked)).send().await.expect(200);
    clock.advance(Duration::from_mins(1));
    let ends = json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-11-21T12:03:00Z" });
    let (expired, _) = server.key_with(ends).await;
    clock.advance(Duration::from_mins(1));
    for (filter, expected) in [
        ("active", vec![first]),
        ("rotating", vec![rotating]),
        ("revoked", vec![revoked]),
        ("expired", vec![expired]),
        ("expired,active", vec![expired, first]),
        ("active,rotating,revoked,expired", vec![expired, revoked, rotating, first]),
    ] {
        assert_eq!(page(&server, &format!("?status={filter}")).await, (expected, None), "{filter}");
    }
}

const DAY: Duration = Duration::from_hours(24);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Creates a key that is newer than every other key of `acme`.
async fn newer_key(server: &TestServer, clock: &ManualClock, body: Value) -> (u64, String) {
    clock.advance(MILLISECOND);
    server.key_with(body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_days_lists_unused_keys() {
    let (server, clock) = TestServer::start_at_noon().await;
    let body = json!({ "name": "ci", "scopes": ["read"] });
    let (never, _) = newer_key(&server, &clock, body.clone()).await;
    let (used, token) = newer_key(&server, &clock, body.clone()).await;
    let (rotating, _) = newer_key(&server, &clock, body.clone()).await;
    let (revoked, _) = newer_key(&server, &clock, body).await;
    let ends = json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-11-22T12:00:00Z" });
    newer_key(&server, &clock, ends).await;
    server.delete(&path(revoked)).send().await.expect(200);
    clock.advance(MILLISECOND);
    let rotation = json!({ "grace_seconds": 2_592_000 });
    let rotated = server.post(&format!("{}/rotate", path(rotating)), rotation).send().await.expect(201);
    let successor = rotated["api_key"]["id"].as_u64().unwrap();

    clock.advance((10 * DAY).saturating_sub(MILLISECOND));
    server.get("/v1/whoami").bearer(&token).send().await.expect(200);
    assert_eq!(page(&server, "?unused_days=10").await.0, [rotating, never], "the successor is one millisecond too new");
    clock.advance(MILLISECOND);
    for (filter, expected) in [
        ("unused_days=1", vec![successor, rotating, never]),
        ("unused_days=10", vec![successor, rotating, never]),
        ("unused_days=11", vec![]),
        ("unused_days=10&status=active", vec![successor, never]),
        ("unused_days=10&status=revoked,expired", vec![]),
        ("unused_days=10&expires_within_days=20", vec![rotating]),
    ] {
        assert_eq!(page(&server, &format!("?{filter}")).await, (expected, None), "{filter}");
    }
    clock.advance(10 * DAY);
    // The first key sends this request, so it is in use.
    assert_eq!(page(&server, "?unused_days=10").await.0, [successor, rotating, used, never]);
}

#[tokio::test(flavor = "multi_thread")]
async fn expires_within_days_lists_expiring_keys() {
    let (server, clock) = TestServer::start_at_noon().await;
    let ends = |at: &str| json!({ "name": "ci", "scopes": ["read"], "expires_at": at });
    let (tomorrow, _) = newer_key(&server, &clock, ends("2026-11-22T13:00:00Z")).await;
    let (later, _) = newer_key(&server, &clock, ends("2026-12-01T13:00:00Z")).await;
    let (revoked, _) = newer_key(&server, &clock, ends("2026-11-22T13:00:00Z")).await;
    server.delete(&path(revoked)).send().await.expect(200);
    newer_key(&server, &clock, ends("2026-11-21T12:30:00Z")).await;
    clock.advance(Duration::from_hours(1).saturating_sub(4 * MILLISECOND));
    for (filter, expected) in [
        ("expires_within_days=1", vec![tomorrow]),
        ("expires_within_days=9", vec![tomorrow]),
        ("expires_within_days=10", vec![later, tomorrow]),
        ("expires_within_days=3650", vec![later, tomorrow]),
        ("expires_within_days=3650&status=rotating", vec![]),
        ("expires_within_days=3650&unused_days=1", vec![]),
    ] {
        assert_eq!(page(&server, &format!("?{filter}")).await, (expected, None), "{filter}");
    }
    clock.advance(DAY);
    assert_eq!(page(&server, "?expires_within_days=3650").await.0, [later], "expired keys are not listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn cursor_is_bound_to_its_filters() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let aged =
        json!({ "created_at": { "S": "2026-01-01T12:00:00.000Z" }, "expires_at": { "S": "2027-01-01T12:00:00.000Z" } });
    seed(&server, 2, aged).await;
    let filters = [
        "",
        "&status=active",
        "&unused_days=30",
        "&unused_days=31",
        "&expires_within_days=60",
        "&expires_within_days=61",
        "&unused_days=30&expires_within_days=60",
        "&unused_days=30&status=active",
    ];
    let mut cursors = Vec::new();
    for filter in filters {
        cursors.push(page(&server, &format!("?limit=1{filter}")).await.1.unwrap());
    }
    for filter in filters {
        for (other, cursor) in filters.iter().zip(&cursors) {
            let reply = server.get(&format!("/v1/api_keys?limit=1{filter}&cursor={cursor}")).send().await;
            if *other == filter {
                assert_eq!(reply.expect(200)["api_keys"].as_array().unwrap().len(), 1, "{filter}");
            } else {
                assert_eq!(reply.invalid_field(), "cursor", "cursor of {other:?} with {filter:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filtered_page_examines_at_most_1000_keys() {
    let server = TestServer::start().await;
    seed(&server, 1_100, json!({ "revoked_at": { "S": "2026-11-21T12:00:00.000Z" } })).await;
    let (ids, cursor) = page(&server, "?status=active").await;
    assert!(ids.is_empty(), "the thousand newest are revoked");
    let (ids, cursor) = page(&server, &format!("?status=active&cursor={}", cursor.unwrap())).await;
    assert_eq!((ids, cursor), (vec![own_id(&server).await], None));
    let (revoked, mut cursor) = page(&server, "?status=revoked&limit=100").await;
    let mut visited: BTreeSet<_> = revoked.into_iter().collect();
    while let Some(at) = cursor {
        let (ids, next) = page(&server, &format!("?status=revoked&limit=100&cursor={at}")).await;
        assert!(ids.iter().all(|id| visited.insert(*id)), "a key is listed twice");
        cursor = next;
    }
    assert_eq!(visited.len(), 1_100);
}

#[tokio::test(flavor = "multi_thread")]
async fn filtered_page_covers_1000_keys() {
    let server = TestServer::start().await;
    seed(&server, 999, json!({ "revoked_at": { "S": "2026-11-21T12:00:00.000Z" } })).await;
    assert_eq!(page(&server, "?status=active").await, (vec![own_id(&server).await], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_parameter_is_named() {
    let server = TestServer::start().await;
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=1.5", "limit"),
        ("limit=all", "limit"),
        ("limit=", "limit"),
        ("limit=1&limit=2", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("status=", "status"),
        ("status=gone", "status"),
        ("status=active,", "status"),
        ("status=Active", "status"),
        ("unused_days=0", "unused_days"),
        ("unused_days=3651", "unused_days"),
        ("unused_days=-1", "unused_days"),
        ("unused_days=1.5", "unused_days"),
        ("unused_days=", "unused_days"),
        ("unused_days=1,2", "unused_days"),
        ("unused_days=1&unused_days=2", "unused_days"),
        ("unused_days=99999999999999999999", "unused_days"),
        ("expires_within_days=0", "expires_within_days"),
        ("expires_within_days=3651", "expires_within_days"),
        ("expires_within_days=soon", "expires_within_days"),
        ("page=2", "page"),
        ("organization_id=7", "organization_id"),
    ] {
        assert_eq!(server.get(&format!("/v1/api_keys?{query}")).send().await.invalid_field(), field, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tampered_cursor_is_refused() {
    let server = TestServer::start().await;
    seed(&server, 2, json!({})).await;
    let cursor = page(&server, "?limit=1").await.1.unwrap();
    let mut tampered: Vec<_> = (0..cursor.len())
        .map(|at| {
            let other = if &cursor[at..=at] == "A" { "B" } else { "A" };
            format!("{}{other}{}", &cursor[..at], &cursor[at + 1..])
        })
        .collect();
    tampered.extend(["", "%00", "1", "null", "%F0%9F%94%91"].map(ToOwned::to_owned));
    tampered.extend([format!("{cursor}A"), format!("{cursor}="), cursor[1..].to_owned(), cursor.to_lowercase()]);
    for cursor in tampered {
        let reply = server.get(&format!("/v1/api_keys?cursor={cursor}")).send().await;
        assert_eq!(reply.invalid_field(), "cursor", "{cursor}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cursor_is_bound_to_its_list() {
    let server = TestServer::start().await;
    seed(&server, 2, json!({})).await;
    server.project("site").await;
    server.project("shop").await;
    let (_, other_token) = server.another_organization("other").await;
    let cursor = page(&server, "?limit=1").await.1.unwrap();
    let filtered = page(&server, "?limit=1&status=active").await.1.unwrap();
    let projects = server.get("/v1/agent_projects?limit=1").send().await.expect(200);
    let projects = projects["next_cursor"].as_str().unwrap();

    let foreign = server.get(&format!("/v1/api_keys?limit=1&cursor={cursor}")).bearer(&other_token);
    assert_eq!(foreign.send().await.invalid_field(), "cursor", "a cursor of another organization");
    for query in [
        format!("/v1/api_keys?status=active&cursor={cursor}"),
        format!("/v1/api_keys?cursor={filtered}"),
        format!("/v1/api_keys?status=revoked&cursor={filtered}"),
        format!("/v1/api_keys?cursor={projects}"),
        format!("/v1/agent_projects?cursor={cursor}"),
    ] {
        assert_eq!(server.get(&query).send().await.invalid_field(), "cursor", "{query}");
    }
    assert_eq!(
        page(&server, &format!("?limit=2&cursor={cursor}")).await.0.len(),
        2,
        "the limit may change between pages"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn page_of_large_keys_fits_a_lambda_response() {
    let server = TestServer::start().await;
    let notes: serde_json::Map<_, _> = (0..50).map(|pair| (format!("note-{pair}"), json!("\"".repeat(500)))).collect();
    for _ in 0..45 {
        server.key_with(json!({ "name": "large", "scopes": ["read"], "metadata": notes })).await;
    }
    let (mut seen, mut query) = (0, "?limit=100".to_owned());
    loop {
        let page = server.get(&format!("/v1/api_keys{query}")).send().await;
        // A Lambda response holds the body as a JSON string, in which every quote takes four bytes.
        assert!(json!(page.text).to_string().len() < 6_000_000);
        let page = page.expect(200);
        let keys = page["api_keys"].as_array().unwrap().len();
        assert!(keys > 0);
        seen += keys;
        match page["next_cursor"].as_str() {
            Some(cursor) => query = format!("?limit=100&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, 46, "every key is listed");
}

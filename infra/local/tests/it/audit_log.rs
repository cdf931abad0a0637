//! Tests of the audit log: the chain, the list of events, and the detection of tampering.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use karta_local::{audit, openapi, registry};
use karta_shared::{
    clock::{Clock, ManualClock},
    config::Ring,
    domain::{Action, Anchor, ChainedEvent, Hash32, Id, Keyring, Link},
};
use serde_json::{Value, json};

use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::{TestServer, plain},
};

const CHAIN: &str = "worker-audit-chain";
const SECOND: Duration = Duration::from_secs(1);

/// Returns the findings of `karta audit-verify`.
async fn findings(server: &TestServer) -> Vec<String> {
    let ring = server.runner.app.secrets.ring(Ring::Audit).await.unwrap();
    let now = server.runner.app.clock.now();
    let report = audit::verify(&server.runner.app.store.audit_reader(), &ring, now).await.unwrap();
    let organizations = report.organizations.iter().flat_map(|(_, checked)| &checked.findings);
    organizations.map(ToString::to_string).chain(report.strays.iter().cloned()).collect()
}

/// A server with a chain of three links. The first holds three events: two of the organization's
/// creation and one of a key. Each other link holds the events of two keys.
async fn chained() -> (TestServer, Arc<ManualClock>) {
    let (server, clock) = TestServer::start_at_noon().await;
    server.key(&["read"]).await;
    server.work(CHAIN).await;
    for _ in 0..2 {
        for _ in 0..2 {
            clock.advance(SECOND);
            server.key(&["read"]).await;
        }
        server.work(CHAIN).await;
    }
    (server, clock)
}

/// The same server for tests that tamper with the log: no audit check follows.
async fn tampered() -> (TestServer, Arc<ManualClock>) {
    let (mut server, clock) = chained().await;
    server.skip_audit_check();
    assert_eq!(findings(&server).await, [""; 0]);
    (server, clock)
}

/// The items of a partition of `acme`, as DynamoDB returns them.
async fn partition(server: &TestServer, prefix: &str) -> Vec<Value> {
    let table = if prefix == "ANC" { "karta-anchors" } else { "karta" };
    server.items_of(table, &format!("{prefix}#{}", server.organization_id)).await
}

async fn links(server: &TestServer) -> Vec<Value> {
    let chain = partition(server, "CHN").await;
    chain.iter().map(plain).filter(|item| !item["sk"].as_str().unwrap().starts_with("EVENT#")).collect()
}

/// The sort keys of the events of a link.
fn event_keys(link: &Value) -> Vec<&str> {
    link["events"].as_array().unwrap().iter().map(|event| event["sk"].as_str().unwrap()).collect()
}

async fn put(server: &TestServer, table: &str, item: &Value) {
    server.dynamodb("PutItem", json!({ "TableName": table, "Item": item })).await;
}

async fn delete(server: &TestServer, table: &str, item: &Value) {
    let key = json!({ "pk": item["pk"], "sk": item["sk"] });
    server.dynamodb("DeleteItem", json!({ "TableName": table, "Key": key })).await;
}

/// The `chain` field of every listed event of `acme`, newest first: `verified 2`.
async fn states(server: &TestServer) -> Vec<String> {
    let list = server.get("/v1/audit_events").send().await.expect(200);
    let events = list["audit_events"].as_array().unwrap().iter().map(|event| &event["chain"]);
    events.map(|chain| format!("{} {}", chain["state"].as_str().unwrap(), chain["link"])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_chained_in_order_and_anchored() {
    let (server, _clock) = chained().await;
    let (links, events) = (links(&server).await, server.audit_events().await);
    let sks: Vec<_> = links.iter().flat_map(event_keys).collect();
    assert_eq!(sks, events.iter().map(|event| event["sk"].as_str().unwrap()).collect::<Vec<_>>());
    assert_eq!(links.iter().map(|link| event_keys(link).len()).collect::<Vec<_>>(), [3, 2, 2]);
    for pair in links.windows(2) {
        assert_eq!(pair[1]["previous"], pair[0]["hash"]);
    }
    let links_of_events: Vec<_> = events.iter().map(|event| (event["link"].as_u64(), event.get("unchained"))).collect();
    assert_eq!(links_of_events, [1, 1, 1, 2, 2, 3, 3].map(|n| (Some(n), None)));
    for (link, anchor) in links.iter().zip(partition(&server, "ANC").await.iter().map(plain)) {
        for field in ["n", "hash", "kid", "mac", "at"] {
            assert_eq!(anchor[field], link[field], "{field}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn link_fits_one_transaction() {
    let (server, clock) = TestServer::start_at_noon().await;
    for at in 0..50 {
        server.project(&format!("p{at}")).await;
    }
    clock.advance(SECOND);
    // Each key has 59 KB of metadata, and a transaction takes 4 MB.
    let metadata: Value = (0..40).map(|at| (format!("{at}"), json!("\u{10348}".repeat(370)))).collect();
    for _ in 0..45 {
        server.key_with(json!({ "name": "ci", "scopes": ["read"], "metadata": metadata })).await;
    }
    server.work(CHAIN).await;
    let sizes: Vec<_> = links(&server).await.iter().map(|link| event_keys(link).len()).collect();
    assert_eq!(sizes, [45, 39, 13]);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_event_gets_a_later_link() {
    let (server, clock) = TestServer::start_at_noon().await;
    clock.advance(SECOND);
    let late = server.key(&["read"]).await.0;
    let partition = format!("AUD#{}", server.organization_id);
    let events = server.items(&partition).await;
    let late = json!({ "N": late.to_string() });
    let event = events.iter().find(|event| event["resource"]["M"]["id"] == late).unwrap();
    delete(&server, "karta", event).await;
    clock.advance(SECOND);
    server.key(&["read"]).await;
    server.work(CHAIN).await;
    put(&server, "karta", event).await;
    server.work(CHAIN).await;
    let links = links(&server).await;
    assert_eq!(event_keys(&links[1]), [event["sk"]["S"].as_str().unwrap()]);
    assert!(event_keys(&links[1])[0] < *event_keys(&links[0]).last().unwrap());
    assert_eq!(states(&server).await, ["verified 1", "verified 2", "verified 1", "verified 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_workers_chain_every_event_once() {
    let server = TestServer::start().await;
    for _ in 0..5 {
        for _ in 0..20 {
            server.key(&["read"]).await;
        }
        let tick = &registry::workers(&server.runner.app, &server.runner.gateway)[CHAIN];
        let (first, second, third) = tokio::join!(tick(), tick(), tick());
        first.and(second).and(third).unwrap();
    }
    let links = links(&server).await;
    let sks: Vec<_> = links.iter().flat_map(event_keys).collect();
    assert_eq!(sks.len(), 102);
    assert_eq!(sks.iter().collect::<BTreeSet<_>>().len(), 102);
    assert_eq!(partition(&server, "ANC").await.len(), links.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_are_all_chained() {
    let server = Arc::new(TestServer::start().await);
    let mut keys = Vec::new();
    for _ in 0..32 {
        keys.push(server.key(&["read"]).await.0);
    }
    let done = Arc::new(AtomicBool::new(false));
    let tick = Arc::clone(&registry::workers(&server.runner.app, &server.runner.gateway)[CHAIN]);
    let worker = tokio::spawn({
        let done = Arc::clone(&done);
        async move {
            while !done.load(Ordering::Relaxed) {
                tick().await.unwrap();
            }
        }
    });
    let writers = keys.into_iter().map(|key| {
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            for round in 0..5 {
                let change = json!({ "name": format!("round {round}") });
                server.patch(&format!("/v1/api_keys/{key}"), change).send().await.expect(200);
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    worker.await.unwrap();
    server.work(CHAIN).await;
    let links = links(&server).await;
    assert_eq!(links.iter().flat_map(event_keys).count(), 2 + 32 + 32 * 5);
    assert!(links.len() > 5, "the worker ran during the writes: {} links", links.len());
    assert_eq!(findings(&server).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_during_chaining_finds_nothing() {
    let server = TestServer::start().await;
    let tick = &registry::workers(&server.runner.app, &server.runner.gateway)[CHAIN];
    let work = async {
        for _ in 0..25 {
            server.key(&["read"]).await;
            tick().await.unwrap();
        }
    };
    let verify = async {
        for _ in 0..25 {
            assert_eq!(findings(&server).await, [""; 0]);
        }
    };
    tokio::join!(work, verify);
}

#[tokio::test(flavor = "multi_thread")]
async fn link_with_lost_response_is_written_once() {
    let (server, proxy) = FaultProxy::start().await;
    server.key(&["read"]).await;
    proxy.fail("TransactWriteItems", 1, StoreFault::DropResponse);
    server.work(CHAIN).await;
    assert_eq!(links(&server).await.len(), 1);
    server.key(&["read"]).await;
    proxy.fail("TransactWriteItems", ALWAYS, StoreFault::DropResponse);
    let tick = &registry::workers(&server.runner.app, &server.runner.gateway)[CHAIN];
    tick().await.unwrap_err();
    proxy.heal();
    tick().await.unwrap();
    server.key(&["read"]).await;
    tick().await.unwrap();
    assert_eq!(links(&server).await.iter().map(|link| event_keys(link).len()).collect::<Vec<_>>(), [3, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_chain_does_not_block_other_organizations() {
    let (mut server, _clock) = TestServer::start_at_noon().await;
    server.skip_audit_check();
    let (other, _) = server.another_organization("other").await;
    server.work(CHAIN).await;
    let (broken, whole) = (server.organization_id.min(other), server.organization_id.max(other));
    let mut head = server.items(&format!("CHN#{broken}")).await.swap_remove(0);
    head["hash"] = json!({ "S": "?" });
    put(&server, "karta", &head).await;
    for organization in [broken, whole] {
        let mut event = server.items(&format!("AUD#{organization}")).await.swap_remove(0);
        event["sk"] = json!({ "S": event["sk"]["S"].as_str().unwrap().replace("2026", "2027") });
        event["unchained"] = json!({ "S": "UNC#3" });
        event.as_object_mut().unwrap().remove("link");
        put(&server, "karta", &event).await;
    }
    registry::workers(&server.runner.app, &server.runner.gateway)[CHAIN]().await.unwrap_err();
    assert_eq!(server.items(&format!("AUD#{whole}")).await.last().unwrap()["link"]["N"], "2");
    assert!(server.items(&format!("AUD#{broken}")).await.last().unwrap().get("link").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_event_has_every_field() {
    let (server, clock) = TestServer::start_at_noon().await;
    server.work(CHAIN).await;
    clock.advance(SECOND);
    server
        .post("/v1/agent_projects", json!({ "slug": "app", "name": "App" }))
        .header("user-agent", "tests/1.0")
        .send()
        .await;
    let list = server.get("/v1/audit_events?limit=2").send().await.expect(200);
    insta::assert_json_snapshot!(
        list,
        {
            ".audit_events[].id" => "[id]",
            ".audit_events[].actor.id" => "[id]",
            ".audit_events[].resource.id" => "[id]",
            ".audit_events[].request_id" => "[request_id]",
            ".audit_events[1]" => "[second event]",
            ".next_cursor" => "[cursor]",
        },
        @r#"
    {
      "audit_events": [
        {
          "action": "agent_project.created",
          "actor": {
            "id": "[id]",
            "kind": "api_key",
            "name": "First key"
          },
          "at": "2026-11-21T12:00:01.000Z",
          "chain": {
            "link": null,
            "state": "pending"
          },
          "changes": {
            "name": {
              "after": "App",
              "before": null
            },
            "slug": {
              "after": "app",
              "before": null
            }
          },
          "id": "[id]",
          "ip_address": "127.0.0.1",
          "request_id": "[request_id]",
          "resource": {
            "id": "[id]",
            "kind": "agent_project"
          },
          "user_agent": "tests/1.0"
        },
        "[second event]"
      ],
      "next_cursor": "[cursor]"
    }
    "#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn list_filters_by_actor_and_action() {
    let (server, clock) = TestServer::start_at_noon().await;
    clock.advance(SECOND);
    let (id, token) = server.key_with(json!({ "name": "ci runner", "scopes": ["admin"] })).await;
    for name in ["one", "two"] {
        clock.advance(SECOND);
        let body = json!({ "name": name, "scopes": ["read"] });
        server.post("/v1/api_keys", body).bearer(&token).send().await.expect(201);
    }
    let seen = async |query: &str| {
        let list = server.get(&format!("/v1/audit_events{query}")).send().await.expect(200);
        assert_eq!(list["next_cursor"], Value::Null);
        let events = list["audit_events"].as_array().unwrap().iter();
        events
            .map(|event| format!("{} {}", event["action"].as_str().unwrap(), event["at"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    let at = |second: u8| format!("api_key.created 2026-11-21T12:00:0{second}.000Z");
    assert_eq!(seen("").await[..3], [at(3), at(2), at(1)]);
    assert_eq!(seen("").await.len(), 5);
    for query in
        [format!("?actor={id}"), "?actor=ci%20runner".to_owned(), format!("?actor={id}&action=api_key.created")]
    {
        assert_eq!(seen(&query).await, [at(3), at(2)], "{query}");
    }
    assert_eq!(seen("?action=api_key.created").await.len(), 4);
    assert_eq!(seen("?actor=local%20runner&action=organization.created").await.len(), 1);
    for query in ["?actor=ci", "?actor=1", "?action=budget.updated", "?actor=First%20key&action=api_key.revoked"] {
        assert!(seen(query).await.is_empty(), "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paging_visits_every_event_once_despite_writes() {
    let (server, clock) = TestServer::start_at_noon().await;
    for at in 0..10 {
        // Some events share a millisecond.
        clock.advance(Duration::from_millis(at % 3));
        server.key(&["read"]).await;
    }
    let before: Vec<_> = server.audit_events().await.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    clock.advance(SECOND);
    let (mut visited, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("/v1/audit_events?limit=5{cursor}")).send().await.expect(200);
        visited.extend(page["audit_events"].as_array().unwrap().iter().map(|event| event["id"].as_u64().unwrap()));
        server.key(&["read"]).await;
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    visited.reverse();
    assert_eq!(visited, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn cursor_is_bound_to_organization_and_filters() {
    let server = TestServer::start().await;
    server.key(&["read"]).await;
    let cursor = async |query: &str| {
        let page = server.get(&format!("/v1/audit_events?limit=1{query}")).send().await.expect(200);
        page["next_cursor"].as_str().unwrap().to_owned()
    };
    let (all, created) = (cursor("").await, cursor("&action=api_key.created").await);
    let (_, theirs) = server.another_organization("other").await;
    let keys = server.get("/v1/api_keys?limit=1").send().await.expect(200)["next_cursor"].as_str().unwrap().to_owned();
    let open = |query: String| server.get(&format!("/v1/audit_events?{query}"));
    open(format!("cursor={all}")).send().await.expect(200);
    open(format!("limit=7&action=api_key.created&cursor={created}")).send().await.expect(200);
    for query in [
        format!("cursor={created}"),
        format!("action=api_key.revoked&cursor={created}"),
        format!("action=api_key.created&actor=x&cursor={created}"),
        format!("action=api_key.created&cursor={all}"),
        format!("cursor={keys}"),
        format!("cursor={}x", &all[1..]),
        "cursor=".to_owned(),
    ] {
        assert_eq!(open(query.clone()).send().await.invalid_field(), "cursor", "{query}");
    }
    assert_eq!(open(format!("cursor={all}")).bearer(&theirs).send().await.invalid_field(), "cursor");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_filter_is_named() {
    let server = TestServer::start().await;
    for (query, field) in [
        ("actor=", "actor"),
        ("actor=%20", "actor"),
        ("action=", "action"),
        ("action=created", "action"),
        ("action=api_key.create", "action"),
        ("action=Api_Key.created", "action"),
        ("action=api_key.created,api_key.revoked", "action"),
        ("limit=0", "limit"),
        ("until=2027-01-01T00:00:00Z", "until"),
    ] {
        assert_eq!(server.get(&format!("/v1/audit_events?{query}")).send().await.invalid_field(), field, "{query}");
    }
    assert_eq!(
        server.get(&format!("/v1/audit_events?actor={}", "a".repeat(101))).send().await.invalid_field(),
        "actor"
    );
    for scope in ["read", "write"] {
        let (_, token) = server.key(&[scope]).await;
        assert_eq!(server.get("/v1/audit_events").bearer(&token).send().await.forbidden(), "missing scope: admin");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn event_is_pending_until_chained_then_verified() {
    let (server, _clock) = chained().await;
    let verified = [3, 3, 2, 2, 1, 1, 1].map(|n| format!("verified {n}"));
    assert_eq!(states(&server).await, verified);
    server.key(&["read"]).await;
    let with_new_event = states(&server).await;
    assert_eq!(with_new_event.iter().filter(|state| *state == "pending null").count(), 1);
    server.work(CHAIN).await;
    assert_eq!(states(&server).await.iter().filter(|state| *state == "verified 4").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn list_shows_tampered_events_as_broken() {
    let (server, _clock) = tampered().await;
    let events = partition(&server, "AUD").await;
    // Of the three newest events, the first is changed, the second is stored again as pending, and
    // the third is stored again without its link.
    let mut changed = events[6].clone();
    changed["actor"]["M"]["name"] = json!({ "S": "another actor" });
    let mut pending = events[5].clone();
    pending["ip_address"] = json!({ "S": "192.0.2.1" });
    pending["unchained"] = json!({ "S": "UNC#1" });
    let mut unlinked = events[4].clone();
    for event in [&mut pending, &mut unlinked] {
        event.as_object_mut().unwrap().remove("link");
    }
    for event in [&changed, &pending, &unlinked] {
        put(&server, "karta", event).await;
    }
    let expected = ["broken 3", "broken 3", "broken 2", "verified 2", "verified 1", "verified 1", "verified 1"];
    for _ in 0..2 {
        assert_eq!(states(&server).await, expected);
        server.work(CHAIN).await;
    }
    assert_eq!(links(&server).await.len(), 3, "an event that a link holds is not chained again");
    let [changed, pending, unlinked] = [6, 5, 4].map(|at| events[at]["sk"]["S"].as_str().unwrap());
    assert_eq!(
        findings(&server).await,
        [
            format!("event {unlinked} is in link 2 but does not name it"),
            format!("event {pending} differs from its digest in link 3"),
            format!("event {changed} differs from its digest in link 3"),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn list_shows_events_after_tampered_link_as_broken() {
    let (server, _clock) = tampered().await;
    let mut link = partition(&server, "CHN").await.swap_remove(1);
    link["events"]["L"].as_array_mut().unwrap().pop();
    put(&server, "karta", &link).await;
    let broken = ["broken 3", "broken 3", "broken 2", "broken 2"];
    assert_eq!(states(&server).await[..4], broken);
    link["hash"] = json!({ "S": "?" });
    put(&server, "karta", &link).await;
    assert_eq!(states(&server).await[..4], broken);
    delete(&server, "karta", &link).await;
    assert_eq!(states(&server).await[..4], broken);
    assert_eq!(states(&server).await[4..], ["verified 1"; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_event_in_the_wrong_shard_is_found() {
    let (server, _clock) = tampered().await;
    server.key(&["read"]).await;
    let pending = partition(&server, "AUD").await.into_iter().find(|event| event.get("unchained").is_some()).unwrap();
    let sk = pending["sk"]["S"].as_str().unwrap();
    let own: u8 = pending["unchained"]["S"].as_str().unwrap().strip_prefix("UNC#").unwrap().parse().unwrap();
    for shard in ["UNC#99".to_owned(), "x".to_owned(), format!("UNC#{}", (own + 1) % 16)] {
        let mut misplaced = pending.clone();
        misplaced["unchained"] = json!({ "S": shard });
        put(&server, "karta", &misplaced).await;
        assert_eq!(states(&server).await.iter().filter(|state| *state == "broken null").count(), 1, "{shard}");
        assert_eq!(findings(&server).await, [format!("event {sk} is malformed")], "{shard}");
    }
    put(&server, "karta", &pending).await;
    server.work(CHAIN).await;
    assert_eq!(findings(&server).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn event_with_an_extra_attribute_is_found() {
    let (server, _clock) = tampered().await;
    server.key(&["read"]).await;
    let pending = partition(&server, "AUD").await.into_iter().find(|event| event.get("unchained").is_some()).unwrap();
    let sk = pending["sk"]["S"].as_str().unwrap();
    for (name, value) in [("ttl", json!({ "N": "1" })), ("version", json!({ "N": "1" }))] {
        let mut tampered = pending.clone();
        tampered[name] = value;
        put(&server, "karta", &tampered).await;
        assert_eq!(states(&server).await.iter().filter(|state| *state == "broken null").count(), 1, "{name}");
        assert_eq!(findings(&server).await, [format!("event {sk} is malformed")], "{name}");
    }
    server.work(CHAIN).await;
    assert_eq!(states(&server).await.iter().filter(|state| *state == "broken 4").count(), 1);
    assert_eq!(findings(&server).await, [format!("event {sk} is malformed")]);
    let chained = partition(&server, "AUD").await.into_iter().find(|event| event["sk"]["S"] == sk).unwrap();
    delete(&server, "karta", &chained).await;
    assert_eq!(findings(&server).await, [format!("event {sk} of link 4 is missing")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn event_pending_over_ten_minutes_is_found() {
    let (server, clock) = tampered().await;
    server.key(&["read"]).await;
    clock.advance(Duration::from_mins(10));
    assert_eq!(findings(&server).await, [""; 0]);
    assert!(states(&server).await.contains(&"pending null".to_owned()));
    clock.advance(Duration::from_millis(1));
    let found = findings(&server).await;
    assert!(found.len() == 1 && found[0].ends_with("has been waiting for more than ten minutes"), "{found:?}");
    assert!(states(&server).await.contains(&"broken null".to_owned()));
    server.work(CHAIN).await;
    assert_eq!(findings(&server).await, [""; 0]);
    assert!(states(&server).await.contains(&"verified 4".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_skips_events_it_cannot_chain() {
    let (server, _clock) = tampered().await;
    server.key(&["read"]).await;
    let mut event = partition(&server, "AUD").await.into_iter().find(|event| event.get("unchained").is_some()).unwrap();
    let sk = event["sk"].take();
    event["link"] = json!({ "N": "1" });
    let junk: Vec<_> = (0..2_050).map(|n| json!({ "S": format!("0#{n:04}") })).collect();
    for sks in junk.chunks(25) {
        let puts: Vec<_> = sks
            .iter()
            .map(|sk| {
                event["sk"] = sk.clone();
                json!({ "PutRequest": { "Item": event } })
            })
            .collect();
        server.dynamodb("BatchWriteItem", json!({ "RequestItems": { "karta": puts } })).await;
    }
    server.work(CHAIN).await;
    let links = links(&server).await;
    assert_eq!((links.len(), event_keys(&links[3])), (4, vec![sk["S"].as_str().unwrap()]));
    assert_eq!(findings(&server).await.len(), junk.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_event_is_unlisted_and_found() {
    let (server, _clock) = tampered().await;
    let events = partition(&server, "AUD").await;
    let mut expected = Vec::new();
    for n in 0..60 {
        let mut odd = events[6].clone();
        odd["sk"] = json!({ "S": format!("2026-11-21T12:30:00.000Z#{n:02}") });
        odd.as_object_mut().unwrap().remove("link");
        odd["unchained"] = json!({ "S": "UNC#1" });
        put(&server, "karta", &odd).await;
        expected.push(format!("event {} is malformed", odd["sk"]["S"].as_str().unwrap()));
    }
    let mut unreadable = events[5].clone();
    unreadable["actor"] = json!({ "S": "?" });
    put(&server, "karta", &unreadable).await;
    let (mut visited, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("/v1/audit_events?limit=2{cursor}")).send().await.expect(200);
        visited.extend(page["audit_events"].as_array().unwrap().iter().map(|event| event["chain"]["link"].clone()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(visited, [3, 2, 2, 1, 1, 1]);
    expected.insert(0, format!("event {} differs from its digest in link 3", unreadable["sk"]["S"].as_str().unwrap()));
    assert_eq!(findings(&server).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn single_stale_read_is_not_reported() {
    // The clock stays fixed, so that the authorizer's verdict is cached and causes no more reads.
    let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
    let (server, proxy) = FaultProxy::start_with(Arc::new(clock)).await;
    server.work(CHAIN).await;
    assert_eq!(states(&server).await, ["verified 1"; 2]);
    for reads in 0..2 {
        proxy.forget();
        proxy.fail_after("BatchGetItem", reads, 1, StoreFault::FindNothing);
        assert_eq!(states(&server).await, ["verified 1"; 2]);
        assert!(proxy.seen_of("BatchGetItem").len() > 2, "the events are read twice");
        proxy.heal();
    }
    for reads in 0..4 {
        proxy.fail_after("Query", reads, 1, StoreFault::FindNothing);
        assert_eq!(findings(&server).await, [""; 0], "{reads}");
        proxy.heal();
    }
    proxy.forget();
    proxy.fail("BatchGetItem", 2, StoreFault::FindNothing);
    assert_eq!(states(&server).await, ["broken 1"; 2]);
    assert_eq!(proxy.seen_of("BatchGetItem").len(), 2);
}

/// Collects the paths of all values of an item.
fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                leaves(value, &format!("{at}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (n, value) in items.iter().enumerate() {
                leaves(value, &format!("{at}/{n}"), found);
            }
        }
        _ => found.push(at.to_owned()),
    }
}

/// Returns another value of the same type.
fn flipped(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) => {
            let (head, last) = text.split_at(text.len().checked_sub(1)?);
            Some(json!(format!("{head}{}", if last == "1" { "2" } else { "1" })))
        }
        Value::Bool(flag) => Some(json!(!flag)),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_changed_value_of_an_event_is_found() {
    let (server, _clock) = tampered().await;
    let event = partition(&server, "AUD").await.swap_remove(3);
    let mut paths = Vec::new();
    leaves(&event, "", &mut paths);
    let mut tried = 0;
    for path in paths.iter().filter(|path| !path.starts_with("/pk") && !path.starts_with("/sk")) {
        let mut changed = event.clone();
        let value = changed.pointer_mut(path).unwrap();
        // DynamoDB accepts only `true` for NULL.
        let Some(other) = flipped(value).filter(|_| !path.ends_with("/NULL")) else { continue };
        *value = other;
        put(&server, "karta", &changed).await;
        assert_eq!(findings(&server).await.len(), 1, "{path}");
        tried += 1;
    }
    for name in event.as_object().unwrap().keys().filter(|name| !["pk", "sk"].contains(&name.as_str())) {
        let mut cut = event.clone();
        cut.as_object_mut().unwrap().remove(name);
        put(&server, "karta", &cut).await;
        assert_eq!(findings(&server).await.len(), 1, "{name} is removed");
    }
    assert!(tried > 10, "{tried} values of {event}");
    put(&server, "karta", &event).await;
    assert_eq!(findings(&server).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_or_moved_event_is_found() {
    let (server, _clock) = tampered().await;
    let event = partition(&server, "AUD").await.swap_remove(3);
    let sk = event["sk"]["S"].as_str().unwrap();
    delete(&server, "karta", &event).await;
    assert_eq!(findings(&server).await, [format!("event {sk} of link 2 is missing")]);
    let mut moved = event.clone();
    let other = sk.replace("12:00", "12:01");
    moved["sk"] = json!({ "S": other });
    put(&server, "karta", &moved).await;
    assert_eq!(
        findings(&server).await,
        [format!("event {sk} of link 2 is missing"), format!("event {other} names link 2, which does not list it")]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn inserted_event_is_found() {
    let (server, _clock) = tampered().await;
    let mut event = partition(&server, "AUD").await.swap_remove(3);
    let sk = event["sk"]["S"].as_str().unwrap().replace("12:00", "12:01");
    event["sk"] = json!({ "S": sk });
    for (link, finding) in [
        (Some("2"), format!("event {sk} names link 2, which does not list it")),
        (Some("9"), format!("event {sk} names link 9, which is missing")),
        (None, format!("event {sk} is neither chained nor waiting")),
    ] {
        match link {
            Some(n) => event["link"] = json!({ "N": n }),
            None => drop(event.as_object_mut().unwrap().remove("link")),
        }
        put(&server, "karta", &event).await;
        assert_eq!(findings(&server).await, [finding]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_link_of_an_event_is_found() {
    let (server, _clock) = tampered().await;
    let mut event = partition(&server, "AUD").await.swap_remove(3);
    let sk = event["sk"]["S"].as_str().unwrap().to_owned();
    for link in
        [json!({ "N": "9" }), json!({ "N": "1" }), json!({ "N": "0" }), json!({ "N": "-1.5" }), json!({ "S": "2" })]
    {
        event["link"] = link.clone();
        put(&server, "karta", &event).await;
        assert_eq!(findings(&server).await, [format!("event {sk} is in link 2 but does not name it")], "{link}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_or_changed_link_is_found() {
    let (server, _clock) = tampered().await;
    let link = partition(&server, "CHN").await.swap_remove(1);
    let mut paths = Vec::new();
    leaves(&link, "", &mut paths);
    for path in paths.iter().filter(|path| !path.starts_with("/pk") && !path.starts_with("/sk")) {
        let mut changed = link.clone();
        *changed.pointer_mut(path).unwrap() = flipped(link.pointer(path).unwrap()).unwrap();
        put(&server, "karta", &changed).await;
        assert_ne!(findings(&server).await, [""; 0], "{path}");
    }
    delete(&server, "karta", &link).await;
    let found = findings(&server).await;
    assert!(found.contains(&"link 2 is missing".to_owned()), "{found:?}");
}

/// Deletes all links, claims and events after the first link.
async fn truncate(server: &TestServer) {
    for item in partition(server, "CHN").await {
        let later = item["n"]["N"].as_str().or(item["link"]["N"].as_str()).unwrap() != "1";
        if later {
            delete(server, "karta", &item).await;
        }
    }
    for event in partition(server, "AUD").await {
        if event["link"]["N"] != "1" {
            delete(server, "karta", &event).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anchors_reveal_a_truncated_chain() {
    let (server, _clock) = tampered().await;
    truncate(&server).await;
    assert_eq!(findings(&server).await, ["links 2 to 3 are missing"]);
    assert_eq!(states(&server).await, ["verified 1"; 3], "the list does not read anchors");
}

#[tokio::test(flavor = "multi_thread")]
async fn anchors_reveal_a_rewritten_tail() {
    let (server, clock) = tampered().await;
    truncate(&server).await;
    for _ in 0..2 {
        clock.advance(SECOND);
        server.key(&["read"]).await;
        server.work(CHAIN).await;
    }
    assert_eq!(links(&server).await.len(), 3, "the worker continues the chain");
    assert_eq!(findings(&server).await, ["link 2 differs from its anchor", "link 3 differs from its anchor"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn anchors_reveal_a_deleted_log() {
    let (server, _clock) = tampered().await;
    for item in partition(&server, "CHN").await.into_iter().chain(partition(&server, "AUD").await) {
        delete(&server, "karta", &item).await;
    }
    assert_eq!(findings(&server).await, ["links 1 to 3 are missing"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn recomputed_chain_fails_without_the_signing_key() {
    let (server, clock) = tampered().await;
    let ring = Keyring::single("k1", "not the ring's secret, and long enough").unwrap();
    let organization = Id::new(server.organization_id).unwrap();
    let mut head: Option<Link> = None;
    for link in links(&server).await {
        let events =
            event_keys(&link).into_iter().map(|sk| ChainedEvent { sk: sk.to_owned(), digest: digest_of(&link, sk) });
        let forged = Link::after(head.as_ref(), organization, clock.now(), events.collect(), &ring);
        let key = json!({ "pk": { "S": format!("CHN#{organization}") }, "sk": { "S": format!("{:016}", forged.n) } });
        let update = json!({
            "TableName": "karta",
            "Key": key,
            "UpdateExpression": "SET #at = :at, previous = :previous, #hash = :hash, mac = :mac",
            "ExpressionAttributeNames": { "#at": "at", "#hash": "hash" },
            "ExpressionAttributeValues": {
                ":at": { "S": forged.at.to_string() },
                ":previous": { "S": forged.previous.to_string() },
                ":hash": { "S": forged.hash.to_string() },
                ":mac": { "S": forged.mac.to_string() },
            },
        });
        server.dynamodb("UpdateItem", update).await;
        head = Some(forged);
    }
    assert_eq!(states(&server).await.len(), 7);
    assert!(states(&server).await.iter().all(|state| state.starts_with("verified")), "the list does not check MACs");
    let mut expected = Vec::new();
    for n in 1..=3 {
        expected.push(format!("link {n} has an invalid MAC"));
        expected.push(format!("link {n} differs from its anchor"));
    }
    assert_eq!(findings(&server).await, expected);

    // Forging the anchors too does not help without the signing key.
    for anchor in partition(&server, "ANC").await {
        delete(&server, "karta-anchors", &anchor).await;
    }
    for link in links(&server).await {
        let link: Link = serde_json::from_value(link).unwrap();
        let anchor = Anchor::from(&link);
        let item = json!({
            "pk": { "S": format!("ANC#{organization}") },
            "sk": { "S": format!("{:016}#{}", anchor.n, anchor.hash) },
            "n": { "N": anchor.n.to_string() },
            "hash": { "S": anchor.hash.to_string() },
            "kid": { "S": anchor.kid },
            "mac": { "S": anchor.mac.to_string() },
            "at": { "S": anchor.at.to_string() },
        });
        put(&server, "karta-anchors", &item).await;
    }
    assert_eq!(findings(&server).await, [1, 2, 3].map(|n| format!("link {n} has an invalid MAC")));
}

fn digest_of(link: &Value, sk: &str) -> Hash32 {
    let events = link["events"].as_array().unwrap();
    let event = events.iter().find(|event| event["sk"] == sk).unwrap();
    Hash32::try_from(event["digest"].as_str().unwrap().to_owned()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_item_in_a_log_partition_is_found() {
    let (server, _clock) = tampered().await;
    put(&server, "karta", &json!({ "pk": { "S": "AUD#unknown" }, "sk": { "S": "1" }, "unchained": { "S": "UNC#1" } }))
        .await;
    let chain = format!("CHN#{}", server.organization_id);
    put(&server, "karta", &json!({ "pk": { "S": chain }, "sk": { "S": "7" } })).await;
    server.work(CHAIN).await;
    assert_eq!(findings(&server).await, [r#""7" cannot be read"#, "AUD#unknown"]);
}

/// Deletes the organization's items under these prefixes, anchors included.
async fn delete_partitions(server: &TestServer, prefixes: &[&str]) {
    for prefix in prefixes {
        let table = if *prefix == "ANC" { "karta-anchors" } else { "karta" };
        for item in partition(server, prefix).await {
            delete(server, table, &item).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_log_and_anchors_are_found() {
    let (server, _clock) = tampered().await;
    delete_partitions(&server, &["AUD", "CHN", "ANC"]).await;
    let missing = ["the audit log is missing: no events, links or anchors"];
    assert_eq!(findings(&server).await, missing);
    // Each of these items proves that the organization exists.
    for prefix in ["ORG", "ADM", "KEY"] {
        delete_partitions(&server, &[prefix]).await;
        assert_eq!(findings(&server).await, missing, "{prefix} is deleted too");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_log_is_found() {
    let (server, _clock) = tampered().await;
    delete_partitions(&server, &["AUD", "CHN", "ANC"]).await;
    server.key(&["read"]).await;
    server.work(CHAIN).await;
    assert_eq!(findings(&server).await, ["the audit log does not begin with the organization's creation"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_log_is_found_among_intact_logs() {
    let (server, _clock) = tampered().await;
    server.another_organization("other").await;
    server.work(CHAIN).await;
    delete_partitions(&server, &["AUD", "CHN", "ANC"]).await;
    assert_eq!(findings(&server).await, ["the audit log is missing: no events, links or anchors"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_store_is_not_clean() {
    let (server, _clock) = tampered().await;
    for table in ["karta", "karta-anchors"] {
        let scan = server.dynamodb("Scan", json!({ "TableName": table })).await;
        for item in scan["Items"].as_array().unwrap() {
            delete(&server, table, item).await;
        }
    }
    let ring = server.runner.app.secrets.ring(Ring::Audit).await.unwrap();
    let report = audit::verify(&server.runner.app.store.audit_reader(), &ring, server.runner.app.clock.now()).await;
    let report = report.unwrap();
    assert!(!report.is_clean());
    assert_eq!(report.lines(), ["the store holds no organization: nothing was verified"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_action_error_lists_known_actions() {
    let server = TestServer::start().await;
    let refusal = server.get("/v1/audit_events?action=api_key.create").send().await.refused(422);
    let known: Vec<_> = Action::ALL.iter().map(|action| action.as_str()).collect();
    assert_eq!(refusal["field"], "action");
    assert_eq!(refusal["message"], format!("action must be one of {}", known.join(", ")));
    for action in known {
        server.get(&format!("/v1/audit_events?action={action}")).send().await.expect(200);
    }
}

#[test]
fn documents_list_every_action() {
    let known: BTreeSet<_> = Action::ALL.iter().map(|action| action.as_str().to_owned()).collect();
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md")).unwrap();
    let (_, section) = page.split_once("\n### Actions\n").unwrap();
    let (section, _) = section.split_once("\n### ").unwrap();
    let listed: BTreeSet<_> = section.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect();
    assert_eq!(listed, known);
    let document = openapi::document().unwrap();
    let schema = &document["components"]["schemas"]["Action"]["enum"];
    let described: BTreeSet<_> =
        schema.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect();
    assert_eq!(described, known);
}

#[test]
fn every_action_is_used_in_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared = ["bootstrap.rs", "http/sessions.rs"].map(|file| root.join("shared/src").join(file));
    let mut sources = shared.map(|path| fs::read_to_string(path).unwrap()).concat();
    for function in fs::read_dir(root.join("functions")).unwrap() {
        for file in fs::read_dir(function.unwrap().path().join("src")).unwrap() {
            sources.push_str(&fs::read_to_string(file.unwrap().path()).unwrap());
        }
    }
    for action in Action::ALL {
        assert!(sources.contains(&format!("Action::{action:?}")), "no code uses {}", action.as_str());
    }
}

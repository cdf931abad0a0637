use std::{sync::Arc, time::Duration};

use karta_shared::clock::{Clock, ManualClock};
use serde_json::{Value, json};

use super::{assert_consistent, deploy, report};
use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::{Reply, TestServer},
    invariants::{Tables, named_chunks},
};

const ROUTE: &str = "/v1/agent_projects/site/releases/1/logs";

/// Starts a server with one release that has this build log.
async fn server_with_log(log: &str) -> (TestServer, Value) {
    let server = TestServer::start().await;
    server.project("site").await;
    let release = deploy(&server, "abcdef0").send().await.expect(201)["release"].take();
    report_log(&server, &release, log).await.expect(200);
    (server, release)
}

async fn report_log(server: &TestServer, release: &Value, log: &str) -> Reply {
    report(server, release, json!({ "status": "ready", "build_log": log })).send().await
}

/// Returns all lines, read page by page, and the sizes of the pages.
async fn lines(server: &TestServer, limit: usize) -> (Vec<Value>, Vec<usize>) {
    let (mut lines, mut sizes, mut query) = (Vec::new(), Vec::new(), format!("limit={limit}"));
    loop {
        let page = server.get(&format!("{ROUTE}?{query}")).send().await.expect(200);
        let logs = page["logs"].as_array().unwrap();
        sizes.push(logs.len());
        lines.extend(logs.clone());
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("limit={limit}&cursor={cursor}");
    }
    (lines, sizes)
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_numbered_in_order() {
    let (server, _) = server_with_log("Fetching\r\n\nBuilding é\n").await;
    let expected = json!({
        "logs": [
            { "line": 1, "text": "Fetching" },
            { "line": 2, "text": "" },
            { "line": 3, "text": "Building é" },
        ],
        "next_cursor": null,
    });
    assert_eq!(server.get(ROUTE).send().await.expect(200), expected);
    assert_eq!(lines(&server, 2).await.1, [2, 1]);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn release_without_a_log_has_no_lines() {
    let server = TestServer::start().await;
    server.project("site").await;
    deploy(&server, "abcdef0").send().await.expect(201);
    assert_eq!(server.get(ROUTE).send().await.expect(200), json!({ "logs": [], "next_cursor": null }));
}

#[tokio::test(flavor = "multi_thread")]
async fn log_of_a_megabyte_is_stored_completely() {
    let text: Vec<_> = (0..1_000).map(|at| format!("{at} {}", "x".repeat(1_000))).collect();
    let (server, _) = server_with_log(&text.join("\n")).await;
    let (lines, sizes) = lines(&server, 100).await;
    assert_eq!(sizes, [100; 10]);
    for (at, (line, text)) in lines.iter().zip(&text).enumerate() {
        assert_eq!(*line, json!({ "line": at + 1, "text": text }));
    }
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overlong_line_continues_in_the_next_lines() {
    let (server, _) = server_with_log(&"y".repeat(1_000_000)).await;
    let (lines, _) = lines(&server, 100).await;
    assert_eq!(lines.len(), 1_000_000_usize.div_ceil(8 * 1024));
    assert_eq!(lines.iter().map(|line| line["text"].as_str().unwrap().len()).sum::<usize>(), 1_000_000);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_redacted_before_storage() {
    let secret = "AbC123XyZ0123456789abcdefghijklm";
    let log = format!("KARTA_API_KEY=kt_live_{secret}\nAuthorization: Bearer {secret}\nsk-ant-{secret}\nfine");
    let (server, _) = server_with_log(&log).await;
    let texts: Vec<_> =
        lines(&server, 50).await.0.iter().map(|line| line["text"].as_str().unwrap().to_owned()).collect();
    let expected =
        ["KARTA_API_KEY=kt_live_AbC123[redacted]", "Authorization: Bearer [redacted]", "sk-ant-[redacted]", "fine"];
    assert_eq!(texts, expected);
    assert!(server.stored().await.iter().all(|item| !item.to_string().contains(secret)));
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_grows_by_redaction_still_fits() {
    let (server, release) = server_with_log(&"whsec_a\n".repeat(110_000)).await;
    let page = server.get(&format!("{ROUTE}?limit=1")).send().await.expect(200);
    assert_eq!(page["logs"], json!([{ "line": 1, "text": "whsec_[redacted]" }]));
    assert_consistent(&server).await;
    report_log(&server, &release, &"whsec_b ".repeat(130_000)).await.expect(200);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redacted_log_is_truncated_at_one_mebibyte() {
    let (server, _) = server_with_log(&"sk-12345678 ".repeat(87_000)).await;
    let lines = lines(&server, 100).await.0;
    let (last, kept) = lines.split_last().unwrap();
    assert_eq!(last["text"], "[the rest of this log was cut off]");
    let kept: String = kept.iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!((kept.len(), &kept[..28]), (1024 * 1024, "sk-[redacted] sk-[redacted] "));
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_log_replaces_the_previous_one() {
    let (server, release) = server_with_log(&"long\n".repeat(60_000)).await;
    report_log(&server, &release, "short\nlog").await.expect(200);
    assert_eq!(lines(&server, 50).await.0.len(), 2);
    assert_consistent(&server).await;
    report_log(&server, &release, "short\nLOG").await.expect(200);
    assert_eq!(lines(&server, 50).await.0[1]["text"], "LOG");
    assert_consistent(&server).await;
    report_log(&server, &release, "").await.expect(200);
    assert!(lines(&server, 50).await.0.is_empty());
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_release_and_invalid_parameter_are_refused() {
    let (server, _) = server_with_log("one\ntwo").await;
    deploy(&server, "abcdef0").send().await.expect(201);
    for path in ["site/releases/3", "site/releases/0", "site/releases/01", "site/releases/v1", "shop/releases/1"] {
        let refusal = server.get(&format!("/v1/agent_projects/{path}/logs")).send().await.refused(404);
        assert_eq!(refusal, json!({ "detail": "Not found" }), "{path}");
    }
    let cursor = server.get(&format!("{ROUTE}?limit=1")).send().await.expect(200)["next_cursor"].clone();
    let cursor = cursor.as_str().unwrap();
    assert_eq!(server.get(&format!("{ROUTE}?limit=101")).send().await.invalid_field(), "limit");
    assert_eq!(server.get(&format!("{ROUTE}?status=ready")).send().await.invalid_field(), "status");
    let others = server.get(&format!("/v1/agent_projects/site/releases/2/logs?cursor={cursor}"));
    assert_eq!(others.send().await.invalid_field(), "cursor", "a cursor of another release");
}

/// Starts a server at noon behind a proxy, with one release that has the log `old`.
async fn server_with_old_log() -> (TestServer, Arc<FaultProxy>, Arc<ManualClock>, Value) {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_with(Arc::clone(&clock) as Arc<dyn Clock>).await;
    server.project("site").await;
    let release = deploy(&server, "abcdef0").send().await.expect(201)["release"].take();
    report_log(&server, &release, &old()).await.expect(200);
    (server, proxy, clock, release)
}

/// Returns a log with as many chunks as `new`.
fn old() -> String {
    format!("{}\n", "o".repeat(999)).repeat(400)
}

fn new() -> String {
    format!("{}\n", "n".repeat(999)).repeat(400)
}

/// Returns the complete log, read page by page.
async fn seen(server: &TestServer) -> String {
    lines(server, 100).await.0.iter().flat_map(|line| [line["text"].as_str().unwrap(), "\n"]).collect()
}

/// Counts the stored chunks that the release does not refer to.
async fn leftover(server: &TestServer) -> usize {
    let tables = Tables::new(server).await;
    let release = tables.under("REL#").next().unwrap();
    let (stored, named) = (tables.chunks(release), named_chunks(release));
    assert!(named.iter().all(|chunk| stored.contains(chunk)), "a chunk is missing");
    stored.len() - named.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_written_outside_the_releases_transaction() {
    let (server, proxy, _, release) = server_with_old_log().await;
    proxy.forget();
    report_log(&server, &release, &new()).await.expect(200);
    let transactions = proxy.seen_of("TransactWriteItems");
    assert_eq!(transactions.len(), 1);
    assert!(transactions[0].body.to_string().len() < 16 * 1024);
    assert_eq!((proxy.seen_of("PutItem").len(), proxy.seen_of("DeleteItem").len()), (4, 4));
    assert_eq!(seen(&server).await, new());
    proxy.forget();
    report_log(&server, &release, &new()).await.expect(200);
    assert!(proxy.seen_of("PutItem").is_empty(), "a repeat writes nothing");
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_report_leaves_a_complete_log() {
    let (server, proxy, clock, release) = server_with_old_log().await;
    for (operation, through) in [("PutItem", 0), ("PutItem", 2), ("TransactWriteItems", 0)] {
        proxy.fail_after(operation, through, ALWAYS, StoreFault::ServerError);
        report_log(&server, &release, &new()).await.refused(503);
        proxy.heal();
        assert_eq!(seen(&server).await, old(), "{operation} after {through}");
    }
    assert_eq!(leftover(&server).await, 4);
    proxy.fail_after("DeleteItem", 1, ALWAYS, StoreFault::ServerError);
    report_log(&server, &release, &new()).await.expect(200);
    proxy.heal();
    assert_eq!(seen(&server).await, new());
    assert_eq!(leftover(&server).await, 4 + 3);
    // Chunks younger than an hour stay, because their report may still be running.
    clock.advance(Duration::from_mins(59));
    report_log(&server, &release, &old()).await.expect(200);
    assert_eq!(leftover(&server).await, 4 + 3);
    clock.advance(Duration::from_mins(2));
    report_log(&server, &release, &new()).await.expect(200);
    assert_eq!(seen(&server).await, new());
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_with_lost_response_is_stored_once() {
    let (server, proxy, _, release) = server_with_old_log().await;
    for operation in ["PutItem", "TransactWriteItems", "DeleteItem"] {
        let text = format!("{operation}\n");
        proxy.fail(operation, 1, StoreFault::DropResponse);
        report_log(&server, &release, &text).await.expect(200);
        assert_eq!(seen(&server).await, text);
    }
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn report_that_lost_a_race_leaves_nothing() {
    let (server, proxy, _, release) = server_with_old_log().await;
    proxy.fail("TransactWriteItems", 1, StoreFault::Cancel { code: "ConditionalCheckFailed", at: 0 });
    report_log(&server, &release, &new()).await.expect(200);
    assert_eq!(seen(&server).await, new());
    let (a, b) = ("a\n".repeat(9), "b\n".repeat(9));
    let (one, other) = tokio::join!(report_log(&server, &release, &a), report_log(&server, &release, &b));
    one.expect(200);
    other.expect(200);
    assert!([a, b].contains(&seen(&server).await));
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_during_replacement_sees_the_new_log() {
    let (server, proxy, _, release) = server_with_old_log().await;
    // The reads are: the claim of the slug, the project, the release. Hold the last one.
    proxy.fail_after("GetItem", 2, 1, StoreFault::HoldResponse);
    let replace = async {
        proxy.held().await;
        report_log(&server, &release, &new()).await.expect(200);
        proxy.release();
    };
    let (page, ()) = tokio::join!(server.get(ROUTE).send(), replace);
    let page = page.expect(200);
    let logs = page["logs"].as_array().unwrap();
    assert!(logs.len() == 50 && logs.iter().all(|line| line["text"] == "n".repeat(999)), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cursor_continues_in_a_replaced_log() {
    let (server, release) = server_with_log("one\ntwo").await;
    let cursor = server.get(&format!("{ROUTE}?limit=1")).send().await.expect(200)["next_cursor"].clone();
    let next = || server.get(&format!("{ROUTE}?limit=1&cursor={}", cursor.as_str().unwrap())).send();
    report_log(&server, &release, "one\ntwo\nthree").await.expect(200);
    let page = next().await.expect(200);
    assert_eq!((&page["logs"], page["next_cursor"].is_string()), (&json!([{ "line": 2, "text": "two" }]), true));
    report_log(&server, &release, "shorter").await.expect(200);
    assert_eq!(next().await.expect(200), json!({ "logs": [], "next_cursor": null }));
}

use std::{sync::Arc, time::Duration};

use karta_shared::clock::{Clock, ManualClock};
use serde_json::{Value, json};

use super::{assert_consistent, deploy, report};
use crate::{
    fault_proxy::{ALWAYS, Fault, FaultProxy},
    harness::{Reply, TestServer},
    invariants::{Tables, named_chunks},
};

const ROUTE: &str = "/v1/agent_projects/site/releases/1/logs";

/// A server with one release, whose build printed this.
async fn printed(log: &str) -> (TestServer, Value) {
    let server = TestServer::start().await;
    server.project("site").await;
    let release = deploy(&server, "abcdef0").send().await.expect(201)["release"].take();
    print(&server, &release, log).await.expect(200);
    (server, release)
}

async fn print(server: &TestServer, release: &Value, log: &str) -> Reply {
    report(server, release, json!({ "status": "ready", "build_log": log })).send().await
}

/// Every line, page by page, and how long the pages are.
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
async fn lines_come_in_order_and_numbered() {
    let (server, _) = printed("Fetching\r\n\nBuilding é\n").await;
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
async fn a_release_without_a_log_has_no_lines() {
    let server = TestServer::start().await;
    server.project("site").await;
    deploy(&server, "abcdef0").send().await.expect(201);
    assert_eq!(server.get(ROUTE).send().await.expect(200), json!({ "logs": [], "next_cursor": null }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_a_megabyte_is_kept_whole() {
    let text: Vec<_> = (0..1_000).map(|at| format!("{at} {}", "x".repeat(1_000))).collect();
    let (server, _) = printed(&text.join("\n")).await;
    let (lines, sizes) = lines(&server, 100).await;
    assert_eq!(sizes, [100; 10]);
    for (at, (line, text)) in lines.iter().zip(&text).enumerate() {
        assert_eq!(*line, json!({ "line": at + 1, "text": text }));
    }
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_a_megabyte_is_continued_in_the_next_ones() {
    let (server, _) = printed(&"y".repeat(1_000_000)).await;
    let (lines, _) = lines(&server, 100).await;
    assert_eq!(lines.len(), 1_000_000_usize.div_ceil(8 * 1024));
    assert_eq!(lines.iter().map(|line| line["text"].as_str().unwrap().len()).sum::<usize>(), 1_000_000);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_taken_out_before_anything_is_kept() {
    let secret = "AbC123XyZ0123456789abcdefghijklm";
    let log = format!("KARTA_API_KEY=kt_live_{secret}\nAuthorization: Bearer {secret}\nsk-ant-{secret}\nfine");
    let (server, _) = printed(&log).await;
    let texts: Vec<_> =
        lines(&server, 50).await.0.iter().map(|line| line["text"].as_str().unwrap().to_owned()).collect();
    let expected =
        ["KARTA_API_KEY=kt_live_AbC123[redacted]", "Authorization: Bearer [redacted]", "sk-ant-[redacted]", "fine"];
    assert_eq!(texts, expected);
    assert!(server.stored().await.iter().all(|item| !item.to_string().contains(secret)));
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_grows_as_it_is_scrubbed_still_fits() {
    let (server, release) = printed(&"whsec_a\n".repeat(110_000)).await;
    let page = server.get(&format!("{ROUTE}?limit=1")).send().await.expect(200);
    assert_eq!(page["logs"], json!([{ "line": 1, "text": "whsec_[redacted]" }]));
    assert_consistent(&server).await;
    print(&server, &release, &"whsec_b ".repeat(130_000)).await.expect(200);
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_longer_than_a_mebibyte_once_it_is_scrubbed_is_cut_there() {
    let (server, _) = printed(&"sk-12345678 ".repeat(87_000)).await;
    let lines = lines(&server, 100).await.0;
    let (last, kept) = lines.split_last().unwrap();
    assert_eq!(last["text"], "[the rest of this log was cut off]");
    let kept: String = kept.iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!((kept.len(), &kept[..28]), (1024 * 1024, "sk-[redacted] sk-[redacted] "));
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_log_takes_the_place_of_the_one_before() {
    let (server, release) = printed(&"long\n".repeat(60_000)).await;
    print(&server, &release, "short\nlog").await.expect(200);
    assert_eq!(lines(&server, 50).await.0.len(), 2);
    assert_consistent(&server).await;
    print(&server, &release, "short\nLOG").await.expect(200);
    assert_eq!(lines(&server, 50).await.0[1]["text"], "LOG");
    assert_consistent(&server).await;
    print(&server, &release, "").await.expect(200);
    assert!(lines(&server, 50).await.0.is_empty());
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_not_found_and_a_wrong_parameter_is_named() {
    let (server, _) = printed("one\ntwo").await;
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
    assert_eq!(others.send().await.invalid_field(), "cursor", "of another release");
}

/// A server behind a proxy with one release, whose build printed `old`, at noon.
async fn printed_old() -> (TestServer, Arc<FaultProxy>, Arc<ManualClock>, Value) {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_with(Arc::clone(&clock) as Arc<dyn Clock>).await;
    server.project("site").await;
    let release = deploy(&server, "abcdef0").send().await.expect(201)["release"].take();
    print(&server, &release, &old()).await.expect(200);
    (server, proxy, clock, release)
}

/// Of as many chunks as the other.
fn old() -> String {
    format!("{}\n", "o".repeat(999)).repeat(400)
}

fn new() -> String {
    format!("{}\n", "n".repeat(999)).repeat(400)
}

/// What a reader sees, page by page, put together.
async fn seen(server: &TestServer) -> String {
    lines(server, 100).await.0.iter().flat_map(|line| [line["text"].as_str().unwrap(), "\n"]).collect()
}

/// How many chunks lie there that the release does not name.
async fn leftover(server: &TestServer) -> usize {
    let tables = Tables::new(server).await;
    let release = tables.under("REL#").next().unwrap();
    let (lying, named) = (tables.chunks(release), named_chunks(release));
    assert!(named.iter().all(|chunk| lying.contains(chunk)), "a chunk is missing");
    lying.len() - named.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_written_outside_the_transaction_that_the_release_names_it_in() {
    let (server, proxy, _, release) = printed_old().await;
    proxy.forget();
    print(&server, &release, &new()).await.expect(200);
    let transactions = proxy.seen_of("TransactWriteItems");
    assert_eq!(transactions.len(), 1);
    assert!(transactions[0].body.to_string().len() < 16 * 1024);
    assert_eq!((proxy.seen_of("PutItem").len(), proxy.seen_of("DeleteItem").len()), (4, 4));
    assert_eq!(seen(&server).await, new());
    proxy.forget();
    print(&server, &release, &new()).await.expect(200);
    assert!(proxy.seen_of("PutItem").is_empty(), "a repeat writes nothing");
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_the_old_log_or_the_new_one_is_seen_whole() {
    let (server, proxy, clock, release) = printed_old().await;
    for (operation, through) in [("PutItem", 0), ("PutItem", 2), ("TransactWriteItems", 0)] {
        proxy.fail_after(operation, through, ALWAYS, Fault::ServerError);
        print(&server, &release, &new()).await.refused(503);
        proxy.heal();
        assert_eq!(seen(&server).await, old(), "{operation} after {through}");
    }
    assert_eq!(leftover(&server).await, 4);
    proxy.fail_after("DeleteItem", 1, ALWAYS, Fault::ServerError);
    print(&server, &release, &new()).await.expect(200);
    proxy.heal();
    assert_eq!(seen(&server).await, new());
    assert_eq!(leftover(&server).await, 4 + 3);
    // A report that is at work for less than an hour may yet be named.
    clock.advance(Duration::from_mins(59));
    print(&server, &release, &old()).await.expect(200);
    assert_eq!(leftover(&server).await, 4 + 3);
    clock.advance(Duration::from_mins(2));
    print(&server, &release, &new()).await.expect(200);
    assert_eq!(seen(&server).await, new());
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_answer_was_lost_is_there_once() {
    let (server, proxy, _, release) = printed_old().await;
    for operation in ["PutItem", "TransactWriteItems", "DeleteItem"] {
        let text = format!("{operation}\n");
        proxy.fail(operation, 1, Fault::DropAnswer);
        print(&server, &release, &text).await.expect(200);
        assert_eq!(seen(&server).await, text);
    }
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_lost_a_race_leaves_nothing() {
    let (server, proxy, _, release) = printed_old().await;
    proxy.fail("TransactWriteItems", 1, Fault::Cancel { code: "ConditionalCheckFailed", at: 0 });
    print(&server, &release, &new()).await.expect(200);
    assert_eq!(seen(&server).await, new());
    let (a, b) = ("a\n".repeat(9), "b\n".repeat(9));
    let (one, other) = tokio::join!(print(&server, &release, &a), print(&server, &release, &b));
    one.expect(200);
    other.expect(200);
    assert!([a, b].contains(&seen(&server).await));
    assert_consistent(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_while_the_log_is_replaced_sees_the_new_one() {
    let (server, proxy, _, release) = printed_old().await;
    // The slug's claim, the project, the release.
    proxy.fail_after("GetItem", 2, 1, Fault::HoldAnswer);
    let replace = async {
        proxy.held().await;
        print(&server, &release, &new()).await.expect(200);
        proxy.release();
    };
    let (page, ()) = tokio::join!(server.get(ROUTE).send(), replace);
    let page = page.expect(200);
    let logs = page["logs"].as_array().unwrap();
    assert!(logs.len() == 50 && logs.iter().all(|line| line["text"] == "n".repeat(999)), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_goes_on_in_the_log_that_came_meanwhile() {
    let (server, release) = printed("one\ntwo").await;
    let cursor = server.get(&format!("{ROUTE}?limit=1")).send().await.expect(200)["next_cursor"].clone();
    let next = || server.get(&format!("{ROUTE}?limit=1&cursor={}", cursor.as_str().unwrap())).send();
    print(&server, &release, "one\ntwo\nthree").await.expect(200);
    let page = next().await.expect(200);
    assert_eq!((&page["logs"], page["next_cursor"].is_string()), (&json!([{ "line": 2, "text": "two" }]), true));
    print(&server, &release, "shorter").await.expect(200);
    assert_eq!(next().await.expect(200), json!({ "logs": [], "next_cursor": null }));
}

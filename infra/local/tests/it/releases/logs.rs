use serde_json::{Value, json};

use super::{assert_whole, deploy, report};
use crate::harness::{Reply, World};

const ROUTE: &str = "/v1/agent_projects/site/releases/1/logs";

/// A world with one release, whose build printed this.
async fn printed(log: &str) -> (World, Value) {
    let world = World::start().await;
    world.project("site").await;
    let release = deploy(&world, "abcdef0").send().await.expect(201)["release"].take();
    print(&world, &release, log).await.expect(200);
    (world, release)
}

async fn print(world: &World, release: &Value, log: &str) -> Reply {
    report(world, release, json!({ "status": "ready", "build_log": log })).send().await
}

/// Every line, page by page, and how long the pages are.
async fn lines(world: &World, limit: usize) -> (Vec<Value>, Vec<usize>) {
    let (mut lines, mut sizes, mut query) = (Vec::new(), Vec::new(), format!("limit={limit}"));
    loop {
        let page = world.get(&format!("{ROUTE}?{query}")).send().await.expect(200);
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
    let (world, _) = printed("Fetching\r\n\nBuilding é\n").await;
    let expected = json!({
        "logs": [
            { "line": 1, "text": "Fetching" },
            { "line": 2, "text": "" },
            { "line": 3, "text": "Building é" },
        ],
        "next_cursor": null,
    });
    assert_eq!(world.get(ROUTE).send().await.expect(200), expected);
    assert_eq!(lines(&world, 2).await.1, [2, 1]);
    assert_whole(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_without_a_log_has_no_lines() {
    let world = World::start().await;
    world.project("site").await;
    deploy(&world, "abcdef0").send().await.expect(201);
    assert_eq!(world.get(ROUTE).send().await.expect(200), json!({ "logs": [], "next_cursor": null }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_a_megabyte_is_kept_whole() {
    let text: Vec<_> = (0..1_000).map(|at| format!("{at} {}", "x".repeat(1_000))).collect();
    let (world, _) = printed(&text.join("\n")).await;
    let (lines, sizes) = lines(&world, 100).await;
    assert_eq!(sizes, [100; 10]);
    for (at, (line, text)) in lines.iter().zip(&text).enumerate() {
        assert_eq!(*line, json!({ "line": at + 1, "text": text }));
    }
    assert_whole(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_a_megabyte_is_continued_in_the_next_ones() {
    let (world, _) = printed(&"y".repeat(1_000_000)).await;
    let (lines, _) = lines(&world, 100).await;
    assert_eq!(lines.len(), 1_000_000_usize.div_ceil(8 * 1024));
    assert_eq!(lines.iter().map(|line| line["text"].as_str().unwrap().len()).sum::<usize>(), 1_000_000);
    assert_whole(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_taken_out_before_anything_is_kept() {
    let secret = "AbC123XyZ0123456789abcdefghijklm";
    let log = format!("KARTA_API_KEY=kt_live_{secret}\nAuthorization: Bearer {secret}\nsk-ant-{secret}\nfine");
    let (world, _) = printed(&log).await;
    let texts: Vec<_> =
        lines(&world, 50).await.0.iter().map(|line| line["text"].as_str().unwrap().to_owned()).collect();
    let expected =
        ["KARTA_API_KEY=kt_live_AbC123[redacted]", "Authorization: Bearer [redacted]", "sk-ant-[redacted]", "fine"];
    assert_eq!(texts, expected);
    assert!(world.stored().await.iter().all(|item| !item.to_string().contains(secret)));
    assert_whole(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_grows_as_it_is_scrubbed_still_fits() {
    let (world, release) = printed(&"whsec_a\n".repeat(110_000)).await;
    let page = world.get(&format!("{ROUTE}?limit=1")).send().await.expect(200);
    assert_eq!(page["logs"], json!([{ "line": 1, "text": "whsec_[redacted]" }]));
    assert_whole(&world).await;
    print(&world, &release, &"whsec_b ".repeat(130_000)).await.expect(200);
    assert_whole(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_log_takes_the_place_of_the_one_before() {
    let (world, release) = printed(&"long\n".repeat(60_000)).await;
    print(&world, &release, "short\nlog").await.expect(200);
    assert_eq!(lines(&world, 50).await.0.len(), 2);
    assert_whole(&world).await;
    print(&world, &release, "short\nLOG").await.expect(200);
    assert_eq!(lines(&world, 50).await.0[1]["text"], "LOG");
    assert_whole(&world).await;
    print(&world, &release, "").await.expect(200);
    assert!(lines(&world, 50).await.0.is_empty());
    assert_whole(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_not_found_and_a_wrong_parameter_is_named() {
    let (world, _) = printed("one\ntwo").await;
    deploy(&world, "abcdef0").send().await.expect(201);
    for path in ["site/releases/3", "site/releases/0", "site/releases/01", "site/releases/v1", "shop/releases/1"] {
        let refusal = world.get(&format!("/v1/agent_projects/{path}/logs")).send().await.refused(404);
        assert_eq!(refusal, json!({ "detail": "Not found" }), "{path}");
    }
    let cursor = world.get(&format!("{ROUTE}?limit=1")).send().await.expect(200)["next_cursor"].clone();
    let cursor = cursor.as_str().unwrap();
    assert_eq!(world.get(&format!("{ROUTE}?limit=101")).send().await.invalid_field(), "limit");
    assert_eq!(world.get(&format!("{ROUTE}?status=ready")).send().await.invalid_field(), "status");
    let others = world.get(&format!("/v1/agent_projects/site/releases/2/logs?cursor={cursor}"));
    assert_eq!(others.send().await.invalid_field(), "cursor", "of another release");
}

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use tokio::task::JoinSet;

use super::{own_id, read};
use crate::harness::TestServer;

const ROUTE: &str = "/v1/api_keys";
const NOON_SINCE_2025_MILLIS: u64 = 689 * 24 * 3_600_000 + 12 * 3_600_000;

#[tokio::test(flavor = "multi_thread")]
async fn response_shows_the_key_and_its_secret() {
    let (server, _) = TestServer::start_at_noon().await;
    let settings = json!({
        "name": "Deploy bot",
        "scopes": ["admin", "write", "write"],
        "expires_at": "2026-12-01T01:30:00.1239+02:00",
        "allowed_cidrs": ["203.0.113.0/24", "2001:db8::/32", "192.0.2.7"],
        "budget": { "cost_cents": 5000, "alert_percents": [90, 50, 90] },
        "metadata": { "team": "web" },
    });
    let created = server.post(ROUTE, settings).send().await.expect(201);
    insta::assert_json_snapshot!(
        created,
        { ".secret" => "[secret]", ".api_key.id" => "[id]", ".api_key.prefix" => "[prefix]", ".api_key.created_by" => "[id]" },
        @r#"
    {
      "api_key": {
        "allowed_cidrs": [
          "203.0.113.0/24",
          "2001:db8::/32",
          "192.0.2.7/32"
        ],
        "budget": {
          "alert_percents": [
            50,
            90
          ],
          "cost_cents": 5000,
          "input_tokens": null,
          "output_tokens": null,
          "total_tokens": null
        },
        "created_at": "2026-11-21T12:00:00.000Z",
        "created_by": "[id]",
        "expires_at": "2026-11-30T23:30:00.123Z",
        "id": "[id]",
        "last_used_at": null,
        "metadata": {
          "team": "web"
        },
        "name": "Deploy bot",
        "prefix": "[prefix]",
        "replaced_by": null,
        "revoked_at": null,
        "scopes": [
          "write",
          "admin"
        ],
        "status": "active"
      },
      "secret": "[secret]"
    }
    "#
    );
    assert_eq!(created["api_key"]["created_by"], own_id(&server).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_or_null_fields_are_empty() {
    let (server, _) = TestServer::start_at_noon().await;
    let nulls = json!({
        "name": "ci", "scopes": ["read"], "expires_at": null, "allowed_cidrs": null, "budget": null, "metadata": null,
    });
    for settings in [json!({ "name": "ci", "scopes": ["read"] }), nulls] {
        let key = server.post(ROUTE, settings).send().await.expect(201)["api_key"].take();
        for (field, empty) in [
            ("expires_at", json!(null)),
            ("allowed_cidrs", json!([])),
            ("budget", json!(null)),
            ("metadata", json!({})),
        ] {
            assert_eq!(key[field], empty, "{field}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_starts_with_prefix_and_authenticates() {
    let server = TestServer::start().await;
    let created = server.post(ROUTE, json!({ "name": "ci", "scopes": ["read"] })).send().await.expect(201);
    let secret = created["secret"].as_str().unwrap();
    assert_eq!(secret.len(), "kt_live_".len() + 32);
    assert!(secret["kt_live_".len()..].bytes().all(|byte| byte.is_ascii_alphanumeric()));
    assert_eq!(created["api_key"]["prefix"], secret[..14]);
    let principal = server.get("/v1/whoami").bearer(secret).send().await.expect(200);
    assert_eq!(principal["api_key_id"], created["api_key"]["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn id_holds_milliseconds_above_twelve_random_bits() {
    let (server, _) = TestServer::start_at_noon().await;
    let (id, _) = server.key(&["read"]).await;
    assert_eq!(id >> 12, NOON_SINCE_2025_MILLIS);
    assert!(id < 1 << 53);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_one_millisecond_have_distinct_ids() {
    let (server, _) = TestServer::start_at_noon().await;
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        requests.spawn(server.post(ROUTE, json!({ "name": "ci", "scopes": ["read"] })).send());
    }
    let replies = requests.join_all().await;
    let ids: BTreeSet<_> = replies.into_iter().map(|reply| reply.expect(201)["api_key"]["id"].as_u64()).collect();
    assert_eq!(ids.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn maximum_settings_are_stored() {
    let server = TestServer::start().await;
    let metadata: Map<_, _> = (0..50).map(|pair| (format!("{pair:0>40}"), json!("v".repeat(500)))).collect();
    let cidrs: Vec<_> = (0..20).map(|range| format!("10.{range}.0.0/16")).collect();
    let settings = json!({
        "name": "é".repeat(100),
        "scopes": ["read", "write", "admin"],
        "expires_at": "9999-12-30T00:00:00.000Z",
        "allowed_cidrs": cidrs,
        "budget": {
            "input_tokens": 0,
            "output_tokens": 9_007_199_254_740_991_u64,
            "total_tokens": 1,
            "cost_cents": 9_007_199_254_740_991_u64,
            "alert_percents": [1, 2, 3, 4, 5, 6, 7, 8, 9, 100],
        },
        "metadata": metadata,
    });
    let (id, _) = server.key_with(settings.clone()).await;
    let key = read(&server, id).await;
    for (field, value) in settings.as_object().unwrap() {
        assert_eq!(&key[field], value, "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn body_over_64_kib_is_refused() {
    let server = TestServer::start().await;
    let body = json!({ "name": "ci", "scopes": ["read"] }).to_string();
    let padded = |size: usize| body.clone() + &" ".repeat(size - body.len());
    server.post(ROUTE, json!({})).raw_body(padded(64 * 1024)).send().await.expect(201);
    let refusal = server.post(ROUTE, json!({})).raw_body(padded(64 * 1024 + 1)).send().await.refused(413);
    assert_eq!(refusal, json!({ "error": "body_too_large", "message": "The body must be at most 65536 bytes" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_json_is_refused() {
    let server = TestServer::start().await;
    let deep = "[".repeat(50_000);
    let bodies: [&[u8]; 7] =
        [b"", b"{", b"name=ci", b"{'name': 'ci'}", b"{\"name\": \"ci\"} x", b"{\"name\": \"\xff\"}", deep.as_bytes()];
    for body in bodies {
        let refusal = server.post(ROUTE, json!({})).raw_body(body.to_vec()).send().await.refused(400);
        assert_eq!(refusal["error"], "malformed_json");
        let expected =
            if body.is_empty() { "The body is empty. Send a JSON object." } else { "The body is not JSON. See line 1" };
        assert!(refusal["message"].as_str().unwrap().starts_with(expected), "{refusal}");
        assert_eq!(refusal.as_object().unwrap().len(), 2, "{refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_field_is_named() {
    let (server, _) = TestServer::start_at_noon().await;
    for (change, field) in [
        (json!({ "name": "" }), "name"),
        (json!({ "name": "  \t" }), "name"),
        (json!({ "name": "é".repeat(101) }), "name"),
        (json!({ "name": "a\nb" }), "name"),
        (json!({ "name": 5 }), "name"),
        (json!({ "name": null }), "name"),
        (json!({ "scopes": null }), "scopes"),
        (json!({ "scopes": "read" }), "scopes"),
        (json!({ "scopes": ["read", "root"] }), "scopes[1]"),
        (json!({ "scopes": [7] }), "scopes[0]"),
        (json!({ "expires_at": "tomorrow" }), "expires_at"),
        (json!({ "expires_at": 1_800_000_000 }), "expires_at"),
        (json!({ "expires_at": "2027-01-01T00:00:00" }), "expires_at"),
        (json!({ "expires_at": "2026-11-21T12:00:00Z" }), "expires_at"),
        (json!({ "expires_at": "2020-01-01T00:00:00Z" }), "expires_at"),
        (json!({ "allowed_cidrs": "10.0.0.0/8" }), "allowed_cidrs"),
        (json!({ "allowed_cidrs": ["10.0.0.0/8", "10.0.0.1/8"] }), "allowed_cidrs[1]"),
        (json!({ "allowed_cidrs": ["anywhere"] }), "allowed_cidrs[0]"),
        (json!({ "allowed_cidrs": vec!["10.0.0.0/8"; 21] }), "allowed_cidrs"),
        (json!({ "budget": [1] }), "budget"),
        (json!({ "budget": 5 }), "budget"),
        (json!({ "budget": { "cost_cents": -1 } }), "budget.cost_cents"),
        (json!({ "budget": { "cost_cents": 1.5 } }), "budget.cost_cents"),
        (json!({ "budget": { "total_tokens": 9_007_199_254_740_992_u64 } }), "budget.total_tokens"),
        (json!({ "budget": { "alert_percents": [0] } }), "budget.alert_percents[0]"),
        (json!({ "budget": { "alert_percents": [50, "5"] } }), "budget.alert_percents[1]"),
        (json!({ "budget": { "alert_percents": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] } }), "budget.alert_percents"),
        (json!({ "budget": { "tokens": 1 } }), "budget.tokens"),
        (json!({ "metadata": ["team"] }), "metadata"),
        (json!({ "metadata": { "team": 1 } }), "metadata.team"),
        (json!({ "metadata": { "team": null } }), "metadata.team"),
        (json!({ "metadata": { "": "web" } }), "metadata"),
        (json!({ "metadata": { " ": "web" } }), "metadata. "),
        (json!({ "metadata": { "te\tam": "web" } }), "metadata.te\u{fffd}am"),
        (json!({ "metadata": { "te\nam": "web" } }), "metadata.te\u{fffd}am"),
        (json!({ "metadata": { "k".repeat(41): "web" } }), "metadata.kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"),
        (json!({ "metadata": { "team": "v".repeat(501) } }), "metadata.team"),
        (json!({ "metadata": pairs(51) }), "metadata"),
        (json!({ "id": 7 }), "id"),
        (json!({ "secret": "mine" }), "secret"),
        (json!({ "organization_id": 7 }), "organization_id"),
    ] {
        let mut body = json!({ "name": "ci", "scopes": ["read"] });
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        assert_eq!(server.post(ROUTE, body).send().await.invalid_field(), field, "{change}");
    }
    assert_eq!(server.audited("api_key.created").await.len(), 1, "only the first key was created");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_field_is_named() {
    let server = TestServer::start().await;
    let refusal = server.post(ROUTE, json!({ "scopes": ["read"] })).send().await.refused(422);
    assert_eq!(refusal, json!({ "error": "validation_failed", "message": "name is required", "field": "name" }));
    assert_eq!(server.post(ROUTE, json!({ "name": "ci" })).send().await.invalid_field(), "scopes");
    for body in [json!([]), json!("ci"), json!(null), json!(7)] {
        assert_eq!(server.post(ROUTE, body).send().await.invalid_field(), "body");
    }
    let unknown_parameter = server.post("/v1/api_keys?dry_run=true", json!({ "name": "ci", "scopes": ["read"] }));
    assert_eq!(unknown_parameter.send().await.invalid_field(), "dry_run");
}

fn pairs(count: usize) -> Value {
    (0..count).map(|pair| (format!("k{pair}"), json!("v"))).collect::<Map<_, _>>().into()
}

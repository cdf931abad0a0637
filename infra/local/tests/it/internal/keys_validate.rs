use std::{sync::Arc, time::Duration};

use http::Method;
use internal_keys_validate::InternalKeysValidate;
use karta_local::Options;
use karta_shared::{
    clock::{Clock, ManualClock},
    config::{Deadlines, Ring},
    domain::ApiKeyToken,
    entropy::OsEntropy,
    http::Route,
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    fault_proxy::{ALWAYS, FaultProxy, REFUSALS, StoreFault},
    harness::{Reply, Request, TestServer, WAIT_TIMEOUT, note_secret, options},
};

pub(crate) fn validation(server: &TestServer, body: Value) -> Request {
    server.service(Method::POST, "/v1/internal/keys/validate").body(body)
}

pub(crate) async fn validated(server: &TestServer, body: Value) -> Value {
    validation(server, body).send().await.expect(200)
}

fn invalid(code: &str) -> Value {
    json!({ "valid": false, "code": code })
}

/// Returns the response to a token that no key has.
pub(crate) fn not_found() -> Value {
    invalid("not_found")
}

/// Starts a server on a stopped clock, with a proxy in front of its store.
async fn at_noon() -> (TestServer, Arc<FaultProxy>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_with(Arc::clone(&clock) as Arc<dyn Clock>).await;
    proxy.forget();
    (server, proxy, clock)
}

/// Mints a token with a valid tag that belongs to no key. Its prefix is that of `like`, or an
/// unknown one.
pub(crate) async fn unproven(server: &TestServer, like: Option<&str>) -> String {
    let ring = server.runner.app.secrets.ring(Ring::KeyTag).await.unwrap();
    let token = match like {
        Some(token) => {
            let prefix = ApiKeyToken::parse(token, &ring).unwrap().prefix();
            ApiKeyToken::mint_under(&prefix, &ring, &OsEntropy)
        }
        None => ApiKeyToken::mint(&ring, &OsEntropy),
    };
    note_secret(token.expose());
    token.expose().to_owned()
}

pub(crate) fn with_wrong_tag(token: &str) -> String {
    format!("{}{}", &token[..token.len() - 1], if token.ends_with('a') { "b" } else { "a" })
}

/// Returns a trace: the steps that passed, then the failed one.
fn trace(passed: &[&str], failed: Option<&str>) -> Value {
    let passed = passed.iter().map(|step| json!({ "step": step, "passed": true }));
    passed.chain(failed.map(|step| json!({ "step": step, "passed": false }))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn valid_key_returns_exactly_the_documented_fields() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (id, token) = server.key(&["write", "read"]).await;
    let expected = json!({
        "valid": true,
        "organization_id": server.organization_id,
        "organization_slug": "acme",
        "api_key_id": id,
        "scopes": ["read", "write"],
        "budget_ok": true,
        "budget_reason": null,
        "transcript_access": false,
        "name": "write read",
        "metadata": {},
        "expires_at": null,
    });
    for body in [
        json!({ "key": token }),
        json!({ "key": token, "ip_address": "203.0.113.9" }),
        json!({ "key": token, "ip_address": null, "explain": null }),
        json!({ "key": token, "ip_address": "::ffff:203.0.113.9", "explain": false }),
    ] {
        assert_eq!(validated(&server, body).await, expected);
    }
}

/// Deployed data planes may read only the fields of the first version.
#[tokio::test(flavor = "multi_thread")]
async fn fields_of_first_version_are_unchanged() {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Verdict {
        valid: bool,
        organization_id: Option<u64>,
        organization_slug: Option<String>,
        api_key_id: Option<u64>,
        scopes: Option<Vec<String>>,
        budget_ok: Option<bool>,
        budget_reason: Option<String>,
        transcript_access: Option<bool>,
    }
    let server = TestServer::start().await;
    let (id, token) = server.key(&["read"]).await;
    let verdict =
        async |key: &str| serde_json::from_value::<Verdict>(validated(&server, json!({ "key": key })).await).unwrap();
    let valid = Verdict {
        valid: true,
        organization_id: Some(server.organization_id),
        organization_slug: Some("acme".to_owned()),
        api_key_id: Some(id),
        scopes: Some(vec!["read".to_owned()]),
        budget_ok: Some(true),
        budget_reason: None,
        transcript_access: Some(false),
    };
    assert_eq!(verdict(&token).await, valid);
    let invalid = Verdict {
        valid: false,
        organization_id: None,
        organization_slug: None,
        api_key_id: None,
        scopes: None,
        budget_ok: None,
        budget_reason: None,
        transcript_access: None,
    };
    assert_eq!(verdict("kt_live_").await, invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn name_metadata_and_expiry_follow_the_key() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let details = async |token: &str| {
        let answer = validated(&server, json!({ "key": token })).await;
        json!([answer["name"], answer["metadata"], answer["expires_at"]])
    };
    let end = "2027-01-31T12:00:00.000Z";
    let body = json!({ "name": "globex", "scopes": [], "metadata": { "customer": "42" }, "expires_at": end });
    let (id, token) = server.key_with(body).await;
    assert_eq!(details(&token).await, json!(["globex", { "customer": "42" }, end]));
    let path = format!("/v1/api_keys/{id}");
    let change = json!({ "name": "initech", "metadata": { "customer": "43" }, "expires_at": null });
    server.patch(&path, change).send().await.expect(200);
    assert_eq!(details(&token).await, json!(["initech", { "customer": "43" }, null]));
    let rotated = server.post(&format!("{path}/rotate"), json!({ "grace_seconds": 60 })).send().await.expect(201);
    assert_eq!(details(&token).await, json!(["initech", { "customer": "43" }, "2026-11-21T12:01:00.000Z"]));
    let successor = rotated["secret"].as_str().unwrap();
    assert_eq!(details(successor).await, json!(["initech", { "customer": "43" }, null]));
}

#[tokio::test(flavor = "multi_thread")]
async fn budget_and_transcript_access_are_current() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let patch = async |body: Value| {
        let path = format!("/v1/internal/organizations/{}", server.organization_id);
        server.service(Method::PATCH, &path).body(body).send().await.expect(200);
    };
    patch(json!({ "subscription_status": "past_due", "transcript_access": true })).await;
    let answer = validated(&server, json!({ "key": server.admin })).await;
    assert_eq!(
        [&answer["valid"], &answer["budget_ok"], &answer["budget_reason"], &answer["transcript_access"]],
        [&json!(true), &json!(false), &json!("subscription past_due"), &json!(true)]
    );
    patch(json!({ "subscription_status": "active", "transcript_access": false })).await;
    let answer = validated(&server, json!({ "key": server.admin })).await;
    assert_eq!([&answer["budget_ok"], &answer["transcript_access"]], [&json!(true), &json!(false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_of_invalid_key_requires_its_proof() {
    let (server, clock) = TestServer::start_at_noon().await;
    server.project("site").await;
    let session = server.session_token("site", json!({})).await;
    let (revoked_id, revoked) = server.key(&["read"]).await;
    let body = json!({ "name": "brief", "scopes": ["read"], "expires_at": "2026-11-21T12:00:10Z" });
    let (_, expired) = server.key_with(body).await;
    for token in [&revoked, &expired] {
        assert_eq!(validated(&server, json!({ "key": token })).await["valid"], true);
    }
    server.delete(&format!("/v1/api_keys/{revoked_id}")).send().await.expect(200);
    assert_eq!(validated(&server, json!({ "key": revoked })).await, invalid("revoked"), "immediately");
    clock.advance(Duration::from_secs(10));

    let service = server.runner.secrets.service_token.clone();
    let junk = [
        String::new(),
        "kt_live_".to_owned(),
        "\u{0}".to_owned(),
        "é".repeat(40),
        "a".repeat(60_000),
        format!("kt_live_{}", "0".repeat(32)),
        format!(" {}", server.admin),
        format!("Bearer {}", server.admin),
        server.admin[..39].to_owned(),
        with_wrong_tag(&server.admin),
        unproven(&server, None).await,
        unproven(&server, Some(&server.admin)).await,
        service.expose_secret().to_owned(),
        session,
        unproven(&server, Some(&expired)).await,
        unproven(&server, Some(&revoked)).await,
        with_wrong_tag(&expired),
        with_wrong_tag(&revoked),
    ];
    for token in junk {
        assert_eq!(validated(&server, json!({ "key": token })).await, not_found());
    }
    assert_eq!(validated(&server, json!({ "key": expired })).await, invalid("expired"));
    assert_eq!(validated(&server, json!({ "key": revoked })).await, invalid("revoked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn key_with_ranges_is_valid_only_inside() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let ranges = json!(["203.0.113.0/24", "2001:db8::/32"]);
    let (_, token) = server.key_with(json!({ "name": "here", "scopes": ["read"], "allowed_cidrs": ranges })).await;
    for inside in ["203.0.113.9", "::ffff:203.0.113.9", "2001:db8::1"] {
        let answer = validated(&server, json!({ "key": token, "ip_address": inside })).await;
        assert_eq!(answer["valid"], true, "{inside}");
    }
    for outside in [json!("203.0.114.9"), json!("127.0.0.1"), json!("2001:db9::1"), json!(null)] {
        let answer = validated(&server, json!({ "key": token, "ip_address": outside })).await;
        assert_eq!(answer, invalid("address_not_allowed"), "{outside}");
    }
    let answer = validated(&server, json!({ "key": token })).await;
    assert_eq!(answer, invalid("address_not_allowed"), "without an address");
    let stranger = json!({ "key": unproven(&server, Some(&token)).await, "ip_address": "203.0.114.9" });
    assert_eq!(validated(&server, stranger).await, not_found(), "without a proof");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_body_is_reported_and_not_repeated() {
    let server = TestServer::start().await;
    let secret = &server.admin;
    for (body, field) in [
        (json!({}), "key"),
        (json!({ "key": null }), "key"),
        (json!({ "key": [secret] }), "key"),
        (json!({ "key": 7 }), "key"),
        (json!({ "key": secret, "ip_address": secret }), "ip_address"),
        (json!({ "key": secret, "ip_address": "" }), "ip_address"),
        (json!({ "key": secret, "ip_address": "203.0.113.0/24" }), "ip_address"),
        (json!({ "key": secret, "ip_address": 7 }), "ip_address"),
        (json!({ "key": secret, "explain": "yes" }), "explain"),
        (json!({ "key": secret, "token": secret }), "token"),
        (json!([secret]), "body"),
    ] {
        let reply = validation(&server, body.clone()).send().await;
        assert!(!reply.text.contains(secret), "{body}");
        assert_eq!(reply.invalid_field(), field, "{body}");
    }
    let service = server.runner.secrets.service_token.expose_secret();
    let refusal = validation(&server, json!({ "key": secret, service: 1 })).send().await;
    assert!(!refusal.text.contains(service), "{}", refusal.text);
    assert_eq!(refusal.invalid_field(), "[redacted]");
    validation(&server, json!({})).raw_body("{").send().await.refused(400);
    validation(&server, json!({})).raw_body(" ".repeat(65_537)).send().await.refused(413);
}

/// Asserts a 503 with `Retry-After`.
pub(crate) async fn unavailable(request: Request) {
    no_verdict(request, 503, "Service unavailable").await;
}

async fn no_verdict(request: Request, status: u16, detail: &str) {
    let reply: Reply = timeout(WAIT_TIMEOUT, request.send()).await.expect("an answer");
    assert_eq!(reply.headers["retry-after"], "1", "{}", reply.text);
    assert_eq!(reply.refused(status), json!({ "detail": detail }));
}

#[tokio::test(flavor = "multi_thread")]
async fn store_fault_returns_503_instead_of_verdict() {
    let (server, proxy, _clock) = at_noon().await;
    let faults = [StoreFault::Throttle, StoreFault::ServerError, StoreFault::Close, StoreFault::DropResponse]
        .into_iter()
        .chain(REFUSALS);
    let faults = faults.flat_map(|fault| ["Query", "BatchGetItem"].map(|operation| (operation, fault)));
    for (operation, fault) in faults.chain([("BatchGetItem", StoreFault::LeaveUnread)]) {
        let (_, token) = server.key(&["read"]).await;
        proxy.fail(operation, ALWAYS, fault);
        unavailable(validation(&server, json!({ "key": token }))).await;
        unavailable(validation(&server, json!({ "key": token, "explain": true }))).await;
        proxy.heal();
        assert_eq!(validated(&server, json!({ "key": token })).await["valid"], true, "{fault:?} {operation}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_item_returns_503_instead_of_verdict() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let organization = server.organization_id;
    for (table, attribute, value) in [
        ("karta-credentials", "organization_id", json!({ "S": "acme" })),
        ("karta-credentials", "digest", json!({ "S": "no digest" })),
        ("karta", "scopes", json!({ "N": "7" })),
        // The organization's item comes last, because no request succeeds after it.
        ("karta", "plan", json!({ "N": "7" })),
    ] {
        let (id, token) = server.key(&["read"]).await;
        let key = match (table, attribute) {
            ("karta-credentials", _) => (format!("KP#{}", &token[..14]), format!("K#{id:016}")),
            (_, "plan") => (format!("ORG#{organization}"), "META".to_owned()),
            _ => (format!("KEY#{organization}"), format!("{id:016}")),
        };
        let update = json!({
            "TableName": table,
            "Key": { "pk": { "S": key.0 }, "sk": { "S": key.1 } },
            "UpdateExpression": "SET #attribute = :value",
            "ConditionExpression": "attribute_exists(pk)",
            "ExpressionAttributeNames": { "#attribute": attribute },
            "ExpressionAttributeValues": { ":value": value },
        });
        server.dynamodb("UpdateItem", update).await;
        unavailable(validation(&server, json!({ "key": token }))).await;
        unavailable(server.get("/v1/whoami").bearer(&token)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_state_returns_503_instead_of_verdict() {
    let server = TestServer::start().await;
    let (id, token) = server.key(&["read"]).await;
    let organization = server.organization_id;
    for (pk, sk) in
        [(format!("KEY#{organization}"), format!("{id:016}")), (format!("ORG#{organization}"), "META".to_owned())]
    {
        let key = json!({ "pk": { "S": pk }, "sk": { "S": sk } });
        server.dynamodb("DeleteItem", json!({ "TableName": "karta", "Key": key })).await;
        unavailable(validation(&server, json!({ "key": token }))).await;
        unavailable(validation(&server, json!({ "key": token, "explain": true }))).await;
        unavailable(server.get("/v1/whoami").bearer(&token)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_store_returns_504_before_client_timeout() {
    let data_plane_waits = Duration::from_secs(5);
    assert!(InternalKeysValidate::DEADLINE < data_plane_waits);
    let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
    let options = Options { deadlines: Deadlines::DEPLOYED, ..options(Arc::new(clock)) };
    let (server, proxy) = FaultProxy::start_as(options).await;
    let known = server.admin.clone();
    validated(&server, json!({ "key": known })).await;
    let (_, unknown) = server.key(&["read"]).await;
    for operation in ["Query", "BatchGetItem"] {
        proxy.fail(operation, ALWAYS, StoreFault::Hang);
    }
    tokio::join!(
        no_verdict(validation(&server, json!({ "key": known })), 504, "Timed out"),
        no_verdict(validation(&server, json!({ "key": unknown })), 504, "Timed out"),
    );
    let junk = validated(&server, json!({ "key": with_wrong_tag(&server.admin) })).await;
    assert_eq!(junk, not_found(), "a wrong tag is rejected without the store");
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_verdict_is_not_returned() {
    let (server, proxy, clock) = at_noon().await;
    validated(&server, json!({ "key": server.admin })).await;
    for (slow_reads, reads, status) in [
        (&[500][..], 1, 200),
        // The state is read again.
        (&[501][..], 2, 200),
        (&[501, 500][..], 2, 200),
        (&[501, 501][..], 2, 503),
    ] {
        proxy.forget();
        proxy.fail("BatchGetItem", slow_reads.len(), StoreFault::HoldResponse);
        let response = tokio::spawn(validation(&server, json!({ "key": server.admin })).send());
        for read in slow_reads {
            proxy.held().await;
            clock.advance(Duration::from_millis(*read));
            proxy.release();
        }
        let reply = response.await.unwrap();
        assert_eq!(reply.status.as_u16(), status, "after {slow_reads:?} ms: {}", reply.text);
        assert_eq!(proxy.seen_of("BatchGetItem").len(), reads, "after {slow_reads:?} ms");
        proxy.heal();
    }
    assert_eq!(validated(&server, json!({ "key": server.admin })).await["valid"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn proof_is_cached_and_state_is_not() {
    let (server, proxy, _clock) = at_noon().await;
    let first: Vec<_> =
        (0..32).map(|_| tokio::spawn(validation(&server, json!({ "key": server.admin })).send())).collect();
    for reply in first {
        assert_eq!(reply.await.unwrap().expect(200)["valid"], true);
    }
    validated(&server, json!({ "key": server.admin })).await;
    assert_eq!((proxy.seen_of("Query").len(), proxy.seen_of("BatchGetItem").len()), (1, 33));
    assert!(proxy.seen().iter().all(crate::fault_proxy::Seen::is_consistent));
}

#[tokio::test(flavor = "multi_thread")]
async fn explanation_lists_steps_up_to_the_failure() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (revoked_id, revoked) = server.key(&["read"]).await;
    server.delete(&format!("/v1/api_keys/{revoked_id}")).send().await.expect(200);
    let brief = json!({ "name": "brief", "scopes": ["read"], "expires_at": "2026-11-21T12:00:10Z" });
    let (_, expired) = server.key_with(brief).await;
    clock.advance(Duration::from_secs(10));
    let fenced = json!({ "name": "here", "scopes": ["read"], "allowed_cidrs": ["203.0.113.0/24"] });
    let (_, fenced) = server.key_with(fenced).await;
    let steps = ["shape", "tag", "candidates", "proof", "revocation", "expiry", "cidr", "budget"];
    for (token, passed, failed, code) in [
        ("junk".to_owned(), 0, Some("shape"), "not_found"),
        (with_wrong_tag(&server.admin), 1, Some("tag"), "not_found"),
        (unproven(&server, None).await, 3, Some("proof"), "not_found"),
        (unproven(&server, Some(&server.admin)).await, 3, Some("proof"), "not_found"),
        (revoked, 4, Some("revocation"), "revoked"),
        (expired, 5, Some("expiry"), "expired"),
        (fenced, 6, Some("cidr"), "address_not_allowed"),
    ] {
        let answer = validated(&server, json!({ "key": token, "explain": true })).await;
        assert_eq!(answer, json!({ "valid": false, "code": code, "trace": trace(&steps[..passed], failed) }));
    }
    let valid = validated(&server, json!({ "key": server.admin, "explain": true })).await;
    assert_eq!((&valid["valid"], &valid["trace"]), (&json!(true), &trace(&steps, None)));
    server.set_subscription("unpaid").await;
    let broke = validated(&server, json!({ "key": server.admin, "explain": true })).await;
    assert_eq!((&broke["valid"], &broke["trace"]), (&json!(true), &trace(&steps[..7], Some("budget"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn explanation_without_proof_hides_the_key_state() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let (revoked_id, revoked) = server.key(&["read"]).await;
    server.delete(&format!("/v1/api_keys/{revoked_id}")).send().await.expect(200);
    let mut answers = Vec::new();
    for like in [None, Some(server.admin.as_str()), Some(revoked.as_str())] {
        let token = unproven(&server, like).await;
        for _ in 0..2 {
            let reply = validation(&server, json!({ "key": token, "explain": true })).send().await;
            answers.push(reply.text.clone());
            reply.expect(200);
        }
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}

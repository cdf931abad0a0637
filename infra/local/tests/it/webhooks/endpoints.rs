//! Webhook endpoints: creation, reads, lists, updates and deletion.

use std::{sync::Arc, time::Duration};

use http::Method;
use karta_shared::clock::{ManualClock, SystemClock};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{ROUTE, Reaction, Receiver, URL, WebhookServer, counted, deliveries, endpoint, on_loopback};
use crate::{
    harness::{Reply, TestServer, note_secret, until},
    invariants::Tables,
};

/// Creates an endpoint for all event types and returns its resource.
async fn new_endpoint(server: &TestServer) -> Value {
    let created = server.post(ROUTE, json!({ "url": URL, "event_types": ["*"] })).send().await.expect(201);
    created["webhook_endpoint"].clone()
}

fn path(endpoint: &Value) -> String {
    format!("{ROUTE}/{}", endpoint["id"])
}

fn validation_error(reply: Reply) -> (String, String) {
    let body = reply.refused(422);
    assert_eq!(body["error"], "validation_failed", "{body}");
    let text = |field: &str| body[field].as_str().unwrap().to_owned();
    (text("field"), text("message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_is_shown_only_at_creation() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let body = json!({ "url": URL, "event_types": ["ping", "api_key.created", "ping"], "description": "Billing" });
    let created = server.post(ROUTE, body).send().await.expect(201);
    let secret = created["secret"].as_str().unwrap();
    assert!(secret.starts_with("whsec_") && secret.len() == 50, "32 bytes in base64");
    insta::assert_json_snapshot!(created, { ".webhook_endpoint.id" => "[id]", ".secret" => "[secret]" }, @r#"
    {
      "secret": "[secret]",
      "webhook_endpoint": {
        "consecutive_failures": 0,
        "created_at": "2026-11-21T12:00:00.000Z",
        "description": "Billing",
        "disabled_reason": null,
        "enabled": true,
        "event_types": [
          "api_key.created",
          "ping"
        ],
        "id": "[id]",
        "url": "https://hooks.example.com/T000?team=7"
      }
    }
    "#);
    let id = created["webhook_endpoint"]["id"].as_u64().unwrap();
    assert!((1..1 << 53).contains(&id));
    let mut shown = json!({ "webhook_endpoint": created["webhook_endpoint"] });
    let path = format!("{ROUTE}/{id}");
    assert_eq!(server.get(&path).send().await.expect(200), shown);
    let reader = server.key(&["read"]).await.1;
    shown["webhook_endpoint"]["url"] = json!("https://hooks.example.com/T000?redacted");
    assert_eq!(server.get(&path).bearer(&reader).send().await.expect(200), shown);
    let bare = new_endpoint(&server).await;
    assert_eq!((&bare["description"], &bare["event_types"]), (&Value::Null, &json!(["*"])));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_missing_field_is_named() {
    let server = TestServer::start().await;
    for (body, field, expected) in [
        (json!({}), "url", "is required"),
        (json!({ "event_types": ["*"] }), "url", "is required"),
        (json!({ "url": null, "event_types": ["*"] }), "url", "must be a string"),
        (json!({ "url": [URL], "event_types": ["*"] }), "url", "must be a string"),
        (json!({ "url": URL }), "event_types", "is required"),
        (json!({ "url": URL, "event_types": null }), "event_types", "must be a list"),
        (json!({ "url": URL, "event_types": "*" }), "event_types", "must be a list"),
        (json!({ "url": URL, "event_types": [1] }), "event_types[0]", "must be a string"),
        (json!({ "url": URL, "event_types": [] }), "event_types", "must contain 1 to 50 event types, or *"),
        (json!({ "url": URL, "event_types": vec!["*"; 51] }), "event_types", "must contain 1 to 50 event types, or *"),
        (
            json!({ "url": URL, "event_types": ["api_key.*"] }),
            "event_types[0]",
            "invoice.payment_failed, ping, or * for",
        ),
        (json!({ "url": URL, "event_types": ["*", "nothing"] }), "event_types[1]", "must be one of api_key.created"),
        (
            json!({ "url": URL, "event_types": ["*"], "description": "" }),
            "description",
            "must be 1 to 100 characters that are not all blank, or null for none",
        ),
        (json!({ "url": URL, "event_types": ["*"], "description": "é".repeat(101) }), "description", "at most 100"),
        (json!({ "url": URL, "event_types": ["*"], "description": "a\nb" }), "description", "control or invisible"),
        (
            json!({ "url": URL, "event_types": ["*"], "enabled": true }),
            "enabled",
            "use one of url, event_types, description",
        ),
        (json!({ "url": URL, "event_types": ["*"], "secret": "whsec_x" }), "secret", "is not a field here"),
        (json!([URL]), "body", "must be a JSON object"),
    ] {
        let (named, message) = validation_error(server.post(ROUTE, body.clone()).send().await);
        assert_eq!(named, field, "{body}: {message}");
        assert!(message.contains(expected), "{body}: {message}");
    }
    assert_eq!(server.post(ROUTE, json!({})).raw_body("{").send().await.refused(400)["error"], "malformed_json");
    let large = server.post(ROUTE, json!({})).raw_body(" ".repeat(65_537)).send().await;
    assert_eq!(large.refused(413)["error"], "body_too_large");
    assert_eq!(counted(&server).await, (0, 0));
    assert!(server.audited("webhook_endpoint.created").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn non_public_url_is_refused_and_not_repeated() {
    let server = TestServer::start().await;
    let kept = path(&new_endpoint(&server).await);
    for (url, expected) in [
        ("", "must start with https://"),
        ("http://hooks.example.com/s3cret", "must start with https://"),
        ("ftp://hooks.example.com/s3cret", "must start with https://"),
        ("https://hooks.example.com:8443/s3cret", "must use the default port 443"),
        ("https://user:s3cret@hooks.example.com/", "must not contain a user name or password"),
        ("https://hooks.example.com/#s3cret", "must not have a fragment"),
        ("https://127.0.0.1/s3cret", "not an IP address in any notation"),
        ("https://[::1]/s3cret", "not an IP address in any notation"),
        ("https://169.254.169.254/s3cret", "not an IP address in any notation"),
        ("https://0x7f000001/s3cret", "not an IP address in any notation"),
        ("https://localhost/s3cret", "must have a public DNS name"),
        ("https://db.internal/s3cret", "must have a public DNS name"),
        ("https://xn--a.com/s3cret", "must be the Punycode of an international name"),
        ("http://127.0.0.1:9/s3cret", "must start with https://"),
        ("http://localhost:9/s3cret", "must start with https://"),
        ("https://hooks.example.com/a s3cret", "printable ASCII"),
        ("https://hooks.example.com\\@127.0.0.1/s3cret", "backslashes"),
        (&format!("https://hooks.example.com/s3cret{}", "a".repeat(2_048)), "at most 2048"),
    ] {
        for reply in [
            server.post(ROUTE, json!({ "url": url, "event_types": ["*"] })).send().await,
            server.patch(&kept, json!({ "url": url })).send().await,
        ] {
            let (field, message) = validation_error(reply);
            assert_eq!(field, "url", "{url}");
            assert!(message.contains(expected) && !message.contains("s3cret"), "{url}: {message}");
        }
    }
    assert_eq!(counted(&server).await, (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_url_requires_the_option() {
    let server = TestServer::start_as(on_loopback(Arc::new(SystemClock)), None).await;
    for url in ["http://127.0.0.1:9/hooks", "http://localhost:9", "https://[::1]:8443/?x=1", URL] {
        let created = server.post(ROUTE, json!({ "url": url, "event_types": ["*"] })).send().await.expect(201);
        assert_eq!(created["webhook_endpoint"]["url"], url);
    }
    for url in ["http://10.0.0.1/", "http://hooks.example.com/", "https://169.254.169.254/", "http://0.0.0.0:9/"] {
        let refused = server.post(ROUTE, json!({ "url": url, "event_types": ["*"] })).send().await;
        assert_eq!(refused.invalid_field(), "url", "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_host_is_refused_as_receiver() {
    let server = TestServer::start().await;
    let kept = path(&new_endpoint(&server).await);
    let (ours, body) = ("api.karta-test.com", |url: &str| json!({ "url": url, "event_types": ["*"] }));
    for url in ["https://api.karta-test.com/v1/api_keys", "https://API.Karta-Test.com:443?x=1"] {
        for host in [ours, "api.karta-test.com:8787", "API.karta-test.com.", "api.karta-test.com.:443"] {
            for (request, body) in [
                (server.request(Method::POST, ROUTE), body(url)),
                (server.patch(&kept, json!({})), json!({ "url": url })),
            ] {
                let (field, message) = validation_error(request.header("host", host).body(body).send().await);
                assert_eq!((&*field, &*message), ("url", "url must not point to this service"), "{host}");
            }
        }
    }
    // Only API Gateway determines the host of a request.
    for header in ["x-forwarded-host", "forwarded", "x-forwarded-server"] {
        let value = if header == "forwarded" { format!("host={ours}") } else { ours.to_owned() };
        let made = server.post(ROUTE, body("https://api.karta-test.com/")).header(header, value).send().await;
        made.expect(201);
    }
    server.post(ROUTE, body("https://x.api.karta-test.com/")).header("host", ours).send().await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn patch_keeps_absent_fields_and_null_clears() {
    let (server, clock) = TestServer::start_at_noon().await;
    let body = json!({ "url": "https://hooks.example.com/", "event_types": ["ping"], "description": "Billing" });
    let mut endpoint = server.post(ROUTE, body).send().await.expect(201)["webhook_endpoint"].take();
    let path = path(&endpoint);
    for (patch, changed) in [
        (json!({}), json!({})),
        (json!({ "description": "Ledger" }), json!({ "description": "Ledger" })),
        (json!({ "description": "Ledger" }), json!({})),
        (json!({ "description": null }), json!({ "description": null })),
        (
            json!({ "url": "https://hooks.example.org/", "event_types": ["*", "ping"] }),
            json!({ "url": "https://hooks.example.org/", "event_types": ["*", "ping"] }),
        ),
        (json!({ "enabled": false }), json!({ "enabled": false, "disabled_reason": "requested" })),
        (json!({ "enabled": false }), json!({})),
        (json!({ "enabled": true }), json!({ "enabled": true, "disabled_reason": null })),
        (json!({ "enabled": true }), json!({})),
    ] {
        clock.advance(Duration::from_millis(1));
        let audited = server.audited("webhook_endpoint.updated").await.len();
        let before = endpoint.clone();
        endpoint.as_object_mut().unwrap().extend(changed.as_object().unwrap().clone());
        let shown = json!({ "webhook_endpoint": endpoint });
        assert_eq!(server.patch(&path, patch.clone()).send().await.expect(200), shown, "{patch}");
        assert_eq!(server.get(&path).send().await.expect(200), shown, "{patch}");
        let events = server.audited("webhook_endpoint.updated").await.split_off(audited);
        let fields = changed.as_object().unwrap().iter();
        let changes: Value = fields
            .map(|(field, after)| (field.clone(), json!({ "before": before[field], "after": after })))
            .collect::<serde_json::Map<_, _>>()
            .into();
        assert_eq!(events.len(), usize::from(changes != json!({})), "{patch}: a patch without changes is not audited");
        assert!(events.iter().all(|event| event["changes"] == changes), "{events:?}");
    }
    for (patch, field) in [
        (json!({ "url": null }), "url"),
        (json!({ "event_types": null }), "event_types"),
        (json!({ "event_types": [] }), "event_types"),
        (json!({ "enabled": null }), "enabled"),
        (json!({ "enabled": "yes" }), "enabled"),
        (json!({ "description": 1 }), "description"),
        (json!({ "disabled_reason": null }), "disabled_reason"),
        (json!({ "consecutive_failures": 0 }), "consecutive_failures"),
        (json!({ "id": 1 }), "id"),
    ] {
        assert_eq!(server.patch(&path, patch.clone()).send().await.invalid_field(), field, "{patch}");
    }
    assert_eq!(server.get(&path).send().await.expect(200)["webhook_endpoint"], endpoint);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_endpoint_returns_404_on_every_route() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let endpoint = new_endpoint(&server).await;
    let other = (endpoint["id"].as_u64().unwrap() ^ 1).to_string();
    let since = json!({ "since": "2026-11-21T11:00:00Z" });
    for id in [&*other, "0", "-1", "1.5", "01", "x", "9007199254740992", "%20", "COUNT"] {
        for (method, rest, body) in [
            (Method::GET, "", None),
            (Method::PATCH, "", Some(json!({ "enabled": false }))),
            (Method::DELETE, "", None),
            (Method::POST, "/rotate_secret", None),
            (Method::POST, "/test", None),
            (Method::POST, "/recover", Some(since.clone())),
            (Method::GET, "/deliveries", None),
            (Method::POST, "/deliveries/1/replay", None),
        ] {
            let request = server.request(method.clone(), &format!("{ROUTE}/{id}{rest}"));
            let reply = match body {
                Some(body) => request.body(body).send().await,
                None => request.send().await,
            };
            assert_eq!(reply.refused(404), json!({ "detail": "Not found" }), "{method} {id}{rest}");
        }
    }
    for delivery in ["1", "0", "x", "9007199254740992"] {
        let replay = format!("{}/deliveries/{delivery}/replay", path(&endpoint));
        server.request(Method::POST, &replay).send().await.refused(404);
    }
    let events = server.audit_events().await;
    assert!(events.iter().all(|event| event["action"] != "webhook_endpoint.updated"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn paging_visits_every_endpoint_once_newest_first() {
    let (server, clock) = TestServer::start_at_noon().await;
    assert_eq!(server.get(ROUTE).send().await.expect(200), json!({ "webhook_endpoints": [], "next_cursor": null }));
    let mut newest_first = Vec::new();
    for _ in 0..7 {
        clock.advance(Duration::from_millis(1));
        newest_first.insert(0, new_endpoint(&server).await);
    }
    let page = server.get(ROUTE).send().await.expect(200);
    assert_eq!(page, json!({ "webhook_endpoints": newest_first, "next_cursor": null }));
    let (mut visited, mut sizes, mut query) = (Vec::new(), Vec::new(), "limit=3".to_owned());
    loop {
        let page = server.get(&format!("{ROUTE}?{query}")).send().await.expect(200);
        let mut endpoints = page["webhook_endpoints"].as_array().unwrap().clone();
        sizes.push(endpoints.len());
        visited.append(&mut endpoints);
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("limit=3&cursor={cursor}");
    }
    assert_eq!((visited, sizes), (newest_first.clone(), vec![3, 3, 1]));

    let page = server.get(&format!("{ROUTE}?limit=1")).send().await.expect(200);
    let cursor = page["next_cursor"].as_str().unwrap();
    let keys = {
        server.key(&["read"]).await;
        server.get("/v1/api_keys?limit=1").send().await.expect(200)
    };
    let of_keys = keys["next_cursor"].as_str().unwrap();
    for (query, field) in [
        ("limit=0".to_owned(), "limit"),
        ("limit=101".to_owned(), "limit"),
        ("status=enabled".to_owned(), "status"),
        ("cursor=".to_owned(), "cursor"),
        (format!("cursor={cursor}x"), "cursor"),
        (format!("cursor={of_keys}"), "cursor"),
    ] {
        assert_eq!(server.get(&format!("{ROUTE}?{query}")).send().await.invalid_field(), field, "{query}");
        let deliveries = format!("{}/deliveries?{query}", path(&newest_first[0]));
        assert_eq!(server.get(&deliveries).send().await.invalid_field(), field, "{deliveries}");
    }
    let of_endpoints = format!("{}/deliveries?cursor={cursor}", path(&newest_first[0]));
    assert_eq!(server.get(&of_endpoints).send().await.invalid_field(), "cursor", "a cursor of another list");
    let (_, token) = server.another_organization("other").await;
    let foreign = server.get(&format!("{ROUTE}?cursor={cursor}")).bearer(&token);
    assert_eq!(foreign.send().await.invalid_field(), "cursor", "a cursor of another organization");
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_removes_the_endpoint_and_its_secrets() {
    let server = TestServer::start().await;
    let endpoint = new_endpoint(&server).await;
    let path = path(&endpoint);
    let deleted = server.delete(&path).send().await;
    assert_eq!((deleted.status.as_u16(), &*deleted.text), (204, ""));
    assert!(!deleted.headers.contains_key("content-type"), "{:?}", deleted.headers);
    assert!(deleted.headers.contains_key("x-request-id"));
    server.delete(&path).send().await.refused(404);
    server.get(&path).send().await.refused(404);
    server.get(&format!("{path}/deliveries")).send().await.refused(404);
    assert_eq!(counted(&server).await, (0, 0));
    assert!(server.items(&format!("WHS#{}", server.organization_id)).await.is_empty());
    let audited = server.audited("webhook_endpoint.deleted").await;
    assert_eq!(audited.len(), 1);
    assert_eq!(audited[0]["resource"], json!({ "kind": "webhook_endpoint", "id": endpoint["id"] }));
    assert_eq!(
        audited[0]["changes"]["url"],
        json!({ "before": "https://hooks.example.com/T000?redacted", "after": null })
    );
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_admins_see_the_query_of_a_url() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let hidden = json!("https://hooks.example.com/T000?redacted");
    let endpoint = new_endpoint(&server).await;
    let path = path(&endpoint);
    assert_eq!(endpoint["url"], URL);
    for scopes in [&["read"][..], &["read", "write"], &["read", "admin"]] {
        let (_, token) = server.key(scopes).await;
        let shown = if scopes.contains(&"admin") { json!(URL) } else { hidden.clone() };
        let one = server.get(&path).bearer(&token).send().await.expect(200);
        let all = server.get(ROUTE).bearer(&token).send().await.expect(200);
        assert_eq!(
            (&one["webhook_endpoint"]["url"], &all["webhook_endpoints"][0]["url"]),
            (&shown, &shown),
            "{scopes:?}"
        );
    }
    // A new query changes the URL, but both URLs look the same when they are redacted.
    let moved = json!({ "url": "HTTPS://Hooks.Example.com/T000?team=8" });
    let changed = server.patch(&path, moved.clone()).send().await.expect(200);
    assert_eq!(changed["webhook_endpoint"]["url"], "https://hooks.example.com/T000?team=8");
    server.patch(&path, moved).send().await.expect(200);
    let audited = server.audited("webhook_endpoint.updated").await;
    assert_eq!(audited.len(), 1, "the same URL again changes nothing");
    assert_eq!(audited[0]["changes"], json!({ "url": { "before": hidden, "after": hidden } }));
    server.post(&format!("{path}/test"), json!({})).send().await.expect(202);
    server.delete(&path).send().await.expect(204);
    let records = Value::from([server.audit_events().await, server.outbox("EVT").await].concat()).to_string();
    assert!(records.contains("T000?redacted") && !records.contains("team="), "{records}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_discards_pending_deliveries() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    receiver.react(Reaction::Status(500));
    let (id, _) = endpoint(server, &receiver.url, &["*"]).await;
    server.key(&["read"]).await;
    webhooks.deliver().await;
    assert_eq!(receiver.received().len(), 1);
    // One delivery waits for its retry, and one event waits for its fan-out.
    server.key(&["read"]).await;
    let deleted = server.delete(&format!("{ROUTE}/{id}")).send().await;
    assert_eq!(deleted.status.as_u16(), 204, "{}", deleted.text);
    for _ in 0..3 {
        clock.advance(Duration::from_hours(1));
        webhooks.deliver().await;
    }
    assert_eq!(receiver.received().len(), 1);
    assert!(server.outbox("WHQ").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_ends_a_leased_queue() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    receiver.react(Reaction::Held);
    let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
    for _ in 0..12 {
        server.key(&["read"]).await;
    }
    webhooks.work().await;
    // An endpoint gets five attempts at once; all of them must have arrived before the count is
    // taken.
    receiver.wait_for(5).await;
    assert_eq!(server.delete(&format!("{ROUTE}/{id}")).send().await.status.as_u16(), 204);
    receiver.react(Reaction::Status(200));
    receiver.release();
    until("the end of the queue", async || server.outbox("WHQ").await.is_empty()).await;
    server.key(&["read"]).await;
    webhooks.deliver().await;
    assert_eq!(receiver.received().len(), 5, "only the attempts in progress");
    assert!(server.outbox("WHQ").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_limit_holds_under_parallel_creation() {
    let server = TestServer::start().await;
    let (_, theirs) = server.another_organization("other").await;
    let mut requests = JoinSet::new();
    for _ in 0..30 {
        requests.spawn(server.post(ROUTE, json!({ "url": URL, "event_types": ["*"] })).send());
    }
    let mut ids = Vec::new();
    for reply in requests.join_all().await {
        if reply.status == 201 {
            ids.push(reply.json["webhook_endpoint"]["id"].as_u64().unwrap());
            continue;
        }
        let refusal = reply.refused(409);
        assert_eq!(refusal["error"], "webhook_endpoint_limit");
        assert!(refusal["message"].as_str().unwrap().contains("Delete one first"), "{refusal}");
    }
    assert_eq!(ids.len(), 20);
    assert_eq!(counted(&server).await, (20, 20));
    let listed = server.get(ROUTE).send().await.expect(200);
    assert_eq!(listed["webhook_endpoints"].as_array().unwrap().len(), 20);

    // Two parallel requests delete each of these.
    let mut requests = JoinSet::new();
    for id in ids.iter().take(5).chain(ids.iter().take(5)) {
        requests.spawn(server.delete(&format!("{ROUTE}/{id}")).send());
    }
    let mut statuses: Vec<_> = requests.join_all().await.iter().map(|reply| reply.status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [[204; 5], [404; 5]].concat());
    assert_eq!(counted(&server).await, (15, 15));
    let mut requests = JoinSet::new();
    for _ in 0..8 {
        requests.spawn(server.post(ROUTE, json!({ "url": URL, "event_types": ["*"] })).send());
    }
    let made = requests.join_all().await.iter().filter(|reply| reply.status == 201).count();
    assert_eq!((made, counted(&server).await), (5, (20, 20)));
    let others = server.post(ROUTE, json!({ "url": URL, "event_types": ["*"] })).bearer(&theirs);
    others.send().await.expect(201);
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_update_and_disabling_both_apply() {
    for round in 0..6 {
        let (webhooks, _clock) = WebhookServer::start().await;
        let server = &webhooks.server;
        let receiver = Receiver::start().await;
        receiver.react(Reaction::Status(410));
        let (id, _) = endpoint(server, &receiver.url, &["api_key.created"]).await;
        server.key(&["read"]).await;
        let path = format!("{ROUTE}/{id}");
        webhooks.work().await;
        let mut patches = JoinSet::new();
        for at in 0..6 {
            let body = json!({ "description": format!("{round}.{at}") });
            patches.spawn(server.patch(&path, body).send());
        }
        for reply in patches.join_all().await {
            reply.expect(200);
        }
        webhooks.settled().await;
        let shown = server.get(&path).send().await.expect(200)["webhook_endpoint"].take();
        assert_eq!((&shown["enabled"], &shown["disabled_reason"]), (&json!(false), &json!("gone")), "{shown}");
        assert!(shown["description"].as_str().unwrap().starts_with(&format!("{round}.")), "{shown}");
        assert_eq!(server.audited("webhook_endpoint.disabled").await.len(), 1);
        assert_eq!(server.audited("webhook_endpoint.updated").await.len(), 6);
        assert_eq!(deliveries(server, id).await[0]["attempts"].as_array().unwrap().len(), 1);
        Tables::new(server).await.assert_consistent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_action_is_audited_without_secrets() {
    let (webhooks, clock) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (id, first) = endpoint(server, &receiver.url, &["*"]).await;
    let path = format!("{ROUTE}/{id}");
    let send = async |rest: &str| server.request(Method::POST, &format!("{path}/{rest}")).send().await;
    let second = send("rotate_secret").await.expect(201)["secret"].as_str().unwrap().to_owned();
    note_secret(&second);
    let delivery = send("test").await.expect(202)["delivery"]["id"].clone();
    webhooks.deliver().await;
    send(&format!("deliveries/{delivery}/replay")).await.expect(202);
    clock.advance(Duration::from_secs(1));
    let since = json!({ "since": "2026-11-21T12:00:00Z" });
    server.post(&format!("{path}/recover"), since).send().await.expect(202);
    server.patch(&path, json!({ "enabled": false })).send().await.expect(200);
    assert_eq!(server.delete(&path).send().await.status.as_u16(), 204);

    let events = server.audit_events().await;
    let ours = events.iter().filter(|event| event["action"].as_str().unwrap().starts_with("webhook_"));
    let mut audited: Vec<_> = ours
        .map(|event| {
            assert_eq!(event["actor"]["kind"], "api_key");
            (event["action"].as_str().unwrap(), event["resource"].clone(), event["changes"].clone())
        })
        .collect();
    audited.sort_by_key(|(action, ..)| *action);
    let on = |action, changes| (action, json!({ "kind": "webhook_endpoint", "id": id }), changes);
    let set = |before: Value, after: Value| json!({ "before": before, "after": after });
    let all = |flip: &dyn Fn(Value, Value) -> Value, enabled: bool, reason: Value| {
        json!({
            "url": flip(Value::Null, json!(receiver.url.replace("team=7", "redacted"))),
            "description": flip(Value::Null, Value::Null),
            "event_types": flip(Value::Null, json!(["*"])),
            "enabled": flip(Value::Null, json!(enabled)),
            "disabled_reason": flip(Value::Null, reason),
        })
    };
    let disabled = json!({
        "enabled": set(json!(true), json!(false)),
        "disabled_reason": set(Value::Null, json!("requested")),
    });
    assert_eq!(
        audited,
        [
            ("webhook_delivery.replayed", json!({ "kind": "webhook_delivery", "id": delivery }), json!({})),
            on("webhook_endpoint.created", all(&set, true, Value::Null)),
            on("webhook_endpoint.deleted", all(&|nothing, before| set(before, nothing), false, json!("requested"))),
            on("webhook_endpoint.recovered", json!({ "since": set(Value::Null, json!("2026-11-21T12:00:00.000Z")) })),
            on("webhook_endpoint.secret_rotated", json!({})),
            on("webhook_endpoint.tested", json!({})),
            on("webhook_endpoint.updated", disabled),
        ]
    );
    let text = Value::from(server.stored().await).to_string();
    for secret in [first, second] {
        assert!(!text.contains(&secret[6..]), "a secret is stored in plain text");
    }
    let listed = server.get("/v1/audit_events?action=webhook_endpoint.created").send().await.expect(200);
    assert_eq!(listed["audit_events"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn demoted_admin_is_refused_despite_gateway_cache() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let endpoint = new_endpoint(&server).await;
    let path = path(&endpoint);
    let (id, token) = server.key(&["admin"]).await;
    server.delete(&format!("{ROUTE}/1")).bearer(&token).send().await.refused(404);
    server.patch(&format!("/v1/api_keys/{id}"), json!({ "scopes": ["read"] })).send().await.expect(200);
    let since = json!({ "since": "2026-11-21T11:00:00Z" });
    for request in [
        server.post(ROUTE, json!({ "url": URL, "event_types": ["*"] })),
        server.patch(&path, json!({ "url": "https://evil.example.com/" })),
        server.request(Method::POST, &format!("{path}/rotate_secret")),
        server.request(Method::POST, &format!("{path}/test")),
        server.post(&format!("{path}/recover"), since),
        server.request(Method::POST, &format!("{path}/deliveries/1/replay")),
        server.delete(&path),
    ] {
        assert_eq!(request.bearer(&token).send().await.forbidden(), "missing scope: admin");
    }
    assert_eq!(server.get(&path).send().await.expect(200)["webhook_endpoint"], endpoint);
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_endpoint_and_deliveries_return_404() {
    let (webhooks, _clock): (_, Arc<ManualClock>) = WebhookServer::start().await;
    let server = &webhooks.server;
    let receiver = Receiver::start().await;
    let (theirs, _) = endpoint(server, &receiver.url, &["*"]).await;
    let ping = server.request(Method::POST, &format!("{ROUTE}/{theirs}/test")).send().await.expect(202);
    webhooks.deliver().await;
    let delivery = &ping["delivery"]["id"];
    let (_, stranger) = server.another_organization("other").await;
    let ours =
        server.post(ROUTE, json!({ "url": URL, "event_types": ["*"] })).bearer(&stranger).send().await.expect(201);
    let ours = &ours["webhook_endpoint"]["id"];
    let since = json!({ "since": "2026-11-21T11:00:00Z" });
    for request in [
        server.get(&format!("{ROUTE}/{theirs}/deliveries")),
        server.request(Method::POST, &format!("{ROUTE}/{theirs}/deliveries/{delivery}/replay")),
        // The stranger's own endpoint gives no access to a delivery of another endpoint.
        server.request(Method::POST, &format!("{ROUTE}/{ours}/deliveries/{delivery}/replay")),
        server.post(&format!("{ROUTE}/{theirs}/recover"), since),
    ] {
        assert_eq!(request.bearer(&stranger).send().await.refused(404), json!({ "detail": "Not found" }));
    }
    let sent = receiver.received().len();
    webhooks.deliver().await;
    assert_eq!(receiver.received().len(), sent);
}

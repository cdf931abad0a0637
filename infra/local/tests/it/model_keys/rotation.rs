//! Rotation of the sealing ring: no provider key is lost, and all are resealed under the new key.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, routing};
use karta_shared::{
    App,
    clock::{Clock, ManualClock},
    config::{self, Ring, Secret, SecretSource, Secrets},
    domain::Kid,
    store::SealedKind,
    worker::{Wake, Worker},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use worker_model_keys_reseal::ModelKeysReseal;

use super::{active, active_of, create, one_of_each, path, post, provider_key, rotated, sealed};
use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::TestServer,
    invariants::Tables,
};

async fn sweep(app: &App) -> Result<(), String> {
    ModelKeysReseal::new(app.for_function(ModelKeysReseal::NAME))
        .work(&Wake::Sweep)
        .await
        .map_err(|fault| fault.to_string())
}

/// Returns the ring keys under which an organization's provider keys are sealed.
async fn kids(server: &TestServer, organization: u64) -> Vec<String> {
    let sealed = sealed(server, organization).await;
    let kid = |item: &Value| {
        assert_eq!(item["sealed_shard"]["S"], "MKS#0", "the index contains it");
        item["kid"]["S"].as_str().unwrap().to_owned()
    };
    sealed.iter().map(kid).collect()
}

/// Counts the items that the index finds under a ring key.
async fn found(app: &App, kid: &str) -> usize {
    let all = app.store.not_sealed_under(SealedKind::ModelKeys, &Kid::parse("k0").unwrap()).await.unwrap();
    all.iter().filter(|found| found.kid.as_str() == kid).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn key_under_old_ring_is_opened_and_resealed() {
    let server = TestServer::start().await;
    let key = provider_key("sk-");
    create(&server, "openai", &key).await;
    create(&server, "anthropic", &provider_key("sk-ant-")).await;
    let before = active(&server, "openai").send().await.expect(200);
    let rotated = rotated(&server);
    for _ in 0..2 {
        assert_eq!(active_of(&rotated, &server, "openai").await.expect(200), before);
    }
    let mut kids = kids(&server, server.organization_id).await;
    kids.sort();
    assert_eq!(kids, ["k1", "k2"], "only the requested key is resealed");
    let reply = active(&server, "openai").send().await;
    assert!(!reply.text.contains(&key[3..]));
    assert_eq!(reply.refused(503), json!({ "detail": "Service unavailable" }), "a process with the old ring");
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn sweep_reseals_the_keys_of_every_organization() {
    let server = TestServer::start().await;
    let (other, token) = server.another_organization("other").await;
    let keys = one_of_each();
    for (provider, key) in &keys {
        create(&server, provider, key).await;
        post(&server, provider, &provider_key("sk-ant-")).bearer(&token).send().await;
    }
    sweep(&server.runner.app).await.unwrap();
    assert_eq!((found(&server.runner.app, "k1").await, found(&server.runner.app, "k2").await), (6, 0));

    let rotated = rotated(&server);
    for _ in 0..2 {
        sweep(&rotated).await.unwrap();
        assert_eq!((found(&rotated, "k1").await, found(&rotated, "k2").await), (0, 6));
    }
    assert_eq!(kids(&server, server.organization_id).await, ["k2"; 5]);
    assert_eq!(kids(&server, other).await, ["k2"]);
    let without_old = server.app_with_ring(Ring::SealingByok, |ring| {
        *ring = json!({ "current": "k2", "k2": "2".repeat(64) });
    });
    for (provider, key) in &keys {
        assert_eq!(active_of(&without_old, &server, provider).await.expect(200)["plaintext"], *key);
    }
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_key_is_reported_and_blocks_no_other() {
    for (field, value) in [("ciphertext", json!({ "B": "AAAA" })), ("provider", json!({ "N": "1" }))] {
        let server = TestServer::start().await;
        create(&server, "openai", &provider_key("sk-")).await;
        let mut broken = sealed(&server, server.organization_id).await.remove(0);
        let key = provider_key("sk-ant-");
        create(&server, "anthropic", &key).await;
        broken[field] = value;
        server.dynamodb("PutItem", json!({ "TableName": "karta", "Item": broken })).await;
        let rotated = rotated(&server);
        for _ in 0..2 {
            let error = sweep(&rotated).await.unwrap_err();
            assert_eq!(error, "1 items are not sealed under the current key");
            assert_eq!((found(&rotated, "k1").await, found(&rotated, "k2").await), (1, 1), "{field}");
        }
        assert!(sealed(&server, server.organization_id).await.contains(&broken), "unchanged");
        assert_eq!(active_of(&rotated, &server, "anthropic").await.expect(200)["plaintext"], key);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_ring_key_returns_503() {
    let server = TestServer::start().await;
    create(&server, "openai", &provider_key("sk-")).await;
    let dropped = server.app_with_ring(Ring::SealingByok, |ring| {
        *ring = json!({ "current": "k2", "k2": "2".repeat(64) });
    });
    assert_eq!(active_of(&dropped, &server, "openai").await.refused(503), json!({ "detail": "Service unavailable" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_sweeps_and_reads_lose_nothing() {
    let server = TestServer::start().await;
    let keys = one_of_each();
    for (provider, key) in &keys {
        create(&server, provider, key).await;
    }
    let rotated = rotated(&server);
    let read_all = async || {
        for (provider, key) in &keys {
            let reply = Box::pin(active_of(&rotated, &server, provider)).await;
            assert_eq!(reply.expect(200)["plaintext"], *key);
        }
    };
    let ((), (), one, other) = tokio::join!(read_all(), read_all(), sweep(&rotated), sweep(&rotated));
    one.unwrap();
    other.unwrap();
    assert_eq!(kids(&server, server.organization_id).await, ["k2"; 5]);
    read_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn response_does_not_wait_for_resealing() {
    let (server, proxy) = FaultProxy::start().await;
    let key = provider_key("sk-");
    create(&server, "openai", &key).await;
    let rotated = rotated(&server);
    for fault in [StoreFault::ServerError, StoreFault::Close, StoreFault::Hang] {
        proxy.fail("UpdateItem", ALWAYS, fault);
        assert_eq!(active_of(&rotated, &server, "openai").await.expect(200)["plaintext"], key, "{fault:?}");
        proxy.heal();
    }
    assert_eq!(kids(&server, server.organization_id).await, ["k1"]);
    proxy.fail("UpdateItem", 1, StoreFault::DropResponse);
    sweep(&rotated).await.unwrap();
    assert_eq!(kids(&server, server.organization_id).await, ["k2"]);
    assert_eq!(active_of(&rotated, &server, "openai").await.expect(200)["plaintext"], key);
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_or_revoked_key_leaves_the_index() {
    let server = TestServer::start().await;
    create(&server, "openai", &provider_key("sk-")).await;
    let key = create(&server, "openai", &provider_key("sk-")).await;
    assert_eq!(found(&server.runner.app, "k1").await, 1);
    server.delete(&path(&key)).send().await.expect(200);
    assert_eq!(found(&server.runner.app, "k1").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn index_is_read_completely() {
    let server = TestServer::start().await;
    for id in 1..=250 {
        let item = json!({
            "pk": { "S": format!("MKS#{}", id % 3 + 1) },
            "sk": { "S": format!("{id:016}") },
            "sealed_shard": { "S": "MKS#0" },
            "kid": { "S": if id <= 200 { "k9" } else { "k1" } },
        });
        server.dynamodb("PutItem", json!({ "TableName": "karta", "Item": item })).await;
    }
    let app = &server.runner.app;
    for (current, others) in [("k5", 1..=250), ("k9", 201..=250), ("k1", 1..=200)] {
        let found = app.store.not_sealed_under(SealedKind::ModelKeys, &Kid::parse(current).unwrap()).await.unwrap();
        let mut ids: Vec<_> = found.iter().map(|found| found.id.get()).collect();
        ids.sort_unstable();
        assert_eq!(ids, others.collect::<Vec<_>>(), "all but those under {current}");
        assert!(found.iter().all(|found| found.organization.get() == found.id.get() % 3 + 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_under_removed_ring_keys_are_reported() {
    let server = TestServer::start().await;
    create(&server, "openai", &provider_key("sk-")).await;
    create(&server, "openrouter", &provider_key("sk-or-")).await;
    // A process with a newer ring reseals this key. That ring may later be withdrawn.
    let rotated = rotated(&server);
    active_of(&rotated, &server, "openai").await.expect(200);
    for (current, lost) in [("k9", 2), ("k2", 1), ("k1", 1)] {
        let ring = server.app_with_ring(Ring::SealingByok, |ring| {
            let secret = if current == "k1" { ring["k1"].clone() } else { json!(current[1..].repeat(64)) };
            *ring = json!({ "current": current, current: secret });
        });
        for _ in 0..2 {
            let error = sweep(&ring).await.unwrap_err();
            let expected = format!(
                "{lost} items are not sealed under the current key, {lost} of them under keys that the ring does not hold"
            );
            assert_eq!(error, expected);
        }
    }
    let mut kids = kids(&server, server.organization_id).await;
    kids.sort();
    assert_eq!(kids, ["k1", "k2"], "unchanged");
    sweep(&rotated).await.unwrap();
}

/// Returns the server's app with a fake Secrets Manager instead of fixed secrets, and the texts
/// that it returns.
async fn with_secrets_manager(server: &TestServer) -> (App, Arc<Mutex<HashMap<Secret, String>>>) {
    let SecretSource::Fixed(texts) = server.runner.secrets.source() else { panic!("a local run's secrets") };
    let texts: HashMap<_, _> =
        texts.into_iter().map(|(secret, text)| (secret, text.expose_secret().to_owned())).collect();
    let ids = texts.keys().map(|secret| (*secret, secret.name().to_owned())).collect();
    let texts = Arc::new(Mutex::new(texts));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let held = Arc::clone(&texts);
    let answer = async move |body: String| {
        let request: Value = serde_json::from_str(&body).unwrap();
        let held = held.lock().unwrap();
        let (_, text) = held.iter().find(|(secret, _)| request["SecretId"] == secret.name()).unwrap();
        json!({ "SecretString": text }).to_string()
    };
    tokio::spawn(axum::serve(listener, Router::new().fallback(routing::post(answer))).into_future());
    let sdk = config::local_sdk(&endpoint, server.runner.emulator.access_key()).await;
    let source = SecretSource::Manager { client: aws_sdk_secretsmanager::Client::new(&sdk), ids };
    let mut app = server.runner.app.clone();
    app.secrets = Arc::new(Secrets::new(source, Arc::clone(&app.clock)));
    (app, texts)
}

#[tokio::test(flavor = "multi_thread")]
async fn older_ring_does_not_reseal_to_old_key() {
    for swept in [false, true] {
        let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
        let server = TestServer::start_with(Arc::clone(&clock) as Arc<dyn Clock>, None).await;
        let key = provider_key("sk-");
        create(&server, "openai", &key).await;
        let (older, texts) = with_secrets_manager(&server).await;
        let publish = |kid: &str, text: &str| {
            let mut texts = texts.lock().unwrap();
            let ring = texts.get_mut(&Ring::SealingByok.into()).unwrap();
            let mut members: Value = serde_json::from_str(ring).unwrap();
            members[kid] = json!(text);
            *ring = members.to_string();
        };
        let current_kid = async || older.secrets.ring(Ring::SealingByok).await.unwrap().current().0.to_string();
        publish("k2", &"2".repeat(64));
        assert_eq!(current_kid().await, "k1", "the next key is not current yet");
        publish("current", "k2");
        active_of(&rotated(&server), &server, "openai").await.expect(200);
        assert_eq!(kids(&server, server.organization_id).await, ["k2"], "a process with the new ring reseals");
        clock.advance(Duration::from_secs(31));
        assert_eq!(current_kid().await, "k1");
        if swept {
            sweep(&older).await.unwrap();
        } else {
            assert_eq!(active_of(&older, &server, "openai").await.expect(200)["plaintext"], key);
        }
        assert_eq!(kids(&server, server.organization_id).await, ["k2"], "{swept}");
        Tables::new(&server).await.assert_consistent();
    }
}

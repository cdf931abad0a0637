//! Concurrent requests and lost responses: each change happens once.

use karta_shared::domain::Id;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{active, create, list, path, post, provider_key, sealed};
use crate::{
    fault_proxy::{ALWAYS, FaultProxy, StoreFault},
    harness::TestServer,
    invariants::Tables,
};

fn in_use(keys: &[Value]) -> Vec<&Value> {
    keys.iter().filter(|key| key["revoked_at"].is_null()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_creations_leave_one_key_in_use() {
    let server = TestServer::start().await;
    for round in 1..=5 {
        let mut requests = JoinSet::new();
        let keys = [provider_key("sk-"), provider_key("sk-"), provider_key("sk-")];
        for key in &keys {
            requests.spawn(post(&server, "openai", key).send());
        }
        for reply in requests.join_all().await {
            reply.expect(201);
        }
        let listed = list(&server).await;
        assert_eq!((listed.len(), in_use(&listed).len()), (3 * round, 1));
        assert_eq!(sealed(&server, server.organization_id).await.len(), 1);
        let answer = active(&server, "openai").send().await.expect(200);
        assert_eq!(answer["key_id"], in_use(&listed)[0]["id"]);
        assert!(keys.iter().any(|key| answer["plaintext"] == *key));
        Tables::new(&server).await.assert_consistent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_revocation_and_replacement_revoke_once() {
    let server = TestServer::start().await;
    for _ in 0..10 {
        let old = create(&server, "openai", &provider_key("sk-")).await;
        let plaintext = provider_key("sk-");
        let (made, revoked) = tokio::join!(
            tokio::spawn(post(&server, "openai", &plaintext).send()),
            tokio::spawn(server.delete(&path(&old)).send())
        );
        let (made, revoked) = (made.unwrap().expect(201), revoked.unwrap().expect(200));
        assert_eq!((&revoked["model_key"]["id"], revoked["model_key"]["revoked_at"].is_string()), (&old["id"], true));
        let answer = active(&server, "openai").send().await.expect(200);
        assert_eq!((&answer["plaintext"], &answer["key_id"]), (&json!(plaintext), &made["model_key"]["id"]));
        Tables::new(&server).await.assert_consistent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_revocations_are_one_change() {
    let server = TestServer::start().await;
    let key = create(&server, "openai", &provider_key("sk-")).await;
    let mut requests = JoinSet::new();
    for _ in 0..8 {
        requests.spawn(server.delete(&path(&key)).send());
    }
    let answers: Vec<_> = requests.join_all().await.into_iter().map(|reply| reply.expect(200)).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn read_during_replacements_returns_one_of_the_keys() {
    let server = TestServer::start().await;
    let keys: Vec<_> = (0..12).map(|_| provider_key("sk-")).collect();
    create(&server, "openai", &keys[0]).await;
    let mut reads = JoinSet::new();
    for key in &keys[1..] {
        for _ in 0..4 {
            reads.spawn(active(&server, "openai").send());
        }
        create(&server, "openai", key).await;
    }
    for reply in reads.join_all().await {
        let answer = reply.expect(200);
        assert!(keys.iter().any(|key| answer["plaintext"] == *key));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn change_with_lost_response_happens_once() {
    let (server, proxy) = FaultProxy::start().await;
    let key = provider_key("sk-");
    create(&server, "openai", &provider_key("sk-")).await;
    proxy.fail("TransactWriteItems", 1, StoreFault::DropResponse);
    let made = create(&server, "openai", &key).await;
    assert_eq!(active(&server, "openai").send().await.expect(200)["key_id"], made["id"]);
    proxy.fail("TransactWriteItems", 1, StoreFault::DropResponse);
    server.delete(&path(&made)).send().await.expect(200);
    assert_eq!(list(&server).await.len(), 2);
    Tables::new(&server).await.assert_consistent();

    for drops in [3, ALWAYS] {
        let send = || post(&server, "openai", &key).idempotency_key(format!("{drops}")).send();
        proxy.fail("TransactWriteItems", drops, StoreFault::DropResponse);
        send().await;
        proxy.heal();
        let (first, second) = (send().await.expect(201), send().await.expect(201));
        assert_eq!(first, second);
        let revoke = || server.delete(&path(&first["model_key"])).send();
        proxy.fail("TransactWriteItems", drops, StoreFault::DropResponse);
        revoke().await;
        proxy.heal();
        assert_eq!(revoke().await.expect(200), revoke().await.expect(200));
        Tables::new(&server).await.assert_consistent();
    }
    assert_eq!(list(&server).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_is_not_resealed() {
    let server = TestServer::start().await;
    let key = create(&server, "openai", &provider_key("sk-")).await;
    let [organization, id] = [server.organization_id, key["id"].as_u64().unwrap()].map(|id| Id::new(id).unwrap());
    let store = &server.runner.app.store;
    let read = store.sealed_model_key(organization, id).await.unwrap().unwrap();
    server.delete(&path(&key)).send().await.expect(200);
    assert!(!store.reseal_model_key(organization, id, &read, &read).await.unwrap());
    assert!(sealed(&server, server.organization_id).await.is_empty());
}

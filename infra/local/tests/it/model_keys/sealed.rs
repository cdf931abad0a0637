//! Sealed provider keys: the stored items, and which of them can be opened.

use serde_json::{Value, json};

use super::{active, create, list, one_of_each, path, post, provider_key, sealed};
use crate::harness::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_key_is_neither_stored_nor_returned() {
    let server = TestServer::start().await;
    for (provider, key) in one_of_each() {
        let create = || post(&server, provider, &key).idempotency_key(provider).send();
        let created = create().await;
        let id = created.json["model_key"].clone();
        let mut answers = vec![created, create().await, server.get("/v1/model_keys").send().await];
        let stored = server.stored().await;
        answers.push(server.delete(&path(&id)).send().await);
        answers.push(server.delete(&path(&id)).send().await);
        // For JSON, search for the line of the secret, which escaping does not change.
        let secret = key.lines().find(|line| line.contains("private_key\"") || line.contains("secret_access_key"));
        let secret = secret.map_or(&*key, |line| &line[line.len() - 30..]);
        for answer in answers {
            assert!(!answer.text.contains(secret), "{}", answer.text);
            assert!(answer.status.is_success());
        }
        assert!(!Value::from(stored).to_string().contains(secret), "{provider}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn same_key_is_sealed_differently_each_time() {
    let server = TestServer::start().await;
    let (other, token) = server.another_organization("other").await;
    let key = provider_key("sk-");
    let mut seen = Vec::new();
    for _ in 0..2 {
        create(&server, "openai", &key).await;
        seen.push(sealed(&server, server.organization_id).await.remove(0)["ciphertext"].clone());
    }
    post(&server, "openai", &key).bearer(&token).send().await.expect(201);
    seen.push(sealed(&server, other).await.remove(0)["ciphertext"].clone());
    assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2]);
    let item = sealed(&server, other).await.remove(0);
    let fields: Vec<_> = item.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["ciphertext", "kid", "pk", "provider", "sealed_shard", "sk"]);
    assert_eq!((&item["sealed_shard"], &item["kid"]), (&json!({ "S": "MKS#0" }), &json!({ "S": "k1" })));
}

/// Overwrites the content of a sealed key with that of another key, directly in the store.
async fn overwrite(server: &TestServer, from: &Value, to: &Value) {
    let mut item = from.clone();
    for part in ["pk", "sk"] {
        item[part] = to[part].clone();
    }
    server.dynamodb("PutItem", json!({ "TableName": "karta", "Item": item })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moved_sealed_key_does_not_open() {
    let server = TestServer::start().await;
    let (other, token) = server.another_organization("other").await;
    let (mine, mine_too, theirs) = (provider_key("sk-or-"), provider_key("sk-"), provider_key("sk-"));
    let (openrouter, openai) = (create(&server, "openrouter", &mine).await, create(&server, "openai", &mine_too).await);
    post(&server, "openai", &theirs).bearer(&token).send().await.expect(201);
    let here = sealed(&server, server.organization_id).await;
    let of = |key: &Value| {
        let sort_key = format!("{:016}", key["id"].as_u64().unwrap());
        here.iter().find(|item| item["sk"]["S"] == sort_key).unwrap()
    };
    let (openrouter, openai) = (of(&openrouter), of(&openai));
    let there = &sealed(&server, other).await[0];

    // A key of another organization, a key of another provider (also under the name of this
    // provider), and a changed key.
    let mut renamed = openrouter.clone();
    renamed["provider"] = json!({ "S": "openai" });
    let mut changed = openai.clone();
    changed["ciphertext"] = json!({ "B": "AAAA" });
    for from in [there, openrouter, &renamed, &changed] {
        overwrite(&server, from, openai).await;
        let reply = active(&server, "openai").send().await;
        assert!([&mine, &mine_too, &theirs].iter().all(|key| !reply.text.contains(&key[6..])), "{}", reply.text);
        assert_eq!(reply.refused(500), json!({ "detail": "Internal error" }));
    }
    overwrite(&server, openai, openai).await;
    assert_eq!(active(&server, "openai").send().await.expect(200)["plaintext"], mine_too);
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_older_key_does_not_open() {
    let server = TestServer::start().await;
    create(&server, "openai", &provider_key("sk-")).await;
    let old = sealed(&server, server.organization_id).await.remove(0);
    create(&server, "openai", &provider_key("sk-")).await;
    let new = sealed(&server, server.organization_id).await.remove(0);
    overwrite(&server, &old, &new).await;
    active(&server, "openai").send().await.refused(500);
    assert_eq!(list(&server).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_sealed_key_returns_503_instead_of_404() {
    let server = TestServer::start().await;
    create(&server, "openai", &provider_key("sk-")).await;
    let item = sealed(&server, server.organization_id).await.remove(0);
    let key = json!({ "pk": item["pk"], "sk": item["sk"] });
    server.dynamodb("DeleteItem", json!({ "TableName": "karta", "Key": key })).await;
    let reply = active(&server, "openai").send().await;
    assert_eq!(reply.refused(503), json!({ "detail": "Service unavailable" }));
}

//! What is kept of a key, and where it opens.

use serde_json::{Value, json};

use super::{active, create, list, one_of_each, path, post, provider_key, sealed};
use crate::harness::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn the_key_itself_is_in_no_item_and_in_no_answer_but_one() {
    let server = TestServer::start().await;
    for (provider, key) in one_of_each() {
        let create = || post(&server, provider, &key).idempotency_key(provider).send();
        let created = create().await;
        let id = created.json["model_key"].clone();
        let mut answers = vec![created, create().await, server.get("/v1/model_keys").send().await];
        let stored = server.stored().await;
        answers.push(server.delete(&path(&id)).send().await);
        answers.push(server.delete(&path(&id)).send().await);
        // Of JSON its secret's line, which no escape changes.
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
async fn one_key_is_sealed_differently_each_time() {
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

/// Writes a sealed key's content to where another one lies, past the code under test.
async fn carry(server: &TestServer, from: &Value, to: &Value) {
    let mut item = from.clone();
    for part in ["pk", "sk"] {
        item[part] = to[part].clone();
    }
    server.dynamodb("PutItem", json!({ "TableName": "karta", "Item": item })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_key_that_was_carried_elsewhere_does_not_open() {
    let server = TestServer::start().await;
    let (other, token) = server.another_organization("other").await;
    let (mine, mine_too, theirs) = (provider_key("sk-or-"), provider_key("sk-"), provider_key("sk-"));
    let (openrouter, openai) = (create(&server, "openrouter", &mine).await, create(&server, "openai", &mine_too).await);
    post(&server, "openai", &theirs).bearer(&token).send().await.expect(201);
    let here = sealed(&server, server.organization_id).await;
    let of = |key: &Value| {
        let place = format!("{:016}", key["id"].as_u64().unwrap());
        here.iter().find(|item| item["sk"]["S"] == place).unwrap()
    };
    let (openrouter, openai) = (of(&openrouter), of(&openai));
    let there = &sealed(&server, other).await[0];

    // Another organization's, another provider's under its own name or this one's, and one that was changed.
    let mut renamed = openrouter.clone();
    renamed["provider"] = json!({ "S": "openai" });
    let mut changed = openai.clone();
    changed["ciphertext"] = json!({ "B": "AAAA" });
    for from in [there, openrouter, &renamed, &changed] {
        carry(&server, from, openai).await;
        let reply = active(&server, "openai").send().await;
        assert!([&mine, &mine_too, &theirs].iter().all(|key| !reply.text.contains(&key[6..])), "{}", reply.text);
        assert_eq!(reply.refused(500), json!({ "detail": "Internal error" }));
    }
    carry(&server, openai, openai).await;
    assert_eq!(active(&server, "openai").send().await.expect(200)["plaintext"], mine_too);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_key_put_back_into_the_next_ones_place_does_not_open() {
    let server = TestServer::start().await;
    create(&server, "openai", &provider_key("sk-")).await;
    let old = sealed(&server, server.organization_id).await.remove(0);
    create(&server, "openai", &provider_key("sk-")).await;
    let new = sealed(&server, server.organization_id).await.remove(0);
    carry(&server, &old, &new).await;
    active(&server, "openai").send().await.refused(500);
    assert_eq!(list(&server).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_key_that_is_missing_is_a_fault_and_no_404() {
    let server = TestServer::start().await;
    create(&server, "openai", &provider_key("sk-")).await;
    let item = sealed(&server, server.organization_id).await.remove(0);
    let key = json!({ "pk": item["pk"], "sk": item["sk"] });
    server.dynamodb("DeleteItem", json!({ "TableName": "karta", "Key": key })).await;
    let reply = active(&server, "openai").send().await;
    assert_eq!(reply.refused(503), json!({ "detail": "Service unavailable" }));
}

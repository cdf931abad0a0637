use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use karta_shared::entropy::{OsEntropy, uuid};
use serde_json::{Value, json};

use super::{
    PRIVATE_KEY, ROUTE, access_key, active, create, list, one_of_each, path, post, provider_key, sealed,
    service_account, service_account_with,
};
use crate::harness::{TestServer, note_secret};

#[tokio::test(flavor = "multi_thread")]
async fn new_key_is_shown_without_its_secret() {
    let (server, _) = TestServer::start_at_noon().await;
    let key = provider_key("sk-ant-api03-");
    let body = json!({ "provider": "anthropic", "key": key, "name": "Production" });
    let created = server.post(ROUTE, body).send().await.expect(201);
    assert_eq!(created["model_key"]["tail"], key[key.len() - 4..]);
    insta::assert_json_snapshot!(created, { ".model_key.id" => "[id]", ".model_key.tail" => "[tail]" }, @r#"
    {
      "model_key": {
        "created_at": "2026-11-21T12:00:00.000Z",
        "id": "[id]",
        "name": "Production",
        "provider": "anthropic",
        "revoked_at": null,
        "tail": "[tail]"
      }
    }
    "#);
    assert!(created["model_key"]["id"].as_u64().unwrap() < 1 << 53);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_every_provider_are_stored_unchanged() {
    let server = TestServer::start().await;
    for (provider, key) in one_of_each() {
        let created = create(&server, provider, &key).await;
        assert_eq!((&created["name"], &created["provider"]), (&Value::Null, &json!(provider)));
        let answer = active(&server, provider).send().await.expect(200);
        assert_eq!(answer["plaintext"], key, "{provider}");
        let tail = match provider {
            "bedrock" => "MPLE",
            "vertex" => "4567",
            _ => &key[key.len() - 4..],
        };
        assert_eq!((&created["tail"], &answer["tail"]), (&json!(tail), &json!(tail)), "{provider}");
    }
    assert_eq!(list(&server).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_another_provider_is_refused() {
    let server = TestServer::start().await;
    let key = provider_key("sk-proj-");
    let refusal = post(&server, "anthropic", &key).send().await.refused(422);
    let expected = json!({
        "error": "byok_key_rejected",
        "message": "key looks like an OpenAI key: choose provider openai, or paste a key that starts with sk-ant-",
        "field": "key",
        "provider": "anthropic",
    });
    assert_eq!(refusal, expected);
    for (provider, key) in one_of_each() {
        for (other, _) in one_of_each().iter().filter(|(other, _)| *other != provider) {
            let refusal = post(&server, other, &key).send().await.refused(422);
            assert_eq!((&refusal["error"], &refusal["provider"]), (&json!("byok_key_rejected"), &json!(other)));
            let message = refusal["message"].as_str().unwrap();
            assert!(message.contains(&format!("choose provider {provider}")), "{provider} for {other}: {message}");
        }
    }
    assert_eq!(list(&server).await, [] as [Value; 0]);
    assert_eq!(server.audited("model_key.created").await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_key_is_refused_with_the_reason() {
    let server = TestServer::start().await;
    let key = provider_key("sk-ant-");
    for (key, expected) in [
        (String::new(), "20 characters or more"),
        ("sk-ant-0123456789ab".to_owned(), "20 characters or more"),
        (format!("{key}\n"), "blanks or line breaks around it: paste only the key"),
        (format!(" {key}"), "blanks or line breaks around it"),
        (format!("{key}\u{7f}x"), "printable ASCII"),
        (format!("{key}é"), "printable ASCII"),
        (format!("x{key}"), "must be a key that starts with sk-ant-"),
        (server.admin.clone(), "looks like an API key of this service"),
    ] {
        let refusal = post(&server, "anthropic", &key).send().await.refused(422);
        assert_eq!((&refusal["error"], &refusal["field"]), (&json!("byok_key_rejected"), &json!("key")));
        assert!(refusal["message"].as_str().unwrap().contains(expected), "{refusal}");
    }
    let half = json!({ "access_key_id": "AKIAIOSFODNN7EXAMPLE" }).to_string();
    let refusal = post(&server, "bedrock", &half).send().await.refused(422);
    assert_eq!(
        refusal["message"],
        "key must contain secret_access_key: 40 letters, digits, /, + and =, neither the access key id nor a placeholder"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn placeholder_does_not_replace_working_key() {
    let server = TestServer::start().await;
    let vertex = service_account_with("-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----\n");
    for (provider, key) in one_of_each() {
        create(&server, provider, &key).await;
        let sample = match provider {
            "anthropic" => "sk-ant-api03-xxxxxxxxxxxxxxxxxxxxxxxx",
            "openai" => "sk-your-api-key-0123456789",
            "openrouter" => "sk-or-v1-0000000000000000000000000000",
            "bedrock" => {
                r#"{"access_key_id":"AKIAIOSFODNN7EXAMPLE","secret_access_key":"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}"#
            }
            _ => vertex.as_str(),
        };
        let refusal = post(&server, provider, sample).send().await.refused(422);
        assert_eq!((&refusal["error"], &refusal["field"]), (&json!("byok_key_rejected"), &json!("key")), "{provider}");
        assert_eq!(active(&server, provider).send().await.expect(200)["plaintext"], key, "{provider}");
    }
    assert_eq!(list(&server).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_or_doubled_key_keeps_the_working_one() {
    let server = TestServer::start().await;
    for (provider, key) in one_of_each() {
        create(&server, provider, &key).await;
        let (cut, doubled) = match provider {
            "bedrock" => {
                (key.replace("EXAMPLE", "EXA"), key.replace("AKIAIOSFODNN7EXAMPLE", &"AKIAIOSFODNN7EXAMPLE".repeat(2)))
            }
            _ => (key[..40].to_owned(), key.repeat(2)),
        };
        for damaged in [cut, doubled] {
            let refusal = post(&server, provider, &damaged).send().await.refused(422);
            assert_eq!(
                (&refusal["error"], &refusal["field"]),
                (&json!("byok_key_rejected"), &json!("key")),
                "{provider}"
            );
            assert!(!refusal.to_string().contains(&key[key.len() - 20..]), "{refusal}");
            assert_eq!(active(&server, provider).send().await.expect(200)["plaintext"], key, "{provider}");
        }
    }
    assert_eq!(list(&server).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_vertex_key_does_not_replace_working_one() {
    let server = TestServer::start().await;
    let working = service_account();
    create(&server, "vertex", &working).await;
    let escaped = PRIVATE_KEY.replace('\n', "\\n");
    let cut = format!("{}\n-----END PRIVATE KEY-----\n", &PRIVATE_KEY[..PRIVATE_KEY.len() / 2]);
    for (private_key, expected) in
        [(escaped, "with line breaks, not with the characters"), (cut, "paste the file unchanged")]
    {
        let refusal = post(&server, "vertex", &service_account_with(&private_key)).send().await.refused(422);
        assert_eq!(refusal["error"], "byok_key_rejected");
        assert!(refusal["message"].as_str().unwrap().contains(expected), "{refusal}");
        assert_eq!(active(&server, "vertex").send().await.expect(200)["plaintext"], working);
    }
    assert_eq!(list(&server).await.len(), 1);
    assert_eq!(server.audited("model_key.revoked").await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bedrock_accepts_api_keys_and_access_keys() {
    let server = TestServer::start().await;
    let plain = format!("BedrockAPIKey-a1b2-at-123456789012:{}", uuid(&OsEntropy));
    let key = format!("ABSK{}", BASE64_STANDARD.encode(plain));
    note_secret(&key);
    let created = create(&server, "bedrock", &key).await;
    assert_eq!(created["tail"], key[key.len() - 4..]);
    assert_eq!(active(&server, "bedrock").send().await.expect(200)["plaintext"], key);
    let named = json!({ "provider": "bedrock", "key": key, "name": format!("prod {key}") });
    assert_eq!(server.post(ROUTE, named).send().await.invalid_field(), "name");
    let refusal = post(&server, "openai", &key).send().await.refused(422);
    assert!(refusal["message"].as_str().unwrap().contains("choose provider bedrock"), "{refusal}");
    let refusal = post(&server, "bedrock", &key[..key.len() - 1]).send().await.refused(422);
    assert!(refusal["message"].as_str().unwrap().contains("not a whole Bedrock API key"), "{refusal}");
    create(&server, "bedrock", &access_key()).await;
    assert_eq!(list(&server).await.iter().filter(|key| key["revoked_at"].is_null()).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_login_tokens_are_refused_by_name() {
    let server = TestServer::start().await;
    for start in ["sk-ant-oat", "sk-ant-ort", "sk-ant-sid"] {
        let key = provider_key(&format!("{start}01-"));
        for provider in ["anthropic", "openai"] {
            let refusal = post(&server, provider, &key).send().await.refused(422);
            let message = refusal["message"].as_str().unwrap();
            assert!(message.contains(&format!("({start})")) && !message.contains(&key[12..]), "{message}");
        }
    }
    assert_eq!(list(&server).await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_missing_field_is_named() {
    let server = TestServer::start().await;
    let key = provider_key("sk-");
    for (body, field) in [
        (json!({ "key": key }), "provider"),
        (json!({ "provider": null, "key": key }), "provider"),
        (json!({ "provider": "OpenAI", "key": key }), "provider"),
        (json!({ "provider": key, "key": key }), "provider"),
        (json!({ "provider": "openai" }), "key"),
        (json!({ "provider": "openai", "key": null }), "key"),
        (json!({ "provider": "openai", "key": [key] }), "key"),
        (json!({ "provider": "openai", "key": { "openai": key } }), "key"),
        (json!({ "provider": "openai", "key": key, "name": "" }), "name"),
        (json!({ "provider": "openai", "key": key, "name": "é".repeat(101) }), "name"),
        (json!({ "provider": "openai", "key": key, "tail": "1234" }), "tail"),
        (json!([key]), "body"),
    ] {
        let reply = server.post(ROUTE, body.clone()).send().await;
        assert!(!reply.text.contains(&key[3..]), "{}", reply.text);
        assert_eq!(reply.invalid_field(), field, "{body}");
    }
    let named = json!({ "provider": "openai", "key": key, "name": null });
    server.post(ROUTE, named).send().await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_do_not_repeat_the_key() {
    let server = TestServer::start().await;
    for (provider, key) in one_of_each() {
        let secret = if key.starts_with('{') { &key[key.len() - 60..] } else { &key[3..] };
        for body in [
            json!({ "provider": provider, "key": format!("{key} x") }),
            json!({ "provider": provider, "key": format!("{key}é") }),
            json!({ "provider": provider, "key": format!("x{key}") }),
            json!({ "provider": key, "key": key }),
            json!({ "provider": provider, "key": key, "name": format!("{key}{key}{key}\n") }),
            json!({ "provider": provider, "key": key, key.as_str(): 1 }),
        ] {
            let reply = server.post(ROUTE, body).send().await;
            assert!(!reply.text.contains(secret), "{}", reply.text);
            assert_eq!(reply.status, 422, "{}", reply.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_or_oversized_body_is_refused() {
    let server = TestServer::start().await;
    for body in ["", "{", "provider=openai"] {
        let refusal = server.post(ROUTE, json!({})).raw_body(body).send().await.refused(400);
        assert_eq!(refusal["error"], "malformed_json");
    }
    let refusal = server.post(ROUTE, json!({})).raw_body(" ".repeat(65_537)).send().await.refused(413);
    assert_eq!(refusal["error"], "body_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn second_key_of_a_provider_replaces_the_first() {
    let (server, clock) = TestServer::start_at_noon().await;
    let (first_key, second_key) = (provider_key("sk-"), provider_key("sk-"));
    let first = create(&server, "openai", &first_key).await;
    let other = create(&server, "anthropic", &provider_key("sk-ant-")).await;
    clock.advance(Duration::from_secs(1));
    let second = create(&server, "openai", &second_key).await;

    let mut replaced = first.clone();
    replaced["revoked_at"] = json!("2026-11-21T12:00:01.000Z");
    let mut listed = list(&server).await;
    let mut expected = vec![second.clone(), other.clone(), replaced.clone()];
    for keys in [&mut listed, &mut expected] {
        keys.sort_by_key(|key| key["id"].as_u64());
    }
    assert_eq!(listed, expected);
    assert_eq!(active(&server, "openai").send().await.expect(200)["plaintext"], second_key);
    let ids: Vec<_> =
        sealed(&server, server.organization_id).await.iter().map(|item| item["sk"]["S"].clone()).collect();
    assert_eq!(ids.len(), 2, "the replaced sealed key is deleted");
    assert!(!ids.contains(&json!(format!("{:016}", first["id"].as_u64().unwrap()))));
    assert_eq!(server.delete(&path(&first)).send().await.expect(200), json!({ "model_key": replaced }));
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_is_audited_and_published() {
    let (server, clock) = TestServer::start_at_noon().await;
    let first = create(&server, "openai", &provider_key("sk-")).await;
    clock.advance(Duration::from_millis(1));
    let second = create(&server, "openai", &provider_key("sk-")).await;

    let created = server.audited("model_key.created").await;
    assert_eq!(created.len(), 2);
    let set = |value: &Value| json!({ "before": null, "after": value });
    let changes = |key: &Value| json!({ "provider": set(&key["provider"]), "name": set(&key["name"]), "tail": set(&key["tail"]) });
    assert_eq!(created[0]["changes"], changes(&first));
    assert_eq!(created[1]["resource"], json!({ "kind": "model_key", "id": second["id"] }));
    let revoked = server.audited("model_key.revoked").await;
    assert_eq!(revoked.len(), 1, "the replaced key");
    assert_eq!(revoked[0]["resource"], json!({ "kind": "model_key", "id": first["id"] }));
    let expected = json!({ "revoked_at": set(&json!("2026-11-21T12:00:00.001Z")), "replaced_by": set(&second["id"]) });
    assert_eq!(revoked[0]["changes"], expected);

    let published = server.outbox("EVT").await;
    let mut published: Vec<(Value, Value)> = published
        .iter()
        .map(|event| (event["type"].clone(), serde_json::from_str(event["data"].as_str().unwrap()).unwrap()))
        .collect();
    published.sort_by_key(|(kind, data)| (kind.to_string(), data["model_key"]["id"].as_u64()));
    let event = |kind: &str, key: &Value| (json!(kind), json!({ "model_key": key }));
    let mut replaced = first.clone();
    replaced["revoked_at"] = json!("2026-11-21T12:00:00.001Z");
    let expected = [
        event("model_key.created", &first),
        event("model_key.created", &second),
        event("model_key.revoked", &replaced),
    ];
    assert_eq!(published, expected);
    let invalidations: Vec<_> = server.outbox("PSH").await.iter().map(|item| item["access_cut"].clone()).collect();
    assert_eq!(invalidations, [false, false], "data planes cache provider keys");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_model_key_request_returns_first_response() {
    let server = TestServer::start().await;
    let key = provider_key("sk-");
    let send = |key: &str| post(&server, "openai", key).idempotency_key("once").send();
    let first = send(&key).await;
    let again = send(&key).await;
    assert_eq!((again.status, &again.text), (first.status, &first.text));
    let id = first.expect(201)["model_key"]["id"].clone();
    assert_eq!(send(&provider_key("sk-")).await.refused(422)["error"], "idempotency_mismatch");
    assert_eq!(send("sk-short").await.refused(422)["error"], "byok_key_rejected", "the body is checked first");
    assert_eq!(list(&server).await.len(), 1);
    server.delete(&format!("{ROUTE}/{id}")).send().await.expect(200);
    assert_eq!(send(&key).await.expect(201)["model_key"]["revoked_at"], Value::Null, "the first response is repeated");
    active(&server, "openai").send().await.refused(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn demoted_admin_is_refused_despite_gateway_cache() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let key = provider_key("sk-");
    let ours = create(&server, "openai", &key).await;
    let (id, token) = server.key(&["admin"]).await;
    server.delete("/v1/model_keys/1").bearer(&token).send().await.refused(404);
    server.patch(&format!("/v1/api_keys/{id}"), json!({ "scopes": ["read"] })).send().await.expect(200);
    let theirs = post(&server, "openai", &provider_key("sk-")).bearer(&token).send().await;
    assert_eq!(theirs.forbidden(), "missing scope: admin");
    assert_eq!(server.delete(&path(&ours)).bearer(&token).send().await.forbidden(), "missing scope: admin");
    server.delete(&format!("/v1/api_keys/{id}")).send().await.expect(200);
    post(&server, "openai", &provider_key("sk-")).bearer(&token).send().await.refused(401);
    assert_eq!(active(&server, "openai").send().await.expect(200)["plaintext"], key);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_in_name_is_refused_and_not_stored() {
    let server = TestServer::start().await;
    let (openai, bedrock) = (provider_key("sk-proj-"), access_key());
    let secret = bedrock.split('"').find(|part| part.starts_with("wJalr")).unwrap();
    for (provider, key, name) in [
        ("openai", &openai, &*openai),
        ("openai", &openai, &format!("prod {}", provider_key("sk-ant-"))),
        ("openai", &openai, "AKIAIOSFODNN7EXAMPLE"),
        ("openai", &openai, &server.admin),
        ("bedrock", &bedrock, secret),
    ] {
        let body = json!({ "provider": provider, "key": key, "name": name });
        let reply = server.post(ROUTE, body).send().await;
        assert!(!reply.text.contains(&name[5..]), "{}", reply.text);
        assert_eq!(reply.invalid_field(), "name");
        assert!(!Value::from(server.stored().await).to_string().contains(name), "{provider}");
    }
    for name in [
        "Production (sk-proj)",
        "karta@acme-1.iam.gserviceaccount.com",
        "acme-1",
        "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
    ] {
        let body = json!({ "provider": "vertex", "key": service_account(), "name": name });
        assert_eq!(server.post(ROUTE, body).send().await.expect(201)["model_key"]["name"], name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_with_duplicate_members_is_refused() {
    let server = TestServer::start().await;
    let (bedrock, vertex) = (access_key(), service_account());
    for (provider, key) in [
        ("bedrock", bedrock.replacen('{', r#"{"access_key_id": "AKIAIOSFODNN7EXAMPLF","#, 1)),
        ("bedrock", bedrock.replacen('{', r#"{"secret_access\u005fkey": "AAAAAAAAAAAAAAAAAAAAAAAA","#, 1)),
        ("vertex", vertex.replacen('{', r#"{"token_uri": "https://example.com/token","#, 1)),
    ] {
        let refusal = post(&server, provider, &key).send().await.refused(422);
        assert_eq!(refusal["message"], "key must contain each member once", "{provider}");
    }
    assert!(list(&server).await.is_empty());
}

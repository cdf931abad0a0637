use serde_json::{Value, json};

use super::{path, read};
use crate::harness::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn only_create_response_holds_the_secret() {
    let server = TestServer::start().await;
    let (id, secret) = server.key(&["read"]).await;
    let random = &secret[14..];
    let answers = [
        server.get("/v1/api_keys").send().await,
        server.get(&path(id)).send().await,
        server.get("/v1/whoami").bearer(&secret).send().await,
        server.patch(&path(id), json!({ "name": "cd" })).send().await,
        server.delete(&path(id)).send().await,
        server.delete(&path(id)).send().await,
        server.get(&path(id)).send().await,
    ];
    for answer in answers {
        assert_eq!(answer.status, 200);
        assert!(!answer.text.contains(random), "{}", answer.text);
        assert_eq!(answer.json.get("secret"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_does_not_echo_a_misplaced_secret() {
    let server = TestServer::start().await;
    let (id, secret) = server.key(&["read"]).await;
    let random = &secret[14..];
    for body in [
        json!({ "scopes": [secret] }),
        json!({ "expires_at": secret }),
        json!({ "allowed_cidrs": [secret] }),
        json!({ "budget": secret }),
        json!({ "metadata": { secret.as_str(): 1 } }),
        json!({ secret.as_str(): 1 }),
        json!(secret),
    ] {
        let answer = server.patch(&path(id), body).send().await;
        assert_eq!(answer.status, 422);
        assert!(!answer.text.contains(random), "{}", answer.text);
    }
    for query in [format!("cursor={secret}"), format!("limit={secret}"), format!("{secret}=1")] {
        let answer = server.get(&format!("/v1/api_keys?{query}")).send().await;
        assert_eq!(answer.status, 422);
        assert!(!answer.text.contains(random), "{}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_digest_is_stored() {
    let server = TestServer::start().await;
    let create = server.post("/v1/api_keys", json!({ "name": "ci", "scopes": ["read"] })).idempotency_key("once");
    let created = create.send().await.expect(201);
    let secret = created["secret"].as_str().unwrap();
    server.get("/v1/whoami").bearer(secret).send().await.expect(200);

    let stored = server.stored().await;
    let holding_digest: Vec<_> = stored.iter().filter(|item| item.get("digest").is_some()).collect();
    assert_eq!(holding_digest.len(), 2, "one for the first key, one for this key");
    let credential = stored.iter().find(|item| item["api_key_id"] == created["api_key"]["id"]).unwrap();
    assert_eq!(credential["pk"], format!("KP#{}", &secret[..14]));
    let digest = credential["digest"].as_str().unwrap();
    assert!(digest.starts_with("$2b$04$") && digest.len() == 60, "a bcrypt digest");
    let fields: Vec<_> = credential.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["api_key_id", "counted_as", "digest", "organization_id", "pk", "sk"]);

    let text = Value::from(stored).to_string();
    for secret in [secret, &server.admin] {
        assert!(!text.contains(secret) && !text.contains(&secret[14..]) && !text.contains(&secret[14..34]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_changes_keep_the_credential() {
    let server = TestServer::start().await;
    let (id, secret) = server.key(&["read"]).await;
    let credential = async || {
        let stored = server.stored().await;
        stored.into_iter().find(|item| item["pk"] == format!("KP#{}", &secret[..14])).unwrap()
    };
    let before = credential().await;
    server.patch(&path(id), json!({ "name": "cd", "scopes": ["write"] })).send().await.expect(200);
    server.delete(&path(id)).send().await.expect(200);
    assert_eq!(credential().await, before);
    assert_eq!(read(&server, id).await["status"], "revoked");
}

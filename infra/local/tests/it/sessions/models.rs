//! The model and the provider of a turn.

use http::Method;
use serde_json::{Value, json};

use super::{Chat, FAMILIES, FLAT, IN_APP, MODEL};
use crate::reservations::assert_all_released;

/// Returns the path and the model of the last request to the provider.
fn last_call(chat: &Chat) -> (String, String) {
    let last = chat.provider.ledger().pop().unwrap();
    let body: Value = serde_json::from_slice(&last.body).unwrap();
    (last.path, body["model"].as_str().unwrap().to_owned())
}

async fn turn(chat: &Chat, family: &str, session: &str, model: &str) -> crate::harness::Reply {
    chat.turn(family, session, json!({ "text": "hi", "model": model })).send().await
}

#[tokio::test(flavor = "multi_thread")]
async fn model_decides_the_provider() {
    let chat = Chat::start().await;
    for family in FAMILIES {
        let session = chat.session(family).await;
        chat.say(family, &session, "hi").await;
        assert_eq!(last_call(&chat), ("/v1/messages".to_owned(), MODEL.to_owned()));
        for (model, path, upstream) in [
            ("default", "/v1/messages", MODEL),
            (MODEL, "/v1/messages", MODEL),
            ("claude-opus-5", "/v1/messages", "claude-opus-5"),
            ("anthropic/claude-opus-5", "/v1/messages", "claude-opus-5"),
            ("gpt-4o", "/v1/chat/completions", "gpt-4o"),
            ("openai/gpt-4o-mini", "/v1/chat/completions", "gpt-4o-mini"),
            ("openrouter/anthropic/claude-opus-5", "/v1/chat/completions", "anthropic/claude-opus-5"),
        ] {
            turn(&chat, family, &session, model).await.expect(200);
            assert_eq!(last_call(&chat), (path.to_owned(), upstream.to_owned()), "{model}");
        }
    }
    let by_model = chat.server.get("/v1/usage").send().await.expect(200)["by_model"].take();
    let models: Vec<_> = by_model.as_array().unwrap().iter().map(|of| of["model"].as_str().unwrap()).collect();
    assert!(models.contains(&"openai/gpt-4o-mini"), "usage has the name as it was given: {models:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_models_are_refused_with_the_allowed_one() {
    let chat = Chat::start().await;
    let key = chat.server.get("/v1/model_keys").send().await.expect(200)["model_keys"].take();
    let openai = key.as_array().unwrap().iter().find(|key| key["provider"] == "openai").unwrap()["id"].clone();
    chat.server.delete(&format!("/v1/model_keys/{openai}")).send().await.expect(200);
    for family in FAMILIES {
        let session = chat.session(family).await;
        // Unpriced, of no provider, of a provider without a key or without turns.
        for model in ["claude-unheard-of", "llama-4", "gpt-4o", "bedrock/claude-opus-5", "o", "vertex/gemini-3"] {
            let refused = turn(&chat, family, &session, model).await.refused(422);
            assert_eq!(
                (&refused["error"], &refused["allowed"]),
                (&json!("model_not_allowed"), &json!([MODEL])),
                "{model}"
            );
        }
        for model in ["", &"m".repeat(129)] {
            assert_eq!(turn(&chat, family, &session, model).await.invalid_field(), "model");
        }
    }
    let (session, token) = (chat.session_as(IN_APP, &chat.token(None).await, json!({})).await, chat.token(None).await);
    for model in ["claude-opus-5", "gpt-4o", "anthropic/claude-sonnet-5"] {
        let body = json!({ "text": "hi", "model": model });
        let refused = chat.turn(IN_APP, &session, body).bearer(&token).send().await.refused(422);
        assert_eq!((&refused["error"], &refused["allowed"]), (&json!("model_not_allowed"), &json!([MODEL])), "{model}");
    }
    for model in ["default", MODEL] {
        let body = json!({ "text": "hi", "model": model });
        chat.turn(IN_APP, &session, body).bearer(&token).send().await.expect(200);
    }
    assert_eq!(chat.provider.ledger().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn project_model_precedes_organization_model() {
    let chat = Chat::start().await;
    let (flat, own) = (chat.session(FLAT).await, chat.session(IN_APP).await);
    let change = json!({ "model_id": "claude-opus-5" });
    chat.server.patch("/v1/agent_projects/app", change).send().await.expect(200);
    for (family, session, model) in
        [(FLAT, &flat, MODEL), (IN_APP, &own, "claude-opus-5"), (FLAT, &own, "claude-opus-5")]
    {
        chat.say(family, session, "hi").await;
        assert_eq!(last_call(&chat).1, model);
    }
    chat.provision(json!({ "model_id": null })).await;
    chat.server.patch("/v1/agent_projects/app", json!({ "model_id": null })).send().await.expect(200);
    for (family, session) in [(FLAT, &flat), (IN_APP, &own)] {
        for model in [Value::Null, json!("default")] {
            let body = json!({ "text": "hi", "model": model });
            assert_eq!(chat.turn(family, session, body).send().await.refused(422)["error"], "model_required");
        }
        turn(&chat, family, session, "gpt-4o").await.expect(200);
        let refused = turn(&chat, family, session, "claude-unheard-of").await.refused(422);
        assert_eq!(refused["allowed"], json!([]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cost_cap_requires_a_price() {
    let chat = Chat::start().await;
    chat.provision(json!({ "model_id": "claude-unheard-of" })).await;
    let (key, token) = chat.server.key(&["read", "write"]).await;
    let session = chat.session(FLAT).await;
    chat.say(FLAT, &session, "an unpriced model is usable without a cost cap").await;
    let own = async |budget: Value| {
        chat.server.patch(&format!("/v1/api_keys/{key}"), json!({ "budget": budget })).send().await.expect(200);
    };
    let cap = async |budget: Value| {
        chat.server.request(Method::PUT, "/v1/budget").body(budget).send().await.expect(200);
    };
    let say = async || chat.turn(FLAT, &session, json!({ "text": "hi" })).bearer(&token).send().await;
    own(json!({ "total_tokens": 1_000_000 })).await;
    say().await.expect(200);
    own(json!({ "cost_cents": 1_000 })).await;
    assert_eq!(say().await.refused(422)["error"], "model_unpriced");
    own(Value::Null).await;
    cap(json!({ "cost_cents": 1_000 })).await;
    assert_eq!(say().await.refused(422)["error"], "model_unpriced");
    turn(&chat, FLAT, &session, "gpt-4o").await.expect(200);
    assert_all_released(&chat.server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_model_key_is_named() {
    let chat = Chat::start().await;
    for key in chat.server.get("/v1/model_keys").send().await.expect(200)["model_keys"].as_array().unwrap() {
        chat.server.delete(&format!("/v1/model_keys/{}", key["id"])).send().await.expect(200);
    }
    for family in FAMILIES {
        let session = chat.session(family).await;
        let refused = chat.turn(family, &session, json!({ "text": "hi" })).send().await.refused(422);
        assert_eq!((&refused["error"], &refused["provider"]), (&json!("no_model_key"), &json!("anthropic")));
        assert_eq!(chat.get(family, &session).await["turn"], Value::Null, "the session was not claimed");
    }
}

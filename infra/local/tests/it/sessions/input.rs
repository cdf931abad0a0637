//! The input of turns: bounds, bodies that are too large or broken, and texts of any script.

use http::Method;
use serde_json::{Value, json};

use super::{Chat, FAMILIES, FLAT, streamed_text};
use karta_local::provider::Script;

#[tokio::test(flavor = "multi_thread")]
async fn fields_have_bounds() {
    let chat = Chat::start().await;
    for family in FAMILIES {
        let session = chat.session(family).await;
        for (body, field) in [
            (json!({}), "text"),
            (json!({ "text": "" }), "text"),
            (json!({ "text": 7 }), "text"),
            (json!({ "text": null }), "text"),
            (json!({ "text": "x".repeat(999_999) }), "text"),
            (json!({ "text": "\u{1}".repeat(170_000) }), "text"),
            (json!({ "text": "x", "max_tokens": 0 }), "max_tokens"),
            (json!({ "text": "x", "max_tokens": -1 }), "max_tokens"),
            (json!({ "text": "x", "max_tokens": 1_000_001 }), "max_tokens"),
            (json!({ "text": "x", "max_tokens": 1.5 }), "max_tokens"),
            (json!({ "text": "x", "max_tokens": "9" }), "max_tokens"),
            (json!({ "text": "x", "thinking": "yes" }), "thinking"),
            (json!({ "text": "x", "stream": 1 }), "stream"),
            (json!({ "text": "x", "base_url": "http://x" }), "base_url"),
            (json!({ "text": "x", "api_key": "x" }), "api_key"),
            (json!({ "text": "x", "system": "x" }), "system"),
            (json!([]), "body"),
        ] {
            let refused = chat.turn(family, &session, body).send().await;
            assert_eq!(refused.invalid_field(), field);
        }
        assert_eq!(chat.get(family, &session).await["turn"], Value::Null);
        for body in [
            json!({ "text": "x".repeat(999_998) }),
            json!({ "text": " " }),
            json!({ "text": "x", "max_tokens": 1 }),
            json!({ "text": "x", "max_tokens": 1_000_000, "thinking": true }),
            json!({ "text": "x", "max_tokens": null, "model": null }),
        ] {
            chat.turn(family, &session, body).send().await.expect(200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_limit_and_thinking_reach_the_provider() {
    let chat = Chat::start().await;
    for (model, limit) in [("claude-sonnet-5", "max_tokens"), ("gpt-4o", "max_completion_tokens")] {
        let session = chat.session(FLAT).await;
        for (given, sent) in [(json!(null), 4_096), (json!(77), 77)] {
            let body = json!({ "text": "x", "model": model, "max_tokens": given });
            chat.turn(FLAT, &session, body).send().await.expect(200);
            let call: Value = serde_json::from_slice(&chat.provider.ledger().pop().unwrap().body).unwrap();
            assert_eq!(call[limit], sent, "{call}");
            assert!(call.get("thinking").is_none(), "{call}");
        }
    }
    let session = chat.session(FLAT).await;
    chat.provider.push(Script { reasoning_tokens: 3, ..Script::default() });
    let body = json!({ "text": "x", "thinking": true, "max_tokens": 8_000 });
    let answer = chat.turn(FLAT, &session, body).send().await.expect(200);
    let call: Value = serde_json::from_slice(&chat.provider.ledger().pop().unwrap().body).unwrap();
    assert!(call.get("thinking").is_some(), "{call}");
    let parts = answer["messages"][1]["parts"].as_array().unwrap();
    let kinds: Vec<_> =
        parts.iter().map(|part| (part["type"].as_str().unwrap(), part["text"].as_str().unwrap())).collect();
    assert_eq!(kinds[0], ("reasoning", "one two six "));
    assert_eq!((kinds.len(), kinds[1].0, answer["text"].as_str().unwrap()), (2, "text", kinds[1].1));
    assert_eq!(answer["usage"]["output_tokens"], 15);
    // Reasoning is not sent back.
    chat.say(FLAT, &session, "and?").await;
    let call: Value = serde_json::from_slice(&chat.provider.ledger().pop().unwrap().body).unwrap();
    assert_eq!(call["messages"][1]["content"], answer["text"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_bodies_are_refused() {
    let chat = Chat::start().await;
    let session = chat.session(FLAT).await;
    let turn = |body: Vec<u8>| chat.turn(FLAT, &session, json!({})).raw_body(body).send();
    let size = 4 << 20;
    let padded = |size: usize| {
        let body = json!({ "text": "x" }).to_string();
        format!("{body}{}", " ".repeat(size - body.len())).into_bytes()
    };
    turn(padded(size)).await.expect(200);
    assert_eq!(turn(padded(size + 1)).await.refused(413)["error"], "body_too_large");
    for body in [&b""[..], b"{", b"{\"text\":\"x\"", b"{\"text\":\"\xff\"}", b"{\"text\":\"a\nb\"}", b"null x"] {
        assert_eq!(turn(body.to_vec()).await.refused(400)["error"], "malformed_json", "{body:?}");
    }
    for (body, field) in [
        (r#"{"text":"\ud83d"}"#, "text"),
        (r#"{"text":"a\udc00b"}"#, "text"),
        (r#"{"text":"x","text":"y"}"#, "text"),
        (r#"{"text":"x","max_tokens":1e400}"#, "max_tokens"),
    ] {
        assert_eq!(turn(body.into()).await.invalid_field(), field, "{body}");
    }
    for depth in [65, 10_000, 1_000_000] {
        let deep = format!(r#"{{"text":"x","model":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert_eq!(turn(deep.into()).await.status, 422, "{depth}");
        assert_eq!(turn(format!(r#"{{"text":{}"#, "[".repeat(depth)).into()).await.status, 400, "{depth}");
    }
    let gzip = chat.turn(FLAT, &session, json!({ "text": "x" })).header("content-encoding", "gzip").send().await;
    assert_eq!(gzip.refused(415)["error"], "unsupported_encoding");
    let created = chat.server.post(FLAT, json!({ "metadata": { "k": "v".repeat(70_000) } })).send().await;
    assert_eq!(created.refused(413)["error"], "body_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_round_trip_exactly() {
    let chat = Chat::start().await;
    let prefix = "This is Karta's demo provider, not a model. You wrote: ";
    for (model, family) in [("claude-sonnet-5", FLAT), ("gpt-4o", super::IN_APP)] {
        let session = chat.session(family).await;
        for text in [
            "\0",
            "a\0b\u{1}\u{7f}\u{80}",
            "日本語 中文 한국어 𠮷",
            "👩‍👩‍👧‍👦 🏳️‍🌈 e\u{301}",
            "\u{feff}\u{200b}\u{2028}\u{2029}",
            "\r\n\n\n data: x\n\nevent: done\n\n",
            "\"\\\u{8}\u{c}/</script>",
            "\u{fffd}\u{ffff}\u{10ffff}",
            "  ",
        ] {
            chat.provider.push(Script { echoes: true, ..Script::default() });
            let body = json!({ "text": text, "model": model, "stream": true });
            let streamed = chat.turn(family, &session, body).send().await;
            assert_eq!(streamed_text(&streamed.text), format!("{prefix}{text}"), "{text:?}");
            let path = format!("{family}/{session}/messages?limit=100");
            let listed = chat.server.get(&path).send().await.expect(200);
            let [.., user, assistant] = listed["messages"].as_array().unwrap().as_slice() else { panic!("{listed}") };
            assert_eq!((&user["text"], &assistant["text"]), (&json!(text), &json!(format!("{prefix}{text}"))));
            let followed = chat.server.get(&format!("{family}/{session}/stream")).send().await;
            assert_eq!(followed.text, streamed.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_may_hold_credentials() {
    let chat = Chat::start().await;
    let session = chat.session(FLAT).await;
    let text = "my key is kt_live_0123456789abcdefghijklmnopqrstuvwxyz, is it safe?";
    chat.provider.push(Script { echoes: true, ..Script::default() });
    let answer = chat.say(FLAT, &session, text).await;
    assert!(answer["text"].as_str().unwrap().ends_with(text));
    let refused = chat.server.post(FLAT, json!({ "metadata": { "note": chat.server.admin } })).send().await;
    assert_eq!(refused.invalid_field(), "metadata.note", "metadata is not sealed");
    chat.server.request(Method::POST, &format!("{FLAT}/{session}/cancel")).send().await.refused(409);
}

//! Every route in both families: its success, its own errors and the scope that it needs.

use std::time::Duration;

use http::Method;
use karta_local::provider::{Fault, Script};
use serde_json::{Value, json};

use super::{BY_ID, Chat, FAMILIES, FLAT, IN_APP, MODEL, events, streamed_text};

/// An answer that lasts until it is canceled.
fn slow() -> Script {
    Script { tokens: 3_000, pause: Duration::from_millis(20), ..Script::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_lives_from_creation_to_deletion() {
    let (chat, _clock) = Chat::start_at_noon().await;
    let project = chat.server.get("/v1/agent_projects/app").send().await.expect(200)["agent_project"]["id"].take();
    for (family, project) in
        [(FLAT, Value::Null), (IN_APP, json!({ "ref": "app", "project_id": project, "version": 1 }))]
    {
        let body = json!({ "metadata": { "user_id": "ann", "plan": "pro" } });
        let created = chat.server.post(family, body).send().await.expect(201);
        let id = created["id"].as_str().unwrap();
        let expected = json!({
            "id": id, "metadata": { "user_id": "ann", "plan": "pro" }, "user_id": "ann", "status": "active",
            "current_agent": "default", "project": project, "turn": null,
            "usage": { "input_tokens": 0, "output_tokens": 0, "cost_cents": 0 },
            "created_at": "2026-11-21T12:00:00.000Z", "updated_at": "2026-11-21T12:00:00.000Z",
            "expires_at": "2026-12-21T12:00:00.000Z",
        });
        assert_eq!(created, expected);
        assert_eq!(chat.get(family, id).await, expected);
        let resumed = chat.server.post(family, json!({ "session_id": id })).send().await;
        assert_eq!(resumed.expect(200), expected);
        let listed = chat.server.get(family).send().await.expect(200);
        assert_eq!(listed["sessions"][0], expected);
        chat.server.delete(&format!("{family}/{id}")).send().await.expect(204);
        chat.server.get(&format!("{family}/{id}")).send().await.refused(404);
    }
    let (first, second) = (chat.session(FLAT).await, chat.session(FLAT).await);
    assert!(first.starts_with("sess_") && first.len() >= 5 + 22 && first != second);
}

#[tokio::test(flavor = "multi_thread")]
async fn unary_turn_has_the_documented_answer() {
    let (chat, _clock) = Chat::start_at_noon().await;
    for family in FAMILIES {
        let session = chat.session(family).await;
        let answer = chat.say(family, &session, "Hello, world").await;
        let text = "one two six ten red sky sea sun one two six ten ";
        let [user, assistant] = answer["messages"].as_array().unwrap().as_slice() else { panic!("{answer}") };
        let message = |message: &Value, role: &str, text: &str| {
            json!({
                "id": message["id"], "turn_id": answer["turn_id"], "role": role, "text": text,
                "parts": [{ "id": "part_1", "type": "text", "text": text }], "created_at": "2026-11-21T12:00:00.000Z",
            })
        };
        assert_eq!(*user, message(user, "user", "Hello, world"));
        assert_eq!(*assistant, message(assistant, "assistant", text));
        assert_ne!(user["id"], assistant["id"]);
        let usage = json!({
            "input_tokens": 3, "output_tokens": 12, "cache_read_tokens": 0, "cache_write_tokens": 0, "cost_cents": 1,
        });
        let expected = json!({
            "text": text, "session_id": session, "turn_id": answer["turn_id"], "agent": "default",
            "messages": [user, assistant], "usage": usage, "stop_reason": "end_turn",
        });
        assert_eq!(answer, expected);
        let listed = chat.server.get(&format!("{family}/{session}/messages")).send().await.expect(200);
        assert_eq!(listed, json!({ "messages": [user, assistant], "next_cursor": null }));
        let shown = chat.get(family, &session).await;
        let turn = json!({ "id": answer["turn_id"], "status": "completed", "started_at": "2026-11-21T12:00:00.000Z" });
        assert_eq!(shown["turn"], turn);
        assert_eq!(shown["usage"], json!({ "input_tokens": 3, "output_tokens": 12, "cost_cents": 1 }));
    }
    assert_eq!(chat.totals().await["total_tokens"], 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_turn_can_be_followed_again() {
    let chat = Chat::start().await;
    for family in FAMILIES {
        let session = chat.session(family).await;
        let body = json!({ "text": "Hello", "stream": true, "thinking": true });
        let streamed = chat.turn(family, &session, body).send().await;
        assert_eq!(streamed.status, 200);
        for (name, value) in [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-store, no-transform"),
            ("x-accel-buffering", "no"),
        ] {
            assert_eq!(streamed.headers[name], value);
        }
        assert!(streamed.headers.contains_key("x-request-id"));
        assert_eq!(streamed_text(&streamed.text), "one two six ten red sky sea sun one two six ten ");
        let (last, data) = events(&streamed.text).pop().unwrap();
        assert_eq!(
            (last.as_str(), &data["stop_reason"], &data["usage"]["output_tokens"]),
            ("done", &json!("end_turn"), &json!(12))
        );
        let followed = chat.server.get(&format!("{family}/{session}/stream")).send().await;
        assert_eq!((followed.status.as_u16(), &followed.text), (200, &streamed.text));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_without_turn_has_nothing_to_follow() {
    let chat = Chat::start().await;
    for family in FAMILIES {
        let session = chat.session(family).await;
        for request in [
            chat.server.get(&format!("{family}/{session}/stream")),
            chat.server.request(Method::POST, &format!("{family}/{session}/cancel")),
        ] {
            let refused = request.send().await;
            assert_eq!(refused.refused(409)["error"], "no_turn_in_progress");
        }
        let none = chat.server.get(&format!("{family}/{session}/messages")).send().await.expect(200);
        assert_eq!(none, json!({ "messages": [], "next_cursor": null }));
        chat.say(family, &session, "hi").await;
        let refused = chat.server.request(Method::POST, &format!("{family}/{session}/cancel")).send().await;
        assert_eq!(refused.refused(409)["error"], "no_turn_in_progress");
        let unknown = format!("turn_{}.1", "0".repeat(32));
        let refused = chat.server.get(&format!("{family}/{session}/stream?after={unknown}")).send().await;
        assert_eq!(refused.refused(409)["error"], "no_turn_in_progress");
        let refused = chat.server.get(&format!("{family}/{session}/stream?after=1")).send().await;
        assert_eq!(refused.invalid_field(), "after");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn running_turn_excludes_turns_and_deletion() {
    let chat = Chat::start().await;
    for family in FAMILIES {
        let session = chat.session(family).await;
        chat.provider.push(slow());
        let running = tokio::spawn(chat.turn(family, &session, json!({ "text": "long" })).send());
        crate::harness::until("the provider is called", async || chat.provider.unused_scripts() == 0).await;
        for request in [
            chat.turn(family, &session, json!({ "text": "second" })),
            chat.turn(family, &session, json!({ "text": "second", "stream": true })),
            chat.server.delete(&format!("{family}/{session}")),
        ] {
            assert_eq!(request.send().await.refused(409)["error"], "turn_in_progress");
        }
        let canceled = chat.server.request(Method::POST, &format!("{family}/{session}/cancel")).send().await;
        assert_eq!(canceled.expect(202)["id"], session);
        assert_eq!(running.await.unwrap().refused(409)["error"], "turn_cancelled");
        assert_eq!(chat.get(family, &session).await["turn"]["status"], "cancelled");
        chat.say(family, &session, "again").await;
        chat.server.delete(&format!("{family}/{session}")).send().await.expect(204);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_needs_its_scope() {
    let chat = Chat::start().await;
    let (_, read) = chat.server.key(&["read"]).await;
    let (_, write) = chat.server.key(&["write"]).await;
    let (_, admin) = chat.server.key(&["admin"]).await;
    for family in FAMILIES {
        let session = chat.session(family).await;
        for route in &BY_ID {
            for (held, token) in [("read", &read), ("write", &write), ("admin", &admin)] {
                let reply = route.to(&chat.server, family, &session).bearer(token).send().await;
                let what = format!("{} {family}/…{} with {held}", route.method, route.suffix);
                if held == route.scope {
                    assert!(![401, 403, 404].contains(&reply.status.as_u16()), "{what}: {}", reply.text);
                } else {
                    assert_eq!(reply.forbidden(), format!("missing scope: {}", route.scope), "{what}");
                }
            }
        }
        for token in [&read, &admin] {
            let refused = chat.server.post(family, json!({})).bearer(token).send().await;
            assert_eq!(refused.forbidden(), "missing scope: write");
        }
        for token in [&write, &admin] {
            assert_eq!(chat.server.get(family).bearer(token).send().await.forbidden(), "missing scope: read");
        }
        chat.server.post(family, json!({})).bearer(&write).send().await.expect(201);
        chat.server.get(family).bearer(&read).send().await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_credential_is_refused_first() {
    let chat = Chat::start().await;
    let unauthorized = crate::harness::unauthorized();
    for family in FAMILIES {
        let session = chat.session(family).await;
        for route in &BY_ID {
            let refused = route.to(&chat.server, family, &session).anonymous().raw_body("{").send().await;
            assert_eq!(refused.refused(401), unauthorized, "{route:?}");
            let refused = route.to(&chat.server, family, &session).bearer("kt_live_0123456789abcdefghijklmnop").send();
            assert_eq!(refused.await.refused(401), unauthorized, "{route:?}");
        }
        assert_eq!(chat.server.post(family, json!({})).anonymous().send().await.refused(401), unauthorized);
        assert_eq!(chat.server.get(family).anonymous().send().await.refused(401), unauthorized);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn error_codes_keep_their_order() {
    let chat = Chat::start().await;
    let (_, read) = chat.server.key(&["read"]).await;
    let missing = format!("sess_{}", "0".repeat(32));
    let cap = async |budget: Value| {
        chat.server.request(Method::PUT, "/v1/budget").body(budget).send().await.expect(200);
    };
    for family in FAMILIES {
        let session = chat.session(family).await;
        cap(json!({ "total_tokens": 0 })).await;
        // 403 of the scope, 422 of the form, 402, then 404.
        let turn = |id: &str, body: &str| chat.turn(family, id, json!({})).raw_body(body.to_owned());
        turn(&missing, "{").bearer(&read).send().await.refused(403);
        turn(&missing, "{").send().await.refused(400);
        turn(&missing, "{}").send().await.refused(422);
        assert_eq!(turn(&missing, r#"{"text":"x"}"#).send().await.refused(402)["error"], "budget_exhausted");
        assert_eq!(turn(&session, r#"{"text":"x"}"#).send().await.refused(402)["error"], "budget_exhausted");
        cap(json!({})).await;
        turn(&missing, r#"{"text":"x","model":"?"}"#).send().await.refused(404);
        let not_allowed = turn(&session, r#"{"text":"x","model":"?"}"#).send().await;
        let allowed = json!([MODEL]);
        let body = not_allowed.refused(422);
        assert_eq!((&body["error"], &body["allowed"]), (&json!("model_not_allowed"), &allowed));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_turn_leaves_session_usable() {
    let chat = Chat::start().await;
    let session = chat.session(FLAT).await;
    let fault = Fault::Status { status: 400, body: r#"{"error":{"message":"bad"}}"#.to_owned(), retry_after: None };
    chat.provider.push(Script { fault, ..Script::default() });
    let refused = chat.turn(FLAT, &session, json!({ "text": "x" })).send().await;
    assert_eq!(refused.refused(422)["error"], "provider_rejected");
    assert_eq!(chat.get(FLAT, &session).await["turn"]["status"], "failed");
    chat.say(FLAT, &session, "again").await;
    assert_eq!(chat.totals().await["input_tokens"], 2, "\"again\" only");
}

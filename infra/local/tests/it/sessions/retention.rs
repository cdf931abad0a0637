//! The end of sessions: 30 days after the last turn, or their deletion. The sweep then deletes
//! their content.

use std::time::Duration;

use serde_json::{Value, json};

use super::{BY_ID, Chat, FAMILIES, FLAT, IN_APP};

const SWEEP: &str = "worker-turns-sweep";
const DAY: Duration = Duration::from_hours(24);

#[tokio::test(flavor = "multi_thread")]
async fn session_expires_after_its_last_turn() {
    let (chat, clock) = Chat::start_at_noon().await;
    let (idle, used) = (chat.session(FLAT).await, chat.session(IN_APP).await);
    clock.advance(DAY * 10);
    chat.say(IN_APP, &used, "hi").await;
    assert_eq!(chat.get(FLAT, &idle).await["expires_at"], "2026-12-21T12:00:00.000Z");
    assert_eq!(chat.get(IN_APP, &used).await["expires_at"], "2026-12-31T12:00:00.000Z");
    // Reading and resuming do not prolong it.
    clock.advance(DAY * 19 + DAY.saturating_sub(Duration::from_millis(1)));
    chat.server.post(FLAT, json!({ "session_id": idle })).send().await.expect(200);
    clock.advance(Duration::from_millis(1));
    for route in &BY_ID {
        route.to(&chat.server, FLAT, &idle).send().await.refused(404);
    }
    chat.server.post(FLAT, json!({ "session_id": idle })).send().await.refused(404);
    let listed = chat.server.get(FLAT).send().await.expect(200);
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 1, "only the used one");
    chat.say(IN_APP, &used, "again").await;
    assert_eq!(chat.get(IN_APP, &used).await["expires_at"], "2027-01-20T12:00:00.000Z");
    chat.server.work(SWEEP).await;
    let left = Value::from(chat.stored().await).to_string();
    assert!(!left.contains(&idle) && left.contains(&used));
    chat.get(IN_APP, &used).await;
    clock.advance(DAY * 30);
    chat.server.work(SWEEP).await;
    assert_eq!(chat.stored().await, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn content_is_sealed_and_deleted_by_the_sweep() {
    let chat = Chat::start().await;
    let kept = chat.session(FLAT).await;
    chat.say(FLAT, &kept, "kept").await;
    let before = chat.stored().await;
    for family in FAMILIES {
        let session = chat.session_as(family, &chat.server.admin, json!({ "user_id": "ann-of-acme" })).await;
        chat.provision(json!({ "transcript_access": true })).await;
        for text in ["the quick brown fox", "jumps over"] {
            let body = json!({ "text": text, "stream": true });
            let streamed = chat.turn(family, &session, body).idempotency_key(text).send().await;
            assert_eq!(streamed.status, 200);
        }
        let stored = Value::from(chat.stored().await).to_string();
        for content in ["quick brown", "jumps over", "one two six"] {
            assert!(!stored.contains(content), "{content} is not sealed");
        }
        chat.server.delete(&format!("{family}/{session}")).send().await.expect(204);
        chat.server.work(SWEEP).await;
        let stored = chat.stored().await;
        let of_session = stored.iter().filter(|item| item["pk"].as_str().unwrap().contains(&session));
        assert_eq!(of_session.count(), 0, "messages, turns and events");
        let left = stored.iter().filter(|item| item.to_string().contains(&session));
        let left: Vec<_> = left.filter(|item| item.get("ttl").is_none()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let after = chat.stored().await;
    let without_records: Vec<_> = after.into_iter().filter(|item| item.get("fingerprint").is_none()).collect();
    assert_eq!(without_records, before);
    chat.say(FLAT, &kept, "still there").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_ids_are_hashed_in_keys() {
    let chat = Chat::start().await;
    chat.session_as(IN_APP, &chat.server.admin, json!({ "user_id": "ann@example.com" })).await;
    for item in chat.stored().await {
        assert!(!format!("{}{}", item["pk"], item["sk"]).contains("ann"), "{item}");
    }
}

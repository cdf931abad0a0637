//! Reading what was said: `transcript_access`, its provision, and the audit events of reads and
//! deletions.

use serde_json::{Value, json};

use super::{Chat, FAMILIES, FLAT, IN_APP};

/// The routes that read or continue a conversation.
fn requests(chat: &Chat, family: &str, session: &str) -> [crate::harness::Request; 4] {
    let path = format!("{family}/{session}");
    [
        chat.server.get(&format!("{path}/messages")),
        chat.server.get(&format!("{path}/stream")),
        chat.turn(family, session, json!({ "text": "hi" })),
        chat.turn(family, session, json!({ "text": "hi", "stream": true })),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn private_sessions_need_transcript_access() {
    let chat = Chat::start().await;
    let (ann, anonymous) = (chat.token(Some("ann")).await, chat.token(None).await);
    let mut private = vec![
        (IN_APP, chat.session_as(IN_APP, &ann, json!({})).await, Some(&ann)),
        (IN_APP, chat.session_as(IN_APP, &anonymous, json!({})).await, Some(&anonymous)),
    ];
    for family in FAMILIES {
        private.push((family, chat.session_as(family, &chat.server.admin, json!({ "user_id": "ann" })).await, None));
    }
    for (family, session, owner) in &private {
        if let Some(token) = owner {
            chat.turn(family, session, json!({ "text": "hello" })).bearer(token).send().await.expect(200);
            chat.server.get(&format!("{family}/{session}/messages")).bearer(token).send().await.expect(200);
        }
        for request in requests(&chat, family, session) {
            assert_eq!(
                request.send().await.forbidden(),
                "transcript_access is off: use a session token of the user, or ask the operator to enable it"
            );
        }
        // The session itself holds no content.
        chat.get(family, session).await;
    }
    let calls = chat.provider.ledger().len();
    chat.provision(json!({ "transcript_access": true })).await;
    for (family, session, _) in &private {
        let [_, _, turn, _] = requests(&chat, family, session);
        turn.send().await.expect(200);
        for request in requests(&chat, family, session) {
            assert_eq!(request.send().await.status, 200);
        }
    }
    assert_eq!(chat.provider.ledger().len(), calls + 3 * private.len());
    chat.provision(json!({ "transcript_access": false })).await;
    for (family, session, _) in &private {
        for request in requests(&chat, family, session) {
            assert_eq!(
                request.send().await.forbidden(),
                "transcript_access is off: use a session token of the user, or ask the operator to enable it"
            );
        }
        chat.server.delete(&format!("{family}/{session}")).send().await.expect(204);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_keys_stay_readable() {
    let chat = Chat::start().await;
    for family in FAMILIES {
        let session = chat.session(family).await;
        chat.say(family, &session, "hi").await;
        for request in requests(&chat, family, &session) {
            assert_eq!(request.send().await.status, 200);
        }
    }
    assert_eq!(chat.server.audited("session.transcript_read").await, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn transcript_reads_and_deletions_are_audited() {
    let chat = Chat::start().await;
    chat.provision(json!({ "transcript_access": true })).await;
    let ann = chat.token(Some("ann")).await;
    let session = chat.session_as(IN_APP, &ann, json!({})).await;
    let say = chat.turn(IN_APP, &session, json!({ "text": "a secret of ann" })).bearer(&ann);
    say.send().await.expect(200);
    let path = format!("{IN_APP}/{session}/messages");
    chat.server.get(&path).bearer(&ann).send().await.expect(200);
    assert_eq!(chat.server.audited("session.transcript_read").await.len(), 0, "the user's own read");
    let (key, reader) = chat.server.key(&["read"]).await;
    let read = chat.server.get(&path).bearer(&reader).send().await;
    let request_id = read.headers["x-request-id"].to_str().unwrap().to_owned();
    read.expect(200);
    let [event] = chat.server.audited("session.transcript_read").await.try_into().unwrap();
    assert_eq!(event["resource"], json!({ "kind": "session", "id": session }));
    assert_eq!((&event["actor"]["id"], &event["request_id"]), (&json!(key), &json!(request_id)));
    chat.server.get(&format!("{IN_APP}/{session}/stream")).bearer(&reader).send().await;
    assert_eq!(chat.server.audited("session.transcript_read").await.len(), 2, "a followed stream is a read");

    chat.server.delete(&format!("{IN_APP}/{session}")).send().await.expect(204);
    let [event] = chat.server.audited("session.deleted").await.try_into().unwrap();
    assert_eq!(event["resource"], json!({ "kind": "session", "id": session }));
    chat.server.delete(&format!("{IN_APP}/{session}")).send().await.refused(404);
    let own = chat.session_as(IN_APP, &ann, json!({})).await;
    chat.server.delete(&format!("{IN_APP}/{own}")).bearer(&ann).send().await.expect(204);
    let flat = chat.session(FLAT).await;
    chat.server.delete(&format!("{FLAT}/{flat}")).send().await.expect(204);
    assert!(chat.server.audited("session.deleted").await.len() >= 2);
    let log = Value::from(chat.server.audit_events().await).to_string();
    assert!(!log.contains("a secret of ann") && !log.contains("one two six"), "no content in the audit log");
    let shown = chat.server.get("/v1/audit_events?action=session.deleted").send().await.expect(200);
    assert_eq!(shown["audit_events"][0]["resource"]["id"], flat);
}

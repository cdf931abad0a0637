//! Creating and resuming sessions: users, metadata, projects and their releases.

use http::Method;
use serde_json::{Value, json};

use super::{Chat, FAMILIES, FLAT, IN_APP};

#[tokio::test(flavor = "multi_thread")]
async fn token_creates_sessions_of_its_user_only() {
    let chat = Chat::start().await;
    let (ann, anonymous) = (chat.token(Some("ann")).await, chat.token(None).await);
    let create =
        |token: &str, metadata: Value| chat.server.post(IN_APP, json!({ "metadata": metadata })).bearer(token).send();
    for metadata in [json!({}), json!({ "user_id": "ann" })] {
        let created = create(&ann, metadata).await.expect(201);
        assert_eq!((&created["user_id"], &created["metadata"]["user_id"]), (&json!("ann"), &json!("ann")));
    }
    let created = create(&anonymous, json!({ "plan": "pro" })).await.expect(201);
    assert_eq!((&created["user_id"], &created["metadata"]), (&Value::Null, &json!({ "plan": "pro" })));
    for (token, user) in [(&ann, "bob"), (&ann, "Ann"), (&ann, "ann "), (&anonymous, "ann")] {
        let refused = create(token, json!({ "user_id": user })).await;
        assert_eq!(refused.forbidden(), "wrong user: metadata.user_id must be the user of the session token", "{user}");
    }
    for family in FAMILIES {
        let created = chat.server.post(family, json!({ "metadata": { "user_id": "bob" } })).send().await.expect(201);
        assert_eq!(created["user_id"], "bob");
        for body in ["", "{}", r#"{"metadata":{}}"#, r#"{"session_id":null}"#] {
            let created = chat.server.post(family, json!({})).raw_body(body).send().await;
            assert_eq!(created.expect(201)["metadata"], json!({}), "{body:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_must_be_valid() {
    let chat = Chat::start().await;
    let pairs = |count: usize| (0..count).map(|at| (format!("k{at}"), json!("v"))).collect::<Value>();
    for family in FAMILIES {
        for (metadata, field) in [
            (json!({ "user_id": "" }), "metadata.user_id"),
            (json!({ "userId": "ann" }), "metadata.userId"),
            (json!({ "User_ID": "ann" }), "metadata.User_ID"),
            (json!({ "user_id": "  " }), "metadata.user_id"),
            (json!({ "user_id": "a\nb" }), "metadata.user_id"),
            (json!({ "user_id": "u".repeat(256) }), "metadata.user_id"),
            (json!({ "user_id": 7 }), "metadata.user_id"),
            (json!({ "k": 7 }), "metadata.k"),
            (json!({ "k": "v".repeat(501) }), "metadata.k"),
            (json!([]), "metadata"),
            (pairs(51), "metadata"),
            (json!({ "": "v" }), "metadata"),
        ] {
            let refused = chat.server.post(family, json!({ "metadata": metadata })).send().await;
            let named = refused.invalid_field();
            assert!(named.starts_with(field), "{metadata}: {named}");
        }
        assert_eq!(chat.server.post(family, json!({ "agent": "x" })).send().await.invalid_field(), "agent");
        let given = pairs(50);
        let created = chat.server.post(family, json!({ "metadata": given })).send().await.expect(201);
        assert_eq!(created["metadata"], given);
        let user = "日".repeat(85);
        let created = chat.server.post(family, json!({ "metadata": { "user_id": user } })).send().await.expect(201);
        assert_eq!(created["user_id"], user);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn user_of_a_token_counts_as_metadata() {
    let chat = Chat::start().await;
    let token = chat.token(Some("ann")).await;
    let pairs = |count: usize| (0..count).map(|at| (format!("k{at}"), json!("v"))).collect::<Value>();
    let create = |metadata: &Value| chat.server.post(IN_APP, json!({ "metadata": metadata })).bearer(&token).send();
    assert_eq!(create(&pairs(50)).await.invalid_field(), "metadata");
    let mut full = pairs(49);
    let created = create(&full).await.expect(201);
    full["user_id"] = json!("ann");
    assert_eq!(created["metadata"], full);
    create(&full).await.expect(201);
    let listed = chat.server.get(IN_APP).bearer(&token).send().await.expect(200);
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn resume_compares_the_user() {
    let chat = Chat::start().await;
    for family in FAMILIES {
        let admin = &chat.server.admin;
        let of_ann = chat.session_as(family, admin, json!({ "user_id": "ann", "plan": "pro" })).await;
        let of_nobody = chat.session(family).await;
        let resume = |id: &str, metadata: Value| {
            chat.server.post(family, json!({ "session_id": id, "metadata": metadata })).send()
        };
        for metadata in [json!({}), json!({ "user_id": "ann" })] {
            let resumed = resume(&of_ann, metadata).await.expect(200);
            assert_eq!(resumed, chat.get(family, &of_ann).await, "resuming changes nothing");
        }
        resume(&of_nobody, json!({})).await.expect(200);
        for (id, user) in [(&of_ann, "bob"), (&of_nobody, "ann")] {
            assert_eq!(resume(id, json!({ "user_id": user })).await.refused(404), json!({ "detail": "Not found" }));
        }
        for metadata in [json!({ "plan": "pro" }), json!({ "user_id": "ann", "plan": "pro" })] {
            assert_eq!(resume(&of_ann, metadata).await.invalid_field(), "metadata");
        }
    }
    let ann = chat.token(Some("ann")).await;
    let own = chat.session_as(IN_APP, &ann, json!({})).await;
    let body = json!({ "session_id": own, "metadata": { "user_id": "bob" } });
    let refused = chat.server.post(IN_APP, body).bearer(&ann).send().await;
    assert!(refused.forbidden().starts_with("wrong user"));
    let renewed = chat.token(Some("ann")).await;
    chat.server.post(IN_APP, json!({ "session_id": own })).bearer(&renewed).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn project_needs_an_active_release() {
    let chat = Chat::start().await;
    chat.server.project("empty").await;
    let sessions = "/v1/projects/empty/sessions";
    let token = chat.server.session_token("empty", json!({ "user_id": "ann" })).await;
    for bearer in [&chat.server.admin, &token] {
        let refused = chat.server.post(sessions, json!({})).bearer(bearer).send().await.refused(409);
        assert_eq!(refused["error"], "no_active_release");
        let listed = chat.server.get(sessions).bearer(bearer).send().await.expect(200);
        assert_eq!(listed, json!({ "sessions": [], "next_cursor": null }));
    }
    chat.deploy("empty").await;
    chat.server.post(sessions, json!({})).bearer(&token).send().await.expect(201);
    for slug in ["no-such", "NO-SLUG", &"p".repeat(64)] {
        let path = format!("/v1/projects/{slug}/sessions");
        for request in [chat.server.post(&path, json!({})), chat.server.get(&path)] {
            assert_eq!(request.send().await.refused(404), json!({ "detail": "Not found" }), "{slug}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_keeps_its_release() {
    let chat = Chat::start().await;
    let first = chat.session(IN_APP).await;
    let version = async |id: &str| chat.get(IN_APP, id).await["project"]["version"].take();
    assert_eq!(version(&first).await, 1);
    assert_eq!(chat.deploy("app").await, 2);
    let second = chat.session(IN_APP).await;
    chat.say(IN_APP, &first, "hi").await;
    assert_eq!((version(&first).await, version(&second).await), (json!(1), json!(2)));
    let rollback = chat.server.post("/v1/agent_projects/app/rollback", json!({ "version": 1 }));
    rollback.send().await.expect(200);
    let third = chat.session(IN_APP).await;
    assert_eq!((version(&second).await, version(&third).await), (json!(2), json!(1)));
    let resumed = chat.server.post(IN_APP, json!({ "session_id": second })).send().await.expect(200);
    assert_eq!(resumed["project"]["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_is_not_audited() {
    let chat = Chat::start().await;
    let before = chat.server.audit_events().await.len();
    let session = chat.session(FLAT).await;
    chat.server.post(FLAT, json!({ "session_id": session })).send().await.expect(200);
    chat.say(FLAT, &session, "hi").await;
    chat.server.request(Method::POST, &format!("{FLAT}/{session}/cancel")).send().await.refused(409);
    assert_eq!(chat.server.audit_events().await.len(), before);
}

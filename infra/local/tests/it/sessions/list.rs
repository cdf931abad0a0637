//! The three lists of sessions and the list of messages: order, pages, filters and cursors.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Chat, FLAT, IN_APP};

/// Reads a list page by page. Returns the ids in order.
async fn ids(chat: &Chat, path: &str, bearer: &str, field: &str) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    for _ in 0..50 {
        let page = chat.server.get(&format!("{path}limit=2{cursor}")).bearer(bearer).send().await.expect(200);
        let items = page[field].as_array().unwrap();
        assert!(items.len() <= 2);
        ids.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
    panic!("{path} has no end");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_newest_first_and_filtered() {
    let (chat, clock) = Chat::start_at_noon().await;
    chat.server.project("shop").await;
    chat.deploy("shop").await;
    let shop = "/v1/projects/shop/sessions";
    let admin = chat.server.admin.clone();
    let (ann, bob) = (chat.token(Some("ann")).await, chat.token(Some("bob")).await);
    let mut all: Vec<(&str, Option<&str>, String)> = Vec::new();
    for round in 0..3 {
        for (family, user) in [
            (FLAT, None),
            (FLAT, Some("ann")),
            (IN_APP, None),
            (IN_APP, Some("ann")),
            (IN_APP, Some("bob")),
            (shop, Some("ann")),
        ] {
            // Several sessions have the same time.
            if round > 0 {
                clock.advance(Duration::from_millis(1));
            }
            let metadata = user.map_or(json!({}), |user| json!({ "user_id": user }));
            let bearer = if round == 1 && family == IN_APP && user == Some("ann") { &ann } else { &admin };
            all.push((family, user, chat.session_as(family, bearer, metadata).await));
        }
    }
    all.reverse();
    let expected = |family: Option<&str>, user: Option<&str>| {
        let listed = all.iter().filter(|(of, by, _)| {
            family.is_none_or(|family| family == *of) && user.is_none_or(|user| Some(user) == *by)
        });
        listed.map(|(.., id)| id.clone()).collect::<Vec<_>>()
    };
    for (path, bearer, expected) in [
        (format!("{FLAT}?"), &admin, expected(None, None)),
        (format!("{FLAT}?user_id=ann&"), &admin, expected(None, Some("ann"))),
        (format!("{FLAT}?user_id=zoe&"), &admin, vec![]),
        (format!("{IN_APP}?"), &admin, expected(Some(IN_APP), None)),
        (format!("{IN_APP}?user_id=ann&"), &admin, expected(Some(IN_APP), Some("ann"))),
        (format!("{shop}?user_id=bob&"), &admin, vec![]),
        (format!("{IN_APP}?"), &ann, expected(Some(IN_APP), Some("ann"))),
        (format!("{IN_APP}?user_id=ann&"), &ann, expected(Some(IN_APP), Some("ann"))),
        (format!("{IN_APP}?"), &bob, expected(Some(IN_APP), Some("bob"))),
    ] {
        let mut listed = ids(&chat, &path, bearer, "sessions").await;
        let mut expected = expected;
        // The ids of one time are random: compare them as a set.
        let of_first_round: Vec<_> = all[12..].iter().map(|(.., id)| id).collect();
        for ids in [&mut listed, &mut expected] {
            let from = ids.iter().position(|id| of_first_round.contains(&id)).unwrap_or(ids.len());
            ids[from..].sort();
        }
        assert_eq!(listed, expected, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_lists_its_own_user_only() {
    let chat = Chat::start().await;
    let (ann, anonymous) = (chat.token(Some("ann")).await, chat.token(None).await);
    let refused = chat.server.get(IN_APP).bearer(&anonymous).send().await;
    assert_eq!(refused.forbidden(), "a session token without sub may not list sessions: mint a token with user_id");
    let refused = chat.server.get(&format!("{IN_APP}?user_id=ann")).bearer(&anonymous).send().await;
    refused.refused(403);
    let refused = chat.server.get(&format!("{IN_APP}?user_id=bob")).bearer(&ann).send().await;
    assert_eq!(refused.forbidden(), "wrong user: user_id must be the user of the session token");
    // It still reaches a session without a user by its id.
    let session = chat.session_as(IN_APP, &anonymous, json!({})).await;
    chat.server.get(&format!("{IN_APP}/{session}")).bearer(&anonymous).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn cursor_is_bound_to_its_list() {
    let chat = Chat::start().await;
    let (ann, bob) = (chat.token(Some("ann")).await, chat.token(Some("bob")).await);
    for _ in 0..2 {
        for user in ["ann", "bob"] {
            chat.session_as(IN_APP, &chat.server.admin, json!({ "user_id": user })).await;
        }
    }
    let session = chat.session_as(IN_APP, &ann, json!({})).await;
    chat.turn(IN_APP, &session, json!({ "text": "hi" })).bearer(&ann).send().await.expect(200);
    let cursor = async |path: &str, bearer: &str| {
        let separator = if path.contains('?') { '&' } else { '?' };
        let page = chat.server.get(&format!("{path}{separator}limit=1")).bearer(bearer).send().await.expect(200);
        page["next_cursor"].as_str().unwrap().to_owned()
    };
    let messages = format!("{IN_APP}/{session}/messages");
    let (admin, of_ann) = (&chat.server.admin, format!("{IN_APP}?user_id=ann"));
    let lists = [
        (FLAT, admin),
        (IN_APP, admin),
        (of_ann.as_str(), admin),
        ("/v1/sessions?user_id=ann", admin),
        (IN_APP, &bob),
        (messages.as_str(), &ann),
    ];
    for (path, bearer) in lists {
        let cursor = cursor(path, bearer).await;
        for (other, other_bearer) in lists {
            let separator = if other.contains('?') { '&' } else { '?' };
            let request = chat.server.get(&format!("{other}{separator}cursor={cursor}")).bearer(other_bearer);
            let reply = request.send().await;
            if (path, bearer) == (other, other_bearer) {
                reply.expect(200);
            } else {
                assert_eq!(reply.invalid_field(), "cursor", "{path} → {other}");
            }
        }
    }
    // A user's own list is the same list for the user and for the operator of the project.
    let cursor = cursor(IN_APP, &ann).await;
    chat.server.get(&format!("{of_ann}&cursor={cursor}")).send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn list_parameters_are_checked() {
    let chat = Chat::start().await;
    let session = chat.session(FLAT).await;
    let messages = format!("{FLAT}/{session}/messages");
    for list in [FLAT, IN_APP, &messages] {
        for (query, field) in [
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("limit=x", "limit"),
            ("cursor=x", "cursor"),
            ("after=1", "after"),
        ] {
            assert_eq!(
                chat.server.get(&format!("{list}?{query}")).send().await.invalid_field(),
                field,
                "{list}?{query}"
            );
        }
    }
    for query in ["user_id=", "user_id=%20", "user_id=%0A"] {
        assert_eq!(chat.server.get(&format!("{FLAT}?{query}")).send().await.invalid_field(), "user_id", "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_oldest_first() {
    let chat = Chat::start().await;
    for family in [FLAT, IN_APP] {
        let session = chat.session(family).await;
        let mut expected: Vec<Value> = Vec::new();
        for text in ["a", "b", "c"] {
            let answer = chat.say(family, &session, text).await;
            expected.extend(answer["messages"].as_array().unwrap().clone());
        }
        let path = format!("{family}/{session}/messages");
        let listed = chat.server.get(&path).send().await.expect(200);
        assert_eq!(listed, json!({ "messages": expected, "next_cursor": null }));
        let expected: Vec<_> = expected.iter().map(|message| message["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids(&chat, &format!("{path}?"), &chat.server.admin, "messages").await, expected);
    }
}

/// A response of a function, escaped once more as a string, has at most 6 MB.
#[tokio::test(flavor = "multi_thread")]
async fn page_of_large_sessions_fits_a_response() {
    let chat = Chat::start().await;
    let ann = chat.token(Some("ann")).await;
    let metadata: Value = (0..49).map(|at| (format!("note{at}"), Value::from("\"".repeat(500)))).collect();
    let mut created = Vec::new();
    for _ in 0..70 {
        created.push(chat.session_as(IN_APP, &ann, metadata.clone()).await);
    }
    created.reverse();
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = chat.server.get(&format!("{FLAT}?limit=100{cursor}")).send().await.expect(200);
        assert!(Value::from(page.to_string()).to_string().len() < 6_000_000);
        listed.extend(page["sessions"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(listed, created);
}

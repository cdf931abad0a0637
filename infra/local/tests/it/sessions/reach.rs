//! Isolation of sessions: a session that the caller does not reach answers like a missing one, on
//! every route, with the same calls to the store.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{BY_ID, Chat, FLAT, IN_APP, seen};
use crate::{
    fault_proxy::FaultProxy,
    harness::{Reply, Request},
};

const WRONG_KIND: &str = "session tokens are valid only under /v1/projects/{ref}/";
const WRONG_PROJECT: &str = "wrong project: the session token is for another project";

/// Sessions of different owners, each with a turn.
struct Sessions {
    /// Of no project and no user.
    flat: String,
    /// Of the user `ann`, and of no project.
    flat_ann: String,
    app: String,
    app_ann: String,
    app_bob: String,
    /// Of the user `ann` in the project `shop`.
    shop_ann: String,
    /// Of another organization.
    foreign: String,
}

impl Sessions {
    async fn create(chat: &Chat) -> Self {
        let admin = &chat.server.admin;
        chat.server.project("shop").await;
        chat.deploy("shop").await;
        let shop = "/v1/projects/shop/sessions";
        let ann = json!({ "user_id": "ann" });
        let (_, other) = chat.server.another_organization("other").await;
        let sessions = Self {
            flat: chat.session(FLAT).await,
            flat_ann: chat.session_as(FLAT, admin, ann.clone()).await,
            app: chat.session(IN_APP).await,
            app_ann: chat.session_as(IN_APP, &chat.token(Some("ann")).await, json!({})).await,
            app_bob: chat.session_as(IN_APP, admin, json!({ "user_id": "bob" })).await,
            shop_ann: chat.session_as(shop, admin, ann).await,
            foreign: chat.session_as(FLAT, &other, json!({})).await,
        };
        chat.provision(json!({ "transcript_access": true })).await;
        for session in [&sessions.flat, &sessions.flat_ann] {
            chat.say(FLAT, session, "hi").await;
        }
        for session in [&sessions.app, &sessions.app_ann, &sessions.app_bob] {
            chat.say(IN_APP, session, "hi").await;
        }
        chat.say(shop, &sessions.shop_ann, "hi").await;
        sessions
    }

    /// Returns the sessions out of reach of each caller, with the family that it uses.
    async fn unreachable(&self, chat: &Chat) -> Vec<(&'static str, &'static str, String, Vec<&String>)> {
        let Self { flat, flat_ann, app, app_ann, app_bob, shop_ann, foreign } = self;
        vec![
            ("key", FLAT, chat.server.admin.clone(), vec![foreign]),
            ("key", IN_APP, chat.server.admin.clone(), vec![flat, flat_ann, shop_ann, foreign]),
            ("ann", IN_APP, chat.token(Some("ann")).await, vec![flat, flat_ann, app, app_bob, shop_ann, foreign]),
            ("no user", IN_APP, chat.token(None).await, vec![flat, flat_ann, app_ann, app_bob, shop_ann, foreign]),
        ]
    }
}

/// Sends a request. Returns what the client sees, and the calls to the store.
async fn observed(proxy: &FaultProxy, request: Request) -> ((u16, Vec<(String, String)>, Value), Vec<String>) {
    proxy.forget();
    let reply = seen(request.send().await);
    let calls = proxy.seen().into_iter().filter(|call| !call.partitions().iter().any(|pk| pk.starts_with("USED#")));
    (reply, calls.map(|call| format!("{} {:?}", call.operation, call.tables())).collect())
}

fn assert_missing(reply: &(u16, Vec<(String, String)>, Value), what: &str) {
    assert_eq!((reply.0, &reply.2), (404, &json!({ "detail": "Not found" })), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_session_answers_like_a_missing_one() {
    let (chat, proxy) = Chat::behind_proxy().await;
    let sessions = Sessions::create(&chat).await;
    let before = chat.stored().await;
    let missing = format!("sess_{}", "0".repeat(32));
    for (caller, family, bearer, unreachable) in sessions.unreachable(&chat).await {
        let resume = |id: &str| chat.server.post(family, json!({ "session_id": id })).bearer(&bearer);
        // The first request of a token fills caches.
        observed(&proxy, resume(&missing)).await;
        let of_missing = observed(&proxy, resume(&missing)).await;
        assert_missing(&of_missing.0, caller);
        for id in &unreachable {
            assert_eq!(observed(&proxy, resume(id)).await, of_missing, "{caller} resumes {id} under {family}");
        }
        for route in &BY_ID {
            let what = format!("{caller}: {} {family}/…{}", route.method, route.suffix);
            let to = |id: &str| route.to(&chat.server, family, id).bearer(&bearer);
            let of_missing = observed(&proxy, to(&missing)).await;
            assert_missing(&of_missing.0, &what);
            for id in &unreachable {
                assert_eq!(observed(&proxy, to(id)).await, of_missing, "{what}");
            }
        }
    }
    let after = chat.stored().await;
    assert_eq!(after, before, "no request changed a session");
    assert_eq!(chat.provider.ledger().len(), 6, "no request reached the provider");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_session_id_answers_like_a_missing_one() {
    let chat = Chat::start().await;
    let (zeros, letters) = ("0".repeat(32), "A".repeat(32));
    let junk = [
        "sess_".to_owned(),
        "1".to_owned(),
        zeros.clone(),
        format!("sess_{letters}"),
        format!("sess_{zeros}0"),
        format!("turn_{zeros}"),
        format!("sess_{}%2F", &zeros[1..]),
        "%00".to_owned(),
        "s".repeat(2_000),
    ];
    for family in [FLAT, IN_APP] {
        for route in &BY_ID {
            for id in &junk {
                let refused = route.to(&chat.server, family, id).send().await.refused(404);
                assert_eq!(refused, json!({ "detail": "Not found" }), "{route:?} {id}");
            }
        }
        for id in ["", "sess_", "1", &zeros] {
            let refused = chat.server.post(family, json!({ "session_id": id })).send().await;
            assert_eq!(refused.refused(404), json!({ "detail": "Not found" }), "{id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_session_answers_like_a_missing_one() {
    let chat = Chat::start().await;
    for family in [FLAT, IN_APP] {
        let session = chat.session(family).await;
        chat.say(family, &session, "hi").await;
        chat.server.delete(&format!("{family}/{session}")).send().await.expect(204);
        for route in &BY_ID {
            let refused = route.to(&chat.server, family, &session).send().await.refused(404);
            assert_eq!(refused, json!({ "detail": "Not found" }), "{route:?}");
        }
        chat.server.post(family, json!({ "session_id": session })).send().await.refused(404);
        let listed = chat.server.get(family).send().await.expect(200);
        assert_eq!(listed["sessions"], json!([]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_token_opens_no_flat_route() {
    let (chat, proxy) = Chat::behind_proxy().await;
    let (session, token) = (chat.session(FLAT).await, chat.token(Some("ann")).await);
    let mut replies: Vec<Reply> = Vec::new();
    proxy.forget();
    for route in &BY_ID {
        replies.push(route.to(&chat.server, FLAT, &session).bearer(&token).send().await);
        replies.push(route.to(&chat.server, FLAT, "junk").raw_body("{").bearer(&token).send().await);
    }
    replies.push(chat.server.post(FLAT, json!({})).bearer(&token).send().await);
    replies.push(chat.server.get(FLAT).bearer(&token).send().await);
    for reply in replies {
        assert_eq!(reply.forbidden(), WRONG_KIND);
    }
    assert_no_lookup(&proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_of_another_project_is_refused_before_lookups() {
    let (chat, proxy) = Chat::behind_proxy().await;
    chat.server.project("shop").await;
    let token = chat.server.session_token("shop", json!({ "user_id": "ann" })).await;
    let session = chat.session_as(IN_APP, &chat.token(Some("ann")).await, json!({})).await;
    proxy.forget();
    for family in [IN_APP, "/v1/projects/no-such/sessions", "/v1/projects/NO-SLUG/sessions"] {
        let mut requests = vec![chat.server.post(family, json!({})).raw_body("{"), chat.server.get(family)];
        requests.extend(BY_ID.iter().map(|route| route.to(&chat.server, family, &session)));
        requests.extend(BY_ID.iter().map(|route| route.to(&chat.server, family, "junk")));
        for request in requests {
            assert_eq!(request.bearer(&token).send().await.forbidden(), WRONG_PROJECT, "{family}");
        }
    }
    assert_no_lookup(&proxy);
}

/// Asserts that only the authorizer called the store.
fn assert_no_lookup(proxy: &Arc<FaultProxy>) {
    for call in proxy.seen() {
        let is_authorizers = |pk: &String| {
            ["KP#", "KEY#", "ORG#", "BUD#", "USED#", "UMO#", "UMK#"].iter().any(|own| pk.starts_with(own))
        };
        assert!(call.partitions().iter().all(is_authorizers), "{call:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn caller_uses_every_session_within_reach() {
    let (chat, _proxy) = Chat::behind_proxy().await;
    let sessions = Sessions::create(&chat).await;
    let Sessions { flat, flat_ann, app, app_ann, app_bob, shop_ann, .. } = &sessions;
    let admin = chat.server.admin.clone();
    for (family, bearer, reachable) in [
        (FLAT, admin.clone(), vec![flat, flat_ann, app, app_ann, app_bob, shop_ann]),
        (IN_APP, admin, vec![app, app_ann, app_bob]),
        (IN_APP, chat.token(Some("ann")).await, vec![app_ann]),
        (IN_APP, chat.token(None).await, vec![app]),
    ] {
        for id in reachable {
            chat.turn(family, id, json!({ "text": "more" })).bearer(&bearer).send().await.expect(200);
            for suffix in ["", "/messages"] {
                chat.server.get(&format!("{family}/{id}{suffix}")).bearer(&bearer).send().await.expect(200);
            }
            let followed = chat.server.get(&format!("{family}/{id}/stream")).bearer(&bearer).send().await;
            assert_eq!(followed.status, 200, "{}", followed.text);
            let resumed = chat.server.post(family, json!({ "session_id": id })).bearer(&bearer).send().await;
            assert_eq!(resumed.expect(200)["id"], *id);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_of_a_foreign_organization_reaches_nothing() {
    let chat = Chat::start().await;
    let (_, other) = chat.server.another_organization("other").await;
    let body = json!({ "slug": "app", "name": "Same slug" });
    chat.server.post("/v1/agent_projects", body).bearer(&other).send().await.expect(201);
    let minted = chat.server.post("/v1/agent_projects/app/session_tokens", json!({ "user_id": "ann" }));
    let token = minted.bearer(&other).send().await.expect(201)["token"].as_str().unwrap().to_owned();
    let session = chat.session_as(IN_APP, &chat.token(Some("ann")).await, json!({})).await;
    for route in &BY_ID {
        for bearer in [&token, &other] {
            route.to(&chat.server, IN_APP, &session).bearer(bearer).send().await.refused(404);
        }
    }
    for (bearer, query) in [(&token, ""), (&other, ""), (&other, "?user_id=ann")] {
        let listed = chat.server.get(&format!("{IN_APP}{query}")).bearer(bearer).send().await.expect(200);
        assert_eq!(listed, json!({ "sessions": [], "next_cursor": null }));
    }
}

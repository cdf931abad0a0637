//! Concurrent requests: every race ends like some sequential order of them.

use std::{collections::BTreeSet, future::Future, sync::Arc};

use karta_shared::{
    auth::{Validator, Verdict},
    domain::{Entropy, Id},
    entropy::SeededEntropy,
    store::{CommitError, Conflict, Digest},
};
use serde_json::{Value, json};

use crate::{
    harness::{Reply, Request, TestServer},
    invariants::Tables,
};

/// Runs the tasks concurrently and returns their outcomes in the same order.
async fn run_all<T: Send + 'static>(
    tasks: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let running: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
    let mut outcomes = Vec::with_capacity(running.len());
    for task in running {
        outcomes.push(task.await.unwrap());
    }
    outcomes
}

async fn send_all(requests: impl IntoIterator<Item = Request>) -> Vec<Reply> {
    run_all(requests.into_iter().map(Request::send)).await
}

/// Splits the replies of a race into the bodies with status `won` and those with status `lost`.
fn winners_and_losers(replies: Vec<Reply>, won: u16, lost: u16) -> (Vec<Value>, Vec<Value>) {
    let (winners, losers): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == won);
    let winners = winners.into_iter().map(|reply| reply.expect(won)).collect();
    (winners, losers.into_iter().map(|reply| reply.refused(lost)).collect())
}

fn key_path(id: u64) -> String {
    format!("/v1/api_keys/{id}")
}

/// Fills the gateway's cache with both verdicts for 3 s, so that only the writes decide the race.
async fn warm(server: &TestServer, tokens: [&str; 2]) {
    for token in tokens {
        server.get("/v1/whoami").bearer(token).send().await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_revocations_are_one_change() {
    let server = TestServer::start().await;
    let (key, _) = server.key(&["admin"]).await;
    let replies = send_all((0..16).map(|_| server.delete(&key_path(key)))).await;
    let answers: BTreeSet<_> = replies.into_iter().map(|reply| reply.expect(200).to_string()).collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let tables = Tables::new(&server).await;
    tables.assert_consistent();
    assert_eq!(tables.audited("api_key.revoked", key), 1);
}

/// Returns a request that makes an admin key unusable or takes its admin scope, in one of four
/// ways.
fn demotion(server: &TestServer, way: usize, key: u64) -> Request {
    let path = key_path(key);
    match way % 4 {
        0 => server.delete(&path),
        1 => server.patch(&path, json!({ "scopes": ["read", "write"] })),
        2 => server.patch(&path, json!({ "expires_at": "2100-01-01T00:00:00Z" })),
        _ => server.patch(&path, json!({ "allowed_cidrs": ["127.0.0.0/8"] })),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admins_that_demote_each_other_leave_one() {
    let server = TestServer::start().await;
    let first = server.get("/v1/whoami").send().await.expect(200)["api_key_id"].as_u64().unwrap();
    let (mut id, mut token) = (first, server.admin.clone());
    for round in 0..20 {
        let created = server.post("/v1/api_keys", json!({ "name": "rival", "scopes": ["read", "admin"] }));
        let created = created.bearer(&token).send().await.expect(201);
        let (rival_id, rival) = (created["api_key"]["id"].as_u64().unwrap(), created["secret"].as_str().unwrap());
        warm(&server, [&token, rival]).await;
        // The rounds combine every way with every other.
        let (way, rival_way) = (round / 4, round);
        let replies =
            send_all([demotion(&server, way, rival_id).bearer(&token), demotion(&server, rival_way, id).bearer(rival)])
                .await;
        let survivor_is_rival = replies[1].status.is_success();
        let (winners, losers): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == 200);
        assert_eq!((winners.len(), losers.len()), (1, 1), "round {round}");
        // A loser that is checked after its own demotion has no rights. One that is checked earlier
        // would demote the last admin.
        match losers[0].status.as_u16() {
            401 | 403 => {}
            status => assert_eq!((status, &losers[0].json["error"]), (409, &json!("last_admin_key"))),
        }
        if survivor_is_rival {
            (id, token) = (rival_id, rival.to_owned());
        }
        let still = server.get(&key_path(id)).bearer(&token).send().await.expect(200);
        assert_eq!(still["api_key"]["status"], "active");
        Tables::new(&server).await.assert_consistent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_key_count_is_exact_after_random_changes() {
    let server = TestServer::start().await;
    let mut keys = Vec::new();
    for _ in 0..8 {
        keys.push(server.key(&["read", "admin"]).await.0);
    }
    let entropy = SeededEntropy::new(2);
    let mut draws = [0; 160];
    entropy.fill(&mut draws);
    let changes = [
        json!({ "scopes": ["read"] }),
        json!({ "scopes": ["admin"] }),
        json!({ "expires_at": "2100-01-01T00:00:00Z" }),
        json!({ "expires_at": null }),
        json!({ "allowed_cidrs": ["127.0.0.0/8"] }),
        json!({ "allowed_cidrs": null }),
        json!({ "scopes": ["admin"], "expires_at": null, "allowed_cidrs": null }),
    ];
    for wave in draws.chunks(16) {
        let replies = send_all(wave.iter().map(|draw| {
            let path = key_path(keys[usize::from(draw % 8)]);
            match usize::from(draw / 8 % 10) {
                7 => server.post("/v1/api_keys", json!({ "name": "new", "scopes": ["admin"] })),
                8 => server.delete(&path),
                way => server.patch(&path, changes[way % 7].clone()),
            }
        }))
        .await;
        for reply in replies {
            assert!([200, 201, 409, 503, 504].contains(&reply.status.as_u16()), "{}", reply.text);
        }
        Tables::new(&server).await.assert_consistent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_patches_of_different_fields_all_apply() {
    let server = TestServer::start().await;
    for _ in 0..10 {
        let (key, _) = server.key(&["read", "admin"]).await;
        let patches = [
            json!({ "name": "patched" }),
            json!({ "scopes": ["write"] }),
            json!({ "allowed_cidrs": ["10.0.0.0/8"] }),
            json!({ "expires_at": "2100-01-01T00:00:00.000Z" }),
            json!({ "metadata": { "team": "core" } }),
        ];
        let replies = send_all(patches.iter().map(|patch| server.patch(&key_path(key), patch.clone()))).await;
        for reply in replies {
            reply.expect(200);
        }
        let key = server.get(&key_path(key)).send().await.expect(200)["api_key"].take();
        for (field, value) in patches.iter().flat_map(|patch| patch.as_object().unwrap()) {
            assert_eq!(&key[field], value);
        }
    }
    Tables::new(&server).await.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_projects_with_one_slug_create_one() {
    let server = TestServer::start().await;
    let create = || server.post("/v1/agent_projects", json!({ "slug": "app", "name": "App" }));
    let (winners, losers) = winners_and_losers(send_all((0..32).map(|_| create())).await, 201, 409);
    assert_eq!((winners.len(), losers.len()), (1, 31));
    assert!(losers.iter().all(|loser| loser["error"] == "slug_taken"));
    let tables = Tables::new(&server).await;
    tables.assert_consistent();
    assert_eq!(tables.under("ID#agent_project#").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_creates_with_one_idempotency_key_create_one() {
    let server = TestServer::start().await;
    let create = || server.post("/v1/api_keys", json!({ "name": "ci", "scopes": ["admin"] })).idempotency_key("once");
    let replies = send_all((0..32).map(|_| create())).await;
    let answers: BTreeSet<_> = replies.into_iter().map(|reply| reply.expect(201).to_string()).collect();
    assert_eq!(answers.len(), 1);
    let tables = Tables::new(&server).await;
    tables.assert_consistent();
    assert_eq!(tables.key_ids().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_one_millisecond_have_different_ids() {
    let (server, _clock) = TestServer::start_at_noon().await;
    let create = || server.post("/v1/api_keys", json!({ "name": "ci", "scopes": ["admin"] }));
    let replies = send_all((0..64).map(|_| create())).await;
    let ids = replies.into_iter().map(|reply| reply.expect(201)["api_key"]["id"].as_u64().unwrap());
    assert_eq!(ids.collect::<BTreeSet<_>>().len(), 64);
    let tables = Tables::new(&server).await;
    tables.assert_consistent();
    assert_eq!(tables.key_ids().len(), 65);
}

#[tokio::test(flavor = "multi_thread")]
async fn validation_fails_after_an_acknowledged_revocation() {
    let server = TestServer::start().await;
    for _ in 0..20 {
        let (key, token) = server.key(&["read"]).await;
        let warm = Arc::new(Validator::new(server.runner.app.clone()));
        assert!(is_valid(&warm, &token).await);
        let revocation = tokio::spawn(server.delete(&key_path(key)).send());
        while !revocation.is_finished() {
            is_valid(&warm, &token).await;
        }
        revocation.await.unwrap().expect(200);
        let fresh = Validator::new(server.runner.app.clone());
        assert!(!is_valid(&warm, &token).await, "a cached proof does not replace the state");
        assert!(!is_valid(&fresh, &token).await);
    }
}

async fn is_valid(validator: &Validator, token: &str) -> bool {
    match validator.validate(token).await.unwrap() {
        Verdict::Valid(_) => true,
        Verdict::Invalid(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_own_id_counts_as_taken() {
    let server = TestServer::start().await;
    let key = server.get("/v1/whoami").send().await.expect(200)["api_key_id"].as_u64().and_then(Id::new).unwrap();
    let (store, organization) = (&server.runner.app.store, Id::new(server.organization_id).unwrap());
    let caller = store.api_key(organization, key).await.unwrap().unwrap();
    let mut transaction = store.transaction();
    transaction.create_api_key(organization, &caller, Digest::new(String::new())).unwrap();
    transaction.require_caller_unchanged(organization, &caller).unwrap();
    assert!(matches!(transaction.commit().await, Err(CommitError::Conflict(Conflict::IdTaken))));
}

//! The cost of a validation, counted as calls to the store. Each Query on the credentials table
//! leads to one comparison of digests, and nothing else does, so the number of Queries is the
//! number of bcrypt runs.

use std::{sync::Arc, time::Duration};

use karta_shared::{
    auth::{Invalidity, Validator, Verdict},
    clock::{Clock, ManualClock},
    config::Ring,
    domain::ApiKeyToken,
    entropy::OsEntropy,
};

use crate::{
    fault_proxy::{ALWAYS, FaultProxy, Seen, StoreFault},
    harness::{TestServer, note_secret},
};

/// Starts a server and a proxy that records the calls to the store.
async fn at_noon() -> (TestServer, Arc<FaultProxy>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_with(Arc::clone(&clock) as Arc<dyn Clock>).await;
    proxy.forget();
    (server, proxy, clock)
}

/// Returns the calls since the last use of this helper, except writes of a key's last use.
fn calls(proxy: &FaultProxy) -> Vec<Seen> {
    let seen = proxy.seen().into_iter().filter(|call| call.operation != "UpdateItem").collect();
    proxy.forget();
    seen
}

fn operations(proxy: &FaultProxy) -> Vec<String> {
    calls(proxy).into_iter().map(|call| call.operation).collect()
}

/// Mints a token with a valid tag that belongs to no key. Its prefix is that of `like`, or an
/// unknown one.
async fn unproven_token(server: &TestServer, like: Option<&str>) -> String {
    let ring = server.runner.app.secrets.ring(Ring::KeyTag).await.unwrap();
    let token = match like {
        Some(token) => {
            let prefix = ApiKeyToken::parse(token, &ring).unwrap().prefix();
            ApiKeyToken::mint_under(&prefix, &ring, &OsEntropy)
        }
        None => ApiKeyToken::mint(&ring, &OsEntropy),
    };
    note_secret(token.expose());
    token.expose().to_owned()
}

async fn is_valid(validator: &Validator, token: &str) -> bool {
    matches!(validator.validate(token).await.unwrap(), Verdict::Valid(_))
}

async fn is_unproven(validator: &Validator, token: &str) -> bool {
    matches!(validator.validate(token).await.unwrap(), Verdict::Invalid(Invalidity::Unproven))
}

/// Asserts that the call reads a key, its organization, its budget and both totals of the month in
/// one consistent BatchGetItem. With `reads_use`, the call also reads the key's last use, which a
/// process caches for a minute.
fn assert_reads_state(call: &Seen, reads_use: bool) {
    assert_eq!(call.operation, "BatchGetItem");
    assert!(call.is_consistent(), "{}", call.body);
    let kinds: Vec<_> = call.partitions().iter().map(|partition| partition[..3].to_owned()).collect();
    let expected = ["ORG", "KEY", "BUD", "USE", "UMO", "UMK"].into_iter().filter(|kind| reads_use || *kind != "USE");
    assert_eq!(kinds, expected.collect::<Vec<_>>(), "{}", call.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn first_validation_makes_two_calls_later_ones_one() {
    let (server, proxy, _clock) = at_noon().await;
    let validator = Validator::new(server.runner.app.clone());
    assert!(is_valid(&validator, &server.admin).await);
    let [find, state] = &calls(&proxy)[..] else { panic!("two calls") };
    assert_eq!((find.operation.as_str(), find.tables()), ("Query", vec!["karta-credentials".to_owned()]));
    assert!(find.is_consistent(), "{}", find.body);
    assert!(find.body.get("IndexName").is_none(), "an index may lag");
    assert_reads_state(state, true);
    for _ in 0..3 {
        assert!(is_valid(&validator, &server.admin).await);
        let [state] = &calls(&proxy)[..] else { panic!("one call") };
        assert_reads_state(state, false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_first_validations_share_one_bcrypt() {
    let (server, proxy, _clock) = at_noon().await;
    let validator = Arc::new(Validator::new(server.runner.app.clone()));
    let running: Vec<_> = (0..64)
        .map(|_| {
            let (validator, token) = (Arc::clone(&validator), server.admin.clone());
            tokio::spawn(async move { is_valid(&validator, &token).await })
        })
        .collect();
    for validation in running {
        assert!(validation.await.unwrap());
    }
    let operations = operations(&proxy);
    assert_eq!(operations.iter().filter(|operation| *operation == "Query").count(), 1);
    assert_eq!(operations.iter().filter(|operation| *operation == "BatchGetItem").count(), 64, "state is never shared");
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_checks_of_wrong_token_share_one_bcrypt() {
    let (server, proxy, _clock) = at_noon().await;
    let validator = Arc::new(Validator::new(server.runner.app.clone()));
    let wrong = unproven_token(&server, Some(&server.admin)).await;
    let running: Vec<_> = (0..64)
        .map(|_| {
            let (validator, wrong) = (Arc::clone(&validator), wrong.clone());
            tokio::spawn(async move { is_unproven(&validator, &wrong).await })
        })
        .collect();
    for validation in running {
        assert!(validation.await.unwrap());
    }
    assert_eq!(operations(&proxy), ["Query"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_token_is_compared_once_per_five_seconds() {
    let (server, proxy, clock) = at_noon().await;
    let validator = Validator::new(server.runner.app.clone());
    for like in [Some(server.admin.as_str()), None] {
        let wrong = unproven_token(&server, like).await;
        assert!(is_unproven(&validator, &wrong).await);
        assert_eq!(operations(&proxy), ["Query"]);
        clock.advance(Duration::from_millis(4_999));
        assert!(is_unproven(&validator, &wrong).await);
        assert!(operations(&proxy).is_empty());
        clock.advance(Duration::from_millis(1));
        assert!(is_unproven(&validator, &wrong).await);
        assert_eq!(operations(&proxy), ["Query"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_token_does_not_block_the_right_one() {
    let (server, _proxy, _clock) = at_noon().await;
    let validator = Validator::new(server.runner.app.clone());
    let wrong = unproven_token(&server, Some(&server.admin)).await;
    assert!(is_unproven(&validator, &wrong).await);
    assert!(is_valid(&validator, &server.admin).await);
    assert!(is_unproven(&validator, &wrong).await, "the right token does not validate the wrong one");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_token_never_reaches_the_store() {
    let (server, proxy, _clock) = at_noon().await;
    let validator = Validator::new(server.runner.app.clone());
    let admin = &server.admin;
    let tag = if admin.ends_with('a') { "b" } else { "a" };
    let wrong_tag = format!("{}{tag}", &admin[..39]);
    for token in [wrong_tag.as_str(), &format!("kt_live_{}", "0".repeat(32)), &admin[..39], "", "kt_live_"] {
        assert!(matches!(
            validator.validate(token).await.unwrap(),
            Verdict::Invalid(Invalidity::Tag | Invalidity::Shape)
        ));
        server.get("/v1/whoami").bearer(token).send().await.refused(401);
    }
    assert!(operations(&proxy).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_check_is_not_cached_as_refusal() {
    let (server, proxy, _clock) = at_noon().await;
    let validator = Validator::new(server.runner.app.clone());
    proxy.fail("Query", ALWAYS, StoreFault::Close);
    assert!(validator.validate(&server.admin).await.is_err());
    proxy.heal();
    assert!(is_valid(&validator, &server.admin).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_caches_a_verdict_for_three_seconds() {
    let (server, proxy, clock) = at_noon().await;
    server.get("/v1/whoami").send().await.expect(200);
    assert_eq!(operations(&proxy), ["Query", "BatchGetItem"]);
    clock.advance(Duration::from_millis(2_999));
    server.get("/v1/whoami").send().await.expect(200);
    assert!(operations(&proxy).is_empty());
    clock.advance(Duration::from_millis(1));
    server.get("/v1/whoami").send().await.expect(200);
    assert_eq!(operations(&proxy), ["BatchGetItem"]);
}

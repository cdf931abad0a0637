//! What a validation costs, counted on the wire to the store. A comparison of digests follows each Query on the credentials and
//! nothing else, so that Queries count the runs of bcrypt.

use std::{sync::Arc, time::Duration};

use karta_shared::{
    auth::{Invalidity, Validator, Verdict},
    clock::{Clock, ManualClock},
    config::Ring,
    domain::ApiKeyToken,
    entropy::OsEntropy,
};

use crate::{
    fault_proxy::{ALWAYS, Fault, FaultProxy, Seen},
    harness::{TestServer, note_secret},
};

/// A server whose calls to the store are counted from here on.
async fn at_noon() -> (TestServer, Arc<FaultProxy>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()));
    let (server, proxy) = FaultProxy::start_with(Arc::clone(&clock) as Arc<dyn Clock>).await;
    proxy.forget();
    (server, proxy, clock)
}

/// The reads from the store since this was asked last; noting a key's use is another matter.
fn calls(proxy: &FaultProxy) -> Vec<Seen> {
    let seen = proxy.seen().into_iter().filter(|call| call.operation != "UpdateItem").collect();
    proxy.forget();
    seen
}

fn operations(proxy: &FaultProxy) -> Vec<String> {
    calls(proxy).into_iter().map(|call| call.operation).collect()
}

/// A token with a right tag: under the prefix of a token that is given, else under one that nobody has.
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

/// One BatchGetItem of a key, its organization and its budget, and of what both have spent this month; of the key's last use too, unless this
/// process knows of one within the minute.
fn reads_state_afresh(call: &Seen, reads_use: bool) {
    assert_eq!(call.operation, "BatchGetItem");
    assert!(call.is_consistent(), "{}", call.body);
    let kinds: Vec<_> = call.partitions().iter().map(|partition| partition[..3].to_owned()).collect();
    let expected = ["ORG", "KEY", "BUD", "USE", "UMO", "UMK"].into_iter().filter(|kind| reads_use || *kind != "USE");
    assert_eq!(kinds, expected.collect::<Vec<_>>(), "{}", call.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_validation_is_two_consistent_calls_and_each_further_one_is_one() {
    let (server, proxy, _clock) = at_noon().await;
    let validator = Validator::new(server.runner.app.clone());
    assert!(is_valid(&validator, &server.admin).await);
    let [find, state] = &calls(&proxy)[..] else { panic!("two calls") };
    assert_eq!((find.operation.as_str(), find.tables()), ("Query", vec!["karta-credentials".to_owned()]));
    assert!(find.is_consistent(), "{}", find.body);
    assert!(find.body.get("IndexName").is_none(), "an index may lag");
    reads_state_afresh(state, true);
    for _ in 0..3 {
        assert!(is_valid(&validator, &server.admin).await);
        let [state] = &calls(&proxy)[..] else { panic!("one call") };
        reads_state_afresh(state, false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_first_validations_at_once_run_one_bcrypt() {
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
async fn sixty_four_wrong_tokens_at_once_run_one_bcrypt() {
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
async fn a_wrong_token_is_compared_once_in_five_seconds_whether_its_prefix_exists_or_not() {
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
async fn a_wrong_token_does_not_shut_out_the_right_one_of_its_prefix() {
    let (server, _proxy, _clock) = at_noon().await;
    let validator = Validator::new(server.runner.app.clone());
    let wrong = unproven_token(&server, Some(&server.admin)).await;
    assert!(is_unproven(&validator, &wrong).await);
    assert!(is_valid(&validator, &server.admin).await);
    assert!(is_unproven(&validator, &wrong).await, "nor does the right one let in the wrong");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_not_minted_here_never_reaches_the_store() {
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
async fn an_undecided_proof_is_not_remembered_as_a_refusal() {
    let (server, proxy, _clock) = at_noon().await;
    let validator = Validator::new(server.runner.app.clone());
    proxy.fail("Query", ALWAYS, Fault::Close);
    assert!(validator.validate(&server.admin).await.is_err());
    proxy.heal();
    assert!(is_valid(&validator, &server.admin).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_asks_once_in_three_seconds() {
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

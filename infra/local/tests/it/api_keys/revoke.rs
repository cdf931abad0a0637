use std::time::Duration;

use serde_json::json;

use super::{path, read};
use crate::harness::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_says_when_and_keeps_its_settings() {
    let (world, clock) = World::start_at_noon().await;
    let (id, _) = world.key_with(json!({ "name": "ci", "scopes": ["read"], "metadata": { "team": "web" } })).await;
    let mut key = read(&world, id).await;
    clock.advance(Duration::from_millis(1_500));
    let answer = world.delete(&path(id)).send().await.expect(200);
    key["status"] = json!("revoked");
    key["revoked_at"] = json!("2026-11-21T12:00:01.500Z");
    assert_eq!(answer, json!({ "api_key": key }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_answers_the_same_and_the_key_stays_readable() {
    let (world, clock) = World::start_at_noon().await;
    let (id, _) = world.key(&["read"]).await;
    let first = world.delete(&path(id)).send().await;
    clock.advance(Duration::from_hours(1));
    let second = world.delete(&path(id)).send().await;
    assert_eq!((second.status, &second.text), (first.status, &first.text));
    assert_eq!(json!({ "api_key": read(&world, id).await }), first.json);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_outlives_an_expiry() {
    let (world, clock) = World::start_at_noon().await;
    let ends = json!({ "name": "ci", "scopes": ["read"], "expires_at": "2026-11-21T12:00:10Z" });
    let (id, _) = world.key_with(ends).await;
    clock.advance(Duration::from_secs(10));
    let key = world.delete(&path(id)).send().await.expect(200)["api_key"].take();
    assert_eq!((&key["status"], &key["revoked_at"]), (&json!("revoked"), &json!("2026-11-21T12:00:10.000Z")));
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_at_once_answer_the_same() {
    let world = World::start().await;
    let (id, _) = world.key(&["read"]).await;
    let request = path(id);
    let revoke = || world.delete(&request).send();
    let (one, two, three) = tokio::join!(revoke(), revoke(), revoke());
    let texts = [one, two, three].map(|reply| reply.expect(200).to_string());
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    assert_eq!(world.audited("api_key.revoked").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_or_malformed_id_is_not_found() {
    let world = World::start().await;
    for id in ["1", "0", "01", "abc", "9007199254740992"] {
        let refusal = world.delete(&format!("/v1/api_keys/{id}")).send().await.refused(404);
        assert_eq!(refusal, json!({ "detail": "Not found" }), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_parameter_is_refused_by_name_and_a_body_is_passed_over() {
    let world = World::start().await;
    let (id, _) = world.key(&["read"]).await;
    assert_eq!(world.delete(&format!("{}?force=true", path(id))).send().await.invalid_field(), "force");
    world.delete(&path(id)).raw_body("not JSON").send().await.expect(200);
}

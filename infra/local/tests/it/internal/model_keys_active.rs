use http::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Request, World},
    model_keys::{active, provider_key},
};

const ROUTE: &str = "/v1/internal/model_keys/active";

fn asked(world: &World, query: &str) -> Request {
    world.service(Method::GET, &format!("{ROUTE}?{query}"))
}

async fn create(world: &World, token: &str, provider: &str, key: &str) -> Value {
    let body = json!({ "provider": provider, "key": key });
    world.post("/v1/model_keys", body).bearer(token).send().await.expect(201)["model_key"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_gets_the_key_in_use_in_the_clear() {
    let world = World::start().await;
    let key = provider_key("sk-ant-api03-");
    let created = create(&world, &world.admin, "anthropic", &key).await;
    let expected = json!({
        "provider": "anthropic",
        "plaintext": key,
        "key_id": created["id"],
        "tail": key[key.len() - 4..],
    });
    assert_eq!(active(&world, "anthropic").send().await.expect(200), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_organization_has_its_own() {
    let world = World::start().await;
    let (other, token) = world.another_organization("other").await;
    let (ours, theirs) = (provider_key("sk-"), provider_key("sk-"));
    create(&world, &world.admin, "openai", &ours).await;
    let of_them = format!("organization_id={other}&provider=openai");
    let not_found = json!({ "detail": "Not found" });
    assert_eq!(asked(&world, &of_them).send().await.refused(404), not_found);
    create(&world, &token, "openai", &theirs).await;
    assert_eq!(asked(&world, &of_them).send().await.expect(200)["plaintext"], theirs);
    assert_eq!(active(&world, "openai").send().await.expect(200)["plaintext"], ours);
    for provider in ["anthropic", "bedrock", "vertex", "openrouter"] {
        assert_eq!(active(&world, provider).send().await.refused(404), not_found);
    }
    let nobody = asked(&world, "organization_id=1&provider=openai").send().await;
    assert_eq!(nobody.refused(404), not_found);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_is_wrong_or_missing_is_named() {
    let world = World::start().await;
    let organization = world.organization_id;
    for (query, field) in [
        ("provider=openai".to_owned(), "organization_id"),
        ("organization_id=&provider=openai".to_owned(), "organization_id"),
        ("organization_id=acme&provider=openai".to_owned(), "organization_id"),
        ("organization_id=9007199254740992&provider=openai".to_owned(), "organization_id"),
        (format!("organization_id={organization}"), "provider"),
        (format!("organization_id={organization}&provider=OpenAI"), "provider"),
        (format!("organization_id={organization}&provider=openai&provider=openai"), "provider"),
        (format!("organization_id={organization}&provider=openai&id=1"), "id"),
    ] {
        assert_eq!(asked(&world, &query).send().await.invalid_field(), field, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_credential_opens_a_key() {
    let world = World::start().await;
    let key = provider_key("sk-");
    create(&world, &world.admin, "openai", &key).await;
    world.project("site").await;
    let session = world.session_token("site", json!({})).await;
    for token in [world.admin.as_str(), &session, &key] {
        let reply = active(&world, "openai").bearer(token).send().await;
        assert_eq!(reply.refused(401), crate::harness::unauthorized());
    }
}

//! `endpoint_url`: a base URL that a customer chooses for Anthropic's dialect.

use std::sync::Arc;

use http::Method;
use karta_local::{
    Options,
    provider::{FakeProvider, Script},
};
use karta_shared::{clock::SystemClock, domain::Reach};
use serde_json::{Value, json};

use super::{ANTHROPIC, LIMITS, OPENAI, TurnServer, outgoing::assert_allowed};
use crate::harness::options;

const PROJECT: &str = "/v1/agent_projects/app";

async fn start(reach: Reach) -> (TurnServer, FakeProvider) {
    let defaults = options(Arc::new(SystemClock));
    let turns = TurnServer::start_as(Options { turn_limits: LIMITS, outbound_reach: reach, ..defaults }).await;
    turns.project("app", ANTHROPIC).await;
    (turns, FakeProvider::start(Script::default()).await.unwrap())
}

/// Returns the provider's base URL, as a customer writes it.
fn url(provider: &FakeProvider) -> String {
    let urls: Value = serde_json::from_str(&provider.base_urls()).unwrap();
    urls["anthropic"].as_str().unwrap().to_owned()
}

async fn set_of_organization(turns: &TurnServer, endpoint_url: Value) {
    let path = format!("/v1/internal/organizations/{}", turns.server.organization_id);
    let body = json!({ "endpoint_url": endpoint_url });
    turns.server.service(Method::PATCH, &path).body(body).send().await.expect(200);
}

fn no_model_key() -> Value {
    json!({
        "error": "no_model_key",
        "message": "The organization has no usable model key of anthropic. Store one. A key stored before endpoint_url was \
                    set is not used: store it again.",
        "provider": "anthropic",
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn earlier_key_is_not_sent_to_an_endpoint() {
    let (turns, customer) = start(Reach::Loopback).await;
    let admin = turns.server.admin.clone();
    let (in_project, flat) = (turns.project_session("app", &admin).await, turns.session(ANTHROPIC).await);
    turns.server.patch(PROJECT, json!({ "endpoint_url": url(&customer) })).send().await.expect(200);
    for request in [in_project.ask(), in_project.ask_streamed()] {
        assert_eq!(request.send().await.refused(422), no_model_key());
    }
    flat.answer().await;
    assert_eq!((customer.ledger().len(), turns.provider.ledger().len()), (0, 1));

    let key = turns.store_key("anthropic", "sk-ant-api03-").await;
    in_project.answer().await;
    let sent = customer.ledger();
    assert_eq!(sent.len(), 1);
    assert_allowed(&turns, &sent[0], "anthropic", &key);
    flat.answer().await;
    assert_eq!((customer.ledger().len(), turns.provider.ledger().len()), (1, 2));

    // A changed URL needs the key again.
    let changed = json!({ "endpoint_url": format!("{}/v1", url(&customer)) });
    turns.server.patch(PROJECT, changed).send().await.expect(200);
    assert_eq!(in_project.ask().send().await.refused(422), no_model_key());
    turns.store_key("anthropic", "sk-ant-api03-").await;
    in_project.answer().await;
    assert_eq!((customer.ledger().len(), &*customer.ledger()[1].path), (2, "/v1/messages"));
}

#[tokio::test(flavor = "multi_thread")]
async fn project_overrides_the_organizations_endpoint() {
    let (turns, customer) = start(Reach::Loopback).await;
    let of_project = FakeProvider::start(Script::default()).await.unwrap();
    let admin = turns.server.admin.clone();
    let (in_project, flat) = (turns.project_session("app", &admin).await, turns.session(ANTHROPIC).await);
    set_of_organization(&turns, json!(url(&customer))).await;
    assert_eq!(flat.ask().send().await.refused(422), no_model_key());
    turns.store_key("anthropic", "sk-ant-api03-").await;
    flat.answer().await;
    in_project.answer().await;
    assert_eq!(customer.ledger().len(), 2);
    turns.server.patch(PROJECT, json!({ "endpoint_url": url(&of_project) })).send().await.expect(200);
    turns.store_key("anthropic", "sk-ant-api03-").await;
    in_project.answer().await;
    flat.answer().await;
    assert_eq!((customer.ledger().len(), of_project.ledger().len()), (3, 1));
    // Other providers keep their own hosts.
    turns.session(OPENAI).await.answer().await;
    assert_eq!(turns.provider.ledger().len(), 1);
}

/// The URL was allowed when it was set, by a run that let customers' URLs reach loopback.
#[tokio::test(flavor = "multi_thread")]
async fn endpoint_is_checked_at_every_call() {
    let (turns, customer) = start(Reach::Public).await;
    let written = json!({ "endpoint_url": url(&customer) });
    assert_eq!(turns.server.patch(PROJECT, written).send().await.invalid_field(), "endpoint_url");
    let session = turns.session(ANTHROPIC).await;
    let private = [url(&customer), url(&customer).replace("127.0.0.1", "localhost")];
    // A host name is checked when the client connects.
    let unresolved = "https://karta-no-such-host-7391.com".to_owned();
    for unusable in private.into_iter().chain([unresolved]) {
        let update = json!({
            "TableName": "karta",
            "Key": { "pk": { "S": format!("ORG#{}", turns.server.organization_id) }, "sk": { "S": "META" } },
            "UpdateExpression": "SET endpoint_url = :url, endpoint_url_set_at = :at",
            "ExpressionAttributeValues": { ":url": { "S": unusable }, ":at": { "S": "2020-01-01T00:00:00.000Z" } },
        });
        turns.server.dynamodb("UpdateItem", update).await;
        for request in [session.ask(), session.ask_streamed()] {
            let refused = request.send().await.refused(502);
            assert_eq!(refused["error"], "provider_error");
            let message = refused["message"].as_str().unwrap();
            assert!(message.starts_with("endpoint_url was not called"), "{refused}");
            assert_eq!(message.contains("could not be resolved"), unusable.contains("no-such-host"), "{refused}");
        }
    }
    assert_eq!((customer.ledger().len(), turns.provider.ledger().len()), (0, 0));
    set_of_organization(&turns, Value::Null).await;
    session.assert_usable().await;
}

//! How the fan-out worker invokes the delivery worker in a deployed stack.

use karta_shared::{
    config,
    worker::{Wake, Worker},
};
use serde_json::json;
use worker_webhook_events::{Waker, WebhookEvents};

use super::{URL, WebhookServer, endpoint, publish_events};
use crate::{
    calls::record_sent_requests,
    data_plane::{DataPlane, Reaction},
};

#[tokio::test(flavor = "multi_thread")]
async fn delivery_function_is_invoked_asynchronously() {
    let (webhooks, _clock) = WebhookServer::start().await;
    let (server, lambda) = (&webhooks.server, DataPlane::start("a").await);
    let (id, _) = endpoint(server, URL, &["*"]).await;
    publish_events(server, 1).await;
    let sdk = config::local_sdk(&lambda.url, &"a-key-id".into()).await;
    // The function's logical id in the template, so that the recorded call matches the policy.
    let waker = Waker::lambda(&sdk, "WorkerWebhookDeliveries".to_owned());
    let worker = WebhookEvents::new(server.runner.app.for_function(WebhookEvents::NAME), waker);
    lambda.react(Reaction::Status(404));
    worker.work(&Wake::Sweep).await.unwrap_err();
    lambda.react(Reaction::Status(202));
    worker.work(&Wake::Sweep).await.unwrap();
    let received = lambda.received();
    assert!(received.len() > 1, "the next sweep repeats a failed invocation");
    for request in &received {
        let asked = (request.method.as_str(), request.path.as_str());
        assert_eq!(asked, ("POST", "/2015-03-31/functions/WorkerWebhookDeliveries/invocations"));
        assert_eq!(request.headers["x-amz-invocation-type"], "Event");
        assert_eq!(request.body, json!({ "organization_id": server.organization_id, "webhook_endpoint_id": id }));
    }
    record_sent_requests(WebhookEvents::NAME, &received);
}

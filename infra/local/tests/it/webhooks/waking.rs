//! How the worker that fans out has the other one serve, as it is deployed.

use karta_shared::{
    config,
    worker::{Wake, Worker},
};
use serde_json::json;
use worker_webhook_events::{Waker, WebhookEvents};

use super::{Post, URL, announce, endpoint};
use crate::{
    calls::record_sent_requests,
    data_plane::{DataPlane, Reaction},
};

#[tokio::test(flavor = "multi_thread")]
async fn another_function_is_invoked_for_an_endpoint_and_not_waited_for() {
    let (post, _clock) = Post::start().await;
    let (server, lambda) = (&post.server, DataPlane::start("a").await);
    let (id, _) = endpoint(server, URL, &["*"]).await;
    announce(server, 1).await;
    let sdk = config::local_sdk(&lambda.url, &"a-key-id".into()).await;
    // By its logical id, as the template has it.
    let waker = Waker::lambda(&sdk, "WorkerWebhookDeliveries".to_owned());
    let worker = WebhookEvents::new(server.runner.app.for_function(WebhookEvents::NAME), waker);
    lambda.react(Reaction::Status(404));
    worker.work(&Wake::Sweep).await.unwrap_err();
    lambda.react(Reaction::Status(202));
    worker.work(&Wake::Sweep).await.unwrap();
    let received = lambda.received();
    assert!(received.len() > 1, "what could not be invoked is invoked with the next sweep");
    for request in &received {
        let asked = (request.method.as_str(), request.path.as_str());
        assert_eq!(asked, ("POST", "/2015-03-31/functions/WorkerWebhookDeliveries/invocations"));
        assert_eq!(request.headers["x-amz-invocation-type"], "Event");
        assert_eq!(request.body, json!({ "organization_id": server.organization_id, "webhook_endpoint_id": id }));
    }
    record_sent_requests(WebhookEvents::NAME, &received);
}

//! Tests of `GET /v1/billing`. `stripe_events` tests the changes that Stripe makes.

use http::Method;
use serde_json::{Value, json};

use crate::harness::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn plan_without_billing_is_set_by_the_operator() {
    let server = TestServer::start().await;
    let unconfigured = json!({
        "plan": "free", "status": "active", "billing_configured": false,
        "current_period_start": null, "current_period_end": null, "cancel_at_period_end": false,
    });
    let (_, reader) = server.key(&["read"]).await;
    let read = async || server.get("/v1/billing").bearer(&reader).send().await.expect(200);
    assert_eq!(read().await, unconfigured);
    let path = format!("/v1/internal/organizations/{}", server.organization_id);
    let change = async |body: Value| server.service(Method::PATCH, &path).body(body).send().await.expect(200);
    change(json!({ "plan": "team", "subscription_status": "trialing" })).await;
    let billing = read().await;
    assert_eq!((&billing["plan"], &billing["status"]), (&json!("team"), &json!("trialing")));
    assert_eq!(billing["billing_configured"], false);
    change(json!({ "stripe_customer_id": "cus_1" })).await;
    let billing = read().await;
    assert_eq!((&billing["billing_configured"], &billing["current_period_end"]), (&json!(true), &Value::Null));
}

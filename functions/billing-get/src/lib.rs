//! `GET /v1/billing`: the organization's plan and subscription, as last set by the operator or
//! Stripe.

use karta_shared::{
    App,
    domain::{Plan, SubscriptionStatus, Timestamp},
    http::{ApiResponse, Call, Error, NoBody, NoQuery, Read, Route},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    plan: Plan,
    status: SubscriptionStatus,
    /// Whether the organization has a Stripe customer.
    billing_configured: bool,
    current_period_start: Option<Timestamp>,
    current_period_end: Option<Timestamp>,
    cancel_at_period_end: bool,
}

#[derive(Debug)]
pub struct BillingGet;

impl Route for BillingGet {
    const NAME: &'static str = "billing-get";
    type Access = Read;
    type Path = ();
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = app.store.organization(call.caller.organization_id).await?.ok_or(Error::NotFound)?;
        let subscription = organization.subscriptions.first();
        ApiResponse::ok(&Output {
            billing_configured: organization.stripe_customer_id.is_some(),
            current_period_start: subscription.and_then(|subscription| subscription.current_period_start),
            current_period_end: subscription.and_then(|subscription| subscription.current_period_end),
            cancel_at_period_end: subscription.is_some_and(|subscription| subscription.cancel_at_period_end),
            plan: organization.plan,
            status: organization.subscription_status,
        })
    }
}

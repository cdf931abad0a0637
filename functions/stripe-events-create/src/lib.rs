//! `POST /v1/stripe/events`: applies Stripe's events about subscriptions and invoices, each event
//! once, in any order.

mod event;
mod object;

use karta_shared::{
    App,
    domain::{CacheEffect, Organization},
    http::{Action, ApiResponse, Call, Error, NewAuditEvent, NoQuery, RawJson, Route, Stripe},
    store::{CommitError, Conflict, Transaction},
};
use serde::Serialize;

use crate::event::{EventContent, ParsedEvent, StripeEvent, StripeEventKind};

#[derive(Debug, Serialize)]
pub struct Output {
    received: bool,
}

#[derive(Debug)]
pub struct StripeEventsCreate;

impl Route for StripeEventsCreate {
    const NAME: &'static str = "stripe-events-create";
    const BODY_MAX: usize = 1024 * 1024;
    const ANY_TEXT: bool = true;
    type Access = Stripe;
    type Path = ();
    type Query = NoQuery;
    /// Parsed by the handler: the type determines the other fields, and only events of known
    /// customers are parsed in full.
    type Body = RawJson;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let Some(kind) = StripeEventKind::new(&call.body) else {
            return received();
        };
        let event = StripeEvent::read(&call.body)?;
        event.check_mode(call.caller.livemode())?;
        let before = match event.customer()? {
            Some(customer) => app.store.organization_by_stripe_customer(&customer).await?,
            None => None,
        };
        let Some(before) = before else {
            let (request_id, event_type) = (&call.meta.request_id, &event.kind);
            tracing::info!(request_id, route = Self::NAME, event_type, "event for an unknown Stripe customer");
            return received();
        };
        let parsed = event.parse(kind)?;
        let mut transaction = app.store.transaction();
        transaction.record_stripe_event(before.id, &event.id, call.now)?;
        stage_effect(app, call, &mut transaction, &before, parsed)?;
        match transaction.commit().await {
            Ok(()) | Err(CommitError::Conflict(Conflict::EventSeen)) => received(),
            Err(error) => Err(error.into()),
        }
    }
}

fn received() -> Result<ApiResponse<Output>, Error> {
    ApiResponse::ok(&Output { received: true })
}

/// Stages the effect of an event. An event that is older than the known state has no effect.
fn stage_effect(
    app: &App,
    call: &Call<StripeEventsCreate>,
    transaction: &mut Transaction,
    before: &Organization,
    parsed: ParsedEvent,
) -> Result<(), Error> {
    let event = call.event(app, before.id, parsed.event_type, &parsed.content.webhook_data())?;
    match parsed.content {
        EventContent::Invoice(_) => transaction.require_organization_unchanged(before)?,
        EventContent::Subscription(subscription, previous) => {
            let mut organization = before.clone();
            let Some(changes) = organization.apply_subscription(subscription, &previous) else {
                return Ok(());
            };
            transaction.update_organization(before, &organization)?;
            if !changes.is_empty() {
                let event = NewAuditEvent {
                    action: Action::OrganizationUpdated,
                    resource_kind: "organization",
                    resource_id: before.id.into(),
                    changes,
                };
                transaction.audit(before.id, &call.audit_event(app, event))?;
            }
            let status_changed = organization.subscription_status != before.subscription_status;
            if status_changed || organization.plan != before.plan {
                transaction.invalidate(before.id, CacheEffect::Stale, call.now)?;
            }
            if status_changed {
                transaction.check_budgets(before.id, [], call.now)?;
            }
        }
    }
    Ok(transaction.publish(&event)?)
}

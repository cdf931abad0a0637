//! `PATCH /v1/internal/organizations/{id}`: changes the operator's settings of an organization. An
//! absent field is kept, `null` clears it.

use karta_shared::{
    App,
    domain::{CacheEffect, EndpointUrl, Id, ModelId, OrganizationPatch, Plan, StripeCustomerId, SubscriptionStatus},
    http::{
        Action, ApiResponse, Call, Error, Internal, NewAuditEvent, NoQuery, OrganizationResource, Provision, Route,
        present,
    },
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    #[serde(default, deserialize_with = "present")]
    plan: Option<Plan>,
    #[serde(default, deserialize_with = "present")]
    subscription_status: Option<SubscriptionStatus>,
    #[serde(default, deserialize_with = "present")]
    transcript_access: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    stripe_customer_id: Option<Option<StripeCustomerId>>,
    #[serde(default, deserialize_with = "present")]
    model_id: Option<Option<ModelId>>,
    #[serde(default, deserialize_with = "present")]
    endpoint_url: Option<Option<EndpointUrl>>,
}

#[derive(Debug, Serialize)]
pub struct Output {
    organization: OrganizationResource,
}

#[derive(Debug)]
pub struct InternalOrganizationsUpdate;

impl Route for InternalOrganizationsUpdate {
    const NAME: &'static str = "internal-organizations-update";
    type Access = Internal<Provision>;
    type Path = Id;
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        if let Some(Some(url)) = &call.body.endpoint_url {
            url.check_input(app.outbound_reach).map_err(|problem| Error::invalid("endpoint_url", problem))?;
        }
        if let Some(Some(model)) = &call.body.model_id {
            model.check_input().map_err(|problem| Error::invalid("model_id", problem))?;
        }
        let before = app.store.organization(call.path).await?.ok_or(Error::NotFound)?;
        let mut organization = before.clone();
        // Not `call.now`: a repetition may be seconds later, and keys stored since then must not be sent to
        // the new `endpoint_url`.
        let changes = organization.apply(patch(call.body.clone()), app.clock.now());
        if !changes.is_empty() {
            let mut transaction = app.store.transaction();
            transaction.update_organization(&before, &organization)?;
            let event = NewAuditEvent {
                action: Action::OrganizationUpdated,
                resource_kind: "organization",
                resource_id: organization.id.into(),
                changes,
            };
            transaction.audit(organization.id, &call.audit_event(app, event))?;
            transaction.invalidate(organization.id, CacheEffect::Stale, call.now)?;
            if before.subscription_status != organization.subscription_status {
                transaction.check_budgets(organization.id, [], call.now)?;
            }
            transaction.commit().await?;
        }
        ApiResponse::ok(&Output { organization: organization.into() })
    }
}

fn patch(input: Input) -> OrganizationPatch {
    OrganizationPatch {
        plan: input.plan,
        subscription_status: input.subscription_status,
        transcript_access: input.transcript_access,
        stripe_customer_id: input.stripe_customer_id,
        model_id: input.model_id,
        endpoint_url: input.endpoint_url,
    }
}

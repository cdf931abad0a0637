//! `PUT /v1/budget`: replaces the organization's caps per UTC month. An absent or `null` cap means
//! no cap.

use karta_shared::{
    App,
    domain::{Budget, CacheEffect, Change},
    http::{Action, Admin, ApiResponse, BudgetResource, Call, Error, NewAuditEvent, NoQuery, Route},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    budget: BudgetResource,
}

#[derive(Debug)]
pub struct BudgetUpdate;

impl Route for BudgetUpdate {
    const NAME: &'static str = "budget-update";
    type Access = Admin;
    type Path = ();
    type Query = NoQuery;
    type Body = Budget;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let caller = call.reauthorize(app).await?;
        let before = app.store.budget(organization).await?;
        let budget = call.body.clone();
        let known = before.as_ref().map(|stored| stored.budget.clone());
        if known.clone().unwrap_or_default() != budget {
            let mut transaction = app.store.transaction();
            transaction.put_budget(organization, before.as_ref(), &budget)?;
            transaction.require_caller_unchanged(organization, &caller)?;
            let change = Change { before: known.as_ref().map(Budget::audited).into(), after: budget.audited() };
            let event = NewAuditEvent {
                action: Action::BudgetUpdated,
                resource_kind: "organization",
                resource_id: organization.into(),
                changes: [("budget".to_owned(), change)].into(),
            };
            transaction.audit(organization, &call.audit_event(app, event))?;
            transaction.invalidate(organization, CacheEffect::Stale, call.now)?;
            transaction.check_budgets(organization, [], call.now)?;
            transaction.commit().await?;
        }
        ApiResponse::ok(&Output { budget: Some(budget).into() })
    }
}

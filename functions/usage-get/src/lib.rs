//! `GET /v1/usage`: the organization's usage in a month, by model and by day, and its budget.

use karta_shared::{
    App,
    domain::{BudgetVerdict, Month, Spending},
    http::{ApiResponse, Call, Error, NoBody, Read, Route, UsageResource},
};
use serde::Deserialize;
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// The current month by default.
    period: Option<Month>,
}

#[derive(Debug)]
pub struct UsageGet;

impl Route for UsageGet {
    const NAME: &'static str = "usage-get";
    type Access = Read;
    type Path = ();
    type Query = Query;
    type Body = NoBody;
    type Output = UsageResource;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<UsageResource>, Error> {
        let organization_id = call.caller.organization_id;
        let period = call.query.period.unwrap_or(call.now.month());
        let (usage, budget, organization) = tokio::join!(
            app.store.usage(organization_id, period),
            app.store.budget(organization_id),
            app.store.organization(organization_id),
        );
        let (usage, budget) = (usage?, budget?.map(|stored| stored.budget));
        let subscription = organization?.ok_or(Error::NotFound)?.subscription_status;
        let spending =
            Spending { organization_budget: budget.clone(), organization: usage.totals, ..Spending::default() };
        let verdict = BudgetVerdict::new(subscription, &spending);
        ApiResponse::ok(&UsageResource::new(period, &usage, budget, &verdict))
    }
}

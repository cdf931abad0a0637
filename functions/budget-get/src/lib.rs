//! `GET /v1/budget`: the organization's caps per UTC month.

use karta_shared::{
    App,
    http::{ApiResponse, BudgetResource, Call, Error, NoBody, NoQuery, Read, Route},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    budget: BudgetResource,
}

#[derive(Debug)]
pub struct BudgetGet;

impl Route for BudgetGet {
    const NAME: &'static str = "budget-get";
    type Access = Read;
    type Path = ();
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let stored = app.store.budget(call.caller.organization_id).await?;
        ApiResponse::ok(&Output { budget: stored.map(|stored| stored.budget).into() })
    }
}

//! `GET /v1/usage/keys`: the usage of every API key in a month. A lineage counts as one key and is
//! listed under its newest key.

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{ApiKey, BudgetVerdict, Id, Month, Name, Prefix, Spending, SubscriptionStatus},
    http::{ApiResponse, Call, Error, Limit, NoBody, Read, Route, UsageResource, cursor},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    #[serde(default)]
    limit: Limit,
    cursor: Option<String>,
    /// The current month by default.
    period: Option<Month>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    period: Month,
    keys: Vec<KeyUsage>,
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct KeyUsage {
    api_key_id: Id,
    name: Name,
    prefix: Prefix,
    #[serde(flatten)]
    usage: UsageResource,
}

#[derive(Debug)]
pub struct UsageKeysList;

impl Route for UsageKeysList {
    const NAME: &'static str = "usage-keys-list";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::Cursor)];
    type Access = Read;
    type Path = ();
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let Query { limit, cursor, period } = &call.query;
        let period = period.unwrap_or(call.now.month());
        let list = format!("usage/keys?period={period}");
        let below = cursor::open(app, organization, &list, cursor.as_deref()).await?;
        let newest = |key: &ApiKey| key.replaced_by.is_none();
        let page = app.store.api_keys(organization, below, limit.get(), newest).await?;
        let lineages = page.items.iter().map(|key| key.lineage_id).collect();
        let used = app.store.usage_of_keys(organization, period, &lineages).await?;
        let keys = page.items.into_iter().map(|key| {
            let usage = used.get(&key.lineage_id).cloned().unwrap_or_default();
            let spending = Spending { key_budget: key.budget.clone(), key: usage.totals, ..Spending::default() };
            // Only the key's caps count here. `GET /v1/usage` shows the organization's caps.
            let verdict = BudgetVerdict::new(SubscriptionStatus::Active, &spending);
            KeyUsage {
                api_key_id: key.id,
                name: key.name,
                prefix: key.prefix,
                usage: UsageResource::new(period, &usage, key.budget, &verdict),
            }
        });
        ApiResponse::ok(&Output {
            period,
            keys: keys.collect(),
            next_cursor: cursor::seal(app, organization, &list, page.resume_below).await?,
        })
    }
}

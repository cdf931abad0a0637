//! `GET /v1/api_keys`: the organization's keys, newest first, those of some states only if asked.

use std::collections::BTreeSet;

use karta_shared::{
    App,
    domain::{ApiKey, KeyStatus},
    http::{Answer, ApiKeyResource, Call, Commas, Error, Limit, NoBody, Read, Route, cursor},
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    #[serde(default)]
    limit: Limit,
    cursor: Option<String>,
    #[serde(default)]
    status: Commas<KeyStatus>,
}

#[derive(Debug, Serialize)]
pub struct Output {
    api_keys: Vec<ApiKeyResource>,
    next_cursor: Option<String>,
}

#[derive(Debug)]
pub struct ApiKeysList;

impl Route for ApiKeysList {
    const NAME: &'static str = "api-keys-list";
    type Access = Read;
    type Path = ();
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<Answer<Output>, Error> {
        let organization = call.caller.organization_id;
        let Query { limit, cursor, status: Commas(status) } = &call.query;
        let asked: BTreeSet<_> = status.iter().collect();
        let list = format!("api_keys?status={asked:?}");
        let below = cursor::open(app, organization, &list, cursor.as_deref()).await?;
        let wanted = |key: &ApiKey| status.is_empty() || status.contains(&key.status(call.now));
        let page = app.store.api_keys(organization, below, limit.get(), wanted).await?;
        Answer::ok(&Output {
            api_keys: page.items.into_iter().map(|key| ApiKeyResource::of(key, call.now)).collect(),
            next_cursor: cursor::seal(app, organization, &list, page.resume_below).await?,
        })
    }
}

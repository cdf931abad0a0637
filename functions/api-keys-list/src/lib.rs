//! `GET /v1/api_keys`: the organization's keys, newest first. Filters select keys by status, unused
//! keys, and keys that expire soon.

use std::collections::BTreeSet;

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{ApiKey, KeyStatus, Timestamp},
    http::{ApiKeyResource, ApiResponse, Call, CommaSeparated, Days, Error, Limit, NoBody, Read, Route, cursor},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    #[serde(default)]
    limit: Limit,
    cursor: Option<String>,
    #[serde(default)]
    /// Only keys with one of these statuses.
    #[schema(value_type = Vec<KeyStatus>, min_items = 1)]
    status: CommaSeparated<KeyStatus>,
    /// Only active and rotating keys that were not used for this many days.
    unused_days: Option<Days>,
    /// Only active and rotating keys that expire within this many days.
    expires_within_days: Option<Days>,
}

impl Query {
    /// Returns whether the key passes all given filters.
    fn matches(&self, key: &ApiKey, now: Timestamp) -> bool {
        let CommaSeparated(status) = &self.status;
        (status.is_empty() || status.contains(&key.status(now)))
            && self.unused_days.is_none_or(|days| key.is_unused_for(days.as_duration(), now))
            && self.expires_within_days.is_none_or(|days| key.expires_within(days.as_duration(), now))
    }

    /// Returns the list's name for cursors, which includes the filters.
    fn list(&self) -> String {
        let status: BTreeSet<_> = self.status.0.iter().collect();
        let Self { unused_days, expires_within_days, .. } = self;
        format!("api_keys?status={status:?}&unused_days={unused_days:?}&expires_within_days={expires_within_days:?}")
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    api_keys: Vec<ApiKeyResource>,
    next_cursor: Option<String>,
}

#[derive(Debug)]
pub struct ApiKeysList;

impl Route for ApiKeysList {
    const NAME: &'static str = "api-keys-list";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::Cursor)];
    type Access = Read;
    type Path = ();
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let (organization, query) = (call.caller.organization_id, &call.query);
        let list = query.list();
        let below = cursor::open(app, organization, &list, query.cursor.as_deref()).await?;
        let filter = |key: &ApiKey| query.matches(key, call.now);
        let page = app.store.api_keys_with_uses(organization, below, query.limit.get(), filter).await?;
        ApiResponse::ok(&Output {
            api_keys: page.items.into_iter().map(|key| ApiKeyResource::new(key, call.now)).collect(),
            next_cursor: cursor::seal(app, organization, &list, page.resume_below).await?,
        })
    }
}

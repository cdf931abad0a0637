//! `GET /v1/webhook_endpoints/{id}/deliveries`: the deliveries of an endpoint in the last 30 days,
//! newest first, with every attempt.

use std::collections::BTreeSet;

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{DeliveryStatus, Id},
    http::{ApiResponse, Call, CommaSeparated, DeliveryResource, Error, Limit, NoBody, Read, Route, cursor},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Only deliveries with one of these statuses.
    #[schema(value_type = Option<Vec<DeliveryStatus>>, min_items = 1)]
    status: Option<CommaSeparated<DeliveryStatus>>,
    #[serde(default)]
    limit: Limit,
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    deliveries: Vec<DeliveryResource>,
    next_cursor: Option<String>,
}

#[derive(Debug)]
pub struct WebhookDeliveriesList;

impl Route for WebhookDeliveriesList {
    const NAME: &'static str = "webhook-deliveries-list";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::Cursor)];
    type Access = Read;
    type Path = Id;
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let (organization, endpoint) = (call.caller.organization_id, call.path);
        let statuses: Option<BTreeSet<_>> = call.query.status.as_ref().map(|status| status.0.iter().copied().collect());
        let list = format!("deliveries of {endpoint} {statuses:?}");
        let below = cursor::open(app, organization, &list, call.query.cursor.as_deref()).await?;
        app.store.webhook_endpoint(organization, endpoint).await?.ok_or(Error::NotFound)?;
        let filter = |status| statuses.as_ref().is_none_or(|statuses| statuses.contains(&status));
        let limit = call.query.limit.get();
        let page = app
            .store
            .deliveries(organization, endpoint, below, limit, call.now, |delivery| filter(delivery.status))
            .await?;
        let scopes = call.caller.principal.scopes;
        ApiResponse::ok(&Output {
            deliveries: page.items.into_iter().map(|delivery| DeliveryResource::new(delivery, scopes)).collect(),
            next_cursor: cursor::seal(app, organization, &list, page.resume_below).await?,
        })
    }
}

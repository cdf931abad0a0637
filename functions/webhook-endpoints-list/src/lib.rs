//! `GET /v1/webhook_endpoints`: the organization's endpoints, newest first.

use karta_shared::{
    App,
    config::{Ring, Secret},
    http::{ApiResponse, Call, Error, Limit, NoBody, Read, Route, WebhookEndpointResource, cursor},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const LIST: &str = "webhook_endpoints";

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    #[serde(default)]
    limit: Limit,
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    webhook_endpoints: Vec<WebhookEndpointResource>,
    next_cursor: Option<String>,
}

#[derive(Debug)]
pub struct WebhookEndpointsList;

impl Route for WebhookEndpointsList {
    const NAME: &'static str = "webhook-endpoints-list";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::Cursor)];
    type Access = Read;
    type Path = ();
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let below = cursor::open(app, organization, LIST, call.query.cursor.as_deref()).await?;
        let (page, failing) = tokio::try_join!(
            app.store.webhook_endpoints(organization, below, call.query.limit.get()),
            app.store.failing_webhook_endpoints(organization),
        )?;
        let endpoints = page.items.into_iter().map(|endpoint| {
            let failing = failing.get(&endpoint.id).copied().unwrap_or_default();
            WebhookEndpointResource::new(endpoint, failing, call.caller.principal.scopes)
        });
        ApiResponse::ok(&Output {
            webhook_endpoints: endpoints.collect(),
            next_cursor: cursor::seal(app, organization, LIST, page.resume_below).await?,
        })
    }
}

//! `GET /v1/webhook_endpoints/{id}`: one endpoint.

use karta_shared::{
    App,
    domain::Id,
    http::{ApiResponse, Call, Error, NoBody, NoQuery, Read, Route, WebhookEndpointResource},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    webhook_endpoint: WebhookEndpointResource,
}

#[derive(Debug)]
pub struct WebhookEndpointsGet;

impl Route for WebhookEndpointsGet {
    const NAME: &'static str = "webhook-endpoints-get";
    type Access = Read;
    type Path = Id;
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let (endpoint, failing) = tokio::try_join!(
            app.store.webhook_endpoint(organization, call.path),
            app.store.failing_webhook_endpoint(organization, call.path),
        )?;
        let endpoint = endpoint.ok_or(Error::NotFound)?;
        ApiResponse::ok(&Output {
            webhook_endpoint: WebhookEndpointResource::new(endpoint, failing, call.caller.principal.scopes),
        })
    }
}

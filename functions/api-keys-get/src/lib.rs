//! `GET /v1/api_keys/{id}`: one key, including revoked and expired keys.

use karta_shared::{
    App,
    domain::Id,
    http::{ApiKeyResource, ApiResponse, Call, Error, NoBody, NoQuery, Read, Route},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    api_key: ApiKeyResource,
}

#[derive(Debug)]
pub struct ApiKeysGet;

impl Route for ApiKeysGet {
    const NAME: &'static str = "api-keys-get";
    type Access = Read;
    type Path = Id;
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let key = app.store.api_key(call.caller.organization_id, call.path).await?.ok_or(Error::NotFound)?;
        ApiResponse::ok(&Output { api_key: ApiKeyResource::new(key, call.now) })
    }
}

//! `GET /v1/model_keys`: the organization's provider keys, newest first, including revoked keys.
//! The response does not contain the keys themselves.

use karta_shared::{
    App,
    config::{Ring, Secret},
    http::{ApiResponse, Call, Error, Limit, ModelKeyResource, NoBody, Read, Route, cursor},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const LIST: &str = "model_keys";

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    #[serde(default)]
    limit: Limit,
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    model_keys: Vec<ModelKeyResource>,
    next_cursor: Option<String>,
}

#[derive(Debug)]
pub struct ModelKeysList;

impl Route for ModelKeysList {
    const NAME: &'static str = "model-keys-list";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::Cursor)];
    type Access = Read;
    type Path = ();
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = call.caller.organization_id;
        let below = cursor::open(app, organization, LIST, call.query.cursor.as_deref()).await?;
        let page = app.store.model_keys(organization, below, call.query.limit.get()).await?;
        ApiResponse::ok(&Output {
            model_keys: page.items.into_iter().map(ModelKeyResource::from).collect(),
            next_cursor: cursor::seal(app, organization, LIST, page.resume_below).await?,
        })
    }
}

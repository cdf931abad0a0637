//! `GET /healthz`: confirms that the API is reachable. It does not check dependencies.

use karta_shared::{
    App,
    http::{AnyQuery, ApiResponse, Call, Error, NoBody, Public, Route},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {
    status: &'static str,
}

#[derive(Debug)]
pub struct Healthz;

impl Route for Healthz {
    const NAME: &'static str = "healthz";
    const USES_STORE: bool = false;
    type Access = Public;
    type Path = ();
    type Query = AnyQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(_: &App, _: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        ApiResponse::ok(&Output { status: "ok" })
    }
}

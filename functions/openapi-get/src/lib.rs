//! `GET /openapi.json`: the `OpenAPI` document.

use karta_shared::{
    App,
    http::{AnyQuery, ApiResponse, Call, Error, NoBody, Public, Route, Verbatim},
};

#[derive(Debug)]
pub struct OpenapiGet;

impl Route for OpenapiGet {
    const NAME: &'static str = "openapi-get";
    const USES_STORE: bool = false;
    const HEADERS: &'static [(&'static str, &'static str)] =
        &[("cache-control", "public, max-age=300"), ("access-control-allow-origin", "*")];
    type Access = Public;
    type Path = ();
    type Query = AnyQuery;
    type Body = NoBody;
    type Output = Verbatim;

    async fn handle(_: &App, _: &Call<Self>) -> Result<ApiResponse<Verbatim>, Error> {
        Ok(ApiResponse::verbatim(include_str!("../../../openapi.json")))
    }
}

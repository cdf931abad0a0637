//! `GET /v1/internal/whoami`: confirms a service token, for data planes that check their
//! configuration.

use karta_shared::{
    App,
    http::{AnyService, ApiResponse, Call, Error, Internal, NoBody, NoQuery, Route},
};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Output {
    principal_kind: &'static str,
}

#[derive(Debug)]
pub struct InternalWhoami;

impl Route for InternalWhoami {
    const NAME: &'static str = "internal-whoami";
    const USES_STORE: bool = false;
    type Access = Internal<AnyService>;
    type Path = ();
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(_: &App, _: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        ApiResponse::ok(&Output { principal_kind: "service" })
    }
}

//! `GET /v1/whoami`: the Principal of an API key.

use karta_shared::{
    App,
    domain::Principal,
    http::{AnyKey, ApiResponse, Call, Error, NoBody, NoQuery, Route},
};

#[derive(Debug)]
pub struct Whoami;

impl Route for Whoami {
    const NAME: &'static str = "whoami";
    const USES_STORE: bool = false;
    type Access = AnyKey;
    type Path = ();
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Principal;

    async fn handle(_: &App, call: &Call<Self>) -> Result<ApiResponse<Principal>, Error> {
        ApiResponse::ok(&call.caller.principal)
    }
}

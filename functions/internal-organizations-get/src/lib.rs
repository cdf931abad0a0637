//! `GET /v1/internal/organizations/{id}`: one organization.

use karta_shared::{
    App,
    domain::Id,
    http::{ApiResponse, Call, Error, Internal, NoBody, NoQuery, OrganizationResource, Provision, Route},
};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Output {
    organization: OrganizationResource,
}

#[derive(Debug)]
pub struct InternalOrganizationsGet;

impl Route for InternalOrganizationsGet {
    const NAME: &'static str = "internal-organizations-get";
    type Access = Internal<Provision>;
    type Path = Id;
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let organization = app.store.organization(call.path).await?.ok_or(Error::NotFound)?;
        ApiResponse::ok(&Output { organization: organization.into() })
    }
}

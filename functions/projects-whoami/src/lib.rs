//! `GET /v1/projects/{ref}/whoami`: the caller's Principal in a project, for a widget with a
//! session token or a server with an API key.

use karta_shared::{
    App,
    domain::{Principal, PrincipalKind},
    http::{ApiResponse, Call, Cors, Error, NoBody, NoQuery, ProjectAccess, ProjectPath, Route},
};

#[derive(Debug)]
pub struct ProjectsWhoami;

impl Route for ProjectsWhoami {
    const NAME: &'static str = "projects-whoami";
    const CORS: Option<Cors> = Some(Cors::PLAIN);
    type Access = ProjectAccess;
    type Path = ProjectPath;
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Principal;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Principal>, Error> {
        let principal = &call.caller;
        match principal.kind {
            // The token names the project and was verified offline, so nothing is read.
            PrincipalKind::Session => {}
            PrincipalKind::ApiKey => {
                let ProjectPath(slug) = &call.path;
                app.store.project(principal.organization_id, slug).await?.ok_or(Error::NotFound)?;
            }
        }
        ApiResponse::ok(principal)
    }
}

//! `GET /v1/internal/model_settings`: the model that the sessions of an organization or a project
//! use.

use karta_shared::{
    App,
    domain::{EndpointUrl, ModelId},
    http::{ApiResponse, Call, Error, IdParameter, Internal, NoBody, Releases, Route},
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    organization_id: IdParameter,
    project_id: Option<IdParameter>,
}

#[derive(Debug, Serialize)]
pub struct Output {
    model_id: Option<ModelId>,
    endpoint_url: Option<EndpointUrl>,
    endpoint_kind: EndpointKind,
}

/// The API of the endpoint.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointKind {
    Anthropic,
}

#[derive(Debug)]
pub struct InternalModelSettingsGet;

impl Route for InternalModelSettingsGet {
    const NAME: &'static str = "internal-model-settings-get";
    type Access = Internal<Releases>;
    type Path = ();
    type Query = Query;
    type Body = NoBody;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let IdParameter(id) = call.query.organization_id;
        let project = async {
            match call.query.project_id {
                Some(IdParameter(project)) => {
                    app.store.project_by_id(id, project).await?.map(Some).ok_or(Error::NotFound)
                }
                None => Ok(None),
            }
        };
        let (organization, project) = tokio::join!(app.store.organization(id), project);
        let (organization, project) = (organization?.ok_or(Error::NotFound)?, project?);
        let (model_id, endpoint_url) =
            project.map(|project| (project.model_id, project.endpoint_url)).unwrap_or_default();
        ApiResponse::ok(&Output {
            model_id: model_id.or(organization.model_id),
            endpoint_url: endpoint_url.or(organization.endpoint_url),
            endpoint_kind: EndpointKind::Anthropic,
        })
    }
}

//! `POST /v1/internal/organizations`: creates an organization with its first API key, and returns
//! the key's token once.

use karta_shared::{
    App,
    bootstrap::OrganizationBootstrap,
    config::{Ring, Secret},
    domain::{Id, Name, Organization, Plan, Slug},
    http::{
        ApiKeyResource, ApiResponse, Call, Error, Internal, NoQuery, OrganizationResource, Provision, Revealed,
        Reveals, Route,
    },
    store::{CommitError, Conflict},
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    slug: Slug,
    name: Name,
    plan: Option<Plan>,
}

#[derive(Debug, Serialize)]
pub struct Output {
    organization: OrganizationResource,
    api_key: ApiKeyResource,
    secret: Revealed,
}

#[derive(Debug)]
pub struct InternalOrganizationsCreate;

impl Route for InternalOrganizationsCreate {
    const NAME: &'static str = "internal-organizations-create";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::KeyTag)];
    const STATUS: u16 = 201;
    const IDEMPOTENT: bool = true;
    type Access = Internal<Provision>;
    type Path = ();
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        if let Some(answer) = call.replay(app).await? {
            return Ok(answer);
        }
        let Input { slug, name, plan } = call.body.clone();
        let mut organization = Organization::new(Id::draw(call.now, &*app.entropy), slug, name, call.now);
        organization.plan = plan.unwrap_or_default();
        let bootstrap = OrganizationBootstrap::new(app, organization, call.now).await?;
        let answer = ApiResponse::created(&Output {
            organization: bootstrap.organization.clone().into(),
            api_key: ApiKeyResource::new(bootstrap.api_key.clone(), call.now),
            secret: Revealed::new(bootstrap.token.expose()),
        })?;

        let mut transaction = app.store.transaction();
        bootstrap.stage(&mut transaction, |event| call.audit_event(app, event))?;
        call.remember(app, &mut transaction, &answer, bootstrap.organization.id, Reveals::Secret)?;
        match transaction.commit().await {
            Err(CommitError::Conflict(Conflict::SlugTaken)) => {
                let owner = app.store.organization_id_by_slug(&bootstrap.organization.slug).await?;
                Err(slug_taken(owner))
            }
            committed => Ok(committed.map(|()| answer)?),
        }
    }
}

/// Names the owner of the slug, unlike other routes: an operator who lost the response to a
/// creation finds the organization by its id.
fn slug_taken(owner: Option<Id>) -> Error {
    Error::Conflict {
        code: "slug_taken",
        message: "This slug is taken by another organization. Choose another slug.",
        resource_id: owner,
    }
}

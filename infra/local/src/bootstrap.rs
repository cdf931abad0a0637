//! Creates the first organization and its first API key.

use anyhow::{Context, Result};
use karta_shared::{
    App,
    bootstrap::OrganizationBootstrap,
    domain::{Actor, ActorKind, ApiKeyToken, AuditEvent, Id, Name, NewAuditEvent, Organization, ResourceRef, Slug},
    store::{CommitError, Conflict},
};

/// Maximum attempts if a drawn id is taken.
const MAX_ATTEMPTS: usize = 5;

/// The organization that a run uses.
#[derive(Debug)]
pub struct BootstrapResult {
    pub organization: Organization,
    /// The token of its first key. `None` if the organization already existed: a token is shown
    /// once.
    pub api_key: Option<ApiKeyToken>,
}

/// Finds the organization with this slug, or creates it with a first key that has all scopes. The
/// audit log names `actor_name` as the creator.
pub async fn organization(app: &App, slug: &Slug, actor_name: &str) -> Result<BootstrapResult> {
    if let Some(organization) = app.store.organization_by_slug(slug).await? {
        return Ok(BootstrapResult { organization, api_key: None });
    }
    let name = Name::try_from(slug.as_str().to_owned()).context("--org")?;
    for _ in 1..MAX_ATTEMPTS {
        match create(app, slug, &name, actor_name).await {
            Err(error) if matches!(error.downcast_ref(), Some(CommitError::Conflict(Conflict::IdTaken))) => {}
            created => return created,
        }
    }
    create(app, slug, &name, actor_name).await
}

async fn create(app: &App, slug: &Slug, name: &Name, actor_name: &str) -> Result<BootstrapResult> {
    let now = app.clock.now();
    let organization = Organization::new(Id::draw(now, &*app.entropy), slug.clone(), name.clone(), now);
    let bootstrap = OrganizationBootstrap::new(app, organization, now).await?;
    let mut transaction = app.store.transaction();
    bootstrap.stage(&mut transaction, |event: NewAuditEvent| AuditEvent {
        id: Id::draw(now, &*app.entropy),
        at: now,
        actor: Actor { kind: ActorKind::System, id: None, name: actor_name.to_owned() },
        action: event.action.as_str().to_owned(),
        resource: ResourceRef { kind: event.resource_kind.to_owned(), id: event.resource_id },
        changes: event.changes,
        ip_address: None,
        user_agent: None,
        request_id: "bootstrap".to_owned(),
    })?;
    transaction.commit().await?;
    Ok(BootstrapResult { organization: bootstrap.organization, api_key: Some(bootstrap.token) })
}

//! The first organization and its first key.

use anyhow::{Context, Result};
use karta_shared::{
    App,
    bootstrap::OrganizationBootstrap,
    domain::{Actor, ActorKind, ApiKeyToken, AuditEvent, Id, Name, NewAuditEvent, Organization, ResourceRef, Slug},
};

/// The organization that a run works with.
#[derive(Debug)]
pub struct Founded {
    pub organization: Organization,
    /// Its first key's token; none over existing data, for it is shown once.
    pub api_key: Option<ApiKeyToken>,
}

/// Finds the organization with this slug, or makes it with a first key that holds all scopes. The audit log names `founder` as its maker.
pub async fn organization(app: &App, slug: &Slug, founder: &str) -> Result<Founded> {
    if let Some(organization) = app.store.organization_by_slug(slug).await? {
        return Ok(Founded { organization, api_key: None });
    }
    let now = app.clock.now();
    let name = Name::try_from(slug.as_str().to_owned()).context("--org")?;
    let organization = Organization::new(Id::draw(now, &*app.entropy), slug.clone(), name, now);
    let bootstrap = OrganizationBootstrap::new(app, organization, now).await?;
    let mut transaction = app.store.transaction();
    bootstrap.stage(&mut transaction, |event: NewAuditEvent| AuditEvent {
        id: Id::draw(now, &*app.entropy),
        at: now,
        actor: Actor { kind: ActorKind::System, id: None, name: founder.to_owned() },
        action: event.action.as_str().to_owned(),
        resource: ResourceRef { kind: event.resource_kind.to_owned(), id: event.resource_id },
        changes: event.changes,
        ip_address: None,
        user_agent: None,
        request_id: "bootstrap".to_owned(),
    })?;
    transaction.commit().await?;
    Ok(Founded { organization: bootstrap.organization, api_key: Some(bootstrap.token) })
}

//! The first organization and its first key.

use anyhow::{Context, Result};
use karta_shared::{
    App,
    config::Ring,
    domain::{
        Actor, ActorKind, AllowedCidrs, ApiKey, ApiKeySettings, ApiKeyToken, AuditEvent, Id, Metadata, Name,
        Organization, ResourceRef, ScopeSet, Slug,
    },
};

/// The organization that a run works with.
#[derive(Debug)]
pub struct Founded {
    pub organization: Organization,
    /// Its first key's token; none over existing data, for it is shown once.
    pub api_key: Option<ApiKeyToken>,
}

/// Finds the organization with this slug, or makes it with a first key that holds all scopes.
pub async fn organization(app: &App, slug: &Slug) -> Result<Founded> {
    if let Some(organization) = app.store.organization_by_slug(slug).await? {
        return Ok(Founded { organization, api_key: None });
    }
    let (now, entropy) = (app.clock.now(), &*app.entropy);
    let name = Name::try_from(slug.as_str().to_owned()).context("--org")?;
    let organization = Organization::new(Id::draw(now, entropy), slug.clone(), name, now);
    let token = ApiKeyToken::mint(&*app.secrets.ring(Ring::KeyTag).await?, entropy);
    let digest = app.bcrypt.digest(&token, entropy).await?;
    let settings = ApiKeySettings {
        name: Name::try_from("First key".to_owned())?,
        scopes: ScopeSet::ALL,
        expires_at: None,
        allowed_cidrs: AllowedCidrs::default(),
        budget: None,
        metadata: Metadata::default(),
    };
    let key = ApiKey::new(Id::draw(now, entropy), token.prefix(), settings, None, now);
    let event = AuditEvent {
        id: Id::draw(now, entropy),
        at: now,
        actor: Actor { kind: ActorKind::System, id: None, name: "local runner".to_owned() },
        action: "api_key.created".to_owned(),
        resource: ResourceRef { kind: "api_key".to_owned(), id: key.id },
        changes: key.creation(),
        ip_address: None,
        user_agent: None,
        request_id: "bootstrap".to_owned(),
    };
    let mut transaction = app.store.transaction();
    transaction.create_organization(&organization)?;
    transaction.create_api_key(organization.id, &key, digest)?;
    transaction.audit(organization.id, &event)?;
    transaction.commit().await?;
    Ok(Founded { organization, api_key: Some(token) })
}

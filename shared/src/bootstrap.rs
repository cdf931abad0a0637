//! Creates an organization and its first API key in one transaction, so that an organization never
//! exists without a key.

use crate::{
    App,
    auth::Undecided,
    config::Ring,
    domain::{
        Action, AllowedCidrs, ApiKey, ApiKeySettings, ApiKeyToken, AuditEvent, Id, Metadata, Name, NewAuditEvent,
        Organization, ScopeSet, Timestamp,
    },
    store::{Digest, StoreError, Transaction},
};

/// A new organization and its first API key, which has every scope. Nothing is written until both
/// are staged in a transaction and the transaction is committed.
#[derive(Debug)]
pub struct OrganizationBootstrap {
    pub organization: Organization,
    pub api_key: ApiKey,
    pub token: ApiKeyToken,
    digest: Digest,
}

impl OrganizationBootstrap {
    /// Generates the first key of `organization`. Writes nothing.
    pub async fn new(app: &App, organization: Organization, now: Timestamp) -> Result<Self, Undecided> {
        let token = ApiKeyToken::mint(&*app.secrets.ring(Ring::KeyTag).await?, &*app.entropy);
        let digest = app.bcrypt.digest(&token, &*app.entropy).await?;
        let settings = ApiKeySettings {
            name: Name::try_from("First key".to_owned()).expect("\"First key\" is a valid name"),
            scopes: ScopeSet::ALL,
            expires_at: None,
            allowed_cidrs: AllowedCidrs::default(),
            budget: None,
            metadata: Metadata::default(),
        };
        let api_key = ApiKey::new(Id::draw(now, &*app.entropy), token.prefix(), settings, None, now);
        Ok(Self { organization, api_key, token, digest })
    }

    /// Stages the organization, its first key and their audit events. `audit_event` adds actor,
    /// time and request metadata to an event.
    pub fn stage(
        &self,
        transaction: &mut Transaction,
        audit_event: impl Fn(NewAuditEvent) -> AuditEvent,
    ) -> Result<(), StoreError> {
        let organization = self.organization.id;
        transaction.create_organization(&self.organization)?;
        transaction.create_api_key(organization, &self.api_key, self.digest.clone())?;
        let organization_created = NewAuditEvent {
            action: Action::OrganizationCreated,
            resource_kind: "organization",
            resource_id: organization.into(),
            changes: self.organization.creation(),
        };
        let key_created = NewAuditEvent {
            action: Action::ApiKeyCreated,
            resource_kind: "api_key",
            resource_id: self.api_key.id.into(),
            changes: self.api_key.creation(),
        };
        for event in &AuditEvent::pair(audit_event, organization_created, &key_created) {
            transaction.audit(organization, event)?;
        }
        Ok(())
    }
}

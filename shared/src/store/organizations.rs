use serde::{Deserialize, Serialize};

use super::{
    Conflict, Store, StoreError, Transaction,
    table::{Key, Table},
};
use crate::domain::{Id, Kind, Organization, Slug};

impl Store {
    pub async fn organization(&self, organization: Id) -> Result<Option<Organization>, StoreError> {
        self.get(Table::Main, Key::organization(organization)).await
    }

    /// Whose slug it is: the directory's look-up, for operators.
    pub async fn organization_by_slug(&self, slug: &Slug) -> Result<Option<Organization>, StoreError> {
        let owner: Option<Owner> = self.get(Table::Main, Key::claimed_organization_slug(slug)).await?;
        match owner {
            Some(owner) => self.organization(owner.organization_id).await,
            None => Ok(None),
        }
    }
}

impl Transaction {
    /// A new organization under a slug of its own. It needs a first key in the same transaction: nobody else could make one.
    pub fn create_organization(&mut self, organization: &Organization) -> Result<(), StoreError> {
        let slug = Key::claimed_organization_slug(&organization.slug);
        self.insert(Table::Main, &slug, &Owner { organization_id: organization.id }, Conflict::SlugTaken)?;
        self.claim_id(organization.id, Kind::Organization, organization.id)?;
        self.insert(Table::Main, &Key::organization(organization.id), organization, Conflict::IdTaken)
    }
}

/// What a slug's claim holds.
#[derive(Serialize, Deserialize)]
struct Owner {
    organization_id: Id,
}

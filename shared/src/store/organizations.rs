use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Conflict, Store, StoreError, Transaction,
    table::{Key, Table},
};
use crate::domain::{Id, Kind, Organization, Slug, StripeCustomerId, StripeId, Timestamp};

/// For how long an event of Stripe's is remembered. Stripe sends one again for three days by itself, and for thirty when it is asked to.
const EVENTS_REMEMBERED: Duration = Duration::from_hours(35 * 24);

impl Store {
    pub async fn organization(&self, organization: Id) -> Result<Option<Organization>, StoreError> {
        self.get(Table::Main, Key::organization(organization)).await
    }

    /// Whose slug it is: the directory's look-up, for operators.
    pub async fn organization_id_by_slug(&self, slug: &Slug) -> Result<Option<Id>, StoreError> {
        let owner: Option<Owner> = self.get(Table::Main, Key::claimed_organization_slug(slug)).await?;
        Ok(owner.map(|owner| owner.organization_id))
    }

    /// The organization with this slug.
    pub async fn organization_by_slug(&self, slug: &Slug) -> Result<Option<Organization>, StoreError> {
        match self.organization_id_by_slug(slug).await? {
            Some(organization) => self.organization(organization).await,
            None => Ok(None),
        }
    }

    /// The organization that is this Stripe customer.
    pub async fn organization_by_stripe_customer(
        &self,
        customer: &StripeCustomerId,
    ) -> Result<Option<Organization>, StoreError> {
        let owner: Option<Owner> = self.get(Table::Main, Key::claimed_stripe_customer(customer)).await?;
        let Some(owner) = owner else {
            return Ok(None);
        };
        let organization = self.organization(owner.organization_id).await?;
        // The claim may have moved between the two reads.
        Ok(organization.filter(|organization| organization.stripe_customer_id.as_ref() == Some(customer)))
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

    /// A changed organization. A Stripe customer is one organization's at a time: the claim moves in the same transaction.
    pub fn update_organization(&mut self, before: &Organization, after: &Organization) -> Result<(), StoreError> {
        if before.stripe_customer_id != after.stripe_customer_id {
            if let Some(customer) = &after.stripe_customer_id {
                let claim = Owner { organization_id: after.id };
                self.insert(
                    Table::Main,
                    &Key::claimed_stripe_customer(customer),
                    &claim,
                    Conflict::StripeCustomerTaken,
                )?;
            }
            if let Some(customer) = &before.stripe_customer_id {
                self.delete_owned(Table::Main, &Key::claimed_stripe_customer(customer), before.id)?;
            }
        }
        self.replace(Table::Main, &Key::organization(after.id), after, before.version)
    }

    /// Demands of an organization that it still is as it was read.
    pub fn while_organization_unchanged(&mut self, read: &Organization) -> Result<(), StoreError> {
        self.check_version(Table::Main, &Key::organization(read.id), read.version, Conflict::Changed)
    }

    /// Remembers an event of Stripe's, with what it brings about: it does so once.
    pub fn take_in_stripe_event(
        &mut self,
        organization: Id,
        event: &StripeId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let item = TakenIn { organization_id: organization, at: now, ttl: now.plus(EVENTS_REMEMBERED).as_seconds() };
        self.insert(Table::Main, &Key::stripe_event(event), &item, Conflict::EventSeen)
    }
}

#[derive(Serialize)]
struct TakenIn {
    organization_id: Id,
    at: Timestamp,
    ttl: i64,
}

/// Whose a claimed slug or Stripe customer is.
#[derive(Serialize, Deserialize)]
struct Owner {
    organization_id: Id,
}

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Conflict, Store, StoreError, Transaction,
    table::{Key, Table},
};
use crate::domain::{Id, Kind, Organization, Slug, StripeCustomerId, StripeId, Timestamp};

/// How long a processed Stripe event is kept. Stripe resends events for three days by itself, and
/// for thirty days on request.
const EVENT_RETENTION: Duration = Duration::from_hours(35 * 24);

impl Store {
    pub async fn organization(&self, organization: Id) -> Result<Option<Organization>, StoreError> {
        self.get(Table::Main, Key::organization(organization)).await
    }

    /// Returns the id of the organization with this slug. For operators.
    pub async fn organization_id_by_slug(&self, slug: &Slug) -> Result<Option<Id>, StoreError> {
        let owner: Option<Owner> = self.get(Table::Main, Key::claimed_organization_slug(slug)).await?;
        Ok(owner.map(|owner| owner.organization_id))
    }

    pub async fn organization_by_slug(&self, slug: &Slug) -> Result<Option<Organization>, StoreError> {
        match self.organization_id_by_slug(slug).await? {
            Some(organization) => self.organization(organization).await,
            None => Ok(None),
        }
    }

    pub async fn organization_by_stripe_customer(
        &self,
        customer: &StripeCustomerId,
    ) -> Result<Option<Organization>, StoreError> {
        let owner: Option<Owner> = self.get(Table::Main, Key::claimed_stripe_customer(customer)).await?;
        let Some(owner) = owner else {
            return Ok(None);
        };
        let organization = self.organization(owner.organization_id).await?;
        // The claim may have moved to another organization between the two reads.
        Ok(organization.filter(|organization| organization.stripe_customer_id.as_ref() == Some(customer)))
    }
}

impl Transaction {
    /// Creates an organization and claims its slug. The same transaction must create its first key,
    /// because nothing else can.
    pub fn create_organization(&mut self, organization: &Organization) -> Result<(), StoreError> {
        let slug = Key::claimed_organization_slug(&organization.slug);
        self.insert(Table::Main, &slug, &Owner { organization_id: organization.id }, Conflict::SlugTaken)?;
        self.claim_id(organization.id, Kind::Organization, organization.id)?;
        self.insert(Table::Main, &Key::organization(organization.id), organization, Conflict::IdTaken)
    }

    /// Updates an organization. A Stripe customer belongs to one organization at a time: its claim
    /// moves in the same transaction.
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

    /// Requires that an organization is unchanged since it was read.
    pub fn require_organization_unchanged(&mut self, read: &Organization) -> Result<(), StoreError> {
        self.check_version(Table::Main, &Key::organization(read.id), read.version, Conflict::Changed)
    }

    /// Records a Stripe event in the transaction of its effects, so that it takes effect once.
    pub fn record_stripe_event(
        &mut self,
        organization: Id,
        event: &StripeId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let item =
            ProcessedEvent { organization_id: organization, at: now, ttl: now.plus(EVENT_RETENTION).as_seconds() };
        self.insert(Table::Main, &Key::stripe_event(event), &item, Conflict::EventSeen)
    }
}

#[derive(Serialize)]
struct ProcessedEvent {
    organization_id: Id,
    at: Timestamp,
    ttl: i64,
}

/// The owner of a claimed slug or Stripe customer.
#[derive(Serialize, Deserialize)]
struct Owner {
    organization_id: Id,
}

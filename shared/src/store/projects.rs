use serde::{Deserialize, Serialize};

use super::{
    Conflict, Page, Store, StoreError, Transaction, decode,
    page::Listing,
    table::{Key, Table, padded, projects_partition},
};
use crate::domain::{Id, Kind, Project, Slug};

#[derive(Serialize, Deserialize)]
struct SlugClaim {
    project_id: Id,
}

impl Store {
    pub async fn project(&self, organization: Id, slug: &Slug) -> Result<Option<Project>, StoreError> {
        let claim: Option<SlugClaim> = self.get(Table::Main, Key::project_slug(organization, slug)).await?;
        match claim {
            Some(claim) => self.project_by_id(organization, claim.project_id).await,
            None => Ok(None),
        }
    }

    pub async fn project_by_id(&self, organization: Id, project: Id) -> Result<Option<Project>, StoreError> {
        self.get(Table::Main, Key::project(organization, project)).await
    }

    /// Returns the organization's projects, newest first.
    pub async fn projects(
        &self,
        organization: Id,
        below: Option<Id>,
        limit: usize,
    ) -> Result<Page<Project>, StoreError> {
        let partition = projects_partition(organization);
        let listing = Listing {
            table: Table::Main,
            partition,
            sort_key: padded,
            read: decode,
            skips_unreadable: false,
            id: |project: &Project| project.id,
        };
        self.page(listing, below, limit, |_| true).await
    }
}

impl Transaction {
    /// Creates a project and claims its slug.
    pub fn create_project(&mut self, organization: Id, project: &Project) -> Result<(), StoreError> {
        let claim = SlugClaim { project_id: project.id };
        self.insert(Table::Main, &Key::project_slug(organization, &project.slug), &claim, Conflict::SlugTaken)?;
        self.claim_id(organization, Kind::AgentProject, project.id)?;
        self.insert(Table::Main, &Key::project(organization, project.id), project, Conflict::IdTaken)
    }

    pub fn update_project(&mut self, organization: Id, before: &Project, after: &Project) -> Result<(), StoreError> {
        self.replace(Table::Main, &Key::project(organization, after.id), after, before.version)
    }
}

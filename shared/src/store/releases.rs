use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{
    Conflict, Page, Store, StoreError, Transaction, decode,
    page::Listing,
    table::{Key, Table, log_partition, padded, releases_partition},
};
use crate::domain::{BuildLog, Id, Kind, LogChunk, LogIndex, LogLine, Project, Release, Version};

/// Whose a release is: what the directory holds of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasePlace {
    pub organization_id: Id,
    pub project_id: Id,
    pub version: Version,
    id: Id,
}

impl Store {
    pub async fn release(
        &self,
        organization: Id,
        project: Id,
        version: Version,
    ) -> Result<Option<Release>, StoreError> {
        self.get(Table::Main, Key::release(organization, project, version)).await
    }

    /// A project's releases below a version, newest first.
    pub async fn releases(
        &self,
        organization: Id,
        project: Id,
        below: Id,
        limit: usize,
    ) -> Result<Page<Release>, StoreError> {
        let partition = releases_partition(organization, project);
        let listing = Listing {
            table: Table::Main,
            partition,
            place: padded,
            read: decode,
            skips_unreadable: false,
            id: |release: &Release| release.version.place(),
        };
        self.page(listing, Some(below), limit, |_| true).await
    }

    /// Whose a release is: the directory's look-up, for internal routes.
    pub async fn release_place(&self, release: Id) -> Result<Option<ReleasePlace>, StoreError> {
        self.get(Table::Main, Key::claimed_id(Kind::Release, release)).await
    }

    /// The first `limit` lines of a release's log after one.
    pub async fn build_log(
        &self,
        organization: Id,
        release: Id,
        after: u64,
        limit: usize,
    ) -> Result<Vec<LogLine>, StoreError> {
        let mut lines = Vec::with_capacity(limit);
        let mut read_up_to = after;
        while lines.len() < limit {
            let output = self
                .client
                .query()
                .table_name(self.table(Table::Main))
                .key_condition_expression("pk = :pk AND sk > :line")
                .expression_attribute_values(":pk", AttributeValue::S(log_partition(organization, release)))
                .expression_attribute_values(":line", AttributeValue::S(format!("{read_up_to:016}")))
                .consistent_read(true)
                .limit(1)
                .send()
                .await?;
            let Some(chunk) = output.items.unwrap_or_default().pop() else {
                break;
            };
            let chunk: LogChunk = decode(chunk)?;
            read_up_to = chunk.last_line();
            lines.extend(chunk.lines().filter(|line| line.line > after).take(limit - lines.len()));
        }
        Ok(lines)
    }
}

impl Transaction {
    /// A new release, and its project as it is with it: one number, one release.
    pub fn create_release(
        &mut self,
        organization: Id,
        before: &Project,
        after: &Project,
        release: &Release,
    ) -> Result<(), StoreError> {
        let (id, project_id, version) = (release.id, release.project_id, release.version);
        let place = ReleasePlace { organization_id: organization, project_id, version, id };
        self.update_project(organization, before, after)?;
        self.insert(Table::Main, &Key::claimed_id(Kind::Release, id), &place, Conflict::IdTaken)?;
        self.insert(Table::Main, &Key::release(organization, project_id, version), release, Conflict::Changed)
    }

    pub fn update_release(&mut self, organization: Id, before: &Release, after: &Release) -> Result<(), StoreError> {
        let key = Key::release(organization, after.project_id, after.version);
        self.put(Table::Main, &key, after, Conflict::Changed, |put| {
            put.condition_expression("revision = :read")
                .expression_attribute_values(":read", AttributeValue::N(before.revision.to_string()))
        })
    }

    /// Puts a release's log in the place of the one that `before` tells of. The release itself is written in the same transaction.
    pub fn replace_build_log(&mut self, organization: Id, before: &Release, log: &BuildLog) -> Result<(), StoreError> {
        let kept: Vec<_> = log.chunks().iter().map(LogChunk::last_line).collect();
        for chunk in log.chunks() {
            let key = Key::log_chunk(organization, before.id, chunk.last_line());
            self.put(Table::Main, &key, chunk, Conflict::Changed, |put| put)?;
        }
        let ends = before.log.as_ref().map_or(&[][..], LogIndex::ends);
        for end in ends.iter().filter(|end| !kept.contains(end)) {
            self.delete(Table::Main, &Key::log_chunk(organization, before.id, *end), Conflict::Changed, |delete| {
                delete
            })?;
        }
        Ok(())
    }
}

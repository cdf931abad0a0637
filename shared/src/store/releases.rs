use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{
    Conflict, Page, Store, StoreError, Transaction, decode, encode,
    page::Listing,
    table::{Key, Table, log_chunk_sort_key, log_partition, padded, releases_partition},
};
use crate::domain::{
    BuildLog, Id, Kind, LogChunk, LogGeneration, LogIndex, LogLine, Project, Release, Timestamp, Version,
};

/// The location of a release, as stored in its `ID#` item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseLocation {
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

    /// Returns a project's releases with smaller versions than `below`, newest first.
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
            sort_key: padded,
            read: decode,
            skips_unreadable: false,
            id: |release: &Release| release.version.as_id(),
        };
        self.page(listing, Some(below), limit, |_| true).await
    }

    /// Returns the location of a release. For internal routes.
    pub async fn release_location(&self, release: Id) -> Result<Option<ReleaseLocation>, StoreError> {
        self.get(Table::Main, Key::claimed_id(Kind::Release, release)).await
    }

    /// Returns up to `limit` lines of a release's log after line `after`. `None` if the log was
    /// replaced by another.
    pub async fn build_log(
        &self,
        organization: Id,
        release: Id,
        log: &LogIndex,
        after: u64,
        limit: usize,
    ) -> Result<Option<Vec<LogLine>>, StoreError> {
        let wanted = usize::try_from(log.last_line().saturating_sub(after)).unwrap_or(usize::MAX).min(limit);
        let mut lines = Vec::with_capacity(wanted);
        let mut read_up_to = after;
        while lines.len() < wanted {
            let output = self
                .client
                .query()
                .table_name(self.table(Table::Main))
                .key_condition_expression("pk = :pk AND sk BETWEEN :first AND :last")
                .expression_attribute_values(":pk", AttributeValue::S(log_partition(organization, release)))
                .expression_attribute_values(":first", chunk_sort_key(log, read_up_to + 1))
                .expression_attribute_values(":last", chunk_sort_key(log, log.last_line()))
                .consistent_read(true)
                .limit(1)
                .send()
                .await?;
            let Some(chunk) = output.items.unwrap_or_default().pop() else {
                return Ok(None);
            };
            let chunk: LogChunk = decode(chunk)?;
            read_up_to = chunk.last_line();
            lines.extend(chunk.lines().filter(|line| line.line > after).take(wanted - lines.len()));
        }
        Ok(Some(lines))
    }

    /// Writes the chunks of a log. They become visible when the release names their generation.
    ///
    /// The writes are outside the release's transaction, which would double their cost and send
    /// them all at once: a partition accepts 1,000 write units a second, and 1 MiB takes 1,024.
    pub async fn write_build_log(
        &self,
        organization: Id,
        release: Id,
        generation: &LogGeneration,
        log: &BuildLog,
    ) -> Result<(), StoreError> {
        for chunk in log.chunks() {
            let key = Key::log_chunk(organization, release, generation, chunk.last_line());
            let item = encode(&key, chunk)?;
            self.client.put_item().table_name(self.table(Table::Main)).set_item(Some(item)).send().await?;
        }
        Ok(())
    }

    /// Deletes a log that the release does not name. It starts at the end, so that a concurrent
    /// reader sees a log that ends early, and never one with a gap.
    pub async fn delete_build_log(&self, organization: Id, release: Id, log: &LogIndex) -> Result<(), StoreError> {
        for end in log.ends().iter().rev() {
            self.delete_chunk(&Key::log_chunk(organization, release, log.generation(), *end)).await?;
        }
        Ok(())
    }

    /// Deletes some of the remaining chunks of generations that were created before `until`. Call
    /// it only after a commit that names a newer generation, with `until` earlier than that
    /// generation: a writer of an older generation can then no longer commit.
    pub async fn sweep_build_logs(&self, organization: Id, release: Id, until: Timestamp) -> Result<(), StoreError> {
        let output = self
            .client
            .query()
            .table_name(self.table(Table::Main))
            .key_condition_expression("pk = :pk AND sk < :until")
            .expression_attribute_values(":pk", AttributeValue::S(log_partition(organization, release)))
            .expression_attribute_values(":until", AttributeValue::S(until.to_string()))
            .projection_expression("pk, sk")
            .consistent_read(true)
            .send()
            .await?;
        for item in output.items.unwrap_or_default() {
            self.delete_chunk(&decode(item)?).await?;
        }
        Ok(())
    }

    async fn delete_chunk(&self, key: &Key) -> Result<(), StoreError> {
        self.client.delete_item().table_name(self.table(Table::Main)).set_key(Some(key.attributes())).send().await?;
        Ok(())
    }
}

/// Returns the first possible sort key of the chunk with this line.
fn chunk_sort_key(log: &LogIndex, line: u64) -> AttributeValue {
    AttributeValue::S(log_chunk_sort_key(log.generation(), line))
}

impl Transaction {
    /// Creates a release and updates its project, which makes the version unique.
    pub fn create_release(
        &mut self,
        organization: Id,
        before: &Project,
        after: &Project,
        release: &Release,
    ) -> Result<(), StoreError> {
        let (id, project_id, version) = (release.id, release.project_id, release.version);
        let location = ReleaseLocation { organization_id: organization, project_id, version, id };
        self.update_project(organization, before, after)?;
        self.insert(Table::Main, &Key::claimed_id(Kind::Release, id), &location, Conflict::IdTaken)?;
        self.insert(Table::Main, &Key::release(organization, project_id, version), release, Conflict::Changed)
    }

    pub fn update_release(&mut self, organization: Id, before: &Release, after: &Release) -> Result<(), StoreError> {
        let key = Key::release(organization, after.project_id, after.version);
        self.put(Table::Main, &key, after, Conflict::Changed, |put| {
            put.condition_expression("revision = :read")
                .expression_attribute_values(":read", AttributeValue::N(before.revision.to_string()))
        })
    }
}

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{
    Conflict, Page, Store, StoreError, Transaction,
    access::by_key,
    decode,
    outbox::Scheduled,
    page::{Listing, MAX_PAGE_BYTES, item_bytes},
    table::{
        Key, SESSION_SHARDS, Table, padded, project_sessions_partition, session_shard, sessions_partition,
        user_sessions_partition,
    },
};
use crate::domain::{Id, Session, SessionId, Timestamp, UserId};

/// A list that contains sessions of an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionList<'a> {
    /// Every session.
    Organization,
    Project(Id),
    /// The sessions of a user: those of one project, or of the whole organization without a
    /// project.
    User {
        project: Option<Id>,
        user: &'a UserId,
    },
}

impl SessionList<'_> {
    fn partition(self, organization: Id) -> String {
        match self {
            Self::Organization => sessions_partition(organization),
            Self::Project(project) => project_sessions_partition(organization, project),
            Self::User { project, user } => user_sessions_partition(organization, project, user),
        }
    }
}

/// Returns the keys of a session in all lists that contain it.
pub(super) fn list_keys(organization: Id, session: &Session) -> impl Iterator<Item = Key> {
    let project = session.project.as_ref().map(|project| project.id);
    let of_user = |project| session.user_id.as_ref().map(|user| SessionList::User { project, user });
    let lists = [
        Some(SessionList::Organization),
        project.map(SessionList::Project),
        of_user(None),
        project.and_then(|project| of_user(Some(project))),
    ];
    lists.into_iter().flatten().map(move |list| Key::listed(list.partition(organization), session.list_id))
}

#[derive(Serialize, Deserialize)]
struct ListedSession {
    session_id: SessionId,
    list_id: Id,
}

impl Store {
    /// Returns a session, also one that is deleted or expired: callers check
    /// [`Session::is_reachable`].
    pub async fn session(&self, organization: Id, session: &SessionId) -> Result<Option<Session>, StoreError> {
        self.get(Table::Sessions, Key::session(organization, session)).await
    }

    /// Returns the sessions of a list, newest first, without those that are deleted or expired. A
    /// page may therefore contain fewer than `limit` sessions although another page follows. It
    /// has at most 1 MB, or one session.
    pub async fn sessions(
        &self,
        organization: Id,
        list: SessionList<'_>,
        below: Option<Id>,
        limit: usize,
        now: Timestamp,
    ) -> Result<Page<Session>, StoreError> {
        let listing = Listing {
            table: Table::Sessions,
            partition: list.partition(organization),
            sort_key: padded,
            read: decode,
            skips_unreadable: false,
            id: |listed: &ListedSession| listed.list_id,
        };
        let Page { items: listed, resume_below } = self.page(listing, below, limit, |_| true).await?;
        let keys: Vec<_> = listed.iter().map(|listed| Key::session(organization, &listed.session_id)).collect();
        let mut found = by_key(self.batch_get(Table::Sessions, &keys).await?);
        let (mut items, mut bytes, mut below_kept) = (Vec::new(), 0, None);
        for (listed, key) in listed.iter().zip(&keys) {
            if let Some(item) = found.remove(key) {
                bytes += item_bytes(&item);
                if bytes > MAX_PAGE_BYTES && !items.is_empty() {
                    return Ok(Page { items, resume_below: below_kept });
                }
                let session: Session = decode(item)?;
                if session.exists(now) {
                    items.push(session);
                }
            }
            below_kept = Some(listed.list_id);
        }
        Ok(Page { items, resume_below })
    }
}

impl Transaction {
    /// Creates a session and adds it to its lists.
    pub fn create_session(&mut self, organization: Id, session: &Session) -> Result<(), StoreError> {
        let due_shard = session_shard(SESSION_SHARDS, &session.id);
        let item = Scheduled { item: session, due_shard, due_at: session.expires_at };
        self.insert(Table::Sessions, &Key::session(organization, &session.id), &item, Conflict::IdTaken)?;
        let listed = ListedSession { session_id: session.id.clone(), list_id: session.list_id };
        for key in list_keys(organization, session) {
            self.insert(Table::Sessions, &key, &listed, Conflict::IdTaken)?;
        }
        Ok(())
    }

    /// Deletes a session for its callers. Its content is due for deletion at once. Fails with
    /// [`Conflict::TurnInProgress`] while a turn runs, and with [`Conflict::SessionGone`] if the
    /// session was already deleted.
    pub fn delete_session(&mut self, organization: Id, session: &Session, now: Timestamp) -> Result<(), StoreError> {
        let key = Key::session(organization, &session.id);
        self.update(Table::Sessions, &key, Conflict::TurnInProgress, |update| {
            update
                .update_expression("SET deleted_at = :now, due_at = :now")
                .condition_expression(
                    "attribute_exists(pk) AND attribute_not_exists(open_turn) AND attribute_not_exists(deleted_at)",
                )
                .expression_attribute_values(":now", AttributeValue::S(now.to_string()))
        })?;
        for key in list_keys(organization, session) {
            self.delete(Table::Sessions, &key, Conflict::SessionGone, |delete| {
                delete.condition_expression("attribute_exists(pk)")
            })?;
        }
        Ok(())
    }
}

//! Sealed messages. A message is stored in parts, because an item has at most 400 KB.

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{
    Ciphertext, Conflict, Item, Store, StoreError, Transaction, decode,
    table::{Key, Table, message_sort_key, session_partition},
};
use crate::domain::{Id, Kid, MessageId, MessageRole, SessionId, Timestamp, Turn, TurnId};

/// Maximum bytes of a sealed message. The transaction that writes it has at most 4 MB.
pub const MAX_SEALED_MESSAGE_BYTES: usize = 3_000_000;
/// Maximum bytes of ciphertext in an item.
const MAX_PART_BYTES: usize = 350_000;
/// Maximum bytes of messages in a page that is not the whole history.
const MAX_PAGE_BYTES: usize = 1_000_000;
/// Maximum bytes of messages that a turn sends to its provider.
pub const MAX_HISTORY_BYTES: usize = 8_000_000;
const QUERY_LIMIT: usize = 1_000;
/// Before and after the sort keys of all messages.
const FIRST: &str = "M#";
const LAST: &str = "M#:";

/// Sealed content of a session, and the ring key that seals it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedContent {
    pub kid: Kid,
    pub ciphertext: Ciphertext,
}

/// A message whose content is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedMessage {
    pub id: MessageId,
    pub turn_id: TurnId,
    pub turn_number: u64,
    pub role: MessageRole,
    pub created_at: Timestamp,
    pub content: SealedContent,
}

/// Messages of a session, oldest first.
#[derive(Debug)]
pub struct MessagePage {
    pub messages: Vec<SealedMessage>,
    /// The next page contains the messages after this position. `None` on the last page.
    pub resume_after: Option<Id>,
}

/// The first part of a message.
#[derive(Serialize, Deserialize)]
struct FirstPart {
    id: MessageId,
    turn_id: TurnId,
    turn_number: u64,
    role: MessageRole,
    created_at: Timestamp,
    kid: Kid,
    /// Number of parts, this one included.
    parts: usize,
    ciphertext: Ciphertext,
}

#[derive(Serialize, Deserialize)]
struct FurtherPart {
    ciphertext: Ciphertext,
}

/// A message of which some parts were read.
struct PartialMessage {
    first: FirstPart,
    ciphertext: Vec<u8>,
    missing_parts: usize,
}

impl SealedMessage {
    /// Returns the message's position in its session. Positions ascend with time.
    pub fn position(&self) -> Option<Id> {
        let answer = u64::from(self.role == MessageRole::Assistant);
        Id::new(self.turn_number.saturating_mul(2).saturating_add(answer))
    }
}

/// Returns a text between the sort keys of the message at this position and the next one.
fn sort_key_after(position: Id) -> String {
    let role = if position.get().is_multiple_of(2) { MessageRole::User } else { MessageRole::Assistant };
    format!("{}:", message_sort_key(position.get() / 2, role))
}

impl PartialMessage {
    /// Adds a part to the started message, or starts one with it.
    fn read(started: Option<Self>, item: Item) -> Result<Self, StoreError> {
        let Some(mut message) = started else {
            let first: FirstPart = decode(item)?;
            let (ciphertext, missing_parts) = (first.ciphertext.as_bytes().to_vec(), first.parts.saturating_sub(1));
            return Ok(Self { first, ciphertext, missing_parts });
        };
        message.ciphertext.extend_from_slice(decode::<FurtherPart>(item)?.ciphertext.as_bytes());
        message.missing_parts -= 1;
        Ok(message)
    }

    fn finish(self) -> SealedMessage {
        let FirstPart { id, turn_id, turn_number, role, created_at, kid, .. } = self.first;
        let content = SealedContent { kid, ciphertext: Ciphertext::new(self.ciphertext) };
        SealedMessage { id, turn_id, turn_number, role, created_at, content }
    }
}

impl Store {
    /// Returns up to `limit` messages of a session after a position, oldest first. A page has about
    /// 1 MB at most.
    pub async fn messages(
        &self,
        organization: Id,
        session: &SessionId,
        after: Option<Id>,
        limit: usize,
    ) -> Result<MessagePage, StoreError> {
        self.message_page(organization, session, after, limit, MAX_PAGE_BYTES).await
    }

    /// Returns the messages of a turn: the user's, and the answer if there is one.
    pub async fn turn_messages(
        &self,
        organization: Id,
        session: &SessionId,
        turn: &Turn,
    ) -> Result<Vec<SealedMessage>, StoreError> {
        let page = self.message_page(organization, session, turn.position_before(), 2, usize::MAX).await?;
        Ok(page.messages.into_iter().filter(|message| message.turn_id == turn.id).collect())
    }

    /// Returns the messages of a session, oldest first. The page is not the last one if they have more
    /// than [`MAX_HISTORY_BYTES`].
    pub async fn history(&self, organization: Id, session: &SessionId) -> Result<MessagePage, StoreError> {
        self.message_page(organization, session, None, usize::MAX, MAX_HISTORY_BYTES).await
    }

    async fn message_page(
        &self,
        organization: Id,
        session: &SessionId,
        after: Option<Id>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<MessagePage, StoreError> {
        match self.read_message_page(organization, session, after, limit, max_bytes).await {
            // A query may see a part of a transaction that is being committed.
            Err(StoreError::Fault(_)) => self.read_message_page(organization, session, after, limit, max_bytes).await,
            result => result,
        }
    }

    async fn read_message_page(
        &self,
        organization: Id,
        session: &SessionId,
        after: Option<Id>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<MessagePage, StoreError> {
        let first = after.map_or_else(|| FIRST.to_owned(), sort_key_after);
        let (mut messages, mut bytes, mut started) = (Vec::<SealedMessage>::new(), 0, None);
        let mut start = None;
        loop {
            let output = self
                .client
                .query()
                .table_name(self.table(Table::Sessions))
                .key_condition_expression("pk = :pk AND sk BETWEEN :first AND :last")
                .expression_attribute_values(":pk", AttributeValue::S(session_partition(organization, session)))
                .expression_attribute_values(":first", AttributeValue::S(first.clone()))
                .expression_attribute_values(":last", AttributeValue::S(LAST.to_owned()))
                .consistent_read(true)
                .limit(i32::try_from(limit.saturating_add(1).min(QUERY_LIMIT)).unwrap_or(i32::MAX))
                .set_exclusive_start_key(start)
                .send()
                .await?;
            for item in output.items.unwrap_or_default() {
                let message = PartialMessage::read(started.take(), item)?;
                if message.missing_parts > 0 {
                    started = Some(message);
                    continue;
                }
                let message = message.finish();
                let size = message.content.ciphertext.as_bytes().len();
                let full = messages.len() == limit || bytes + size > max_bytes;
                if let (true, Some(last)) = (full, messages.last()) {
                    return Ok(MessagePage { resume_after: last.position(), messages });
                }
                bytes += size;
                messages.push(message);
            }
            start = output.last_evaluated_key;
            if start.is_some() {
                continue;
            }
            return match started {
                None => Ok(MessagePage { messages, resume_after: None }),
                Some(message) => {
                    Err(StoreError::Fault(format!("parts of the message {} are missing", message.first.id)))
                }
            };
        }
    }
}

impl Transaction {
    /// Adds a message to a session. Fails if the turn already has one of this role.
    pub(super) fn insert_message(
        &mut self,
        organization: Id,
        session: &SessionId,
        message: &SealedMessage,
    ) -> Result<(), StoreError> {
        let sealed = message.content.ciphertext.as_bytes();
        if sealed.len() > MAX_SEALED_MESSAGE_BYTES {
            return Err(StoreError::Fault(format!("a message of {} bytes is too large to store", sealed.len())));
        }
        let parts: Vec<_> = sealed.chunks(MAX_PART_BYTES).map(|part| Ciphertext::new(part.to_vec())).collect();
        let count = parts.len();
        for (part, ciphertext) in parts.into_iter().enumerate() {
            let key = Key::message_part(organization, session, message.turn_number, message.role, part);
            if part > 0 {
                self.insert(Table::Sessions, &key, &FurtherPart { ciphertext }, Conflict::Changed)?;
                continue;
            }
            let SealedMessage { id, turn_id, turn_number, role, created_at, content } = message.clone();
            let first =
                FirstPart { id, turn_id, turn_number, role, created_at, kid: content.kid, parts: count, ciphertext };
            self.insert(Table::Sessions, &key, &first, Conflict::Changed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_have_the_order_of_sort_keys() {
        let mut keys = Vec::new();
        for turn in [1, 2, 9, 10, 4_503_599_627_370_495] {
            for role in [MessageRole::User, MessageRole::Assistant] {
                let position = Id::new(2 * turn + u64::from(role == MessageRole::Assistant)).unwrap();
                keys.extend([0, 1, 99].map(|part| format!("{}{part:02}", message_sort_key(turn, role))));
                keys.push(sort_key_after(position));
            }
        }
        assert!(keys.is_sorted(), "{keys:?}");
        assert!(keys.iter().all(|key| (FIRST..LAST).contains(&key.as_str())));
        assert!(!(FIRST..LAST).contains(&"META"));
    }
}

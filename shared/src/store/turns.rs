//! Turns of sessions: the claim of a session by a turn, the lease of its process, its events, and
//! its end.
//!
//! At most one turn of a session runs at a time: its id is the session's `open_turn`. The process of
//! a turn renews its lease. If it stops doing so, the sweep ends the turn. A turn ends once, because
//! its end is conditional on it still running.

use std::time::Duration;

use aws_sdk_dynamodb::{
    error::ProvideErrorMetadata,
    operation::update_item::builders::UpdateItemFluentBuilder,
    types::{AttributeValue, ReturnValue},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Conflict, Item, SealedContent, SealedMessage, Store, StoreError, Transaction, decode, encode,
    outbox::condition_held,
    table::{Key, TURN_SHARDS, Table, session_partition, session_shard, turn_events_sort_key},
};
use crate::domain::{Id, LastTurn, Session, SessionId, SessionUsage, Timestamp, Turn, TurnId, TurnStatus};

/// A turn is shorter. Its events are kept for this time longer, because it starts at their write.
const MAX_TURN_TIME: Duration = Duration::from_mins(16);
/// How long the events of a turn can be replayed after its end.
pub const TURN_EVENTS_RETENTION: Duration = Duration::from_hours(24);
/// How long an `Idempotency-Key` of a turn is remembered.
pub const TURN_RECORD_RETENTION: Duration = Duration::from_hours(24);
/// The largest number that an event's sort key can hold.
const MAX_SEQ: u32 = 99_999_999;
const RESERVATION: &str = "reservation";
const IS_RUNNING: &str = "#status = :running";

/// A turn, and what it holds of the budgets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTurn {
    pub turn: Turn,
    /// While the turn runs: when another process may end it.
    pub leased_until: Option<Timestamp>,
    /// As JSON text, because its amounts may be larger than `serde_dynamo` supports.
    reservation: Option<String>,
}

/// A sealed batch of events with consecutive numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedEvents {
    pub first_seq: u32,
    pub last_seq: u32,
    #[serde(flatten)]
    pub content: SealedContent,
    /// Unix seconds after which the batch counts as deleted. DynamoDB deletes it some time later.
    ttl: i64,
}

/// The turn that was started with an `Idempotency-Key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnRecord {
    pub session_id: SessionId,
    pub turn_id: TurnId,
    /// A repeated request must have the same fingerprint.
    pub fingerprint: String,
    ttl: i64,
}

/// The `Idempotency-Key` of a request that starts a turn.
#[derive(Debug, Clone, Copy)]
pub struct TurnRequest<'a> {
    /// Hash of the key and its caller.
    pub hash: &'a str,
    pub fingerprint: &'a str,
    /// The failed turn of an earlier request with this key, which this one replaces.
    pub replaces: Option<&'a TurnId>,
}

/// The start of a turn.
#[derive(Debug)]
pub struct TurnClaim<'a, R> {
    /// The session as read.
    pub session: &'a Session,
    pub turn: &'a Turn,
    pub message: &'a SealedMessage,
    /// When another process may end the turn, unless the lease is renewed.
    pub leased_until: Timestamp,
    /// The part of the budgets that the turn holds.
    pub reservation: Option<&'a R>,
    pub request: Option<TurnRequest<'a>>,
}

/// The end of a turn.
#[derive(Debug)]
pub struct TurnSettlement<'a> {
    pub session: &'a SessionId,
    /// For the sweep: settle only if the lease still ends at this time, and no cancellation was
    /// requested since `turn` was read.
    pub leased_until: Option<Timestamp>,
    /// The turn as it ended.
    pub turn: &'a Turn,
    /// The amounts that the turn adds to its session's sums.
    pub usage: SessionUsage,
    /// When the session expires from now on.
    pub expires_at: Timestamp,
    /// The answer, if the model gave one.
    pub message: Option<&'a SealedMessage>,
    /// The last events.
    pub events: &'a SealedEvents,
}

/// The result of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnLease {
    Held {
        cancel_requested: bool,
    },
    /// The turn has ended, or its session is gone: stop.
    Ended,
}

impl StoredTurn {
    fn read(mut item: Item) -> Result<Self, StoreError> {
        let reservation = item.remove(RESERVATION).and_then(|held| held.as_s().ok().cloned());
        let leased_until = item.get("due_at").and_then(|at| at.as_s().ok()?.parse().ok());
        Ok(Self { turn: decode(item)?, leased_until, reservation })
    }

    /// Returns what the turn holds of the budgets.
    pub fn reservation<R: DeserializeOwned>(&self) -> Result<Option<R>, StoreError> {
        let reservation = self.reservation.as_deref().map(serde_json::from_str).transpose();
        reservation.map_err(|error| StoreError::Fault(format!("reservation cannot be decoded: {error}")))
    }
}

impl SealedEvents {
    pub fn new(first_seq: u32, last_seq: u32, content: SealedContent, now: Timestamp) -> Self {
        Self { first_seq, last_seq, content, ttl: now.plus(MAX_TURN_TIME + TURN_EVENTS_RETENTION).as_seconds() }
    }
}

impl Store {
    pub async fn turn(
        &self,
        organization: Id,
        session: &SessionId,
        turn: &TurnId,
    ) -> Result<Option<StoredTurn>, StoreError> {
        let read = self
            .client
            .get_item()
            .table_name(self.table(Table::Sessions))
            .set_key(Some(Key::turn(organization, session, turn).attributes()))
            .consistent_read(true);
        read.send().await?.item.map(StoredTurn::read).transpose()
    }

    /// Returns the turn that was started with an `Idempotency-Key`.
    pub async fn turn_record(
        &self,
        organization: Id,
        hash: &str,
        now: Timestamp,
    ) -> Result<Option<TurnRecord>, StoreError> {
        let record: Option<TurnRecord> = self.get(Table::Sessions, Key::turn_request(organization, hash)).await?;
        Ok(record.filter(|record| record.ttl > now.as_seconds()))
    }

    /// Returns the batches with events after `after_seq`, in order. The first batch may start
    /// before. Returns at most 1 MB: call again with the last number until there are no more.
    pub async fn turn_events(
        &self,
        organization: Id,
        session: &SessionId,
        turn: &TurnId,
        after_seq: u32,
        now: Timestamp,
    ) -> Result<Vec<SealedEvents>, StoreError> {
        let mut batches = self.next_turn_events(organization, session, turn, after_seq, now).await?;
        let is_next = batches.first().is_some_and(|batch| batch.first_seq == after_seq + 1);
        if after_seq > 0 && !is_next {
            let earlier = self.event_batches(organization, session, turn, (1, after_seq), Some(1), now).await?;
            batches.splice(0..0, earlier.into_iter().filter(|batch| batch.last_seq > after_seq));
        }
        Ok(batches)
    }

    /// Like [`turn_events`](Self::turn_events), for a reader that has read whole batches so far: it
    /// needs only one query.
    pub async fn next_turn_events(
        &self,
        organization: Id,
        session: &SessionId,
        turn: &TurnId,
        after_seq: u32,
        now: Timestamp,
    ) -> Result<Vec<SealedEvents>, StoreError> {
        if after_seq >= MAX_SEQ {
            return Ok(Vec::new());
        }
        self.event_batches(organization, session, turn, (after_seq + 1, MAX_SEQ), None, now).await
    }

    /// Returns the batches that start within a range, in order, or the `newest` of them from the end.
    async fn event_batches(
        &self,
        organization: Id,
        session: &SessionId,
        turn: &TurnId,
        (first, last): (u32, u32),
        newest: Option<i32>,
        now: Timestamp,
    ) -> Result<Vec<SealedEvents>, StoreError> {
        let sort_key = |seq: u32| AttributeValue::S(turn_events_sort_key(turn, seq.min(MAX_SEQ)));
        let output = self
            .client
            .query()
            .table_name(self.table(Table::Sessions))
            .key_condition_expression("pk = :pk AND sk BETWEEN :first AND :last")
            .expression_attribute_values(":pk", AttributeValue::S(session_partition(organization, session)))
            .expression_attribute_values(":first", sort_key(first))
            .expression_attribute_values(":last", sort_key(last))
            .scan_index_forward(newest.is_none())
            .set_limit(newest)
            .consistent_read(true)
            .send()
            .await?;
        let batches = output.items.unwrap_or_default().into_iter().map(decode::<SealedEvents>);
        let mut batches = batches.collect::<Result<Vec<_>, _>>()?;
        batches.retain(|batch| batch.ttl > now.as_seconds());
        Ok(batches)
    }

    /// Appends events to a turn. Returns false if another process wrote events with these numbers:
    /// it has taken over the turn.
    pub async fn append_turn_events(
        &self,
        organization: Id,
        session: &SessionId,
        turn: &TurnId,
        events: &SealedEvents,
    ) -> Result<bool, StoreError> {
        let mut item = encode(&Key::turn_events(organization, session, turn, events.first_seq), events)?;
        let mut random = [0; 8];
        self.entropy.fill(&mut random);
        let stamp = AttributeValue::N(u64::from_be_bytes(random).to_string());
        item.insert("stamp".to_owned(), stamp.clone());
        let sent = self
            .client
            .put_item()
            .table_name(self.table(Table::Sessions))
            .set_item(Some(item))
            // The last condition accepts a retry of this request whose response was lost.
            .condition_expression("attribute_not_exists(pk) OR stamp = :stamp")
            .expression_attribute_values(":stamp", stamp)
            .send()
            .await;
        condition_held(sent.map(drop))
    }

    /// Renews the lease of a running turn until `until`, and returns whether its cancellation was
    /// requested.
    pub async fn renew_turn_lease(
        &self,
        organization: Id,
        session: &SessionId,
        turn: &TurnId,
        until: Timestamp,
    ) -> Result<TurnLease, StoreError> {
        #[derive(Deserialize)]
        struct Leased {
            #[serde(default)]
            cancel_requested: bool,
        }
        let sent = self
            .update_running_turn(organization, session, turn)
            .update_expression("SET due_at = :until")
            .expression_attribute_values(":until", AttributeValue::S(until.to_string()))
            .return_values(ReturnValue::AllNew)
            .send()
            .await;
        match sent {
            Ok(output) => {
                let Leased { cancel_requested } = decode(output.attributes.unwrap_or_default())?;
                Ok(TurnLease::Held { cancel_requested })
            }
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(TurnLease::Ended),
            Err(error) => Err(error.into()),
        }
    }

    /// Requests the cancellation of a running turn. Returns false if the turn has ended.
    pub async fn request_turn_cancel(
        &self,
        organization: Id,
        session: &SessionId,
        turn: &TurnId,
    ) -> Result<bool, StoreError> {
        let update = self
            .update_running_turn(organization, session, turn)
            .update_expression("SET cancel_requested = :requested")
            .expression_attribute_values(":requested", AttributeValue::Bool(true));
        condition_held(update.send().await.map(drop))
    }

    fn update_running_turn(&self, organization: Id, session: &SessionId, turn: &TurnId) -> UpdateItemFluentBuilder {
        self.client
            .update_item()
            .table_name(self.table(Table::Sessions))
            .set_key(Some(Key::turn(organization, session, turn).attributes()))
            .condition_expression(IS_RUNNING)
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":running", running())
    }
}

impl Transaction {
    /// Starts a turn with its user message. Fails with [`Conflict::TurnInProgress`] if another turn
    /// was started, or the session was deleted, since it was read: read it again. Fails with
    /// [`Conflict::Remembered`] if another request has used the `Idempotency-Key`.
    pub fn claim_turn<R: Serialize>(
        &mut self,
        organization: Id,
        claim: &TurnClaim<'_, R>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        #[derive(Serialize)]
        struct ClaimedTurn<'a> {
            #[serde(flatten)]
            turn: &'a Turn,
            #[serde(skip_serializing_if = "Option::is_none")]
            reservation: Option<String>,
            due_shard: String,
            due_at: Timestamp,
        }
        let TurnClaim { session, turn, message, leased_until, reservation, request } = claim;
        let last_turn = attribute(&LastTurn::new(turn))?;
        self.update(Table::Sessions, &Key::session(organization, &session.id), Conflict::TurnInProgress, |update| {
            update
                .update_expression("SET open_turn = :turn, turns = :number, last_turn = :last_turn, updated_at = :now")
                .condition_expression(
                    "turns = :read AND attribute_not_exists(open_turn) AND attribute_not_exists(deleted_at)",
                )
                .expression_attribute_values(":turn", AttributeValue::S(turn.id.to_string()))
                .expression_attribute_values(":number", number(turn.number))
                .expression_attribute_values(":last_turn", last_turn)
                .expression_attribute_values(":now", AttributeValue::S(now.to_string()))
                .expression_attribute_values(":read", number(session.turns))
        })?;
        let running = ClaimedTurn {
            turn,
            reservation: reservation.map(json).transpose()?,
            due_shard: session_shard(TURN_SHARDS, &session.id),
            due_at: *leased_until,
        };
        self.insert(Table::Sessions, &Key::turn(organization, &session.id, &turn.id), &running, Conflict::IdTaken)?;
        self.insert_message(organization, &session.id, message)?;
        request.map_or(Ok(()), |request| self.record_turn(organization, &session.id, &turn.id, request, now))
    }

    /// Stores the turn of an `Idempotency-Key`, unless an unexpired record of another turn exists.
    fn record_turn(
        &mut self,
        organization: Id,
        session: &SessionId,
        turn: &TurnId,
        request: TurnRequest<'_>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let record = TurnRecord {
            session_id: session.clone(),
            turn_id: turn.clone(),
            fingerprint: request.fingerprint.to_owned(),
            ttl: now.plus(TURN_RECORD_RETENTION).as_seconds(),
        };
        let key = Key::turn_request(organization, request.hash);
        self.put(Table::Sessions, &key, &record, Conflict::Remembered, |put| {
            let put = put
                .expression_attribute_names("#ttl", "ttl")
                .expression_attribute_values(":now", AttributeValue::N(now.as_seconds().to_string()));
            match request.replaces {
                None => put.condition_expression("attribute_not_exists(pk) OR #ttl <= :now"),
                Some(failed) => put
                    .condition_expression("attribute_not_exists(pk) OR #ttl <= :now OR turn_id = :failed")
                    .expression_attribute_values(":failed", AttributeValue::S(failed.to_string())),
            }
        })
    }

    /// Ends a turn: releases its session, and stores its final state, its answer and its last
    /// events. Fails with [`Conflict::TurnSettled`] if it has ended already, if it would end as failed
    /// or interrupted although a request to cancel it was accepted, and for the sweep if its lease was
    /// renewed. For the sweep, it fails with [`Conflict::Changed`] if events were appended under the
    /// numbers of `events`.
    pub fn settle_turn(
        &mut self,
        organization: Id,
        settlement: &TurnSettlement<'_>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let TurnSettlement { session, leased_until, turn, usage, expires_at, message, events } = settlement;
        let last_turn = attribute(&LastTurn::new(turn))?;
        self.update(Table::Sessions, &Key::session(organization, session), Conflict::TurnSettled, |update| {
            update
                .update_expression(
                    "SET last_turn = :last_turn, updated_at = :now, expires_at = :expires, due_at = :expires \
                     REMOVE open_turn ADD input_tokens :input, output_tokens :output, cost :cost",
                )
                .condition_expression("open_turn = :turn")
                .expression_attribute_values(":turn", AttributeValue::S(turn.id.to_string()))
                .expression_attribute_values(":last_turn", last_turn)
                .expression_attribute_values(":now", AttributeValue::S(now.to_string()))
                .expression_attribute_values(":expires", AttributeValue::S(expires_at.to_string()))
                .expression_attribute_values(":input", number(usage.input_tokens))
                .expression_attribute_values(":output", number(usage.output_tokens))
                .expression_attribute_values(":cost", number(usage.cost))
        })?;
        // Without the attributes of the lease and the reservation.
        let key = Key::turn(organization, session, &turn.id);
        self.put(Table::Sessions, &key, turn, Conflict::TurnSettled, |put| {
            let mut conditions = vec![IS_RUNNING];
            let mut put =
                put.expression_attribute_names("#status", "status").expression_attribute_values(":running", running());
            if let Some(until) = leased_until {
                conditions.push("due_at = :due");
                put = put.expression_attribute_values(":due", AttributeValue::S(until.to_string()));
            }
            if !matches!(turn.status, TurnStatus::Completed | TurnStatus::Cancelled) {
                conditions.push("cancel_requested = :not_requested");
                put = put.expression_attribute_values(":not_requested", AttributeValue::Bool(false));
            }
            put.condition_expression(conditions.join(" AND "))
        })?;
        if let Some(message) = message {
            self.insert_message(organization, session, message)?;
        }
        let key = Key::turn_events(organization, session, &turn.id, events.first_seq);
        match leased_until {
            // Replaces a batch whose write took effect although its response was lost: these events
            // include it.
            None => self.put(Table::Sessions, &key, events, Conflict::Changed, |put| put)?,
            Some(_) => self.insert(Table::Sessions, &key, events, Conflict::Changed)?,
        }
        Ok(())
    }
}

fn running() -> AttributeValue {
    AttributeValue::S(TurnStatus::Running.as_str().to_owned())
}

fn number(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn json<T: Serialize>(reservation: &T) -> Result<String, StoreError> {
    serde_json::to_string(reservation)
        .map_err(|error| StoreError::Fault(format!("reservation cannot be encoded: {error}")))
}

fn attribute<T: Serialize>(value: &T) -> Result<AttributeValue, StoreError> {
    serde_dynamo::to_attribute_value(value)
        .map_err(|error| StoreError::Fault(format!("attribute cannot be encoded: {error}")))
}

//! Settles turns whose process died.

use std::time::Duration;

use karta_shared::{
    App,
    config::Ring,
    domain::{Id, SessionId, Timestamp, TurnError, TurnStatus, TurnUsage},
    settlement::{RunningTurn, SettleError, TurnEnd, estimate_output, settle},
    store::{DueTurn, Reservation, StoreError, StoredTurn},
    transcripts::{TranscriptContext, TranscriptPart},
    turn_events::{EventBatch, MessagePart, Seq, TurnEvent},
    worker::Fault,
};

/// How long a turn may be overdue before a large answer that cannot be stored is dropped.
const MAX_OVERDUE: Duration = Duration::from_mins(5);
/// Answers of more bytes may exceed what their partition writes at once: 1,000 units of 1 KB a second.
const LARGE_ANSWER_BYTES: usize = 200_000;

/// Settles a turn whose lease has ended. Counts the estimated input and the estimated output, with what
/// the provider may have hidden. A turn under a cap that had reserved nothing has not called its
/// provider, and counts nothing. Returns false if there was nothing to do.
pub(crate) async fn settle_turn(app: &App, due: &DueTurn) -> Result<bool, Fault> {
    let DueTurn { organization_id: organization, session_id: session, turn_id } = due;
    let Some(stored) = app.store.turn(*organization, session, turn_id).await? else { return Ok(false) };
    // The index may be behind a renewal.
    let is_due =
        stored.turn.status == TurnStatus::Running && stored.leased_until.is_some_and(|until| until <= app.clock.now());
    if !is_due {
        return Ok(false);
    }
    let Logged { last_seq, answer, first_text_at } = logged(app, *organization, session, &stored).await?;
    let output_bytes: usize = answer.iter().map(|part| part.text.len()).sum();
    let turn = &stored.turn;
    // Without text, the process is known to have waited until it renewed its lease last.
    let renewed_at = stored.leased_until.map(|until| until.minus(app.turn_limits.lease));
    let text_began = first_text_at.or(renewed_at).unwrap_or(turn.started_at);
    let reservation: Option<Reservation> = stored.reservation()?;
    let known = app.store.known_counters(*organization, turn.lineage_id, turn.started_at.month()).await?;
    let may_be_billed = last_seq > 0 || reservation.as_ref().is_none_or(|reservation| known.has_holds(reservation));
    let usage = if may_be_billed {
        TurnUsage {
            input_tokens: turn.input_estimate,
            output_tokens: estimate_output(app, turn, &answer, text_began),
            ..TurnUsage::default()
        }
    } else {
        TurnUsage::default()
    };
    // A caller whose request to cancel was accepted must not get another answer for its Idempotency-Key.
    let error = if turn.cancel_requested { TurnError::TurnCancelled } else { TurnError::Interrupted };
    let mut events = EventBatch::new(last_seq + 1);
    events.end(app.clock.now(), &TurnEvent::Error::<()> { code: error.as_str(), message: error.message() })?;
    let end = TurnEnd {
        error: Some(error),
        exhausted: None,
        retry_at: None,
        stop_reason: None,
        usage,
        estimated: may_be_billed,
        answer,
        events,
    };
    let running = RunningTurn {
        organization: *organization,
        session,
        turn,
        reservation: reservation.as_ref(),
        leased_until: stored.leased_until,
    };
    let mut settled = settle(app, running, &end, Some(known), app.session_retention).await;
    let is_long_overdue = stored.leased_until.is_some_and(|until| until.plus(MAX_OVERDUE) <= app.clock.now());
    let is_large = output_bytes > LARGE_ANSWER_BYTES;
    let fault = match &settled {
        Err(SettleError::Store(StoreError::Fault(fault)) | SettleError::Encoding(fault)) => Some(fault),
        // A large answer may exceed what its partition can write at once.
        Err(SettleError::Store(StoreError::Unavailable(fault))) if is_large && is_long_overdue => Some(fault),
        _ => None,
    };
    if let Some(fault) = fault {
        // An answer that cannot be stored must not keep the session locked.
        tracing::error!(turn_id = %turn.id, fault, "answer of an interrupted turn dropped");
        let end = TurnEnd { answer: Vec::new(), ..end };
        settled = settle(app, running, &end, None, app.session_retention).await;
    }
    match settled {
        Ok(turn) => {
            tracing::warn!(turn_id = %turn.id, session_id = %session, "interrupted turn settled");
            app.metrics.turn_interrupted(app.clock.now());
            Ok(true)
        }
        Err(SettleError::TurnChanged) => Ok(false),
        Err(fault) => Err(fault.into()),
    }
}

/// The events in a turn's log.
struct Logged {
    last_seq: Seq,
    /// The parts of the answer so far.
    answer: Vec<MessagePart>,
    /// Time of the first increment of text.
    first_text_at: Option<Timestamp>,
}

async fn logged(app: &App, organization: Id, session: &SessionId, stored: &StoredTurn) -> Result<Logged, Fault> {
    let turn = &stored.turn.id;
    let mut logged = Logged { last_seq: 0, answer: Vec::new(), first_text_at: None };
    loop {
        let now = app.clock.now();
        let batches = app.store.next_turn_events(organization, session, turn, logged.last_seq, now).await?;
        let Some(last) = batches.last() else { return Ok(logged) };
        logged.last_seq = last.last_seq;
        for batch in &batches {
            let ring = app.secrets.ring_with(Ring::SealingSessions, &batch.content.kid).await?;
            let context = TranscriptContext { organization, session, turn };
            let part = TranscriptPart::Events { first_seq: batch.first_seq };
            let opened = context.open(&ring, part, &batch.content).map_err(Fault::from);
            match opened.and_then(|bytes| Ok(EventBatch::decode(batch.first_seq, &bytes)?)) {
                Ok(batch) => {
                    logged.first_text_at = logged.first_text_at.or(batch.first_text_at());
                    batch.add_to(&mut logged.answer);
                }
                // The turn must end also without these events.
                Err(fault) => tracing::error!(turn_id = %turn, %fault, "events of an interrupted turn not opened"),
            }
        }
    }
}

//! Settles turns whose process died.

use karta_shared::{
    App,
    config::Ring,
    domain::{Id, SessionId, TurnError, TurnStatus, TurnUsage},
    settlement::{RunningTurn, SettleError, TurnEnd, estimate_tokens, settle},
    store::{DueTurn, Reservation, StoreError, StoredTurn},
    transcripts::{TranscriptContext, TranscriptPart},
    turn_events::{EventBatch, MessagePart, Seq, TurnEvent},
    worker::Fault,
};

/// Settles a turn whose lease has ended. Its input is the estimate, its output what the log has.
/// Returns false if there was nothing to do.
pub(crate) async fn settle_turn(app: &App, due: &DueTurn) -> Result<bool, Fault> {
    let DueTurn { organization_id: organization, session_id: session, turn_id } = due;
    let Some(stored) = app.store.turn(*organization, session, turn_id).await? else { return Ok(false) };
    // The index may be behind a renewal.
    let is_due =
        stored.turn.status == TurnStatus::Running && stored.leased_until.is_some_and(|until| until <= app.clock.now());
    if !is_due {
        return Ok(false);
    }
    let (last_seq, answer) = logged(app, *organization, session, &stored).await?;
    let output_bytes: usize = answer.iter().map(|part| part.text.len()).sum();
    let turn = &stored.turn;
    let usage = TurnUsage {
        input_tokens: turn.input_estimate,
        output_tokens: estimate_tokens(output_bytes),
        ..TurnUsage::default()
    };
    let error = TurnError::Interrupted;
    let mut events = EventBatch::new(last_seq + 1);
    events.end(app.clock.now(), &TurnEvent::Error::<()> { code: error.as_str(), message: error.message() })?;
    let end = TurnEnd { error: Some(error), stop_reason: None, usage, estimated: true, answer, events };
    let reservation: Option<Reservation> = stored.reservation()?;
    let running = RunningTurn {
        organization: *organization,
        session,
        turn,
        reservation: reservation.as_ref(),
        leased_until: stored.leased_until,
    };
    let mut settled = settle(app, running, &end, None, app.session_retention).await;
    if let Err(SettleError::Store(StoreError::Fault(fault)) | SettleError::Encoding(fault)) = &settled {
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
        Err(SettleError::AlreadySettled) => Ok(false),
        Err(fault) => Err(fault.into()),
    }
}

/// Returns the number of the last event in the log, and the parts of the answer so far.
async fn logged(
    app: &App,
    organization: Id,
    session: &SessionId,
    stored: &StoredTurn,
) -> Result<(Seq, Vec<MessagePart>), Fault> {
    let turn = &stored.turn.id;
    let (mut last_seq, mut answer) = (0, Vec::new());
    loop {
        let now = app.clock.now();
        let batches = app.store.next_turn_events(organization, session, turn, last_seq, now).await?;
        let Some(last) = batches.last() else { return Ok((last_seq, answer)) };
        last_seq = last.last_seq;
        for batch in &batches {
            let ring = app.secrets.ring_with(Ring::SealingSessions, &batch.content.kid).await?;
            let context = TranscriptContext { organization, session, turn };
            let part = TranscriptPart::Events { first_seq: batch.first_seq };
            let opened = context.open(&ring, part, &batch.content).map_err(Fault::from);
            match opened.and_then(|bytes| Ok(EventBatch::decode(batch.first_seq, &bytes)?)) {
                Ok(batch) => batch.add_to(&mut answer),
                // The turn must end also without these events.
                Err(fault) => tracing::error!(turn_id = %turn, %fault, "events of an interrupted turn not opened"),
            }
        }
    }
}

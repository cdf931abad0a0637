//! Settles turns whose process died.

use karta_shared::{
    App,
    config::Ring,
    domain::{Id, SessionId, TurnError, TurnStatus, TurnUsage},
    settlement::{RunningTurn, SettleError, TurnEnd, estimate_tokens, settle},
    store::{DueTurn, Reservation, StoreError, StoredTurn},
    transcripts::{TranscriptContext, TranscriptPart},
    turn_events::{MessagePart, Seq, TurnEvent, TurnEventContext, texts_of},
    worker::Fault,
};

/// Settles a turn whose lease has ended. Its input is the estimate, its output what the log has. A
/// turn under a cap that had reserved nothing has not called its provider, and counts nothing.
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
    let reservation: Option<Reservation> = stored.reservation()?;
    let known = app.store.known_counters(*organization, turn.lineage_id, turn.started_at.month()).await?;
    let is_billed = reservation.as_ref().is_none_or(|reservation| known.has_holds(reservation));
    let usage = if is_billed {
        TurnUsage {
            input_tokens: turn.input_estimate,
            output_tokens: estimate_tokens(output_bytes),
            ..TurnUsage::default()
        }
    } else {
        TurnUsage::default()
    };
    let error = TurnError::Interrupted;
    let context = TurnEventContext { session_id: session.as_str(), turn_id: turn_id.as_str() };
    let event: TurnEvent<'_, ()> = TurnEvent::Error { code: error.as_str(), message: error.message() };
    let frame = context.frame(last_seq + 1, app.clock.now(), &event)?;
    let end = TurnEnd {
        error: Some(error),
        stop_reason: None,
        usage,
        estimated: is_billed,
        answer,
        events: Some((last_seq + 1, last_seq + 1, frame)),
    };
    let running = RunningTurn {
        organization: *organization,
        session,
        turn,
        reservation: reservation.as_ref(),
        leased_until: stored.leased_until,
    };
    let mut settled = settle(app, running, &end, Some(known), app.session_retention).await;
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
    let (mut last_seq, mut frames) = (0, Vec::new());
    loop {
        let now = app.clock.now();
        let batches = app.store.next_turn_events(organization, session, turn, last_seq, now).await?;
        let Some(last) = batches.last() else { break };
        last_seq = last.last_seq;
        for batch in &batches {
            let mut ring = app.secrets.ring(Ring::SealingSessions).await?;
            if ring.get(batch.content.kid.as_str()).is_none() {
                ring = app.secrets.ring_refetched(Ring::SealingSessions).await?;
            }
            let context = TranscriptContext { organization, session, turn };
            let part = TranscriptPart::Events { first_seq: batch.first_seq };
            match context.open(&ring, part, &batch.content) {
                Ok(opened) => frames.extend_from_slice(&opened),
                // The turn must end also without these events.
                Err(fault) => tracing::error!(turn_id = %turn, %fault, "events of an interrupted turn not opened"),
            }
        }
    }
    Ok((last_seq, texts_of(&frames)))
}

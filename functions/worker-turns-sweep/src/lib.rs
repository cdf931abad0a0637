//! Settles turns whose process died, and deletes the content of sessions that were deleted or have
//! expired.

use karta_shared::{
    App,
    config::{Ring, Secret},
    domain::{Id, SessionId, TurnError, TurnStatus, TurnUsage},
    settlement::{RunningTurn, SettleError, TurnEnd, estimate_tokens, settle},
    store::{DueTurn, Reservation, StoredTurn},
    transcripts::{TranscriptContext, TranscriptPart},
    turn_events::{Seq, TurnEvent, TurnEventContext, texts_of},
    worker::{Fault, Wake, Worker, of_organization},
};

/// Maximum rounds of a sweep, which ends when nothing is due.
const MAX_ROUNDS: usize = 20;

#[derive(Debug)]
pub struct TurnsSweep {
    app: App,
}

impl TurnsSweep {
    pub fn new(app: App) -> Self {
        Self { app }
    }

    /// Settles a turn whose lease has ended. Its input is the estimate, its output what the log has.
    async fn settle(&self, due: &DueTurn) -> Result<(), Fault> {
        let DueTurn { organization_id: organization, session_id: session, turn_id } = due;
        let app = &self.app;
        let Some(stored) = app.store.turn(*organization, session, turn_id).await? else { return Ok(()) };
        // The index may be behind a renewal.
        let is_due = stored.turn.status == TurnStatus::Running
            && stored.leased_until.is_some_and(|until| until <= app.clock.now());
        if !is_due {
            return Ok(());
        }
        let (last_seq, answer) = self.logged(*organization, session, &stored).await?;
        let output_bytes: usize = answer.iter().map(|part| part.text.len()).sum();
        let turn = &stored.turn;
        let usage = TurnUsage {
            input_tokens: turn.input_estimate,
            output_tokens: estimate_tokens(output_bytes),
            ..TurnUsage::default()
        };
        let error = TurnError::Interrupted;
        let context = TurnEventContext { session_id: session.as_str(), turn_id: turn_id.as_str() };
        let event: TurnEvent<'_, ()> = TurnEvent::Error { code: error.as_str(), message: error.message() };
        let frame = context.frame(last_seq + 1, app.clock.now(), &event)?;
        let end = TurnEnd {
            error: Some(error),
            stop_reason: None,
            usage,
            estimated: true,
            answer,
            events: Some((last_seq + 1, last_seq + 1, frame)),
        };
        let reservation: Option<Reservation> = stored.reservation()?;
        let running = RunningTurn { organization: *organization, session, turn, reservation: reservation.as_ref() };
        match settle(app, running, &end, None, app.session_retention).await {
            Ok(turn) => {
                tracing::warn!(turn_id = %turn.id, session_id = %session, "interrupted turn settled");
                app.metrics.turn_interrupted(app.clock.now());
                Ok(())
            }
            Err(SettleError::AlreadySettled) => Ok(()),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Returns the number of the last event in the log, and the parts of the answer so far.
    async fn logged(
        &self,
        organization: Id,
        session: &SessionId,
        stored: &StoredTurn,
    ) -> Result<(Seq, Vec<karta_shared::turn_events::MessagePart>), Fault> {
        let turn = &stored.turn.id;
        let (mut last_seq, mut frames) = (0, Vec::new());
        loop {
            let now = self.app.clock.now();
            let batches = self.app.store.next_turn_events(organization, session, turn, last_seq, now).await?;
            let Some(last) = batches.last() else { break };
            last_seq = last.last_seq;
            for batch in &batches {
                let mut ring = self.app.secrets.ring(Ring::SealingSessions).await?;
                if ring.get(batch.content.kid.as_str()).is_none() {
                    ring = self.app.secrets.ring_refetched(Ring::SealingSessions).await?;
                }
                let context = TranscriptContext { organization, session, turn };
                let part = TranscriptPart::Events { first_seq: batch.first_seq };
                frames.extend_from_slice(&context.open(&ring, part, &batch.content)?);
            }
        }
        Ok((last_seq, texts_of(&frames)))
    }
}

impl Worker for TurnsSweep {
    const NAME: &'static str = "worker-turns-sweep";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::SealingSessions)];

    async fn deployed(app: App) -> Result<Self, Fault> {
        Ok(Self::new(app))
    }

    async fn work(&self, _: &Wake) -> Result<(), Fault> {
        // The fault of one organization must not affect the others.
        let mut outcome = Ok(());
        for _ in 0..MAX_ROUNDS {
            let now = self.app.clock.now();
            let turns = self.app.store.due_turns(now).await?.items;
            let sessions = self.app.store.due_sessions(now).await?.items;
            let mut is_idle = true;
            for due in turns {
                is_idle = false;
                let settled = self.settle(&due).await;
                outcome = settled.map_err(of_organization(due.organization_id)).and(outcome);
            }
            for due in sessions {
                let deleted = self.app.store.delete_session_content(due.organization_id, &due.session_id, now).await;
                is_idle &= !matches!(deleted, Ok(true));
                outcome = deleted.map(drop).map_err(of_organization(due.organization_id)).and(outcome);
            }
            if is_idle || outcome.is_err() {
                break;
            }
        }
        outcome
    }
}

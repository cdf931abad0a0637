//! Settles turns whose process died, and deletes the content of sessions that were deleted or have
//! expired.

mod interrupted;

use std::time::Duration;

use karta_shared::{
    App,
    config::{Ring, Secret},
    worker::{Fault, Wake, Worker, of_organization},
};
use tokio::time::timeout;

/// Maximum rounds of a sweep, which ends when nothing is due.
const MAX_ROUNDS: usize = 20;

/// Time limit for one turn, so that a large one does not delay the others for long.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct TurnsSweep {
    app: App,
}

impl TurnsSweep {
    pub fn new(app: App) -> Self {
        Self { app }
    }
}

impl Worker for TurnsSweep {
    const NAME: &'static str = "worker-turns-sweep";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::SealingSessions)];

    async fn deployed(app: App) -> Result<Self, Fault> {
        Ok(Self::new(app))
    }

    async fn work(&self, _: &Wake) -> Result<(), Fault> {
        // A count that fails must not keep the sweep from its work.
        let counted = self.app.store.open_turns().await;
        let mut outcome =
            counted.map(|open| self.app.metrics.open_turns(self.app.clock.now(), open)).map_err(Fault::from);
        // Nor must the fault of one organization affect the others.
        for _ in 0..MAX_ROUNDS {
            let now = self.app.clock.now();
            let turns = self.app.store.due_turns(now).await?.items;
            let sessions = self.app.store.due_sessions(now).await?.items;
            let mut is_idle = true;
            for due in turns {
                let settled = timeout(TURN_TIMEOUT, interrupted::settle_turn(&self.app, &due)).await;
                let settled = settled.unwrap_or_else(|_| Err(format!("no settlement within {TURN_TIMEOUT:?}").into()));
                let settled = settled.map_err(|fault| format!("turn {}: {fault}", due.turn_id));
                is_idle &= !matches!(settled, Ok(true));
                outcome = settled.map(drop).map_err(of_organization(due.organization_id)).and(outcome);
            }
            for due in sessions {
                let deleted = self.app.store.delete_session_content(due.organization_id, &due.session_id, now).await;
                let deleted = deleted.map_err(|fault| format!("session {}: {fault}", due.session_id));
                is_idle &= !matches!(deleted, Ok(true));
                outcome = deleted.map(drop).map_err(of_organization(due.organization_id)).and(outcome);
            }
            if is_idle {
                break;
            }
        }
        outcome
    }
}

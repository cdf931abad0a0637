use std::{collections::BTreeSet, time::Duration};

use karta_shared::{
    App,
    domain::Id,
    store::{OutboxKey, Queue, StoreError},
    worker::Fault,
};

/// Delay before events are tried again after a failed fan-out.
const RETRY_DELAY: Duration = Duration::from_mins(1);

/// Fans out events of an organization. Returns the endpoints with new deliveries, even after a
/// fault.
pub(crate) async fn fan_out(app: &App, organization: Id, due: &[OutboxKey]) -> (BTreeSet<Id>, Result<(), Fault>) {
    let mut touched = BTreeSet::new();
    let work = async {
        // Events are read first, so that the list contains every endpoint that existed when an
        // event was written.
        let (events, unreadable) = app.store.pending_events(due).await?;
        app.store.postpone(Queue::Events, &unreadable, app.clock.now().plus(RETRY_DELAY)).await?;
        if events.is_empty() {
            return Ok(());
        }
        let endpoints = app.store.all_webhook_endpoints(organization).await?;
        app.store.fan_out(organization, events, &endpoints, app.clock.now(), &mut touched).await
    };
    let outcome: Result<(), StoreError> = work.await;
    let outcome = match outcome {
        // Postponed, so that they do not delay the events of other organizations.
        Err(fault) => {
            let postponed = app.store.postpone(Queue::Events, due, app.clock.now().plus(RETRY_DELAY)).await;
            Err(postponed.err().unwrap_or(fault).into())
        }
        Ok(()) => Ok(()),
    };
    (touched, outcome)
}

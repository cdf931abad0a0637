use std::time::Duration;

use karta_shared::{
    App,
    domain::{Id, WebhookEndpoint},
    store::{CommitError, OutboxKey, Queue, Recovered},
    worker::Fault,
};
use tokio::time::Instant;

/// Delay before a failed recovery is tried again.
const RETRY_DELAY: Duration = Duration::from_mins(1);

/// Runs a recovery. A failed one is postponed, so that it does not block others.
pub(crate) async fn run_or_postpone(app: &App, due: &OutboxKey, deadline: Instant) -> Result<Option<Id>, Fault> {
    let outcome = run(app, due, deadline).await;
    if outcome.is_err() {
        let until = app.clock.now().plus(RETRY_DELAY);
        app.store.postpone(Queue::Recoveries, std::slice::from_ref(due), until).await?;
    }
    outcome
}

/// Recovers an endpoint's missed events until the deadline; the next run continues. Returns the
/// endpoint if new deliveries are possible.
async fn run(app: &App, due: &OutboxKey, deadline: Instant) -> Result<Option<Id>, Fault> {
    let Some(mut recovery) = app.store.recovery(due.organization_id, &due.sk).await? else {
        return Ok(None);
    };
    while Instant::now() < deadline {
        let endpoint = app.store.webhook_endpoint(recovery.organization_id, recovery.webhook_endpoint_id).await?;
        let outcome = match endpoint.filter(WebhookEndpoint::is_enabled) {
            Some(endpoint) => app.store.recover(&recovery, &endpoint, app.clock.now()).await,
            None => app.store.drop_recovery(&recovery).await.map(|()| Recovered::All),
        };
        match outcome {
            Ok(Recovered::Page(rest)) => recovery = rest,
            // Another worker runs this recovery, or a delivery was attempted at the same time. A
            // later round continues.
            Ok(Recovered::All | Recovered::Waits) | Err(CommitError::Conflict(_)) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(recovery.webhook_endpoint_id))
}

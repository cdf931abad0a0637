use karta_shared::{
    App,
    domain::{Id, WebhookEndpoint},
    store::{CommitError, DueItem, Recovered},
    worker::Fault,
};
use tokio::time::Instant;

/// Walks what an endpoint missed, until the run ends: the next one goes on; says which it is if something may have been found.
pub(crate) async fn walk(app: &App, due: &DueItem, ends: Instant) -> Result<Option<Id>, Fault> {
    let Some(mut recovery) = app.store.recovery(due.organization_id, &due.sk).await? else {
        return Ok(None);
    };
    while Instant::now() < ends {
        let endpoint = app.store.webhook_endpoint(recovery.organization_id, recovery.webhook_endpoint_id).await?;
        let walked = match endpoint.filter(WebhookEndpoint::is_enabled) {
            Some(endpoint) => app.store.recover(&recovery, &endpoint, app.clock.now()).await,
            None => app.store.drop_recovery(&recovery).await.map(|()| Recovered::All),
        };
        match walked {
            Ok(Recovered::Page(rest)) => recovery = rest,
            // Another worker walks it, or a delivery was attempted meanwhile: the next look sees.
            Ok(Recovered::All | Recovered::Waits) | Err(CommitError::Conflict(_)) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(recovery.webhook_endpoint_id))
}

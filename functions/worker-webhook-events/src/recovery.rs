use karta_shared::{
    App,
    domain::{Id, WebhookEndpoint},
    store::{CommitError, Due},
    worker::Fault,
};

/// How many pages of a recovery one run walks; the next run goes on.
const PAGES: usize = 200;

/// Walks what an endpoint missed; says which it is if something may have been found.
pub(crate) async fn walk(app: &App, due: &Due) -> Result<Option<Id>, Fault> {
    let Some(mut recovery) = app.store.recovery(due.organization_id, &due.sk).await? else {
        return Ok(None);
    };
    for _ in 0..PAGES {
        let endpoint = app.store.webhook_endpoint(recovery.organization_id, recovery.webhook_endpoint_id).await?;
        let walked = match endpoint.filter(WebhookEndpoint::is_enabled) {
            Some(endpoint) => app.store.recover(&recovery, &endpoint, app.clock.now()).await,
            None => app.store.drop_recovery(&recovery).await.map(|()| None),
        };
        match walked {
            Ok(Some(rest)) => recovery = rest,
            // Another worker walks it, or a delivery was attempted meanwhile: the next look sees.
            Ok(None) | Err(CommitError::Conflict(_)) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(recovery.webhook_endpoint_id))
}

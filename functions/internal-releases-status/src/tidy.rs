use std::time::Duration;

use karta_shared::{
    App,
    domain::{Id, Release},
    http::{Call, Route},
    store::{CommitError, StoreError},
};
use tokio::time::timeout;

use super::InternalReleasesStatus;

/// Maximum time that a response waits for the deletion of unused logs.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Minimum age of an unused log before it is deleted, longer than any report takes.
const MIN_UNUSED_AGE: Duration = Duration::from_hours(1);

/// Deletes unused logs: the old log, or the new one if the transaction failed, and leftovers of
/// crashes. A failure here does not fail the response. A later report deletes the remaining logs,
/// which no reader sees.
pub(super) async fn tidy(
    app: &App,
    call: &Call<InternalReleasesStatus>,
    organization: Id,
    failed: Option<&CommitError>,
    [before, after]: [&Release; 2],
) {
    let delete = async |release: &Release| match &release.log {
        Some(log) => app.store.delete_build_log(organization, release.id, log).await,
        None => Ok(()),
    };
    let work = async {
        match failed {
            None => {
                delete(before).await?;
                app.store.sweep_build_logs(organization, after.id, call.now.minus(MIN_UNUSED_AGE)).await
            }
            Some(CommitError::Conflict(_)) => delete(after).await,
            // The transaction may have been committed.
            Some(CommitError::Store(_)) => Ok(()),
        }
    };
    with_timeout(app, call, after.id, work).await;
}

/// Deletes the parts of a log that no release will refer to.
pub(super) async fn discard(app: &App, call: &Call<InternalReleasesStatus>, organization: Id, release: &Release) {
    if let Some(log) = &release.log {
        with_timeout(app, call, release.id, app.store.delete_build_log(organization, release.id, log)).await;
    }
}

async fn with_timeout(
    app: &App,
    call: &Call<InternalReleasesStatus>,
    release: Id,
    work: impl Future<Output = Result<(), StoreError>>,
) {
    let limit = app.deadlines.scale(CLEANUP_TIMEOUT);
    let fault = match timeout(limit, work).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("timed out after {limit:?}"),
    };
    let (request_id, route, release_id) = (call.meta.request_id.as_str(), InternalReleasesStatus::NAME, release.get());
    tracing::warn!(request_id, route, release_id, fault, "build log deletion failed");
}

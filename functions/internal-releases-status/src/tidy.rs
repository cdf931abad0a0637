use std::time::Duration;

use karta_shared::{
    App,
    domain::{Id, Release},
    http::{Call, Route},
    store::{CommitError, StoreError},
};
use tokio::time::timeout;

use super::InternalReleasesStatus;

/// How long an answer waits for what nobody reads to be deleted.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long what a report left half done is let be: longer than any report is at work.
const LEFT_ALONE: Duration = Duration::from_hours(1);

/// Deletes what nobody reads any more: the log before, or, if the release did not take it, the new one; besides, what crashes have left. No
/// failure here fails the answer: what stays is not seen, and deleted after a later report.
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
                app.store.sweep_build_logs(organization, after.id, call.now.minus(LEFT_ALONE)).await
            }
            Some(CommitError::Conflict(_)) => delete(after).await,
            // It may have been taken.
            Some(CommitError::Store(_)) => Ok(()),
        }
    };
    within_patience(app, call, after.id, work).await;
}

/// Deletes what was written of a log that no release will name.
pub(super) async fn forget(app: &App, call: &Call<InternalReleasesStatus>, organization: Id, release: &Release) {
    if let Some(log) = &release.log {
        within_patience(app, call, release.id, app.store.delete_build_log(organization, release.id, log)).await;
    }
}

async fn within_patience(
    app: &App,
    call: &Call<InternalReleasesStatus>,
    release: Id,
    work: impl Future<Output = Result<(), StoreError>>,
) {
    let patience = app.deadlines.scale(PATIENCE);
    let problem = match timeout(patience, work).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("not done within {patience:?}"),
    };
    let (request_id, route, release_id) = (call.meta.request_id.as_str(), InternalReleasesStatus::NAME, release.get());
    tracing::warn!(request_id, route, release_id, problem, "a build log that nobody reads was not deleted");
}

//! Compares budgets with usage, and notifies owners and data planes of changes: reached thresholds,
//! exhausted budgets and restored budgets.

mod watch;

use std::time::Duration;

use karta_shared::{
    App,
    domain::Timestamp,
    join_bounded::join_bounded,
    store::{BudgetCheck, CommitError, OutboxKey, Queue},
    worker::{Fault, Wake, Worker, due, of_organization},
};
use tokio::time::timeout;

/// Maximum rounds of a sweep, which ends when nothing is due.
const MAX_ROUNDS: usize = 20;
/// Time limit for one organization, so that it does not delay the others.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);
/// Delay before an interrupted or failed check is repeated.
const RETRY_DELAY: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub struct BudgetChecks {
    app: App,
}

impl BudgetChecks {
    pub fn new(app: App) -> Self {
        Self { app }
    }

    async fn check_all(&self, due: Vec<OutboxKey>) -> Result<(), Fault> {
        let checks = due.into_iter().map(|due| {
            let app = self.app.clone();
            async move { check(&app, &due).await.map_err(of_organization(due.organization_id)) }
        });
        join_bounded(checks).await.into_iter().fold(Ok(()), Result::and)
    }
}

/// Runs a check. A failed check is postponed, so that it does not block others.
async fn check(app: &App, due: &OutboxKey) -> Result<(), Fault> {
    let mut held = due.clone();
    let checked = timeout(CHECK_TIMEOUT, claim_and_check(app, &mut held)).await;
    let outcome = checked.unwrap_or_else(|elapsed| Err(elapsed.into()));
    if outcome.is_err() {
        let postponed = app.store.postpone(Queue::BudgetChecks, &[held], app.clock.now().plus(RETRY_DELAY)).await;
        return outcome.and(postponed.map_err(Fault::from));
    }
    Ok(())
}

/// Checks the budgets. `held` is the check's item, which a claim replaces.
async fn claim_and_check(app: &App, held: &mut OutboxKey) -> Result<(), Fault> {
    let organization = held.organization_id;
    let Some(check) = app.store.budget_check(organization, &held.sk).await? else {
        return Ok(());
    };
    let now = app.clock.now();
    if held.sk == BudgetCheck::PENDING_SORT_KEY {
        let mut transaction = app.store.transaction();
        transaction.claim_budget_check(&check, now.plus(RETRY_DELAY))?;
        match transaction.commit().await {
            Ok(()) => held.sk = check.claimed_sort_key(),
            // Another check was added, or another worker was faster. A later round finds the rest.
            Err(CommitError::Conflict(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    let month = now.month();
    let (mut any_exhausted, mut published) = (false, Ok(()));
    for watched in watch::watched(app, &check, month).await? {
        any_exhausted |= !watched.verdict.is_ok();
        // The fault of one budget must not affect the others.
        published = watch::publish(app, organization, &watched, month).await.and(published);
    }
    published?;
    finish(app, &check, &held.sk, any_exhausted.then(|| month.next().start())).await
}

/// Removes a finished check. An exhausted budget is checked again at the start of the next month,
/// because nothing is written when a new month restores it.
async fn finish(app: &App, check: &BudgetCheck, sk: &str, recheck_at: Option<Timestamp>) -> Result<(), Fault> {
    let mut transaction = app.store.transaction();
    transaction.finish_budget_check(check, sk)?;
    if let Some(recheck_at) = recheck_at {
        transaction.check_budgets_at(check.organization_id, check.api_keys.iter().copied(), recheck_at)?;
    }
    match transaction.commit().await {
        Ok(()) | Err(CommitError::Conflict(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Worker for BudgetChecks {
    const NAME: &'static str = "worker-budget-checks";

    async fn deployed(app: App) -> Result<Self, Fault> {
        Ok(Self::new(app))
    }

    async fn work(&self, wake: &Wake) -> Result<(), Fault> {
        if let Wake::Written(written) = wake {
            // The index may not show the items of the stream yet.
            return self.check_all(written.iter().cloned().collect()).await;
        }
        // The fault of one organization must not affect the others.
        let mut outcome = Ok(());
        for _ in 0..MAX_ROUNDS {
            let due = due(&self.app, Queue::BudgetChecks).await?;
            if due.is_empty() {
                break;
            }
            outcome = self.check_all(due).await.and(outcome);
        }
        outcome
    }
}

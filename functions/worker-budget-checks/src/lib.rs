//! Holds budgets against what was spent, and tells owners and data planes what is new: thresholds, the end of a budget, and its return.

mod watch;

use std::time::Duration;

use karta_shared::{
    App,
    domain::Timestamp,
    join_bounded::join_bounded,
    store::{BudgetCheck, CommitError, DueItem, Queue},
    worker::{Fault, Wake, Worker, due},
};
use tokio::time::timeout;

/// How often a sweep looks again while it finds something.
const LOOKS: usize = 20;
/// How long one organization is looked at: its fault or size is not another one's.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(20);
/// When a look that was cut off is made again.
const AGAIN_AFTER: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub struct BudgetChecks {
    app: App,
}

impl BudgetChecks {
    pub fn new(app: App) -> Self {
        Self { app }
    }

    async fn look_at(&self, due: Vec<DueItem>) -> Result<(), Fault> {
        let looks = due.into_iter().map(|due| {
            let app = self.app.clone();
            async move { timeout(LOOKED_AT_WITHIN, check(&app, &due)).await? }
        });
        join_bounded(looks).await.into_iter().fold(Ok(()), Result::and)
    }
}

async fn check(app: &App, due: &DueItem) -> Result<(), Fault> {
    let organization = due.organization_id;
    let Some(check) = app.store.budget_check(organization, &due.sk).await? else {
        return Ok(());
    };
    let now = app.clock.now();
    let mut place = due.sk.clone();
    if place == BudgetCheck::GATHERED {
        let mut transaction = app.store.transaction();
        transaction.put_budget_check_aside(&check, now.plus(AGAIN_AFTER))?;
        match transaction.commit().await {
            Ok(()) => place = check.place_aside(),
            // Another wish joined, or another worker was quicker: what is left is found again.
            Err(CommitError::Conflict(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    let month = now.month();
    let mut any_exhausted = false;
    for watched in watch::watched(app, &check, month).await? {
        any_exhausted |= !watched.verdict.is_ok();
        watch::tell(app, organization, &watched, month).await?;
    }
    settle(app, &check, &place, any_exhausted.then(|| month.next().start())).await
}

/// Takes a wish away. Nothing else would tell that the next month restores what is exhausted, so that is looked at again when it starts.
async fn settle(app: &App, check: &BudgetCheck, place: &str, again: Option<Timestamp>) -> Result<(), Fault> {
    let mut transaction = app.store.transaction();
    transaction.settle_budget_check(check, place)?;
    if let Some(again) = again {
        transaction.check_budgets_at(check.organization_id, check.api_keys.iter().copied(), again)?;
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
            // The index may not show yet what the stream tells of.
            return self.look_at(written.iter().cloned().collect()).await;
        }
        for _ in 0..LOOKS {
            let due = due(&self.app, Queue::BudgetChecks).await?;
            if due.is_empty() {
                break;
            }
            self.look_at(due).await?;
        }
        Ok(())
    }
}

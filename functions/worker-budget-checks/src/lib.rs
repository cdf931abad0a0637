//! Holds budgets against what was spent, and tells owners and data planes what is new: thresholds, the end of a budget, and its return.

mod watch;

use karta_shared::{
    App,
    domain::Timestamp,
    store::{CommitError, Due, Queue},
    worker::{Fault, Wake, Worker},
};

/// How often a sweep looks again while it finds something.
const LOOKS: usize = 20;

#[derive(Debug)]
pub struct BudgetChecks {
    app: App,
}

impl BudgetChecks {
    pub fn new(app: App) -> Self {
        Self { app }
    }

    async fn check(&self, due: &Due, now: Timestamp) -> Result<(), Fault> {
        let (app, organization) = (&self.app, due.organization_id);
        let Some(check) = app.store.budget_check(organization, &due.sk).await? else {
            return Ok(());
        };
        let month = now.month();
        let mut any_exhausted = false;
        for watched in watch::watched(app, &check, month).await? {
            any_exhausted |= !watched.verdict.is_ok();
            watch::tell(app, organization, &watched, month, now).await?;
        }
        let mut transaction = app.store.transaction();
        transaction.settle_budget_check(&check, &due.sk)?;
        if any_exhausted {
            // Nothing else would tell that the next month restores it.
            transaction.check_budgets_at(&check, month.next().start())?;
        }
        match transaction.commit().await {
            // Another wish joined: it is looked at again.
            Ok(()) | Err(CommitError::Conflict(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Worker for BudgetChecks {
    const NAME: &'static str = "worker-budget-checks";

    async fn deployed(app: App) -> Result<Self, Fault> {
        Ok(Self::new(app))
    }

    async fn work(&self, _: &Wake) -> Result<(), Fault> {
        for _ in 0..LOOKS {
            let now = self.app.clock.now();
            let due = self.app.store.due(Queue::BudgetChecks, now).await?;
            if due.is_empty() {
                break;
            }
            // One organization's fault is not another one's.
            let mut outcome = Ok(());
            for due in due {
                outcome = self.check(&due, now).await.and(outcome);
            }
            outcome?;
        }
        Ok(())
    }
}

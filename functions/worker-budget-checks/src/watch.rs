use karta_shared::{
    App,
    domain::{
        Budget, BudgetNotice, BudgetVerdict, BudgetWatch, CacheEffect, Event, EventType, Id, Month, Spending,
        SubscriptionStatus, Tally, Timestamp,
    },
    store::{BudgetCheck, BudgetSubject, CommitError},
    worker::Fault,
};
use serde_json::{Value, json};

/// Maximum attempts while other workers publish changes of the same budget.
const MAX_ATTEMPTS: usize = 5;

/// A budget and the usage that counts against it.
#[derive(Debug)]
pub(crate) struct WatchedBudget {
    subject: BudgetSubject,
    subject_json: Value,
    budget: Option<Budget>,
    spent: Tally,
    pub(crate) verdict: BudgetVerdict,
}

/// Returns the organization's budget and the budgets of the keys that the check names. Keys that
/// are unreadable or have unreadable usage are omitted.
pub(crate) async fn watched(app: &App, check: &BudgetCheck, month: Month) -> Result<Vec<WatchedBudget>, Fault> {
    let (store, organization_id) = (&app.store, check.organization_id);
    let organization = store.organization(organization_id).await?.ok_or("organization of a budget check is missing")?;
    let budget = store.budget(organization_id).await?.map(|stored| stored.budget);
    let spent = store.usage_totals(organization_id, month).await?;
    let spending = Spending { organization_budget: budget.clone(), organization: spent, ..Spending::default() };
    let mut watched = vec![WatchedBudget {
        subject: BudgetSubject::Organization,
        subject_json: json!({ "kind": "organization", "id": organization_id }),
        verdict: BudgetVerdict::new(organization.subscription_status, &spending),
        budget,
        spent,
    }];
    // A lineage has the budget of its newest key, even if an older key was used.
    let keys = store.newest_api_keys(organization_id, &check.api_keys).await?;
    let lineages = keys.iter().map(|key| key.lineage_id).collect();
    let used = store.usage_totals_of_keys(organization_id, month, &lineages).await?;
    watched.extend(keys.into_iter().filter_map(|key| {
        let spent = used.get(&key.lineage_id).copied().unwrap_or(Some(Tally::default()))?;
        let spending = Spending { key_budget: key.budget.clone(), key: spent, ..Spending::default() };
        Some(WatchedBudget {
            subject: BudgetSubject::Key(key.lineage_id),
            subject_json: json!({ "kind": "api_key", "id": key.id }),
            // The subscription counts only in the organization's verdict.
            verdict: BudgetVerdict::new(SubscriptionStatus::Active, &spending),
            budget: key.budget,
            spent,
        })
    }));
    Ok(watched)
}

/// Stores the budget's watch and the events about its changes in one transaction.
pub(crate) async fn publish(app: &App, organization: Id, watched: &WatchedBudget, month: Month) -> Result<(), Fault> {
    for _ in 0..MAX_ATTEMPTS {
        let known = app.store.budget_watch(organization, watched.subject).await?;
        let mut watch = known.unwrap_or_else(|| BudgetWatch::new(month));
        let notices = watch.observe(month, watched.budget.as_ref(), &watched.spent, &watched.verdict);
        if notices.is_empty() {
            return Ok(());
        }
        let now = app.clock.now();
        let mut transaction = app.store.transaction();
        transaction.put_budget_watch(organization, watched.subject, &watch)?;
        for notice in notices {
            if !matches!(notice, BudgetNotice::Threshold { .. }) {
                transaction.invalidate(organization, CacheEffect::Stale, now)?;
            }
            transaction.publish(&event(app, organization, payload(notice, watched, month), now))?;
        }
        match transaction.commit().await {
            // Another worker published a change, or two events got the same id.
            Err(CommitError::Conflict(_)) => {}
            outcome => return Ok(outcome?),
        }
    }
    Err("budget watch update kept conflicting".into())
}

fn event(app: &App, organization: Id, (event_type, data): (EventType, Value), now: Timestamp) -> Event {
    let id = Id::draw(now, &*app.entropy);
    Event {
        id,
        event_type,
        created_at: now,
        organization_id: organization,
        data: data.to_string(),
        only_endpoint: None,
    }
}

fn payload(notice: BudgetNotice, watched: &WatchedBudget, period: Month) -> (EventType, Value) {
    let subject = &watched.subject_json;
    match notice {
        BudgetNotice::Threshold { kind, cap, percent, spent } => (
            EventType::BudgetThreshold,
            json!({
                "period": period, "subject": subject, "cap": kind, "limit": cap, "percent": percent,
                // `u64` covers every realistic month.
                "spent": u64::try_from(spent).unwrap_or(u64::MAX),
            }),
        ),
        BudgetNotice::Exhausted { reason } => {
            (EventType::BudgetExhausted, json!({ "period": period, "subject": subject, "reason": reason }))
        }
        BudgetNotice::Restored => (EventType::BudgetRestored, json!({ "period": period, "subject": subject })),
    }
}

use std::collections::BTreeMap;

use karta_shared::{
    App,
    domain::{Id, Timestamp, UsageEvent},
    http::Error,
    store::{Ingested, StoreError},
};
use tokio::task::{JoinError, JoinSet};

/// How many organizations are counted at once.
const AT_ONCE: usize = 16;

/// Counts each organization's events. All have their turn before the fault of one is told: what was counted stays, and the same batch sent again
/// counts the rest.
pub(crate) async fn count(
    app: &App,
    by_organization: BTreeMap<Id, Vec<UsageEvent>>,
    now: Timestamp,
) -> Result<Ingested, Error> {
    let (mut ingested, mut outcome) = (Ingested::default(), Ok(()));
    let mut counting = JoinSet::new();
    let mut note = |counted: Result<Result<Ingested, StoreError>, JoinError>| match counted {
        Ok(Ok(counted)) => ingested += counted,
        Ok(Err(fault)) => outcome = Err(fault.into()),
        Err(fault) => outcome = Err(Error::Internal(fault.to_string())),
    };
    for (organization, events) in by_organization {
        if counting.len() == AT_ONCE
            && let Some(counted) = counting.join_next().await
        {
            note(counted);
        }
        let store = app.store.clone();
        counting.spawn(async move { store.ingest(organization, events, now).await });
    }
    while let Some(counted) = counting.join_next().await {
        note(counted);
    }
    outcome.map(|()| ingested)
}

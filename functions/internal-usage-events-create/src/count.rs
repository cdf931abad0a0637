use std::collections::BTreeMap;

use karta_shared::{
    App,
    domain::{Id, Timestamp, UsageEvent},
    http::Error,
    join_bounded::join_bounded,
    store::Ingested,
};

/// Counts the events of every organization. If one organization fails, the others are still
/// counted. The sender repeats the batch, and only the remaining events are counted.
pub(crate) async fn count(
    app: &App,
    by_organization: BTreeMap<Id, Vec<UsageEvent>>,
    now: Timestamp,
) -> Result<Ingested, Error> {
    let counting = by_organization.into_iter().map(|(organization, events)| {
        let store = app.store.clone();
        async move { store.ingest(organization, events, now).await }
    });
    let mut ingested = Ingested::default();
    let mut outcome = Ok(ingested);
    for counted in join_bounded(counting).await {
        match counted {
            Ok(counted) => ingested += counted,
            Err(fault) => outcome = Err(fault.into()),
        }
    }
    outcome.map(|_| ingested)
}

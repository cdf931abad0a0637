use std::{collections::BTreeSet, time::Duration};

use karta_shared::{
    App,
    domain::{Id, Invalidation, Timestamp},
    join_bounded::join_bounded,
    store::{Queue, ScheduledInvalidation, StoreError},
    worker::{Fault, Wake, Worker, due, of_organization},
};

use crate::CachePush;

/// Duration of a lease. If the worker ends before it deletes or postpones an invalidation, another
/// worker repeats it after this time.
const LEASE: Duration = Duration::from_secs(30);
/// Delay before an unreadable invalidation is read again.
const UNREADABLE_DELAY: Duration = Duration::from_mins(1);

/// Leases the due invalidations. Returns them with the first fault, if any.
pub(crate) async fn take(app: &App, wake: &Wake) -> Result<(Vec<ScheduledInvalidation>, Option<Fault>), StoreError> {
    let now = app.clock.now();
    let organizations: BTreeSet<Id> = match wake {
        Wake::Written(written) => written.iter().map(|due| due.organization_id).collect(),
        Wake::Sweep | Wake::Endpoint { .. } => {
            let due = due(app, Queue::Invalidations).await?;
            due.into_iter().map(|due| due.organization_id).collect()
        }
    };
    let reads = organizations.into_iter().map(|organization| {
        let store = app.store.clone();
        async move {
            let read = async {
                let (found, unreadable) = store.due_invalidations(organization, now).await?;
                store.postpone(Queue::Invalidations, &unreadable, now.plus(UNREADABLE_DELAY)).await?;
                Ok::<_, StoreError>(found)
            };
            read.await.map_err(of_organization(organization))
        }
    });
    let (found, read_fault) = split_results(join_bounded(reads).await);
    let leases = found.into_iter().flatten().map(|pending| {
        let (store, organization) = (app.store.clone(), pending.invalidation.organization_id);
        async move {
            let leased = store.lease_invalidation(organization, pending, now.plus(LEASE)).await;
            leased.map_err(of_organization(organization))
        }
    });
    let (taken, lease_fault) = split_results(join_bounded(leases).await);
    Ok((taken.into_iter().flatten().collect(), read_fault.or(lease_fault)))
}

/// Deletes the invalidations that are done, postpones the others, and abandons those that have been
/// tried for ten minutes.
pub(crate) async fn finish(
    app: &App,
    taken: Vec<ScheduledInvalidation>,
    is_done: impl Fn(&Invalidation) -> bool,
) -> Option<Fault> {
    let now = app.clock.now();
    let writes = taken.into_iter().map(|taken| {
        let (store, next_try) =
            (app.store.clone(), next_try(app, &taken.invalidation, is_done(&taken.invalidation), now));
        let organization = taken.invalidation.organization_id;
        async move {
            let written = match next_try {
                Some(due_at) => store.postpone_invalidation(organization, &taken, due_at).await,
                None => store.delete_invalidation(organization, &taken).await,
            };
            written.map_err(of_organization(organization))
        }
    });
    split_results(join_bounded(writes).await).1
}

fn next_try(app: &App, invalidation: &Invalidation, is_done: bool, now: Timestamp) -> Option<Timestamp> {
    if is_done {
        return None;
    }
    let mut random = [0];
    app.entropy.fill(&mut random);
    let next_try = invalidation.next_try(now, random[0]);
    if next_try.is_none() {
        let (organization_id, confirmed) = (invalidation.organization_id.get(), &invalidation.notified);
        tracing::error!(
            worker = CachePush::NAME,
            organization_id,
            ?confirmed,
            "invalidation abandoned after ten minutes"
        );
    }
    next_try
}

/// Returns the successful values and the first fault.
fn split_results<T>(outcomes: Vec<Result<T, Fault>>) -> (Vec<T>, Option<Fault>) {
    let (mut done, mut fault) = (Vec::new(), None);
    for outcome in outcomes {
        match outcome {
            Ok(value) => done.push(value),
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    (done, fault)
}

use std::{collections::BTreeSet, time::Duration};

use karta_shared::{
    App,
    domain::{Id, Invalidation, Timestamp},
    join_bounded::join_bounded,
    store::{PendingInvalidation, Queue, StoreError},
    worker::{Wake, Worker, due},
};

use crate::CachePush;

/// How long a worker keeps what it took. If it ends before it has settled it, another one does it again after that.
const LEASE: Duration = Duration::from_secs(30);

/// Takes what is due, and with it the first fault that was met on the way.
pub(crate) async fn take(app: &App, wake: &Wake) -> Result<(Vec<PendingInvalidation>, Option<StoreError>), StoreError> {
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
        async move { store.due_invalidations(organization, now).await }
    });
    let (found, unread) = sorted(join_bounded(reads).await);
    let leases = found.into_iter().flatten().map(|pending| {
        let store = app.store.clone();
        async move { store.lease_invalidation(pending.invalidation.organization_id, pending, now.plus(LEASE)).await }
    });
    let (taken, untaken) = sorted(join_bounded(leases).await);
    Ok((taken.into_iter().flatten().collect(), unread.or(untaken)))
}

/// Takes away what `is_settled`, puts off the rest, and gives up what was tried for long enough.
pub(crate) async fn settle(
    app: &App,
    taken: Vec<PendingInvalidation>,
    is_settled: impl Fn(&Invalidation) -> bool,
) -> Option<StoreError> {
    let now = app.clock.now();
    let writes = taken.into_iter().map(|taken| {
        let (store, next_try) =
            (app.store.clone(), next_try(app, &taken.invalidation, is_settled(&taken.invalidation), now));
        let organization = taken.invalidation.organization_id;
        async move {
            match next_try {
                Some(due_at) => store.postpone_invalidation(organization, &taken, due_at).await,
                None => store.settle_invalidation(organization, &taken).await,
            }
        }
    });
    sorted(join_bounded(writes).await).1
}

fn next_try(app: &App, invalidation: &Invalidation, is_settled: bool, now: Timestamp) -> Option<Timestamp> {
    if is_settled {
        return None;
    }
    let mut random = [0];
    app.entropy.fill(&mut random);
    let next_try = invalidation.next_try(now, random[0]);
    if next_try.is_none() {
        let (organization_id, told) = (invalidation.organization_id.get(), &invalidation.told);
        tracing::error!(worker = CachePush::NAME, organization_id, ?told, "gave up: the others were not told in time");
    }
    next_try
}

/// What went well, and the first fault.
fn sorted<T>(outcomes: Vec<Result<T, StoreError>>) -> (Vec<T>, Option<StoreError>) {
    let (mut done, mut fault) = (Vec::new(), None);
    for outcome in outcomes {
        match outcome {
            Ok(value) => done.push(value),
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    (done, fault)
}

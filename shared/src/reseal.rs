//! Reseals every item that is not sealed under its ring's current key, and logs how many remain
//! under each other key. A key may be removed from the ring only when none remain. Items under a
//! key that the ring does not hold cannot be opened and are logged as errors.

use std::{collections::BTreeMap, fmt, future::Future};

use crate::{
    app::App,
    config::Ring,
    domain::{Id, Keyring, Kid},
    store::{SealedItem, SealedKind, StoreError},
    worker::Fault,
};

/// A kind of sealed item.
pub trait Sealed {
    const KIND: SealedKind;
    const RING: Ring;
    /// The worker's name in the log.
    const WORKER: &'static str;
    type Item: Send;
    type UnsealError: fmt::Display + Send;

    fn read(app: &App, organization: Id, id: Id)
    -> impl Future<Output = Result<Option<Self::Item>, StoreError>> + Send;

    fn kid(item: &Self::Item) -> &Kid;

    /// Reseals an item under the ring's current key, if the stored item has not changed since it
    /// was read. Returns whether it did. `Ok(Err)` is the reason why the item does not open.
    fn reseal(
        app: &App,
        ring: &Keyring,
        organization: Id,
        id: Id,
        item: &Self::Item,
    ) -> impl Future<Output = Result<Result<bool, Self::UnsealError>, StoreError>> + Send;
}

/// Counts for a key that is not current.
#[derive(Debug, Default)]
struct ResealCount {
    resealed: usize,
    remaining: usize,
}

/// Fails while any item remains.
pub async fn sweep<S: Sealed>(app: &App) -> Result<(), Fault> {
    let ring = app.secrets.ring_refetched(S::RING).await?;
    let current = ring.current().0;
    let mut counts: BTreeMap<_, _> = ring.other_kids().map(|kid| (kid.clone(), ResealCount::default())).collect();
    for SealedItem { organization, id, kid } in app.store.not_sealed_under(S::KIND, current).await? {
        counts.entry(kid).or_default().resealed += usize::from(reseal::<S>(app, organization, id).await?);
    }
    for found in app.store.not_sealed_under(S::KIND, current).await? {
        if let Some(kid) = remaining::<S>(app, found).await?.filter(|kid| kid != current) {
            counts.entry(kid).or_default().remaining += 1;
        }
    }
    let (mut left, mut lost) = (0, 0);
    for (kid, ResealCount { resealed, remaining }) in counts {
        left += remaining;
        if ring.get(kid.as_str()).is_some() {
            tracing::info!(worker = S::WORKER, %kid, resealed, remaining, "items sealed under a key that is not current");
        } else {
            lost += remaining;
            tracing::error!(worker = S::WORKER, %kid, remaining, "items sealed under a missing key");
        }
    }
    app.metrics.sealed_remaining(app.clock.now(), left);
    match (left, lost) {
        (0, _) => Ok(()),
        (_, 0) => Err(format!("{left} items are not sealed under the current key").into()),
        _ => Err(format!(
            "{left} items are not sealed under the current key, {lost} of them under keys that the ring does not hold"
        )
        .into()),
    }
}

/// Returns whether this run resealed an item. An item that cannot be read or opened is logged and
/// does not block the others. The ring is refetched, because an older ring would move the item back
/// from a key that was promoted since.
async fn reseal<S: Sealed>(app: &App, organization: Id, id: Id) -> Result<bool, Fault> {
    let item = match S::read(app, organization, id).await {
        Ok(Some(item)) => item,
        Ok(None) => return Ok(false),
        Err(StoreError::Fault(fault)) => return Ok(log_failure::<S>(organization, id, &fault)),
        Err(error) => return Err(error.into()),
    };
    let ring = app.secrets.ring_refetched(S::RING).await?;
    match S::reseal(app, &ring, organization, id, &item).await {
        Ok(Ok(has_resealed)) => Ok(has_resealed),
        Ok(Err(fault)) => Ok(log_failure::<S>(organization, id, &fault)),
        Err(StoreError::Fault(fault)) => Ok(log_failure::<S>(organization, id, &fault)),
        Err(error) => Err(error.into()),
    }
}

fn log_failure<S: Sealed>(organization: Id, id: Id, fault: &dyn fmt::Display) -> bool {
    let (organization_id, id) = (organization.get(), id.get());
    tracing::error!(worker = S::WORKER, organization_id, id, %fault, "item reseal failed");
    false
}

/// Reads the item itself, because the index may be behind.
async fn remaining<S: Sealed>(app: &App, found: SealedItem) -> Result<Option<Kid>, Fault> {
    match S::read(app, found.organization, found.id).await {
        Ok(item) => Ok(item.map(|item| S::kid(&item).clone())),
        Err(StoreError::Fault(_)) => Ok(Some(found.kid)),
        Err(error) => Err(error.into()),
    }
}

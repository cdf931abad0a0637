use std::{collections::BTreeSet, time::Duration};

use karta_shared::{
    App,
    domain::Id,
    store::{DueItem, StoreError},
    worker::Fault,
};

/// When events are looked at again that could not be fanned out.
const AGAIN_AFTER: Duration = Duration::from_mins(1);

/// Says which endpoints have something new, also where not everything was done.
pub(crate) async fn fan_out(app: &App, organization: Id, due: &[DueItem]) -> (BTreeSet<Id>, Result<(), Fault>) {
    let mut touched = BTreeSet::new();
    let told = async {
        // In this order: who was there when an event was written is among the endpoints.
        let (events, unreadable) = app.store.pending_events(due).await?;
        app.store.postpone_events(&unreadable, app.clock.now().plus(AGAIN_AFTER)).await?;
        if events.is_empty() {
            return Ok(());
        }
        let endpoints = app.store.all_webhook_endpoints(organization).await?;
        app.store.fan_out(organization, events, &endpoints, app.clock.now(), &mut touched).await
    };
    let told: Result<(), StoreError> = told.await;
    let told = match told {
        // They must not stand before everybody else's in the next look.
        Err(fault) => {
            let postponed = app.store.postpone_events(due, app.clock.now().plus(AGAIN_AFTER)).await;
            Err(postponed.err().unwrap_or(fault).into())
        }
        Ok(()) => Ok(()),
    };
    (touched, told)
}

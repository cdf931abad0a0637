//! `POST /v1/internal/usage/events`: counts the usage that data planes report, each event once. An
//! invalid event does not affect the others of its batch.

mod count;
mod event;

use std::collections::BTreeMap;

use karta_shared::{
    App,
    domain::{Id, UsageEvent},
    http::{ApiResponse, Bounded, Call, Error, Internal, ItemResult, NoQuery, ReportUsage, Route, UnpricedUsage},
    store::Ingested,
};
use serde::{Deserialize, Serialize};

use crate::{
    count::count,
    event::{Directory, Reported},
};

const MAX_EVENTS: usize = 1_000;
/// Maximum models without a price that one log line names.
const MAX_LOGGED_MODELS: usize = 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    events: Bounded<ItemResult<Reported>, MAX_EVENTS>,
}

#[derive(Debug, Serialize)]
pub struct Output {
    accepted: usize,
    duplicates: usize,
    rejected: Vec<Rejected>,
    /// Models of this batch without a price, with their reported tokens, duplicates included. These
    /// tokens add no cost.
    unpriced: Vec<UnpricedUsage>,
}

/// An event that is not counted, with its index in the batch and the reason.
#[derive(Debug, Serialize)]
pub struct Rejected {
    index: usize,
    message: String,
}

#[derive(Debug)]
pub struct InternalUsageEventsCreate;

impl Route for InternalUsageEventsCreate {
    const NAME: &'static str = "internal-usage-events-create";
    const STATUS: u16 = 202;
    const BODY_MAX: usize = 1024 * 1024;
    type Access = Internal<ReportUsage>;
    type Path = ();
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let events = &call.body.events.0;
        if events.len() > MAX_EVENTS {
            return Err(Error::invalid("events", "must have at most 1000 events: send the rest in another batch"));
        }
        let reported: Vec<_> = events.iter().map(|event| Reported::checked(event, call.now)).collect();
        let directory = Directory::new(app, reported.iter().flatten()).await?;

        let mut by_organization: BTreeMap<Id, Vec<UsageEvent>> = BTreeMap::new();
        let (mut rejected, mut unpriced) = (Vec::new(), BTreeMap::<String, u128>::new());
        for (index, event) in reported.into_iter().enumerate() {
            match event.and_then(|event| directory.attribute(event, &app.prices)) {
                Ok((organization, event)) => {
                    if event.cost.is_none() {
                        *unpriced.entry(event.model_name().to_owned()).or_default() += u128::from(event.quantity.get());
                    }
                    by_organization.entry(organization).or_default().push(event);
                }
                Err(message) => rejected.push(Rejected { index, message: call.meta.scrub(&message) }),
            }
        }
        if !unpriced.is_empty() {
            let named = unpriced.iter().take(MAX_LOGGED_MODELS);
            let models: Vec<_> = named.map(|(model, tokens)| (call.meta.scrub(model), tokens)).collect();
            tracing::warn!(route = Self::NAME, ?models, unpriced_models = unpriced.len(), "models without a price");
        }
        if let Some(oldest) = by_organization.values().flatten().map(|event| event.occurred_at).min() {
            app.metrics.usage_lag(call.now, call.now.since(oldest));
        }
        let Ingested { accepted, duplicates } = count(app, by_organization, call.now).await?;
        ApiResponse::accepted(&Output { accepted, duplicates, rejected, unpriced: UnpricedUsage::list(&unpriced) })
    }
}

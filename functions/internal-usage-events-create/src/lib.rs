//! `POST /v1/internal/usage/events`: counts what data planes report, each event once. One bad event never sinks the batch.

mod count;
mod event;

use std::collections::BTreeMap;

use karta_shared::{
    App,
    domain::{Id, UsageEvent},
    http::{Answer, Bounded, Call, Each, Error, Internal, NoQuery, ReportUsage, Route, UnpricedUsage},
    store::Ingested,
};
use serde::{Deserialize, Serialize};

use crate::{
    count::count,
    event::{Directory, Reported},
};

const EVENTS_AT_MOST: usize = 1_000;
/// How many models without a price the log names, with the tokens of each.
const MODELS_NAMED: usize = 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    events: Bounded<Each<Reported>, EVENTS_AT_MOST>,
}

#[derive(Debug, Serialize)]
pub struct Output {
    accepted: usize,
    duplicates: usize,
    rejected: Vec<Rejected>,
    /// The models of this batch without a price, with the tokens that the batch reports of each, duplicates included. Counted tokens cost nothing.
    unpriced: Vec<UnpricedUsage>,
}

/// An event that is not counted: its place in the batch, and what would be right.
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

    async fn handle(app: &App, call: &Call<Self>) -> Result<Answer<Output>, Error> {
        let events = &call.body.events.0;
        if events.len() > EVENTS_AT_MOST {
            return Err(Error::invalid("events", "must hold at most 1000 events: send the rest in another batch"));
        }
        let reported: Vec<_> = events.iter().map(|event| Reported::judged(event, call.now)).collect();
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
            let models = unpriced.iter().take(MODELS_NAMED).map(|(model, tokens)| (call.meta.scrub(model), tokens));
            let models: Vec<_> = models.collect();
            tracing::warn!(route = Self::NAME, ?models, of = unpriced.len(), "models without a price");
        }
        if let Some(oldest) = by_organization.values().flatten().map(|event| event.occurred_at).min() {
            app.metrics.usage_lag(call.now, call.now.since(oldest));
        }
        let Ingested { accepted, duplicates } = count(app, by_organization, call.now).await?;
        Answer::accepted(&Output { accepted, duplicates, rejected, unpriced: UnpricedUsage::list(&unpriced) })
    }
}

use std::collections::{BTreeSet, HashMap, HashSet};

use karta_shared::{
    App,
    domain::{
        Id, MAX_CLOCK_AHEAD, MAX_USAGE_AGE, ModelId, Prefix, PriceTable, Quantity, Reference, Timestamp, UsageEvent,
        UsageKind,
    },
    http::{Error, ItemResult},
    join_bounded::join_bounded,
    store::KeyOwner,
};
use serde::Deserialize;

/// The ids of usage events of turns start with this.
const TURN_EVENTS: &str = "turn_";

/// An event as a data plane reports it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reported {
    api_key_id: Option<Id>,
    api_key_prefix: Option<Prefix>,
    model_key_id: Option<Id>,
    embed_key_id: Option<Id>,
    session_id: Option<Reference>,
    kind: UsageKind,
    quantity: Quantity,
    model: Option<ModelId>,
    occurred_at: Timestamp,
    client_event_id: Reference,
}

impl Reported {
    /// Returns the event, or its problem.
    pub(crate) fn checked(ItemResult(event): &ItemResult<Self>, now: Timestamp) -> Result<Self, String> {
        let event = event.clone()?;
        if event.api_key_id.is_none() && event.api_key_prefix.is_none() {
            return Err("api_key_id or api_key_prefix is required".to_owned());
        }
        if event.client_event_id.as_str().starts_with(TURN_EVENTS) {
            return Err(
                "client_event_id must not start with turn_, which names the events of Karta's own turns".to_owned()
            );
        }
        if event.occurred_at < now.minus(MAX_USAGE_AGE) || event.occurred_at > now.plus(MAX_CLOCK_AHEAD) {
            return Err("occurred_at must be within the last 400 days and at most an hour ahead".to_owned());
        }
        Ok(event)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Directory {
    by_id: HashMap<Id, KeyOwner>,
    by_prefix: HashMap<String, Vec<KeyOwner>>,
}

impl Directory {
    pub(crate) async fn new(app: &App, events: impl Iterator<Item = &Reported> + Clone) -> Result<Self, Error> {
        let ids: BTreeSet<_> = events.clone().filter_map(|event| event.api_key_id).collect();
        let prefixes: HashSet<_> = events.filter_map(|event| event.api_key_prefix.clone()).collect();
        let by_id = app.store.key_owners(&ids).await?;
        let lookups = prefixes.into_iter().map(|prefix| {
            let store = app.store.clone();
            async move { store.key_owners_by_prefix(&prefix).await.map(|keys| (prefix.as_str().to_owned(), keys)) }
        });
        let by_prefix = join_bounded(lookups).await.into_iter().collect::<Result<_, _>>()?;
        Ok(Self { by_id, by_prefix })
    }

    /// Returns the event with its cost, and the organization of its API key.
    pub(crate) fn attribute(&self, event: Reported, prices: &PriceTable) -> Result<(Id, UsageEvent), String> {
        let owner = self.owner(&event)?;
        let price = prices.price(event.model.as_ref().map(ModelId::as_str));
        let event = UsageEvent {
            client_event_id: event.client_event_id,
            api_key_id: owner.api_key_id,
            lineage_id: owner.lineage_id,
            kind: event.kind,
            quantity: event.quantity,
            cost: price.map(|price| price.cost(event.kind, event.quantity)),
            model: event.model,
            occurred_at: event.occurred_at,
            session_id: event.session_id,
            model_key_id: event.model_key_id,
            embed_key_id: event.embed_key_id,
        };
        Ok((owner.organization_id, event))
    }

    fn owner(&self, event: &Reported) -> Result<KeyOwner, String> {
        let prefix_owners = event
            .api_key_prefix
            .as_ref()
            .map(|prefix| self.by_prefix.get(prefix.as_str()).map(Vec::as_slice).unwrap_or_default());
        match (event.api_key_id, prefix_owners) {
            (Some(id), prefix_owners) => {
                let owner = self.by_id.get(&id).ok_or("api_key_id does not exist")?;
                match prefix_owners {
                    Some(keys) if !keys.contains(owner) => Err("api_key_prefix does not match api_key_id".to_owned()),
                    _ => Ok(*owner),
                }
            }
            (None, Some([owner])) => Ok(*owner),
            (None, Some([])) => Err("api_key_prefix does not exist".to_owned()),
            (None, _) => Err("api_key_prefix is not unique: send api_key_id".to_owned()),
        }
    }
}

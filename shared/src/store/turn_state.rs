use std::collections::{BTreeMap, HashMap};

use super::{
    ActiveModelKey, KeyState, KnownCounters, OrganizationBudget, SealedModelKey, Store, StoreError,
    access::{by_key, take_key_state},
    batch::BatchKeys,
    counters::read_totals,
    decode,
    table::{Key, Table},
};
use crate::domain::{Id, ModelKey, Project, Provider, Session, SessionId, Spending, Tally, Timestamp};

/// The providers whose models a turn can use.
const PROVIDERS: [Provider; 3] = [Provider::Anthropic, Provider::OpenAi, Provider::OpenRouter];

/// The state that decides whether a turn may start, read in one call.
#[derive(Debug, Clone)]
pub struct TurnState {
    /// The session if it is stored: callers check [`Session::is_reachable`].
    pub session: Option<Session>,
    pub key: KeyState,
    pub spending: Spending,
    pub model_keys: BTreeMap<Provider, ActiveModelKey>,
    /// The counters of this month, for the settlement of the turn.
    pub known: KnownCounters,
}

/// The settings and provider keys of a turn.
#[derive(Debug, Clone)]
pub struct TurnSettings {
    pub project: Option<Project>,
    /// The provider keys that are not revoked.
    pub model_keys: Vec<(ModelKey, SealedModelKey)>,
}

impl Store {
    /// Reads the state that decides whether a key may start a turn, in one consistent
    /// `BatchGetItem` over three tables. A missing key or organization is a fault.
    pub async fn turn_state(
        &self,
        organization: Id,
        session: Option<&SessionId>,
        api_key: Id,
        lineage_id: Id,
        now: Timestamp,
    ) -> Result<TurnState, StoreError> {
        let month = now.month();
        let required = [Key::organization(organization), Key::api_key(organization, api_key)];
        let budget = Key::budget(organization);
        let active = PROVIDERS.map(|provider| (provider, Key::active_model_key(organization, provider)));
        let main = required.iter().chain([&budget]).chain(active.iter().map(|(_, key)| key)).cloned().collect();
        let totals = Key::usage_totals(organization, month);
        let used = Key::usage_of_key(organization, lineage_id, month);
        let usage = KnownCounters::keys(organization, lineage_id, month);
        let session = session.map(|session| Key::session(organization, session));
        let sessions =
            session.clone().map(|key| BatchKeys { table: Table::Sessions, keys: vec![key], projection: None });
        let wanted = [
            BatchKeys { table: Table::Main, keys: main, projection: None },
            BatchKeys { table: Table::Usage, keys: usage.to_vec(), projection: None },
        ];
        let mut found = by_key(self.batch_get_once(wanted.into_iter().chain(sessions)).await?);
        let key = take_key_state(&mut found, &required)?;
        let kept = found.remove(&budget).map(decode::<OrganizationBudget>).transpose()?;
        let tally = |key: &Key| found.get(key).map_or(Ok(Tally::default()), read_totals);
        let spending = Spending {
            organization_budget: kept.map(|kept| kept.budget),
            organization: tally(&totals)?,
            key_budget: key.api_key.budget.clone(),
            key: tally(&used)?,
        };
        let session = session.and_then(|key| found.remove(&key)).map(decode).transpose()?;
        let model_keys = active
            .into_iter()
            .filter_map(|(provider, key)| Some((provider, found.remove(&key)?)))
            .map(|(provider, item)| Ok((provider, decode(item)?)))
            .collect::<Result<_, StoreError>>()?;
        let usage_items: Vec<_> = usage.iter().filter_map(|key| found.remove(key)).collect();
        let known = KnownCounters::read(organization, lineage_id, month, &usage_items)?;
        Ok(TurnState { session, key, spending, model_keys, known })
    }

    /// Reads a project and provider keys with their sealed keys, in one consistent `BatchGetItem`.
    pub async fn turn_settings(
        &self,
        organization: Id,
        project: Option<Id>,
        model_keys: &[Id],
    ) -> Result<TurnSettings, StoreError> {
        let project = project.map(|project| Key::project(organization, project));
        let keys =
            model_keys.iter().map(|id| (Key::model_key(organization, *id), Key::sealed_model_key(organization, *id)));
        let keys: Vec<_> = keys.collect();
        let wanted = project.iter().chain(keys.iter().flat_map(|(key, sealed)| [key, sealed])).cloned();
        let wanted: Vec<_> = wanted.collect();
        let mut found =
            if wanted.is_empty() { HashMap::new() } else { by_key(self.batch_get(Table::Main, &wanted).await?) };
        let project = project.and_then(|key| found.remove(&key)).map(decode).transpose()?;
        let mut model_keys = Vec::with_capacity(keys.len());
        for (key, sealed) in keys {
            if let (Some(key), Some(sealed)) = (found.remove(&key), found.remove(&sealed)) {
                model_keys.push((decode::<ModelKey>(key)?, decode(sealed)?));
            }
        }
        model_keys.retain(|(key, _)| key.revoked_at.is_none());
        Ok(TurnSettings { project, model_keys })
    }
}

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Id, SessionId, Timestamp};

/// An entry of the audit log. It is written in the transaction of the change, so neither exists
/// without the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = RecordedEvent)]
pub struct AuditEvent {
    pub id: Id,
    pub at: Timestamp,
    pub actor: Actor,
    /// `<resource>.<what happened>`, like the type of a webhook event: `api_key.created`.
    pub action: String,
    pub resource: ResourceRef,
    /// The changes by field; never a secret.
    #[schema(value_type = BTreeMap<String, Change>)]
    pub changes: Changes,
    pub ip_address: Option<String>,
    pub user_agent: Option<String>,
    pub request_id: String,
}

/// The handler's part of an audit event. `Call::audit_event` adds actor, time and request metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAuditEvent {
    pub action: Action,
    pub resource_kind: &'static str,
    pub resource_id: ResourceId,
    pub changes: Changes,
}

impl AuditEvent {
    /// Completes two events of one transaction. Their ids must differ, because a transaction cannot
    /// write one item twice.
    pub fn pair(complete: impl Fn(NewAuditEvent) -> Self, first: NewAuditEvent, second: &NewAuditEvent) -> [Self; 2] {
        let first = complete(first);
        loop {
            let second = complete(second.clone());
            if second.id != first.id {
                return [first, second];
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Actor {
    pub kind: ActorKind,
    pub id: Option<Id>,
    pub name: String,
}

impl Actor {
    /// Compares with the id of an API key if the text is an id, else with the name: a key's name is
    /// free text, which may be another key's id.
    pub fn has_id_or_name(&self, text: &str) -> bool {
        match Id::parse(text) {
            Some(id) => self.id == Some(id),
            None => self.name == text,
        }
    }
}

macro_rules! actions {
    ($($action:ident => $name:tt,)+) => {
        /// An action of the audit log: `<resource>.<what happened>`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
        pub enum Action {
            $(#[serde(rename = $name)] $action,)+
        }

        impl Action {
            pub const ALL: &'static [Self] = &[$(Self::$action),+];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$action => $name,)+
                }
            }
        }
    };
}

// The only list of actions. Handlers write them, `GET /v1/audit_events` filters by them, and a test
// compares docs/api.md with them.
actions! {
    AgentProjectCreated => "agent_project.created",
    AgentProjectUpdated => "agent_project.updated",
    ApiKeyCreated => "api_key.created",
    ApiKeyRevoked => "api_key.revoked",
    ApiKeyRotated => "api_key.rotated",
    ApiKeyUpdated => "api_key.updated",
    BudgetUpdated => "budget.updated",
    ModelKeyCreated => "model_key.created",
    ModelKeyRevoked => "model_key.revoked",
    OrganizationCreated => "organization.created",
    OrganizationUpdated => "organization.updated",
    ReleaseActivated => "release.activated",
    ReleaseCreated => "release.created",
    ReleaseRolledBack => "release.rolled_back",
    ReleaseUpdated => "release.updated",
    SessionDeleted => "session.deleted",
    SessionTranscriptRead => "session.transcript_read",
    WebhookDeliveryReplayed => "webhook_delivery.replayed",
    WebhookEndpointCreated => "webhook_endpoint.created",
    WebhookEndpointDeleted => "webhook_endpoint.deleted",
    WebhookEndpointDisabled => "webhook_endpoint.disabled",
    WebhookEndpointRecovered => "webhook_endpoint.recovered",
    WebhookEndpointSecretRotated => "webhook_endpoint.secret_rotated",
    WebhookEndpointTested => "webhook_endpoint.tested",
    WebhookEndpointUpdated => "webhook_endpoint.updated",
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    ApiKey,
    /// The holder of a service token.
    Service,
    /// The operator, through the local runner or a script with the rights of the stack; or Stripe,
    /// through a signed event.
    System,
}

/// The id of a changed resource: an integer, or the text of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ResourceId {
    Number(Id),
    Text(String),
}

impl From<Id> for ResourceId {
    fn from(id: Id) -> Self {
        Self::Number(id)
    }
}

impl From<SessionId> for ResourceId {
    fn from(id: SessionId) -> Self {
        Self::Text(id.as_str().to_owned())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourceRef {
    pub kind: String,
    pub id: ResourceId,
}

pub type Changes = BTreeMap<String, Change>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    pub before: Value,
    pub after: Value,
}

/// The value of a field, as the resource itself shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Null,
    Flag(bool),
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

impl Value {
    pub fn list<T: Into<Self>>(items: impl IntoIterator<Item = T>) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }

    pub fn map<T: Into<Self>>(pairs: impl IntoIterator<Item = (impl Into<String>, T)>) -> Self {
        Self::Map(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Timestamp> for Value {
    fn from(instant: Timestamp) -> Self {
        Self::Text(instant.to_string())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn events_of_a_pair_have_different_ids() {
        let drawn = RefCell::new([7, 7, 7, 8].into_iter());
        let complete = |event: NewAuditEvent| {
            let id = drawn.borrow_mut().next().unwrap();
            AuditEvent {
                id: Id::new(id).unwrap(),
                at: "2026-11-21T12:00:00Z".parse().unwrap(),
                actor: Actor { kind: ActorKind::System, id: None, name: "test".to_owned() },
                action: event.action.as_str().to_owned(),
                resource: ResourceRef { kind: event.resource_kind.to_owned(), id: event.resource_id },
                changes: event.changes,
                ip_address: None,
                user_agent: None,
                request_id: "test".to_owned(),
            }
        };
        let event = |action| NewAuditEvent {
            action,
            resource_kind: "api_key",
            resource_id: Id::new(1).unwrap().into(),
            changes: Changes::new(),
        };
        let pair = AuditEvent::pair(complete, event(Action::ApiKeyRotated), &event(Action::ApiKeyCreated));
        let completed = pair.map(|event| (event.id.get(), event.action));
        assert_eq!(completed, [(7, "api_key.rotated".to_owned()), (8, "api_key.created".to_owned())]);
    }

    #[test]
    fn every_action_parses_from_its_name() {
        for action in Action::ALL {
            let (resource, happened) = action.as_str().split_once('.').unwrap();
            assert!([resource, happened].iter().all(|word| word.bytes().all(|b| b == b'_' || b.is_ascii_lowercase())));
            assert_eq!(serde_json::from_value::<Action>(action.as_str().into()).unwrap(), *action);
        }
        assert!(serde_json::from_value::<Action>("api_key.create".into()).is_err());
    }

    #[test]
    fn actor_matches_its_name_or_key_id() {
        let key = Actor { kind: ActorKind::ApiKey, id: Id::new(7), name: "ci".to_owned() };
        assert!(key.has_id_or_name("ci") && key.has_id_or_name("7"));
        let named_like_an_id = Actor { name: "8".to_owned(), ..key.clone() };
        assert!(!named_like_an_id.has_id_or_name("8") && named_like_an_id.has_id_or_name("7"));
        assert!(!key.has_id_or_name("c") && !key.has_id_or_name("8") && !key.has_id_or_name("07"));
        let system = Actor { kind: ActorKind::System, id: None, name: "local runner".to_owned() };
        assert!(system.has_id_or_name("local runner") && !system.has_id_or_name("x"));
    }
}

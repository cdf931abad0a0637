//! Business rules: keys, scopes, budgets, releases, webhooks, billing and the audit chain.
//!
//! The domain does no I/O; time and randomness are arguments. Parsers turn input into types that
//! cannot hold an invalid value ([`Name`], [`ScopeSet`], …). Their errors complete the sentence
//! "`<field>` …" and never repeat the value, which may be a secret in the wrong field.
//!
//! Many types are also stored items and API schemas: serde attributes fix the stored names, and
//! types with `ToSchema` are published in `openapi.json`.

mod address;
mod allowlist;
mod api_key;
mod artifact;
mod audit;
mod budget;
mod budget_watch;
mod build_log;
mod chain;
mod chain_check;
mod cidr;
mod credential;
mod data_planes;
mod endpoint_url;
mod entropy;
mod event;
mod grace;
mod hex;
mod id;
mod invalidation;
mod invisible;
mod keyring;
mod metadata;
mod model_choice;
mod model_key;
mod month;
mod name;
mod object;
mod opaque_id;
mod organization;
mod outbound_url;
mod prices;
mod principal;
mod project;
mod provider_urls;
mod punycode;
mod release;
mod retry_after;
mod rotation;
mod scope;
mod secret_shape;
mod service;
mod session;
mod stripe;
mod subscription;
mod timestamp;
mod token;
mod turn;
mod turn_error;
mod usage;
mod webhook;
mod webhook_signature;

pub use address::{Reach, check as check_address};
pub use allowlist::{AddressList, EntryError, HostList, InternalGuard, canonical_host};
pub use api_key::{ApiKey, ApiKeyPatch, ApiKeySettings, KeyNotEditable, KeyStatus, NotActive};
pub use artifact::{ArtifactUrl, CommitSha, ImageRef, TemplatePath};
pub use audit::{Action, Actor, ActorKind, AuditEvent, Change, Changes, NewAuditEvent, ResourceId, ResourceRef, Value};
pub use budget::{AlertPercents, Budget, BudgetVerdict, Cap, CapKind, CapOwner, Exhausted, Spending};
pub use budget_watch::{BudgetNotice, BudgetWatch};
pub use build_log::{BuildLog, LogChunk, LogGeneration, LogIndex, LogLine};
pub use chain::{Anchor, Chain, ChainState, ChainedEvent, EventMark, Hash32, Link};
pub use chain_check::{AuditLog, Checked, Finding, check};
pub use cidr::{AllowedCidrs, Cidr, client_address};
pub use credential::CredentialKind;
pub use data_planes::{DataPlane, DataPlanes, DataPlanesError, LocalDataPlanes};
pub use endpoint_url::{EndpointUrl, may_send_key_to};
pub use entropy::Entropy;
pub use event::{Event, EventType, public_event_id};
pub use grace::{Grace, SECRET_REVEAL_PERIOD};
pub(crate) use hex::hex;
pub use id::{Id, Kind};
pub use invalidation::{CacheEffect, Invalidation};
pub use invisible::holds_invisible;
pub use keyring::{Keyring, KeyringError, Kid};
pub use metadata::Metadata;
pub use model_choice::{ModelChoice, ModelRefused, ModelRule};
pub use model_key::{KeyRejected, Members, ModelKey, Provider, ProviderKey};
pub use month::Month;
pub use name::{Name, Slug, UserId, check_key, check_named_text, check_text};
pub use object::{ObjectMembers, ObjectOnly, SecretText};
pub use opaque_id::{MessageId, SessionId, TurnId};
pub use organization::{ModelId, Organization, OrganizationPatch, Plan, StripeCustomerId, SubscriptionStatus};
pub use outbound_url::OutboundUrl;
pub use prices::{Price, PriceList, PriceProblem, PriceTable, PricesError};
pub use principal::{Principal, PrincipalKind};
pub use project::{Project, ProjectPatch};
pub use provider_urls::{LocalProviderBaseUrls, ProviderBaseUrls};
pub use release::{
    Build, BuildKind, Flip, NoTransition, NotReady, Release, ReleaseStatus, StatusReport, Version, activation,
};
pub use retry_after::retry_after;
pub use rotation::{Move, RingUse, RotationError};
pub use scope::{Scope, ScopeSet};
#[cfg(any(test, feature = "testing"))]
pub use secret_shape::secret_examples;
pub use secret_shape::{finds_own_secret, finds_secret, redact_shapes};
pub use service::{Power, Service, ServiceTokens, ServiceTokensError};
pub use session::{LastTurn, NewSession, Retention, Session, SessionProject, SessionReach, SessionUsage};
pub use stripe::{SignatureError, StripeSecrets, StripeSecretsError};
pub use subscription::{DroppedSubscriptions, StripeId, Subscription, SubscriptionBefore, SubscriptionStep};
pub use timestamp::Timestamp;
pub use token::{ApiKeyToken, PREFIX_LEN, Prefix, TokenError};
pub use turn::{MessageRole, StopReason, Turn, TurnCaller, TurnStatus, TurnUsage};
pub use turn_error::TurnError;
pub use usage::{MAX_CLOCK_AHEAD, MAX_USAGE_AGE, MonthUsage, Quantity, Reference, Tally, UsageEvent, UsageKind};
pub use webhook::{
    Attempt, Delivery, DeliveryStatus, DisabledReason, EventTypes, FailureStreak, MAX_CLOCK_SKEW, WebhookEndpoint,
    WebhookEndpointPatch, next_attempt,
};
pub use webhook_signature::{Signatures, WebhookSecret};

/// A value that a field cannot hold. Displays the rule: "must be 1 to 100 characters".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(&'static str);

impl Invalid {
    pub const fn new(rule: &'static str) -> Self {
        Self(rule)
    }
}

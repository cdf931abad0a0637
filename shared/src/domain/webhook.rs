use std::{collections::BTreeSet, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Change, Changes, EventType, Id, Invalid, Name, OutboundUrl, Timestamp, Value};

/// Maximum difference between the clocks of two writers.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(2);
const MAX_TYPES: usize = 50;
const ALL: &str = "*";
/// An endpoint is disabled after this number of failures in a row, but not before this time has
/// passed since the first one.
const MAX_FAILURES: u32 = 25;
const MIN_FAILING_TIME: Duration = Duration::from_hours(24);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookEndpoint {
    pub id: Id,
    pub url: OutboundUrl,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<Name>,
    pub event_types: EventTypes,
    /// `None` if deliveries are enabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled_reason: Option<DisabledReason>,
    pub created_at: Timestamp,
    /// Counts changes: a write that depends on a read is conditional on it.
    pub version: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DisabledReason {
    /// The organization disabled it.
    Requested,
    /// The receiver returned 410.
    Gone,
    /// 25 attempts in a row failed, over a day or more.
    Failing,
}

impl DisabledReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Gone => "gone",
            Self::Failing => "failing",
        }
    }
}

/// `None` keeps the current value.
#[derive(Debug, Clone, Default)]
pub struct WebhookEndpointPatch {
    pub url: Option<OutboundUrl>,
    pub description: Option<Option<Name>>,
    pub event_types: Option<EventTypes>,
    pub enabled: Option<bool>,
}

impl WebhookEndpoint {
    pub fn new(id: Id, url: OutboundUrl, description: Option<Name>, event_types: EventTypes, now: Timestamp) -> Self {
        Self { id, url, description, event_types, disabled_reason: None, created_at: now, version: 1 }
    }

    pub const fn is_enabled(&self) -> bool {
        self.disabled_reason.is_none()
    }

    /// Returns whether the endpoint receives an event that occurred at `at`.
    pub fn wants(&self, event_type: EventType, at: Timestamp) -> bool {
        self.is_enabled() && at.plus(MAX_CLOCK_SKEW) >= self.created_at && self.event_types.contain(event_type)
    }

    /// Returns the settings as the audit event of the creation shows them.
    pub fn creation(&self) -> Changes {
        let audited = self.audited().into_iter();
        audited.map(|(field, after)| (field, Change { before: Value::Null, after })).collect()
    }

    /// Returns the settings as the audit event of the deletion shows them.
    pub fn deletion(&self) -> Changes {
        let audited = self.audited().into_iter();
        audited.map(|(field, before)| (field, Change { before, after: Value::Null })).collect()
    }

    /// Returns the changes by field.
    pub fn apply(&mut self, patch: WebhookEndpointPatch) -> Changes {
        let before = self.clone();
        let WebhookEndpointPatch { url, description, event_types, enabled } = patch;
        self.url = url.unwrap_or(self.url.clone());
        self.description = description.unwrap_or(self.description.take());
        self.event_types = event_types.unwrap_or(self.event_types.clone());
        self.disabled_reason = match enabled {
            None => self.disabled_reason,
            Some(true) => None,
            // An endpoint that is already disabled keeps its reason.
            Some(false) => self.disabled_reason.or(Some(DisabledReason::Requested)),
        };
        self.changed_since(&before)
    }

    pub fn disable(&mut self, reason: DisabledReason) -> Changes {
        let before = self.clone();
        self.disabled_reason = Some(reason);
        self.changed_since(&before)
    }

    fn changed_since(&mut self, before: &Self) -> Changes {
        // Another query is another URL, although both look alike in the audit log.
        let moved = before.url != self.url;
        let pairs = before.audited().into_iter().zip(self.audited());
        let changes: Changes = pairs
            .filter(|((field, before), (_, after))| before != after || (moved && field == "url"))
            .map(|((field, before), (_, after))| (field, Change { before, after }))
            .collect();
        if !changes.is_empty() {
            self.version += 1;
        }
        changes
    }

    fn audited(&self) -> [(String, Value); 5] {
        [
            ("url", self.url.without_query().as_str().into()),
            ("description", self.description.as_ref().map(Name::as_str).into()),
            ("event_types", Value::list(self.event_types.iter())),
            ("enabled", self.is_enabled().into()),
            ("disabled_reason", self.disabled_reason.map(DisabledReason::as_str).into()),
        ]
        .map(|(field, value): (&str, Value)| (field.to_owned(), value))
    }
}

/// 1 to 50 event types, or `*` for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Selected>", into = "Vec<String>")]
pub struct EventTypes {
    all: bool,
    named: BTreeSet<EventType>,
}

impl EventTypes {
    pub fn contain(&self, event_type: EventType) -> bool {
        self.all || self.named.contains(&event_type)
    }

    pub fn iter(&self) -> impl Iterator<Item = &'static str> {
        self.all.then_some(ALL).into_iter().chain(self.named.iter().map(|named| named.as_str()))
    }
}

impl TryFrom<Vec<Selected>> for EventTypes {
    type Error = Invalid;

    fn try_from(types: Vec<Selected>) -> Result<Self, Invalid> {
        if types.is_empty() || types.len() > MAX_TYPES {
            return Err(Invalid::new("must contain 1 to 50 event types, or *"));
        }
        let (mut all, mut named) = (false, BTreeSet::new());
        for selected in types {
            match selected {
                Selected::All => all = true,
                Selected::Type(event_type) => drop(named.insert(event_type)),
            }
        }
        Ok(Self { all, named })
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
enum Selected {
    All,
    Type(EventType),
}

impl TryFrom<String> for Selected {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        match EventType::parse(&text) {
            Some(event_type) => Ok(Self::Type(event_type)),
            None if text == ALL => Ok(Self::All),
            None => Err(Invalid::new(KNOWN)),
        }
    }
}

const KNOWN: &str = "must be one of api_key.created, api_key.updated, api_key.rotated, api_key.revoked, api_key.expiring, model_key.created, \
     model_key.revoked, budget.threshold, budget.exhausted, budget.restored, release.created, release.activated, \
     release.rolled_back, webhook_endpoint.disabled, subscription.created, subscription.updated, subscription.deleted, \
     invoice.paid, invoice.payment_failed, ping, or * for all of them";

impl From<EventTypes> for Vec<String> {
    fn from(types: EventTypes) -> Self {
        types.iter().map(ToOwned::to_owned).collect()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureStreak {
    /// Failed attempts in a row.
    #[serde(rename = "failures", default)]
    pub count: u32,
    /// When the first of them failed.
    #[serde(rename = "failing_since", default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

impl FailureStreak {
    #[must_use]
    pub fn with_failure(self, now: Timestamp) -> Self {
        Self { count: self.count.saturating_add(1), since: self.since.or(Some(now)) }
    }

    pub fn should_disable(self, now: Timestamp) -> bool {
        self.count >= MAX_FAILURES && self.since.is_some_and(|since| now.since(since) >= MIN_FAILING_TIME)
    }
}

/// An event for an endpoint. It has the id of the event, so that there is only one of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub id: Id,
    pub event_type: EventType,
    pub event_at: Timestamp,
    pub status: DeliveryStatus,
    /// Oldest first.
    pub attempts: Vec<Attempt>,
    /// Set while the delivery is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// Counts changes: a write that depends on a read is conditional on it.
    pub revision: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    Pending,
    Succeeded,
    /// Failed after the last attempt.
    Failed,
}

impl DeliveryStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for DeliveryStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The result of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    pub at: Timestamp,
    pub response_code: Option<u16>,
    pub latency_ms: u64,
    /// The first KiB of the response body, without text that looks like a secret.
    pub response_body: Option<String>,
    /// Why the attempt failed; `null` if it succeeded.
    pub error: Option<String>,
}

/// Maximum number of earlier attempts that a replayed delivery keeps.
const MAX_OLD_ATTEMPTS: usize = 10;

impl Delivery {
    /// Creates a delivery that is due at once.
    pub fn new(id: Id, event_type: EventType, event_at: Timestamp, now: Timestamp) -> Self {
        let status = DeliveryStatus::Pending;
        Self { id, event_type, event_at, status, attempts: Vec::new(), next_attempt_at: Some(now), revision: 1 }
    }

    /// Makes the delivery due at once, regardless of the last result.
    #[must_use]
    pub fn rescheduled(&self, now: Timestamp) -> Self {
        let old = self.attempts.len().saturating_sub(MAX_OLD_ATTEMPTS);
        Self {
            status: DeliveryStatus::Pending,
            attempts: self.attempts[old..].to_vec(),
            next_attempt_at: Some(now),
            revision: self.revision + 1,
            ..self.clone()
        }
    }
}

/// After each failed attempt. The attempt after the last pause is the last one.
const PAUSES: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(5),
    Duration::from_hours(10),
    Duration::from_hours(14),
    Duration::from_hours(20),
    Duration::from_hours(24),
];
const MAX_REQUESTED_PAUSE: Duration = Duration::from_hours(24);

/// Returns when to try again after a failure at `now`; `None` after the last attempt. `attempts` is
/// the number of attempts before the failed one. `random` changes the pause by up to a tenth. The
/// receiver may request a longer pause, up to a day.
pub fn next_attempt(attempts: u32, requested: Option<Duration>, now: Timestamp, random: u8) -> Option<Timestamp> {
    let pause = PAUSES.get(usize::try_from(attempts).ok()?)?;
    let pause = pause.mul_f64(0.9 + f64::from(random) / 255.0 / 5.0);
    Some(now.plus(pause.max(requested.unwrap_or_default().min(MAX_REQUESTED_PAUSE))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn noon() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn pauses_grow_up_to_a_day_and_end() {
        let seconds =
            |attempts, random| next_attempt(attempts, None, noon(), random).map(|at| at.since(noon()).as_millis());
        assert_eq!([0, 255].map(|random| seconds(0, random)), [Some(4_500), Some(5_500)]);
        assert_eq!([0, 255].map(|random| seconds(8, random)), [Some(77_760_000), Some(95_040_000)]);
        assert_eq!(seconds(9, 0), None);
        assert_eq!(seconds(u32::MAX, 0), None);
    }

    #[test]
    fn receiver_may_request_up_to_a_day() {
        let pause = |attempts, requested| next_attempt(attempts, Some(requested), noon(), 128).unwrap().since(noon());
        assert_eq!(pause(0, Duration::from_mins(2)), Duration::from_mins(2));
        assert_eq!(pause(0, Duration::from_hours(48)), Duration::from_hours(24));
        assert!(pause(3, Duration::from_secs(1)) > Duration::from_hours(1));
        assert_eq!(next_attempt(9, Some(Duration::from_secs(1)), noon(), 0), None);
    }

    #[test]
    fn endpoint_is_disabled_after_a_day_of_failures() {
        let mut failing = FailureStreak::default();
        for minute in 0..25 {
            failing = failing.with_failure(noon().plus(Duration::from_mins(minute)));
        }
        let day = Duration::from_hours(24);
        assert!(!failing.should_disable(noon().plus(Duration::from_millis(24 * 3_600_000 - 1))));
        assert!(failing.should_disable(noon().plus(day)));
        let few = FailureStreak { count: 24, ..failing };
        assert!(!few.should_disable(noon().plus(day * 9)));
    }

    #[test]
    fn event_types_are_known_or_star() {
        let read = |types: serde_json::Value| serde_json::from_value::<EventTypes>(types);
        let some = read(json!(["ping", "api_key.created", "ping"])).unwrap();
        assert!(some.contain(EventType::Ping) && !some.contain(EventType::InvoicePaid));
        assert_eq!(json!(some), json!(["api_key.created", "ping"]));
        let all = read(json!(["*"])).unwrap();
        assert!(all.contain(EventType::InvoicePaid));
        assert_eq!(json!(all), json!(["*"]));
        for wrong in [json!([]), json!(["api_key.*"]), json!(["api_key.created", ""]), json!("ping"), json!([1])] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
        let named = KNOWN.split(&[' ', ',', ':']).filter_map(EventType::parse).collect::<BTreeSet<_>>();
        assert_eq!(named, EventType::ALL.into(), "the message names all of them");
    }

    #[test]
    fn replay_keeps_the_latest_attempts() {
        let attempt = |at| Attempt { at, response_code: Some(500), latency_ms: 1, response_body: None, error: None };
        let mut delivery = Delivery::new(Id::new(1).unwrap(), EventType::Ping, noon(), noon());
        delivery.attempts = (0..13).map(|minute| attempt(noon().plus(Duration::from_mins(minute)))).collect();
        delivery.status = DeliveryStatus::Failed;
        let again = delivery.rescheduled(noon());
        assert_eq!((again.status, again.next_attempt_at), (DeliveryStatus::Pending, Some(noon())));
        assert_eq!((&again.attempts[..], again.revision), (&delivery.attempts[3..], 2));
    }

    proptest! {
        #[test]
        fn endpoint_receives_only_subscribed_events_while_enabled(
            chosen in proptest::collection::btree_set(0..19_usize, 1..19), requested in 0..19_usize, before: bool, enabled: bool,
        ) {
            let types: Vec<_> = chosen.iter().map(|at| EventType::ALL[*at]).map(Selected::Type).collect();
            let url = OutboundUrl::parse("https://hooks.example.com/", crate::domain::Reach::Public).unwrap();
            let mut endpoint = WebhookEndpoint::new(Id::new(1).unwrap(), url, None, types.try_into().unwrap(), noon());
            endpoint.apply(WebhookEndpointPatch { enabled: Some(enabled), ..WebhookEndpointPatch::default() });
            let at = if before { noon().minus(Duration::from_millis(2_001)) } else { noon() };
            let receives = endpoint.wants(EventType::ALL[requested], at);
            prop_assert_eq!(receives, chosen.contains(&requested) && enabled && !before);
        }
    }
}

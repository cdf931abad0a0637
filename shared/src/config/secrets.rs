use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::Mutex, time::timeout};

use super::{ConfigError, optional};
use crate::{
    clock::Clock,
    domain::{
        DataPlanes, Keyring, Kid, LocalDataPlanes, ObjectMembers, RingUse, SecretText, ServiceTokens, StripeSecrets,
        Timestamp,
    },
    fault,
};

/// How long a fetched secret is used before it is fetched again.
const CACHE_TTL: Duration = Duration::from_mins(5);
/// Minimum time between refetches for a key or token that the cache lacks: a flood of forged tokens
/// must not become a flood of fetches.
const REFETCH_INTERVAL: Duration = Duration::from_secs(30);
/// How long a request waits for a refetch while a cached secret exists. Two refetches in a row stay
/// well below the shortest deadline of a route. Without a cached secret the SDK's own timeouts
/// apply.
const REFETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a cached secret is used while it cannot be refetched. After that, requests that need it
/// fail: a removed key must not stay valid because its successor was published incorrectly.
const MAX_STALE_AGE: Duration = Duration::from_hours(1);

/// The key rings. Each is a separate secret, so that a function gets only those that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ring {
    /// Signs session tokens.
    SessionSigning,
    /// Computes the tag in API keys.
    KeyTag,
    /// Signs paging cursors.
    Cursor,
    /// Signs the links of audit logs.
    Audit,
    /// Seals provider keys.
    SealingByok,
    /// Seals webhook secrets.
    SealingWebhooks,
    /// Seals the messages and events of sessions.
    SealingSessions,
}

impl Ring {
    pub const ALL: [Self; 7] = [
        Self::SessionSigning,
        Self::KeyTag,
        Self::Cursor,
        Self::Audit,
        Self::SealingByok,
        Self::SealingWebhooks,
        Self::SealingSessions,
    ];

    /// Returns the secret's name in Secrets Manager (after the stack's prefix) and in the local
    /// store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SessionSigning => "session-signing",
            Self::KeyTag => "key-tag",
            Self::Cursor => "cursor",
            Self::Audit => "audit",
            Self::SealingByok => "sealing-byok",
            Self::SealingWebhooks => "sealing-webhooks",
            Self::SealingSessions => "sealing-sessions",
        }
    }

    /// Returns the environment variable that holds the secret's id.
    const fn variable(self) -> &'static str {
        match self {
            Self::SessionSigning => "KARTA_SECRET_SESSION_SIGNING",
            Self::KeyTag => "KARTA_SECRET_KEY_TAG",
            Self::Cursor => "KARTA_SECRET_CURSOR",
            Self::Audit => "KARTA_SECRET_AUDIT",
            Self::SealingByok => "KARTA_SECRET_SEALING_BYOK",
            Self::SealingWebhooks => "KARTA_SECRET_SEALING_WEBHOOKS",
            Self::SealingSessions => "KARTA_SECRET_SEALING_SESSIONS",
        }
    }
}

/// The secrets of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Secret {
    Ring(Ring),
    /// The tokens that internal routes accept.
    ServiceTokens,
    /// The data planes whose caches Karta invalidates, with their tokens.
    DataPlanes,
    /// The signing secrets of Stripe's events.
    Stripe,
}

impl Secret {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring(ring) => ring.name(),
            Self::ServiceTokens => "service-tokens",
            Self::DataPlanes => "data-planes",
            Self::Stripe => "stripe",
        }
    }

    pub(super) const fn variable(self) -> &'static str {
        match self {
            Self::Ring(ring) => ring.variable(),
            Self::ServiceTokens => "KARTA_SECRET_SERVICE_TOKENS",
            Self::DataPlanes => "KARTA_SECRET_DATA_PLANES",
            Self::Stripe => "KARTA_SECRET_STRIPE",
        }
    }

    /// Returns what the keys of a ring do, if Secrets Manager may rotate the ring. Other rings
    /// cannot be rotated automatically: the lifetime of what their keys made has no known limit.
    /// The contents of sessions are not resealed, so their ring must keep a key until every session
    /// from before its replacement has expired.
    pub const fn rotates_as(self) -> Option<RingUse> {
        match self {
            Self::Ring(Ring::SessionSigning) => Some(RingUse::Signs),
            Self::Ring(Ring::SealingByok | Ring::SealingWebhooks) => Some(RingUse::Seals),
            Self::Ring(Ring::KeyTag | Ring::Cursor | Ring::Audit | Ring::SealingSessions)
            | Self::ServiceTokens
            | Self::DataPlanes
            | Self::Stripe => None,
        }
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        Ring::ALL.map(Self::Ring).into_iter().chain([Self::ServiceTokens, Self::DataPlanes, Self::Stripe])
    }
}

impl From<Ring> for Secret {
    fn from(ring: Ring) -> Self {
        Self::Ring(ring)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(ring) => write!(f, "{} ring", ring.name()),
            Self::ServiceTokens | Self::DataPlanes | Self::Stripe => write!(f, "{} secret", self.name()),
        }
    }
}

/// Why a secret is unavailable. The message names the secret and never includes its content.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SecretError {
    #[error("the {secret} is not configured for this function: set {}", secret.variable())]
    NotConfigured { secret: Secret },
    #[error("the {secret} cannot be fetched: {problem}")]
    Unavailable { secret: Secret, problem: String },
    #[error("the {secret} is malformed: {problem}")]
    Malformed { secret: Secret, problem: String },
    #[error("the token of the data plane {data_plane} is also a service token: give the data plane its own token")]
    Overlap { data_plane: String },
}

pub enum SecretSource {
    /// Secrets Manager, with the ids of the secrets that this function may read.
    Manager { client: aws_sdk_secretsmanager::Client, ids: HashMap<Secret, String> },
    /// Secrets in memory, for local runs. Each text is the JSON that Secrets Manager would return.
    Fixed(HashMap<Secret, SecretString>),
}

impl SecretSource {
    /// Creates a source for the secrets whose ids are in the environment.
    pub fn manager_from_env(client: aws_sdk_secretsmanager::Client) -> Result<Self, ConfigError> {
        Ok(Self::Manager { client, ids: Self::ids_from_env()? })
    }

    /// Reads the ids of the secrets from the environment.
    pub fn ids_from_env() -> Result<HashMap<Secret, String>, ConfigError> {
        let mut ids = HashMap::new();
        for secret in Secret::all() {
            if let Some(id) = optional(secret.variable())? {
                ids.insert(secret, id);
            }
        }
        Ok(ids)
    }

    fn holds(&self, secret: Secret) -> bool {
        match self {
            Self::Manager { ids, .. } => ids.contains_key(&secret),
            Self::Fixed(texts) => texts.contains_key(&secret),
        }
    }

    async fn fetch(&self, secret: Secret) -> Result<SecretString, SecretError> {
        match self {
            Self::Fixed(texts) => texts.get(&secret).cloned().ok_or(SecretError::NotConfigured { secret }),
            Self::Manager { client, ids } => {
                let id = ids.get(&secret).ok_or(SecretError::NotConfigured { secret })?;
                let answer = client
                    .get_secret_value()
                    .secret_id(id)
                    .send()
                    .await
                    .map_err(|error| SecretError::Unavailable { secret, problem: fault::describe(&error) })?;
                let text = answer
                    .secret_string
                    .ok_or_else(|| SecretError::Malformed { secret, problem: "it is not a string".to_owned() })?;
                Ok(SecretString::from(text))
            }
        }
    }
}

/// Parses the text of a ring's secret. The error describes the fault without including the text.
pub fn parse_ring(text: &str) -> Result<Keyring, String> {
    // The message of `serde_json` would include the unexpected value.
    let members: ObjectMembers<SecretText> =
        serde_json::from_str(text).map_err(|_| "it must be a JSON object of strings".to_owned())?;
    Keyring::try_from(members).map_err(|error| error.to_string())
}

/// Serializes a ring as the text of its secret.
pub fn serialize_ring(ring: &Keyring) -> String {
    serde_json::to_string(&ring.expose_members().collect::<BTreeMap<_, _>>()).expect("texts encode")
}

fn parse_service_tokens(text: &str) -> Result<ServiceTokens, String> {
    serde_json::from_str(text).map_err(|error| describe_parse_error(&error))
}

fn parse_data_planes(text: &str) -> Result<DataPlanes, String> {
    serde_json::from_str(text).map_err(|error| describe_parse_error(&error))
}

pub(super) fn parse_local_data_planes(text: &str) -> Result<DataPlanes, String> {
    serde_json::from_str(text).map(|LocalDataPlanes(planes)| planes).map_err(|error| describe_parse_error(&error))
}

fn parse_stripe(text: &str) -> Result<StripeSecrets, String> {
    serde_json::from_str(text).map_err(|error| describe_parse_error(&error))
}

/// Describes a parse error. Messages of data errors are Karta's own and never include a token;
/// those of syntax errors are the parser's and are replaced.
fn describe_parse_error(error: &serde_json::Error) -> String {
    if error.is_data() { error.to_string() } else { "it is not JSON".to_owned() }
}

/// The cache of one secret.
struct CachedSecret<T> {
    secret: Secret,
    parse: fn(&str) -> Result<T, String>,
    on_malformed: OnMalformed,
    last: Mutex<Option<Fetched<T>>>,
}

/// Handling of the cached value when the next one is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnMalformed {
    /// It stays in use, as if the fetch had failed.
    KeepServing,
    /// Requests fail: a removed token must not stay valid because of a typing error.
    Fail,
}

struct Fetched<T> {
    value: Arc<T>,
    at: Timestamp,
    tried_at: Timestamp,
    /// Why the last attempt fetched nothing.
    last_error: Option<SecretError>,
}

impl<T> Fetched<T> {
    fn new(value: T, at: Timestamp) -> Self {
        Self { value: Arc::new(value), at, tried_at: at, last_error: None }
    }

    /// Records a failed attempt. `Malformed` is kept until a well-formed secret is read.
    fn record_failure(&mut self, error: SecretError) {
        if !matches!(self.last_error, Some(SecretError::Malformed { .. })) {
            self.last_error = Some(error);
        }
    }

    fn serving(&self, on_malformed: OnMalformed, now: Timestamp) -> Result<Arc<T>, SecretError> {
        match &self.last_error {
            Some(error @ SecretError::Malformed { .. }) if on_malformed == OnMalformed::Fail => Err(error.clone()),
            Some(error) if now.since(self.at) >= MAX_STALE_AGE => Err(error.clone()),
            Some(_) | None => Ok(Arc::clone(&self.value)),
        }
    }
}

/// The secrets of a function, cached for five minutes.
///
/// While a refetch fails, the cached value is used for up to an hour. Service tokens and Stripe's
/// signing secrets are used only while Secrets Manager is unavailable; a malformed new version of
/// them disables the cached one.
pub struct Secrets {
    source: Arc<SecretSource>,
    clock: Arc<dyn Clock>,
    on_fetch: Option<Arc<dyn Fn(Secret) + Send + Sync>>,
    rings: HashMap<Ring, CachedSecret<Keyring>>,
    service_tokens: CachedSecret<ServiceTokens>,
    data_planes: CachedSecret<DataPlanes>,
    stripe: CachedSecret<StripeSecrets>,
}

impl Secrets {
    pub fn new(source: SecretSource, clock: Arc<dyn Clock>) -> Self {
        Self::from_source(Arc::new(source), clock)
    }

    /// Returns the same secrets with an empty cache. Each fetch calls `on_fetch`.
    #[must_use]
    pub fn with_fetch_observer(&self, on_fetch: impl Fn(Secret) + Send + Sync + 'static) -> Self {
        Self {
            on_fetch: Some(Arc::new(on_fetch)),
            ..Self::from_source(Arc::clone(&self.source), Arc::clone(&self.clock))
        }
    }

    fn from_source(source: Arc<SecretSource>, clock: Arc<dyn Clock>) -> Self {
        let ring = |ring: Ring| {
            (
                ring,
                CachedSecret {
                    secret: ring.into(),
                    parse: parse_ring,
                    on_malformed: OnMalformed::KeepServing,
                    last: Mutex::default(),
                },
            )
        };
        let service_tokens = CachedSecret {
            secret: Secret::ServiceTokens,
            parse: parse_service_tokens,
            on_malformed: OnMalformed::Fail,
            last: Mutex::default(),
        };
        let parse = match *source {
            SecretSource::Manager { .. } => parse_data_planes,
            SecretSource::Fixed(_) => parse_local_data_planes,
        };
        let data_planes = CachedSecret {
            secret: Secret::DataPlanes,
            parse,
            on_malformed: OnMalformed::KeepServing,
            last: Mutex::default(),
        };
        let stripe = CachedSecret {
            secret: Secret::Stripe,
            parse: parse_stripe,
            on_malformed: OnMalformed::Fail,
            last: Mutex::default(),
        };
        Self { source, clock, on_fetch: None, rings: Ring::ALL.map(ring).into(), service_tokens, data_planes, stripe }
    }

    /// Fails if one of these secrets is not configured.
    pub fn require(&self, needed: &[Secret]) -> Result<(), SecretError> {
        match needed.iter().find(|secret| !self.source.holds(**secret)) {
            Some(secret) => Err(SecretError::NotConfigured { secret: *secret }),
            None => Ok(()),
        }
    }

    /// Fetches every configured secret, so that a missing or malformed one fails at startup and not
    /// on the first request. Also fails if a data plane's token is a service token.
    pub async fn warm_up(&self) -> Result<(), SecretError> {
        for secret in Secret::all().filter(|secret| self.source.holds(*secret)) {
            match secret {
                Secret::Ring(ring) => drop(self.ring(ring).await?),
                Secret::ServiceTokens => drop(self.service_tokens().await?),
                Secret::DataPlanes => drop(self.data_planes().await?),
                Secret::Stripe => drop(self.stripe().await?),
            }
        }
        if self.source.holds(Secret::DataPlanes) && self.source.holds(Secret::ServiceTokens) {
            let (planes, tokens) = (self.data_planes().await?, self.service_tokens().await?);
            if let Some(plane) = planes.overlapping(&tokens) {
                return Err(SecretError::Overlap { data_plane: plane.name().to_owned() });
            }
        }
        Ok(())
    }

    pub async fn ring(&self, ring: Ring) -> Result<Arc<Keyring>, SecretError> {
        self.cached(&self.rings[&ring]).await
    }

    /// Refetches the ring at most once in 30 s, because the cached ring lacks a key. Fails while the
    /// refetch fails: the cached ring may be out of date, so a missing key proves nothing.
    pub async fn ring_refetched(&self, ring: Ring) -> Result<Arc<Keyring>, SecretError> {
        self.refetched(&self.rings[&ring]).await
    }

    /// Returns a ring that holds the key `kid`: the cached ring, or else
    /// [`ring_refetched`](Self::ring_refetched), which may lack it too.
    pub async fn ring_with(&self, ring: Ring, kid: &Kid) -> Result<Arc<Keyring>, SecretError> {
        let cached = self.ring(ring).await?;
        if cached.get(kid.as_str()).is_some() { Ok(cached) } else { self.ring_refetched(ring).await }
    }

    pub async fn service_tokens(&self) -> Result<Arc<ServiceTokens>, SecretError> {
        self.cached(&self.service_tokens).await
    }

    /// Refetches the tokens, because the presented token is not cached; see
    /// [`ring_refetched`](Self::ring_refetched).
    pub async fn service_tokens_refetched(&self) -> Result<Arc<ServiceTokens>, SecretError> {
        self.refetched(&self.service_tokens).await
    }

    pub async fn data_planes(&self) -> Result<Arc<DataPlanes>, SecretError> {
        self.cached(&self.data_planes).await
    }

    pub async fn stripe(&self) -> Result<Arc<StripeSecrets>, SecretError> {
        self.cached(&self.stripe).await
    }

    /// Refetches the signing secrets, because the cached ones do not verify the signature; see
    /// [`ring_refetched`](Self::ring_refetched).
    pub async fn stripe_refetched(&self) -> Result<Arc<StripeSecrets>, SecretError> {
        self.refetched(&self.stripe).await
    }

    async fn cached<T>(&self, cached: &CachedSecret<T>) -> Result<Arc<T>, SecretError> {
        let mut last = cached.last.lock().await;
        let now = self.clock.now();
        self.refresh(cached, &mut last, CACHE_TTL, now).await?.serving(cached.on_malformed, now)
    }

    async fn refetched<T>(&self, cached: &CachedSecret<T>) -> Result<Arc<T>, SecretError> {
        let mut last = cached.last.lock().await;
        let now = self.clock.now();
        let fetched = self.refresh(cached, &mut last, REFETCH_INTERVAL, now).await?;
        fetched.last_error.clone().map_or_else(|| Ok(Arc::clone(&fetched.value)), Err)
    }

    /// Returns the value that was fetched last. Refetches first if the last attempt is older than
    /// `age`, or older than 30 s if no value is usable. The caller holds the cache's lock, so that
    /// concurrent callers share one fetch.
    async fn refresh<'a, T>(
        &self,
        cached: &CachedSecret<T>,
        last: &'a mut Option<Fetched<T>>,
        age: Duration,
        now: Timestamp,
    ) -> Result<&'a Fetched<T>, SecretError> {
        let Some(fetched) = last else {
            return Ok(last.insert(Fetched::new(self.fetch(cached).await?, now)));
        };
        let age = if fetched.serving(cached.on_malformed, now).is_ok() { age } else { REFETCH_INTERVAL };
        if now.since(fetched.tried_at) >= age {
            let secret = cached.secret;
            let timed_out =
                || SecretError::Unavailable { secret, problem: format!("no response within {REFETCH_TIMEOUT:?}") };
            // Recorded before the fetch: a fetch that is dropped with its request counts as an
            // attempt too.
            fetched.tried_at = now;
            fetched.record_failure(timed_out());
            match timeout(REFETCH_TIMEOUT, self.fetch(cached)).await.unwrap_or_else(|_| Err(timed_out())) {
                Ok(value) => *fetched = Fetched::new(value, now),
                Err(error) => {
                    tracing::error!(secret = secret.name(), fault = %error, "secret refetch failed");
                    fetched.record_failure(error);
                }
            }
        }
        Ok(fetched)
    }

    async fn fetch<T>(&self, cached: &CachedSecret<T>) -> Result<T, SecretError> {
        if let Some(on_fetch) = &self.on_fetch {
            on_fetch(cached.secret);
        }
        let text = self.source.fetch(cached.secret).await?;
        (cached.parse)(text.expose_secret())
            .map_err(|problem| SecretError::Malformed { secret: cached.secret, problem })
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held: Vec<_> = Secret::all().filter(|secret| self.source.holds(*secret)).map(Secret::name).collect();
        f.debug_struct("Secrets").field("held", &held).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex as StdMutex,
        atomic::{AtomicUsize, Ordering},
    };

    use aws_smithy_runtime_api::client::{
        http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
        orchestrator::{HttpRequest, HttpResponse},
        runtime_components::RuntimeComponents,
    };
    use aws_smithy_types::body::SdkBody;

    use super::*;
    use crate::clock::ManualClock;

    fn secrets(secret: Secret, text: &str) -> Secrets {
        let clock = ManualClock::at("2026-11-21T00:00:00Z".parse().unwrap());
        Secrets::new(SecretSource::Fixed(HashMap::from([(secret, text.to_owned().into())])), Arc::new(clock))
    }

    #[tokio::test]
    async fn malformed_ring_is_named_but_not_shown() {
        let secret = "s3cret".repeat(6);
        for text in [
            format!(r#"{{"current":"k2","k1":"{secret}"}}"#),
            format!(r#"{{"k1":"{secret}"}}"#),
            format!(r#""{secret}""#),
            format!(r#"{{"current":"k1","k1":["{secret}"]}}"#),
            r#"{"current":"k1","k1":"s3cret"}"#.to_owned(),
        ] {
            let error = secrets(Ring::Cursor.into(), &text).warm_up().await.unwrap_err().to_string();
            assert!(error.starts_with("the cursor ring is malformed"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[tokio::test]
    async fn missing_ring_is_named_in_the_error() {
        let error = secrets(Ring::Cursor.into(), "{}").ring(Ring::KeyTag).await.unwrap_err().to_string();
        assert_eq!(error, "the key-tag ring is not configured for this function: set KARTA_SECRET_KEY_TAG");
    }

    #[test]
    fn required_secret_must_be_configured() {
        let held = secrets(Ring::Cursor.into(), "{}");
        held.require(&[]).unwrap();
        held.require(&[Ring::Cursor.into()]).unwrap();
        let error = held.require(&[Ring::Cursor.into(), Secret::Stripe]).unwrap_err().to_string();
        assert_eq!(error, "the stripe secret is not configured for this function: set KARTA_SECRET_STRIPE");
    }

    #[tokio::test]
    async fn malformed_service_tokens_are_named_but_not_shown() {
        let secret = "s3cret".repeat(6);
        for text in [
            secret.clone(),
            format!("{{\"powers\":{{}},\"ops\":\"{secret}"),
            format!("{secret:?}"),
            format!(r#"{{"powers":{{"ops":["{secret}"]}},"ops":"{secret}"}}"#),
            r#"{"powers":{"ops":["usage"]},"ops":"s3cret"}"#.to_owned(),
        ] {
            let error = secrets(Secret::ServiceTokens, &text).warm_up().await.unwrap_err().to_string();
            assert!(error.starts_with("the service-tokens secret is malformed: "), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[tokio::test]
    async fn malformed_data_planes_are_named_but_not_shown() {
        for text in [
            "s3cret".repeat(6),
            r#"{"eu":{"url":"https://eu.example.com","token":"s3cret"}}"#.to_owned(),
            format!(r#"{{"eu":{{"url":"{0}","token":"{0}"}}}}"#, "s3cret".repeat(6)),
        ] {
            let error = secrets(Secret::DataPlanes, &text).warm_up().await.unwrap_err().to_string();
            assert!(error.starts_with("the data-planes secret is malformed: "), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    /// Returns the problem of a configuration text.
    type Reader = fn(&str) -> Option<String>;
    const RING: Reader = |text| parse_ring(text).err();
    const TOKENS: Reader = |text| parse_service_tokens(text).err();
    const PLANES: Reader = |text| parse_data_planes(text).err();
    const LOCAL_PLANES: Reader = |text| parse_local_data_planes(text).err();
    const STRIPE: Reader = |text| parse_stripe(text).err();
    const PRICES: Reader = |text| crate::config::prices::parse(text).err().map(|error| error.to_string());
    const A: &str = "s3cret-a-0123456789abcdef0123456";
    const B: &str = "s3cret-b-0123456789abcdef0123456";

    /// Returns the members of a data plane.
    fn plane(token: &str) -> String {
        format!(r#""url":"https://eu.example.com","token":"{token}""#)
    }

    #[test]
    fn every_reader_accepts_an_object_only() {
        let plane = plane(A);
        let accepted = [
            (RING, format!(r#"{{"current":"k1","k1":"{A}","k2":"{B}"}}"#)),
            (TOKENS, format!(r#"{{"powers":{{"ops":["usage"],"eu":["byok"]}},"ops":"{A}","eu":"{B}"}}"#)),
            (PLANES, format!(r#"{{"eu":{{{plane}}}}}"#)),
            (LOCAL_PLANES, format!(r#"{{"eu":{{{plane}}}}}"#)),
            (STRIPE, format!(r#"{{"livemode":true,"signing_secrets":["whsec_{A}"]}}"#)),
            (PRICES, r#"{"a":{"input":1,"output":2},"b":{"input":1,"output":2}}"#.to_owned()),
        ];
        for (read, text) in &accepted {
            assert_eq!(read(text), None, "{text}");
            for text in ["[]", "1", "null", "true", r#""s3cret""#, &format!("[{text}]")] {
                assert!(read(text).is_some_and(|problem| !problem.contains("s3cret")), "{text}");
            }
        }
    }

    #[test]
    fn every_reader_refuses_repeated_names() {
        let (plane, whsec) = (plane(A), format!(r#""signing_secrets":["whsec_{A}"]"#));
        for (read, text, problem) in [
            (RING, format!(r#"["k1","{A}"]"#), "it must be a JSON object of strings"),
            (RING, r#"{"current":"k1","k1":1}"#.to_owned(), "it must be a JSON object of strings"),
            (RING, format!(r#"{{"current":"k1","k1":"{A}","k1":"{B}"}}"#), "the ring has more than one member k1"),
            (
                RING,
                format!(r#"{{"current":"k1","k1":"{A}","current":"k1"}}"#),
                "the ring has more than one member current",
            ),
            (RING, format!(r#"{{"current":"k1","{A}":"k1","{A}":"k1"}}"#), "invalid kid (32 bytes)"),
            (TOKENS, format!(r#"[{{"ops":["usage"]}},"{A}"]"#), "it must be a JSON object of tokens"),
            (TOKENS, r#"{"powers":{"ops":["usage"]},"ops":1}"#.to_owned(), "it must be a JSON object of tokens"),
            (TOKENS, format!(r#"{{"powers":["ops"],"ops":"{A}"}}"#), "it must be a JSON object of tokens"),
            (
                TOKENS,
                format!(r#"{{"powers":{{"ops":["usage"]}},"ops":"{A}","ops":"{B}"}}"#),
                "more than one token has the name ops",
            ),
            (
                TOKENS,
                format!(r#"{{"powers":{{"ops":["usage"],"ops":["byok"]}},"ops":"{A}"}}"#),
                r#""powers" names ops more than once"#,
            ),
            (
                TOKENS,
                format!(r#"{{"powers":{{"ops":["usage"]}},"powers":{{}},"ops":"{A}"}}"#),
                "it must be a JSON object of tokens",
            ),
            (TOKENS, format!(r#"{{"powers":{{}},"{A}":"ops","{A}":"ops"}}"#), "invalid name (32 bytes)"),
            (PLANES, format!("[{{{plane}}}]"), "it must be a JSON object of data planes by name"),
            (PLANES, format!(r#"{{"eu":["https://eu.example.com","{A}"]}}"#), "the data plane eu must be an object"),
            (PLANES, format!(r#"{{"eu":{{{plane}}},"eu":{{{plane}}}}}"#), "more than one data plane has the name eu"),
            (
                LOCAL_PLANES,
                format!(r#"{{"eu":{{{plane}}},"eu":{{{plane}}}}}"#),
                "more than one data plane has the name eu",
            ),
            (PLANES, format!(r#"{{"{A}":{{}},"{A}":{{}}}}"#), "invalid name (32 bytes)"),
            (PLANES, format!(r#"{{"eu":{{{plane},"token":"{B}"}}}}"#), "token of the data plane eu must be given once"),
            (
                PLANES,
                format!(r#"{{"eu":{{{plane},"{A}":1,"{A}":1}}}}"#),
                "the data plane eu has a field other than url and token",
            ),
            (STRIPE, format!(r#"[true,["whsec_{A}"]]"#), "it must be {} or a JSON object"),
            (STRIPE, format!(r#"{{"livemode":1,{whsec}}}"#), "it must be {} or a JSON object"),
            (STRIPE, format!(r#"{{"livemode":true,{whsec},{whsec}}}"#), "it must be {} or a JSON object"),
            (STRIPE, format!(r#"{{"livemode":true,"livemode":true,{whsec}}}"#), "it must be {} or a JSON object"),
            (PRICES, r#"[["a",{"input":1,"output":2}]]"#.to_owned(), "is not a JSON object of prices"),
            (PRICES, r#"{"a":[1,2]}"#.to_owned(), "has an invalid entry a: its price must be an object"),
            (PRICES, r#"{"a":{"input":"1","output":2}}"#.to_owned(), "has an invalid entry a: input must be"),
            (
                PRICES,
                r#"{"a":{"input":1,"input":1,"output":2}}"#.to_owned(),
                "has an invalid entry a: each member must",
            ),
            (
                PRICES,
                r#"{"a":{"input":1,"output":2},"a":{"input":1,"output":2}}"#.to_owned(),
                "has more than one price for a",
            ),
        ] {
            let refusal = read(&text).unwrap_or_else(|| panic!("accepted: {text}"));
            assert!(refusal.starts_with(problem), "{text}: {refusal}");
            assert!(!refusal.contains("s3cret"), "{text}: {refusal}");
        }
    }

    #[tokio::test]
    async fn data_plane_token_must_not_be_service_token() {
        let token = "s3cret".repeat(6);
        let planes = format!(r#"{{"eu":{{"url":"https://eu.example.com","token":"{token}"}}}}"#);
        let tokens = format!(r#"{{"powers":{{"ops":["usage"]}},"ops":"{token}"}}"#);
        let texts = HashMap::from([(Secret::DataPlanes, planes.into()), (Secret::ServiceTokens, tokens.into())]);
        let secrets = Secrets::new(SecretSource::Fixed(texts), Arc::new(crate::clock::SystemClock));
        let error = secrets.warm_up().await.unwrap_err().to_string();
        let expected = "the token of the data plane eu is also a service token: give the data plane its own token";
        assert_eq!(error, expected);
    }

    #[test]
    fn plain_http_is_for_local_runs_only() {
        let text = format!(r#"{{"eu":{{"url":"http://127.0.0.1:1","token":"{}"}}}}"#, "s3cret".repeat(6));
        assert!(parse_local_data_planes(&text).is_ok());
        assert!(parse_data_planes(&text).unwrap_err().starts_with("url of the data plane eu must start with https://"));
    }

    /// A fake Secrets Manager. It answers with these bodies, one after the other, and then never
    /// again.
    #[derive(Debug, Clone)]
    struct Canned(Arc<StdMutex<Vec<String>>>);

    impl HttpConnector for Canned {
        fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
            match self.0.lock().unwrap().pop() {
                Some(body) => {
                    let answer = HttpResponse::try_from(http::Response::new(SdkBody::from(body))).unwrap();
                    HttpConnectorFuture::ready(Ok(answer))
                }
                None => HttpConnectorFuture::new(std::future::pending()),
            }
        }
    }

    impl HttpClient for Canned {
        fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
            SharedHttpConnector::new(self.clone())
        }
    }

    /// Secrets from a fake Secrets Manager that answers in this order.
    fn managed(bodies: &[&str], secrets: &[Secret], clock: Arc<dyn Clock>) -> Secrets {
        let bodies = bodies.iter().rev().map(ToString::to_string).collect();
        let config = aws_sdk_secretsmanager::Config::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .region(aws_config::Region::from_static("us-east-1"))
            .credentials_provider(aws_sdk_dynamodb::config::Credentials::new("a", "b", None, None, "test"))
            .http_client(Canned(Arc::new(StdMutex::new(bodies))))
            .build();
        let client = aws_sdk_secretsmanager::Client::from_conf(config);
        let ids = secrets.iter().map(|secret| (*secret, secret.name().to_owned())).collect();
        Secrets::new(SecretSource::Manager { client, ids }, clock)
    }

    /// Upper bound of a wait, which turns a hang into a failure.
    const PATIENCE: Duration = Duration::from_mins(1);

    /// Returns the same secrets with an empty cache, and a counter of fetches.
    fn counting(secrets: &Secrets) -> (Secrets, Arc<AtomicUsize>) {
        let fetched = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&fetched);
        (secrets.with_fetch_observer(move |_| _ = counter.fetch_add(1, Ordering::SeqCst)), fetched)
    }

    fn noon() -> Arc<ManualClock> {
        Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()))
    }

    fn fixed(secret: Secret, text: &str) -> SecretSource {
        SecretSource::Fixed(HashMap::from([(secret, text.to_owned().into())]))
    }

    fn ring_json(kid: &str) -> String {
        serde_json::json!({ "current": kid, kid: kid.repeat(32) }).to_string()
    }

    /// A set of tokens that may all provision. Each token is its name repeated 32 times.
    fn tokens_json(names: &[&str]) -> serde_json::Value {
        let mut tokens = serde_json::json!({ "powers": {} });
        for name in names {
            tokens["powers"][name] = serde_json::json!(["provision"]);
            tokens[name] = name.repeat(32).into();
        }
        tokens
    }

    fn answer(secret: &str) -> String {
        serde_json::json!({ "SecretString": secret }).to_string()
    }

    #[tokio::test]
    async fn unreadable_response_is_not_shown() {
        let ring = r#"{"SecretString":"{\"current\":\"k1\",\"k1\":\"s3cret\"}","CreatedDate":"not a number"}"#;
        let secrets = managed(&[ring], &[Ring::Cursor.into()], noon());
        let error = secrets.warm_up().await.unwrap_err();
        assert_eq!(error.to_string(), "the cursor ring cannot be fetched: unreadable response");
        assert!(!format!("{error:?}").contains("s3cret"));
    }

    #[tokio::test]
    async fn stale_ring_serves_for_an_hour() {
        let clock = noon();
        let mut secrets =
            Secrets::new(fixed(Ring::Cursor.into(), &ring_json("k1")), Arc::clone(&clock) as Arc<dyn Clock>);
        secrets.warm_up().await.unwrap();
        secrets.source = fixed(Ring::Cursor.into(), "malformed").into();
        clock.advance(Duration::from_mins(59));
        assert!(secrets.ring(Ring::Cursor).await.is_ok());
        clock.advance(Duration::from_secs(59));
        assert!(secrets.ring(Ring::Cursor).await.is_ok());
        clock.advance(Duration::from_secs(1));
        assert!(secrets.ring(Ring::Cursor).await.is_err());
        secrets.source = fixed(Ring::Cursor.into(), &ring_json("k2")).into();
        clock.advance(REFETCH_INTERVAL);
        assert!(secrets.ring(Ring::Cursor).await.is_ok(), "without a usable ring, a fetch is tried every 30 s");
    }

    #[tokio::test]
    async fn cached_secrets_serve_while_secrets_manager_hangs() {
        let (ring, tokens) = (answer(&ring_json("k1")), answer(&tokens_json(&["a"]).to_string()));
        let clock = noon();
        let held = [Ring::KeyTag.into(), Secret::ServiceTokens];
        let secrets = managed(&[&ring, &tokens], &held, Arc::clone(&clock) as Arc<dyn Clock>);
        let (secrets, fetched) = counting(&secrets);
        secrets.warm_up().await.unwrap();
        let at_start = fetched.load(Ordering::SeqCst);
        clock.advance(CACHE_TTL);
        let both = async { (secrets.service_tokens().await, secrets.ring(Ring::KeyTag).await) };
        let (tokens, ring) = timeout(PATIENCE, both).await.unwrap();
        assert!(tokens.is_ok() && ring.is_ok());
        assert!(REFETCH_TIMEOUT * 2 < super::super::DEADLINE, "two hanging fetches leave time for a response");
        assert_eq!(fetched.load(Ordering::SeqCst), at_start + 2);
        clock.advance(Duration::from_secs(299));
        assert!(secrets.service_tokens().await.is_ok());
        assert_eq!(fetched.load(Ordering::SeqCst), at_start + 2, "the failed attempt counts for five minutes");
    }

    #[tokio::test]
    async fn dropped_fetch_counts_as_an_attempt() {
        let clock = noon();
        let ring = answer(&ring_json("k1"));
        let secrets = managed(&[&ring], &[Ring::KeyTag.into()], Arc::clone(&clock) as Arc<dyn Clock>);
        let (secrets, fetched) = counting(&secrets);
        secrets.warm_up().await.unwrap();
        let at_start = fetched.load(Ordering::SeqCst);
        clock.advance(CACHE_TTL);
        let dropped = secrets.ring(Ring::KeyTag);
        tokio::select! {
            biased;
            () = async { while fetched.load(Ordering::SeqCst) == at_start { tokio::task::yield_now().await } } => {}
            _ = dropped => panic!("the fetch completed"),
        }
        assert!(secrets.ring(Ring::KeyTag).await.is_ok());
        assert!(secrets.ring_refetched(Ring::KeyTag).await.is_err());
        assert_eq!(fetched.load(Ordering::SeqCst), at_start + 1, "it counts as an attempt");
    }

    #[tokio::test]
    async fn malformed_token_set_disables_cached_tokens() {
        let clock = noon();
        let source = |text: &serde_json::Value| fixed(Secret::ServiceTokens, &text.to_string());
        let mut malformed = tokens_json(&["a", "b"]);
        malformed.as_object_mut().unwrap().remove("a");
        let mut secrets = Secrets::new(source(&tokens_json(&["a", "b"])), Arc::clone(&clock) as Arc<dyn Clock>);
        secrets.warm_up().await.unwrap();
        secrets.source = source(&malformed).into();
        clock.advance(CACHE_TTL);
        assert!(matches!(secrets.service_tokens().await, Err(SecretError::Malformed { .. })));
        // It stays invalid while Secrets Manager is unavailable.
        secrets.source = SecretSource::Fixed(HashMap::new()).into();
        clock.advance(CACHE_TTL);
        assert!(secrets.service_tokens().await.is_err());
        secrets.source = source(&tokens_json(&["b"])).into();
        assert!(secrets.service_tokens().await.is_err(), "at most one fetch in 30 s");
        clock.advance(REFETCH_INTERVAL);
        let repaired = secrets.service_tokens().await.unwrap();
        assert!(repaired.find(&"a".repeat(32)).is_none() && repaired.find(&"b".repeat(32)).is_some());
    }

    #[tokio::test]
    async fn tokens_serve_while_secrets_manager_is_unavailable() {
        let clock = noon();
        let source = fixed(Secret::ServiceTokens, &tokens_json(&["a"]).to_string());
        let mut secrets = Secrets::new(source, Arc::clone(&clock) as Arc<dyn Clock>);
        secrets.warm_up().await.unwrap();
        secrets.source = SecretSource::Fixed(HashMap::new()).into();
        clock.advance(Duration::from_mins(59));
        assert!(secrets.service_tokens().await.is_ok());
        assert!(
            secrets.service_tokens_refetched().await.is_err(),
            "the cached set proves nothing about a token that it lacks"
        );
        clock.advance(Duration::from_mins(1));
        assert!(secrets.service_tokens().await.is_err());
    }

    #[tokio::test]
    async fn malformed_stripe_secrets_are_not_served() {
        let clock = noon();
        let source = |text: &str| fixed(Secret::Stripe, text);
        let good = r#"{"livemode":true,"signing_secrets":["whsec_0123456789abcdef"]}"#;
        let mut secrets = Secrets::new(source("{}"), Arc::clone(&clock) as Arc<dyn Clock>);
        secrets.warm_up().await.unwrap();
        assert!(secrets.stripe().await.unwrap().is_empty());
        secrets.source = source(good).into();
        clock.advance(REFETCH_INTERVAL);
        assert!(!secrets.stripe_refetched().await.unwrap().is_empty());
        secrets.source = source(&good.replace("true", "\"whsec_0123456789abcdef\"")).into();
        clock.advance(CACHE_TTL);
        let error = secrets.stripe().await.unwrap_err().to_string();
        assert!(error.starts_with("the stripe secret is malformed: it must be") && !error.contains("0123"), "{error}");
    }

    #[tokio::test]
    async fn ring_is_refetched_once_in_thirty_seconds() {
        let clock = noon();
        let mut secrets =
            Secrets::new(fixed(Ring::KeyTag.into(), &ring_json("k1")), Arc::clone(&clock) as Arc<dyn Clock>);
        secrets.warm_up().await.unwrap();
        secrets.source = fixed(Ring::KeyTag.into(), &ring_json("k2")).into();
        let kid = async || secrets.ring_refetched(Ring::KeyTag).await.unwrap().current().0.to_string();
        clock.advance(Duration::from_secs(29));
        assert_eq!(kid().await, "k1");
        clock.advance(Duration::from_secs(1));
        assert_eq!(kid().await, "k2");
    }
}

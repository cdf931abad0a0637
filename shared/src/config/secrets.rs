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
    domain::{DataPlanes, Keyring, LocalDataPlanes, RingUse, ServiceTokens, StripeSecrets, Timestamp},
    fault,
};

/// How long a fetched ring serves before it is fetched again.
const KEPT_FOR: Duration = Duration::from_mins(5);
/// How often what is not at hand may cause a fetch: a flood of forged tokens must not become one of requests.
const REFETCH_EVERY: Duration = Duration::from_secs(30);
/// How long a request waits for a fetch while there is something at hand: two in a row stay well below the shortest route's deadline. With
/// nothing at hand the SDK's own deadlines hold.
const REFETCH_WITHIN: Duration = Duration::from_secs(1);

/// How long a secret serves while it cannot be fetched again. After that whoever needs it fails: a key that was dropped must not
/// live on because its successor was published wrongly.
const SERVES_AT_MOST: Duration = Duration::from_hours(1);

/// What the rings are for. One secret each, so that every function can be given just those it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ring {
    /// Signs session tokens.
    SessionSigning,
    /// Tags API keys as minted here.
    KeyTag,
    /// Signs paging cursors.
    Cursor,
    /// Signs the links of audit logs.
    Audit,
    /// Seals provider keys.
    SealingByok,
    /// Seals what webhooks are signed with.
    SealingWebhooks,
}

impl Ring {
    pub const ALL: [Self; 6] =
        [Self::SessionSigning, Self::KeyTag, Self::Cursor, Self::Audit, Self::SealingByok, Self::SealingWebhooks];

    /// The secret's name in Secrets Manager (behind the stack's own prefix) and in the local store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SessionSigning => "session-signing",
            Self::KeyTag => "key-tag",
            Self::Cursor => "cursor",
            Self::Audit => "audit",
            Self::SealingByok => "sealing-byok",
            Self::SealingWebhooks => "sealing-webhooks",
        }
    }

    /// The variable that names the secret's id.
    const fn variable(self) -> &'static str {
        match self {
            Self::SessionSigning => "KARTA_SECRET_SESSION_SIGNING",
            Self::KeyTag => "KARTA_SECRET_KEY_TAG",
            Self::Cursor => "KARTA_SECRET_CURSOR",
            Self::Audit => "KARTA_SECRET_AUDIT",
            Self::SealingByok => "KARTA_SECRET_SEALING_BYOK",
            Self::SealingWebhooks => "KARTA_SECRET_SEALING_WEBHOOKS",
        }
    }
}

/// Everything that is kept as a secret of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Secret {
    Ring(Ring),
    /// Opens the internal routes.
    ServiceTokens,
    /// Whom to tell that caches are out of date, and with which tokens.
    DataPlanes,
    /// What Stripe signs its events with.
    Stripe,
}

impl Secret {
    /// The secret's name in Secrets Manager (behind the stack's own prefix) and in the local store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring(ring) => ring.name(),
            Self::ServiceTokens => "service-tokens",
            Self::DataPlanes => "data-planes",
            Self::Stripe => "stripe",
        }
    }

    /// The variable that names the secret's id.
    const fn variable(self) -> &'static str {
        match self {
            Self::Ring(ring) => ring.variable(),
            Self::ServiceTokens => "KARTA_SECRET_SERVICE_TOKENS",
            Self::DataPlanes => "KARTA_SECRET_DATA_PLANES",
            Self::Stripe => "KARTA_SECRET_STRIPE",
        }
    }

    /// What its keys do, if it is a ring that Secrets Manager may have rotated. What others were made with has no end that is known.
    pub const fn rotates_as(self) -> Option<RingUse> {
        match self {
            Self::Ring(Ring::SessionSigning) => Some(RingUse::Signs),
            Self::Ring(Ring::SealingByok | Ring::SealingWebhooks) => Some(RingUse::Seals),
            Self::Ring(Ring::KeyTag | Ring::Cursor | Ring::Audit)
            | Self::ServiceTokens
            | Self::DataPlanes
            | Self::Stripe => None,
        }
    }

    fn all() -> impl Iterator<Item = Self> {
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

/// Why a secret is not to be had. Names it, never its content.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SecretError {
    #[error("the {secret} is not configured for this function: set {}", secret.variable())]
    NotConfigured { secret: Secret },
    #[error("the {secret} cannot be fetched: {problem}")]
    Unavailable { secret: Secret, problem: String },
    #[error("the {secret} is malformed: {problem}")]
    Malformed { secret: Secret, problem: String },
    #[error("the token of the data plane {data_plane} is a service token too: give the data plane one of its own")]
    Overlap { data_plane: String },
}

/// Where secrets come from.
pub enum SecretSource {
    /// Secrets Manager: the ids of the secrets that this function may read.
    Manager { client: aws_sdk_secretsmanager::Client, ids: HashMap<Secret, String> },
    /// Secrets at hand, as a local run holds them: each the JSON that Secrets Manager would answer.
    Fixed(HashMap<Secret, SecretString>),
}

impl SecretSource {
    /// The secrets that the environment names.
    pub fn manager_from_env(client: aws_sdk_secretsmanager::Client) -> Result<Self, ConfigError> {
        Ok(Self::Manager { client, ids: Self::ids_from_env()? })
    }

    /// Their ids.
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

/// Reads a ring as its secret holds it; says what is wrong without showing it.
pub fn read_ring(text: &str) -> Result<Keyring, String> {
    // serde_json's own message would repeat the value that it did not expect.
    let entries: BTreeMap<String, String> =
        serde_json::from_str(text).map_err(|_| "it must be a JSON object of strings".to_owned())?;
    Keyring::try_from(entries).map_err(|error| error.to_string())
}

/// The text of a ring's secret.
pub fn write_ring(ring: &Keyring) -> String {
    serde_json::to_string(&ring.expose_members().collect::<BTreeMap<_, _>>()).expect("texts encode")
}

fn parse_service_tokens(text: &str) -> Result<ServiceTokens, String> {
    serde_json::from_str(text).map_err(|error| unread(&error))
}

fn parse_data_planes(text: &str) -> Result<DataPlanes, String> {
    serde_json::from_str(text).map_err(|error| unread(&error))
}

pub(super) fn parse_local_data_planes(text: &str) -> Result<DataPlanes, String> {
    serde_json::from_str(text).map(|LocalDataPlanes(planes)| planes).map_err(|error| unread(&error))
}

fn parse_stripe(text: &str) -> Result<StripeSecrets, String> {
    serde_json::from_str(text).map_err(|error| unread(&error))
}

/// A data error is our own sentence, which never shows a token; a syntax error is the parser's.
fn unread(error: &serde_json::Error) -> String {
    if error.is_data() { error.to_string() } else { "it is not JSON".to_owned() }
}

/// One secret as it was read last.
struct CachedSecret<T> {
    secret: Secret,
    parse: fn(&str) -> Result<T, String>,
    slip: Slip,
    kept: Mutex<Option<Fetched<T>>>,
}

/// What becomes of the last good one where the next one is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slip {
    /// It goes on serving, as while a fetch fails.
    Forgiven,
    /// It is dropped: what was to be taken out must not live on because of a slip of the pen.
    Refused,
}

struct Fetched<T> {
    value: Arc<T>,
    at: Timestamp,
    tried_at: Timestamp,
    /// Why the last attempt brought nothing newer.
    missed: Option<SecretError>,
}

impl<T> Fetched<T> {
    fn new(value: T, at: Timestamp) -> Self {
        Self { value: Arc::new(value), at, tried_at: at, missed: None }
    }

    /// Takes note of an attempt that failed. That a secret is malformed stays known until a good one is read.
    fn miss(&mut self, error: SecretError) {
        if !matches!(self.missed, Some(SecretError::Malformed { .. })) {
            self.missed = Some(error);
        }
    }

    fn serving(&self, slip: Slip, now: Timestamp) -> Result<Arc<T>, SecretError> {
        match &self.missed {
            Some(error @ SecretError::Malformed { .. }) if slip == Slip::Refused => Err(error.clone()),
            Some(error) if now.since(self.at) >= SERVES_AT_MOST => Err(error.clone()),
            Some(_) | None => Ok(Arc::clone(&self.value)),
        }
    }
}

/// The secrets, fetched once and kept five minutes. While a fetch fails, what is at hand goes on serving for an hour; service tokens only
/// and Stripe's signing secrets while Secrets Manager cannot be asked, not past a malformed set.
pub struct Secrets {
    source: Arc<SecretSource>,
    clock: Arc<dyn Clock>,
    told: Option<Arc<dyn Fn(Secret) + Send + Sync>>,
    rings: HashMap<Ring, CachedSecret<Keyring>>,
    service_tokens: CachedSecret<ServiceTokens>,
    data_planes: CachedSecret<DataPlanes>,
    stripe: CachedSecret<StripeSecrets>,
}

impl Secrets {
    pub fn new(source: SecretSource, clock: Arc<dyn Clock>) -> Self {
        Self::from_source(Arc::new(source), clock)
    }

    /// The same secrets for somebody who fetches them anew, and says so each time.
    #[must_use]
    pub fn observed_by(&self, told: impl Fn(Secret) + Send + Sync + 'static) -> Self {
        Self { told: Some(Arc::new(told)), ..Self::from_source(Arc::clone(&self.source), Arc::clone(&self.clock)) }
    }

    fn from_source(source: Arc<SecretSource>, clock: Arc<dyn Clock>) -> Self {
        let ring = |ring: Ring| {
            (ring, CachedSecret { secret: ring.into(), parse: read_ring, slip: Slip::Forgiven, kept: Mutex::default() })
        };
        let service_tokens = CachedSecret {
            secret: Secret::ServiceTokens,
            parse: parse_service_tokens,
            slip: Slip::Refused,
            kept: Mutex::default(),
        };
        let parse = match *source {
            SecretSource::Manager { .. } => parse_data_planes,
            SecretSource::Fixed(_) => parse_local_data_planes,
        };
        let data_planes =
            CachedSecret { secret: Secret::DataPlanes, parse, slip: Slip::Forgiven, kept: Mutex::default() };
        let stripe =
            CachedSecret { secret: Secret::Stripe, parse: parse_stripe, slip: Slip::Refused, kept: Mutex::default() };
        Self { source, clock, told: None, rings: Ring::ALL.map(ring).into(), service_tokens, data_planes, stripe }
    }

    /// Fails where the environment names none of these.
    pub fn demand(&self, needed: &[Secret]) -> Result<(), SecretError> {
        match needed.iter().find(|secret| !self.source.holds(**secret)) {
            Some(secret) => Err(SecretError::NotConfigured { secret: *secret }),
            None => Ok(()),
        }
    }

    /// Fetches every configured secret, so that a missing or malformed one stops the start and not the first request; so does a token that
    /// we send and take.
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
        self.at_hand(&self.rings[&ring]).await
    }

    /// The ring for a key that the one at hand does not hold: fetched again, at most once in 30 s. Fails while it cannot be: what is at hand
    /// is known to be out of date, and what it lacks proves nothing.
    pub async fn ring_refetched(&self, ring: Ring) -> Result<Arc<Keyring>, SecretError> {
        self.refetched(&self.rings[&ring]).await
    }

    pub async fn service_tokens(&self) -> Result<Arc<ServiceTokens>, SecretError> {
        self.at_hand(&self.service_tokens).await
    }

    /// The tokens for one that those at hand do not hold: like [`ring_refetched`](Self::ring_refetched).
    pub async fn service_tokens_refetched(&self) -> Result<Arc<ServiceTokens>, SecretError> {
        self.refetched(&self.service_tokens).await
    }

    pub async fn data_planes(&self) -> Result<Arc<DataPlanes>, SecretError> {
        self.at_hand(&self.data_planes).await
    }

    pub async fn stripe(&self) -> Result<Arc<StripeSecrets>, SecretError> {
        self.at_hand(&self.stripe).await
    }

    /// The signing secrets for a signature that those at hand do not bear out: like [`ring_refetched`](Self::ring_refetched).
    pub async fn stripe_refetched(&self) -> Result<Arc<StripeSecrets>, SecretError> {
        self.refetched(&self.stripe).await
    }

    async fn at_hand<T>(&self, slot: &CachedSecret<T>) -> Result<Arc<T>, SecretError> {
        let mut kept = slot.kept.lock().await;
        let now = self.clock.now();
        self.no_older_than(slot, &mut kept, KEPT_FOR, now).await?.serving(slot.slip, now)
    }

    async fn refetched<T>(&self, slot: &CachedSecret<T>) -> Result<Arc<T>, SecretError> {
        let mut kept = slot.kept.lock().await;
        let now = self.clock.now();
        let fetched = self.no_older_than(slot, &mut kept, REFETCH_EVERY, now).await?;
        fetched.missed.clone().map_or_else(|| Ok(Arc::clone(&fetched.value)), Err)
    }

    /// What was fetched last, after another attempt if the last one is older than `age`, or than 30 s while nothing serves. The slot is
    /// held meanwhile, so that concurrent callers wait for one fetch.
    async fn no_older_than<'a, T>(
        &self,
        slot: &CachedSecret<T>,
        kept: &'a mut Option<Fetched<T>>,
        age: Duration,
        now: Timestamp,
    ) -> Result<&'a Fetched<T>, SecretError> {
        let Some(fetched) = kept else {
            return Ok(kept.insert(Fetched::new(self.fetch(slot).await?, now)));
        };
        let age = if fetched.serving(slot.slip, now).is_ok() { age } else { REFETCH_EVERY };
        if now.since(fetched.tried_at) >= age {
            let secret = slot.secret;
            let given_up =
                || SecretError::Unavailable { secret, problem: format!("no answer within {REFETCH_WITHIN:?}") };
            // Before the fetch: one that is dropped with its request was an attempt too.
            fetched.tried_at = now;
            fetched.miss(given_up());
            match timeout(REFETCH_WITHIN, self.fetch(slot)).await.unwrap_or_else(|_| Err(given_up())) {
                Ok(value) => *fetched = Fetched::new(value, now),
                Err(error) => {
                    tracing::error!(%error, "a secret could not be fetched again");
                    fetched.miss(error);
                }
            }
        }
        Ok(fetched)
    }

    async fn fetch<T>(&self, slot: &CachedSecret<T>) -> Result<T, SecretError> {
        if let Some(tell) = &self.told {
            tell(slot.secret);
        }
        let text = self.source.fetch(slot.secret).await?;
        (slot.parse)(text.expose_secret()).map_err(|problem| SecretError::Malformed { secret: slot.secret, problem })
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
    async fn a_malformed_ring_is_named_and_not_shown() {
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
    async fn a_ring_that_was_not_given_is_refused_by_name() {
        let error = secrets(Ring::Cursor.into(), "{}").ring(Ring::KeyTag).await.unwrap_err().to_string();
        assert_eq!(error, "the key-tag ring is not configured for this function: set KARTA_SECRET_KEY_TAG");
    }

    #[test]
    fn a_secret_that_is_needed_must_be_configured() {
        let held = secrets(Ring::Cursor.into(), "{}");
        held.demand(&[]).unwrap();
        held.demand(&[Ring::Cursor.into()]).unwrap();
        let error = held.demand(&[Ring::Cursor.into(), Secret::Stripe]).unwrap_err().to_string();
        assert_eq!(error, "the stripe secret is not configured for this function: set KARTA_SECRET_STRIPE");
    }

    #[tokio::test]
    async fn malformed_service_tokens_are_named_and_not_shown() {
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
    async fn malformed_data_planes_are_named_and_not_shown() {
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

    #[tokio::test]
    async fn a_token_that_is_sent_and_taken_stops_the_start() {
        let token = "s3cret".repeat(6);
        let planes = format!(r#"{{"eu":{{"url":"https://eu.example.com","token":"{token}"}}}}"#);
        let tokens = format!(r#"{{"powers":{{"ops":["usage"]}},"ops":"{token}"}}"#);
        let texts = HashMap::from([(Secret::DataPlanes, planes.into()), (Secret::ServiceTokens, tokens.into())]);
        let secrets = Secrets::new(SecretSource::Fixed(texts), Arc::new(crate::clock::SystemClock));
        let error = secrets.warm_up().await.unwrap_err().to_string();
        let told = "the token of the data plane eu is a service token too: give the data plane one of its own";
        assert_eq!(error, told);
    }

    #[test]
    fn plain_http_is_for_local_runs() {
        let text = format!(r#"{{"eu":{{"url":"http://127.0.0.1:1","token":"{}"}}}}"#, "s3cret".repeat(6));
        assert!(parse_local_data_planes(&text).is_ok());
        assert!(parse_data_planes(&text).unwrap_err().starts_with("url of the data plane eu must start with https://"));
    }

    /// Secrets Manager: answers these bodies, one after the other, and then never again.
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

    /// Secrets that Secrets Manager answers for in this order.
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

    /// Ceiling on a wait: it only turns a hang into a failure.
    const PATIENCE: Duration = Duration::from_mins(1);

    /// The same secrets, nothing fetched, and the number of fetches.
    fn counting(secrets: &Secrets) -> (Secrets, Arc<AtomicUsize>) {
        let fetched = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&fetched);
        (secrets.observed_by(move |_| _ = counter.fetch_add(1, Ordering::SeqCst)), fetched)
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

    /// A set of tokens that all may provision, each 32 times its name.
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
    async fn an_answer_that_cannot_be_read_is_not_shown() {
        let ring = r#"{"SecretString":"{\"current\":\"k1\",\"k1\":\"s3cret\"}","CreatedDate":"not a number"}"#;
        let secrets = managed(&[ring], &[Ring::Cursor.into()], noon());
        let error = secrets.warm_up().await.unwrap_err();
        assert_eq!(error.to_string(), "the cursor ring cannot be fetched: an answer that cannot be read");
        assert!(!format!("{error:?}").contains("s3cret"));
    }

    #[tokio::test]
    async fn a_ring_that_cannot_be_fetched_again_serves_for_an_hour() {
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
        clock.advance(REFETCH_EVERY);
        assert!(secrets.ring(Ring::Cursor).await.is_ok(), "while nothing serves it is tried every 30 s");
    }

    #[tokio::test]
    async fn while_secrets_manager_hangs_what_is_at_hand_serves_within_a_routes_deadline() {
        let (ring, tokens) = (answer(&ring_json("k1")), answer(&tokens_json(&["a"]).to_string()));
        let clock = noon();
        let held = [Ring::KeyTag.into(), Secret::ServiceTokens];
        let secrets = managed(&[&ring, &tokens], &held, Arc::clone(&clock) as Arc<dyn Clock>);
        let (secrets, fetched) = counting(&secrets);
        secrets.warm_up().await.unwrap();
        let at_start = fetched.load(Ordering::SeqCst);
        clock.advance(KEPT_FOR);
        let both = async { (secrets.service_tokens().await, secrets.ring(Ring::KeyTag).await) };
        let (tokens, ring) = timeout(PATIENCE, both).await.unwrap();
        assert!(tokens.is_ok() && ring.is_ok());
        assert!(REFETCH_WITHIN * 2 < super::super::DEADLINE, "two fetches that hang leave time for an answer");
        assert_eq!(fetched.load(Ordering::SeqCst), at_start + 2);
        clock.advance(Duration::from_secs(299));
        assert!(secrets.service_tokens().await.is_ok());
        assert_eq!(fetched.load(Ordering::SeqCst), at_start + 2, "the attempt that failed counts for five minutes");
    }

    #[tokio::test]
    async fn a_fetch_that_was_dropped_with_its_request_was_an_attempt() {
        let clock = noon();
        let ring = answer(&ring_json("k1"));
        let secrets = managed(&[&ring], &[Ring::KeyTag.into()], Arc::clone(&clock) as Arc<dyn Clock>);
        let (secrets, fetched) = counting(&secrets);
        secrets.warm_up().await.unwrap();
        let at_start = fetched.load(Ordering::SeqCst);
        clock.advance(KEPT_FOR);
        let dropped = secrets.ring(Ring::KeyTag);
        tokio::select! {
            biased;
            () = async { while fetched.load(Ordering::SeqCst) == at_start { tokio::task::yield_now().await } } => {}
            _ = dropped => panic!("nothing answers"),
        }
        assert!(secrets.ring(Ring::KeyTag).await.is_ok());
        assert!(secrets.ring_refetched(Ring::KeyTag).await.is_err());
        assert_eq!(fetched.load(Ordering::SeqCst), at_start + 1, "it counts as an attempt");
    }

    #[tokio::test]
    async fn a_token_that_is_taken_out_by_a_malformed_set_is_dead_within_five_minutes() {
        let clock = noon();
        let source = |text: &serde_json::Value| fixed(Secret::ServiceTokens, &text.to_string());
        let mut slip = tokens_json(&["a", "b"]);
        slip.as_object_mut().unwrap().remove("a");
        let mut secrets = Secrets::new(source(&tokens_json(&["a", "b"])), Arc::clone(&clock) as Arc<dyn Clock>);
        secrets.warm_up().await.unwrap();
        secrets.source = source(&slip).into();
        clock.advance(KEPT_FOR);
        assert!(matches!(secrets.service_tokens().await, Err(SecretError::Malformed { .. })));
        // Nor does it come to life again because Secrets Manager goes away.
        secrets.source = SecretSource::Fixed(HashMap::new()).into();
        clock.advance(KEPT_FOR);
        assert!(secrets.service_tokens().await.is_err());
        secrets.source = source(&tokens_json(&["b"])).into();
        assert!(secrets.service_tokens().await.is_err(), "no more than one fetch in 30 s");
        clock.advance(REFETCH_EVERY);
        let mended = secrets.service_tokens().await.unwrap();
        assert!(mended.find(&"a".repeat(32)).is_none() && mended.find(&"b".repeat(32)).is_some());
    }

    #[tokio::test]
    async fn tokens_serve_while_secrets_manager_cannot_be_asked() {
        let clock = noon();
        let source = fixed(Secret::ServiceTokens, &tokens_json(&["a"]).to_string());
        let mut secrets = Secrets::new(source, Arc::clone(&clock) as Arc<dyn Clock>);
        secrets.warm_up().await.unwrap();
        secrets.source = SecretSource::Fixed(HashMap::new()).into();
        clock.advance(Duration::from_mins(59));
        assert!(secrets.service_tokens().await.is_ok());
        assert!(secrets.service_tokens_refetched().await.is_err(), "and prove nothing of a token that they lack");
        clock.advance(Duration::from_mins(1));
        assert!(secrets.service_tokens().await.is_err());
    }

    #[tokio::test]
    async fn a_slip_in_stripes_signing_secrets_closes_the_route() {
        let clock = noon();
        let source = |text: &str| fixed(Secret::Stripe, text);
        let good = r#"{"livemode":true,"signing_secrets":["whsec_0123456789abcdef"]}"#;
        let mut secrets = Secrets::new(source("{}"), Arc::clone(&clock) as Arc<dyn Clock>);
        secrets.warm_up().await.unwrap();
        assert!(secrets.stripe().await.unwrap().is_empty());
        secrets.source = source(good).into();
        clock.advance(REFETCH_EVERY);
        assert!(!secrets.stripe_refetched().await.unwrap().is_empty());
        secrets.source = source(&good.replace("true", "\"whsec_0123456789abcdef\"")).into();
        clock.advance(KEPT_FOR);
        let error = secrets.stripe().await.unwrap_err().to_string();
        assert!(error.starts_with("the stripe secret is malformed: it must be") && !error.contains("0123"), "{error}");
    }

    #[tokio::test]
    async fn what_the_ring_at_hand_lacks_is_asked_for_once_in_thirty_seconds() {
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

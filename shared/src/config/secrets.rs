use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;

use super::{ConfigError, optional};
use crate::{
    clock::Clock,
    domain::{Keyring, ServiceTokens, Timestamp},
    fault,
};

/// How long a fetched ring serves before it is fetched again.
const KEPT_FOR: Duration = Duration::from_mins(5);
/// How often an unknown key id may cause a fetch: a flood of forged tokens must not become one of requests.
const REFETCH_EVERY: Duration = Duration::from_secs(30);

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
}

impl Ring {
    pub const ALL: [Self; 3] = [Self::SessionSigning, Self::KeyTag, Self::Cursor];

    /// The secret's name in Secrets Manager (behind the stack's own prefix) and in the local store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SessionSigning => "session-signing",
            Self::KeyTag => "key-tag",
            Self::Cursor => "cursor",
        }
    }

    /// The variable that names the secret's id.
    const fn variable(self) -> &'static str {
        match self {
            Self::SessionSigning => "KARTA_SECRET_SESSION_SIGNING",
            Self::KeyTag => "KARTA_SECRET_KEY_TAG",
            Self::Cursor => "KARTA_SECRET_CURSOR",
        }
    }
}

/// Everything that is kept as a secret of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Secret {
    Ring(Ring),
    /// Opens the internal routes.
    ServiceTokens,
}

impl Secret {
    /// The secret's name in Secrets Manager (behind the stack's own prefix) and in the local store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring(ring) => ring.name(),
            Self::ServiceTokens => "service-tokens",
        }
    }

    /// The variable that names the secret's id.
    const fn variable(self) -> &'static str {
        match self {
            Self::Ring(ring) => ring.variable(),
            Self::ServiceTokens => "KARTA_SECRET_SERVICE_TOKENS",
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        Ring::ALL.map(Self::Ring).into_iter().chain([Self::ServiceTokens])
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
            Self::ServiceTokens => f.write_str("service-tokens secret"),
        }
    }
}

/// Why a secret is not to be had. Names it, never its content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the {secret} is not configured for this function: set {}", secret.variable())]
    NotConfigured { secret: Secret },
    #[error("the {secret} cannot be fetched: {problem}")]
    Unavailable { secret: Secret, problem: String },
    #[error("the {secret} is malformed: {problem}")]
    Malformed { secret: Secret, problem: String },
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
        let mut ids = HashMap::new();
        for secret in Secret::all() {
            if let Some(id) = optional(secret.variable())? {
                ids.insert(secret, id);
            }
        }
        Ok(Self::Manager { client, ids })
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

fn parse_ring(text: &str) -> Result<Keyring, String> {
    // serde_json's own message would repeat the value that it did not expect.
    let entries: BTreeMap<String, String> =
        serde_json::from_str(text).map_err(|_| "it must be a JSON object of strings".to_owned())?;
    Keyring::try_from(entries).map_err(|error| error.to_string())
}

fn parse_service_tokens(text: &str) -> Result<ServiceTokens, String> {
    serde_json::from_str(text).map_err(|error: serde_json::Error| {
        // A data error is our own sentence, which never shows a token; a syntax error is serde_json's.
        if error.is_data() { error.to_string() } else { "it is not JSON".to_owned() }
    })
}

/// One secret as it was read last.
struct Slot<T> {
    secret: Secret,
    parse: fn(&str) -> Result<T, String>,
    kept: Mutex<Option<Fetched<T>>>,
}

struct Fetched<T> {
    value: Arc<T>,
    at: Timestamp,
    tried_at: Timestamp,
}

/// The secrets, fetched once and kept five minutes. While a fetch fails, what is at hand goes on serving for an hour.
pub struct Secrets {
    source: SecretSource,
    clock: Arc<dyn Clock>,
    rings: HashMap<Ring, Slot<Keyring>>,
    service_tokens: Slot<ServiceTokens>,
}

impl Secrets {
    pub fn new(source: SecretSource, clock: Arc<dyn Clock>) -> Self {
        let ring = |ring: Ring| (ring, Slot { secret: ring.into(), parse: parse_ring, kept: Mutex::default() });
        Self {
            source,
            clock,
            rings: Ring::ALL.map(ring).into(),
            service_tokens: Slot { secret: Secret::ServiceTokens, parse: parse_service_tokens, kept: Mutex::default() },
        }
    }

    /// Fetches every configured secret, so that a missing or malformed one stops the start and not the first request.
    pub async fn warm_up(&self) -> Result<(), SecretError> {
        for secret in Secret::all().filter(|secret| self.source.holds(*secret)) {
            match secret {
                Secret::Ring(ring) => drop(self.ring(ring).await?),
                Secret::ServiceTokens => drop(self.service_tokens().await?),
            }
        }
        Ok(())
    }

    pub async fn ring(&self, ring: Ring) -> Result<Arc<Keyring>, SecretError> {
        self.no_older_than(&self.rings[&ring], KEPT_FOR).await
    }

    /// The ring for a key id that the one at hand does not know: fetched again, at most once in 30 s.
    pub async fn ring_refetched(&self, ring: Ring) -> Result<Arc<Keyring>, SecretError> {
        self.no_older_than(&self.rings[&ring], REFETCH_EVERY).await
    }

    pub async fn service_tokens(&self) -> Result<Arc<ServiceTokens>, SecretError> {
        self.no_older_than(&self.service_tokens, KEPT_FOR).await
    }

    /// The tokens for one that those at hand do not hold: fetched again, at most once in 30 s.
    pub async fn service_tokens_refetched(&self) -> Result<Arc<ServiceTokens>, SecretError> {
        self.no_older_than(&self.service_tokens, REFETCH_EVERY).await
    }

    /// Holding the slot while fetching makes concurrent callers wait for one fetch.
    async fn no_older_than<T>(&self, slot: &Slot<T>, age: Duration) -> Result<Arc<T>, SecretError> {
        let mut kept = slot.kept.lock().await;
        let now = self.clock.now();
        if let Some(fetched) = &*kept
            && now.since(fetched.tried_at) < age
        {
            return Ok(Arc::clone(&fetched.value));
        }
        match (self.fetch(slot).await, &mut *kept) {
            (Ok(value), kept) => {
                let value = Arc::new(value);
                *kept = Some(Fetched { value: Arc::clone(&value), at: now, tried_at: now });
                Ok(value)
            }
            (Err(error), Some(stale)) if now.since(stale.at) < SERVES_AT_MOST => {
                tracing::error!(%error, "a secret could not be fetched again; the last one goes on serving");
                stale.tried_at = now;
                Ok(Arc::clone(&stale.value))
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn fetch<T>(&self, slot: &Slot<T>) -> Result<T, SecretError> {
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

    /// Secrets Manager, answering this body to everything.
    #[derive(Debug, Clone)]
    struct Canned(&'static str);

    impl HttpConnector for Canned {
        fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
            let answer = HttpResponse::try_from(http::Response::new(SdkBody::from(self.0))).unwrap();
            HttpConnectorFuture::ready(Ok(answer))
        }
    }

    impl HttpClient for Canned {
        fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
            SharedHttpConnector::new(self.clone())
        }
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_read_is_not_shown() {
        let ring = r#"{"SecretString":"{\"current\":\"k1\",\"k1\":\"s3cret\"}","CreatedDate":"not a number"}"#;
        let config = aws_sdk_secretsmanager::Config::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .region(aws_config::Region::from_static("us-east-1"))
            .credentials_provider(aws_sdk_dynamodb::config::Credentials::new("a", "b", None, None, "test"))
            .http_client(Canned(ring))
            .build();
        let client = aws_sdk_secretsmanager::Client::from_conf(config);
        let ids = HashMap::from([(Ring::Cursor.into(), "cursor".to_owned())]);
        let secrets = Secrets::new(SecretSource::Manager { client, ids }, Arc::new(crate::clock::SystemClock));
        let error = secrets.warm_up().await.unwrap_err();
        assert_eq!(error.to_string(), "the cursor ring cannot be fetched: an answer that cannot be read");
        assert!(!format!("{error:?}").contains("s3cret"));
    }

    #[tokio::test]
    async fn a_ring_that_cannot_be_fetched_again_serves_for_an_hour() {
        let clock = Arc::new(ManualClock::at("2026-11-21T00:00:00Z".parse().unwrap()));
        let text = format!(r#"{{"current":"k1","k1":"{}"}}"#, "s".repeat(32));
        let source = SecretSource::Fixed(HashMap::from([(Ring::Cursor.into(), text.into())]));
        let mut secrets = Secrets::new(source, Arc::clone(&clock) as Arc<dyn Clock>);
        secrets.warm_up().await.unwrap();
        secrets.source = SecretSource::Fixed(HashMap::from([(Ring::Cursor.into(), "malformed".into())]));
        clock.advance(Duration::from_mins(59));
        assert!(secrets.ring(Ring::Cursor).await.is_ok());
        clock.advance(KEPT_FOR);
        assert!(secrets.ring(Ring::Cursor).await.is_err());
    }
}

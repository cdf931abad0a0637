use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;

use super::{ConfigError, optional};
use crate::{
    clock::Clock,
    domain::{Keyring, Timestamp},
    fault,
};

/// How long a fetched ring serves before it is fetched again.
const KEPT_FOR: Duration = Duration::from_mins(5);
/// How often an unknown key id may cause a fetch: a flood of forged tokens must not become one of requests.
const REFETCH_EVERY: Duration = Duration::from_secs(30);

/// How long a ring serves while it cannot be fetched again. After that whoever needs it fails: a key that was dropped must not
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

/// Why a ring is not to be had. Names the ring, never its content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the {0} ring is not configured for this function: set {1}", ring.name(), ring.variable())]
    NotConfigured { ring: Ring },
    #[error("the {0} ring cannot be fetched: {problem}", ring.name())]
    Unavailable { ring: Ring, problem: String },
    #[error("the {0} ring is malformed: {problem}", ring.name())]
    Malformed { ring: Ring, problem: String },
}

/// Where rings come from.
pub enum SecretSource {
    /// Secrets Manager: the ids of the secrets that this function may read.
    Manager { client: aws_sdk_secretsmanager::Client, ids: HashMap<Ring, String> },
    /// Rings at hand, as a local run holds them: each the flat JSON that Secrets Manager would answer.
    Fixed(HashMap<Ring, SecretString>),
}

impl SecretSource {
    /// The secrets that the environment names.
    pub fn manager_from_env(client: aws_sdk_secretsmanager::Client) -> Result<Self, ConfigError> {
        let mut ids = HashMap::new();
        for ring in Ring::ALL {
            if let Some(id) = optional(ring.variable())? {
                ids.insert(ring, id);
            }
        }
        Ok(Self::Manager { client, ids })
    }

    fn rings(&self) -> Vec<Ring> {
        match self {
            Self::Manager { ids, .. } => ids.keys().copied().collect(),
            Self::Fixed(rings) => rings.keys().copied().collect(),
        }
    }

    async fn fetch(&self, ring: Ring) -> Result<Keyring, SecretError> {
        let text = match self {
            Self::Fixed(rings) => rings.get(&ring).cloned().ok_or(SecretError::NotConfigured { ring })?,
            Self::Manager { client, ids } => {
                let id = ids.get(&ring).ok_or(SecretError::NotConfigured { ring })?;
                let answer = client
                    .get_secret_value()
                    .secret_id(id)
                    .send()
                    .await
                    .map_err(|error| SecretError::Unavailable { ring, problem: fault::describe(&error) })?;
                let text = answer
                    .secret_string
                    .ok_or_else(|| SecretError::Malformed { ring, problem: "it is not a string".to_owned() })?;
                SecretString::from(text)
            }
        };
        let malformed = |problem: String| SecretError::Malformed { ring, problem };
        // serde_json's own message would repeat the value that it did not expect.
        let entries: BTreeMap<String, String> = serde_json::from_str(text.expose_secret())
            .map_err(|_| malformed("it must be a JSON object of strings".to_owned()))?;
        Keyring::try_from(entries).map_err(|error| malformed(error.to_string()))
    }
}

struct Fetched {
    ring: Arc<Keyring>,
    at: Timestamp,
    tried_at: Timestamp,
}

/// The rings, fetched once and kept five minutes. While a fetch fails, the ring at hand goes on serving for an hour.
pub struct Secrets {
    source: SecretSource,
    clock: Arc<dyn Clock>,
    slots: HashMap<Ring, Mutex<Option<Fetched>>>,
}

impl Secrets {
    pub fn new(source: SecretSource, clock: Arc<dyn Clock>) -> Self {
        let slots = source.rings().into_iter().map(|ring| (ring, Mutex::new(None))).collect();
        Self { source, clock, slots }
    }

    /// Fetches every configured ring, so that a missing or malformed one stops the start and not the first request.
    pub async fn warm_up(&self) -> Result<(), SecretError> {
        for ring in self.source.rings() {
            self.ring(ring).await?;
        }
        Ok(())
    }

    pub async fn ring(&self, ring: Ring) -> Result<Arc<Keyring>, SecretError> {
        self.ring_no_older_than(ring, KEPT_FOR).await
    }

    /// The ring for a key id that the one at hand does not know: fetched again, at most once in 30 s.
    pub async fn ring_refetched(&self, ring: Ring) -> Result<Arc<Keyring>, SecretError> {
        self.ring_no_older_than(ring, REFETCH_EVERY).await
    }

    /// Holding the slot while fetching makes concurrent callers wait for one fetch.
    async fn ring_no_older_than(&self, ring: Ring, age: Duration) -> Result<Arc<Keyring>, SecretError> {
        let mut slot = self.slots.get(&ring).ok_or(SecretError::NotConfigured { ring })?.lock().await;
        let now = self.clock.now();
        if let Some(fetched) = &*slot
            && now.since(fetched.tried_at) < age
        {
            return Ok(Arc::clone(&fetched.ring));
        }
        match (self.source.fetch(ring).await, &mut *slot) {
            (Ok(keyring), slot) => {
                let keyring = Arc::new(keyring);
                *slot = Some(Fetched { ring: Arc::clone(&keyring), at: now, tried_at: now });
                Ok(keyring)
            }
            (Err(error), Some(stale)) if now.since(stale.at) < SERVES_AT_MOST => {
                tracing::error!(%error, "a ring could not be fetched again; the last one goes on serving");
                stale.tried_at = now;
                Ok(Arc::clone(&stale.ring))
            }
            (Err(error), _) => Err(error),
        }
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("rings", &self.source.rings()).finish_non_exhaustive()
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

    fn secrets(text: &str) -> Secrets {
        let clock = ManualClock::at("2026-11-21T00:00:00Z".parse().unwrap());
        Secrets::new(SecretSource::Fixed(HashMap::from([(Ring::Cursor, text.to_owned().into())])), Arc::new(clock))
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
            let error = secrets(&text).warm_up().await.unwrap_err().to_string();
            assert!(error.starts_with("the cursor ring is malformed"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_ring_that_was_not_given_is_refused_by_name() {
        let error = secrets("{}").ring(Ring::KeyTag).await.unwrap_err().to_string();
        assert_eq!(error, "the key-tag ring is not configured for this function: set KARTA_SECRET_KEY_TAG");
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
        let ids = HashMap::from([(Ring::Cursor, "cursor".to_owned())]);
        let secrets = Secrets::new(SecretSource::Manager { client, ids }, Arc::new(crate::clock::SystemClock));
        let error = secrets.warm_up().await.unwrap_err();
        assert_eq!(error.to_string(), "the cursor ring cannot be fetched: an answer that cannot be read");
        assert!(!format!("{error:?}").contains("s3cret"));
    }

    #[tokio::test]
    async fn a_ring_that_cannot_be_fetched_again_serves_for_an_hour() {
        let clock = Arc::new(ManualClock::at("2026-11-21T00:00:00Z".parse().unwrap()));
        let text = format!(r#"{{"current":"k1","k1":"{}"}}"#, "s".repeat(32));
        let source = SecretSource::Fixed(HashMap::from([(Ring::Cursor, text.into())]));
        let mut secrets = Secrets::new(source, Arc::clone(&clock) as Arc<dyn Clock>);
        secrets.warm_up().await.unwrap();
        secrets.source = SecretSource::Fixed(HashMap::from([(Ring::Cursor, "malformed".into())]));
        clock.advance(Duration::from_mins(59));
        assert!(secrets.ring(Ring::Cursor).await.is_ok());
        clock.advance(KEPT_FOR);
        assert!(secrets.ring(Ring::Cursor).await.is_err());
    }
}

//! The application state that every handler receives.

use std::sync::{Arc, OnceLock};

use aws_config::SdkConfig;
use aws_sdk_dynamodb::config::{SharedInterceptor, retry::RetryPartition};

use crate::{
    auth::{BcryptPool, Validator},
    clock::{Clock, SystemClock},
    config::{self, Config, Deadlines, Secret, SecretSource, Secrets, TurnLimits},
    domain::{Entropy, InternalGuard, PriceTable, ProviderBaseUrls, Reach, Retention},
    entropy::OsEntropy,
    store::{ConflictRetry, Store, StoreError},
    telemetry::Metrics,
};

/// Observes the AWS calls and secret fetches of each function, so that tests can compare them with
/// the function's policy. Deployed functions have none.
pub trait CallObserver: Send + Sync {
    /// Returns an interceptor that sees the function's calls to the store.
    fn watch(&self, function: &'static str) -> SharedInterceptor;

    /// Called each time a function fetches a secret.
    fn fetched(&self, function: &'static str, secret: Secret);
}

/// The secrets and the store access that a function requires.
#[derive(Debug)]
pub struct Needs {
    pub secrets: Vec<Secret>,
    pub store: bool,
}

/// The shared dependencies of handlers; cheap to clone. A Lambda process has one.
#[derive(Clone)]
pub struct App {
    pub store: Store,
    pub secrets: Arc<Secrets>,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    /// Shared, so that all bcrypt work of the process uses one queue.
    pub bcrypt: BcryptPool,
    pub prices: Arc<PriceTable>,
    /// Addresses that webhooks and model calls to an `endpoint_url` may be sent to.
    pub outbound_reach: Reach,
    pub deadlines: Deadlines,
    pub turn_limits: TurnLimits,
    /// How long a session is kept after its last turn.
    pub session_retention: Retention,
    /// Base URLs that replace those of providers.
    pub provider_base_urls: Arc<ProviderBaseUrls>,
    /// Restricts who can reach the internal routes.
    pub internal: Arc<InternalGuard>,
    /// Observer of AWS calls; set in tests only.
    pub call_observer: Option<Arc<dyn CallObserver>>,
    /// Writes metrics in a deployed function, and nowhere else.
    pub metrics: Metrics,
    validator: Arc<OnceLock<Validator>>,
}

impl App {
    pub fn new(
        config: Config,
        sdk: &SdkConfig,
        secrets: SecretSource,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let mut dynamodb = aws_sdk_dynamodb::config::Builder::from(sdk)
            .retry_classifier(ConflictRetry)
            .timeout_config(config::timeouts(config.deadlines));
        if let Some(endpoint) = sdk.endpoint_url() {
            // The SDK has one retry budget per process. A partition per endpoint keeps one failing
            // store from using up the budget of another.
            dynamodb = dynamodb.retry_partition(RetryPartition::new(endpoint.to_owned()));
        }
        let client = aws_sdk_dynamodb::Client::from_conf(dynamodb.build());
        Self {
            store: Store::new(client, config.tables, Arc::clone(&entropy)),
            secrets: Arc::new(Secrets::new(secrets, Arc::clone(&clock))),
            clock,
            entropy,
            bcrypt: BcryptPool::new(config.bcrypt_cost),
            prices: Arc::new(config.prices),
            outbound_reach: config.outbound_reach,
            deadlines: config.deadlines,
            turn_limits: config.turn_limits,
            session_retention: config.session_retention,
            provider_base_urls: Arc::new(config.provider_base_urls),
            internal: Arc::new(config.internal),
            call_observer: None,
            metrics: Metrics::default(),
            validator: Arc::default(),
        }
    }

    /// Returns the app for one function of a process that runs several. With a [`CallObserver`],
    /// the function gets its own client and its own secrets.
    #[must_use]
    pub fn for_function(&self, function: &'static str) -> Self {
        let Some(call_observer) = self.call_observer.clone() else { return self.clone() };
        Self {
            store: self.store.with_interceptor(call_observer.watch(function)),
            secrets: Arc::new(self.secrets.with_fetch_observer(move |secret| call_observer.fetched(function, secret))),
            validator: Arc::default(),
            ..self.clone()
        }
    }

    /// Returns the validator of the process, created on first use. Sharing it means that each proof
    /// is computed once.
    pub fn validator(&self) -> &Validator {
        // The validator keeps parts of the app only: keeping the whole app would be a reference
        // cycle.
        self.validator.get_or_init(|| Validator::new(self.clone()))
    }

    /// Creates the app of a deployed function; `function` is the function's folder name. Reads the
    /// configuration from the environment, fetches every configured secret and opens the store's
    /// connection before the first request. Fails with a message that names the missing or invalid
    /// setting.
    pub async fn deployed(
        function: &'static str,
        needs: Needs,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut app = Self::from_env(&config::deployed_sdk()?)?;
        app.metrics = Metrics::to_log(config::metrics_namespace()?, function);
        app.secrets.require(&needs.secrets)?;
        // Two TLS handshakes with two services: run them concurrently.
        let (secrets, store) = tokio::join!(app.secrets.warm_up(), app.warm_up_store(needs.store));
        secrets.map_err(Box::from).and(store).map(|()| app)
    }

    /// Creates the app of an operator's command against a deployed stack, with the default AWS
    /// credential chain.
    pub async fn for_operator() -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Self::from_env(&config::operator_sdk().await)
    }

    fn from_env(sdk: &SdkConfig) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let config = Config::from_env()?;
        let secrets = SecretSource::manager_from_env(aws_sdk_secretsmanager::Client::new(sdk))?;
        Ok(Self::new(config, sdk, secrets, Arc::new(SystemClock), Arc::new(OsEntropy)))
    }

    async fn warm_up_store(&self, is_needed: bool) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if !is_needed {
            return Ok(());
        }
        match self.store.warm_up().await {
            Ok(()) => Ok(()),
            Err(error @ StoreError::Fault(_)) => {
                Err(format!("KARTA_TABLE does not name a usable table: {error}").into())
            }
            // A later request will surface the error.
            Err(fault @ StoreError::Unavailable(_)) => {
                tracing::warn!(%fault, "store warm-up failed");
                Ok(())
            }
        }
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("store", &self.store).field("secrets", &self.secrets).finish_non_exhaustive()
    }
}

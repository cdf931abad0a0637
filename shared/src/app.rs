//! What every handler is given.

use std::sync::{Arc, OnceLock};

use aws_config::SdkConfig;
use aws_sdk_dynamodb::config::{SharedInterceptor, retry::RetryPartition};

use crate::{
    auth::{BcryptPool, Validator},
    clock::{Clock, SystemClock},
    config::{self, Config, Deadlines, Secret, SecretSource, Secrets},
    domain::{Entropy, InternalGuard, PriceTable, Reach},
    entropy::OsEntropy,
    store::{ConflictRetry, Store, StoreError},
    telemetry::Metrics,
};

/// Learns what each function asks of AWS: for tests that hold it against the function's policy. A deployed function has none.
pub trait Witness: Send + Sync {
    /// What sees a function's calls to the store.
    fn watch(&self, function: &'static str) -> SharedInterceptor;

    /// A function fetches a secret.
    fn fetched(&self, function: &'static str, secret: Secret);
}

/// What a function cannot do without.
#[derive(Debug)]
pub struct Needs {
    pub secrets: Vec<Secret>,
    pub store: bool,
}

/// The parts that handlers work with; cheap to clone. In a Lambda there is one for the life of the process.
#[derive(Clone)]
pub struct App {
    pub store: Store,
    pub secrets: Arc<Secrets>,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    /// Shared, so that all bcrypt of the process stands in one line.
    pub bcrypt: BcryptPool,
    /// What models cost.
    pub prices: Arc<PriceTable>,
    /// Where webhooks may lead.
    pub webhooks: Reach,
    pub deadlines: Deadlines,
    /// For whom the internal routes exist.
    pub internal: Arc<InternalGuard>,
    /// Who learns what each function of this process asks of AWS; nobody, but in tests.
    pub witness: Option<Arc<dyn Witness>>,
    /// What is counted and measured: nowhere, but in a deployed function.
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
            // The SDK's budget of retries is one per process: a store that fails must not use up another one's.
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
            webhooks: config.webhooks,
            deadlines: config.deadlines,
            internal: Arc::new(config.internal),
            witness: None,
            metrics: Metrics::default(),
            validator: Arc::default(),
        }
    }

    /// The app as one function of several in a process has it. Before a witness its calls and its secrets are its own.
    #[must_use]
    pub fn of_function(&self, function: &'static str) -> Self {
        let Some(witness) = self.witness.clone() else { return self.clone() };
        Self {
            store: self.store.watched(witness.watch(function)),
            secrets: Arc::new(self.secrets.observed_by(move |secret| witness.fetched(function, secret))),
            validator: Arc::default(),
            ..self.clone()
        }
    }

    /// The one validator of the process, so that a proof is made once; it comes with its first user.
    pub fn validator(&self) -> &Validator {
        // What it holds of the app is not the app: it would hold itself.
        self.validator.get_or_init(|| Validator::new(self.clone()))
    }

    /// The app of a deployed function, which has its folder's name: configuration from the environment, every ring fetched and the store's connection
    /// open before the first request. Fails with a sentence that names what is missing or wrong.
    pub async fn deployed(
        function: &'static str,
        needs: Needs,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut app = Self::from_env(&config::deployed_sdk()?)?;
        app.metrics = Metrics::logged(config::metrics_namespace()?, function);
        app.secrets.demand(&needs.secrets)?;
        // A handshake each, with two services: neither waits for the other.
        let (secrets, store) = tokio::join!(app.secrets.warm_up(), app.warm_up_store(needs.store));
        secrets.map_err(Box::from).and(store).map(|()| app)
    }

    /// The app of an operator's command over a deployed stack, with whatever AWS credentials the environment leads to.
    pub async fn of_operator() -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
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
                Err(format!("KARTA_TABLE names no table to work with: {error}").into())
            }
            // The requests will tell, each for itself.
            Err(error @ StoreError::Unavailable(_)) => {
                tracing::warn!(%error, "the store could not be asked at the start");
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

//! Configuration: the environment and the secrets.
//!
//! Settings are read and checked at startup. A missing or invalid one fails with a [`ConfigError`]
//! or a [`SecretError`] that names it. [`Secrets`] are fetched again while the process runs. Only
//! `optional`, `set_variables` and `empty_variables` in this module read the environment. To add a variable, add it to
//! `VARIABLES` or to [`Secret`].

pub(crate) mod prices;
mod secrets;

use std::{collections::BTreeSet, env, ffi::OsStr, fmt::Display, str::FromStr, sync::Arc, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, environment::EnvironmentVariableCredentialsProvider, retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_sdk_dynamodb::config::{Credentials, SharedCredentialsProvider};
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;

pub use self::secrets::{Ring, Secret, SecretError, SecretSource, Secrets, parse_ring, serialize_ring};
use crate::{
    clock::SystemClock,
    domain::{InternalGuard, LocalProviderBaseUrls, PriceTable, ProviderBaseUrls, Reach, Retention},
    store::{AuditReader, table::Tables},
};

pub const VARIABLE_PREFIX: &str = "KARTA_";
/// The variables that this module reads, without those of [`Secret`].
const VARIABLES: [&str; 21] = [
    "KARTA_ANCHORS_TABLE",
    "KARTA_BCRYPT_COST",
    "KARTA_CREDENTIALS_TABLE",
    "KARTA_DATA_PLANES",
    "KARTA_INTERNAL_ALLOWED_IPS",
    "KARTA_INTERNAL_HOSTS",
    "KARTA_OUTBOX_TABLE",
    "KARTA_OWN_HOSTS",
    "KARTA_PRICES",
    "KARTA_PROVIDER_BASE_URLS",
    "KARTA_RESPONSE_TRANSFER_MODE",
    "KARTA_REST_API_ID",
    "KARTA_SERVICE_TOKENS",
    "KARTA_SESSIONS_TABLE",
    "KARTA_SESSION_RETENTION_DAYS",
    "KARTA_SESSION_TOKEN_SECRET",
    "KARTA_STAGE",
    "KARTA_STRIPE_SECRETS",
    "KARTA_TABLE",
    "KARTA_USAGE_TABLE",
    "KARTA_WEBHOOK_DELIVERIES_FUNCTION",
];
const PROVIDER_BASE_URLS: &str = "KARTA_PROVIDER_BASE_URLS";
/// Minimum bcrypt cost in a deployed stack. Tests and local runs may use bcrypt's own minimum.
const DEPLOYED_BCRYPT_COST_MIN: u32 = 10;
const BCRYPT_COST_DEFAULT: u32 = 12;
/// Time limit for a function's response. It is below the function's own timeout (10 s), so that
/// Karta returns its own 504.
pub const DEADLINE: Duration = Duration::from_secs(8);
/// Time limit for one call to a dependency, retries included.
const STORE_DEADLINE: Duration = Duration::from_secs(5);
const STORE_ATTEMPT_DEADLINE: Duration = Duration::from_millis(1_500);

/// Scales the deadlines of requests and store calls. It does not scale the age at which a verdict
/// is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    factor: u32,
}

impl Deadlines {
    pub const DEPLOYED: Self = Self::times(1);
    /// Deadlines of debug builds and of machines that compile at the same time. The longest stays
    /// below API Gateway's 29 s.
    pub const LAPTOP: Self = Self::times(3);

    pub const fn times(factor: u32) -> Self {
        Self { factor }
    }

    pub fn scale(self, deadline: Duration) -> Duration {
        deadline * self.factor
    }
}

/// Time limits of turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnLimits {
    /// How long a turn's process may be silent before the sweep ends the turn.
    pub lease: Duration,
    /// Interval of the lease's renewals, which also read whether the turn must end.
    pub renewal: Duration,
    /// How long a streamed turn waits for the provider before it responds with 200. A failure within
    /// this time is a status, a later one an event.
    pub status_delay: Duration,
    /// Maximum wait for the head of the provider's response.
    pub response_head: Duration,
    /// Assumed time until a provider generates output. Time beyond it without visible output counts as
    /// hidden output.
    pub latency: Duration,
    /// Maximum silence of the provider.
    pub silence: Duration,
    /// Deadline of a streamed turn.
    pub streamed: Duration,
    /// Deadline of a turn whose answer is not streamed.
    pub unary: Duration,
    /// How long a process retries to reserve a further slice while the store fails.
    pub reserve: Duration,
    /// How long a process retries a failed settlement.
    pub settle: Duration,
    /// Pause between two reads of the log of a followed turn.
    pub poll: Duration,
}

impl TurnLimits {
    /// Limits of a local run: a cancel or a revocation ends a turn sooner.
    pub const LAPTOP: Self = Self { renewal: Duration::from_secs(1), ..Self::DEFAULT };
    pub const DEFAULT: Self = Self {
        lease: Duration::from_secs(30),
        renewal: Duration::from_secs(10),
        status_delay: Duration::from_secs(15),
        response_head: Duration::from_mins(5),
        latency: Duration::from_secs(2),
        silence: Duration::from_mins(5),
        streamed: Duration::from_mins(14),
        unary: Duration::from_secs(280),
        reserve: Duration::from_secs(15),
        settle: Duration::from_secs(25),
        poll: Duration::from_millis(250),
    };
}

/// A missing or invalid setting. The message names the variable and what a valid value is.
#[derive(Debug, thiserror::Error)]
#[error("{variable} {problem}")]
pub struct ConfigError {
    variable: String,
    problem: String,
}

impl ConfigError {
    fn new(variable: &str, problem: impl Display) -> Self {
        Self { variable: variable.to_owned(), problem: problem.to_string() }
    }
}

/// The settings that a function reads from its environment.
#[derive(Debug, Clone)]
pub struct Config {
    /// `KARTA_TABLE`, `KARTA_CREDENTIALS_TABLE`, `KARTA_OUTBOX_TABLE`, `KARTA_USAGE_TABLE`,
    /// `KARTA_ANCHORS_TABLE` and `KARTA_SESSIONS_TABLE`.
    pub tables: Tables,
    /// `KARTA_BCRYPT_COST`: 12 unless set; 10 to 15 in a deployed stack.
    pub bcrypt_cost: u32,
    /// `KARTA_INTERNAL_ALLOWED_IPS` and `KARTA_INTERNAL_HOSTS`: which clients can reach the
    /// internal routes. None can while either variable is unset.
    pub internal: InternalGuard,
    /// Model prices: `KARTA_PRICES` (JSON, or the path of a JSON file) overrides the built-in list.
    pub prices: PriceTable,
    /// Addresses that webhooks and model calls to an `endpoint_url` may be sent to: public ones only,
    /// unless a local run allows loopback.
    pub outbound_reach: Reach,
    pub deadlines: Deadlines,
    pub turn_limits: TurnLimits,
    /// `KARTA_SESSION_RETENTION_DAYS`: how long a session is kept after its last turn; 30 days
    /// unless set.
    pub session_retention: Retention,
    /// `KARTA_PROVIDER_BASE_URLS`: JSON of base URLs that replace those of providers.
    pub provider_base_urls: ProviderBaseUrls,
}

impl Config {
    pub fn from_env() -> Result<Self, ConfigError> {
        Ok(Self {
            tables: Tables {
                main: table("KARTA_TABLE")?,
                credentials: table("KARTA_CREDENTIALS_TABLE")?,
                outbox: table("KARTA_OUTBOX_TABLE")?,
                usage: table("KARTA_USAGE_TABLE")?,
                anchors: table("KARTA_ANCHORS_TABLE")?,
                sessions: table("KARTA_SESSIONS_TABLE")?,
            },
            bcrypt_cost: deployed_bcrypt_cost(parsed("KARTA_BCRYPT_COST")?.unwrap_or(BCRYPT_COST_DEFAULT))?,
            internal: internal_guard()?,
            prices: prices::from_env()?,
            outbound_reach: Reach::Public,
            deadlines: Deadlines::DEPLOYED,
            turn_limits: TurnLimits::DEFAULT,
            session_retention: session_retention()?,
            provider_base_urls: json::<ProviderBaseUrls>(PROVIDER_BASE_URLS)?.unwrap_or_default(),
        })
    }

    /// Returns the configuration of a local run: any table names, and any cost that bcrypt itself
    /// accepts (4 to 31). No client can reach the internal routes. Base URLs of providers may use
    /// `http` on loopback.
    pub fn local(tables: Tables, bcrypt_cost: Option<u32>) -> Result<Self, ConfigError> {
        let bcrypt_cost = bcrypt_cost.unwrap_or(BCRYPT_COST_DEFAULT);
        if !(4..=31).contains(&bcrypt_cost) {
            return Err(ConfigError::new("KARTA_BCRYPT_COST", "must be a number from 4 to 31"));
        }
        let (internal, deadlines) = (InternalGuard::default(), Deadlines::LAPTOP);
        let (prices, outbound_reach) = (prices::from_env()?, Reach::Public);
        let provider_base_urls = json(PROVIDER_BASE_URLS)?.map(|LocalProviderBaseUrls(urls)| urls).unwrap_or_default();
        let session_retention = session_retention()?;
        let turn_limits = TurnLimits::DEFAULT;
        Ok(Self {
            tables,
            bcrypt_cost,
            internal,
            prices,
            outbound_reach,
            deadlines,
            turn_limits,
            session_retention,
            provider_base_urls,
        })
    }
}

fn session_retention() -> Result<Retention, ConfigError> {
    Ok(parsed("KARTA_SESSION_RETENTION_DAYS")?.unwrap_or_default())
}

fn deployed_bcrypt_cost(cost: u32) -> Result<u32, ConfigError> {
    if (DEPLOYED_BCRYPT_COST_MIN..=15).contains(&cost) {
        Ok(cost)
    } else {
        Err(ConfigError::new("KARTA_BCRYPT_COST", "must be a number from 10 to 15 in a deployed stack"))
    }
}

/// Settings of every AWS client: standard retries within a deadline. Adaptive retries would let one
/// throttled partition slow down every organization's requests in the process; at a function's low
/// request rates, a single throttle would use up the whole deadline.
fn sdk() -> aws_config::ConfigLoader {
    aws_config::defaults(BehaviorVersion::latest())
        .retry_config(retries())
        .timeout_config(timeouts(Deadlines::DEPLOYED))
}

fn retries() -> RetryConfig {
    RetryConfig::standard().with_max_attempts(5).with_initial_backoff(Duration::from_millis(25))
}

pub(crate) fn timeouts(deadlines: Deadlines) -> TimeoutConfig {
    TimeoutConfig::builder()
        .operation_timeout(deadlines.scale(STORE_DEADLINE))
        .operation_attempt_timeout(deadlines.scale(STORE_ATTEMPT_DEADLINE))
        .connect_timeout(deadlines.scale(STORE_ATTEMPT_DEADLINE))
        .build()
}

/// Returns the SDK settings of a deployed function: region, credentials and endpoints come from
/// Lambda's environment. Profiles, roles and metadata services are not supported, which keeps their
/// code out of the functions.
pub fn deployed_sdk() -> Result<SdkConfig, ConfigError> {
    let mut builder = SdkConfig::builder();
    builder.set_endpoint_url(optional("AWS_ENDPOINT_URL")?);
    Ok(builder
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(required("AWS_REGION")?))
        .credentials_provider(SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new()))
        .retry_config(retries())
        .timeout_config(timeouts(Deadlines::DEPLOYED))
        .service_config(ServiceVariables)
        .build())
}

/// Reads the variables of one service, such as `AWS_ENDPOINT_URL_DYNAMODB`.
#[derive(Debug)]
struct ServiceVariables;

impl LoadServiceConfig for ServiceVariables {
    fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
        let service = key.service_id().to_ascii_uppercase().replace(' ', "_");
        optional(&format!("{}_{service}", key.env())).ok().flatten()
    }
}

/// Returns the reader and the secrets to verify the audit logs of a deployed stack. Reads
/// `KARTA_TABLE`, `KARTA_ANCHORS_TABLE`, `KARTA_SECRET_AUDIT` and the environment's AWS
/// credentials.
pub async fn deployed_audit() -> Result<(AuditReader, Secrets), ConfigError> {
    let (main, anchors) = (table("KARTA_TABLE")?, table("KARTA_ANCHORS_TABLE")?);
    let sdk = operator_sdk().await;
    let source = SecretSource::manager_from_env(aws_sdk_secretsmanager::Client::new(&sdk))?;
    let reader = AuditReader::new(aws_sdk_dynamodb::Client::new(&sdk), main, anchors);
    Ok((reader, Secrets::new(source, Arc::new(SystemClock))))
}

/// Returns the SDK settings of an operator's command, with the default credential chain (profiles,
/// roles and so on).
pub async fn operator_sdk() -> SdkConfig {
    sdk().load().await
}

/// Returns the SDK settings for a store on this machine. `endpoint` is its URL, `access_key` the
/// access key id that it requires.
pub async fn local_sdk(endpoint: &str, access_key: &SecretString) -> SdkConfig {
    sdk()
        .endpoint_url(endpoint)
        .region(Region::from_static("us-east-1"))
        .credentials_provider(Credentials::new(access_key.expose_secret(), "unjudged", None, None, "local"))
        .load()
        .await
}

/// Reads `KARTA_SESSION_TOKEN_SECRET`: the secret that signs the session tokens of a local run, so
/// that a data plane can share it.
pub fn session_token_secret() -> Result<Option<SecretString>, ConfigError> {
    Ok(optional("KARTA_SESSION_TOKEN_SECRET")?.map(SecretString::from))
}

/// Reads `KARTA_SERVICE_TOKENS`: comma-separated tokens that a local run accepts on the internal
/// routes instead of the generated one.
pub fn service_tokens() -> Result<Option<SecretString>, ConfigError> {
    Ok(optional("KARTA_SERVICE_TOKENS")?.map(SecretString::from))
}

/// Reads `KARTA_STRIPE_SECRETS`: comma-separated signing secrets of the Stripe test events that a
/// local run receives.
pub fn stripe_secrets() -> Result<Option<SecretString>, ConfigError> {
    Ok(optional("KARTA_STRIPE_SECRETS")?.map(SecretString::from))
}

/// Returns the namespace of the metrics, `Karta/<stage>`. Reads `KARTA_STAGE`.
pub fn metrics_namespace() -> Result<String, ConfigError> {
    required("KARTA_STAGE").map(|stage| format!("Karta/{stage}"))
}

/// Reads `KARTA_RESPONSE_TRANSFER_MODE`: whether API Gateway streams the responses of functions that
/// stream. It has the values of SAM's `ResponseTransferMode`; the default is `RESPONSE_STREAM`.
pub fn streams_responses() -> Result<bool, ConfigError> {
    const VARIABLE: &str = "KARTA_RESPONSE_TRANSFER_MODE";
    match optional(VARIABLE)?.as_deref() {
        None | Some("RESPONSE_STREAM") => Ok(true),
        Some("BUFFERED") => Ok(false),
        Some(_) => Err(ConfigError::new(VARIABLE, "must be RESPONSE_STREAM or BUFFERED")),
    }
}

/// Reads `KARTA_OWN_HOSTS`: this stack's host names, separated by commas. Nothing may be sent to them
/// at a customer's request. `{api}` is the API's id: the template cannot name the API in a function
/// that the API calls.
pub fn own_hosts() -> Result<Vec<String>, ConfigError> {
    let hosts = required("KARTA_OWN_HOSTS")?;
    Ok(hosts.split(',').map(str::trim).filter(|host| !host.is_empty()).map(ToOwned::to_owned).collect())
}

/// Reads `KARTA_WEBHOOK_DELIVERIES_FUNCTION`: the function that serves an endpoint's queue.
pub fn webhook_deliveries_function() -> Result<String, ConfigError> {
    required("KARTA_WEBHOOK_DELIVERIES_FUNCTION")
}

/// Reads `KARTA_DATA_PLANES`: the data planes whose caches a local run invalidates, in the format
/// of the secret `data-planes`.
pub fn data_planes() -> Result<Option<SecretString>, ConfigError> {
    let variable = "KARTA_DATA_PLANES";
    let Some(text) = optional(variable)?.map(SecretString::from) else {
        return Ok(None);
    };
    secrets::parse_local_data_planes(text.expose_secret())
        .map_err(|problem| ConfigError::new(variable, format!("cannot be read: {problem}")))?;
    Ok(Some(text))
}

/// `KARTA_REST_API_ID` and `KARTA_STAGE`: the gateway in front of this stack.
#[derive(Debug, Clone)]
pub struct GatewayStage {
    pub rest_api_id: String,
    pub stage: String,
}

impl GatewayStage {
    pub fn from_env() -> Result<Self, ConfigError> {
        Ok(Self { rest_api_id: required("KARTA_REST_API_ID")?, stage: required("KARTA_STAGE")? })
    }
}

/// Reads `KARTA_INTERNAL_ALLOWED_IPS` (addresses and ranges) and `KARTA_INTERNAL_HOSTS`, both
/// separated by commas.
pub fn internal_guard() -> Result<InternalGuard, ConfigError> {
    Ok(InternalGuard { addresses: parsed("KARTA_INTERNAL_ALLOWED_IPS")?, hosts: parsed("KARTA_INTERNAL_HOSTS")? })
}

/// Returns the names of all variables that this module reads.
pub fn variables() -> impl Iterator<Item = &'static str> {
    VARIABLES.into_iter().chain(Secret::all().map(Secret::variable))
}

/// Returns the names of the variables that are set and start with `KARTA_`.
pub fn set_variables() -> BTreeSet<String> {
    own_variables(|text| !text.is_empty())
}

/// Returns the names of the variables that are empty, which count as unset, and start with
/// `KARTA_`.
pub fn empty_variables() -> BTreeSet<String> {
    own_variables(OsStr::is_empty)
}

fn own_variables(has: impl Fn(&OsStr) -> bool) -> BTreeSet<String> {
    let names = env::vars_os().filter(|(_, text)| has(text)).map(|(name, _)| name.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(VARIABLE_PREFIX)).collect()
}

fn required(variable: &str) -> Result<String, ConfigError> {
    optional(variable)?.ok_or_else(|| ConfigError::new(variable, "is not set"))
}

/// Reads a table name and checks it against DynamoDB's rules.
fn table(variable: &str) -> Result<String, ConfigError> {
    let name = required(variable)?;
    if is_table_name(&name) {
        Ok(name)
    } else {
        Err(ConfigError::new(variable, "must be a table name: 3 to 255 letters, digits, `_`, `-` or `.`"))
    }
}

fn is_table_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (3..=255).contains(&name.len()) && name.bytes().all(is_plain)
}

fn parsed<T: FromStr<Err: Display>>(variable: &str) -> Result<Option<T>, ConfigError> {
    let text = optional(variable)?;
    text.map(|text| text.parse().map_err(|error| ConfigError::new(variable, format!("cannot be read: {error}"))))
        .transpose()
}

/// Reads a variable that holds JSON. The error does not repeat the JSON.
fn json<T: DeserializeOwned>(variable: &str) -> Result<Option<T>, ConfigError> {
    let text = optional(variable)?;
    let problem = |error: serde_json::Error| {
        // Messages of data errors are Karta's own.
        if error.is_data() { error.to_string() } else { "it is not JSON".to_owned() }
    };
    text.map(|text| {
        serde_json::from_str(&text)
            .map_err(|error| ConfigError::new(variable, format!("cannot be read: {}", problem(error))))
    })
    .transpose()
}

/// Reads a variable. An empty one counts as unset, because stack templates cannot omit a variable.
#[expect(clippy::disallowed_methods, reason = "the only place that reads the environment")]
fn optional(variable: &str) -> Result<Option<String>, ConfigError> {
    match env::var(variable) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => Err(ConfigError::new(variable, "is not UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_name_follows_dynamodb_rules() {
        for name in ["karta", "karta-prod", "Karta.prod_2", &"a".repeat(255)] {
            assert!(is_table_name(name), "{name}");
        }
        for name in ["", "ab", "a table", "karta/prod", "kärta", "${KartaTable}", &"a".repeat(256)] {
            assert!(!is_table_name(name), "{name}");
        }
    }

    #[test]
    fn deployed_stack_rejects_low_bcrypt_cost() {
        assert!(deployed_bcrypt_cost(9).is_err());
        assert!(deployed_bcrypt_cost(10).is_ok());
        let error = deployed_bcrypt_cost(4).unwrap_err().to_string();
        assert_eq!(error, "KARTA_BCRYPT_COST must be a number from 10 to 15 in a deployed stack");
    }
}

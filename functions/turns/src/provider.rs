//! Calls a model provider.

use std::{fmt, sync::Arc, time::Duration};

use karta_dialects::{Dialect, FaultKind, ProviderFault, ReportedUsage, read_error};
use karta_outbound::{CheckedClient, NotSent, SystemLookup, builder, causes};
use karta_shared::{
    App, config,
    domain::{EndpointUrl, Exhausted, OutboundUrl, Provider, Reach, TurnError, TurnId, retry_after},
    telemetry,
};
use reqwest::{
    Client, RequestBuilder, Response,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep, timeout, timeout_at},
};

const USER_AGENT: &str = "Karta/1";
const ANTHROPIC_VERSION: &str = "2023-06-01";
/// How long an unused connection is kept. Shorter than the providers' idle timeouts, so that a function
/// that resumes after a freeze does not use a closed connection.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum `Retry-After` that is waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);
/// Pause before the second request if the provider names none.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Maximum bytes read of an error response.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Maximum bytes read of an answer that is no event stream. Its usage may follow the text.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// How long the body of such a response is awaited. Its status is enough to classify it.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_MESSAGE_CHARS: usize = 500;
const TOO_MANY_REQUESTS: u16 = 429;
const HOST_UNRESOLVED: &str = "endpoint_url was not called: its host name could not be resolved. Try again, or correct endpoint_url or the DNS record.";
const ENDPOINT_NOT_CALLED: &str = "endpoint_url was not called: its host must have public addresses that are not Karta's own. Change endpoint_url, or correct the DNS record.";

/// The HTTP clients of the process, created at their first use. They live as long as the process,
/// because turns outlive their requests.
#[derive(Debug)]
pub(crate) struct ProviderClients {
    /// For the providers' own hosts and the operator's base URLs.
    trusted: OnceCell<Client>,
    /// For base URLs that customers choose. One client per [`Reach`].
    checked: [OnceCell<CheckedClient>; 2],
}

pub(crate) static PROVIDERS: ProviderClients =
    ProviderClients { trusted: OnceCell::const_new(), checked: [const { OnceCell::const_new() }; 2] };

/// The destination of a turn's request, and its key.
pub(crate) struct Target {
    pub(crate) provider: Provider,
    pub(crate) dialect: Dialect,
    pub(crate) base_url: BaseUrl,
    pub(crate) key: SecretString,
}

#[derive(Debug, Clone)]
pub(crate) enum BaseUrl {
    /// The provider's own host, or the operator's replacement of it.
    Provider,
    /// The organization's or the project's `endpoint_url`.
    Customer(EndpointUrl),
}

/// What the provider may bill of a turn's request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Billed {
    Nothing,
    /// The provider may have accepted the request.
    Possibly,
    /// A whole answer instead of a stream, and the usage that it reports.
    WholeAnswer(ReportedUsage),
}

/// Why a turn failed, with a text for the client.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) error: TurnError,
    /// The text for the client: the provider's redacted message for a rejected request, or Karta's text
    /// about `endpoint_url`. `None` uses [`TurnError::message`].
    pub(crate) message: Option<String>,
    pub(crate) retry_after: Option<Duration>,
    /// The cap that refused a slice.
    pub(crate) exhausted: Option<Exhausted>,
}

impl From<TurnError> for Failure {
    fn from(error: TurnError) -> Self {
        Self { error, message: None, retry_after: None, exhausted: None }
    }
}

impl Failure {
    pub(crate) fn message(&self) -> &str {
        self.message.as_deref().unwrap_or(self.error.message())
    }

    /// Classifies the provider's fault. `key` never appears in the message.
    pub(crate) fn from_fault(fault: ProviderFault, key: &SecretString) -> Self {
        let error = match fault.kind {
            FaultKind::Rejected => TurnError::ProviderRejected,
            FaultKind::KeyRejected => TurnError::ByokKeyRejected,
            FaultKind::CreditExhausted => TurnError::ProviderCreditExhausted,
            FaultKind::RateLimited => TurnError::ProviderRateLimited,
            FaultKind::Unavailable => TurnError::ProviderError,
        };
        // Only the caller can fix a rejected request. Other messages describe the account.
        let message = fault.message.filter(|_| error == TurnError::ProviderRejected);
        let message = message.and_then(|message| presentable(&message.replace(key.expose_secret(), "[redacted]")));
        Self { error, message, retry_after: None, exhausted: None }
    }
}

/// Returns a provider's message on one line, without secrets; `None` if nothing visible is left.
fn presentable(message: &str) -> Option<String> {
    let is_space = |character: char| character.is_whitespace() || character.is_control();
    let words: Vec<_> = message.split(is_space).filter(|word| !word.is_empty()).collect();
    let message: String = telemetry::scrub(&words.join(" ")).chars().take(MAX_MESSAGE_CHARS).collect();
    message.chars().any(char::is_alphanumeric).then_some(message)
}

/// The dialect in which a provider is called; `None` for a provider that turns cannot call.
pub(crate) const fn dialect_of(provider: Provider) -> Option<Dialect> {
    match provider {
        Provider::Anthropic => Some(Dialect::AnthropicMessages),
        Provider::OpenAi => Some(Dialect::OpenAiChat),
        Provider::OpenRouter => Some(Dialect::OpenRouterChat),
        Provider::Bedrock | Provider::Vertex => None,
    }
}

/// Returns the provider's base URL, in the form that its SDKs take.
const fn own_base_url(provider: Provider) -> &'static str {
    match provider {
        Provider::Anthropic => "https://api.anthropic.com",
        Provider::OpenAi => "https://api.openai.com/v1",
        Provider::OpenRouter => "https://openrouter.ai/api/v1",
        Provider::Bedrock | Provider::Vertex => "",
    }
}

impl ProviderClients {
    /// Sends a request and waits for the head of an event stream. Retries it once after a 5xx, and
    /// after a 429 whose `Retry-After` is missing or at most 10 s. Nothing of the answer has reached the
    /// client by then.
    ///
    /// `billed` is [`Billed::Possibly`] while the provider may have accepted a request, also if the call
    /// fails without an answer or is dropped.
    pub(crate) async fn call(
        &self,
        app: &App,
        turn: &TurnId,
        target: &Target,
        body: &[u8],
        billed: &mut Billed,
    ) -> Result<Response, Failure> {
        let first = match self.attempt(app, turn, target, body, billed).await {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        let Some(pause) = first.pause() else { return Err(first.failure) };
        sleep(pause).await;
        self.attempt(app, turn, target, body, billed).await.map_err(|second| second.failure)
    }

    async fn attempt(
        &self,
        app: &App,
        turn: &TurnId,
        target: &Target,
        body: &[u8],
        billed: &mut Billed,
    ) -> Result<Response, FailedAttempt> {
        let provider = target.provider.as_str();
        let not_sent = |fault: &RequestFault| {
            tracing::warn!(turn_id = %turn, provider, %fault, "provider request not sent");
            let message = fault.message().map(str::to_owned);
            FailedAttempt { failure: Failure { message, ..TurnError::ProviderError.into() }, status: None }
        };
        let request = self.request(app, target).await.map_err(|fault| not_sent(&fault))?;
        *billed = Billed::Possibly;
        let sent = timeout(app.turn_limits.response_head, request.body(body.to_vec()).send()).await;
        let mut response = match sent {
            Err(_) => return Err(TurnError::ProviderTimeout.into()),
            Ok(Err(error)) => {
                // The client checks the addresses of a host name when it connects.
                if let Some(fault) = causes(&error).find_map(|cause| cause.downcast_ref::<NotSent>()) {
                    *billed = Billed::Nothing;
                    return Err(not_sent(&RequestFault::NotSent(fault.clone())));
                }
                let fault = causes(&error).last().map(ToString::to_string).unwrap_or_default();
                tracing::warn!(turn_id = %turn, provider, fault, "provider request failed");
                // Without a connection nothing was sent.
                if error.is_connect() {
                    *billed = Billed::Nothing;
                }
                let is_timeout = error.is_timeout();
                let failed = if is_timeout { TurnError::ProviderTimeout } else { TurnError::ProviderError };
                return Err(failed.into());
            }
            Ok(Ok(response)) => response,
        };
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let media_type = content_type.and_then(|kind| kind.split(';').next()).unwrap_or_default();
        let is_event_stream = media_type.trim().eq_ignore_ascii_case("text/event-stream");
        if response.status().is_success() && is_event_stream {
            return Ok(response);
        }
        let is_json = media_type.trim().eq_ignore_ascii_case("application/json");
        let may_be_answer = response.status().is_success() && is_json;
        let max_bytes = if may_be_answer { MAX_ANSWER_BYTES } else { MAX_ERROR_BYTES };
        let body = read_body(&mut response, max_bytes).await;
        let failed = FailedAttempt::new(app, turn, target, &response, &body);
        // A proxy that ignores `stream` returns the whole answer as JSON: it was billed, and ends the turn
        // as `ProviderError`. JSON that reports an error of another kind is not billed.
        *billed = match target.dialect.usage_of_answer(&body) {
            _ if !may_be_answer || failed.failure.error != TurnError::ProviderError => Billed::Nothing,
            Some(usage) => Billed::WholeAnswer(usage),
            None => Billed::Possibly,
        };
        Err(failed)
    }

    /// Builds a request whose headers are an allowlist: nothing of the caller's goes upstream.
    async fn request(&self, app: &App, target: &Target) -> Result<RequestBuilder, RequestFault> {
        let request = match &target.base_url {
            BaseUrl::Provider => {
                let base = app.provider_base_urls.get(target.provider).unwrap_or(own_base_url(target.provider));
                let client = self.trusted.get_or_try_init(async || {
                    builder(USER_AGENT).pool_idle_timeout(POOL_IDLE_TIMEOUT).tcp_nodelay(true).build()
                });
                client.await?.post(url(base, target.dialect))
            }
            BaseUrl::Customer(base) => {
                let url = OutboundUrl::parse(&url(base.as_str(), target.dialect), app.outbound_reach);
                let url = url.map_err(NotSent::Url)?;
                let client = &self.checked[usize::from(app.outbound_reach == Reach::Loopback)];
                let client = client.get_or_try_init(async || {
                    // A local run has no host names of its own.
                    let own_hosts = config::own_hosts().unwrap_or_default();
                    CheckedClient::new(USER_AGENT, app.outbound_reach, own_hosts, Arc::new(SystemLookup))
                });
                client.await?.post(&url)?
            }
        };
        let request = request.header(CONTENT_TYPE, "application/json").header(ACCEPT, "text/event-stream");
        let key = target.key.expose_secret();
        let sensitive = |text: &str| {
            let mut value = HeaderValue::from_str(text).map_err(|_| RequestFault::Key)?;
            value.set_sensitive(true);
            Ok::<_, RequestFault>(value)
        };
        Ok(match target.dialect {
            Dialect::AnthropicMessages => {
                request.header("anthropic-version", ANTHROPIC_VERSION).header("x-api-key", sensitive(key)?)
            }
            Dialect::OpenAiChat | Dialect::OpenRouterChat => {
                request.header(AUTHORIZATION, sensitive(&format!("Bearer {key}"))?)
            }
        })
    }
}

/// Reads the start of a response that is no event stream.
async fn read_body(response: &mut Response, max_bytes: usize) -> Vec<u8> {
    let (mut body, due) = (Vec::new(), Instant::now() + ERROR_BODY_TIMEOUT);
    while body.len() < max_bytes
        && let Ok(Ok(Some(chunk))) = timeout_at(due, response.chunk()).await
    {
        body.extend_from_slice(&chunk[..chunk.len().min(max_bytes - body.len())]);
    }
    body
}

/// Joins a base URL and the path of the dialect. Anthropic's base URL has no version.
fn url(base: &str, dialect: Dialect) -> String {
    let base = base.trim_end_matches('/');
    match dialect {
        Dialect::AnthropicMessages if base.ends_with("/v1") => format!("{base}/{}", dialect.path()),
        Dialect::AnthropicMessages => format!("{base}/v1/{}", dialect.path()),
        Dialect::OpenAiChat | Dialect::OpenRouterChat => format!("{base}/{}", dialect.path()),
    }
}

/// A request whose response is not an event stream, or that got no response.
struct FailedAttempt {
    failure: Failure,
    status: Option<u16>,
}

impl From<TurnError> for FailedAttempt {
    fn from(error: TurnError) -> Self {
        Self { failure: error.into(), status: None }
    }
}

impl FailedAttempt {
    fn new(app: &App, turn: &TurnId, target: &Target, response: &Response, body: &[u8]) -> Self {
        let status = response.status().as_u16();
        let requested = response.headers().get(RETRY_AFTER).and_then(|text| text.to_str().ok());
        let retry_after = requested.and_then(|text| retry_after(text, app.clock.now()));
        let failure = Failure::from_fault(read_error(status, body), &target.key);
        let code = failure.error.as_str();
        let provider = target.provider.as_str();
        tracing::warn!(turn_id = %turn, provider, status, code, "provider returned an error");
        let is_limited = failure.error == TurnError::ProviderRateLimited;
        Self { failure: Failure { retry_after: retry_after.filter(|_| is_limited), ..failure }, status: Some(status) }
    }

    /// Returns the pause before a second request; `None` if the call is not repeated.
    fn pause(&self) -> Option<Duration> {
        match (self.status, self.failure.error) {
            (Some(TOO_MANY_REQUESTS), TurnError::ProviderRateLimited) => {
                Some(self.failure.retry_after.unwrap_or(RETRY_PAUSE)).filter(|pause| *pause <= MAX_RETRY_AFTER)
            }
            (Some(500..), TurnError::ProviderError) => Some(RETRY_PAUSE),
            _ => None,
        }
    }
}

/// Why a request could not be built.
#[derive(Debug)]
enum RequestFault {
    Client(reqwest::Error),
    NotSent(NotSent),
    /// The key holds bytes that no header can have.
    Key,
}

impl RequestFault {
    /// The text for the client, if `endpoint_url` is at fault.
    fn message(&self) -> Option<&'static str> {
        match self {
            Self::NotSent(NotSent::Unresolved) => Some(HOST_UNRESOLVED),
            Self::NotSent(_) => Some(ENDPOINT_NOT_CALLED),
            Self::Client(_) | Self::Key => None,
        }
    }
}

impl From<reqwest::Error> for RequestFault {
    fn from(error: reqwest::Error) -> Self {
        Self::Client(error)
    }
}

impl From<NotSent> for RequestFault {
    fn from(error: NotSent) -> Self {
        Self::NotSent(error)
    }
}

impl fmt::Display for RequestFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(error) => write!(f, "client not created: {error}"),
            Self::NotSent(error) => error.fmt(f),
            Self::Key => f.write_str("the provider key holds bytes that no header can have"),
        }
    }
}

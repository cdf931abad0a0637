//! The HTTP client for deliveries. It only connects to addresses that passed the check, and limits
//! the time and size of an attempt.
//!
//! The URL's text is checked again, then every address that its name resolves to, and the
//! connection goes to one of those addresses. There is no second look-up, no redirect, no proxy and
//! no reused connection.

use std::{
    error::Error,
    fmt, io, iter,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use karta_shared::{
    clock::Clock,
    domain::{Invalid, Reach, Signatures, WebhookUrl, check_address, retry_after},
};
use reqwest::{
    Body, Client, Response, Url,
    dns::{Name, Resolve, Resolving},
    header::{CONTENT_TYPE, RETRY_AFTER},
    redirect, retry, tls,
};

/// Time limit of an attempt: look-up, connection, TLS, headers and body.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum bytes read of a response. The connection of a receiver that sends more is dropped.
const MAX_READ_BYTES: usize = 64 << 10;
const MAX_KEPT_BYTES: usize = 1 << 10;
const MAX_ERROR_CHARS: usize = 200;

/// Resolves a host name.
pub trait Lookup: Send + Sync + 'static {
    fn lookup(&self, host: String) -> LookupFuture;
}

pub type LookupFuture = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// The system's resolver.
#[derive(Debug, Clone, Copy)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, host: String) -> LookupFuture {
        Box::pin(async move {
            // A name with a trailing dot is resolved as it is, without the machine's search
            // domains.
            let host = if host == "localhost" { host } else { format!("{host}.") };
            let addresses = tokio::net::lookup_host((host, 0)).await?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    }
}

/// Sends deliveries.
pub struct Wire {
    client: Client,
    clock: Arc<dyn Clock>,
    reach: Reach,
    own_hosts: Vec<String>,
    within: Duration,
}

/// The outcome of an attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub response_code: Option<u16>,
    /// From the start of the look-up to the end of the response.
    pub latency_ms: u64,
    /// The first 1024 bytes of the response, unchanged.
    pub response_body: Vec<u8>,
    /// Why the delivery failed, without the URL; `None` if it succeeded. Success requires a 2xx and
    /// the complete response or its first 64 KiB.
    pub error: Option<String>,
    /// The delay that the `Retry-After` header of an unsuccessful response requests, at most a day.
    pub retry_after: Option<Duration>,
}

/// The reason why nothing was sent.
#[derive(Debug, PartialEq, Eq)]
enum PostError {
    Url(Invalid),
    OwnHost,
    Address(&'static str),
    Unresolved,
}

impl Wire {
    /// `own_hosts` are the host names of this stack. Fails if the system's certificates cannot be
    /// read.
    pub fn new(
        reach: Reach,
        own_hosts: Vec<String>,
        lookup: Arc<dyn Lookup>,
        clock: Arc<dyn Clock>,
    ) -> reqwest::Result<Self> {
        let client = Client::builder()
            .user_agent("Karta-Webhooks/1")
            .dns_resolver(CheckedResolver { reach, lookup })
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .no_gzip()
            .no_brotli()
            .no_deflate()
            .no_zstd()
            .referer(false)
            .http1_only()
            .tls_version_min(tls::Version::TLS_1_2)
            // A connection is not reused, because its address was checked for one delivery only,
            // and because a function is frozen between runs.
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self { client, clock, reach, own_hosts, within: ATTEMPT_TIMEOUT })
    }

    /// Sets the time limit of an attempt; 15 s by default.
    #[must_use]
    pub fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// Makes one attempt and waits at most 15 s for its end. Never fails: every fault is an
    /// outcome.
    pub async fn post(&self, url: &WebhookUrl, signatures: &Signatures, body: impl Into<Body>) -> Outcome {
        let started = Instant::now();
        let mut outcome = match self.check_url(url) {
            Ok(url) => self.exchange(url, signatures, body.into()).await,
            Err(error) => Outcome::failed(error.to_string()),
        };
        outcome.latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        outcome
    }

    /// Parses the URL for the client. An address in the URL is checked here, because the client's
    /// resolver sees only names.
    fn check_url(&self, url: &WebhookUrl) -> Result<Url, PostError> {
        url.check(self.reach).map_err(PostError::Url)?;
        if url.is_on(&self.own_hosts) {
            return Err(PostError::OwnHost);
        }
        let ambiguous = PostError::Url(Invalid::new("must have an unambiguous host"));
        let Ok(parsed) = Url::parse(url.as_str()) else {
            return Err(ambiguous);
        };
        let host = parsed.host_str().unwrap_or_default();
        match host.trim_matches(['[', ']']).parse() {
            Ok(address) => check_reach(address, url.is_loopback(), self.reach).map(|()| parsed),
            Err(_) if host == url.host() => Ok(parsed),
            Err(_) => Err(ambiguous),
        }
    }

    async fn exchange(&self, url: Url, signatures: &Signatures, body: Body) -> Outcome {
        let sent = self
            .client
            .post(url)
            .timeout(self.within)
            .header(CONTENT_TYPE, "application/json")
            .header("karta-signature", &signatures.karta_signature)
            .header("webhook-id", &signatures.webhook_id)
            .header("webhook-timestamp", &signatures.webhook_timestamp)
            .header("webhook-signature", &signatures.webhook_signature)
            .body(body)
            .send()
            .await;
        let mut response = match sent {
            Ok(response) => response,
            Err(error) => return Outcome::failed(self.describe(&error)),
        };
        let status = response.status();
        let requested = response.headers().get(RETRY_AFTER).filter(|_| !status.is_success());
        let requested = requested.and_then(|text| text.to_str().ok());
        let retry_after = requested.and_then(|text| retry_after(text, self.clock.now()));
        let (response_body, broken) = read(&mut response).await;
        let error = match broken {
            _ if status.is_redirection() => {
                Some(format!("receiver returned {}, and redirects are not followed", status.as_u16()))
            }
            _ if !status.is_success() => Some(format!("receiver returned {}", status.as_u16())),
            broken => broken.map(|error| self.describe(&error)),
        };
        Outcome { response_code: Some(status.as_u16()), response_body, error, retry_after, ..Outcome::default() }
    }

    /// Describes an error briefly, without the URL.
    fn describe(&self, error: &reqwest::Error) -> String {
        if let Some(post_error) = causes(error).find_map(|cause| cause.downcast_ref::<PostError>()) {
            return post_error.to_string();
        }
        if error.is_timeout() {
            return format!("no complete response within {} s", self.within.as_secs_f32());
        }
        let kind = if error.is_connect() { "no connection" } else { "invalid response" };
        let cause = causes(error).last().map(ToString::to_string).unwrap_or_default();
        let cause = cause.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
        format!("{kind}: {}", cause.take(MAX_ERROR_CHARS).collect::<String>())
    }
}

/// Returns the causes of an error. The error itself is omitted, because it shows the URL.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    iter::successors(error.source(), |error| (**error).source())
}

/// Reads the start of a response. Also returns the error that interrupted it, if any.
async fn read(response: &mut Response) -> (Vec<u8>, Option<reqwest::Error>) {
    let (mut kept, mut length) = (Vec::new(), 0);
    while length < MAX_READ_BYTES {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                length += chunk.len();
                kept.extend_from_slice(&chunk[..chunk.len().min(MAX_KEPT_BYTES - kept.len())]);
            }
            Ok(None) => break,
            Err(error) => return (kept, Some(error)),
        }
    }
    (kept, None)
}

/// The client's resolver, which checks every address.
struct CheckedResolver {
    reach: Reach,
    lookup: Arc<dyn Lookup>,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (host, reach) = (name.as_str().to_owned(), self.reach);
        let on_loopback = host == "localhost";
        let found = self.lookup.lookup(host);
        Box::pin(async move {
            let addresses = found.await.map_err(|_| PostError::Unresolved)?;
            if addresses.is_empty() {
                return Err(PostError::Unresolved.into());
            }
            // One rejected address is enough: the name's owner intends every listed address to be
            // used.
            addresses.iter().try_for_each(|address| check_reach(*address, on_loopback, reach))?;
            let addresses: Vec<_> = addresses.into_iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as _)
        })
    }
}

/// Checks an address. Loopback is reachable only under its own names, and these names reach only
/// loopback.
fn check_reach(address: IpAddr, on_loopback: bool, reach: Reach) -> Result<(), PostError> {
    check_address(address, if on_loopback { reach } else { Reach::Public }).map_err(PostError::Address)?;
    if on_loopback && !address.is_loopback() {
        return Err(PostError::Address("outside loopback, although the name is for loopback"));
    }
    Ok(())
}

impl Outcome {
    fn failed(error: String) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

impl fmt::Display for PostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(problem) => write!(f, "not sent: the URL {problem}"),
            Self::OwnHost => f.write_str("not sent: the URL points to this service"),
            Self::Address(kind) => write!(f, "not sent: the host has an address that is not public: {kind}"),
            Self::Unresolved => f.write_str("not sent: the host name cannot be resolved"),
        }
    }
}

impl Error for PostError {}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("reach", &self.reach).field("own_hosts", &self.own_hosts).finish_non_exhaustive()
    }
}

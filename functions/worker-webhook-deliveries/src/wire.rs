//! How a delivery leaves: judged, pinned to the addresses that were judged, bounded in time and size.
//!
//! The URL's text is judged again, then every address that its name resolves to, and the connection goes to one of these and no other.
//! There is no second look-up in between, no redirect, no proxy and no connection left over from before.

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
    domain::{Invalid, Reach, Signatures, WebhookUrl, judge_address, retry_after},
};
use reqwest::{
    Body, Client, Response, Url,
    dns::{Name, Resolve, Resolving},
    header::{CONTENT_TYPE, RETRY_AFTER},
    redirect, retry, tls,
};

/// For a whole attempt: look-up, connection, TLS, headers and body.
const WITHIN: Duration = Duration::from_secs(15);
/// How much of an answer is read. A receiver that sends more has its connection dropped.
const READ_MAX: usize = 64 << 10;
/// How much of it is kept.
const KEPT_MAX: usize = 1 << 10;
const ERROR_MAX: usize = 200;

/// Finds a name's addresses.
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
            // With a dot at its end a name is looked up as it is, and never below the machine's own search domains.
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

/// What came of an attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub response_code: Option<u16>,
    /// From the start of the look-up to the end of the answer.
    pub latency_ms: u64,
    /// The answer's first 1024 bytes, as they came.
    pub response_body: Vec<u8>,
    /// Why the delivery failed, without the URL; `None` if it succeeded, which takes a 2xx and the whole answer or its first 64 KiB.
    pub error: Option<String>,
    /// What a receiver that refused asked for, at most a day.
    pub retry_after: Option<Duration>,
}

/// Why nothing was sent.
#[derive(Debug, PartialEq, Eq)]
enum PostRefusal {
    Url(Invalid),
    OwnHost,
    Address(&'static str),
    Unresolved,
}

impl Wire {
    /// `own_hosts` are the names under which this stack is called. Fails where the system's certificates cannot be read.
    pub fn new(
        reach: Reach,
        own_hosts: Vec<String>,
        lookup: Arc<dyn Lookup>,
        clock: Arc<dyn Clock>,
    ) -> reqwest::Result<Self> {
        let client = Client::builder()
            .user_agent("Karta-Webhooks/1")
            .dns_resolver(Judged { reach, lookup })
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
            // What was judged for one delivery is not used for another; and a function is frozen between two runs.
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self { client, clock, reach, own_hosts, within: WITHIN })
    }

    /// With another limit for a whole attempt than 15 s.
    #[must_use]
    pub fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// Sends one attempt and waits for its end, 15 s at most. Never fails: whatever happens is an outcome.
    pub async fn post(&self, url: &WebhookUrl, signatures: &Signatures, body: impl Into<Body>) -> Outcome {
        let started = Instant::now();
        let mut outcome = match self.judged(url) {
            Ok(url) => self.exchange(url, signatures, body.into()).await,
            Err(refused) => Outcome::failed(refused.to_string()),
        };
        outcome.latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        outcome
    }

    /// The URL as the client reads it. An address is judged here, as the client looks up names alone.
    fn judged(&self, url: &WebhookUrl) -> Result<Url, PostRefusal> {
        url.judge(self.reach).map_err(PostRefusal::Url)?;
        if url.is_on(&self.own_hosts) {
            return Err(PostRefusal::OwnHost);
        }
        let unlike = PostRefusal::Url(Invalid::new("must have a host that every reader of URLs reads alike"));
        let Ok(parsed) = Url::parse(url.as_str()) else {
            return Err(unlike);
        };
        let host = parsed.host_str().unwrap_or_default();
        match host.trim_matches(['[', ']']).parse() {
            Ok(address) => judge(address, url.is_loopback(), self.reach).map(|()| parsed),
            Err(_) if host == url.host() => Ok(parsed),
            Err(_) => Err(unlike),
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
        let mut answer = match sent {
            Ok(answer) => answer,
            Err(error) => return Outcome::failed(self.describe(&error)),
        };
        let status = answer.status();
        let asked = answer.headers().get(RETRY_AFTER).filter(|_| !status.is_success());
        let asked = asked.and_then(|text| text.to_str().ok());
        let retry_after = asked.and_then(|text| retry_after(text, self.clock.now()));
        let (response_body, broken) = read(&mut answer).await;
        let error = match broken {
            _ if status.is_redirection() => {
                Some(format!("it answered {}, and redirects are not followed", status.as_u16()))
            }
            _ if !status.is_success() => Some(format!("it answered {}", status.as_u16())),
            broken => broken.map(|error| self.describe(&error)),
        };
        Outcome { response_code: Some(status.as_u16()), response_body, error, retry_after, ..Outcome::default() }
    }

    /// In a few words, without the URL.
    fn describe(&self, error: &reqwest::Error) -> String {
        if let Some(refused) = causes(error).find_map(|cause| cause.downcast_ref::<PostRefusal>()) {
            return refused.to_string();
        }
        if error.is_timeout() {
            return format!("no complete answer within {} s", self.within.as_secs_f32());
        }
        let kind = if error.is_connect() { "no connection" } else { "no proper answer" };
        let cause = causes(error).last().map(ToString::to_string).unwrap_or_default();
        let cause = cause.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
        format!("{kind}: {}", cause.take(ERROR_MAX).collect::<String>())
    }
}

/// What an error came from, without itself: it shows the URL.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    iter::successors(error.source(), |error| (**error).source())
}

/// Reads the start of an answer, and the error that cut it short.
async fn read(answer: &mut Response) -> (Vec<u8>, Option<reqwest::Error>) {
    let (mut kept, mut length) = (Vec::new(), 0);
    while length < READ_MAX {
        match answer.chunk().await {
            Ok(Some(chunk)) => {
                length += chunk.len();
                kept.extend_from_slice(&chunk[..chunk.len().min(KEPT_MAX - kept.len())]);
            }
            Ok(None) => break,
            Err(error) => return (kept, Some(error)),
        }
    }
    (kept, None)
}

/// What the client's names are resolved by.
struct Judged {
    reach: Reach,
    lookup: Arc<dyn Lookup>,
}

impl Resolve for Judged {
    fn resolve(&self, name: Name) -> Resolving {
        let (host, reach) = (name.as_str().to_owned(), self.reach);
        let on_loopback = host == "localhost";
        let found = self.lookup.lookup(host);
        Box::pin(async move {
            let addresses = found.await.map_err(|_| PostRefusal::Unresolved)?;
            if addresses.is_empty() {
                return Err(PostRefusal::Unresolved.into());
            }
            // One that is refused is enough: whoever puts it among others means it to be tried.
            addresses.iter().try_for_each(|address| judge(*address, on_loopback, reach))?;
            let addresses: Vec<_> = addresses.into_iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as _)
        })
    }
}

/// Loopback is reached under its own names alone, and these reach nothing else.
fn judge(address: IpAddr, on_loopback: bool, reach: Reach) -> Result<(), PostRefusal> {
    judge_address(address, if on_loopback { reach } else { Reach::Public }).map_err(PostRefusal::Address)?;
    if on_loopback && !address.is_loopback() {
        return Err(PostRefusal::Address("outside loopback, under a name of loopback"));
    }
    Ok(())
}

impl Outcome {
    fn failed(error: String) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

impl fmt::Display for PostRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(problem) => write!(f, "not sent: the URL {problem}"),
            Self::OwnHost => f.write_str("not sent: the URL leads to this service itself"),
            Self::Address(what) => write!(f, "not sent: the host has an address that is not public: {what}"),
            Self::Unresolved => f.write_str("not sent: the host name cannot be resolved"),
        }
    }
}

impl Error for PostRefusal {}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("reach", &self.reach).field("own_hosts", &self.own_hosts).finish_non_exhaustive()
    }
}

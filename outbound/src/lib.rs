//! Outgoing HTTP to hosts that customers choose. The client only connects to addresses that passed
//! the check.
//!
//! The URL's text is checked, then every address that its name resolves to, and the connection goes
//! to one of those addresses. There is no second look-up, no redirect, no proxy and no reused
//! connection.

use std::{
    error::Error,
    fmt, io, iter,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use karta_shared::domain::{Invalid, OutboundUrl, Reach, check_address};
use reqwest::{
    Client, ClientBuilder, RequestBuilder, Url,
    dns::{Name, Resolve, Resolving},
    redirect, retry, tls,
};

/// Maximum time until a connection is open, the look-up of its host included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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

/// The reason why nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotSent {
    Url(Invalid),
    OwnHost,
    Address(&'static str),
    /// A name for loopback resolves to another address.
    LoopbackElsewhere,
    Unresolved,
}

/// A client for URLs that customers choose.
pub struct CheckedClient {
    client: Client,
    reach: Reach,
    own_hosts: Vec<String>,
}

impl CheckedClient {
    /// `own_hosts` are the host names of this stack. Fails if the system's certificates cannot be
    /// read.
    pub fn new(
        user_agent: &str,
        reach: Reach,
        own_hosts: Vec<String>,
        lookup: Arc<dyn Lookup>,
    ) -> reqwest::Result<Self> {
        let client = builder(user_agent)
            .dns_resolver(CheckedResolver { reach, lookup })
            // A connection is not reused, because its address was checked for one request only,
            // and because a function is frozen between runs.
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self { client, reach, own_hosts })
    }

    /// Checks the URL and starts a request to it. An address in the URL is checked here, because
    /// the client's resolver sees only names.
    pub fn post(&self, url: &OutboundUrl) -> Result<RequestBuilder, NotSent> {
        url.check(self.reach).map_err(NotSent::Url)?;
        if url.is_on(&self.own_hosts) {
            return Err(NotSent::OwnHost);
        }
        let ambiguous = NotSent::Url(Invalid::new(
            "must have a host that is a valid DNS name or address: URL parsers read this one differently",
        ));
        let Ok(parsed) = Url::parse(url.as_str()) else {
            return Err(ambiguous);
        };
        let host = parsed.host_str().unwrap_or_default();
        let checked = match host.trim_matches(['[', ']']).parse() {
            Ok(address) => check_reach(address, url.is_loopback(), self.reach).map(|()| parsed),
            Err(_) if host == url.host() => Ok(parsed),
            Err(_) => Err(ambiguous),
        };
        checked.map(|url| self.client.post(url))
    }
}

impl fmt::Debug for CheckedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("CheckedClient");
        debug.field("reach", &self.reach).field("own_hosts", &self.own_hosts).finish_non_exhaustive()
    }
}

/// Returns the settings that every outgoing client has: HTTP/1.1, TLS 1.2 or later, 5 s to
/// connect, no redirects, no retries, no proxy, no decompression.
pub fn builder(user_agent: &str) -> ClientBuilder {
    Client::builder()
        .user_agent(user_agent)
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
        .connect_timeout(CONNECT_TIMEOUT)
}

/// Returns the causes of an error. The error itself is omitted, because it shows the URL.
pub fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    iter::successors(error.source(), |error| (**error).source())
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
            let addresses = found.await.map_err(|_| NotSent::Unresolved)?;
            if addresses.is_empty() {
                return Err(NotSent::Unresolved.into());
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
fn check_reach(address: IpAddr, on_loopback: bool, reach: Reach) -> Result<(), NotSent> {
    check_address(address, if on_loopback { reach } else { Reach::Public }).map_err(NotSent::Address)?;
    if on_loopback && !address.is_loopback() {
        return Err(NotSent::LoopbackElsewhere);
    }
    Ok(())
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(problem) => write!(f, "not sent: the URL {problem}"),
            Self::OwnHost => f.write_str("not sent: the URL points to this service"),
            Self::Address(kind) => write!(f, "not sent: the host has an address that is not public: {kind}"),
            Self::LoopbackElsewhere => f.write_str("not sent: localhost resolves to an address outside loopback"),
            Self::Unresolved => f.write_str("not sent: the host name cannot be resolved"),
        }
    }
}

impl Error for NotSent {}

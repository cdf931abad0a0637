//! The HTTP client for deliveries. It only connects to addresses that passed the check
//! ([`karta_outbound`]), and limits the time and size of an attempt.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use karta_outbound::{CheckedClient, NotSent, causes};
pub use karta_outbound::{Lookup, LookupFuture, SystemLookup};
use karta_shared::{
    clock::Clock,
    domain::{OutboundUrl, Reach, Signatures, retry_after},
};
use reqwest::{
    Body, RequestBuilder, Response,
    header::{CONTENT_TYPE, RETRY_AFTER},
};

/// Time limit of an attempt: look-up, connection, TLS, headers and body.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum bytes read of a response. The connection of a receiver that sends more is dropped.
const MAX_READ_BYTES: usize = 64 << 10;
/// Bytes kept of a response: more than an attempt stores, because the text is scrubbed before it is
/// cut, and the scrubber does not recognize half a credential.
const MAX_KEPT_BYTES: usize = 4 << 10;
const MAX_ERROR_CHARS: usize = 200;

/// Sends deliveries.
pub struct Wire {
    client: CheckedClient,
    clock: Arc<dyn Clock>,
    within: Duration,
}

/// The outcome of an attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttemptOutcome {
    pub response_code: Option<u16>,
    /// From the start of the look-up to the end of the response.
    pub latency_ms: u64,
    /// The first 4 KiB of the response, unchanged.
    pub response_body: Vec<u8>,
    /// Why the delivery failed, without the URL; `None` if it succeeded. Success requires a 2xx and
    /// the complete response or its first 64 KiB.
    pub error: Option<String>,
    /// The delay that the `Retry-After` header of an unsuccessful response requests, at most a day.
    pub retry_after: Option<Duration>,
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
        let client = CheckedClient::new("Karta-Webhooks/1", reach, own_hosts, lookup)?;
        Ok(Self { client, clock, within: ATTEMPT_TIMEOUT })
    }

    /// Sets the time limit of an attempt; 15 s by default.
    #[must_use]
    pub fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// Makes one attempt and waits at most 15 s for its end. Never fails: every fault is an
    /// outcome.
    pub async fn post(&self, url: &OutboundUrl, signatures: &Signatures, body: impl Into<Body>) -> AttemptOutcome {
        let started = Instant::now();
        let mut outcome = match self.client.post(url) {
            Ok(request) => self.exchange(request, signatures, body.into()).await,
            Err(error) => AttemptOutcome::failed(error.to_string()),
        };
        outcome.latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        outcome
    }

    async fn exchange(&self, request: RequestBuilder, signatures: &Signatures, body: Body) -> AttemptOutcome {
        let sent = request
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
            Err(error) => return AttemptOutcome::failed(self.describe(&error)),
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
        AttemptOutcome {
            response_code: Some(status.as_u16()),
            response_body,
            error,
            retry_after,
            ..AttemptOutcome::default()
        }
    }

    /// Describes an error briefly, without the URL.
    fn describe(&self, error: &reqwest::Error) -> String {
        if let Some(not_sent) = causes(error).find_map(|cause| cause.downcast_ref::<NotSent>()) {
            return not_sent.to_string();
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

impl AttemptOutcome {
    fn failed(error: String) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("client", &self.client).finish_non_exhaustive()
    }
}

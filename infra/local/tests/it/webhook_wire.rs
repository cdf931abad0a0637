//! The HTTP client of webhook deliveries. It resolves a name once for each delivery and connects
//! only to addresses that it has checked. It limits the time and memory that a receiver can use.

use std::{
    collections::VecDeque,
    io,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use karta_shared::{
    clock::ManualClock,
    domain::{OutboundUrl, Reach, Signatures, Timestamp, WebhookSecret},
    entropy::SeededEntropy,
};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};
use worker_webhook_deliveries::wire::{AttemptOutcome, Lookup, LookupFuture, SystemLookup, Wire};

use crate::{
    harness::{WAIT_TIMEOUT, until},
    webhook_receiver,
};

const BODY: &str = r#"{"id":"evt_1","type":"ping"}"#;

/// A receiver that records each request and then passes the connection to a closure.
struct Receiver {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl Receiver {
    async fn start<F: Future<Output = ()> + Send>(react: impl Fn(TcpStream) -> F + Copy + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&requests);
        let server = tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(BODY.as_bytes()) {
                        if connection.read_buf(&mut request).await.unwrap_or_default() == 0 {
                            return;
                        }
                    }
                    seen.lock().unwrap().push(String::from_utf8(request).unwrap());
                    react(connection).await;
                });
            }
        });
        Self { port, requests, server }
    }

    /// Starts a receiver that sends these bytes and closes the connection.
    async fn answering(answer: &'static str) -> Self {
        Self::start(move |mut connection| async move {
            let _ = connection.write_all(answer.as_bytes()).await;
        })
        .await
    }

    /// Returns the URL of a receiver that has stopped.
    async fn gone() -> OutboundUrl {
        let receiver = Self::answering("").await;
        receiver.server.abort();
        until("the end of the server", async || receiver.server.is_finished()).await;
        receiver.url()
    }

    fn url(&self) -> OutboundUrl {
        OutboundUrl::parse(&format!("http://127.0.0.1:{}/hooks?id=7", self.port), Reach::Loopback).unwrap()
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A fake name server. It returns each configured result once and records the lookups.
#[derive(Default)]
struct NameServer {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    lookups: Mutex<Vec<String>>,
}

impl NameServer {
    fn answering(answers: &[&[&str]]) -> Arc<Self> {
        let addresses = |answer: &&[&str]| answer.iter().map(|address| address.parse().unwrap()).collect();
        Arc::new(Self { answers: Mutex::new(answers.iter().map(addresses).collect()), lookups: Mutex::default() })
    }

    fn lookups(&self) -> Vec<String> {
        self.lookups.lock().unwrap().clone()
    }
}

impl Lookup for NameServer {
    fn lookup(&self, host: String) -> LookupFuture {
        self.lookups.lock().unwrap().push(host);
        let answer = self.answers.lock().unwrap().pop_front().ok_or_else(|| io::Error::other("no such name"));
        Box::pin(async { answer })
    }
}

fn wire_with(lookup: Arc<dyn Lookup>, reach: Reach) -> Wire {
    let clock = ManualClock::at("2026-11-22T12:00:00Z".parse().unwrap());
    Wire::new(reach, vec!["api.karta.example.com".to_owned()], lookup, Arc::new(clock)).unwrap()
}

/// Returns a client that waits for a response as long as a test does.
fn wire() -> Wire {
    wire_with(Arc::new(SystemLookup), Reach::Loopback).within(WAIT_TIMEOUT)
}

fn signatures() -> Signatures {
    let secret = WebhookSecret::generate(&SeededEntropy::new(7));
    Signatures::sign(&[&secret], "evt_1", "2026-11-22T12:00:00Z".parse().unwrap(), BODY.as_bytes())
}

async fn post(wire: &Wire, url: &OutboundUrl) -> AttemptOutcome {
    wire.post(url, &signatures(), BODY).await
}

/// Returns an unchecked URL, as the store does.
fn stored(url: &str) -> OutboundUrl {
    serde_json::from_value(url.into()).unwrap()
}

fn failed(error: &str) -> impl Fn(&AttemptOutcome) -> bool {
    move |outcome| {
        let silent = outcome.response_code.is_none() && outcome.response_body.is_empty();
        silent && outcome.error.as_ref().is_some_and(|found| found.contains(error))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_is_one_signed_post_without_extra_headers() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let outcome = post(&wire(), &receiver.url()).await;
    assert_eq!((outcome.response_code, &*outcome.response_body, outcome.error), (Some(200), &b"ok"[..], None));
    let [request] = &receiver.requests()[..] else { panic!("{:?}", receiver.requests()) };
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, BODY);
    let mut lines = head.split("\r\n");
    assert_eq!(lines.next(), Some("POST /hooks?id=7 HTTP/1.1"));
    let mut headers: Vec<_> = lines.map(|line| line.split_once(": ").unwrap()).collect();
    headers.sort_unstable();
    let (signatures, host) = (signatures(), format!("127.0.0.1:{}", receiver.port));
    let expected = [
        ("accept", "*/*"),
        ("content-length", "28"),
        ("content-type", "application/json"),
        ("host", &host),
        ("karta-signature", &signatures.karta_signature),
        ("user-agent", "Karta-Webhooks/1"),
        ("webhook-id", "evt_1"),
        ("webhook-signature", &signatures.webhook_signature),
        ("webhook-timestamp", &signatures.webhook_timestamp),
    ];
    assert_eq!(headers, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_decides_and_response_is_recorded_unchanged() {
    const DAY: u64 = 86_400;
    for (answer, code, body, error, wait) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, "", None, None),
        ("HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, "until the end", None, None),
        ("HTTP/1.1 202 Accepted\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n", 202, "", None, None),
        ("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na", 200, "a", None, None),
        // A compressed body is not decompressed.
        (
            "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x0b\x08",
            200,
            "\x1f\x0b\x08",
            None,
            None,
        ),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", 200, "abc", None, None),
        (
            "HTTP/1.1 304 Not Modified\r\n\r\n",
            304,
            "",
            Some("receiver returned 304, and redirects are not followed"),
            None,
        ),
        ("HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno", 400, "no", Some("receiver returned 400"), None),
        ("HTTP/1.1 410 Gone\r\n\r\n", 410, "", Some("receiver returned 410"), None),
        ("HTTP/1.1 429 Slow\r\nretry-after: 120\r\n\r\n", 429, "", Some("receiver returned 429"), Some(120)),
        (
            "HTTP/1.1 500 Oh\r\nretry-after: 99999999999999999999\r\n\r\n",
            500,
            "",
            Some("receiver returned 500"),
            Some(DAY),
        ),
        (
            "HTTP/1.1 503 Oh\r\nretry-after: Sun, 22 Nov 2026 12:01:30 GMT\r\n\r\n",
            503,
            "",
            Some("receiver returned 503"),
            Some(90),
        ),
        ("HTTP/1.1 503 Oh\r\nretry-after: soon\r\n\r\n", 503, "", Some("receiver returned 503"), None),
        ("HTTP/1.1 503 Oh\r\nretry-after: \u{e9}\r\n\r\n", 503, "", Some("receiver returned 503"), None),
        // The status of an error response counts even if its body is incomplete.
        ("HTTP/1.1 500 Oh\r\ncontent-length: 99\r\n\r\ncut", 500, "cut", Some("receiver returned 500"), None),
    ] {
        let receiver = Receiver::answering(answer).await;
        let outcome = post(&wire(), &receiver.url()).await;
        assert_eq!(outcome.response_code, Some(code), "{answer}: {outcome:?}");
        assert_eq!(String::from_utf8(outcome.response_body).unwrap(), body, "{answer}");
        assert_eq!(outcome.error.as_deref(), error, "{answer}");
        assert_eq!(outcome.retry_after, wait.map(Duration::from_secs), "{answer}");
        assert_eq!(receiver.requests().len(), 1, "one attempt is one request: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_response_is_a_failure() {
    for (answer, code, error) in [
        ("", None, "invalid response: connection closed before message completed"),
        ("SSH-2.0-OpenSSH_9.2\r\n", None, "invalid response: invalid HTTP"),
        ("HTTP/2.0 200 OK\r\n\r\n", None, "invalid response: invalid HTTP version"),
        ("HTTP/1.1 200", None, "invalid response: connection closed before message completed"),
        ("HTTP/1.1 200 OK\r\nno header\r\n\r\n", None, "invalid response: invalid HTTP header"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na", None, "invalid response: "),
        ("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\ncut", Some(200), "invalid response: "),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ncut", Some(200), "invalid response: "),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\ncut\r\n", Some(200), "invalid response: "),
    ] {
        let receiver = Receiver::answering(answer).await;
        let outcome = post(&wire(), &receiver.url()).await;
        assert_eq!(outcome.response_code, code, "{answer}: {outcome:?}");
        let found = outcome.error.unwrap();
        assert!(
            found.starts_with(error) && !found.contains("hooks") && !found.contains("127.0.0.1"),
            "{answer}: {found}"
        );
        assert_eq!(receiver.requests().len(), 1, "the client does not retry: {answer}");
    }
    let gone = Receiver::gone().await;
    let outcome = post(&wire(), &gone).await;
    assert!(failed("no connection: Connection refused")(&outcome), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_not_followed() {
    let (other, lookup) = (Receiver::answering("HTTP/1.1 200 OK\r\n\r\n").await, NameServer::answering(&[]));
    for status in [301, 302, 303, 307, 308] {
        for to in [other.url().as_str(), "http://169.254.169.254/latest/meta-data/", "https://hooks.example.com/", "//"]
        {
            let answer = format!("HTTP/1.1 {status} Moved\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n").leak();
            let receiver = Receiver::answering(answer).await;
            let wire = wire_with(Arc::clone(&lookup) as Arc<dyn Lookup>, Reach::Loopback);
            let outcome = post(&wire, &receiver.url()).await;
            let error = format!("receiver returned {status}, and redirects are not followed");
            assert_eq!((outcome.response_code, outcome.error), (Some(status), Some(error)));
        }
    }
    assert!(other.requests().is_empty() && lookup.lookups().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_receiver_is_cut_off_at_the_timeout() {
    let silent = Receiver::start(|connection| async move {
        sleep(Duration::from_mins(1)).await;
        drop(connection);
    });
    let dripping_head = Receiver::start(|mut connection| async move {
        for byte in "HTTP/1.1 200 OK\r\nx-padding: ".bytes().chain(std::iter::repeat(b'x')) {
            if connection.write_all(&[byte]).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    let dripping_body = Receiver::start(|mut connection| async move {
        connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
        while connection.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    let endless_hints = Receiver::start(|mut connection| async move {
        while connection.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
    });
    for (receiver, code) in [
        (silent.await, None),
        (dripping_head.await, None),
        (dripping_body.await, Some(200)),
        (endless_hints.await, None),
    ] {
        let limited = wire().within(Duration::from_millis(500));
        let outcome = timeout(WAIT_TIMEOUT, post(&limited, &receiver.url())).await.expect("an outcome");
        assert!(outcome.latency_ms >= 400, "{outcome:?}");
        assert_eq!(outcome.response_code, code, "{outcome:?}");
        assert_eq!(outcome.error.as_deref(), Some("no complete response within 0.5 s"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_response_is_read_for_64_kib() {
    // The bytes that each receiver could write: those that were read, and those in the sockets'
    // buffers.
    static WRITTEN: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    async fn pour(mut connection: TcpStream, head: &str) {
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut written = 0;
        while let Ok(more @ 1..) = connection.write(&[b'x'; 4096]).await {
            written += more;
            if written >= 100 << 20 {
                break;
            }
        }
        WRITTEN.lock().unwrap().push(written);
    }
    let declared =
        Receiver::start(|connection| pour(connection, "HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n"));
    let undeclared = Receiver::start(|connection| pour(connection, "HTTP/1.1 200 OK\r\n\r\n"));
    let refusing =
        Receiver::start(|connection| pour(connection, "HTTP/1.1 500 Oh\r\ncontent-length: 104857600\r\n\r\n"));
    for (receiver, code, error) in [
        (declared.await, 200, None),
        (undeclared.await, 200, None),
        (refusing.await, 500, Some("receiver returned 500")),
    ] {
        let outcome = post(&wire(), &receiver.url()).await;
        assert_eq!((outcome.response_code, outcome.error.as_deref()), (Some(code), error));
        assert_eq!(outcome.response_body, [b'x'; 4096]);
    }
    while WRITTEN.lock().unwrap().len() < 3 {
        sleep(Duration::from_millis(10)).await;
    }
    let written = WRITTEN.lock().unwrap().clone();
    assert!(written.iter().all(|written| *written < 20 << 20), "{written:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_headers_are_a_failure() {
    let long = Receiver::start(|mut connection| async move {
        let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nx-long: ").await;
        while connection.write_all(&[b'x'; 4096]).await.is_ok() {}
    });
    let many = Receiver::start(|mut connection| async move {
        let _ = connection.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while connection.write_all(b"x-many: 1\r\n").await.is_ok() {}
    });
    for receiver in [long.await, many.await] {
        let outcome = post(&wire(), &receiver.url()).await;
        assert!(failed("invalid response: message head is too large")(&outcome), "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_is_closed_after_one_delivery() {
    // The number of bytes on each connection after the first request.
    static TRAILING: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    let receiver = Receiver::start(|mut connection| async move {
        let answer = b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok";
        connection.write_all(answer).await.unwrap();
        let trailing = connection.read(&mut [0; 4096]).await.unwrap_or_default();
        TRAILING.lock().unwrap().push(trailing);
    });
    let (receiver, wire) = (receiver.await, wire());
    for _ in 0..3 {
        let outcome = post(&wire, &receiver.url()).await;
        assert_eq!((outcome.response_code, outcome.error), (Some(200), None));
    }
    until("the end of each connection", async || TRAILING.lock().unwrap().len() == 3).await;
    assert_eq!(*TRAILING.lock().unwrap(), [0; 3], "each connection is closed without another request");
    assert_eq!(receiver.requests().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn name_is_resolved_and_checked_for_each_delivery() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let url = format!("http://localhost:{}/hooks", receiver.port);
    let url = OutboundUrl::parse(&url, Reach::Loopback).unwrap();
    // The name resolves to this machine, then elsewhere, then here again. The client connects to
    // the address that it checked.
    let lookup = NameServer::answering(&[
        &["127.0.0.1"],
        &["10.0.0.1"],
        &["93.184.216.34"],
        &["127.0.0.1", "::ffff:127.0.0.1"],
        &["127.0.0.1"],
    ]);
    let wire = wire_with(Arc::clone(&lookup) as Arc<dyn Lookup>, Reach::Loopback);
    assert_eq!(post(&wire, &url).await.error, None);
    for error in ["private use", "outside loopback", "IPv4-mapped"] {
        let outcome = post(&wire, &url).await;
        assert!(failed(error)(&outcome), "{outcome:?}");
    }
    assert_eq!(post(&wire, &url).await.error, None);
    assert_eq!(lookup.lookups(), ["localhost"; 5]);
    assert_eq!(receiver.requests().len(), 2);
    assert!(receiver.requests()[0].contains(&format!("\r\nhost: localhost:{}\r\n", receiver.port)));
}

#[tokio::test(flavor = "multi_thread")]
async fn name_with_any_forbidden_address_is_refused() {
    let url = OutboundUrl::parse("https://Hooks.example.com/secret?id=secret", Reach::Public).unwrap();
    for (answer, error) in [
        (&["10.0.0.1"][..], "private use (RFC 1918)"),
        (&["93.184.216.34", "10.0.0.1"], "private use (RFC 1918)"),
        (&["10.0.0.1", "93.184.216.34"], "private use (RFC 1918)"),
        (&["93.184.216.34", "2606:4700:4700::1111", "fd00:ec2::254"], "unique-local"),
        (&["169.254.169.254"], "link-local"),
        (&["100.100.100.200"], "shared address space"),
        (&["127.0.0.1"], "loopback"),
        (&["::1"], "loopback"),
        (&["0.0.0.0"], "this host"),
        (&["::ffff:93.184.216.34"], "IPv4-mapped"),
        (&["64:ff9b::5db8:d822"], "NAT64"),
        (&["255.255.255.255"], "broadcast"),
        (&[], "cannot be resolved"),
    ] {
        for reach in [Reach::Public, Reach::Loopback] {
            let lookup = NameServer::answering(&[answer]);
            let outcome = post(&wire_with(Arc::clone(&lookup) as Arc<dyn Lookup>, reach), &url).await;
            assert!(failed(error)(&outcome), "{answer:?}: {outcome:?}");
            assert!(!outcome.error.unwrap().contains("secret"));
            assert_eq!(lookup.lookups(), ["hooks.example.com"]);
        }
    }
    let outcome = post(&wire_with(NameServer::answering(&[]), Reach::Public), &url).await;
    assert_eq!(outcome.error.as_deref(), Some("not sent: the host name cannot be resolved"));
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_url_is_checked_before_name_resolution() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\n\r\n").await;
    let port = receiver.port;
    for (url, reach, error) in [
        (receiver.url().as_str(), Reach::Public, "must start with https://"),
        (&format!("https://127.0.0.1:{port}/"), Reach::Public, "not an IP address"),
        (&format!("https://localhost:{port}/"), Reach::Public, "with a dot in it"),
        (&format!("http://0.0.0.0:{port}/"), Reach::Loopback, "not an IP address"),
        (&format!("http://127.1:{port}/"), Reach::Loopback, "not an IP address"),
        (&format!("http://[::ffff:127.0.0.1]:{port}/"), Reach::Loopback, "not an IP address"),
        ("https://10.0.0.1/", Reach::Loopback, "not an IP address"),
        ("http://hooks.example.com/", Reach::Loopback, "unless it is on loopback"),
        ("https://vault.internal/", Reach::Loopback, "private or special use"),
        ("https://API.karta.example.com/v1/api_keys", Reach::Public, "points to this service"),
        // Parsers disagree about an `xn--` label that does not decode.
        ("https://xn--a.example.com/", Reach::Public, "valid DNS name or address"),
        ("no URL", Reach::Public, "printable ASCII"),
    ] {
        let lookup = NameServer::answering(&[]);
        let outcome = post(&wire_with(Arc::clone(&lookup) as Arc<dyn Lookup>, reach), &stored(url)).await;
        assert!(failed("not sent: the URL ")(&outcome) && failed(error)(&outcome), "{url}: {outcome:?}");
        assert_eq!(lookup.lookups(), <[&str; 0]>::default());
    }
    assert!(receiver.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_requires_1_2_and_the_checked_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let hello = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut hello = Vec::new();
        while hello.len() < 5 || hello.len() < 5 + usize::from(u16::from_be_bytes([hello[3], hello[4]])) {
            connection.read_buf(&mut hello).await.unwrap();
        }
        connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        hello
    });
    let wire = wire_with(NameServer::answering(&[&["127.0.0.1"]]), Reach::Loopback);
    let outcome = post(&wire, &stored(&url)).await;
    assert!(failed("no connection: ")(&outcome), "{outcome:?}");
    let hello = hello.await.unwrap();
    let extensions = extensions(&hello);
    let of = |kind: u16| extensions.iter().find(|(found, _)| *found == kind).map(|(_, data)| &data[..]);
    // server_name: a list of one host name. supported_versions: TLS 1.3 and 1.2. ALPN: only
    // HTTP/1.1, if present.
    assert_eq!(of(0).unwrap(), b"\x00\x0c\x00\x00\x09localhost");
    let mut versions: Vec<_> = of(43).unwrap()[1..].chunks(2).collect();
    versions.sort_unstable();
    assert_eq!(versions, [[3, 3], [3, 4]]);
    assert!(of(16).is_none_or(|protocols| protocols == b"\x00\x09\x08http/1.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_receiver_accepts_only_valid_deliveries() {
    const RECEIVER: &str = include_str!("webhook_receiver.rs");
    const PAGE: &str = include_str!("../../../../docs/webhooks.md");
    assert!(
        PAGE.contains(&format!("\n```rust\n{RECEIVER}```\n")),
        "docs/webhooks.md must contain webhook_receiver.rs verbatim"
    );

    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\n\r\n").await;
    let [secret, retired, other] = [1, 2, 3].map(|seed| WebhookSecret::generate(&SeededEntropy::new(seed)));
    let at: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
    let signatures = Signatures::sign(&[&retired, &secret], "evt_1", at, BODY.as_bytes());
    assert_eq!(wire().post(&receiver.url(), &signatures, BODY).await.error, None);
    let request = receiver.requests().remove(0);
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let header = head.split("\r\n").find_map(|line| line.strip_prefix("karta-signature: ")).unwrap();

    let now = u64::try_from(at.as_seconds()).unwrap();
    let accepts = |header: &str, body: &str, secret: &WebhookSecret, now| {
        webhook_receiver::verify(body.as_bytes(), header, secret.expose(), now).is_ok()
    };
    for secret in [&secret, &retired] {
        for now in [now, now - 300, now + 300] {
            assert!(accepts(header, body, secret, now));
        }
        for now in [now - 301, now + 301] {
            assert!(!accepts(header, body, secret, now));
        }
        assert!(!accepts(header, &body.replace("ping", "pong"), secret, now));
        assert!(!accepts(header, &body[1..], secret, now));
        assert!(!accepts(&header.replace("t=", "t=1"), body, secret, now));
        assert!(!accepts(&header.replace("v1=", "v0="), body, secret, now));
        assert!(!accepts("", body, secret, now));
    }
    assert!(!accepts(header, body, &other, now));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// The check must not reject a name that the HTTP client can call. Capitals are lower case in the
    /// client's URL.
    #[test]
    fn international_name_of_client_is_accepted(
        name in "[a-j0-9A-J\\-ß-öø-ÿÀ-ÖØ-Þā-žά-ώа-яא-תก-ฮअ-ह्ा가-힣ぁ-んァ-ヶ一-龥]{1,10}",
    ) {
        let Ok(read) = reqwest::Url::parse(&format!("https://{name}.example.com/hooks")) else { return Ok(()) };
        let host = read.host_str().unwrap();
        // The client also accepts labels that are not in a host name's form.
        if host.split('.').any(|label| label.starts_with('-') || label.ends_with('-') || label.len() > 63) {
            return Ok(());
        }
        let url = OutboundUrl::parse(read.as_str(), Reach::Public).unwrap();
        prop_assert_eq!(host, url.host());
    }

    /// The check and the HTTP client parse URLs separately. They must agree on every URL that the
    /// check accepts.
    #[test]
    fn accepted_url_means_the_same_to_client(
        text in r"https?://(localhost|LocalHost|127\.0\.0\.[0-9]{1,3}|\[::1\]|\[[0-9a-f:.]{2,9}\]|[a-zA-Z0-9-]{1,4}\.com|[a-z0-9.%@:\[\]_-]{0,12})(:[0-9]{0,5})?[/?#@:.\\a-z0-9]{0,10}",
    ) {
        let Ok(url) = OutboundUrl::parse(&text, Reach::Loopback) else { return Ok(()) };
        let read = reqwest::Url::parse(&text).unwrap();
        let address = |host: &str| host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let host = read.host_str().unwrap();
        prop_assert!(host == url.host() || address(host).is_some_and(|found| Some(found) == address(&url.host())), "{text}");
        prop_assert!(read.username().is_empty() && read.password().is_none() && read.fragment().is_none(), "{text}");
        if !url.is_loopback() {
            prop_assert_eq!((read.scheme(), read.port_or_known_default()), ("https", Some(443)));
        }
    }
}

/// Returns the extensions of a TLS record that contains a `ClientHello`, with their numbers.
fn extensions(record: &[u8]) -> Vec<(u16, Vec<u8>)> {
    fn skip<'a>(rest: &mut &'a [u8], length: usize) -> &'a [u8] {
        let (head, tail) = rest.split_at(length);
        *rest = tail;
        head
    }
    fn number(rest: &mut &[u8], bytes: usize) -> usize {
        skip(rest, bytes).iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
    }
    // Record and handshake headers, version, random.
    let mut rest = &record[5 + 4 + 2 + 32..];
    for length_bytes in [1, 2, 1] {
        // Session id, cipher suites, compression methods.
        let length = number(&mut rest, length_bytes);
        skip(&mut rest, length);
    }
    number(&mut rest, 2);
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (kind, length) = (number(&mut rest, 2), number(&mut rest, 2));
        found.push((u16::try_from(kind).unwrap(), skip(&mut rest, length).to_vec()));
    }
    found
}

//! A client that notes when each event of a stream arrives.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const END_OF_HEAD: &[u8] = b"\r\n\r\n";
/// The end of a chunked body. JSON escapes the line breaks of its texts, so no event contains it.
const END_OF_CHUNKS: &[u8] = b"\r\n0\r\n\r\n";

/// An open connection for one request at a time.
pub(crate) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

/// When the tokens of a streamed response arrived.
pub(crate) struct Arrivals {
    sent: Instant,
    pub(crate) tokens: Vec<Instant>,
    end: Instant,
}

impl Arrivals {
    pub(crate) fn first_token(&self) -> Result<Duration> {
        let first = self.tokens.first().context("a stream without tokens")?;
        Ok(first.duration_since(self.sent))
    }

    pub(crate) fn whole(&self) -> Duration {
        self.end.duration_since(self.sent)
    }

    pub(crate) fn gaps(&self) -> impl Iterator<Item = Duration> {
        self.tokens.windows(2).map(|pair| pair[1].duration_since(pair[0]))
    }
}

impl Connection {
    pub(crate) async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::with_capacity(64 << 10) })
    }

    /// Sends a request and reads its streamed response. Each occurrence of `mark` is a token.
    pub(crate) async fn stream(&mut self, request: &str, mark: &[u8]) -> Result<Arrivals> {
        self.received.clear();
        let sent = Instant::now();
        self.stream.write_all(request.as_bytes()).await?;
        let (mut tokens, mut searched) = (Vec::new(), 0);
        while !self.received.ends_with(END_OF_CHUNKS) {
            self.read().await?;
            let now = Instant::now();
            while let Some(at) = find(&self.received[searched..], mark) {
                tokens.push(now);
                searched += at + mark.len();
            }
            // A mark may be cut.
            searched = searched.max((self.received.len() + 1).saturating_sub(mark.len()));
            let failed = searched > 12 && !self.received.starts_with(b"HTTP/1.1 200");
            ensure!(!failed, "{}", String::from_utf8_lossy(&self.received));
        }
        Ok(Arrivals { sent, tokens, end: Instant::now() })
    }

    /// Sends a request and returns the status and the body of its response, which has a length.
    pub(crate) async fn send(&mut self, request: &str) -> Result<(u16, &[u8])> {
        self.received.clear();
        self.stream.write_all(request.as_bytes()).await?;
        let start = loop {
            match find(&self.received, END_OF_HEAD) {
                Some(at) => break at + END_OF_HEAD.len(),
                None => self.read().await?,
            }
        };
        let head = std::str::from_utf8(&self.received[..start])?.to_ascii_lowercase();
        let status = head.strip_prefix("http/1.1 ").and_then(|line| line.get(..3)).context("no HTTP")?.parse()?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
        let length: usize = length.parse()?;
        while self.received.len() < start + length {
            self.read().await?;
        }
        Ok((status, &self.received[start..]))
    }

    /// Like [`send`](Self::send), for a response with this status and a body of JSON.
    pub(crate) async fn json(&mut self, request: &str, expected: u16) -> Result<Value> {
        let (status, body) = self.send(request).await?;
        ensure!(status == expected, "{status} {}", String::from_utf8_lossy(body));
        Ok(serde_json::from_slice(body)?)
    }

    async fn read(&mut self) -> Result<()> {
        if self.stream.read_buf(&mut self.received).await? == 0 {
            bail!("the server closed the connection: {}", String::from_utf8_lossy(&self.received));
        }
        Ok(())
    }
}

pub(crate) fn request(method: &str, path: &str, header: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

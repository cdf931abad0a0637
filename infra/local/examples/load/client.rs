use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// An open connection for one request at a time.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

pub(crate) struct Response<'a> {
    pub(crate) status: u16,
    /// Status line and headers, in lower case.
    pub(crate) head: String,
    pub(crate) body: &'a [u8],
}

impl Response<'_> {
    pub(crate) fn succeeded(&self) -> Result<()> {
        ensure!((200..300).contains(&self.status), "{}", self.head);
        Ok(())
    }
}

impl Connection {
    pub(crate) async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 64 * 1024] })
    }

    pub(crate) async fn send(&mut self, request: &str) -> Result<Response<'_>> {
        self.stream.write_all(request.as_bytes()).await?;
        let mut filled = 0;
        let (status, head, body) = loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            if read == 0 {
                bail!("the server closed the connection");
            }
            filled += read;
            if let Some(complete) = parse_complete(&self.buffer[..filled])? {
                break complete;
            }
        };
        Ok(Response { status, head, body: &self.buffer[body..filled] })
    }
}

/// Returns the status, the head and the start of the body of a response, or `None` if it is
/// incomplete.
fn parse_complete(answer: &[u8]) -> Result<Option<(u16, String, usize)>> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
    let status = head.strip_prefix("http/1.1 ").and_then(|line| line.get(..3)).context("no HTTP")?.parse()?;
    let length: usize =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?.parse()?;
    Ok((answer.len() >= end + 4 + length).then_some((status, head, end + 4)))
}

pub(crate) fn request(method: &str, path: &str, bearer: &str, body: &str) -> String {
    request_with(method, path, &format!("Authorization: Bearer {bearer}"), body)
}

pub(crate) fn request_with(method: &str, path: &str, header: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Sends one request over a new connection and returns the body of the response.
pub(crate) async fn once(address: &str, request: &str) -> Result<Value> {
    let mut connection = Connection::open(address).await?;
    let answer = connection.send(request).await?;
    answer.succeeded()?;
    Ok(serde_json::from_slice(answer.body)?)
}

/// Returns requests per second: the median of three rounds after a warm-up.
pub(crate) async fn rate(address: &str, request: &str, total: usize, connections: usize) -> Result<f64> {
    send_all(address, request, total / 10 + connections, connections).await?;
    let mut rates = Vec::new();
    for _ in 0..3 {
        let took = send_all(address, request, total / 3, connections).await?;
        rates.push(f64::from(u32::try_from(total / 3)?) / took.as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[1])
}

/// Sends `total` requests over `connections` connections, one at a time on each. Fails unless every
/// response is a success.
async fn send_all(address: &str, request: &str, total: usize, connections: usize) -> Result<Duration> {
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        let (address, request) = (address.to_owned(), request.to_owned());
        clients.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            for _ in 0..total / connections {
                connection.send(&request).await?.succeeded()?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(started.elapsed())
}

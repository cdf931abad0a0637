//! A scripted model provider on loopback, for the demo, the tests and the benches.
//!
//! It speaks the streaming forms of Anthropic's Messages and `OpenAI`'s Chat Completions, answers
//! with words of four bytes that count as one token each, and keeps a ledger of what it billed. A
//! [`Script`] makes it fail in the ways that real providers do.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    response::Response,
    serve::ListenerExt,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::Frame;
use karta_shared::domain::{Provider, ProviderBaseUrls};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::sleep,
};

/// Bytes of a token, and the divisor by which the provider counts input tokens.
pub const TOKEN_BYTES: usize = 4;
/// The words of the answers. Each word, with its trailing space, is one token.
const WORDS: [&str; 8] = ["one ", "two ", "six ", "ten ", "red ", "sky ", "sea ", "sun "];
/// An error in a response discards what is still buffered, so a cut waits for its flush.
const FLUSH_TIME: Duration = Duration::from_millis(50);
const MAX_BODY_BYTES: usize = 16 << 20;

/// How the provider answers a request.
#[derive(Debug, Clone)]
pub struct Script {
    /// Tokens of the answer.
    pub tokens: usize,
    /// Whether the answer repeats the last message instead.
    pub echoes: bool,
    /// Tokens of reasoning in front of the answer.
    pub reasoning_tokens: usize,
    /// Pause before each token.
    pub pause: Duration,
    /// Pause before the status line.
    pub head_pause: Duration,
    pub fault: Fault,
    /// Tokens read from and written to the provider's cache, billed besides the input.
    pub cache_read_tokens: u64,
    pub cache_write_tokens: u64,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            tokens: 12,
            echoes: false,
            reasoning_tokens: 0,
            pause: Duration::ZERO,
            head_pause: Duration::ZERO,
            fault: Fault::None,
            cache_read_tokens: 0,
            cache_write_tokens: 0,
        }
    }
}

/// A way to fail. Counts are tokens of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Answers with this status, body, and `Retry-After` in seconds.
    Status {
        status: u16,
        body: String,
        retry_after: Option<u64>,
    },
    /// Answers 200 with this content type and body.
    NotEventStream {
        content_type: &'static str,
        body: String,
    },
    /// Ends the connection after this many tokens, without a terminal event.
    CutAfter(usize),
    /// Ends the response regularly after this many tokens, without a terminal event.
    EndAfter(usize),
    /// Sends nothing more after this many tokens.
    SilentAfter(usize),
    /// Sends nothing more after this many frames: the first, the last and those between the tokens
    /// included.
    SilentAfterFrames(usize),
    /// Sends one frame that is not JSON after this many tokens.
    BrokenFrameAfter(usize),
    /// Sends with each frame members that are null or of another type than usual.
    OddMembers,
    /// Opens a tool call after this many tokens, and ends the connection inside its JSON.
    CutInToolCallAfter(usize),
    /// Sends an error event after this many tokens.
    ErrorEventAfter(usize),
    /// Sends this many bytes without a line break, then the answer.
    Flood(usize),
    /// Sends bytes after the end of the stream.
    TrailingGarbage,
    /// Never sends the usage.
    NoUsage,
    /// Reports that it used no tokens.
    ZeroUsage,
}

/// A request as it arrived, and what it was billed.
#[derive(Debug, Clone)]
pub struct LedgerEntry {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub input_tokens: u64,
    /// Tokens that were sent before the end or the fault.
    pub output_tokens: u64,
    pub cache_read_tokens: u64,
    pub cache_write_tokens: u64,
}

#[derive(Debug, Default)]
struct ProviderState {
    /// Scripts of the next requests, each used once.
    next: VecDeque<Script>,
    default: Script,
    ledger: Vec<LedgerEntry>,
}

/// A running provider. Stops when dropped.
#[derive(Debug)]
pub struct FakeProvider {
    address: SocketAddr,
    state: Arc<Mutex<ProviderState>>,
    _stop: oneshot::Sender<Infallible>,
    served: JoinHandle<()>,
}

impl FakeProvider {
    /// Starts a provider on a free port, whose answers follow `default`.
    pub async fn start(default: Script) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(ProviderState { default, ..ProviderState::default() }));
        let (stop, stopped) = oneshot::channel::<Infallible>();
        let service = Router::new().fallback(answer).with_state(Arc::clone(&state));
        // As providers do: the first token must not wait for an acknowledgement.
        let listener = listener.tap_io(|connection| {
            connection.set_nodelay(true).ok();
        });
        let served = tokio::spawn(async move {
            let served = axum::serve(listener, service).with_graceful_shutdown(async {
                stopped.await.ok();
            });
            if let Err(error) = served.await {
                tracing::error!(fault = %error, "scripted provider failed");
            }
        });
        Ok(Self { address, state, _stop: stop, served })
    }

    /// Returns the base URLs by provider name, as JSON.
    pub fn base_urls(&self) -> String {
        let base = format!("http://{}", self.address);
        json!({"anthropic": base, "openai": format!("{base}/v1"), "openrouter": format!("{base}/v1")}).to_string()
    }

    /// Returns base URLs in which this provider replaces the host of `replaced`.
    pub fn replace(&self, urls: ProviderBaseUrls, replaced: Provider) -> ProviderBaseUrls {
        urls.with_loopback(replaced, format!("http://{}/v1", self.address))
    }

    /// Appends a script for one request.
    pub fn push(&self, script: Script) {
        self.lock().next.push_back(script);
    }

    /// Drops the scripts that no request has used.
    pub fn clear(&self) {
        self.lock().next.clear();
    }

    /// Returns how many scripts no request has used.
    pub fn unused_scripts(&self) -> usize {
        self.lock().next.len()
    }

    /// Returns the requests so far, in the order of their arrival.
    pub fn ledger(&self) -> Vec<LedgerEntry> {
        self.lock().ledger.clone()
    }

    fn lock(&self) -> MutexGuard<'_, ProviderState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn answer(State(state): State<Arc<Mutex<ProviderState>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY_BYTES).await else {
        return plain(StatusCode::PAYLOAD_TOO_LARGE, "application/json", "{}".to_owned());
    };
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let wire = if path.ends_with("/messages") { Wire::Anthropic } else { Wire::OpenAi };
    let input_tokens = input_tokens(&request);
    let (script, at) = {
        let mut provider = state.lock().unwrap_or_else(PoisonError::into_inner);
        let script = provider.next.pop_front().unwrap_or_else(|| provider.default.clone());
        let is_billed = !matches!(script.fault, Fault::Status { .. } | Fault::NotEventStream { .. });
        provider.ledger.push(LedgerEntry {
            path,
            headers: parts.headers,
            body,
            input_tokens: if is_billed { input_tokens } else { 0 },
            output_tokens: 0,
            cache_read_tokens: if is_billed { script.cache_read_tokens } else { 0 },
            cache_write_tokens: if is_billed { script.cache_write_tokens } else { 0 },
        });
        (script, provider.ledger.len() - 1)
    };
    sleep(script.head_pause).await;
    match &script.fault {
        Fault::Status { status, body, retry_after } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = plain(status, "application/json", body.clone());
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
            }
            response
        }
        Fault::NotEventStream { content_type, body } => plain(StatusCode::OK, content_type, body.clone()),
        _ => {
            let (sender, receiver) = mpsc::channel(16);
            let words = if script.echoes { echo(&request) } else { words(script.tokens) };
            tokio::spawn(async move {
                let mut stream = Stream { wire, script, words, sender, sent: 0, frames: 0, input_tokens };
                // The ledger also counts the tokens of a stream that ended early.
                stream.run().await.ok();
                let mut provider = state.lock().unwrap_or_else(PoisonError::into_inner);
                provider.ledger[at].output_tokens = stream.sent;
            });
            let mut response = Response::new(Body::new(Chunks(receiver)));
            let event_stream = HeaderValue::from_static("text/event-stream; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, event_stream);
            response
        }
    }
}

/// A body of chunks. An error breaks the connection.
struct Chunks(mpsc::Receiver<Result<Bytes, io::Error>>);

impl HttpBody for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

fn plain(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Returns an answer of this many tokens.
fn words(tokens: usize) -> Vec<String> {
    WORDS.iter().cycle().take(tokens).map(ToString::to_string).collect()
}

/// Returns an answer that repeats the last message of the request, in words.
fn echo(request: &Value) -> Vec<String> {
    let last = request["messages"].as_array().and_then(|messages| messages.last());
    let text = last.and_then(|message| message["content"].as_str()).unwrap_or_default();
    let answer = format!("This is Karta's demo provider, not a model. You wrote: {text}");
    answer.split_inclusive(' ').map(ToOwned::to_owned).collect()
}

/// Counts the texts of the request as the provider bills them.
fn input_tokens(request: &Value) -> u64 {
    let messages = request["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let bytes: usize = messages.iter().map(|message| text_bytes(&message["content"])).sum();
    u64::try_from((bytes + text_bytes(&request["system"])).div_ceil(TOKEN_BYTES)).unwrap_or(u64::MAX)
}

fn text_bytes(content: &Value) -> usize {
    match content {
        Value::String(text) => text.len(),
        Value::Array(blocks) => blocks.iter().map(|block| text_bytes(&block["text"])).sum(),
        _ => 0,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Anthropic,
    OpenAi,
}

/// The caller disconnected, or the script ends the stream here.
struct StreamEnded;

struct Stream {
    wire: Wire,
    script: Script,
    /// The answer.
    words: Vec<String>,
    sender: mpsc::Sender<Result<Bytes, io::Error>>,
    /// Tokens sent.
    sent: u64,
    /// Frames sent.
    frames: usize,
    input_tokens: u64,
}

impl Stream {
    async fn run(&mut self) -> Result<(), StreamEnded> {
        if let Fault::Flood(bytes) = self.script.fault {
            for _ in 0..bytes.div_ceil(1 << 16) {
                self.send(vec![b'x'; 1 << 16]).await?;
            }
            self.send(b"\n\n".to_vec()).await?;
        }
        self.open().await?;
        for word in words(self.script.reasoning_tokens) {
            self.token(true, &word).await?;
        }
        for (at, word) in std::mem::take(&mut self.words).iter().enumerate() {
            self.fault_at(at).await?;
            self.token(false, word).await?;
        }
        self.fault_at(self.script.tokens).await?;
        self.close().await
    }

    async fn open(&mut self) -> Result<(), StreamEnded> {
        if self.wire == Wire::OpenAi {
            return self.chunk(json!({"role": "assistant", "content": ""})).await;
        }
        let usage = if self.script.fault == Fault::NoUsage {
            json!({})
        } else {
            let is_zero = self.script.fault == Fault::ZeroUsage;
            json!({
                "input_tokens": if is_zero { 0 } else { self.input_tokens },
                "cache_read_input_tokens": self.script.cache_read_tokens,
                "cache_creation_input_tokens": self.script.cache_write_tokens,
                "output_tokens": u8::from(!is_zero),
            })
        };
        self.event("message_start", json!({"message": {"id": "msg_fake", "role": "assistant", "usage": usage}}))
            .await?;
        if self.script.reasoning_tokens > 0 {
            let block = json!({"type": "thinking", "thinking": ""});
            self.event("content_block_start", json!({"index": 0, "content_block": block})).await?;
        }
        let block = json!({"type": "text", "text": ""});
        self.event("content_block_start", json!({"index": 1, "content_block": block})).await
    }

    async fn token(&mut self, is_reasoning: bool, word: &str) -> Result<(), StreamEnded> {
        sleep(self.script.pause).await;
        self.sent += 1;
        match (self.wire, is_reasoning) {
            (Wire::OpenAi, false) => self.chunk(json!({"content": word})).await,
            (Wire::OpenAi, true) => self.chunk(json!({"reasoning_content": word})).await,
            (Wire::Anthropic, false) => {
                let delta = json!({"type": "text_delta", "text": word});
                self.event("content_block_delta", json!({"index": 1, "delta": delta})).await
            }
            (Wire::Anthropic, true) => {
                let delta = json!({"type": "thinking_delta", "thinking": word});
                self.event("content_block_delta", json!({"index": 0, "delta": delta})).await
            }
        }
    }

    /// Does what the script says after `at` tokens.
    async fn fault_at(&mut self, at: usize) -> Result<(), StreamEnded> {
        match self.script.fault {
            Fault::CutAfter(count) if count == at => self.cut().await,
            Fault::EndAfter(count) if count == at => Err(StreamEnded),
            Fault::SilentAfter(count) if count == at => {
                self.sender.closed().await;
                Err(StreamEnded)
            }
            Fault::BrokenFrameAfter(count) if count == at => self.send(b"data: {\"type\":\"conte\n\n".to_vec()).await,
            Fault::CutInToolCallAfter(count) if count == at => {
                self.tool_call().await?;
                self.cut().await
            }
            Fault::ErrorEventAfter(count) if count == at => {
                let sent = match self.wire {
                    Wire::Anthropic => {
                        let error = json!({"type": "overloaded_error", "message": "Overloaded"});
                        self.event("error", json!({"error": error})).await
                    }
                    Wire::OpenAi => {
                        let error = json!({"message": "Overloaded", "type": "server_error"});
                        self.data(&json!({"error": error})).await
                    }
                };
                sent?;
                Err(StreamEnded)
            }
            _ => Ok(()),
        }
    }

    async fn tool_call(&mut self) -> Result<(), StreamEnded> {
        let arguments = "{\"city\":\"Ber";
        match self.wire {
            Wire::Anthropic => {
                let block = json!({"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}});
                self.event("content_block_start", json!({"index": 2, "content_block": block})).await?;
                let delta = json!({"type": "input_json_delta", "partial_json": arguments});
                self.event("content_block_delta", json!({"index": 2, "delta": delta})).await
            }
            Wire::OpenAi => {
                let function = json!({"name": "weather", "arguments": arguments});
                let call = json!({"index": 0, "id": "call_1", "type": "function", "function": function});
                self.chunk(json!({"tool_calls": [call]})).await
            }
        }
    }

    async fn close(&mut self) -> Result<(), StreamEnded> {
        let has_usage = self.script.fault != Fault::NoUsage;
        let is_zero = self.script.fault == Fault::ZeroUsage;
        let output = if is_zero { 0 } else { self.sent };
        match self.wire {
            Wire::Anthropic => {
                self.event("content_block_stop", json!({"index": 1})).await?;
                let usage = if has_usage { json!({"output_tokens": output}) } else { json!({}) };
                self.event("message_delta", json!({"delta": {"stop_reason": "end_turn"}, "usage": usage})).await?;
                self.event("message_stop", json!({})).await?;
            }
            Wire::OpenAi => {
                self.data(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})).await?;
                if has_usage {
                    let cached = self.script.cache_read_tokens;
                    let usage = json!({
                        "prompt_tokens": if is_zero { 0 } else { self.input_tokens + cached },
                        "prompt_tokens_details": {"cached_tokens": cached},
                        "completion_tokens": output,
                    });
                    self.data(&json!({"choices": [], "usage": usage})).await?;
                }
                self.send(b"data: [DONE]\n\n".to_vec()).await?;
            }
        }
        if self.script.fault == Fault::TrailingGarbage {
            self.send(b"\x00\xff<html>trailing\n\ndata: {}\n\n".to_vec()).await?;
        }
        Ok(())
    }

    /// Breaks the connection inside the response, after its tokens have left.
    async fn cut(&self) -> Result<(), StreamEnded> {
        sleep(FLUSH_TIME).await;
        self.sender.send(Err(io::Error::other("cut by the script"))).await.ok();
        Err(StreamEnded)
    }

    async fn event(&mut self, kind: &str, mut data: Value) -> Result<(), StreamEnded> {
        data["type"] = kind.into();
        if self.script.fault == Fault::OddMembers {
            data["usage"].as_object_mut().map(|usage| usage.insert("input_tokens".to_owned(), Value::Null));
            if kind == "content_block_delta" {
                data["index"] = Value::Null;
            }
        }
        self.send(format!("event: {kind}\ndata: {data}\n\n").into_bytes()).await
    }

    async fn chunk(&mut self, delta: Value) -> Result<(), StreamEnded> {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": null});
        if self.script.fault == Fault::OddMembers {
            let other = json!({"index": 1, "delta": {"content": {}}, "finish_reason": 1});
            let usage = json!({"prompt_tokens": null, "completion_tokens": -1, "prompt_tokens_details": []});
            return self.data(&json!({"choices": [choice, other], "usage": usage, "error": ""})).await;
        }
        self.data(&json!({"choices": [choice]})).await
    }

    async fn data(&mut self, data: &Value) -> Result<(), StreamEnded> {
        self.send(format!("data: {data}\n\n").into_bytes()).await
    }

    async fn send(&mut self, bytes: Vec<u8>) -> Result<(), StreamEnded> {
        if self.script.fault == Fault::SilentAfterFrames(self.frames) {
            self.sender.closed().await;
            return Err(StreamEnded);
        }
        self.frames += 1;
        self.sender.send(Ok(bytes.into())).await.map_err(|_| StreamEnded)
    }
}

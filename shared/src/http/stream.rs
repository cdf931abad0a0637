//! Response bodies: complete ones, and streams of server-sent events.
//!
//! A handler that streams opens a channel with [`event_channel`], gives the [`EventSender`] to the
//! task that produces the events, and returns the [`EventStream`] as its answer. The body forwards
//! the events and fills silence with keep-alives. It never fails, because the Lambda runtime would
//! write the error into the response.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::{
    sync::mpsc,
    time::{Sleep, sleep},
};

/// Silence after which a stream sends a keep-alive.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Opens the channel between the producer of events and the response. It holds `buffered` chunks for
/// a slow client.
pub fn event_channel(buffered: usize) -> (EventSender, EventStream) {
    let (sender, receiver) = mpsc::channel(buffered);
    (EventSender(sender), EventStream(receiver))
}

/// Sends events to a client. Dropping the last clone ends the response.
#[derive(Debug, Clone)]
pub struct EventSender(mpsc::Sender<Bytes>);

impl EventSender {
    /// Sends one or more whole events: keep-alives are inserted between chunks. Waits while the
    /// client is too slow. Returns false if the client left, which a producer may ignore.
    pub async fn send(&self, events: impl Into<Bytes>) -> bool {
        self.0.send(events.into()).await.is_ok()
    }

    /// Waits until a chunk can be sent at once. Returns false if the client left.
    pub async fn ready(&self) -> bool {
        self.0.reserve().await.is_ok()
    }

    /// Sends without waiting. Drops the events and returns false if the buffer is full or the client
    /// left. The only sender calls [`ready`](Self::ready) first.
    pub fn send_now(&self, events: impl Into<Bytes>) -> bool {
        self.0.try_send(events.into()).is_ok()
    }

    /// Returns whether the client left.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// The events of a streamed response.
#[derive(Debug)]
pub struct EventStream(mpsc::Receiver<Bytes>);

/// The body of a response. Its size is known unless it is a stream.
#[derive(Debug)]
pub struct ResponseBody(BodyContent);

#[derive(Debug)]
enum BodyContent {
    Complete(Bytes),
    Stream(Box<LiveStream>),
}

#[derive(Debug)]
struct LiveStream {
    events: EventStream,
    keep_alive: &'static str,
    interval: Duration,
    silence: Pin<Box<Sleep>>,
    log: StreamLog,
}

/// Writes a log line when a stream ends.
#[derive(Debug)]
pub(super) struct StreamLog {
    pub(super) route: &'static str,
    pub(super) request_id: String,
    pub(super) started: Instant,
    bytes: u64,
    is_written: bool,
}

impl ResponseBody {
    pub(super) fn complete(body: Vec<u8>) -> Self {
        Self(BodyContent::Complete(body.into()))
    }

    pub(super) fn stream(events: EventStream, keep_alive: &'static str, log: StreamLog) -> Self {
        Self::with_interval(events, keep_alive, log, KEEP_ALIVE_INTERVAL)
    }

    fn with_interval(events: EventStream, keep_alive: &'static str, log: StreamLog, interval: Duration) -> Self {
        let silence = Box::pin(sleep(interval));
        Self(BodyContent::Stream(Box::new(LiveStream { events, keep_alive, interval, silence, log })))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = match &mut self.0 {
            BodyContent::Complete(body) => Some(std::mem::take(body)).filter(|body| !body.is_empty()),
            BodyContent::Stream(stream) => ready!(stream.poll_chunk(context)),
        };
        Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, BodyContent::Complete(body) if body.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodyContent::Complete(body) => SizeHint::with_exact(body.len() as u64),
            BodyContent::Stream(_) => SizeHint::default(),
        }
    }
}

impl LiveStream {
    /// Returns the next chunk, or a keep-alive after a silence; `None` at the end.
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let chunk = loop {
            match self.events.0.poll_recv(context) {
                Poll::Ready(Some(chunk)) if chunk.is_empty() => {}
                Poll::Ready(Some(chunk)) => break chunk,
                Poll::Ready(None) => {
                    self.log.write(true);
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    ready!(self.silence.as_mut().poll(context));
                    break Bytes::from_static(self.keep_alive.as_bytes());
                }
            }
        };
        self.silence.as_mut().reset(tokio::time::Instant::now() + self.interval);
        self.log.bytes += chunk.len() as u64;
        Poll::Ready(Some(chunk))
    }
}

impl StreamLog {
    pub(super) fn new(route: &'static str, request_id: &str, started: Instant) -> Self {
        Self { route, request_id: request_id.to_owned(), started, bytes: 0, is_written: false }
    }

    /// `complete` is false if the client left before the end.
    fn write(&mut self, complete: bool) {
        if std::mem::replace(&mut self.is_written, true) {
            return;
        }
        let Self { route, request_id, bytes, .. } = self;
        let latency_ms = self.started.elapsed().as_secs_f64() * 1_000.0;
        tracing::info!(request_id, route, complete, bytes, latency_ms, "response stream");
    }
}

impl Drop for StreamLog {
    fn drop(&mut self) {
        self.write(false);
    }
}

#[cfg(test)]
mod tests {
    const BUFFERED: usize = 64;

    use http_body_util::BodyExt;
    use tokio::time::timeout;

    use super::*;

    const KEEP_ALIVE: &str = ": keep-alive\n\n";

    fn stream(events: EventStream, interval: Duration) -> ResponseBody {
        ResponseBody::with_interval(events, KEEP_ALIVE, StreamLog::new("test", "1", Instant::now()), interval)
    }

    async fn next(body: &mut ResponseBody) -> Option<Bytes> {
        let Ok(frame) = body.frame().await?;
        frame.into_data().ok()
    }

    #[tokio::test]
    async fn chunks_arrive_in_order_and_end() {
        let (sender, events) = event_channel(BUFFERED);
        let mut body = stream(events, Duration::from_mins(1));
        for chunk in ["a", "", "b"] {
            assert!(sender.send(chunk).await);
        }
        assert_eq!(next(&mut body).await, Some("a".into()));
        assert_eq!(next(&mut body).await, Some("b".into()));
        assert!(timeout(Duration::from_millis(20), next(&mut body)).await.is_err(), "nothing was sent");
        drop(sender);
        assert_eq!(next(&mut body).await, None);
        assert_eq!(next(&mut body).await, None);
    }

    #[tokio::test]
    async fn silence_is_filled_with_keep_alives() {
        let (sender, events) = event_channel(BUFFERED);
        let mut body = stream(events, Duration::from_millis(10));
        for _ in 0..3 {
            assert_eq!(next(&mut body).await, Some(KEEP_ALIVE.into()));
        }
        sender.send("a").await;
        assert_eq!(next(&mut body).await, Some("a".into()));
        assert_eq!(next(&mut body).await, Some(KEEP_ALIVE.into()));
    }

    #[tokio::test]
    async fn sender_survives_a_client_that_left() {
        let (sender, events) = event_channel(BUFFERED);
        drop(stream(events, Duration::from_mins(1)));
        assert!(sender.is_closed());
        assert!(!sender.send("a").await);
    }

    #[tokio::test]
    async fn ready_sender_waits_for_slow_client() {
        let (sender, events) = event_channel(BUFFERED);
        let mut body = stream(events, Duration::from_mins(1));
        for _ in 0..BUFFERED {
            assert!(sender.ready().await);
            assert!(sender.send_now("a"));
        }
        assert!(timeout(Duration::from_millis(20), sender.ready()).await.is_err(), "the buffer is full");
        assert!(!sender.send_now("b"));
        assert_eq!(next(&mut body).await, Some("a".into()));
        assert!(sender.ready().await);
        drop(body);
        assert!(!sender.ready().await);
    }

    #[tokio::test]
    async fn complete_body_is_one_chunk() {
        let mut body = ResponseBody::complete(b"{}".to_vec());
        assert_eq!(body.size_hint().exact(), Some(2));
        assert_eq!(next(&mut body).await, Some("{}".into()));
        assert!(body.is_end_stream());
        assert_eq!(next(&mut body).await, None);
        assert!(ResponseBody::complete(Vec::new()).is_end_stream());
    }
}

//! The native events of a turn: how they are written to the client and to the event log.
//!
//! A frame is one server-sent event. The log leaves out what all frames of a turn share, and a replay
//! builds the same frames again.

mod batch;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::batch::EventBatch;
use crate::domain::{Timestamp, TurnError};

/// Number of an event in its turn, from 1.
pub type Seq = u32;

/// A part of a message, as it is sealed and shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessagePart {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: PartKind,
    pub text: String,
}

/// Omits the text.
impl fmt::Debug for MessagePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.text.len();
        f.debug_struct("MessagePart").field("id", &self.id).field("kind", &self.kind).field("bytes", &bytes).finish()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    Text,
    Reasoning,
}

/// The ids in the envelope of every event.
#[derive(Debug, Clone, Copy)]
pub struct TurnEventContext<'a> {
    pub session_id: &'a str,
    pub turn_id: &'a str,
}

/// An event of a turn. Its JSON is the `data` of the frame's envelope.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub enum TurnEvent<'a, U> {
    /// More of the answer or of the model's reasoning. Never cumulative.
    Increment { part: Part<'a> },
    /// The end of a turn that completed.
    Done { message_id: &'a str, usage: &'a U, stop_reason: &'a str },
    /// The end of a turn that did not complete.
    Error { code: &'a str, message: &'a str },
}

#[derive(Clone, Copy, Serialize)]
pub struct Part<'a> {
    pub id: &'a str,
    #[serde(rename = "type")]
    pub kind: PartKind,
    pub text: &'a str,
}

/// Omits the text.
impl fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Envelope<'a, D> {
    #[serde(rename = "type")]
    kind: &'a str,
    session_id: &'a str,
    turn_id: &'a str,
    seq: Seq,
    timestamp: Timestamp,
    data: D,
}

impl<U> TurnEvent<'_, U> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Increment { part: Part { kind: PartKind::Text, .. } } => "text",
            Self::Increment { part: Part { kind: PartKind::Reasoning, .. } } => "reasoning",
            Self::Done { .. } => "done",
            Self::Error { .. } => "error",
        }
    }
}

impl TurnEventContext<'_> {
    /// Returns the frame of an event.
    pub fn frame<U: Serialize>(
        self,
        seq: Seq,
        timestamp: Timestamp,
        event: &TurnEvent<'_, U>,
    ) -> serde_json::Result<Vec<u8>> {
        self.encode(event.kind(), seq, timestamp, event)
    }

    /// Returns the frame of an error that the log does not have. Its `seq` is that of the last event
    /// sent. It has no id, so that a client does not resume after it.
    pub fn unlogged_error(self, last: Seq, timestamp: Timestamp, error: TurnError) -> serde_json::Result<Vec<u8>> {
        let event = TurnEvent::Error::<()> { code: error.as_str(), message: error.message() };
        let frame = self.frame(last, timestamp, &event)?;
        let id_length = frame.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        Ok(frame[id_length..].to_vec())
    }

    fn encode(self, kind: &str, seq: Seq, timestamp: Timestamp, data: impl Serialize) -> serde_json::Result<Vec<u8>> {
        let Self { session_id, turn_id } = self;
        let mut frame = format!("id: {turn_id}.{seq}\nevent: {kind}\ndata: ").into_bytes();
        serde_json::to_writer(&mut frame, &Envelope { kind, session_id, turn_id, seq, timestamp, data })?;
        frame.extend_from_slice(b"\n\n");
        Ok(frame)
    }
}

/// Splits an event id of the client into the turn's id and the event's number.
pub fn parse_event_id(text: &str) -> Option<(&str, Seq)> {
    let (turn_id, seq) = text.rsplit_once('.')?;
    let is_plain = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| seq.parse().ok()).flatten().map(|seq| (turn_id, seq))
}

/// Returns the size of a text as JSON, which may be six times its own.
pub fn json_bytes(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 1,
        0..=31 => 5,
        _ => 0,
    };
    text.len() + 2 + text.bytes().map(escaped).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const CONTEXT: TurnEventContext<'_> = TurnEventContext { session_id: "sess_1", turn_id: "turn_1" };

    #[test]
    fn frame_holds_id_type_and_envelope() {
        let event = TurnEvent::Increment::<()> {
            part: Part { id: "part_1", kind: PartKind::Text, text: "Grüße\n\n\u{2028}" },
        };
        let frame = CONTEXT.frame(7, Timestamp::from_millis(0).unwrap(), &event).unwrap();
        let written = String::from_utf8(frame).unwrap();
        let data = written.strip_prefix("id: turn_1.7\nevent: text\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!data.contains('\n'));
        let expected = json!({
            "type": "text", "session_id": "sess_1", "turn_id": "turn_1", "seq": 7, "timestamp": "1970-01-01T00:00:00.000Z",
            "data": {"part": {"id": "part_1", "type": "text", "text": "Grüße\n\n\u{2028}"}},
        });
        assert_eq!(serde_json::from_str::<Value>(data).unwrap(), expected);
    }

    #[test]
    fn unlogged_error_has_no_id() {
        let frame = CONTEXT.unlogged_error(3, Timestamp::from_millis(0).unwrap(), TurnError::Interrupted).unwrap();
        assert!(frame.starts_with(b"event: error\ndata: {"));
    }

    #[test]
    fn json_size_counts_escapes() {
        for text in ["", "a", "\"\\\n\r\t\u{8}\u{c}", "\0\u{1f}\u{7f}", "字\u{2028}"] {
            assert_eq!(json_bytes(text), serde_json::to_string(text).unwrap().len(), "{text:?}");
        }
    }

    #[test]
    fn event_id_names_turn_and_number() {
        assert_eq!(parse_event_id("turn_0a.12"), Some(("turn_0a", 12)));
        for junk in ["", "turn_0a", "turn_0a.", "turn_0a.+1", "turn_0a.1x", "turn_0a.4294967296"] {
            assert_eq!(parse_event_id(junk), None, "{junk}");
        }
    }
}

//! The native events of a turn: how they are written to the client and to the event log.
//!
//! A frame is one server-sent event. The log keeps frames as they were sent, so that a replay is
//! identical. Its batches are frames in order, and each frame starts with its id.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt, str,
};

use serde::{Deserialize, Serialize};

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

/// The envelope that every event of a turn has.
#[derive(Debug, Clone, Copy)]
pub struct TurnEventContext<'a> {
    pub session_id: &'a str,
    pub turn_id: &'a str,
}

/// An event of a turn.
#[derive(Debug, Clone, Copy)]
pub enum TurnEvent<'a, U> {
    /// More of the answer. Never cumulative.
    Text { part_id: &'a str, text: &'a str },
    /// More of the model's reasoning.
    Reasoning { part_id: &'a str, text: &'a str },
    /// The end of a turn with an answer.
    Done { message_id: &'a str, usage: &'a U, stop_reason: &'a str },
    /// The end of a turn without, or with a part of, an answer.
    Error { code: &'a str, message: &'a str },
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

#[derive(Serialize)]
struct PartData<'a> {
    part: Part<'a>,
}

#[derive(Serialize)]
struct Part<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    text: &'a str,
}

#[derive(Serialize)]
struct DoneData<'a, U> {
    message_id: &'a str,
    usage: &'a U,
    stop_reason: &'a str,
}

#[derive(Serialize)]
struct ErrorData<'a> {
    code: &'a str,
    message: &'a str,
}

impl TurnEventContext<'_> {
    /// Returns the frame of an event.
    pub fn frame<U: Serialize>(
        self,
        seq: Seq,
        timestamp: Timestamp,
        event: &TurnEvent<'_, U>,
    ) -> serde_json::Result<Vec<u8>> {
        match *event {
            TurnEvent::Text { part_id, text } => {
                let part = Part { id: part_id, kind: "text", text };
                self.encode("text", seq, timestamp, PartData { part })
            }
            TurnEvent::Reasoning { part_id, text } => {
                let part = Part { id: part_id, kind: "reasoning", text };
                self.encode("reasoning", seq, timestamp, PartData { part })
            }
            TurnEvent::Done { message_id, usage, stop_reason } => {
                self.encode("done", seq, timestamp, DoneData { message_id, usage, stop_reason })
            }
            TurnEvent::Error { code, message } => self.encode("error", seq, timestamp, ErrorData { code, message }),
        }
    }

    /// Returns the frame of an error that the log does not have. It has no id, so that a client does
    /// not resume after it, and the number of the event before it.
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

/// Returns the frames of a batch whose numbers are above `after`, with the number of the last one.
/// `None` if the batch has no such frame.
pub fn frames_after(batch: &[u8], after: Seq) -> Option<(&[u8], Seq)> {
    let mut first = None;
    let (mut start, mut last) = (0, 0);
    while let Some(length) = frame_length(&batch[start..]) {
        if let Some(seq) = seq_of(&batch[start..start + length]).filter(|seq| *seq > after) {
            first.get_or_insert(start);
            last = seq;
        }
        start += length;
    }
    first.map(|first| (&batch[first..start], last))
}

/// Returns the parts of the answer that frames add up to, in the order of their first events.
pub fn texts_of(frames: &[u8]) -> Vec<MessagePart> {
    #[derive(Deserialize)]
    struct Logged {
        data: LoggedData,
    }
    #[derive(Deserialize)]
    struct LoggedData {
        part: Option<MessagePart>,
    }
    let (mut parts, mut places) = (Vec::<MessagePart>::new(), HashMap::<String, usize>::new());
    for line in frames.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data: ")) {
        let Ok(Logged { data: LoggedData { part: Some(part) } }) = serde_json::from_slice(line) else { continue };
        match places.entry(part.id.clone()) {
            Entry::Occupied(place) => parts[*place.get()].text.push_str(&part.text),
            Entry::Vacant(place) => {
                place.insert(parts.len());
                parts.push(part);
            }
        }
    }
    parts
}

/// Returns whether a batch ends the stream: its last frame is `done` or `error`.
pub fn is_end(batch: &[u8]) -> bool {
    let mut rest = batch;
    let mut last: &[u8] = &[];
    while let Some(length) = frame_length(rest) {
        (last, rest) = rest.split_at(length);
    }
    let mut lines = last.split(|byte| *byte == b'\n');
    lines.any(|line| line == b"event: done" || line == b"event: error")
}

/// JSON holds no line breaks, so the first empty line ends a frame.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\n\n").map(|at| at + 2)
}

fn seq_of(frame: &[u8]) -> Option<Seq> {
    let line = frame.split(|byte| *byte == b'\n').next()?;
    parse_event_id(str::from_utf8(line).ok()?.strip_prefix("id: ")?).map(|(_, seq)| seq)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const CONTEXT: TurnEventContext<'_> = TurnEventContext { session_id: "sess_1", turn_id: "turn_1" };

    fn frame(seq: Seq, event: &TurnEvent<'_, Value>) -> Vec<u8> {
        CONTEXT.frame(seq, Timestamp::from_millis(0).unwrap(), event).unwrap()
    }

    fn text(seq: Seq, text: &str) -> Vec<u8> {
        frame(seq, &TurnEvent::Text { part_id: "part_1", text })
    }

    #[test]
    fn frame_holds_id_type_and_envelope() {
        let written = String::from_utf8(text(7, "Grüße\n\n\u{2028}")).unwrap();
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
        assert!(frame.starts_with(b"event: error\ndata: {") && is_end(&frame));
    }

    #[test]
    fn batch_is_cut_after_an_event() {
        let usage = json!({"input_tokens": 1});
        let done = frame(3, &TurnEvent::Done { message_id: "msg_1", usage: &usage, stop_reason: "end_turn" });
        let batch = [text(1, "a"), text(2, "b"), done.clone()].concat();
        assert_eq!(frames_after(&batch, 0), Some((&*batch, 3)));
        assert_eq!(frames_after(&batch, 2), Some((&*done, 3)));
        assert_eq!(frames_after(&batch, 3), None);
        assert_eq!(frames_after(&[], 0), None);
        assert!(is_end(&batch) && is_end(&done) && !is_end(&text(1, "event: done")) && !is_end(&[]));
        let error = frame(4, &TurnEvent::Error { code: "provider_error", message: "The provider failed" });
        assert!(is_end(&error));
    }

    #[test]
    fn event_id_names_turn_and_number() {
        assert_eq!(parse_event_id("turn_0a.12"), Some(("turn_0a", 12)));
        for junk in ["", "turn_0a", "turn_0a.", "turn_0a.+1", "turn_0a.1x", "turn_0a.4294967296"] {
            assert_eq!(parse_event_id(junk), None, "{junk}");
        }
    }
}

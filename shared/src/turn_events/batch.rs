//! Batches of events, as the log stores them.
//!
//! A frame of one token has some 340 bytes, and its entry in a batch about 16.

use std::fmt;

use serde::{Deserialize, Serialize, de::Error as _};
use serde_json::value::RawValue;

use super::{MessagePart, Part, PartKind, Seq, TurnEvent, TurnEventContext, json_bytes};
use crate::domain::Timestamp;

/// Bytes of an increment besides its text, at most: its time and its part.
const INCREMENT_BYTES: usize = 24;
/// Bytes of a part besides its id, at most.
const PART_BYTES: usize = 64;

/// Consecutive events of a turn.
#[derive(Clone)]
pub struct EventBatch {
    first_seq: Seq,
    content: BatchContent,
    /// Maximum size as JSON, without the end.
    bytes: usize,
}

/// The content of a batch, before sealing. The item holds the number of its first event.
#[derive(Clone, Default, Serialize, Deserialize)]
struct BatchContent {
    /// Unix milliseconds of the first event.
    at: i64,
    parts: Vec<BatchPart>,
    /// Milliseconds since `at`, the index of the part in `parts`, the text.
    increments: Vec<(i64, usize, String)>,
    end: Option<BatchEnd>,
}

#[derive(Clone, Serialize, Deserialize)]
struct BatchPart {
    id: String,
    kind: PartKind,
}

/// The event that ends the turn.
#[derive(Clone, Serialize, Deserialize)]
struct BatchEnd {
    /// Milliseconds since the batch's `at`.
    #[serde(rename = "after")]
    offset_ms: i64,
    /// The event's type.
    kind: String,
    data: Box<RawValue>,
}

/// Omits the texts.
impl fmt::Debug for EventBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first_seq, content, bytes } = self;
        let increments = content.increments.len();
        f.debug_struct("EventBatch")
            .field("first_seq", first_seq)
            .field("increments", &increments)
            .field("has_end", &content.end.is_some())
            .field("bytes", bytes)
            .finish()
    }
}

impl EventBatch {
    /// Returns an empty batch, whose first event will have this number.
    pub fn new(first_seq: Seq) -> Self {
        Self { first_seq, content: BatchContent::default(), bytes: 0 }
    }

    pub fn first_seq(&self) -> Seq {
        self.first_seq
    }

    /// Number of the event after this batch.
    pub fn next_seq(&self) -> Seq {
        let events = self.content.increments.len() + usize::from(self.content.end.is_some());
        self.first_seq.saturating_add(Seq::try_from(events).unwrap_or(Seq::MAX))
    }

    pub fn is_empty(&self) -> bool {
        self.next_seq() == self.first_seq
    }

    /// Time of the first increment of text.
    pub fn first_text_at(&self) -> Option<Timestamp> {
        let is_text =
            |part_index: usize| self.content.parts.get(part_index).is_some_and(|part| part.kind == PartKind::Text);
        let first = self.content.increments.iter().find(|(_, part_index, _)| is_text(*part_index));
        first.and_then(|(offset_ms, ..)| self.at(*offset_ms).ok())
    }

    /// Returns whether the batch ends the stream: its last event is `done` or `error`.
    pub fn is_end(&self) -> bool {
        self.content.end.is_some()
    }

    /// Maximum size of the increments as JSON.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends an increment. The turn must not have ended.
    pub fn push(&mut self, at: Timestamp, increment: MessagePart) {
        let MessagePart { id, kind, text } = increment;
        let offset_ms = self.offset_ms(at);
        let parts = &mut self.content.parts;
        // A model seldom returns to an earlier part.
        let part_index = parts.iter().rposition(|part| part.id == id).unwrap_or_else(|| {
            self.bytes += PART_BYTES + id.len();
            parts.push(BatchPart { id, kind });
            parts.len() - 1
        });
        self.bytes += INCREMENT_BYTES + json_bytes(&text);
        self.content.increments.push((offset_ms, part_index, text));
    }

    /// Sets the event that ends the turn, in place of an earlier one.
    pub fn end<U: Serialize>(&mut self, at: Timestamp, event: &TurnEvent<'_, U>) -> serde_json::Result<()> {
        let offset_ms = self.offset_ms(at);
        let data = serde_json::value::to_raw_value(event)?;
        self.content.end = Some(BatchEnd { offset_ms, kind: event.kind().to_owned(), data });
        Ok(())
    }

    /// Returns the milliseconds since the first event, which this may be.
    fn offset_ms(&mut self, at: Timestamp) -> i64 {
        if self.is_empty() {
            self.content.at = at.as_millis();
        }
        at.as_millis() - self.content.at
    }

    /// Drops the events up to this number.
    pub fn drop_to(&mut self, seq: Seq) {
        let first_seq = self.first_seq.max(seq.saturating_add(1));
        if first_seq >= self.next_seq() {
            *self = Self::new(first_seq);
            return;
        }
        let dropped = usize::try_from(first_seq - self.first_seq).unwrap_or(usize::MAX);
        let dropped = self.content.increments.drain(..dropped.min(self.content.increments.len()));
        let bytes: usize = dropped.map(|(_, _, text)| INCREMENT_BYTES + json_bytes(&text)).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
        self.first_seq = first_seq;
    }

    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&self.content)
    }

    pub fn decode(first_seq: Seq, bytes: &[u8]) -> serde_json::Result<Self> {
        let content: BatchContent = serde_json::from_slice(bytes)?;
        let parts: usize = content.parts.iter().map(|part| PART_BYTES + part.id.len()).sum();
        let texts: usize = content.increments.iter().map(|(_, _, text)| INCREMENT_BYTES + json_bytes(text)).sum();
        Ok(Self { first_seq, content, bytes: parts + texts })
    }

    /// Returns the frames of the events whose numbers are above `after`; empty without such events.
    /// Each frame has the same bytes as when the turn was streamed.
    pub fn frames_after(&self, context: TurnEventContext<'_>, after: Seq) -> serde_json::Result<Vec<Vec<u8>>> {
        let BatchContent { parts, increments, end, .. } = &self.content;
        let mut frames = Vec::new();
        for ((offset_ms, part_index, text), seq) in
            increments.iter().zip(self.first_seq..).filter(|(_, seq)| *seq > after)
        {
            let BatchPart { id, kind } =
                parts.get(*part_index).ok_or_else(|| serde_json::Error::custom("unknown part"))?;
            let event = TurnEvent::Increment::<()> { part: Part { id, kind: *kind, text } };
            frames.push(context.frame(seq, self.at(*offset_ms)?, &event)?);
        }
        if let Some(BatchEnd { offset_ms, kind, data }) = end {
            let seq = self.next_seq() - 1;
            if seq > after {
                frames.push(context.encode(kind, seq, self.at(*offset_ms)?, data)?);
            }
        }
        Ok(frames)
    }

    /// Appends the texts to the parts of an answer.
    pub fn add_to(self, answer: &mut Vec<MessagePart>) {
        let BatchContent { parts, increments, .. } = self.content;
        let answer_indexes: Vec<_> = parts
            .into_iter()
            .map(|BatchPart { id, kind }| {
                answer.iter().position(|part| part.id == id).unwrap_or_else(|| {
                    answer.push(MessagePart { id, kind, text: String::new() });
                    answer.len() - 1
                })
            })
            .collect();
        for (_, part_index, text) in increments {
            if let Some(index) = answer_indexes.get(part_index) {
                answer[*index].text.push_str(&text);
            }
        }
    }

    fn at(&self, offset_ms: i64) -> serde_json::Result<Timestamp> {
        let millis = self.content.at.saturating_add(offset_ms);
        Timestamp::from_millis(millis)
            .ok_or_else(|| serde_json::Error::custom("a time is outside the range of timestamps"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const CONTEXT: TurnEventContext<'_> = TurnEventContext { session_id: "sess_1", turn_id: "turn_1" };

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).unwrap()
    }

    fn part(number: u8, text: &str) -> MessagePart {
        let kind = if number.is_multiple_of(2) { PartKind::Text } else { PartKind::Reasoning };
        MessagePart { id: format!("part_{number}"), kind, text: text.to_owned() }
    }

    proptest! {
        #[test]
        fn replay_builds_the_frames_sent(
            increments in proptest::collection::vec((0_u8..3, ".{0,9}", 0_i64..2_000_000_000_000), 0..40),
            first_seq in 1_u32..1_000,
            has_end: bool,
            after in 0_u32..50,
        ) {
            let (mut batch, mut sent, mut seq) = (EventBatch::new(first_seq), Vec::new(), first_seq);
            for (number, text, millis) in &increments {
                let MessagePart { id, kind, text } = part(*number, text);
                let event = TurnEvent::Increment::<()> { part: Part { id: &id, kind, text: &text } };
                sent.push(CONTEXT.frame(seq, at(*millis), &event).unwrap());
                batch.push(at(*millis), MessagePart { id, kind, text });
                seq += 1;
            }
            if has_end {
                let usage = json!({ "output_tokens": 1, "input_tokens": 2 });
                let done = TurnEvent::Done { message_id: "msg_1", usage: &usage, stop_reason: "end_turn" };
                sent.push(CONTEXT.frame(seq, at(7), &done).unwrap());
                batch.end(at(7), &done).unwrap();
            }
            let encoded = batch.encode().unwrap();
            prop_assert!(encoded.len() <= batch.bytes() + 200);
            let mut decoded = EventBatch::decode(first_seq, &encoded).unwrap();
            prop_assert_eq!(decoded.is_end(), has_end);
            prop_assert_eq!(decoded.next_seq(), first_seq + u32::try_from(sent.len()).unwrap());
            let skipped = usize::try_from(after).unwrap().min(sent.len());
            let last_seen = first_seq - 1 + after;
            prop_assert_eq!(decoded.frames_after(CONTEXT, last_seen).unwrap(), sent[skipped..].to_vec());
            decoded.drop_to(last_seen);
            prop_assert_eq!(decoded.frames_after(CONTEXT, 0).unwrap(), sent[skipped..].to_vec());
            prop_assert_eq!(decoded.is_empty(), skipped == sent.len());
            batch.drop_to(last_seen);
            prop_assert_eq!(batch.encode().unwrap(), decoded.encode().unwrap());
            prop_assert!(batch.encode().unwrap().len() <= batch.bytes() + 200);
            prop_assert!(!batch.is_empty() || batch.bytes() == 0);
        }
    }

    #[test]
    fn token_takes_few_bytes() {
        let mut batch = EventBatch::new(1);
        for token in 0..100 {
            batch.push(at(1_800_000_000_000 + token * 20), part(0, "word"));
        }
        assert!(batch.encode().unwrap().len() < 100 * 17);
    }

    #[test]
    fn texts_add_up_in_order_of_parts() {
        let (mut first, mut second, mut answer) = (EventBatch::new(1), EventBatch::new(4), Vec::new());
        first.push(at(0), part(1, "a"));
        first.push(at(0), part(0, "b"));
        first.push(at(0), part(1, "c"));
        second.push(at(0), part(0, "d"));
        first.add_to(&mut answer);
        second.add_to(&mut answer);
        let answer: Vec<_> = answer.into_iter().map(|part| (part.id, part.text)).collect();
        assert_eq!(answer, [("part_1".to_owned(), "ac".to_owned()), ("part_0".to_owned(), "bd".to_owned())]);
    }
}

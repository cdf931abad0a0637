use crate::{
    Dialect, Outcome, ReportedUsage,
    json::Json,
    sse::{Frame, Frames},
    text::{Joiner, Part},
};

/// An increment of the answer, never empty. `part` identifies a block of the answer: Anthropic's block
/// index; in OpenAI's dialect 0 for text and 1 for reasoning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    Text { part: u32, text: String },
    Reasoning { part: u32, text: String },
}

/// Reads a streamed answer incrementally. The result does not depend on how the bytes are split.
pub struct Decoder {
    frames: Frames,
    stream: Stream,
}

struct Stream {
    dialect: Dialect,
    outcome: Outcome,
    joiner: Joiner,
    has_ended: bool,
}

/// The answer so far. Dialects extend it while they read a frame.
pub(crate) struct Answer<'a> {
    pub(crate) outcome: &'a mut Outcome,
    joiner: &'a mut Joiner,
    deltas: &'a mut Vec<Delta>,
    /// Whether a member that leads to text has another JSON type, so that its text is dropped.
    is_partly_unreadable: bool,
}

impl Answer<'_> {
    /// Reads a member that leads to text, and notes if it has another JSON type.
    pub(crate) fn read<'j, T>(&mut self, member: Option<Json<'j>>, read: fn(Json<'j>) -> Option<T>) -> Option<T> {
        let value = read(member?);
        self.is_partly_unreadable |= value.is_none();
        value
    }

    /// Appends the text of a member. Returns false if it is absent or has no text.
    pub(crate) fn push(&mut self, part: Part, member: Option<Json<'_>>) -> bool {
        let text = self.read(member, Json::text).filter(|text| !text.is_empty());
        text.map(|text| self.joiner.push(part, text, self.deltas)).is_some()
    }

    /// Takes the counts of a report of the output. Those that it lacks stay as they are, and none
    /// falls, because providers report sums. `is_final` says that the whole output is counted.
    pub(crate) fn update_usage(&mut self, report: ReportedUsage, is_final: bool) {
        let usage = self.outcome.usage.get_or_insert_default();
        let later = ReportedUsage {
            input_tokens: report.input_tokens.or(usage.input_tokens),
            output_tokens: report.output_tokens.max(usage.output_tokens),
            cache_read_tokens: report.cache_read_tokens.or(usage.cache_read_tokens),
            cache_write_tokens: report.cache_write_tokens.or(usage.cache_write_tokens),
        };
        // A later report may only move input between its kinds.
        *usage = if later.input() < usage.input() {
            ReportedUsage { output_tokens: later.output_tokens, ..*usage }
        } else {
            later
        };
        self.outcome.is_usage_final |= is_final && report.output_tokens.is_some();
    }
}

impl Decoder {
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self { frames: Frames::default(), stream: Stream::new(dialect) }
    }

    /// Reads the next bytes and appends their deltas to `out`. Ignores bytes after the end.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<Delta>) {
        if !self.stream.has_ended {
            self.frames.push(bytes, |frame| {
                if !self.stream.read(frame, out) {
                    self.stream.count_skipped();
                }
            });
        }
    }

    /// Returns the outcome so far.
    pub const fn outcome(&self) -> &Outcome {
        &self.stream.outcome
    }

    /// Returns true after the provider's last event or an error event. The provider may keep the
    /// connection open after it: stop reading.
    pub const fn has_ended(&self) -> bool {
        self.stream.has_ended
    }

    /// Reads a last frame that lacks its blank line, and returns the outcome. A frame that was cut is
    /// not counted as skipped.
    pub fn finish(mut self, out: &mut Vec<Delta>) -> Outcome {
        self.frames.finish(|frame| {
            if !self.stream.read(frame, out) && frame == Frame::Oversized {
                self.stream.count_skipped();
            }
        });
        self.stream.joiner.finish(out);
        self.stream.outcome
    }
}

impl Stream {
    fn new(dialect: Dialect) -> Self {
        Self { dialect, outcome: Outcome::default(), joiner: Joiner::default(), has_ended: false }
    }

    /// Returns false if the frame must be counted as skipped.
    fn read(&mut self, frame: Frame<'_>, out: &mut Vec<Delta>) -> bool {
        if self.has_ended {
            return true;
        }
        let Frame::Data(data) = frame else { return false };
        // Some providers send events with empty data to keep the connection open.
        if data.trim_ascii().is_empty() {
            return true;
        }
        let (outcome, joiner) = (&mut self.outcome, &mut self.joiner);
        let mut answer = Answer { outcome, joiner, deltas: out, is_partly_unreadable: false };
        let Ok(flow) = self.dialect.read(data, &mut answer) else { return false };
        self.has_ended = flow.is_break();
        !answer.is_partly_unreadable
    }

    const fn count_skipped(&mut self) {
        self.outcome.skipped_frames = self.outcome.skipped_frames.saturating_add(1);
    }
}

use crate::{
    Dialect, Outcome,
    sse::{Frame, Frames},
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
    has_ended: bool,
}

impl Decoder {
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self { frames: Frames::default(), stream: Stream { dialect, outcome: Outcome::default(), has_ended: false } }
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
        self.stream.outcome
    }
}

impl Stream {
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
        let Ok(flow) = self.dialect.read(data, &mut self.outcome, out) else { return false };
        self.has_ended = flow.is_break();
        true
    }

    const fn count_skipped(&mut self) {
        self.outcome.skipped_frames = self.outcome.skipped_frames.saturating_add(1);
    }
}

//! The decoder of Server-Sent Events. Returns the data of each event; both dialects repeat the event's
//! name in it, so that the other fields are skipped.

use std::mem;

/// Maximum size of a frame in bytes: the data lines so far plus the current line. A larger frame is
/// dropped, so that a stream without line breaks needs no more memory than this.
pub const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// An event of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// The event's data lines, joined by LF.
    Data(&'a [u8]),
    /// The event was larger than [`MAX_FRAME_BYTES`].
    Oversized,
}

#[derive(Default)]
pub(crate) struct Frames {
    /// The kept bytes of the current line, and the number of all its bytes.
    line: Vec<u8>,
    line_bytes: usize,
    /// The data lines of the current frame, each with LF at its end.
    data: Vec<u8>,
    is_oversized: bool,
    is_after_cr: bool,
    is_after_first_line: bool,
}

impl Frames {
    /// Reads the next bytes and calls `each` with every frame that they complete.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame<'_>)) {
        while let Some(first) = bytes.first() {
            if mem::take(&mut self.is_after_cr) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
                self.extend_line(bytes);
                return;
            };
            self.extend_line(&bytes[..end]);
            self.end_line(&mut each);
            self.is_after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
        }
    }

    /// Calls `each` with a last frame that lacks its blank line.
    pub(crate) fn finish(&mut self, mut each: impl FnMut(Frame<'_>)) {
        if self.line_bytes > 0 {
            self.end_line(&mut each);
        }
        self.end_frame(&mut each);
    }

    fn extend_line(&mut self, bytes: &[u8]) {
        self.line_bytes += bytes.len();
        if self.is_oversized {
            return;
        }
        if self.data.len() + self.line_bytes > MAX_FRAME_BYTES {
            self.is_oversized = true;
            self.line = Vec::new();
            self.data = Vec::new();
            return;
        }
        self.line.extend_from_slice(bytes);
    }

    fn end_line(&mut self, each: &mut impl FnMut(Frame<'_>)) {
        if !mem::replace(&mut self.is_after_first_line, true) && self.line.starts_with(BYTE_ORDER_MARK) {
            self.line.drain(..BYTE_ORDER_MARK.len());
            self.line_bytes -= BYTE_ORDER_MARK.len();
        }
        if mem::take(&mut self.line_bytes) == 0 {
            self.end_frame(each);
        } else if let Some(value) = data_value(&self.line) {
            self.data.extend_from_slice(value);
            self.data.push(b'\n');
        }
        self.line.clear();
    }

    fn end_frame(&mut self, each: &mut impl FnMut(Frame<'_>)) {
        if mem::take(&mut self.is_oversized) {
            each(Frame::Oversized);
        } else if let Some(data) = self.data.strip_suffix(b"\n") {
            each(Frame::Data(data));
        }
        self.data.clear();
    }
}

/// Returns the value of a line with the field `data`, and `None` for comments and other fields.
fn data_value(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"data")?;
    match rest.strip_prefix(b":") {
        Some(value) => Some(value.strip_prefix(b" ").unwrap_or(value)),
        None => rest.is_empty().then_some(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the data of all frames, with the bytes in pieces of `size`. An oversized frame is `None`.
    fn decode(stream: &[u8], size: usize) -> Vec<Option<String>> {
        let (mut frames, mut found) = (Frames::default(), Vec::new());
        let mut keep = |frame: Frame<'_>| {
            found.push(match frame {
                Frame::Data(data) => Some(String::from_utf8(data.to_vec()).unwrap()),
                Frame::Oversized => None,
            });
        };
        for piece in stream.chunks(size) {
            frames.push(piece, &mut keep);
        }
        frames.finish(&mut keep);
        found
    }

    #[test]
    fn frames_follow_the_standard() {
        for (stream, expected) in [
            ("data: a\n\ndata: b\n\n", &["a", "b"][..]),
            ("data: a\r\rdata: b\r\r", &["a", "b"]),
            ("data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]),
            ("data: a\r\n\ndata: b\n\r", &["a", "b"]),
            ("data: a\r\ndata: b\r\n\r\n", &["a\nb"]),
            ("\u{feff}data: a\n\n", &["a"]),
            ("\u{feff}\u{feff}data: a\n\n", &[]),
            ("data: a\n\n\u{feff}data: b\n\n", &["a"]),
            ("data:a\ndata:  b\ndata\n\n", &["a\n b\n"]),
            (": comment\ndata: a\n: OPENROUTER PROCESSING\n\n", &["a"]),
            ("event: x\nid: 1\nretry: 5\ndata: a\nother\ndatas: b\n data: c\n\n", &["a"]),
            ("data\n\ndata:\n\n\n\n", &["", ""]),
            ("event: ping\n\n: comment\n\n\n", &[]),
            ("data: a: b\n\n", &["a: b"]),
            ("data: a\n\ndata: without a blank line\n", &["a", "without a blank line"]),
            ("data: a\n\ndata: without a line end", &["a", "without a line end"]),
            ("data: é漢🦀\n\n", &["é漢🦀"]),
            ("", &[]),
        ] {
            for size in [1, 2, 3, 1000] {
                let found: Vec<_> = decode(stream.as_bytes(), size).into_iter().map(Option::unwrap).collect();
                assert_eq!(found, expected, "{stream:?} by {size}");
            }
        }
    }

    #[test]
    fn oversized_frame_is_dropped() {
        let line = "x".repeat(MAX_FRAME_BYTES / 2);
        let long = format!("data: {line}\ndata: {line}\ndata: tail\n\ndata: next\n\n");
        assert_eq!(decode(long.as_bytes(), 1000), [None, Some("next".to_owned())]);
        assert_eq!(decode(long.as_bytes(), usize::MAX), [None, Some("next".to_owned())]);

        let at_the_limit = format!("data: {}", "x".repeat(MAX_FRAME_BYTES - "data: ".len()));
        assert_eq!(decode(format!("{at_the_limit}\n\n").as_bytes(), 1000)[0].as_ref().unwrap().len(), 4_194_298);
        assert_eq!(decode(format!("{at_the_limit}x\n\n").as_bytes(), 1000), [None]);
    }

    #[test]
    fn memory_is_bounded_without_line_breaks() {
        let mut frames = Frames::default();
        let piece = vec![b'x'; 1024 * 1024];
        for _ in 0..100 {
            frames.push(&piece, |frame| panic!("{frame:?}"));
            assert!(frames.line.capacity() + frames.data.capacity() <= 2 * MAX_FRAME_BYTES);
        }
        let mut found = 0;
        frames.finish(|frame| found += u32::from(frame == Frame::Oversized));
        assert_eq!(found, 1);
    }
}

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use super::hex::hex;

/// A line that is longer is continued on the next one, so that a page of lines stays an answer.
const LINE_BYTES: usize = 8 * 1024;
/// Well below what an item may hold, and few enough of them for one transaction.
const CHUNK_BYTES: usize = 128 * 1024;

/// What a build printed, cut into chunks of whole lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildLog {
    digest: String,
    chunks: Vec<LogChunk>,
}

/// Some lines that follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    first_line: u64,
    /// The lines, with a line feed between two.
    text: String,
}

/// What is known of a log without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIndex {
    /// SHA-256 of the text.
    digest: String,
    /// The last line of each chunk.
    ends: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// Counts from 1.
    pub line: u64,
    pub text: String,
}

impl BuildLog {
    pub fn of(text: &str) -> Self {
        let mut chunks: Vec<LogChunk> = Vec::new();
        for (line, piece) in (1..).zip(text.lines().flat_map(pieces)) {
            match chunks.last_mut() {
                Some(chunk) if chunk.text.len() + 1 + piece.len() <= CHUNK_BYTES => {
                    chunk.text.push('\n');
                    chunk.text.push_str(piece);
                }
                _ => chunks.push(LogChunk { first_line: line, text: piece.to_owned() }),
            }
        }
        Self { digest: sha256(text), chunks }
    }

    pub fn chunks(&self) -> &[LogChunk] {
        &self.chunks
    }

    /// None without a line.
    pub fn index(&self) -> Option<LogIndex> {
        let ends: Vec<_> = self.chunks.iter().map(LogChunk::last_line).collect();
        (!ends.is_empty()).then(|| LogIndex { digest: self.digest.clone(), ends })
    }
}

impl LogChunk {
    pub fn lines(&self) -> impl Iterator<Item = LogLine> {
        (self.first_line..).zip(self.text.split('\n')).map(|(line, text)| LogLine { line, text: text.to_owned() })
    }

    pub fn last_line(&self) -> u64 {
        self.first_line + self.text.bytes().filter(|byte| *byte == b'\n').count() as u64
    }
}

impl LogIndex {
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn ends(&self) -> &[u64] {
        &self.ends
    }

    pub fn last_line(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }
}

/// `sha256:` and 64 hexadecimal digits.
fn sha256(text: &str) -> String {
    format!("sha256:{}", hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref()))
}

/// A line in pieces that are short enough; an empty line is one piece.
fn pieces(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let (piece, after) = rest?.split_at(rest?.floor_char_boundary(LINE_BYTES));
        rest = (!after.is_empty()).then_some(after);
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn lines(log: &BuildLog) -> Vec<LogLine> {
        log.chunks().iter().flat_map(LogChunk::lines).collect()
    }

    #[test]
    fn lines_are_numbered_and_their_ends_are_not_shown() {
        let log = BuildLog::of("one\r\n\ntwo\n");
        let expected = [(1, "one"), (2, ""), (3, "two")].map(|(line, text)| LogLine { line, text: text.to_owned() });
        assert_eq!(lines(&log), expected);
        assert_eq!(log.index().unwrap().last_line(), 3);
        assert_eq!(BuildLog::of("").index(), None);
        assert_eq!(lines(&BuildLog::of("\n")), [LogLine { line: 1, text: String::new() }]);
    }

    #[test]
    fn a_long_line_goes_on_in_the_next_and_no_character_is_torn() {
        let text = "é".repeat(10_000);
        let lines = lines(&BuildLog::of(&text));
        assert_eq!(lines.len(), 3);
        assert_eq!(lines.into_iter().map(|line| line.text).collect::<String>(), text);
    }

    proptest! {
        #[test]
        fn whatever_is_cut_comes_back_in_order_and_in_small_chunks(
            parts in vec(prop_oneof![Just("\n".repeat(3_000)), Just("x".repeat(9_000)), "[a-zé\r]{0,2000}", Just("\n".to_owned())], 0..60),
        ) {
            let text = parts.concat();
            let log = BuildLog::of(&text);
            let lines = lines(&log);
            prop_assert!(lines.iter().map(|line| line.line).eq(1..=lines.len() as u64));
            prop_assert!(lines.iter().all(|line| line.text.len() <= LINE_BYTES));
            prop_assert!(log.chunks().iter().all(|chunk| chunk.text.len() <= CHUNK_BYTES));
            prop_assert_eq!(log.index().map_or(0, |index| index.last_line()), lines.len() as u64);
            let whole: String = lines.into_iter().map(|line| line.text).collect();
            prop_assert_eq!(whole, text.lines().collect::<String>());
        }
    }
}

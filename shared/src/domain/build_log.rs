use std::fmt;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Entropy, Timestamp, hex::hex};

/// Maximum stored size. A report is not larger, but a redaction marker may be longer than the
/// secret that it replaces.
const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// The last line of a truncated log.
const CUT: &str = "[the rest of this log was cut off]";

/// A longer line continues on the next one, so that a page of lines fits into a response.
const MAX_LINE_BYTES: usize = 8 * 1024;
/// Well below the size limit of an item. A log has few chunks, which are written one after the
/// other.
const MAX_CHUNK_BYTES: usize = 128 * 1024;

/// The output of a build, split into chunks of whole lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildLog {
    digest: String,
    chunks: Vec<LogChunk>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    first_line: u64,
    /// Separated by line feeds.
    text: String,
}

/// Identifies the chunks of one report's log: the time just before they are written and 32 random
/// hexadecimal digits. Sorts by time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogGeneration(String);

impl LogGeneration {
    pub fn draw(now: Timestamp, entropy: &dyn Entropy) -> Self {
        let mut random = [0; 16];
        entropy.fill(&mut random);
        Self(format!("{now}#{}", hex(&random)))
    }
}

impl fmt::Display for LogGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIndex {
    generation: LogGeneration,
    /// SHA-256 of the text.
    digest: String,
    /// The last line of each chunk.
    ends: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LogLine {
    /// Counted from 1.
    pub line: u64,
    pub text: String,
}

impl BuildLog {
    /// Keeps the first mebibyte of `text`, which must not contain secrets.
    pub fn new(text: &str) -> Self {
        let kept = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
        let cut = (kept.len() < text.len()).then_some(CUT);
        let mut chunks: Vec<LogChunk> = Vec::new();
        for (line, piece) in (1..).zip(kept.lines().flat_map(pieces).chain(cut)) {
            match chunks.last_mut() {
                Some(chunk) if chunk.text.len() + 1 + piece.len() <= MAX_CHUNK_BYTES => {
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

    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns `None` for a log without lines.
    pub fn index(&self, generation: LogGeneration) -> Option<LogIndex> {
        let ends: Vec<_> = self.chunks.iter().map(LogChunk::last_line).collect();
        (!ends.is_empty()).then(|| LogIndex { generation, digest: self.digest.clone(), ends })
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
    pub fn generation(&self) -> &LogGeneration {
        &self.generation
    }

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

/// Returns `sha256:` and 64 hexadecimal digits.
fn sha256(text: &str) -> String {
    format!("sha256:{}", hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref()))
}

/// Splits a line. An empty line is one piece.
fn pieces(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let (piece, after) = rest?.split_at(rest?.floor_char_boundary(MAX_LINE_BYTES));
        rest = (!after.is_empty()).then_some(after);
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::entropy::SeededEntropy;

    fn generation() -> LogGeneration {
        LogGeneration::draw("2026-11-22T12:00:00Z".parse().unwrap(), &SeededEntropy::new(1))
    }

    fn lines(log: &BuildLog) -> Vec<LogLine> {
        log.chunks().iter().flat_map(LogChunk::lines).collect()
    }

    #[test]
    fn lines_are_numbered_without_line_ends() {
        let log = BuildLog::new("one\r\n\ntwo\n");
        let expected = [(1, "one"), (2, ""), (3, "two")].map(|(line, text)| LogLine { line, text: text.to_owned() });
        assert_eq!(lines(&log), expected);
        assert_eq!(log.index(generation()).unwrap().last_line(), 3);
        assert_eq!(BuildLog::new("").index(generation()), None);
        assert_eq!(lines(&BuildLog::new("\n")), [LogLine { line: 1, text: String::new() }]);
    }

    #[test]
    fn long_line_is_split_between_characters() {
        let text = "é".repeat(10_000);
        let lines = lines(&BuildLog::new(&text));
        assert_eq!(lines.len(), 3);
        assert_eq!(lines.into_iter().map(|line| line.text).collect::<String>(), text);
    }

    #[test]
    fn log_is_truncated_at_a_character_boundary() {
        let whole = format!("{}\n", "x".repeat(63)).repeat(MAX_TEXT_BYTES / 64);
        assert_eq!(lines(&BuildLog::new(&whole)).len(), MAX_TEXT_BYTES / 64);
        let longer = BuildLog::new(&format!("{}é", &whole[1..]));
        assert_eq!(lines(&longer).pop().unwrap().text, CUT);
        assert_eq!(lines(&longer).len(), MAX_TEXT_BYTES / 64 + 1, "half a character is not stored");
    }

    #[test]
    fn generations_differ_and_sort_by_time() {
        let (now, entropy) = ("2026-11-22T12:00:00Z".parse::<Timestamp>().unwrap(), SeededEntropy::new(1));
        let later = now.plus(std::time::Duration::from_millis(1));
        let drawn = [now, now, later].map(|at| LogGeneration::draw(at, &entropy).to_string());
        assert!(drawn[0] != drawn[1] && drawn[1] < drawn[2] && drawn[0] < drawn[2], "{drawn:?}");
        assert!(later.to_string() <= drawn[2] && drawn[1] < later.to_string(), "a time sorts before its generations");
    }

    proptest! {
        #[test]
        fn chunks_are_small_and_restore_the_log(
            parts in vec(prop_oneof![Just("\n".repeat(3_000)), Just("x".repeat(9_000)), "[a-zé\r]{0,2000}", Just("\n".to_owned())], 0..60),
        ) {
            let text = parts.concat();
            let log = BuildLog::new(&text);
            let lines = lines(&log);
            prop_assert!(lines.iter().map(|line| line.line).eq(1..=lines.len() as u64));
            prop_assert!(lines.iter().all(|line| line.text.len() <= MAX_LINE_BYTES));
            prop_assert!(log.chunks().iter().all(|chunk| chunk.text.len() <= MAX_CHUNK_BYTES));
            prop_assert_eq!(log.index(generation()).map_or(0, |index| index.last_line()), lines.len() as u64);
            let whole: String = lines.into_iter().map(|line| line.text).collect();
            prop_assert_eq!(whole, text.lines().collect::<String>());
        }
    }
}

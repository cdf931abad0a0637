//! Tests through the public API. The streams follow the providers' documentation.

mod anthropic;
mod openai;
mod requests;
mod splits;

use karta_dialects::{Delta, Dialect, Outcome, ReportedUsage};

/// Decodes a stream in pieces of `size` bytes.
fn decode_by(size: usize, dialect: Dialect, stream: &[u8]) -> (Vec<Delta>, Outcome) {
    let (mut decoder, mut deltas) = (dialect.decoder(), Vec::new());
    for piece in stream.chunks(size) {
        decoder.push(piece, &mut deltas);
    }
    let outcome = decoder.finish(&mut deltas);
    (deltas, outcome)
}

fn decode(dialect: Dialect, stream: &str) -> (Vec<Delta>, Outcome) {
    decode_by(usize::MAX, dialect, stream.as_bytes())
}

fn text(part: u32, text: &str) -> Delta {
    Delta::Text { part, text: text.to_owned() }
}

fn reasoning(part: u32, text: &str) -> Delta {
    Delta::Reasoning { part, text: text.to_owned() }
}

/// Returns these counts of input, output, cache reads and cache writes.
fn usage(counts: [u64; 4]) -> ReportedUsage {
    let [input_tokens, output_tokens, cache_read_tokens, cache_write_tokens] = counts.map(Some);
    ReportedUsage { input_tokens, output_tokens, cache_read_tokens, cache_write_tokens }
}

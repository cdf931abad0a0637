//! Decodes recorded streams, byte by byte, and prints the result of each
//! as a line of JSON.
//!
//!     cargo run -p karta-dialects --example replay -- <folder>
//!
//! The folder contains `anthropic/*.jsonl` and `openai-chat/*.jsonl`, each with one JSON event per
//! line. Fails if a stream does not end with usage and a stop reason.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use karta_dialects::{Delta, Dialect, Outcome, ReportedStop};
use serde_json::{Value, json};

fn main() -> io::Result<ExitCode> {
    let folder = env::args().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| io::Error::other("pass the folder of the recorded streams"))?;
    let mut all_are_complete = true;
    for (subfolder, dialect) in [("anthropic", Dialect::AnthropicMessages), ("openai-chat", Dialect::OpenAiChat)] {
        for path in recordings(&folder.join(subfolder))? {
            all_are_complete &= replay(dialect, &path)?;
        }
    }
    Ok(if all_are_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn recordings(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort_unstable();
    Ok(paths)
}

/// Prints one line for the recording. Returns false if it has no complete outcome.
fn replay(dialect: Dialect, path: &Path) -> io::Result<bool> {
    let stream = frame(dialect, &fs::read_to_string(path)?)?;
    let (mut decoder, mut deltas) = (dialect.decoder(), Vec::new());
    for byte in &stream {
        decoder.push(&[*byte], &mut deltas);
    }
    let outcome = decoder.finish(&mut deltas);
    let (mut text_bytes, mut reasoning_bytes) = (0, 0);
    for delta in &deltas {
        match delta {
            Delta::Text { text, .. } => text_bytes += text.len(),
            Delta::Reasoning { text, .. } => reasoning_bytes += text.len(),
        }
    }
    let usage = outcome.usage.unwrap_or_default();
    let result = json!({
        "file": path.file_name().map(|name| name.to_string_lossy()),
        "text_bytes": text_bytes,
        "reasoning_bytes": reasoning_bytes,
        "input_tokens": usage.input_tokens.unwrap_or(0),
        "output_tokens": usage.output_tokens.unwrap_or(0),
        "cache_read_tokens": usage.cache_read_tokens.unwrap_or(0),
        "cache_write_tokens": usage.cache_write_tokens.unwrap_or(0),
        "stop_reason": outcome.stop.map(ReportedStop::as_str),
    });
    writeln!(io::stdout(), "{result}")?;
    Ok(is_whole(&outcome))
}

fn is_whole(outcome: &Outcome) -> bool {
    outcome.is_complete && outcome.usage.is_some() && outcome.stop.is_some() && outcome.skipped_frames == 0
}

/// Frames the events as the provider sends them.
fn frame(dialect: Dialect, events: &str) -> io::Result<Vec<u8>> {
    let mut stream = Vec::new();
    for event in events.lines() {
        if dialect == Dialect::AnthropicMessages {
            let json: Value = serde_json::from_str(event)?;
            writeln!(stream, "event: {}", json["type"].as_str().unwrap_or_default())?;
        }
        writeln!(stream, "data: {event}\n")?;
    }
    if dialect != Dialect::AnthropicMessages {
        writeln!(stream, "data: [DONE]\n")?;
    }
    Ok(stream)
}

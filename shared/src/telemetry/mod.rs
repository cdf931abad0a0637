//! The log: scrubbed JSON lines, and metrics.
//!
//! Guarantees:
//!
//! - Each event is one line with one JSON object: `timestamp` (UTC), `level`, `target`, `message`,
//!   the event's fields, and under `span` the name and the fields of the innermost span.
//! - [`scrub()`] processes each line as a whole, after formatting. No message, field, span field,
//!   error text or panic payload bypasses it. Of an API key it keeps the public prefix.
//! - A panic is one ERROR line with its location. Nothing goes to stderr.
//! - A metric is a separate line that CloudWatch reads: [`Metrics`].
//! - The SDK, the HTTP stack, the Lambda runtime and the embedded store never log bodies or
//!   headers, at any filter level.
//!
//! The scrubber recognizes shapes of secrets. It is a safety net and does not replace these rules.
//! Never log:
//!
//! - API keys, session tokens, service tokens, ring secrets, webhook secrets or provider keys, nor
//!   their bytes or digests;
//! - `Authorization` headers, request and response bodies, idempotency keys or cursors;
//! - a caller's input in place of a rejected value: it may be a secret in the wrong field.
//!
//! Log ids, prefixes, statuses, field names and durations instead.

mod log;
mod metrics;
mod scrub;

pub use log::{InitError, Output, exit_code, init};
pub use metrics::{Metrics, ProofSource};
pub use scrub::scrub;

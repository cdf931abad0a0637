//! The log: JSON lines, every one of them scrubbed.
//!
//! What it promises:
//!
//! - One event is one line is one JSON object: `timestamp` (UTC), `level`, `target`, `message`, the event's fields beside them, and
//!   under `span` the name and the fields of the innermost span.
//! - A line goes through [`scrub()`] as a whole, after formatting, so that no message, field, span field, error text or panic
//!   payload goes round it. What it keeps of an API key is the public prefix.
//! - A panic is one ERROR line with its location and nothing on stderr.
//! - A metric is a line of its own, which CloudWatch reads: [`Metrics`].
//! - The SDK, the HTTP stack, the Lambda runtime and the embedded store never log bodies or headers, whatever the filter asks for.
//!
//! The scrubber knows shapes, so it is the net and not the rule. Never log, in any form:
//!
//! - API keys, session tokens, service tokens, ring secrets, webhook secrets, provider keys; nor their bytes or digests;
//! - `Authorization` headers, request and response bodies, idempotency keys, cursors;
//! - what a caller wrote in the place of a value that was refused: it may be a secret in the wrong place.
//!
//! Log ids, prefixes, statuses, field names and durations instead.

mod log;
mod metrics;
mod scrub;

pub use log::{InitError, Output, exit_code, init};
pub use metrics::{Metrics, Proving};
pub use scrub::scrub;

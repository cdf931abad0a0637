//! The wire formats of model providers. Pure code over bytes: no I/O, no clock, no async.
//!
//! A [`Dialect`] writes a [`Prompt`] as a request for a streamed answer, and gives a [`Decoder`] that
//! reads the answer. The decoder takes bytes in pieces of any size, returns increments of text and
//! reasoning ([`Delta`]), and keeps the [`Outcome`] so far: usage, stop reason, error. [`read_error`]
//! classifies an HTTP error answer.
//!
//! The Server-Sent Events decoder is part of this crate because it must bound the size of an event
//! and work without async.
//!
//! To add a dialect: add a variant to [`Dialect`], and a module that writes the request and reads one
//! event. Both are called from `dialect.rs`.

mod anthropic;
mod decoder;
mod dialect;
mod fault;
mod json;
mod openai;
mod outcome;
mod prompt;
mod sse;
mod text;

pub use decoder::{Decoder, Delta};
pub use dialect::Dialect;
pub use fault::{FaultKind, ProviderFault, read_error};
pub use outcome::{Outcome, ReportedStop, ReportedUsage};
pub use prompt::{Prompt, PromptMessage, Role};
pub use sse::MAX_FRAME_BYTES;

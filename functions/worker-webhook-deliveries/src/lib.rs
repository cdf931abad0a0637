//! Delivers events to webhook endpoints.

pub mod wire;

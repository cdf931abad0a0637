//! The code that all Karta functions share.
//!
//! | module | purpose |
//! | --- | --- |
//! | [`app`] | [`App`]: the dependencies of every handler |
//! | [`auth`] | verification of API keys and session tokens |
//! | [`bootstrap`] | creation of an organization with its first API key |
//! | [`byok`] | sealing and opening of customers' provider keys |
//! | [`clock`] | the current time |
//! | [`config`] | environment variables and secrets |
//! | [`domain`] | business rules, without I/O |
//! | [`entropy`] | random bytes |
//! | [`fault`] | descriptions of failed AWS calls that are safe to log |
//! | [`follow`] | streams of the events of running and ended turns |
//! | [`http`] | the frame in which every [`http::Route`] runs |
//! | [`join_bounded`] | bounded concurrency |
//! | [`reseal`] | resealing of items under their ring's current key |
//! | [`sealing`] | encryption and MACs with derived keys |
//! | [`settlement`] | the end of a turn, stored in one transaction |
//! | [`store`] | DynamoDB: one file per aggregate, all keys in [`store::table`] |
//! | [`telemetry`] | logs and metrics |
//! | [`transcripts`] | sealing and opening of messages and events of sessions |
//! | [`turn_events`] | the native events of a turn |
//! | [`webhook_secrets`] | the secrets that sign webhooks |
//! | [`worker`] | the frame of functions without a route |
//!
//! `docs/architecture.md` describes the modules. `infra/local/tests/it/structure.rs` lists which
//! module may use which, and checks it.

pub mod app;
pub mod auth;
pub mod bootstrap;
pub mod byok;
pub mod clock;
pub mod config;
pub mod domain;
pub mod entropy;
pub mod fault;
pub mod follow;
pub mod http;
pub mod join_bounded;
pub mod reseal;
pub mod sealing;
pub mod settlement;
pub mod store;
pub mod telemetry;
pub mod transcripts;
pub mod turn_events;
pub mod webhook_secrets;
pub mod worker;

pub use app::{App, Needs};

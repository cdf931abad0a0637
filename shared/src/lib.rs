//! What every Karta function shares.
//!
//! | module | duty | may use |
//! | --- | --- | --- |
//! | [`domain`] | the rules: key format, scopes, principals, budgets; pure, no I/O and no clock of its own | nothing here |
//! | [`store`] | DynamoDB: one file per aggregate, every key string in `store::table` | `domain` |
//! | [`auth`] | proofs of credentials: API keys, session tokens | `domain`, `store`, `config`, `telemetry` |
//! | [`byok`] | provider keys: what seals and opens them | `domain`, `store`, `sealing` |
//! | [`founding`] | an organization with its first key | `domain`, `store`, `auth`, `config` |
//! | [`http`] | the [`http::Route`] frame: judge, parse, call, answer | all of the above |
//! | [`webhook_secrets`] | what webhooks are signed with: sealed, opened, rotated | `domain`, `store`, `sealing` |
//! | [`reseal`] | what is sealed, sealed anew under its ring's current key | `app`, `config`, `domain`, `store`, `worker` |
//! | [`worker`] | the frame of functions without a route | `app`, `config`, `domain`, `store`, `telemetry` |
//! | [`join_bounded`] | many calls at once, within bounds | nothing here |
//! | [`config`] | environment and secrets, read once and refused when wrong | `domain`, `store::table` |
//! | [`fault`] | what may be said of an AWS call that failed | nothing here |
//! | [`telemetry`] | JSON logs through the scrubber, metrics | `domain` |
//!
//! A test of the local runner reads the `use` lines and holds these arrows.

pub mod app;
pub mod auth;
pub mod bootstrap;
pub mod byok;
pub mod clock;
pub mod config;
pub mod domain;
pub mod entropy;
pub mod fault;
pub mod http;
pub mod join_bounded;
pub mod reseal;
pub mod sealing;
pub mod store;
pub mod telemetry;
pub mod webhook_secrets;
pub mod worker;

pub use app::{App, Needs};

//! The whole control plane in one process.
//!
//! [`Runner::start`] opens an embedded DynamoDB ([`emulator`]), reads `template.yaml` ([`template`]), mounts the functions that
//! it lists ([`registry`]) behind what API Gateway would do ([`gateway`]), starts the workers ([`workers`]), and makes the first
//! organization ([`bootstrap`]). [`audit`] verifies the audit logs of what was run. Handlers, authorizer, workers and DynamoDB calls are those that run in AWS.

pub mod audit;
pub mod bootstrap;
pub mod cli;
pub mod emulator;
pub mod gateway;
pub mod openapi;
pub mod registry;
pub mod runner;
pub mod secrets;
pub mod template;
pub mod workers;

pub use runner::{Options, Runner};

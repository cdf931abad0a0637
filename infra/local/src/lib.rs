//! Runs the whole control plane in one process.
//!
//! [`Runner::start`] reads `template.yaml` ([`template`]), opens an embedded DynamoDB
//! ([`emulator`]), mounts the functions of the template ([`registry`]) behind an emulation of API
//! Gateway ([`gateway`]), starts the workers ([`workers`]) and creates the first organization
//! ([`bootstrap`]). The handlers, the authorizer, the workers and the DynamoDB calls are the same
//! code as in AWS.
//!
//! [`demo`] sets up a first conversation, [`audit`] verifies audit logs, [`openapi`] builds the API document, [`provider`] is a scripted
//! model provider, and [`variables`] finds unknown environment variables.

pub mod audit;
pub mod bootstrap;
pub mod cli;
pub mod demo;
pub mod emulator;
pub mod gateway;
pub mod openapi;
pub mod provider;
pub mod registry;
pub mod runner;
pub mod secrets;
pub mod template;
pub mod variables;
pub mod workers;

pub use runner::{Options, Runner};

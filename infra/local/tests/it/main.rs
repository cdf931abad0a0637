//! Integration tests. Each test starts the local runner and sends it HTTP requests.
//!
//! All tests are in one binary, because linking is the slow part. A file covers one family of
//! routes and is named like its URL, or it covers one guarantee of many routes.

#![expect(clippy::unwrap_used, reason = "`allow-unwrap-in-tests` covers tests but not their helpers")]

mod calls;
mod conversation;
mod data_plane;
mod fault_proxy;
mod harness;
mod invariants;
mod runtime_api;
mod secrets_manager;

mod agent_projects;
mod api_keys;
mod audit_log;
mod bcrypt_queue;
mod billing;
mod bound;
mod budget;
mod cache_push;
mod credentials;
mod current_credential;
mod demo;
mod faults;
mod forged_tokens;
mod gateway;
mod healthz;
mod hostile;
mod idempotency;
mod idle;
mod internal;
mod lambda_events;
mod metrics;
mod model_keys;
mod monitoring;
mod no_store;
mod openapi;
mod order;
mod outbox;
mod plain_reads;
mod process;
mod projects_whoami;
mod properties;
mod races;
mod releases;
mod reservations;
mod revocation;
mod rights;
mod rotation;
mod session_tokens;
mod sessions;
mod sessions_store;
mod streaming;
mod stripe_events;
mod structure;
mod template;
mod tenancy;
mod timing;
mod turn_log;
mod turns;
mod usage;
mod validator;
#[expect(unreachable_pub, reason = "docs/webhooks.md contains this file verbatim")]
mod webhook_receiver;
mod webhook_wire;
mod webhooks;
mod whoami;

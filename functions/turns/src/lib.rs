//! `POST …/sessions/{id}/messages`: a turn. The response is JSON, or a stream of events with
//! `stream: true`.
//!
//! The handler validates the request and claims the session (`claim`), and starts the turn as a task
//! (`run`), which calls the provider (`provider`) and writes the event log (`event_log`). A repeated
//! request attaches to its turn (`attach`).

mod attach;
mod claim;
mod event_log;
pub mod messages;
mod provider;
mod run;

use http::Method;
use karta_shared::{
    config,
    http::{OrganizationSessions, ProjectSessions, RouteTable},
};

use self::messages::MessagesCreate;

/// The name of the function's folder.
pub const NAME: &str = "turns";

pub fn routes() -> RouteTable {
    // A customer's base URL must not point to this stack.
    RouteTable::new(NAME)
        .with_settings(|| config::own_hosts().map(drop))
        .route::<MessagesCreate<OrganizationSessions>>(Method::POST, "/v1/sessions/{id}/messages")
        .route::<MessagesCreate<ProjectSessions>>(Method::POST, "/v1/projects/{ref}/sessions/{id}/messages")
}

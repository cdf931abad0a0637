//! The buffered routes of sessions, under `/v1/sessions` and under `/v1/projects/{ref}/sessions`:
//! create or resume, list, get, delete, messages, cancel, and the preflights of all session routes.

pub mod cancel;
pub mod create;
pub mod delete;
pub mod get;
pub mod list;
pub mod messages;

use http::Method;
use karta_shared::http::{OrganizationSessions, Preflight, ProjectSessions, RouteTable};

use self::{
    cancel::SessionsCancel, create::SessionsCreate, delete::SessionsDelete, get::SessionsGet, list::SessionsList,
    messages::MessagesList,
};

/// The name of the function's folder.
pub const NAME: &str = "sessions";

pub fn routes() -> RouteTable {
    const SESSIONS: &str = "/v1/projects/{ref}/sessions";
    const SESSION: &str = "/v1/projects/{ref}/sessions/{id}";
    const MESSAGES: &str = "/v1/projects/{ref}/sessions/{id}/messages";
    const STREAM: &str = "/v1/projects/{ref}/sessions/{id}/stream";
    const CANCEL: &str = "/v1/projects/{ref}/sessions/{id}/cancel";
    RouteTable::new(NAME)
        .route::<SessionsCreate<OrganizationSessions>>(Method::POST, "/v1/sessions")
        .route::<SessionsList<OrganizationSessions>>(Method::GET, "/v1/sessions")
        .route::<SessionsGet<OrganizationSessions>>(Method::GET, "/v1/sessions/{id}")
        .route::<SessionsDelete<OrganizationSessions>>(Method::DELETE, "/v1/sessions/{id}")
        .route::<MessagesList<OrganizationSessions>>(Method::GET, "/v1/sessions/{id}/messages")
        .route::<SessionsCancel<OrganizationSessions>>(Method::POST, "/v1/sessions/{id}/cancel")
        .route::<SessionsCreate<ProjectSessions>>(Method::POST, SESSIONS)
        .route::<SessionsList<ProjectSessions>>(Method::GET, SESSIONS)
        .route::<SessionsGet<ProjectSessions>>(Method::GET, SESSION)
        .route::<SessionsDelete<ProjectSessions>>(Method::DELETE, SESSION)
        .route::<MessagesList<ProjectSessions>>(Method::GET, MESSAGES)
        .route::<SessionsCancel<ProjectSessions>>(Method::POST, CANCEL)
        .route::<Preflight>(Method::OPTIONS, SESSIONS)
        .route::<Preflight>(Method::OPTIONS, SESSION)
        .route::<Preflight>(Method::OPTIONS, MESSAGES)
        .route::<Preflight>(Method::OPTIONS, STREAM)
        .route::<Preflight>(Method::OPTIONS, CANCEL)
}

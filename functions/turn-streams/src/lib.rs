//! `GET …/sessions/{id}/stream`: replays a turn's events after the last one that the client has, and
//! follows the turn to its end.

pub mod stream;

use http::Method;
use karta_shared::http::{OrganizationSessions, ProjectSessions, RouteTable};

use self::stream::StreamGet;

/// The name of the function's folder.
pub const NAME: &str = "turn-streams";

pub fn routes() -> RouteTable {
    RouteTable::new(NAME)
        .route::<StreamGet<OrganizationSessions>>(Method::GET, "/v1/sessions/{id}/stream")
        .route::<StreamGet<ProjectSessions>>(Method::GET, "/v1/projects/{ref}/sessions/{id}/stream")
}

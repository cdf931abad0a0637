use std::{future::Future, time::Duration};

use lambda_http::aws_lambda_events::query_map::QueryMap;
use serde::{Serialize, de::DeserializeOwned};

use super::{Access, ApiResponse, Call, Cors, Error};
use crate::{
    app::App,
    config::{self, Secret},
    domain::{Id, Slug, Version},
};

/// A route of the API. Each route is a package under `functions/` and a function in
/// `template.yaml`.
pub trait Route: Sized + Send + Sync + 'static {
    /// The name of the route's folder, also used in logs.
    const NAME: &'static str;
    /// The rule that decides who may call the route.
    type Access: Access;
    type Path: FromPath;
    type Query: DeserializeOwned + Send + Sync;
    type Body: DeserializeOwned + Send + Sync;
    type Output: Serialize;

    /// Secrets that the handler needs, in addition to those of [`Route::Access`].
    const SECRETS: &'static [Secret] = &[];
    /// Whether the handler uses the store.
    const USES_STORE: bool = true;
    /// Whether the route supports `Idempotency-Key`.
    const IDEMPOTENT: bool = false;
    /// Whether an empty body is read as `{}`.
    const BODY_MAY_BE_EMPTY: bool = false;
    /// Whether the body's texts may contain anything, including credentials. True for bodies of
    /// other services: the handler checks the texts that it stores.
    const ANY_TEXT: bool = false;
    /// Status of a successful response.
    const STATUS: u16 = 200;
    /// Further statuses of successful responses.
    const FURTHER_STATUSES: &'static [u16] = &[];
    /// Content type of a successful response.
    const CONTENT_TYPE: &'static str = "application/json";
    /// Further headers of a successful response, in lower case.
    const HEADERS: &'static [(&'static str, &'static str)] = &[];
    /// Whether the handler may answer with a stream. The function then streams all of its responses,
    /// and another function must handle the preflight, because a streamed response needs a body.
    const STREAMS: bool = false;
    /// Sent after each 15 s without an event.
    const KEEP_ALIVE: &'static str = ": keep-alive\n\n";
    /// Lets browsers of any origin call the route; `None` does not.
    const CORS: Option<Cors> = None;
    /// Maximum body size in bytes.
    const BODY_MAX: usize = 64 * 1024;

    /// Time limit of the whole request, including calls to dependencies.
    const DEADLINE: Duration = config::DEADLINE;

    /// Maximum attempts when writes conflict.
    const MAX_ATTEMPTS: u32 = 10;

    /// Handles the request. It runs again after a write conflict ([`Error::WriteConflict`]), so it
    /// keeps no state between attempts.
    fn handle(app: &App, call: &Call<Self>) -> impl Future<Output = Result<ApiResponse<Self::Output>, Error>> + Send;
}

/// A type that is parsed from the path's variables. `None` results in a 404.
pub trait FromPath: Send + Sync + Sized {
    fn from_path(variables: &QueryMap) -> Option<Self>;
}

impl FromPath for () {
    fn from_path(_: &QueryMap) -> Option<Self> {
        Some(())
    }
}

/// A path whose invalid variables the handler rejects with a 404. Used by a route that checks
/// something between the body and the resource.
impl<T: FromPath> FromPath for Option<T> {
    fn from_path(variables: &QueryMap) -> Option<Self> {
        Some(T::from_path(variables))
    }
}

/// `{id}`
impl FromPath for Id {
    fn from_path(variables: &QueryMap) -> Option<Self> {
        Self::parse(variables.first("id")?)
    }
}

/// `{slug}`
impl FromPath for Slug {
    fn from_path(variables: &QueryMap) -> Option<Self> {
        Self::try_from(variables.first("slug")?.to_owned()).ok()
    }
}

/// `{slug}` and `{version}`: a release of a project.
#[derive(Debug)]
pub struct ReleasePath {
    pub slug: Slug,
    pub version: Version,
}

impl FromPath for ReleasePath {
    fn from_path(variables: &QueryMap) -> Option<Self> {
        Some(Self { slug: Slug::from_path(variables)?, version: Version::parse(variables.first("version")?)? })
    }
}

/// `{id}` and `{delivery_id}`: a delivery of a webhook endpoint.
#[derive(Debug)]
pub struct DeliveryPath {
    pub endpoint: Id,
    pub delivery: Id,
}

impl FromPath for DeliveryPath {
    fn from_path(variables: &QueryMap) -> Option<Self> {
        Some(Self { endpoint: Id::from_path(variables)?, delivery: Id::parse(variables.first("delivery_id")?)? })
    }
}

/// `{ref}`: a project's slug.
#[derive(Debug)]
pub struct ProjectPath(pub Slug);

impl FromPath for ProjectPath {
    fn from_path(variables: &QueryMap) -> Option<Self> {
        Slug::try_from(variables.first("ref")?.to_owned()).ok().map(Self)
    }
}

use std::{future::Future, time::Duration};

use lambda_http::aws_lambda_events::query_map::QueryMap;
use serde::{Serialize, de::DeserializeOwned};

use super::{Access, Answer, Call, Error};
use crate::{
    app::App,
    config::{self, Secret},
    domain::{Id, Slug, Version},
};

/// One route: a folder, a package, a binary, a function of the template.
pub trait Route: Sized + Send + Sync + 'static {
    /// The folder's name, and the route's in logs.
    const NAME: &'static str;
    /// Who may call it.
    type Access: Access;
    type Path: FromPath;
    type Query: DeserializeOwned + Send + Sync;
    type Body: DeserializeOwned + Send + Sync;
    type Output: Serialize;

    /// What it cannot do without, beside what its access is judged with.
    const SECRETS: &'static [Secret] = &[];
    /// Whether it asks the store anything.
    const ASKS_STORE: bool = true;
    /// Whether `Idempotency-Key` is taken.
    const IDEMPOTENT: bool = false;
    /// Whether an empty body stands for `{}`.
    const BODY_MAY_BE_EMPTY: bool = false;
    /// Whether the body's texts may hold anything, credentials too: it is another service's, and what is stored of it is checked on its own.
    const ANY_TEXT: bool = false;
    /// The status of an answer that is no error.
    const STATUS: u16 = 200;
    /// What such an answer is: JSON, unless the handler says so.
    const CONTENT_TYPE: &'static str = "application/json";
    /// Further headers of such an answer, in lower case.
    const HEADERS: &'static [(&'static str, &'static str)] = &[];
    /// Whether browsers may call it from anywhere.
    const CORS: bool = false;
    /// The largest body, in bytes.
    const BODY_MAX: usize = 64 * 1024;

    /// Within what time it answers, whatever it waits for.
    const DEADLINE: Duration = config::DEADLINE;

    /// How often it is run when its writes keep losing races.
    const RUNS: u32 = 10;

    /// Acts. May be run again when a write of it lost a race ([`Error::Raced`]), so it keeps nothing between runs.
    fn handle(app: &App, call: &Call<Self>) -> impl Future<Output = Result<Answer<Self::Output>, Error>> + Send;
}

/// What the path's variables parse to; `None` is a 404.
pub trait FromPath: Send + Sync + Sized {
    fn from_path(variables: &QueryMap) -> Option<Self>;
}

impl FromPath for () {
    fn from_path(_: &QueryMap) -> Option<Self> {
        Some(())
    }
}

/// For a route that judges something between the body and the resource: what does not parse is `None`, and its 404 the handler's.
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

/// `{slug}` and `{version}`: a project's release.
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

/// `{id}` and `{delivery_id}`: a webhook endpoint's delivery.
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

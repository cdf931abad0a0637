use std::marker::PhantomData;

use http::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, Serializer};

use super::{Error, EventStream};

/// A handler's response: a status and the encoded JSON of a `T`, or a stream of events. JSON is
/// kept as bytes so that a replay is identical.
pub struct ApiResponse<T> {
    pub(super) status: StatusCode,
    pub(super) body: ApiResponseBody,
    of: PhantomData<fn() -> T>,
}

pub(super) enum ApiResponseBody {
    Bytes(Vec<u8>),
    Events(EventStream),
}

impl<T: Serialize> ApiResponse<T> {
    /// 200
    pub fn ok(output: &T) -> Result<Self, Error> {
        Self::new(StatusCode::OK, output)
    }

    /// 201
    pub fn created(output: &T) -> Result<Self, Error> {
        Self::new(StatusCode::CREATED, output)
    }

    /// 202
    pub fn accepted(output: &T) -> Result<Self, Error> {
        Self::new(StatusCode::ACCEPTED, output)
    }

    fn new(status: StatusCode, output: &T) -> Result<Self, Error> {
        let body = serde_json::to_vec(output)
            .map_err(|error| Error::Internal(format!("response encoding failed: {error}")))?;
        Ok(Self::from_bytes(status, body))
    }
}

/// A body that is sent as it is, without JSON encoding.
#[derive(Debug, Serialize)]
pub enum Verbatim {}

impl ApiResponse<Verbatim> {
    /// 200
    pub fn verbatim(text: &'static str) -> Self {
        Self::from_bytes(StatusCode::OK, text.as_bytes().to_vec())
    }
}

impl<T> ApiResponse<T> {
    /// 204 without a body
    pub fn no_content() -> Self {
        Self::from_bytes(StatusCode::NO_CONTENT, Vec::new())
    }

    /// 200 with a stream of server-sent events. The route must have [`Route::STREAMS`].
    ///
    /// [`Route::STREAMS`]: super::Route::STREAMS
    pub fn stream(events: EventStream) -> Self {
        Self { status: StatusCode::OK, body: ApiResponseBody::Events(events), of: PhantomData }
    }

    pub(super) fn from_bytes(status: StatusCode, body: Vec<u8>) -> Self {
        Self { status, body: ApiResponseBody::Bytes(body), of: PhantomData }
    }
}

/// A secret, serialized in the only response that shows it.
#[derive(Debug, Clone)]
pub struct Revealed(SecretString);

impl Revealed {
    pub fn new(secret: &str) -> Self {
        Self(secret.into())
    }
}

impl From<SecretString> for Revealed {
    fn from(secret: SecretString) -> Self {
        Self(secret)
    }
}

impl Serialize for Revealed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

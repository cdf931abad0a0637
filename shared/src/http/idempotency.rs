//! Idempotency of requests that create something.
//!
//! A record of the response is written in the transaction of the creation. If two equal requests
//! run at once, one transaction fails on the record; its handler runs again and returns the stored
//! response. The keys that seal the response and authenticate the request are derived from the
//! caller's bearer token and idempotency key, which are not stored, so a stolen table reveals
//! nothing.

use std::time::Duration;

use aws_lc_rs::{constant_time, digest};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use http::{HeaderMap, StatusCode};
use secrecy::ExposeSecret;

use super::{
    Access, ApiResponse, Call, CallerIdentity, Error, Route, api_response::ApiResponseBody, call::RequestMeta,
    json::Json,
};
use crate::{
    app::App,
    domain::{Id, SECRET_REVEAL_PERIOD},
    sealing::{self, SealingKey},
    store::{IdempotencyRecord, Transaction},
};

const HEADER: &str = "idempotency-key";
const RECORD_TTL: Duration = Duration::from_hours(24);

/// Whether a response shows a secret. If so, it can be replayed for ten minutes only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reveals {
    Nothing,
    Secret,
}

/// A request's idempotency key, bound to the caller, the target and the body.
pub(super) struct IdempotencyKey {
    /// SHA-256 over credential, target and key, in URL-safe base64. It is the key of the record.
    hash: String,
    seal: SealingKey,
    fingerprint: [u8; 32],
}

impl IdempotencyKey {
    /// Reads the header, if present. `target` is the route with its path variables, independent of
    /// the host name. `body` is hashed in canonical order, so that spacing and field order do not
    /// matter.
    pub(super) fn new(
        headers: &HeaderMap,
        identity: &dyn CallerIdentity,
        meta: &RequestMeta,
        target: &str,
        body: &Json<'_>,
    ) -> Result<Option<Self>, Error> {
        let mut sent = headers.get_all(HEADER).iter();
        let Some(header) = sent.next() else {
            return Ok(None);
        };
        if sent.next().is_some() {
            let message = "The request has more than one Idempotency-Key header. Send one.".to_owned();
            return Err(Error::BadRequest { code: "duplicate_header", message });
        }
        let key = header.as_bytes();
        if !(1..=255).contains(&key.len()) || !key.iter().all(|byte| (b' '..=b'~').contains(byte)) {
            return Err(Error::invalid("Idempotency-Key", "must be 1 to 255 printable ASCII characters"));
        }
        let bearer = meta.bearer.as_ref().ok_or(Error::Unauthorized)?.expose_secret().as_bytes();
        let mut hash = digest::Context::new(&digest::SHA256);
        for part in [&identity.idempotency_identity()[..], target.as_bytes(), key] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        // A new session token of the same user may repeat a request.
        let known = if identity.has_stable_bearer() { bearer } else { key };
        let mac = sealing::derive_mac_key(known, key, b"karta idempotency fingerprint");
        let body = serde_json::to_vec(body).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(Some(Self {
            hash: BASE64_URL_SAFE_NO_PAD.encode(hash.finish()),
            seal: sealing::derive_key(bearer, key, b"karta idempotency answer"),
            fingerprint: mac.tag(&body),
        }))
    }

    fn fingerprint(&self) -> String {
        BASE64_STANDARD_NO_PAD.encode(self.fingerprint)
    }
}

/// The request's idempotency key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredIdempotencyKey {
    /// Hash of the caller, the target and the key.
    pub hash: String,
    /// MAC of the body.
    pub fingerprint: String,
}

impl<R: Route> Call<R> {
    /// Returns the request's idempotency key, for a route that stores more than a response.
    pub fn idempotency_key(&self) -> Option<StoredIdempotencyKey> {
        let key = self.idempotency.as_ref()?;
        Some(StoredIdempotencyKey { hash: key.hash.clone(), fingerprint: key.fingerprint() })
    }
}

impl<R: Route> Call<R>
where
    R::Access: Access<Caller: CallerIdentity>,
{
    /// Returns the stored response of an earlier run of this request, if any. Call it first in a
    /// handler. A response that shows a secret is returned only to a caller that is still
    /// authorized: its key may have ended since the gateway's verdict, even through the first run
    /// of this request.
    pub async fn replay(&self, app: &App) -> Result<Option<ApiResponse<R::Output>>, Error> {
        let Some(key) = &self.idempotency else {
            return Ok(None);
        };
        let record = app.store.idempotency_record(self.caller.organization(), &key.hash).await?;
        let Some(record) = record.filter(|record| self.now.as_seconds() < record.ttl) else {
            return Ok(None);
        };
        if record.revealed_until.is_some() {
            R::Access::reauthorize(app, self).await?;
        }
        let (stored, sent) = (record.fingerprint.as_bytes(), key.fingerprint());
        if constant_time::verify_slices_are_equal(stored, sent.as_bytes()).is_err() {
            return Err(Error::IdempotencyMismatch);
        }
        if record.revealed_until.is_some_and(|end| end <= self.now.as_seconds()) {
            return Err(Error::Conflict {
                code: "secret_already_revealed",
                message: "The first response to this Idempotency-Key contained a secret, which is not shown again after 10 minutes. Use the resource in id, or send a new Idempotency-Key.",
                resource_id: Some(record.resource_id),
            });
        }
        let corrupt = |part: &str| Error::Internal(format!("corrupt idempotency record: {part}"));
        let status = StatusCode::from_u16(record.status).map_err(|_| corrupt("status"))?;
        let sealed = BASE64_STANDARD_NO_PAD.decode(&record.sealed_body).map_err(|_| corrupt("body encoding"))?;
        let body = key.seal.open(key.hash.as_bytes(), &sealed).map_err(|_| corrupt("sealed body"))?;
        Ok(Some(ApiResponse::from_bytes(status, body.to_vec())))
    }

    /// Stages the record of the response in the transaction that creates `resource`.
    pub fn remember(
        &self,
        app: &App,
        transaction: &mut Transaction,
        answer: &ApiResponse<R::Output>,
        resource: Id,
        reveals: Reveals,
    ) -> Result<(), Error> {
        let Some(key) = &self.idempotency else {
            return Ok(());
        };
        let ApiResponseBody::Bytes(body) = &answer.body else {
            return Err(Error::Internal("a streamed response cannot be remembered".to_owned()));
        };
        let mut nonce = [0; 12];
        app.entropy.fill(&mut nonce);
        let record = IdempotencyRecord {
            fingerprint: key.fingerprint(),
            status: answer.status.as_u16(),
            sealed_body: BASE64_STANDARD_NO_PAD.encode(key.seal.seal(nonce, key.hash.as_bytes(), body)),
            revealed_until: match reveals {
                Reveals::Nothing => None,
                Reveals::Secret => Some(self.now.plus(SECRET_REVEAL_PERIOD).as_seconds()),
            },
            resource_id: resource,
            ttl: self.now.plus(RECORD_TTL).as_seconds(),
        };
        Ok(transaction.remember(self.caller.organization(), &key.hash, &record, self.now.as_seconds())?)
    }
}

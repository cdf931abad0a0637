//! Repeats of creating requests.
//!
//! The record of an answer is written in the transaction that creates, so that two requests at once have one effect: the loser's
//! transaction fails on the record, its handler runs again, and finds the answer to give. The keys that seal the answer and mark the
//! request come from the caller's bearer token and idempotency key, which are not kept: a stolen table opens nothing.

use std::time::Duration;

use aws_lc_rs::{constant_time, digest};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use http::{HeaderMap, StatusCode};
use secrecy::ExposeSecret;

use super::{Access, Answer, Call, CallerIdentity, Error, Route, call::RequestMeta, json::Json};
use crate::{
    app::App,
    domain::Id,
    sealing::{self, SealingKey},
    store::{IdempotencyRecord, Transaction},
};

const HEADER: &str = "idempotency-key";
const REMEMBERED_FOR: Duration = Duration::from_hours(24);
const SECRET_REMEMBERED_FOR: Duration = Duration::from_mins(10);

/// Whether an answer shows a secret: if so it is given again for ten minutes only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reveals {
    Nothing,
    Secret,
}

/// A request's idempotency key, bound to who sent it, where to and what.
pub(super) struct IdempotencyKey {
    /// SHA-256 over credential, place and key, in URL-safe base64: where the record lies.
    hash: String,
    seal: SealingKey,
    fingerprint: [u8; 32],
}

impl IdempotencyKey {
    /// The header, if it was sent. `place` is the route with its path's variables, which do not depend on the host name; `body` is hashed in canonical order, so that spacing and the order of fields do not matter.
    pub(super) fn new(
        headers: &HeaderMap,
        identity: &dyn CallerIdentity,
        meta: &RequestMeta,
        place: &str,
        body: &Json<'_>,
    ) -> Result<Option<Self>, Error> {
        let mut sent = headers.get_all(HEADER).iter();
        let Some(header) = sent.next() else {
            return Ok(None);
        };
        if sent.next().is_some() {
            let message = "Send one Idempotency-Key header".to_owned();
            return Err(Error::BadRequest { code: "duplicate_header", message });
        }
        let key = header.as_bytes();
        if !(1..=255).contains(&key.len()) || !key.iter().all(|byte| (b' '..=b'~').contains(byte)) {
            return Err(Error::invalid("Idempotency-Key", "must be 1 to 255 printable ASCII characters"));
        }
        let bearer = meta.bearer.as_ref().ok_or(Error::Unauthorized)?.expose_secret().as_bytes();
        let mut hash = digest::Context::new(&digest::SHA256);
        for part in [&identity.credential()[..], place.as_bytes(), key] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let mac = sealing::derive_mac_key(bearer, key, b"karta idempotency fingerprint");
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

impl<R: Route> Call<R>
where
    R::Access: Access<Caller: CallerIdentity>,
{
    /// Returns the stored answer of an earlier run of this request, if any. Call it first. An answer that shows a secret is returned only
    /// to a caller that is still authorized: its key may have ended since the gateway's verdict, even by this request's first run.
    pub async fn replay(&self, app: &App) -> Result<Option<Answer<R::Output>>, Error> {
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
        let (kept, sent) = (record.fingerprint.as_bytes(), key.fingerprint());
        if constant_time::verify_slices_are_equal(kept, sent.as_bytes()).is_err() {
            return Err(Error::IdempotencyMismatch);
        }
        if record.revealed_until.is_some_and(|end| end <= self.now.as_seconds()) {
            return Err(Error::Conflict {
                code: "secret_already_revealed",
                message: "The first answer to this Idempotency-Key showed a secret, which is not shown again after 10 minutes",
                resource_id: Some(record.resource_id),
            });
        }
        let broken = |what: &str| Error::Internal(format!("an idempotency record does not {what}"));
        let status = StatusCode::from_u16(record.status).map_err(|_| broken("hold a status"))?;
        let sealed = BASE64_STANDARD_NO_PAD.decode(&record.sealed_body).map_err(|_| broken("decode"))?;
        let body = key.seal.open(key.hash.as_bytes(), &sealed).map_err(|_| broken("open"))?;
        Ok(Some(Answer::written(status, body.to_vec())))
    }

    /// Stages the record of `answer` beside the writes that made `resource`.
    pub fn remember(
        &self,
        app: &App,
        transaction: &mut Transaction,
        answer: &Answer<R::Output>,
        resource: Id,
        reveals: Reveals,
    ) -> Result<(), Error> {
        let Some(key) = &self.idempotency else {
            return Ok(());
        };
        let mut nonce = [0; 12];
        app.entropy.fill(&mut nonce);
        let record = IdempotencyRecord {
            fingerprint: key.fingerprint(),
            status: answer.status.as_u16(),
            sealed_body: BASE64_STANDARD_NO_PAD.encode(key.seal.seal(nonce, key.hash.as_bytes(), &answer.body)),
            revealed_until: match reveals {
                Reveals::Nothing => None,
                Reveals::Secret => Some(self.now.plus(SECRET_REMEMBERED_FOR).as_seconds()),
            },
            resource_id: resource,
            ttl: self.now.plus(REMEMBERED_FOR).as_seconds(),
        };
        Ok(transaction.remember(self.caller.organization(), &key.hash, &record, self.now.as_seconds())?)
    }
}

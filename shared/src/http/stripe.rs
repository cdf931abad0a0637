use std::sync::Arc;

use http::HeaderMap;

use super::{Access, AuthorizationRequest, CallerIdentity, Error};
use crate::{
    config::{Secret, SecretError},
    domain::{Actor, ActorKind, Id, SignatureError, StripeSecrets},
};

const SIGNATURE: &str = "stripe-signature";

/// Stripe, authenticated by its signature over the body. Without a configured signing secret the
/// route does not exist: every request gets the 404 of an unknown path, before the body is read.
#[derive(Debug)]
pub struct Stripe;

/// Stripe, with a verified signature.
#[derive(Debug)]
pub struct StripeCaller {
    secrets: Arc<StripeSecrets>,
}

impl StripeCaller {
    /// Returns whether this stack accepts live events or test events.
    pub fn livemode(&self) -> bool {
        self.secrets.livemode()
    }
}

impl Access for Stripe {
    type Caller = StripeCaller;
    const SECRETS: &'static [Secret] = &[Secret::Stripe];

    fn identity(caller: &StripeCaller) -> Option<&dyn CallerIdentity> {
        Some(caller)
    }

    async fn authorize(request: AuthorizationRequest<'_>) -> Result<StripeCaller, Error> {
        let app = request.app;
        let secrets = match app.secrets.stripe().await {
            Err(SecretError::NotConfigured { .. }) => return Err(Error::UnknownRoute),
            secrets => secrets.map_err(|error| unavailable(&error))?,
        };
        if secrets.is_empty() {
            return Err(Error::UnknownRoute);
        }
        let signed = request.signed.ok_or(Error::UnknownRoute)?;
        // Any client may send requests here, so a large body must not cost one HMAC per secret.
        if signed.body.len() > signed.body_max {
            return Err(Error::BodyTooLarge { limit: signed.body_max });
        }
        let (header, now) = (signature(signed.headers)?, app.clock.now());
        match secrets.verify(header, signed.body, now) {
            Ok(()) => return Ok(StripeCaller { secrets }),
            // The secret may be newer than the cached ones.
            Err(SignatureError::Mismatch) => {}
            Err(error) => return Err(invalid_signature(error)),
        }
        let secrets = app.secrets.stripe_refetched().await.map_err(|error| unavailable(&error))?;
        secrets.verify(header, signed.body, now).map_err(invalid_signature)?;
        Ok(StripeCaller { secrets })
    }
}

fn signature(headers: &HeaderMap) -> Result<Option<&str>, Error> {
    let mut sent = headers.get_all(SIGNATURE).iter();
    let header = sent.next();
    if sent.next().is_some() {
        let message = "The request has more than one Stripe-Signature header. Send one.".to_owned();
        return Err(Error::BadRequest { code: "duplicate_header", message });
    }
    // Other bytes than printable ASCII make it malformed, not missing.
    Ok(header.map(|header| header.to_str().unwrap_or_default()))
}

fn invalid_signature(error: SignatureError) -> Error {
    Error::BadRequest { code: "invalid_signature", message: error.to_string() }
}

/// Also used for invalid configuration, because Stripe retries after a 503.
fn unavailable(error: &SecretError) -> Error {
    Error::Unavailable(error.to_string())
}

impl CallerIdentity for StripeCaller {
    fn actor(&self) -> Actor {
        Actor { kind: ActorKind::System, id: None, name: "stripe".to_owned() }
    }

    fn organization(&self) -> Option<Id> {
        None
    }

    fn idempotency_identity(&self) -> Vec<u8> {
        b"stripe".to_vec()
    }
}

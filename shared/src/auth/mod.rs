//! Authentication: checks of API keys, session tokens and the `Authorization` header.
//!
//! [`Validator`] checks API keys: shape, tag and bcrypt proof, and then the key's current state.
//! [`verify`] checks session tokens offline, with the signing ring only. [`bearer`] parses the
//! header. To add a check of a key's state, extend [`Invalidity`], [`check_status`] and [`trace`].

mod bcrypt_pool;
mod bearer;
mod session_token;
mod validator;

pub use self::{
    bcrypt_pool::BcryptPool,
    bearer::bearer,
    session_token::{
        SessionClaims, SessionScope, SessionToken, SessionTokenError, TTL_DEFAULT, TTL_MAX, TTL_MIN, mint, verify,
    },
    validator::{
        GATEWAY_VERDICT_MAX_AGE, Invalidity, RecordUse, StepResult, ValidKey, ValidationStep, Validator, Verdict,
        check_status, trace,
    },
};

use crate::{config::SecretError, store::StoreError};

/// Why a credential could not be checked. Authentication fails closed: the response is a 503, never
/// a rejection, because a rejection might be cached.
#[derive(Debug, thiserror::Error)]
pub enum Undecided {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("bcrypt failed: {0}")]
    Bcrypt(String),
    #[error("bcrypt queue is full")]
    Busy,
    #[error("validation timed out")]
    OutOfTime,
    /// The caller caches the verdict for seconds, so an old verdict would keep a revoked key alive
    /// too long.
    #[error("verdict is too old to return")]
    Stale,
}

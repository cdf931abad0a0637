//! Proofs of credentials: is this token genuine, and may what it stands for be let in now?

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
        GATEWAY_NOTIFIED_WITHIN, Invalidity, StepResult, Use, ValidKey, ValidationStep, Validator, Verdict, judge,
        trace,
    },
};

use crate::{config::SecretError, store::StoreError};

/// Why no verdict could be given. Authentication fails closed: this is a 503, never a refusal that might be cached.
#[derive(Debug, thiserror::Error)]
pub enum Undecided {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("bcrypt failed: {0}")]
    Bcrypt(String),
    #[error("too many wait for bcrypt")]
    Busy,
    #[error("no verdict in time")]
    OutOfTime,
    /// Whoever is told keeps the verdict for seconds: one that is old already would outlive a revocation by too much.
    #[error("the verdict is older than it may be passed on")]
    Stale,
}

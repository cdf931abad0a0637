use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

use crate::fault;

/// Why a store call failed. The text is for the log and must not reach a client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Throttled, timed out or unreachable: the same call may succeed later.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// Rejected for a reason that a retry cannot fix: a missing table or permission, or an item
    /// that cannot be decoded.
    #[error("store call failed: {0}")]
    Fault(String),
}

impl<E> From<SdkError<E>> for StoreError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    fn from(error: SdkError<E>) -> Self {
        let is_fault = matches!(
            error.code(),
            Some(
                "ValidationException"
                    | "AccessDeniedException"
                    | "ResourceNotFoundException"
                    | "UnrecognizedClientException"
                    | "IdempotentParameterMismatchException"
            )
        );
        let text = fault::describe(&error);
        if is_fault { Self::Fault(text) } else { Self::Unavailable(text) }
    }
}

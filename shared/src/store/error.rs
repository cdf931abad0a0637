use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

use crate::fault;

/// Why the store did not answer. The text is for the log, never for a client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Throttled, timed out or away: the same call may succeed later.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// Refused for a reason that a repeat cannot mend: a missing table or permission, an item that does not decode.
    #[error("the store refused: {0}")]
    Fault(String),
}

impl<E> From<SdkError<E>> for StoreError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    fn from(error: SdkError<E>) -> Self {
        let ours = matches!(
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
        if ours { Self::Fault(text) } else { Self::Unavailable(text) }
    }
}

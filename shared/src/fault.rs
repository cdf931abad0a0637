//! What may be said of an AWS call that failed.

use std::{error::Error, fmt::Write};

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

/// Kind, code and causes of a failed call, for the log. Never the answer itself, which the SDK's own `Debug` would print: an answer that
/// could not be read may hold a ring or a digest.
pub fn describe<E>(error: &SdkError<E>) -> String
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ConstructionFailure(_) => "the request could not be made".to_owned(),
        SdkError::TimeoutError(_) => "no answer in time".to_owned(),
        SdkError::DispatchFailure(failure) => with_causes("no connection", failure.as_connector_error()),
        SdkError::ServiceError(refusal) => match refusal.err().code() {
            Some(code) => format!("{code}: {}", refusal.err().message().unwrap_or("no message")),
            None => "an answer that cannot be read".to_owned(),
        },
        _ => "an answer that cannot be read".to_owned(),
    }
}

fn with_causes<E: Error + 'static>(text: &str, error: Option<&E>) -> String {
    let mut text = text.to_owned();
    let mut cause = error.map(|error| error as &(dyn Error + 'static));
    while let Some(error) = cause {
        write!(text, ": {error}").ok();
        cause = error.source();
    }
    text
}

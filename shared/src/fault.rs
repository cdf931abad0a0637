//! Descriptions of failed AWS calls that are safe to log.

use std::{error::Error, fmt::Write};

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

/// Returns the kind, code and causes of a failed call, for the log. Never includes the response,
/// which the SDK's `Debug` output would print: an unreadable response may contain a ring or a
/// digest.
pub fn describe<E>(error: &SdkError<E>) -> String
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ConstructionFailure(_) => "request could not be built".to_owned(),
        SdkError::TimeoutError(_) => "request timed out".to_owned(),
        SdkError::DispatchFailure(failure) => with_causes("connection failed", failure.as_connector_error()),
        SdkError::ServiceError(response) => match response.err().code() {
            Some(code) => format!("{code}: {}", response.err().message().unwrap_or("no message")),
            None => "unreadable response".to_owned(),
        },
        _ => "unreadable response".to_owned(),
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

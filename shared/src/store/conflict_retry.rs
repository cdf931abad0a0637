use aws_sdk_dynamodb::{
    config::{
        interceptors::InterceptorContext,
        retry::{ClassifyRetry, RetryAction},
    },
    error::ProvideErrorMetadata,
    operation::{delete_item::DeleteItemError, put_item::PutItemError, update_item::UpdateItemError},
};

/// Retries single-item writes that failed because of a concurrent transaction. The SDK does not
/// retry these by itself.
#[derive(Debug)]
pub struct ConflictRetry;

impl ClassifyRetry for ConflictRetry {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let error = context.output_or_error().and_then(Result::err).and_then(|error| error.as_operation_error());
        let code = error.and_then(|error| {
            let update = error.downcast_ref::<UpdateItemError>().map(ProvideErrorMetadata::code);
            let delete = || error.downcast_ref::<DeleteItemError>().map(ProvideErrorMetadata::code);
            let put = || error.downcast_ref::<PutItemError>().map(ProvideErrorMetadata::code);
            update.or_else(delete).or_else(put)?
        });
        match code {
            Some("TransactionConflictException") => RetryAction::transient_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "transaction conflict"
    }
}

use std::{fmt, sync::Arc};

use aws_sdk_lambda::{Client, Config, primitives::Blob, types::InvocationType};
use karta_shared::{
    domain::Id,
    fault,
    worker::{Fault, Wake},
};

/// Wakes the worker that serves an endpoint.
pub enum Waker {
    /// Another function, invoked asynchronously.
    Lambda { client: Client, function: String },
    /// A worker in this process.
    Local(Arc<dyn Fn(Id, Id) + Send + Sync>),
}

impl Waker {
    pub fn lambda(config: impl Into<Config>, function: String) -> Self {
        Self::Lambda { client: Client::from_conf(config.into()), function }
    }

    /// Wakes the worker for each endpoint, even if one of the calls fails.
    pub(crate) async fn wake_each(&self, endpoints: impl IntoIterator<Item = (Id, Id)>) -> Result<(), Fault> {
        let mut outcome = Ok(());
        for (organization, endpoint) in endpoints {
            outcome = outcome.and(self.wake(organization, endpoint).await);
        }
        outcome
    }

    /// Wakes the worker for one endpoint. If the call is lost, the next sweep finds the due
    /// deliveries.
    async fn wake(&self, organization: Id, endpoint: Id) -> Result<(), Fault> {
        match self {
            Self::Lambda { client, function } => {
                let payload = Blob::new(Wake::endpoint(organization, endpoint).to_string());
                let invoked = client.invoke().function_name(function).invocation_type(InvocationType::Event);
                let sent = invoked.payload(payload).send().await;
                sent.map(drop).map_err(|error| fault::describe(&error).into())
            }
            Self::Local(serve) => {
                serve(organization, endpoint);
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lambda { function, .. } => f.debug_tuple("Lambda").field(function).finish(),
            Self::Local(_) => f.write_str("Local"),
        }
    }
}

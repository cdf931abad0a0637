//! The frame of functions without a route: a schedule or the outbox's stream wakes them, and they do what is due.

use std::{collections::BTreeSet, future::Future, process::ExitCode, time::Instant};

use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::Value;

use crate::{app::App, domain::Id, telemetry};

/// Why a worker could not do all that was due; it is asked again. The text is for the log.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// A function without a route. Whatever it does may be done twice: it is asked again after a fault, and two may run at once.
pub trait Worker: Sized + Send + Sync + 'static {
    /// The folder's name, and the worker's in logs.
    const NAME: &'static str;

    /// The worker as it is deployed; fails with a sentence that names what is missing or wrong.
    fn deployed(app: App) -> impl Future<Output = Result<Self, Fault>> + Send;

    /// Does what is due.
    fn work(&self, wake: &Wake) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// Why a worker was woken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// To look for whatever is due.
    Sweep,
    /// By the outbox's stream, because something was written for these organizations: the index may not show it yet.
    Written(BTreeSet<Id>),
}

impl Wake {
    /// Reads a Lambda event: the records of a DynamoDB stream, or anything else, which is a schedule's.
    fn of(event: &Value) -> Self {
        let Some(records) = event["Records"].as_array() else {
            return Self::Sweep;
        };
        let partitions = records.iter().filter_map(|record| record["dynamodb"]["Keys"]["pk"]["S"].as_str());
        Self::Written(partitions.filter_map(|pk| Id::parse(pk.rsplit_once('#')?.1)).collect())
    }
}

/// Runs a worker as a Lambda function.
pub async fn run<W: Worker>() -> ExitCode {
    telemetry::exit_code(W::NAME, serve_events::<W>().await)
}

async fn serve_events<W: Worker>() -> Result<(), lambda_runtime::Error> {
    telemetry::init(telemetry::Output::Stdout, "info")?;
    let worker = &W::deployed(App::deployed().await?).await?;
    let handler = move |event: LambdaEvent<Value>| async move {
        work(worker, &Wake::of(&event.payload)).await.map_err(|_| lambda_runtime::Error::from("not all was done"))
    };
    lambda_runtime::run(service_fn(handler)).await
}

/// Does what is due, and says in the log if it could not.
pub async fn work<W: Worker>(worker: &W, wake: &Wake) -> Result<(), Fault> {
    let started = Instant::now();
    let outcome = worker.work(wake).await;
    if let Err(error) = &outcome {
        let latency_ms = started.elapsed().as_secs_f64() * 1_000.0;
        tracing::error!(worker = W::NAME, latency_ms, fault = %error, "not all was done");
    }
    outcome
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_stream_names_the_organizations_that_something_was_written_for() {
        let record = |pk: &str| json!({ "eventName": "INSERT", "dynamodb": { "Keys": { "pk": { "S": pk } } } });
        let event = json!({ "Records": [record("PSH#7"), record("EVT#8"), record("PSH#7"), record("?"), {}] });
        let organizations = [7, 8].map(|id| Id::new(id).unwrap());
        assert_eq!(Wake::of(&event), Wake::Written(organizations.into()));
        assert_eq!(Wake::of(&json!({ "source": "aws.scheduler" })), Wake::Sweep);
    }
}

//! Framework for functions without a route. A schedule, the outbox's stream or another worker
//! invokes them, and they process what is due.
//!
//! A new worker implements [`Worker`] and calls [`run`] from `main`.

use std::{collections::BTreeSet, fmt::Display, future::Future, process::ExitCode, time::Instant};

use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::{Value, json};

use crate::{
    app::{App, Needs},
    config::Secret,
    domain::Id,
    store::{OutboxKey, Overdue, Queue, StoreError},
    telemetry,
};

/// Why a worker's run failed. The text is for the log. The worker is invoked again.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Returns a function that adds the organization's id to a fault of one organization, so that the
/// log identifies it.
pub fn of_organization<E: Display>(organization: Id) -> impl FnOnce(E) -> Fault {
    move |fault: E| format!("organization {organization}: {fault}").into()
}

/// A function without a route. Its work must be idempotent: it is invoked again after a fault, and
/// two instances may run at once.
pub trait Worker: Sized + Send + Sync + 'static {
    /// The folder's name, which also identifies the worker in logs.
    const NAME: &'static str;

    /// The secrets that the worker requires.
    const SECRETS: &'static [Secret] = &[];

    /// Creates the deployed worker. Fails with a message that names the missing or invalid setting.
    fn deployed(app: App) -> impl Future<Output = Result<Self, Fault>> + Send;

    /// Processes what is due.
    fn work(&self, wake: &Wake) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// Why a worker was invoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// A schedule: look for everything that is due.
    Sweep,
    /// The outbox's stream: these items were written. The index may not show them yet.
    Written(BTreeSet<OutboxKey>),
    /// Another worker: this endpoint has deliveries to send.
    Endpoint { organization_id: Id, webhook_endpoint_id: Id },
}

impl Wake {
    /// Reads a Lambda event: records of a DynamoDB stream, or the event that [`Wake::endpoint`]
    /// builds. Any other event is a schedule's.
    fn from_event(event: &Value) -> Self {
        let id = |name: &str| event[name].as_u64().and_then(Id::new);
        if let (Some(organization_id), Some(webhook_endpoint_id)) = (id("organization_id"), id("webhook_endpoint_id")) {
            return Self::Endpoint { organization_id, webhook_endpoint_id };
        }
        let Some(records) = event["Records"].as_array() else {
            return Self::Sweep;
        };
        let written = |record: &Value| {
            let key = |name: &str| record["dynamodb"]["Keys"][name]["S"].as_str();
            Some(OutboxKey { organization_id: Id::parse(key("pk")?.rsplit_once('#')?.1)?, sk: key("sk")?.to_owned() })
        };
        Self::Written(records.iter().filter_map(written).collect())
    }

    /// Builds the Lambda event that invokes a worker for an endpoint.
    pub fn endpoint(organization_id: Id, webhook_endpoint_id: Id) -> Value {
        json!({ "organization_id": organization_id, "webhook_endpoint_id": webhook_endpoint_id })
    }
}

/// Runs a worker as a Lambda function.
pub async fn run<W: Worker>() -> ExitCode {
    telemetry::exit_code(W::NAME, serve_events::<W>().await)
}

async fn serve_events<W: Worker>() -> Result<(), lambda_runtime::Error> {
    telemetry::init(telemetry::Output::Stdout, "info")?;
    let needs = Needs { secrets: W::SECRETS.to_vec(), store: true };
    let worker = &W::deployed(App::deployed(W::NAME, needs).await?).await?;
    let handler = move |event: LambdaEvent<Value>| async move {
        work(worker, &Wake::from_event(&event.payload))
            .await
            .map_err(|_| lambda_runtime::Error::from("worker run failed"))
    };
    lambda_runtime::run(service_fn(handler)).await
}

/// Runs a worker once and logs a failure.
pub async fn work<W: Worker>(worker: &W, wake: &Wake) -> Result<(), Fault> {
    let started = Instant::now();
    let outcome = worker.work(wake).await;
    if let Err(error) = &outcome {
        let latency_ms = started.elapsed().as_secs_f64() * 1_000.0;
        tracing::error!(worker = W::NAME, latency_ms, fault = %error, "worker run failed");
    }
    outcome
}

/// Returns what is due in a queue, and publishes the age of its oldest item: it grows while no
/// worker runs.
pub async fn due(app: &App, queue: Queue) -> Result<Vec<OutboxKey>, StoreError> {
    let now = app.clock.now();
    let Overdue { items, oldest } = app.store.due(queue, now).await?;
    app.metrics.outbox_age(now, queue.name(), oldest.map(|at| now.since(at)).unwrap_or_default());
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lambda_event_selects_the_wake_reason() {
        let record = |pk: &str| {
            let keys = json!({ "pk": { "S": pk }, "sk": { "S": "key" } });
            json!({ "eventName": "INSERT", "dynamodb": { "Keys": keys } })
        };
        let event = json!({ "Records": [record("PSH#7"), record("EVT#8"), record("PSH#7"), record("?"), {}] });
        let [seven, eight] = [7, 8].map(|id| Id::new(id).unwrap());
        let written = [seven, eight].map(|organization_id| OutboxKey { organization_id, sk: "key".to_owned() });
        assert_eq!(Wake::from_event(&event), Wake::Written(written.into()));
        assert_eq!(Wake::from_event(&json!({ "source": "aws.scheduler" })), Wake::Sweep);
        let endpoint = Wake::Endpoint { organization_id: seven, webhook_endpoint_id: eight };
        assert_eq!(Wake::from_event(&Wake::endpoint(seven, eight)), endpoint);
    }
}

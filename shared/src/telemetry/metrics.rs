use std::{fmt, sync::Arc, time::Duration};

use serde_json::{Map, Value, json};

use crate::domain::Timestamp;

/// The log target of metrics. Each of its events holds a complete line.
pub(super) const TARGET: &str = "metrics";

/// The metrics of a function: lines in CloudWatch's Embedded Metric Format in the function's log. A
/// request or a run writes one line, and no other I/O.
///
/// A line holds only numbers and constant words: no tenant, no key and no text from a caller.
///
/// The default discards metrics, as in a local run.
#[derive(Clone, Default)]
pub struct Metrics(Option<Arc<Source>>);

struct Source {
    namespace: String,
    /// The folder's name.
    function: &'static str,
    write: Box<dyn Fn(Value) + Send + Sync>,
}

/// How the proof of a key was obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofSource {
    /// A cache had the proof, or a refusal of the last seconds.
    Known,
    /// bcrypt ran for `ran`, after waiting for `waited` in the queue.
    Compared { waited: Duration, ran: Duration },
}

/// Metrics that share dimensions. `Function` is a dimension of every group.
struct MetricGroup<'a> {
    by: Option<(&'static str, &'a str)>,
    values: Vec<Measured>,
}

struct Measured {
    name: &'static str,
    unit: &'static str,
    value: f64,
}

impl Metrics {
    /// Creates metrics that log each line.
    pub fn to_log(namespace: String, function: &'static str) -> Self {
        Self::with_writer(namespace, function, |line| {
            let line = line.to_string();
            tracing::info!(target: TARGET, line = line.as_str());
        })
    }

    /// Creates metrics that call `write` with each line.
    pub fn with_writer(
        namespace: String,
        function: &'static str,
        write: impl Fn(Value) + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Arc::new(Source { namespace, function, write: Box::new(write) })))
    }

    /// Records the validation of a credential and its outcome. `proof_source` is `None` if no digest was
    /// needed.
    pub fn validation(&self, at: Timestamp, outcome: &str, proof_source: Option<ProofSource>) {
        let mut groups = vec![MetricGroup { by: Some(("Outcome", outcome)), values: vec![count("Validations", 1)] }];
        match proof_source {
            Some(ProofSource::Known) => groups.push(MetricGroup { by: None, values: vec![count("ProofCacheHits", 1)] }),
            Some(ProofSource::Compared { waited, ran }) => {
                let took = [milliseconds("BcryptWait", waited), milliseconds("BcryptTime", ran)];
                groups.push(MetricGroup {
                    by: None,
                    values: [count("ProofCacheHits", 0)].into_iter().chain(took).collect(),
                });
            }
            None => {}
        }
        self.write(at, &groups);
    }

    /// Records the age of the oldest event in a batch of usage.
    pub fn usage_lag(&self, at: Timestamp, lag: Duration) {
        self.measure(at, milliseconds("UsageLag", lag));
    }

    /// Records the time between an event's commit and its first attempt at an endpoint.
    pub fn delivery_lag(&self, at: Timestamp, lag: Duration) {
        self.measure(at, milliseconds("DeliveryLag", lag));
    }

    /// Records how long the oldest due item of an outbox queue has been due; zero for an empty
    /// queue.
    pub fn outbox_age(&self, at: Timestamp, queue: &str, age: Duration) {
        self.write(at, &[MetricGroup { by: Some(("Queue", queue)), values: vec![seconds("OutboxAge", age)] }]);
    }

    /// Records the age of the oldest audit event that is not chained.
    pub fn audit_chain_lag(&self, at: Timestamp, lag: Duration) {
        self.measure(at, seconds("AuditChainLag", lag));
    }

    /// Records audit events that were rewritten after they were chained.
    pub fn audit_events_rewritten(&self, at: Timestamp, number: usize) {
        self.measure(at, count("AuditEventsRewritten", number));
    }

    /// Records the number of items that a sweep left sealed under an old key of the ring.
    pub fn sealed_remaining(&self, at: Timestamp, number: usize) {
        self.measure(at, count("SealedRemaining", number));
    }

    /// Records the number of running turns.
    pub fn open_turns(&self, at: Timestamp, number: usize) {
        self.measure(at, count("TurnsOpen", number));
    }

    /// Records a turn whose end its process could not store. The sweep settles it.
    pub fn turn_settle_failed(&self, at: Timestamp) {
        self.measure(at, count("TurnSettleFailures", 1));
    }

    /// Records a turn that the sweep settled, because its process died.
    pub fn turn_interrupted(&self, at: Timestamp) {
        self.measure(at, count("TurnsInterrupted", 1));
    }

    /// Records the time from a turn's start to its first event.
    pub fn turn_first_event(&self, at: Timestamp, time: Duration) {
        self.measure(at, milliseconds("TurnTimeToFirstEvent", time));
    }

    /// Records a turn that the provider made fail.
    pub fn turn_provider_error(&self, at: Timestamp) {
        self.measure(at, count("TurnProviderErrors", 1));
    }

    fn measure(&self, at: Timestamp, measured: Measured) {
        self.write(at, &[MetricGroup { by: None, values: vec![measured] }]);
    }

    fn write(&self, at: Timestamp, groups: &[MetricGroup<'_>]) {
        if let Some(source) = &self.0 {
            (source.write)(line(&source.namespace, source.function, at, groups));
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Metrics").field(&self.0.as_ref().map(|source| &source.namespace)).finish()
    }
}

#[expect(clippy::cast_precision_loss, reason = "every count is far below 2^53")]
fn count(name: &'static str, number: usize) -> Measured {
    Measured { name, unit: "Count", value: number as f64 }
}

fn seconds(name: &'static str, time: Duration) -> Measured {
    Measured { name, unit: "Seconds", value: time.as_secs_f64() }
}

fn milliseconds(name: &'static str, time: Duration) -> Measured {
    Measured { name, unit: "Milliseconds", value: time.as_secs_f64() * 1_000.0 }
}

fn line(namespace: &str, function: &str, at: Timestamp, groups: &[MetricGroup<'_>]) -> Value {
    let (mut line, mut directives) = (Map::new(), Vec::new());
    line.insert("Function".to_owned(), function.into());
    for MetricGroup { by, values } in groups {
        let mut dimensions = vec!["Function"];
        if let Some((name, value)) = by {
            dimensions.push(name);
            line.insert((*name).to_owned(), (*value).into());
        }
        let metrics: Vec<_> =
            values.iter().map(|Measured { name, unit, .. }| json!({ "Name": name, "Unit": unit })).collect();
        directives.push(json!({ "Namespace": namespace, "Dimensions": [dimensions], "Metrics": metrics }));
        for Measured { name, value, .. } in values {
            line.insert((*name).to_owned(), (*value).into());
        }
    }
    line.insert("_aws".to_owned(), json!({ "Timestamp": at.as_millis(), "CloudWatchMetrics": directives }));
    Value::Object(line)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn noon() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    /// Returns the lines that `measure` writes.
    fn written(measure: impl FnOnce(&Metrics)) -> Vec<Value> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        measure(&Metrics::with_writer("Karta/test".to_owned(), "authorizer", move |line| {
            kept.lock().unwrap().push(line);
        }));
        lines.lock().unwrap().clone()
    }

    #[test]
    fn validation_metric_line_has_outcome_and_times() {
        let (waited, ran) = (Duration::from_millis(3), Duration::from_micros(224_500));
        let lines = written(|metrics| {
            metrics.validation(noon(), "valid", Some(ProofSource::Compared { waited, ran }));
            metrics.validation(noon(), "revoked", Some(ProofSource::Known));
            metrics.validation(noon(), "tag", None);
        });
        let validations = json!({
            "Namespace": "Karta/test",
            "Dimensions": [["Function", "Outcome"]],
            "Metrics": [{ "Name": "Validations", "Unit": "Count" }],
        });
        let proofs =
            |metrics: Value| json!({ "Namespace": "Karta/test", "Dimensions": [["Function"]], "Metrics": metrics });
        let hits = json!({ "Name": "ProofCacheHits", "Unit": "Count" });
        let expected = [
            json!({
                "_aws": {
                    "Timestamp": 1_795_348_800_000_i64,
                    "CloudWatchMetrics": [
                        validations,
                        proofs(json!([
                            hits,
                            { "Name": "BcryptWait", "Unit": "Milliseconds" },
                            { "Name": "BcryptTime", "Unit": "Milliseconds" },
                        ])),
                    ],
                },
                "Function": "authorizer",
                "Outcome": "valid",
                "Validations": 1.0,
                "ProofCacheHits": 0.0,
                "BcryptWait": 3.0,
                "BcryptTime": 224.5,
            }),
            json!({
                "_aws": { "Timestamp": 1_795_348_800_000_i64, "CloudWatchMetrics": [validations, proofs(json!([hits]))] },
                "Function": "authorizer",
                "Outcome": "revoked",
                "Validations": 1.0,
                "ProofCacheHits": 1.0,
            }),
            json!({
                "_aws": { "Timestamp": 1_795_348_800_000_i64, "CloudWatchMetrics": [validations] },
                "Function": "authorizer",
                "Outcome": "tag",
                "Validations": 1.0,
            }),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn every_line_follows_the_embedded_metric_format() {
        let lines = written(|metrics| {
            let lag = Duration::from_millis(1_250);
            metrics.validation(noon(), "valid", Some(ProofSource::Compared { waited: lag, ran: lag }));
            metrics.usage_lag(noon(), lag);
            metrics.delivery_lag(noon(), lag);
            metrics.outbox_age(noon(), "events", lag);
            metrics.audit_chain_lag(noon(), lag);
            metrics.audit_events_rewritten(noon(), 2);
            metrics.sealed_remaining(noon(), 3);
            metrics.open_turns(noon(), 4);
            metrics.turn_settle_failed(noon());
            metrics.turn_interrupted(noon());
            metrics.turn_first_event(noon(), lag);
            metrics.turn_provider_error(noon());
        });
        assert_eq!(lines.len(), 12);
        for line in lines {
            assert!(line["_aws"]["Timestamp"].is_i64(), "{line}");
            for directive in line["_aws"]["CloudWatchMetrics"].as_array().unwrap() {
                assert!(directive["Namespace"].as_str().is_some_and(|name| (1..=1024).contains(&name.len())), "{line}");
                let sets = directive["Dimensions"].as_array().unwrap();
                assert!(!sets.is_empty());
                for name in sets.iter().flat_map(|set| set.as_array().unwrap()) {
                    let value = line[name.as_str().unwrap()].as_str().unwrap();
                    assert!((1..=1024).contains(&value.len()) && value.is_ascii(), "{line}");
                }
                let metrics = directive["Metrics"].as_array().unwrap();
                assert!((1..=100).contains(&metrics.len()));
                for metric in metrics {
                    assert!(line[metric["Name"].as_str().unwrap()].is_f64(), "{line}");
                    assert!(["Count", "Seconds", "Milliseconds"].contains(&metric["Unit"].as_str().unwrap()));
                }
            }
        }
    }

    #[test]
    fn default_metrics_write_nothing() {
        Metrics::default().usage_lag(noon(), Duration::ZERO);
        assert_eq!(format!("{:?}", Metrics::default()), "Metrics(None)");
    }
}

//! Alarms, dashboard, logs and traces of `template.yaml`. They refer to existing metrics and
//! resources, and they cover all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use karta_local::template::TEMPLATE;
use karta_shared::{
    domain::Timestamp,
    telemetry::{Metrics, ProofSource},
};
use regex::Regex;
use serde_json::{Value, json};

use crate::template::{functions, resources};

/// A metric's name and its dimensions.
pub(crate) type Metric = (String, BTreeMap<String, String>);

/// Returns the properties of each alarm by logical id.
pub(crate) fn alarms() -> BTreeMap<String, Value> {
    let alarms = resources("AWS::CloudWatch::Alarm").into_iter();
    alarms.map(|(id, mut alarm)| (id, alarm["Properties"].take())).collect()
}

pub(crate) fn metric_of(alarm: &Value) -> Metric {
    let dimensions = alarm["Dimensions"].as_array().unwrap().iter();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let dimensions = dimensions.map(|dimension| (word(&dimension["Name"]), word(&dimension["Value"])));
    (word(&alarm["MetricName"]), dimensions.collect())
}

/// Returns the metrics that CloudWatch extracts from a log line.
pub(crate) fn metrics_of(line: &Value) -> Vec<Metric> {
    let mut found = Vec::new();
    for directive in line["_aws"]["CloudWatchMetrics"].as_array().unwrap() {
        for set in directive["Dimensions"].as_array().unwrap() {
            let names = set.as_array().unwrap().iter().map(|name| name.as_str().unwrap());
            let dimensions: BTreeMap<_, _> =
                names.map(|name| (name.to_owned(), line[name].as_str().unwrap().to_owned())).collect();
            let metrics = directive["Metrics"].as_array().unwrap().iter();
            found.extend(metrics.map(|metric| (metric["Name"].as_str().unwrap().to_owned(), dimensions.clone())));
        }
    }
    found
}

/// Returns every metric that a function can write, with the names of its dimensions.
fn written() -> BTreeMap<String, BTreeSet<String>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&lines);
    let metrics = Metrics::with_writer("Karta/test".to_owned(), "f", move |line| kept.lock().unwrap().push(line));
    let (at, time): (Timestamp, _) = ("2026-11-22T12:00:00Z".parse().unwrap(), Duration::from_secs(1));
    metrics.validation(at, "valid", Some(ProofSource::Compared { waited: time, ran: time }));
    metrics.usage_lag(at, time);
    metrics.delivery_lag(at, time);
    metrics.outbox_age(at, "events", time);
    metrics.audit_chain_lag(at, time);
    metrics.audit_events_rewritten(at, 1);
    metrics.sealed_remaining(at, 1);
    metrics.open_turns(at, 1);
    metrics.turn_settle_failed(at);
    metrics.turn_interrupted(at);
    metrics.turn_first_event(at, time);
    metrics.turn_provider_error(at);
    let lines = lines.lock().unwrap();
    lines.iter().flat_map(metrics_of).map(|(name, by)| (name, by.into_keys().collect())).collect()
}

fn operations() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md")).unwrap()
}

#[test]
fn every_alarm_is_documented_and_notifies_the_topic() {
    let mut names = Vec::new();
    for (id, alarm) in alarms() {
        let name = alarm["AlarmName"].as_str().unwrap().strip_prefix("karta-${Stage}-").unwrap().to_owned();
        for actions in ["AlarmActions", "OKActions"] {
            assert_eq!(alarm[actions], json!(["HasAlarmTopic", ["AlarmTopicArn"], "AWS::NoValue"]), "{id}");
        }
        let (namespace, metric) = (alarm["Namespace"].as_str().unwrap(), alarm["MetricName"].as_str().unwrap());
        let scheduled = ["OutboxAge", "AuditChainLag", "SealedRemaining", "TurnsOpen"].contains(&metric);
        let missing = if scheduled { "breaching" } else { "notBreaching" };
        assert_eq!(alarm["TreatMissingData"], missing, "{id}");
        let ours = namespace == "Karta/${Stage}";
        assert!(ours || ["AWS/ApiGateway", "AWS/DynamoDB", "AWS/Lambda"].contains(&namespace), "{id}: {namespace}");
        names.push(name);
    }
    for (id, resource) in resources("AWS::CloudWatch::Alarm") {
        let condition = if id == "AlarmWorkerSecretsRotationErrors" { "RotationIsWatched" } else { "IsWatched" };
        assert_eq!(resource["Condition"], condition, "{id}");
    }
    names.sort();
    let name = Regex::new("`([a-z-]+)`").unwrap();
    let operations = operations();
    let (_, runbook) = operations.split_once("## Alarms").unwrap();
    let (runbook, _) = runbook.split_once("\n## ").unwrap();
    let rows = runbook.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let cells: Vec<_> = rows.map(|cell| format!("`{cell}")).collect();
    let mut documented: Vec<_> =
        cells.iter().flat_map(|cell| name.captures_iter(cell)).map(|found| found[1].to_owned()).collect();
    documented.sort();
    assert_eq!(documented, names);
}

#[test]
fn alarms_watch_existing_metrics_and_resources() {
    let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    let (written, binaries) = (written(), functions());
    for (id, alarm) in alarms() {
        let (name, dimensions) = metric_of(&alarm);
        let names: BTreeSet<_> = dimensions.keys().cloned().collect();
        match alarm["Namespace"].as_str().unwrap() {
            "Karta/${Stage}" => {
                assert_eq!(written.get(&name), Some(&names), "{id}");
                assert!(binaries.contains_key(&dimensions["Function"]), "{id}");
            }
            "AWS/Lambda" => {
                let function = &document["Resources"][&dimensions["FunctionName"]];
                assert_eq!(function["Type"], "AWS::Serverless::Function", "{id}");
            }
            "AWS/DynamoDB" => {
                let table = &document["Resources"][&dimensions["TableName"]];
                assert_eq!(table["Type"], "AWS::DynamoDB::Table", "{id}");
                if let Some(index) = dimensions.get("GlobalSecondaryIndexName") {
                    let mut indexes = table["Properties"]["GlobalSecondaryIndexes"].as_array().unwrap().iter();
                    assert!(indexes.any(|found| found["IndexName"] == *index), "{id}");
                }
            }
            _ => assert_eq!(dimensions["ApiName"], document["Resources"]["Api"]["Properties"]["Name"], "{id}"),
        }
    }
}

#[test]
fn every_worker_table_and_index_is_watched() {
    let watched: BTreeSet<_> = alarms().values().map(metric_of).collect();
    let by =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let is_watched = |metric: &str, pairs: &[(&str, &str)]| watched.contains(&(metric.to_owned(), by(pairs)));
    for (id, function) in resources("AWS::Serverless::Function") {
        let binary = function["Metadata"]["BuildProperties"]["Binary"].as_str().unwrap();
        let events: Vec<_> = function["Properties"]["Events"].as_object().into_iter().flatten().collect();
        if events.iter().any(|(_, event)| event["Type"] == "Schedule") {
            let left = is_watched("SealedRemaining", &[("Function", binary)]);
            assert!(left || is_watched("Errors", &[("FunctionName", &id)]), "{id}");
        }
        let reads_a_stream = events.iter().any(|(_, event)| event["Type"] == "DynamoDB");
        assert_eq!(is_watched("IteratorAge", &[("FunctionName", &id)]), reads_a_stream, "{id}");
    }
    for (id, table) in resources("AWS::DynamoDB::Table") {
        assert!(is_watched("WriteThrottleEvents", &[("TableName", &id)]), "{id}");
        for index in table["Properties"]["GlobalSecondaryIndexes"].as_array().into_iter().flatten() {
            let index = index["IndexName"].as_str().unwrap();
            let pairs = [("TableName", id.as_str()), ("GlobalSecondaryIndexName", index)];
            assert!(is_watched("WriteThrottleEvents", &pairs), "{id}, {index}");
        }
        let mut failing = watched.iter().filter(|(name, _)| name == "SystemErrors");
        assert!(failing.any(|(_, by)| by["TableName"] == id), "{id}");
    }
}

#[test]
fn dashboard_shows_exactly_the_written_metrics() {
    let dashboard = resources("AWS::CloudWatch::Dashboard")["Dashboard"]["Properties"]["DashboardBody"].clone();
    let body: Value = serde_json::from_str(dashboard.as_str().unwrap()).unwrap();
    let (written, binaries) = (written(), functions());
    let searched = Regex::new("\\{\"Karta/\\$\\{Stage\\}\",([A-Za-z,]+)\\} MetricName=\"([A-Za-z]+)\"").unwrap();
    let mut shown = BTreeSet::new();
    for widget in body["widgets"].as_array().unwrap() {
        for metric in widget["properties"]["metrics"].as_array().unwrap() {
            let metric = metric.as_array().unwrap();
            if let Some(found) = metric[0]["expression"].as_str().and_then(|search| searched.captures(search)) {
                let by = found[1].split(',').map(str::to_owned).collect();
                assert_eq!(written.get(&found[2]), Some(&by), "{metric:?}");
                shown.insert(found[2].to_owned());
            } else if metric[0] == "Karta/${Stage}" {
                let [_, name, by, function, _] = &metric[..] else { panic!("{metric:?}") };
                let name = name.as_str().unwrap();
                assert_eq!(written.get(name), Some(&BTreeSet::from([by.as_str().unwrap().to_owned()])), "{metric:?}");
                assert!(binaries.contains_key(function.as_str().unwrap()), "{metric:?}");
                shown.insert(name.to_owned());
            }
        }
    }
    assert_eq!(shown, written.into_keys().collect());
}

#[test]
fn functions_have_tracing_and_log_retention() {
    let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    assert_eq!(document["Globals"]["Function"]["Tracing"], "Active");
    assert_eq!(document["Resources"]["Api"]["Properties"]["TracingEnabled"], true);
    let groups = resources("AWS::Logs::LogGroup");
    for (binary, function) in functions() {
        assert!(function["Tracing"].is_null(), "{binary}");
        let group = &groups[function["LoggingConfig"]["LogGroup"].as_str().unwrap()]["Properties"];
        assert_eq!(group["LogGroupName"], format!("/karta/${{Stage}}/{binary}"));
        // The audit chain's log has the last copy of each link, so it is kept longer.
        let retention = if binary == "worker-audit-chain" { "AuditLogRetentionDays" } else { "LogRetentionDays" };
        assert_eq!(group["RetentionInDays"], retention, "{binary}");
    }
    // The gateway's access log is the only group that belongs to no function.
    assert_eq!(groups["AccessLogGroup"]["Properties"]["RetentionInDays"], "LogRetentionDays");
    assert_eq!(groups.len(), functions().len() + 1);
}

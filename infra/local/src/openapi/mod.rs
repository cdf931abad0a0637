//! Builds the API's `OpenAPI` 3.1 document from the routes in `template.yaml` and the types that
//! their handlers read and return, so that the three agree.
//!
//! `karta openapi` prints the document. `openapi.json` is the document with real responses as
//! examples. To document a new route, add a line to `operation::all`.

mod errors;
mod events;
mod operation;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, ensure};
use http::Method;
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value, json};

use crate::template::{Function, TEMPLATE, Template, TemplateRoute};

/// Prefixes of the functions that the document omits: `docs/internal-api.md` describes the internal
/// routes, and Stripe defines the requests to the other one.
const UNDOCUMENTED: [&str; 2] = ["internal-", "stripe-events-create"];

/// Builds the document. Fails if a route of the template is neither described nor in
/// `UNDOCUMENTED`.
pub fn document() -> Result<Value> {
    let template = Template::parse(TEMPLATE)?;
    let mut operations: BTreeMap<_, _> =
        operation::all().into_iter().map(|operation| (operation.name, operation)).collect();
    let mut components = BTreeMap::new();
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let functions = template.functions.iter().filter(|function| is_documented(function));
    let mut routes: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for route in functions.flat_map(|function| &function.routes) {
        if ![Method::OPTIONS, Method::HEAD].contains(&route.method) {
            routes.entry(route.name.as_str()).or_default().push(route);
        }
    }
    for (name, routes) in routes {
        let operation = operations.remove(name);
        let operation = operation.with_context(|| format!("{name} is missing in openapi/operation.rs"))?;
        for route in &routes {
            let described = operation.describe(&routes, route)?;
            paths.entry(route.path.clone()).or_default().insert(route.method.as_str().to_ascii_lowercase(), described);
        }
        for (name, schema) in operation.components {
            let before = components.insert(name.clone(), schema.clone());
            ensure!(before.is_none_or(|before| before == schema), "two different schemas have the name {name}");
        }
    }
    let unrouted: Vec<_> = operations.into_keys().collect();
    ensure!(unrouted.is_empty(), "operations missing in template.yaml: {unrouted:?}");
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Karta",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "A control plane for API keys, session tokens, provider keys, webhooks, usage and budgets, and sessions with models.",
            "description": INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        // Relative to where the document was fetched from, stage included.
        "servers": [{"url": ".", "description": "The location of this document."}],
        "tags": tags(&paths)?,
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": errors::responses(),
            "headers": errors::headers(),
            "parameters": {
                "IdempotencyKey": operation::idempotency_key(),
                "LastEventId": operation::last_event_id(),
            },
            "securitySchemes": {
                "api_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, `kt_live_…`. Each operation names the scope that the key must have. No scope implies another.",
                },
                "session_token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A session token of one project, valid only under `/v1/projects/{ref}/` of that project.",
                },
            },
        },
    }))
}

const INTRODUCTION: &str = "Every response has the header `x-request-id`, and every error body repeats it as `request_id`. Bodies are JSON. An unknown field \
     is an error that names the field. Lists are paged: pass a response's `next_cursor` as `cursor` until it is `null`. Resources of other organizations \
     get the same response as resources that do not exist.";

fn is_documented(function: &Function) -> bool {
    !function.routes.is_empty() && !UNDOCUMENTED.iter().any(|start| function.binary.starts_with(start))
}

/// Returns a route's tag: the first word of its path after the version, or `service` for public
/// routes.
fn tag(route: &TemplateRoute) -> &str {
    let mut words = route.path.split('/').filter(|word| !word.is_empty() && *word != "v1");
    match words.next() {
        Some(word) if route.is_authorized() => word,
        _ => "service",
    }
}

/// The tags in the order of the document, each with its heading and description.
const TAGS: [(&str, &str, &str); 12] = [
    ("api_keys", "API keys", "Keys for your customers' backends and for your own."),
    ("whoami", "Caller identity", "The caller's organization and credential."),
    ("usage", "Usage", "Tokens and their cost, by month, model, day and API key."),
    ("budget", "Budget", "Caps per UTC month for the organization."),
    ("billing", "Billing", "Plan and subscription."),
    ("model_keys", "Provider keys", "Your own keys for model providers (BYOK)."),
    ("webhook_endpoints", "Webhooks", "Signed notifications of changes, their deliveries, and retries."),
    ("agent_projects", "Agent projects", "Projects, releases, deploys, rollbacks, and session tokens for browsers."),
    ("sessions", "Sessions", "Conversations with a model: messages, streams of answers, and their events."),
    ("projects", "Routes for session tokens", "Routes that a session token may call: sessions of one project."),
    ("audit_events", "Audit log", "Changes with their actor, time and source."),
    ("service", "Service", "Health and documentation."),
];

fn tags(paths: &BTreeMap<String, Map<String, Value>>) -> Result<Value> {
    let operations = paths.values().flat_map(Map::values);
    let used: BTreeSet<_> = operations.filter_map(|operation| operation["tags"][0].as_str()).collect();
    ensure!(used == BTreeSet::from(TAGS.map(|(name, ..)| name)), "TAGS differs from the tags of the paths: {used:?}");
    let tag = |(name, heading, description): (&str, &str, &str)| json!({ "name": name, "x-displayName": heading, "description": description });
    Ok(TAGS.into_iter().map(tag).collect())
}

/// Formats the document, with paths and methods in the order of [`operation::all`], which is the
/// order that viewers show.
pub fn print(document: &Value) -> Result<String> {
    let ids = operation::all().into_iter().map(|operation| operation.first_id());
    let ranks = ids.enumerate().map(|(rank, id)| (id, rank)).collect();
    Ok(format!(
        "{}\n",
        serde_json::to_string_pretty(&Ordered { node: document, level: Level::Document, ranks: &ranks })?
    ))
}

#[derive(Clone, Copy)]
enum Level {
    Document,
    Paths,
    Methods,
}

/// A part of the document whose members are serialized by rank.
struct Ordered<'a> {
    node: &'a Value,
    level: Level,
    ranks: &'a HashMap<String, usize>,
}

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(object) = self.node.as_object() else { return self.node.serialize(serializer) };
        let mut members: Vec<_> = object.iter().collect();
        match self.level {
            Level::Document => {}
            Level::Paths => members.sort_by_key(|(_, methods)| {
                methods.as_object().into_iter().flat_map(Map::values).map(|operation| self.rank(operation)).min()
            }),
            Level::Methods => members.sort_by_key(|(_, operation)| self.rank(operation)),
        }
        let mut map = serializer.serialize_map(Some(members.len()))?;
        for (name, node) in members {
            let level = match self.level {
                Level::Document if name == "paths" => Level::Paths,
                Level::Paths => Level::Methods,
                Level::Document | Level::Methods => {
                    map.serialize_entry(name, node)?;
                    continue;
                }
            };
            map.serialize_entry(name, &Ordered { node, level, ranks: self.ranks })?;
        }
        map.end()
    }
}

impl Ordered<'_> {
    /// Returns an operation's position. A route's second path follows its first, and unknown
    /// operations come last.
    fn rank(&self, operation: &Value) -> (usize, bool) {
        let id = operation["operationId"].as_str().unwrap_or_default();
        let first = id.strip_suffix(operation::SECOND_PATH_SUFFIX);
        (self.ranks.get(first.unwrap_or(id)).copied().unwrap_or(usize::MAX), first.is_some())
    }
}

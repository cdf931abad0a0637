//! The API's document in the form of `OpenAPI` 3.1, assembled from `template.yaml`'s routes and the types that their handlers read and answer
//! with, so that the three cannot name different routes or shapes. `karta openapi` prints it; `openapi.json` holds it with real answers as its
//! examples.

mod errors;
mod operation;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, ensure};
use http::Method;
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value, json};

use crate::template::{Function, Route, TEMPLATE, Template};

/// What is answered, and not documented: data planes and operators have a page of their own, and Stripe calls its route as it likes.
const UNDOCUMENTED: [&str; 2] = ["internal-", "stripe-events-create"];

/// The document. Fails where a function of the template is neither described nor left out by name.
pub fn document() -> Result<Value> {
    let template = Template::parse(TEMPLATE)?;
    let mut operations: BTreeMap<_, _> = operation::all().into_iter().map(|of| (of.name, of)).collect();
    let mut components = BTreeMap::new();
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for function in template.functions.iter().filter(|function| is_documented(function)) {
        let operation = operations.remove(function.binary.as_str());
        let operation = operation.with_context(|| format!("{} has no line in the document", function.binary))?;
        for route in function.routes.iter().filter(|route| ![Method::OPTIONS, Method::HEAD].contains(&route.method)) {
            let described = operation.describe(function, route)?;
            paths.entry(route.path.clone()).or_default().insert(route.method.as_str().to_ascii_lowercase(), described);
        }
        for (name, schema) in operation.components {
            let before = components.insert(name.clone(), schema.clone());
            ensure!(before.is_none_or(|before| before == schema), "two different schemas are called {name}");
        }
    }
    let unrouted: Vec<_> = operations.into_keys().collect();
    ensure!(unrouted.is_empty(), "described, and not in template.yaml: {unrouted:?}");
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Karta",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "A control plane for API keys, session tokens, provider keys, webhooks, usage and budgets.",
            "description": INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        // Relative to where the document was fetched from, stage included.
        "servers": [{"url": ".", "description": "Where this document lies."}],
        "tags": tags(&paths)?,
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": errors::responses(),
            "headers": errors::headers(),
            "parameters": {"IdempotencyKey": operation::idempotency_key()},
            "securitySchemes": {
                "api_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, `kt_live_…`. An operation names the scope that the key must hold; no scope implies another.",
                },
                "session_token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A session token, minted for one project and good under `/v1/projects/{ref}/` of that project alone.",
                },
            },
        },
    }))
}

const INTRODUCTION: &str = "Every answer carries `x-request-id`, and every error's body the same as `request_id`. Bodies are JSON; a field that an operation \
     does not know is refused by name. Lists are paged: pass an answer's `next_cursor` as `cursor` until it is `null`. What another organization owns answers \
     exactly as what does not exist.";

fn is_documented(function: &Function) -> bool {
    !function.routes.is_empty() && !UNDOCUMENTED.iter().any(|start| function.binary.starts_with(start))
}

/// What a path is filed under: its first word behind the version.
fn tag(route: &Route) -> &str {
    let mut words = route.path.split('/').filter(|word| !word.is_empty() && *word != "v1");
    match words.next() {
        Some(word) if route.authorized => word,
        _ => "service",
    }
}

/// The groups of operations in the order in which the document shows them, each with its heading.
const TAGS: [(&str, &str, &str); 11] = [
    ("api_keys", "API keys", "Keys for your customers' backends and for your own."),
    ("whoami", "Who am I", "The caller, as this service sees it."),
    ("usage", "Usage", "Tokens and their cost, by month, model, day and API key."),
    ("budget", "Budget", "Caps per UTC month for the organization."),
    ("billing", "Billing", "Plan and subscription."),
    ("model_keys", "Provider keys", "Your own keys for model providers (BYOK)."),
    ("webhook_endpoints", "Webhooks", "Signed notifications of changes, their deliveries, and retries."),
    ("agent_projects", "Agent projects", "Projects, releases, deploys, rollbacks, and session tokens for browsers."),
    ("projects", "In a project", "Routes that a session token may call."),
    ("audit_events", "Audit log", "Who changed what, when and from where."),
    ("service", "Service", "Health and documentation."),
];

fn tags(paths: &BTreeMap<String, Map<String, Value>>) -> Result<Value> {
    let operations = paths.values().flat_map(Map::values);
    let used: BTreeSet<_> = operations.filter_map(|operation| operation["tags"][0].as_str()).collect();
    ensure!(used == BTreeSet::from(TAGS.map(|(name, ..)| name)), "TAGS differs from what the paths need: {used:?}");
    let tag = |(name, heading, description): (&str, &str, &str)| json!({ "name": name, "x-displayName": heading, "description": description });
    Ok(TAGS.into_iter().map(tag).collect())
}

/// The document as text, its paths and methods in the order of [`operation::all`]: viewers show operations in the order of the text.
pub fn print(document: &Value) -> Result<String> {
    let ids = operation::all().into_iter().map(|of| of.first_id());
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

/// A part of the document whose members are printed by rank.
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
                methods.as_object().into_iter().flat_map(Map::values).map(|of| self.rank(of)).min()
            }),
            Level::Methods => members.sort_by_key(|(_, of)| self.rank(of)),
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
    /// A route's second path comes after its first, and unknown operations come last.
    fn rank(&self, operation: &Value) -> (usize, bool) {
        let id = operation["operationId"].as_str().unwrap_or_default();
        let first = id.strip_suffix(operation::SECOND);
        (self.ranks.get(first.unwrap_or(id)).copied().unwrap_or(usize::MAX), first.is_some())
    }
}

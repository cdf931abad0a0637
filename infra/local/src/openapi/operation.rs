//! Reads an operation of the document from the types of its handler.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use http::{Method, StatusCode};
use karta_shared::{
    domain::{Id, SessionId, Slug, Version},
    http::{self as frame, Access, OrganizationSessions, ProjectSessions, RequiredCredential},
};
use serde_json::{Value, json};
use utoipa::{PartialSchema, ToSchema};

use super::{errors, events, tag};
use crate::template::TemplateRoute;

/// Routes that return 402 when a budget is exhausted, besides those that run a turn.
const RETURNS_402: [&str; 3] = ["session-tokens-create", "sessions-create", "project-sessions-create"];
/// Routes that return 404 for a resource that the body names.
const NAMES_A_RESOURCE: [&str; 1] = ["sessions-create"];

/// Suffix of the operation id of a route's second path.
pub(super) const SECOND_PATH_SUFFIX: &str = "Unversioned";

/// A documented route, as the types of its handler define it.
pub(super) struct Operation {
    pub(super) name: &'static str,
    summary: &'static str,
    /// A sentence on the effect, if the summary does not suffice.
    effect: Option<&'static str>,
    status: u16,
    further_statuses: &'static [u16],
    content_type: &'static str,
    credential: RequiredCredential,
    is_idempotent: bool,
    streams: bool,
    /// The body's schema, and whether a body is required. `None` if the route reads no body.
    body: Option<(Value, bool)>,
    /// The response's schema. `None` if the response is empty.
    output: Option<Value>,
    /// Query parameters. `None` if the route ignores the query.
    query: Option<Vec<Value>>,
    /// The schemas that the others refer to, by name.
    pub(super) components: BTreeMap<String, Value>,
}

/// Returns every documented route in the order of the document, which is by use. Summaries contain
/// the words that people search for.
pub(super) fn all() -> Vec<Operation> {
    vec![
        read::<api_keys_create::ApiKeysCreate>("Create an API key"),
        read::<api_keys_list::ApiKeysList>("List API keys"),
        read::<api_keys_get::ApiKeysGet>("Get an API key"),
        read::<api_keys_update::ApiKeysUpdate>("Update an API key"),
        read::<api_keys_rotate::ApiKeysRotate>("Rotate an API key"),
        read::<api_keys_revoke::ApiKeysRevoke>("Revoke an API key"),
        read::<whoami::Whoami>("Identify the caller (whoami)"),
        read::<usage_get::UsageGet>("Get the usage of a month"),
        read::<usage_keys_list::UsageKeysList>("List usage by API key"),
        read::<budget_get::BudgetGet>("Get the budget"),
        read::<budget_update::BudgetUpdate>("Set the budget"),
        read::<billing_get::BillingGet>("Get the plan and subscription"),
        read::<model_keys_create::ModelKeysCreate>("Add a provider key (BYOK)"),
        read::<model_keys_list::ModelKeysList>("List provider keys"),
        read::<model_keys_revoke::ModelKeysRevoke>("Revoke a provider key"),
        read::<webhook_endpoints_create::WebhookEndpointsCreate>("Create a webhook endpoint"),
        read::<webhook_endpoints_list::WebhookEndpointsList>("List webhook endpoints"),
        read::<webhook_endpoints_get::WebhookEndpointsGet>("Get a webhook endpoint"),
        read::<webhook_endpoints_update::WebhookEndpointsUpdate>("Update a webhook endpoint"),
        read::<webhook_endpoints_test::WebhookEndpointsTest>("Send a test event to a webhook endpoint"),
        read::<webhook_endpoints_rotate_secret::WebhookEndpointsRotateSecret>("Rotate a webhook signing secret"),
        read::<webhook_deliveries_list::WebhookDeliveriesList>("List webhook deliveries"),
        read::<webhook_deliveries_replay::WebhookDeliveriesReplay>("Replay a webhook delivery"),
        read::<webhook_endpoints_recover::WebhookEndpointsRecover>("Recover missed webhook events")
            .with_effect("Sends the endpoint the events that it missed since the given time."),
        read::<webhook_endpoints_delete::WebhookEndpointsDelete>("Delete a webhook endpoint"),
        read::<agent_projects_create::AgentProjectsCreate>("Create an agent project"),
        read::<agent_projects_list::AgentProjectsList>("List agent projects"),
        read::<agent_projects_get::AgentProjectsGet>("Get an agent project"),
        read::<agent_projects_update::AgentProjectsUpdate>("Update an agent project"),
        read::<deploys_create::DeploysCreate>("Deploy a release"),
        read::<releases_list::ReleasesList>("List releases"),
        read::<releases_rollback::ReleasesRollback>("Roll back a release")
            .with_effect("Activates another release of the project that is ready or was active before."),
        read::<release_logs_list::ReleaseLogsList>("Get the build log of a release"),
        read::<session_tokens_create::SessionTokensCreate>("Create a session token"),
        read::<sessions::create::SessionsCreate<OrganizationSessions>>("Create or resume a session")
            .with_effect(RESUMES),
        read::<turns::messages::MessagesCreate<OrganizationSessions>>("Send a message to a model").with_effect(STREAMS),
        read::<turn_streams::stream::StreamGet<OrganizationSessions>>("Follow or replay the events of a turn")
            .with_effect(FOLLOWS),
        read::<sessions::messages::MessagesList<OrganizationSessions>>("List the messages of a session")
            .with_effect(OLDEST_FIRST),
        read::<sessions::get::SessionsGet<OrganizationSessions>>("Get a session"),
        read::<sessions::list::SessionsList<OrganizationSessions>>("List sessions"),
        read::<sessions::cancel::SessionsCancel<OrganizationSessions>>("Cancel the running turn of a session"),
        read::<sessions::delete::SessionsDelete<OrganizationSessions>>("Delete a session").with_effect(DELETES),
        read::<projects_whoami::ProjectsWhoami>("Identify the caller in a project (whoami)"),
        read::<sessions::create::SessionsCreate<ProjectSessions>>("Create or resume a session in a project")
            .with_effect(RESUMES),
        read::<turns::messages::MessagesCreate<ProjectSessions>>("Send a message to a project's model")
            .with_effect(STREAMS),
        read::<turn_streams::stream::StreamGet<ProjectSessions>>("Follow or replay the events of a turn in a project")
            .with_effect(FOLLOWS),
        read::<sessions::messages::MessagesList<ProjectSessions>>("List the messages of a session in a project")
            .with_effect(OLDEST_FIRST),
        read::<sessions::get::SessionsGet<ProjectSessions>>("Get a session of a project"),
        read::<sessions::list::SessionsList<ProjectSessions>>("List the sessions of a project"),
        read::<sessions::cancel::SessionsCancel<ProjectSessions>>("Cancel the running turn of a session in a project"),
        read::<sessions::delete::SessionsDelete<ProjectSessions>>("Delete a session of a project").with_effect(DELETES),
        read::<audit_events_list::AuditEventsList>("List audit events"),
        read::<healthz::Healthz>("Check that the API is up"),
        read::<openapi_get::OpenapiGet>("Get the OpenAPI document"),
        read::<docs_get::DocsGet>("Get the documentation page"),
    ]
}

const RESUMES: &str = "With `session_id`, resumes that session: 200, and `metadata` may hold `user_id` only. Without it, creates one: 201.";
const STREAMS: &str = "The response is the answer, or with `stream: true` a stream of its events. The turn runs to its \
     end if the client leaves. A repeat with the same `Idempotency-Key` attaches to the turn, unless it failed.";
const FOLLOWS: &str = "Replays the events after the last one that the client has, and follows the turn to its end: the \
     turn of that event, or else the latest.";
const OLDEST_FIRST: &str = "The oldest message is first.";
const DELETES: &str = "The session is gone at once, its content within an hour.";

pub(super) fn last_event_id() -> Value {
    json!({
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The id of the last event that the client has, like `after`. An invalid one is ignored.",
        "schema": { "type": "string" },
    })
}

pub(super) fn idempotency_key() -> Value {
    json!({
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Makes retries safe. For 24 hours, a request with the same key and the same body gets the first response again, and a request with \
             another body gets 422. A response with a secret is repeated for ten minutes; after that, the request gets 409 `secret_already_revealed`.",
        "schema": { "type": "string", "pattern": "^[ -~]{1,255}$" },
    })
}

fn read<R>(summary: &'static str) -> Operation
where
    R: frame::Route<Query: ToSchema, Body: ToSchema, Output: ToSchema>,
{
    let mut components = BTreeMap::new();
    let body = schema_reference::<R, R::Body>("Input", &mut components);
    let mut output_components = BTreeMap::new();
    let output = schema_reference::<R, R::Output>("Output", &mut output_components);
    for schema in output_components.values_mut() {
        require_every_field(schema);
    }
    components.append(&mut output_components);
    let mut query_components = Vec::new();
    R::Query::schemas(&mut query_components);
    components.extend(query_components.into_iter().map(|(name, schema)| (name, json!(schema))));
    if R::STREAMS {
        components.extend(events::components());
    }
    Operation {
        name: R::NAME,
        summary,
        effect: None,
        status: R::STATUS,
        further_statuses: R::FURTHER_STATUSES,
        content_type: R::CONTENT_TYPE,
        credential: R::Access::CREDENTIAL,
        is_idempotent: R::IDEMPOTENT,
        streams: R::STREAMS,
        body: (R::Body::name() != "NoBody").then_some((body, !R::BODY_MAY_BE_EMPTY)),
        output: (R::STATUS != 204).then_some(output),
        query: (R::Query::name() != "AnyQuery").then(|| parameters(&json!(R::Query::schema()))),
        components,
    }
}

/// Adds a type's schema to the components, with the schemas it refers to, and returns a reference
/// to it. Types named `Input` or `Output` get the route's name as a prefix. The two families of sessions
/// share their types.
fn schema_reference<R: frame::Route, T: ToSchema>(kind: &str, components: &mut BTreeMap<String, Value>) -> Value {
    let schema = json!(T::schema());
    let mut references = Vec::new();
    T::schemas(&mut references);
    components.extend(references.into_iter().map(|(name, schema)| (name, json!(schema))));
    let name = match &*T::name() {
        "NoBody" => return Value::Null,
        "Verbatim" => return schema,
        own if own == kind => format!("{}{kind}", camel_case(R::NAME.trim_start_matches("project-"), true)),
        own => own.to_owned(),
    };
    components.insert(name.clone(), schema);
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Marks every field of a response as required: fields without a value are `null`.
fn require_every_field(schema: &mut Value) {
    if let Some(properties) = schema["properties"].as_object() {
        schema["required"] = properties.keys().cloned().collect();
    }
    for part in schema.get_mut("allOf").and_then(Value::as_array_mut).into_iter().flatten() {
        require_every_field(part);
    }
}

fn parameters(query: &Value) -> Vec<Value> {
    let required = |name: &str| query["required"].as_array().is_some_and(|all| all.iter().any(|listed| listed == name));
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = without_null(schema);
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        let mut parameter = json!({ "name": name, "in": "query", "required": required(name) });
        let shared: Option<Value> = match name.as_str() {
            "cursor" => Some("The `next_cursor` of a response to the same filters.".into()),
            "limit" => Some("Maximum items per page, 1 to 100; 50 by default.".into()),
            _ => None,
        };
        if let Some(description) = shared.or(description) {
            parameter["description"] = description;
        }
        if schema["type"] == "array" {
            parameter["style"] = "form".into();
            parameter["explode"] = false.into();
        }
        parameter["schema"] = schema;
        parameter
    };
    query["properties"].as_object().into_iter().flatten().map(parameter).collect()
}

/// Removes `null` from a parameter's schema, because a parameter is present or absent, never
/// `null`.
fn without_null(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(kinds) = schema["type"].as_array() {
        let kind = kinds.iter().find(|kind| **kind != "null").cloned();
        schema["type"] = kind.unwrap_or_default();
    }
    if let Some(of) = schema["oneOf"].as_array() {
        let description = schema.get("description").cloned();
        let mut only = of.iter().find(|schema| schema["type"] != "null").cloned().unwrap_or_default();
        if let Some(description) = description {
            only["description"] = description;
        }
        return only;
    }
    // An absent parameter means the default, so the schema needs none.
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("default");
    }
    schema
}

impl Operation {
    fn with_effect(self, effect: &'static str) -> Self {
        Self { effect: Some(effect), ..self }
    }

    pub(super) fn describe(&self, paths: &[&TemplateRoute], route: &TemplateRoute) -> Result<Value> {
        let variables = variables(&route.path)?;
        let mut errors = vec![429, 500, 503, 504];
        let mut described = json!({
            "operationId": self.id(paths, route),
            "summary": self.summary,
            "description": self.description(paths, route),
            "tags": [tag(route)],
        });
        ensure!(
            route.is_authorized() == (self.credential != RequiredCredential::None),
            "{}: template.yaml and the handler disagree on the credential",
            self.name
        );
        described["security"] = match self.credential {
            RequiredCredential::ApiKey(scope) => json!([{ "api_key": scope.into_iter().collect::<Vec<_>>() }]),
            RequiredCredential::Project(scope) => {
                json!([{ "api_key": scope.into_iter().collect::<Vec<_>>() }, { "session_token": [] }])
            }
            RequiredCredential::None => json!([]),
            RequiredCredential::Private => anyhow::bail!("{} is private: add it to UNDOCUMENTED", self.name),
        };
        if route.is_authorized() {
            errors.extend([401, 403]);
        }
        if !variables.is_empty() {
            errors.push(404);
        }
        if RETURNS_402.contains(&self.name) {
            errors.push(402);
        }
        if NAMES_A_RESOURCE.contains(&self.name) {
            errors.push(404);
        }
        if route.is_authorized() && (route.method != Method::GET || self.streams) {
            errors.push(409);
        }
        let mut parameters = variables;
        if let Some(query) = &self.query {
            parameters.extend(query.iter().cloned());
            errors.push(422);
        }
        if self.is_idempotent {
            parameters.push(json!({ "$ref": "#/components/parameters/IdempotencyKey" }));
        }
        if self.follows_turns() {
            parameters.push(json!({ "$ref": "#/components/parameters/LastEventId" }));
        }
        if let Some((schema, required)) = &self.body {
            described["requestBody"] =
                json!({ "required": required, "content": { "application/json": { "schema": schema } } });
            errors.extend([400, 413, 415]);
        }
        described["parameters"] = parameters.into();
        let mut responses: BTreeMap<String, Value> =
            errors.into_iter().map(|status| (status.to_string(), errors::reference(status))).collect();
        if self.runs_turns() {
            responses.extend(errors::turn_references());
        }
        for status in [self.status].iter().chain(self.further_statuses) {
            responses.insert(status.to_string(), self.success(*status));
        }
        described["responses"] = json!(responses);
        Ok(described)
    }

    pub(super) fn first_id(&self) -> String {
        camel_case(self.name, false)
    }

    /// Returns whether the route answers with a turn's result or with a stream of its events.
    fn runs_turns(&self) -> bool {
        self.streams && self.content_type != events::MEDIA_TYPE
    }

    /// Returns whether the route answers with a stream of a turn's events only.
    fn follows_turns(&self) -> bool {
        self.streams && self.content_type == events::MEDIA_TYPE
    }

    fn success(&self, status: u16) -> Value {
        let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let mut success = json!({ "description": reason, "headers": errors::request_id() });
        if let Some(schema) = &self.output {
            success["content"] = json!({ self.content_type: { "schema": schema } });
        }
        if self.streams {
            success["content"][events::MEDIA_TYPE] = json!({ "schema": events::server_sent_event() });
        }
        success
    }

    /// Returns the operation id of a path. A route's second path has an id with a suffix.
    fn id(&self, paths: &[&TemplateRoute], route: &TemplateRoute) -> String {
        let id = self.first_id();
        if is_second_path(paths, route) { format!("{id}{SECOND_PATH_SUFFIX}") } else { id }
    }

    /// Returns sentences on the credential, the effect, and the path that this path is an alias of.
    fn description(&self, paths: &[&TemplateRoute], route: &TemplateRoute) -> String {
        let alias = is_second_path(paths, route).then(|| format!("Alias of `/v1{}`.", route.path));
        let effect = self.effect.map(ToOwned::to_owned);
        [Some(describe_access(self.credential)), effect, alias].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// Returns whether the route has another path under `/v1/`, and this path is not. `paths` are all of
/// the route.
fn is_second_path(paths: &[&TemplateRoute], route: &TemplateRoute) -> bool {
    let is_versioned = |route: &TemplateRoute| route.path.starts_with("/v1/");
    !is_versioned(route) && paths.iter().any(|route| is_versioned(route))
}

fn describe_access(credential: RequiredCredential) -> String {
    match credential {
        RequiredCredential::ApiKey(Some(scope)) => format!("Requires an API key with scope `{}`.", scope.as_str()),
        RequiredCredential::ApiKey(None) => "Accepts any API key, including one without scopes.".to_owned(),
        RequiredCredential::Project(Some(scope)) => {
            format!("Accepts a session token of this project or an API key with scope `{}`.", scope.as_str())
        }
        RequiredCredential::Project(None) => "Accepts a session token of this project or any API key.".to_owned(),
        RequiredCredential::None => "Public: requires no credential.".to_owned(),
        RequiredCredential::Private => String::new(),
    }
}

fn variables(path: &str) -> Result<Vec<Value>> {
    let names = path.split('/').filter_map(|word| word.strip_prefix('{')?.strip_suffix('}'));
    let parameter = |name: &str| {
        let schema = match name {
            "id" if path.contains("/sessions/{id}") => json!(SessionId::schema()),
            "id" | "delivery_id" => json!(Id::schema()),
            "slug" | "ref" => json!(Slug::schema()),
            "version" => json!(Version::schema()),
            _ => return None,
        };
        let mut parameter = json!({ "name": name, "in": "path", "required": true, "schema": schema });
        if matches!(name, "slug" | "ref") {
            parameter["description"] = "The project's slug.".into();
        }
        Some(parameter)
    };
    names.map(|name| parameter(name).with_context(|| format!("{path}: unknown variable {name}"))).collect()
}

/// `api-keys-create` → `apiKeysCreate`
fn camel_case(name: &str, capitalise_first: bool) -> String {
    let mut camel = String::new();
    let mut capital = capitalise_first;
    for character in name.chars() {
        match character {
            '-' => capital = true,
            _ if std::mem::take(&mut capital) => camel.push(character.to_ascii_uppercase()),
            _ => camel.push(character),
        }
    }
    camel
}

//! Reads from `template.yaml` what the runner needs: the functions with their routes, schedules and
//! indexes, the authorizer's settings, the gateway responses and the tables.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use serde_json::Value;

/// The template that this binary was built with.
pub const TEMPLATE: &str = include_str!("../../../template.yaml");

#[derive(Debug)]
pub struct Template {
    pub functions: Vec<Function>,
    pub authorizer: AuthorizerSettings,
    pub gateway_responses: BTreeMap<String, GatewayResponse>,
    pub tables: BTreeMap<String, TemplateTable>,
}

#[derive(Debug)]
pub struct Function {
    /// The name of the binary and of the function's folder.
    pub binary: String,
    /// Empty for the authorizer and for workers.
    pub routes: Vec<TemplateRoute>,
    /// Prefixes of the partition keys whose writes wake it through the outbox's stream.
    pub outbox_prefixes: Vec<String>,
    pub schedule: Option<Duration>,
    pub indexes: Vec<Index>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Logical id of the table.
    pub table: String,
    pub name: String,
    /// Prefixes of the partition keys without `#` and shard, such as `EVT`.
    pub prefixes: Vec<String>,
}

#[derive(Debug)]
pub struct TemplateRoute {
    /// The name of the route: that of the function, if it has one route.
    pub name: String,
    pub method: Method,
    /// The path, with variables in braces: `/v1/api_keys/{id}`.
    pub path: String,
    /// `None` if anybody may call the route.
    pub authorizer: Option<AuthorizerMode>,
}

/// How API Gateway authorizes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorizerMode {
    /// The default: a TOKEN authorizer with cached results.
    Cached,
    /// A REQUEST authorizer without a cache.
    Uncached,
}

impl TemplateRoute {
    pub fn is_authorized(&self) -> bool {
        self.authorizer.is_some()
    }
}

#[derive(Debug)]
pub struct AuthorizerSettings {
    pub binary: String,
    pub cached_seconds: u64,
    /// The regular expression that the whole `Authorization` header must match.
    pub validation_expression: String,
}

#[derive(Debug, Clone)]
pub struct GatewayResponse {
    pub status: u16,
    /// Header values by name: quoted text or `context.requestId`.
    pub headers: BTreeMap<String, String>,
    /// JSON with the placeholder `$context.requestId`.
    pub body: String,
}

/// The properties of a table in the template.
#[derive(Debug)]
pub struct TemplateTable(pub Value);

impl Template {
    pub fn parse(yaml: &str) -> Result<Self> {
        let document: Value = serde_saphyr::from_str(yaml).context("template.yaml is not YAML")?;
        let resources = document["Resources"].as_object().context("template.yaml has no Resources")?;
        let of_type = |kind: &'static str| {
            resources
                .iter()
                .filter(move |(_, resource)| resource["Type"] == kind)
                .map(|(name, resource)| (name.as_str(), resource))
        };
        let (_, api) = of_type("AWS::Serverless::Api").next().context("template.yaml has no AWS::Serverless::Api")?;
        let auth = &api["Properties"]["Auth"];
        let functions: Result<BTreeMap<_, _>> = of_type("AWS::Serverless::Function")
            .map(|(name, resource)| Ok((name, function(name, resource, auth)?)))
            .collect();
        let functions = functions?;
        let authorizer = authorizer(auth, &functions)?;
        Ok(Self {
            authorizer,
            functions: functions.into_values().collect(),
            gateway_responses: gateway_responses(&api["Properties"]["GatewayResponses"])?,
            tables: of_type("AWS::DynamoDB::Table")
                .map(|(name, table)| (name.to_owned(), TemplateTable(table["Properties"].clone())))
                .collect(),
        })
    }
}

fn function(name: &str, resource: &Value, auth: &Value) -> Result<Function> {
    let binary = text(&resource["Metadata"]["BuildProperties"]["Binary"]).with_context(|| {
        format!("{name}: Metadata.BuildProperties.Binary is missing: set it to the folder's name under functions/")
    })?;
    ensure!(name == camel_case(binary), "{name} builds {binary}: its logical id must be {}", camel_case(binary));
    let events = || resource["Properties"]["Events"].as_object().into_iter().flatten();
    let api_events = || events().filter(|(_, value)| value["Type"] == "Api");
    // A function with one route calls its event `Route`. Events of other functions name their routes.
    let has_one_route = api_events().any(|(event, _)| event == "Route");
    let routes = api_events().map(|(event, value)| {
        let route_name = if has_one_route { binary.to_owned() } else { kebab_case(event) };
        route(route_name, &value["Properties"], auth).with_context(|| format!("{name}, event {event}"))
    });
    let streams = events().filter(|(_, value)| value["Type"] == "DynamoDB");
    let outbox_prefixes = streams.map(|(event, value)| {
        prefixes(&value["Properties"]["FilterCriteria"]).with_context(|| format!("{name}, event {event}"))
    });
    let mut schedules = events().filter(|(_, value)| value["Type"] == "Schedule");
    let schedule = schedules
        .next()
        .map(|(event, value)| rate(&value["Properties"]["Schedule"]).with_context(|| format!("{name}, event {event}")));
    text(&resource["Properties"]["Description"]).with_context(|| format!("{name}, Description"))?;
    Ok(Function {
        binary: binary.to_owned(),
        routes: routes.collect::<Result<_>>()?,
        outbox_prefixes: outbox_prefixes.collect::<Result<Vec<_>>>()?.concat(),
        schedule: schedule.transpose()?,
        indexes: indexes(&resource["Properties"]["Policies"]).with_context(|| format!("{name}, Policies"))?,
    })
}

/// Parses a schedule such as `rate(15 minutes)`.
fn rate(value: &Value) -> Result<Duration> {
    let schedule = text(value)?;
    let rate = schedule.strip_prefix("rate(").and_then(|rate| rate.strip_suffix(')')?.split_once(' '));
    let (count, unit) = rate.with_context(|| format!("{schedule} must be a rate such as rate(15 minutes)"))?;
    let unit = match unit.trim_end_matches('s') {
        "minute" => Duration::from_mins(1),
        "hour" => Duration::from_hours(1),
        other => bail!("unknown unit {other}: use minutes or hours"),
    };
    Ok(unit * count.parse::<u32>().with_context(|| format!("{schedule} must have a number"))?)
}

/// Returns the indexes in policy statements with `dynamodb:Query`, and the partitions that these
/// allow.
fn indexes(policies: &Value) -> Result<Vec<Index>> {
    let policies = policies.as_array().into_iter().flatten();
    let statements = policies.flat_map(|policy| policy["Statement"].as_array().into_iter().flatten());
    let mut indexes = Vec::new();
    for statement in statements.filter(|statement| one_or_more(&statement["Action"]).any(|it| it == "dynamodb:Query")) {
        let named =
            one_or_more(&statement["Resource"]).filter_map(|resource| resource.as_str()?.split_once(".Arn}/index/"));
        for (table, name) in named {
            let keys = statement["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"].as_array();
            let keys = keys
                .with_context(|| format!("dynamodb:Query on {table}/{name} needs dynamodb:LeadingKeys: add them"))?
                .iter();
            indexes.push(Index {
                table: table.trim_start_matches("${").to_owned(),
                name: name.to_owned(),
                prefixes: keys.map(|key| Ok(text(key)?.trim_end_matches("#*").to_owned())).collect::<Result<_>>()?,
            });
        }
    }
    Ok(indexes)
}

fn one_or_more(value: &Value) -> impl Iterator<Item = &Value> {
    let many = value.as_array().map(Vec::as_slice);
    many.unwrap_or(std::slice::from_ref(value)).iter()
}

/// Returns the partition key prefixes that a stream's filters accept.
fn prefixes(criteria: &Value) -> Result<Vec<String>> {
    let filters = criteria["Filters"]
        .as_array()
        .context("a stream needs FilterCriteria, or every write would invoke its function: add them")?;
    let mut prefixes = Vec::new();
    for filter in filters {
        let pattern: Value = serde_json::from_str(text(&filter["Pattern"])?).context("Pattern")?;
        let keys = pattern["dynamodb"]["Keys"]["pk"]["S"]
            .as_array()
            .context("a stream's Pattern must filter dynamodb.Keys.pk.S")?;
        for key in keys {
            prefixes.push(text(&key["prefix"])?.to_owned());
        }
    }
    Ok(prefixes)
}

fn route(name: String, event: &Value, auth: &Value) -> Result<TemplateRoute> {
    let method = text(&event["Method"])?.to_ascii_uppercase();
    Ok(TemplateRoute {
        name,
        method: method.parse().context("Method")?,
        path: text(&event["Path"])?.to_owned(),
        authorizer: match event["Auth"]["Authorizer"].as_str() {
            None => Some(AuthorizerMode::Cached),
            Some("NONE") => None,
            Some(other) => Some(uncached(other, auth)?),
        },
    })
}

/// Checks that an authorizer of this name is called for every request. It must have no identity
/// source: with one, API Gateway itself returns 401 to requests that lack it.
fn uncached(name: &str, auth: &Value) -> Result<AuthorizerMode> {
    let (settings, default) = (&auth["Authorizers"][name], default_authorizer(auth)?);
    ensure!(settings.is_object(), "unknown Authorizer {name}");
    ensure!(
        settings["FunctionPayloadType"] == "REQUEST"
            && settings["Identity"] == serde_json::json!({ "ReauthorizeEvery": 0 })
            && settings["FunctionArn"] == auth["Authorizers"][default]["FunctionArn"],
        "the authorizer {name} must be an uncached REQUEST authorizer of the same function"
    );
    Ok(AuthorizerMode::Uncached)
}

fn default_authorizer(auth: &Value) -> Result<&str> {
    text(&auth["DefaultAuthorizer"]).context("the Api has no DefaultAuthorizer: every route would be open")
}

fn authorizer(auth: &Value, functions: &BTreeMap<&str, Function>) -> Result<AuthorizerSettings> {
    let name = default_authorizer(auth)?;
    let settings = &auth["Authorizers"][name];
    let target = text(&settings["FunctionArn"]).context("FunctionArn must be a string")?;
    let target = target.split('.').next().unwrap_or(target);
    let function =
        functions.get(target).with_context(|| format!("the authorizer {target} is not a function of template.yaml"))?;
    let identity = &settings["Identity"];
    Ok(AuthorizerSettings {
        binary: function.binary.clone(),
        cached_seconds: identity["ReauthorizeEvery"]
            .as_u64()
            .context("Identity.ReauthorizeEvery must be a number of seconds")?,
        validation_expression: text(&identity["ValidationExpression"])
            .context("Identity.ValidationExpression must be a string")?
            .to_owned(),
    })
}

fn gateway_responses(value: &Value) -> Result<BTreeMap<String, GatewayResponse>> {
    let responses = value.as_object().context("the Api has no GatewayResponses")?;
    let response = |name: &String, value: &Value| {
        let status = value["StatusCode"]
            .as_u64()
            .and_then(|status| u16::try_from(status).ok())
            .context("StatusCode must be a number")?;
        let headers = value["ResponseParameters"]["Headers"].as_object();
        let headers = headers.into_iter().flatten().map(|(name, value)| Ok((name.clone(), text(value)?.to_owned())));
        let body = text(&value["ResponseTemplates"]["application/json"])?.to_owned();
        anyhow::Ok((name.clone(), GatewayResponse { status, headers: headers.collect::<Result<_>>()?, body }))
    };
    responses
        .iter()
        .map(|(name, value)| response(name, value).with_context(|| format!("GatewayResponses.{name}")))
        .collect()
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("expected a string, found {value}"))
}

/// `api-keys-create` → `ApiKeysCreate`
fn camel_case(folder: &str) -> String {
    let capitalised = |word: &str| {
        let mut characters = word.chars();
        let first = characters.next().map(|first| first.to_ascii_uppercase());
        first.into_iter().chain(characters).collect::<String>()
    };
    folder.split('-').map(capitalised).collect()
}

/// `ApiKeysCreate` → `api-keys-create`
fn kebab_case(event: &str) -> String {
    let mut kebab = String::new();
    for character in event.chars() {
        if character.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(character.to_ascii_lowercase());
    }
    kebab
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_names_become_route_names() {
        for name in ["api-keys-create", "whoami", "sessions-list"] {
            assert_eq!(kebab_case(&camel_case(name)), name);
        }
    }

    #[test]
    fn event_may_choose_the_uncached_authorizer() {
        let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
        let auth = document["Resources"]["Api"]["Properties"]["Auth"].clone();
        let chosen = |name: Value, auth: &Value| {
            let event = serde_json::json!({ "Method": "GET", "Path": "/v1/sessions", "Auth": { "Authorizer": name } });
            route("sessions-list".to_owned(), &event, auth).map(|route| route.authorizer)
        };
        assert_eq!(chosen(Value::Null, &auth).unwrap(), Some(AuthorizerMode::Cached));
        assert_eq!(chosen("NONE".into(), &auth).unwrap(), None);
        assert_eq!(chosen("CurrentCredential".into(), &auth).unwrap(), Some(AuthorizerMode::Uncached));
        assert!(chosen("AWS_IAM".into(), &auth).is_err());
        let mut cached = auth.clone();
        cached["Authorizers"]["CurrentCredential"]["Identity"]["ReauthorizeEvery"] = 3.into();
        assert!(chosen("CurrentCredential".into(), &cached).is_err());
    }

    #[test]
    fn events_name_the_routes_of_their_function() {
        let event = |method: &str| serde_json::json!({ "Type": "Api", "Properties": { "Method": method, "Path": "/v1/sessions" } });
        let names = |events: Value| {
            let resource = serde_json::json!({
                "Metadata": { "BuildProperties": { "Binary": "sessions" } },
                "Properties": { "Description": "Sessions.", "Events": events },
            });
            let routes = function("Sessions", &resource, &Value::Null).unwrap().routes.into_iter();
            routes.map(|route| (route.method.to_string(), route.name)).collect::<Vec<_>>()
        };
        let own = |method: &str, name: &str| (method.to_owned(), name.to_owned());
        let several = serde_json::json!({
            "SessionsCreate": event("post"),
            "SessionsCreatePreflight": event("options"),
            "SessionsList": event("get"),
        });
        assert_eq!(
            names(several),
            [own("POST", "sessions-create"), own("OPTIONS", "sessions-create-preflight"), own("GET", "sessions-list"),]
        );
        let one = serde_json::json!({ "Preflight": event("options"), "Route": event("get") });
        assert_eq!(names(one), [own("OPTIONS", "sessions"), own("GET", "sessions")]);
    }
}

//! Conversion of API Gateway's proxy event to a request.
//!
//! No client input makes a conversion fail: a failed invocation would skip the frame and reveal
//! that a function exists. Text is read as bytes, and a byte that no header may contain becomes
//! U+FFFD, so that the code that reads the header can reject it.

use std::{collections::HashMap, fmt};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use lambda_http::{
    Body, Request, RequestExt, aws_lambda_events::apigw::ApiGatewayProxyRequestContext, request::RequestContext,
};
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};
use serde_json::Value;

use super::path::decode_unreserved;

/// The fields of a REST API's proxy event that the frame reads.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayEvent {
    http_method: Option<EventText>,
    /// The path of the route, with variables in braces.
    resource: Option<EventText>,
    headers: Option<HashMap<EventText, EventText>>,
    multi_value_headers: Option<HashMap<EventText, Vec<EventText>>>,
    query_string_parameters: Option<HashMap<EventText, EventText>>,
    multi_value_query_string_parameters: Option<HashMap<EventText, Vec<EventText>>>,
    path_parameters: Option<HashMap<EventText, EventText>>,
    request_context: Option<EventContext>,
    body: Option<EventText>,
    is_base64_encoded: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EventContext {
    request_id: Option<EventText>,
    api_id: Option<EventText>,
    domain_name: Option<EventText>,
    identity: Option<Identity>,
    authorizer: Option<HashMap<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Identity {
    source_ip: Option<EventText>,
}

impl GatewayEvent {
    pub(super) fn method(&self) -> Method {
        let method = self.http_method.as_ref().and_then(|EventText(method)| method.parse().ok());
        method.unwrap_or(Method::GET)
    }

    pub(super) fn resource(&self) -> Option<&str> {
        self.resource.as_ref().map(|EventText(resource)| resource.as_str())
    }

    pub(super) fn into_request(self) -> Request {
        let method = self.method();
        let body =
            body(self.body.map(|EventText(body)| body).unwrap_or_default(), self.is_base64_encoded.unwrap_or_default());
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.headers_mut() = headers(self.multi_value_headers, self.headers);
        let variables = self.path_parameters.into_iter().flatten();
        let variables =
            variables.map(|(EventText(name), EventText(value))| (name, decode_unreserved(&value).into_owned()));
        request
            .with_query_string_parameters(query(self.multi_value_query_string_parameters, self.query_string_parameters))
            .with_path_parameters(variables.collect::<HashMap<_, _>>())
            .with_request_context(RequestContext::ApiGatewayV1(context(self.request_context.unwrap_or_default())))
    }
}

/// Returns the body's bytes. Text that is marked as base64 but cannot be decoded stays unchanged.
fn body(text: String, is_base64: bool) -> Body {
    match is_base64.then(|| BASE64_STANDARD.decode(&text)) {
        Some(Ok(bytes)) => Body::Binary(bytes),
        _ if text.is_empty() => Body::Empty,
        _ => Body::Text(text),
    }
}

/// Collects every value of every header. `last` holds the last value of each header, for senders
/// that omit `multiValueHeaders`.
fn headers(all: Option<HashMap<EventText, Vec<EventText>>>, last: Option<HashMap<EventText, EventText>>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in all.into_iter().flatten() {
        if let Ok(name) = HeaderName::try_from(name.0) {
            for value in values {
                headers.try_append(name.clone(), header_value(&value.0)).ok();
            }
        }
    }
    for (name, value) in last.into_iter().flatten() {
        if let Ok(name) = HeaderName::try_from(name.0)
            && !headers.contains_key(&name)
        {
            headers.try_insert(name, header_value(&value.0)).ok();
        }
    }
    headers
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| {
        let text = text.replace(|c: char| c.is_ascii_control() && c != '\t', "\u{fffd}");
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("?"))
    })
}

fn query(
    all: Option<HashMap<EventText, Vec<EventText>>>,
    last: Option<HashMap<EventText, EventText>>,
) -> HashMap<String, Vec<String>> {
    let all = all
        .into_iter()
        .flatten()
        .map(|(EventText(name), values)| (name, values.into_iter().map(|EventText(value)| value).collect()));
    let mut query: HashMap<String, Vec<String>> = all.collect();
    for (EventText(name), EventText(value)) in last.into_iter().flatten() {
        query.entry(name).or_insert_with(|| vec![value]);
    }
    query
}

fn context(context: EventContext) -> ApiGatewayProxyRequestContext {
    let text = |text: Option<EventText>| text.map(|EventText(text)| text);
    let mut gateway = ApiGatewayProxyRequestContext::default();
    gateway.request_id = text(context.request_id);
    gateway.apiid = text(context.api_id);
    gateway.domain_name = text(context.domain_name);
    gateway.identity.source_ip = text(context.identity.unwrap_or_default().source_ip);
    gateway.authorizer.fields = context.authorizer.unwrap_or_default();
    gateway
}

/// A string of an event. Unpaired surrogates, which `serde_json` rejects in a `String`, become
/// U+FFFD.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventText(String);

impl EventText {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for EventText {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl<'de> Deserialize<'de> for EventText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(TextVisitor)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = EventText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<EventText, E> {
        Ok(EventText(String::from_utf8_lossy(bytes).into_owned()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<EventText, E> {
        Ok(EventText(text.to_owned()))
    }
}

//! Emulates what API Gateway does with a request.
//!
//! The gateway matches the route, calls the authorizer, caches its result for the template's number
//! of seconds unless the route's authorizer is uncached, and passes its context to the function. It
//! returns its own errors as the template's `GatewayResponses`.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    net::SocketAddr,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use authorizer::{Authorizer, AuthorizerEvent};
use aws_lambda_events::{apigw::ApiGatewayProxyRequestContext, iam::IamPolicyEffect};
use axum::body::HttpBody;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header, uri::Authority};
use karta_shared::{
    App,
    clock::Clock,
    domain::{Entropy, Timestamp, canonical_host},
    entropy::uuid,
    http::decode_unreserved,
};
use lambda_http::{Body, Request, RequestExt, request::RequestContext};
use quick_cache::sync::Cache;
use regex::Regex;
use serde_json::{Value, json};

use crate::{
    registry::{self, Handler, Mounted},
    template::{AuthorizerMode, GatewayResponse, Template, TemplateRoute},
};

/// API Gateway's limit on a request body.
const MAX_BODY_BYTES: usize = 10 * 1024 * 1024;
const MAX_CACHED_RESULTS: usize = 10_000;
const STAGE: &str = "local";
/// The header in which API Gateway returns a function's `WWW-Authenticate`.
const REMAPPED_CHALLENGE: &str = "x-amzn-remapped-www-authenticate";

type Routes = matchit::Router<Vec<GatewayRoute>>;

pub struct Gateway {
    routes: Routes,
    authorizer: Authorizer,
    validation: Regex,
    results: Cache<[u8; 32], AuthorizerResult>,
    cached_for: Duration,
    responses: HashMap<String, GatewayResponse>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

struct GatewayRoute {
    method: Method,
    handler: Handler,
    authorizer: Option<AuthorizerMode>,
}

/// The authorizer's result for a request, and its time.
#[derive(Clone)]
struct AuthorizerResult {
    at: Timestamp,
    /// `None` if access is denied.
    context: Option<Arc<HashMap<String, Value>>>,
}

/// The gateway's own errors, with their names in the template.
#[derive(Debug, Clone, Copy)]
enum GatewayError {
    MissingAuthenticationToken,
    Unauthorized,
    AccessDenied,
    AuthorizerFailure,
    RequestTooLarge,
    BadRequestBody,
}

impl GatewayError {
    const ALL: [Self; 6] = [
        Self::MissingAuthenticationToken,
        Self::Unauthorized,
        Self::AccessDenied,
        Self::AuthorizerFailure,
        Self::RequestTooLarge,
        Self::BadRequestBody,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::MissingAuthenticationToken => "MISSING_AUTHENTICATION_TOKEN",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::AccessDenied => "ACCESS_DENIED",
            Self::AuthorizerFailure => "AUTHORIZER_FAILURE",
            Self::RequestTooLarge => "REQUEST_TOO_LARGE",
            Self::BadRequestBody => "BAD_REQUEST_BODY",
        }
    }
}

impl Gateway {
    /// Mounts the template's routes. Fails if the template and the registry name different
    /// functions.
    pub fn new(app: &App, template: &Template) -> Result<Self> {
        Self::with_handlers(app, template, registry::handlers(app))
    }

    /// Like [`new`](Self::new), with these handlers by the name of their function.
    pub fn with_handlers(
        app: &App,
        template: &Template,
        mut handlers: BTreeMap<&'static str, Vec<Mounted>>,
    ) -> Result<Self> {
        let settings = &template.authorizer;
        let mut routes_by_path: HashMap<String, Vec<GatewayRoute>> = HashMap::new();
        for function in &template.functions {
            if function.binary == settings.binary {
                ensure!(
                    function.binary == authorizer::NAME,
                    "template.yaml names {} as its authorizer: it must be {}",
                    function.binary,
                    authorizer::NAME
                );
                continue;
            }
            if function.routes.is_empty() {
                continue;
            }
            let mounted = handlers.remove(function.binary.as_str());
            let mounted = mounted.with_context(|| {
                format!("template.yaml lists {}, which has no handler in registry.rs", function.binary)
            })?;
            for route in &function.routes {
                let (method, handler) = (route.method.clone(), handler(&mounted, route)?);
                let gateway_route = GatewayRoute { method, handler, authorizer: route.authorizer };
                routes_by_path.entry(route.path.clone()).or_default().push(gateway_route);
            }
            let is_routed = |(method, path): &(Method, &str)| {
                function.routes.iter().any(|route| route.method == *method && route.path == *path)
            };
            if let Some(extra) = mounted.iter().find(|mounted| !mounted.route.as_ref().is_none_or(is_routed)) {
                return Err(anyhow!("the route {} of {} is not in template.yaml", extra.name, function.binary));
            }
        }
        if let Some(name) = handlers.keys().next() {
            return Err(anyhow!("the handler {name} is not in template.yaml"));
        }
        let mut routes = Routes::new();
        for (path, of_path) in routes_by_path {
            routes.insert(&path, of_path).with_context(|| format!("invalid path {path} in template.yaml"))?;
        }
        let responses: HashMap<_, _> = template.gateway_responses.clone().into_iter().collect();
        for error in GatewayError::ALL {
            ensure!(responses.contains_key(error.name()), "template.yaml has no GatewayResponse {}", error.name());
        }
        Ok(Self {
            routes,
            authorizer: Authorizer::new(app.for_function(authorizer::NAME)),
            validation: Regex::new(&format!("^(?:{})$", settings.validation_expression))
                .context("ValidationExpression in template.yaml must be a regular expression")?,
            results: Cache::new(MAX_CACHED_RESULTS),
            cached_for: Duration::from_secs(settings.cached_seconds),
            responses,
            clock: Arc::clone(&app.clock),
            entropy: Arc::clone(&app.entropy),
        })
    }

    /// Empties the authorizer cache, as a flush of the stage's authorizer cache does in API
    /// Gateway. A result that is being computed is still cached.
    pub fn flush_authorizer_cache(&self) {
        self.results.clear();
    }

    pub async fn answer(&self, peer: SocketAddr, request: axum::extract::Request) -> axum::response::Response {
        let request_id = uuid(&*self.entropy);
        let host = match requested_host(&request) {
            Ok(host) => host,
            Err(message) => return invalid_host(message, &request_id),
        };
        match self.route(peer, request, host, &request_id).await {
            Ok(response) => response,
            Err(error) => self.error_response(error, &request_id),
        }
    }

    async fn route(
        &self,
        peer: SocketAddr,
        request: axum::extract::Request,
        host: Option<String>,
        request_id: &str,
    ) -> Result<axum::response::Response, GatewayError> {
        let (parts, body) = request.into_parts();
        // Before the route lookup: the error for an unreadable body must not reveal whether a route
        // exists.
        let body = read_body(body).await?;
        let path = decode_unreserved(parts.uri.path());
        let matched = self.routes.at(&path).map_err(|_| GatewayError::MissingAuthenticationToken)?;
        let route = matched.value.iter().find(|route| route.method == parts.method);
        let route = route.ok_or(GatewayError::MissingAuthenticationToken)?;
        let context = match route.authorizer {
            Some(AuthorizerMode::Cached) => Some(self.authorize(&parts.headers, &parts.method, &parts.uri).await?),
            Some(AuthorizerMode::Uncached) => {
                let headers = parts.headers.iter().map(|(name, value)| {
                    (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                });
                let event = AuthorizerEvent::request(headers, method_arn(&parts.method, &parts.uri));
                Some(self.call_authorizer(&event).await?.context.ok_or(GatewayError::AccessDenied)?)
            }
            None => None,
        };

        let variables: HashMap<String, String> =
            matched.params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut gateway = ApiGatewayProxyRequestContext::default();
        gateway.request_id = Some(request_id.to_owned());
        gateway.stage = Some(STAGE.to_owned());
        gateway.domain_name = host;
        gateway.identity.source_ip = Some(peer.ip().to_canonical().to_string());
        if let Some(context) = context {
            gateway.authorizer.fields.clone_from(&context);
        }
        let mut event = Request::new(match String::from_utf8(body) {
            Ok(text) if text.is_empty() => Body::Empty,
            Ok(text) => Body::Text(text),
            Err(bytes) => Body::Binary(bytes.into_bytes()),
        });
        *event.method_mut() = parts.method;
        *event.headers_mut() = parts.headers;
        let event = event
            .with_query_string_parameters(query(&parts.uri))
            .with_path_parameters(variables)
            .with_request_context(RequestContext::ApiGatewayV1(gateway));
        // Spawned, because a Lambda function continues after its client disconnects.
        let response = tokio::spawn((route.handler)(event)).await;
        let (mut parts, body) = response.unwrap_or_else(|fault| resume_unwind(fault.into_panic())).into_parts();
        if let Some(challenge) = parts.headers.remove(header::WWW_AUTHENTICATE) {
            parts.headers.insert(REMAPPED_CHALLENGE, challenge);
        }
        // A stream is passed on chunk by chunk. A client that leaves drops it.
        Ok(axum::response::Response::from_parts(parts, axum::body::Body::new(body)))
    }

    /// Returns the authorizer's context for the header, from the cache if the result is fresh.
    /// Faults are not cached.
    async fn authorize(
        &self,
        headers: &HeaderMap,
        method: &Method,
        uri: &Uri,
    ) -> Result<Arc<HashMap<String, Value>>, GatewayError> {
        let mut sent = headers.get_all(header::AUTHORIZATION).iter();
        let header = sent.next().filter(|_| sent.next().is_none()).and_then(|value| value.to_str().ok());
        let header = header.filter(|header| self.validation.is_match(header)).ok_or(GatewayError::Unauthorized)?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, header.as_bytes());
        let cache_key: [u8; 32] = digest.as_ref().try_into().map_err(|_| GatewayError::AuthorizerFailure)?;
        let cached = self.results.get(&cache_key).filter(|result| self.clock.now().since(result.at) < self.cached_for);
        let result = if let Some(result) = cached {
            result
        } else {
            let result = self.call_authorizer(&AuthorizerEvent::token(header, method_arn(method, uri))).await?;
            self.results.insert(cache_key, result.clone());
            result
        };
        result.context.ok_or(GatewayError::AccessDenied)
    }

    async fn call_authorizer(&self, event: &AuthorizerEvent) -> Result<AuthorizerResult, GatewayError> {
        // Boxed, as a handler's future is: the compiler limits how deep the types of futures nest.
        let answer = Box::pin(self.authorizer.authorize(event)).await.map_err(|fault| {
            tracing::error!(route = authorizer::NAME, %fault, "authorization failed");
            GatewayError::AuthorizerFailure
        })?;
        let allowed =
            answer.policy_document.statement.iter().all(|statement| statement.effect == IamPolicyEffect::Allow);
        let context = match answer.context {
            Value::Object(context) if allowed => Some(Arc::new(context.into_iter().collect())),
            _ => None,
        };
        Ok(AuthorizerResult { at: self.clock.now(), context })
    }

    fn error_response(&self, error: GatewayError, request_id: &str) -> axum::response::Response {
        let (gateway_response, name) = (&self.responses[error.name()], error.name());
        let status = gateway_response.status;
        tracing::info!(request_id, route = "gateway", status, gateway_response = name, "request");
        let body = gateway_response.body.replace("$context.requestId", request_id);
        let mut response = axum::response::Response::new(axum::body::Body::from(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in &gateway_response.headers {
            let value = if value == "context.requestId" { request_id } else { value.trim_matches('\'') };
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("authorizer", &self.authorizer).finish_non_exhaustive()
    }
}

fn method_arn(method: &Method, uri: &Uri) -> String {
    format!("arn:aws:execute-api:local:000000000000:karta/{STAGE}/{method}{}", uri.path())
}

/// Returns the handler of a route of the template.
fn handler(mounted: &[Mounted], route: &TemplateRoute) -> Result<Handler> {
    let serves = |(method, path): &(Method, &str)| route.method == *method && route.path == *path;
    let found = mounted.iter().find(|mounted| mounted.route.as_ref().is_none_or(serves));
    let found = found.with_context(|| {
        format!("template.yaml lists {} {}, which its function does not serve", route.method, route.path)
    })?;
    // One handler serves all preflights.
    ensure!(
        route.method == Method::OPTIONS || found.name == route.name,
        "{} {} is named {} in template.yaml and {} in its function: use one name",
        route.method,
        route.path,
        route.name,
        found.name
    );
    Ok(Arc::clone(&found.handler))
}

/// Returns the host that the client requested: the authority of an absolute URI, or else of the `Host`
/// header (RFC 9112 §3.2). `None` if an HTTP/1.0 request names none. Fails with the message for the
/// client.
fn requested_host(request: &axum::extract::Request) -> Result<Option<String>, &'static str> {
    const INVALID: &str = "Host must be a host name or an IP address, with or without a port";
    let mut sent = request.headers().get_all(header::HOST).iter();
    let header = match (sent.next(), sent.next()) {
        (Some(host), None) => Some(host.to_str().map_err(|_| INVALID)?),
        (None, _) if request.version() != Version::HTTP_11 => None,
        _ => return Err("Send exactly one Host header"),
    };
    let authority = request.uri().authority().map(Authority::as_str);
    if header.into_iter().chain(authority).all(is_host_or_empty) {
        Ok(authority.or(header).map(ToOwned::to_owned))
    } else {
        Err(INVALID)
    }
}

/// Returns whether the text is empty or a host, with an optional port (RFC 9110 §7.2). A host has the
/// notation of the internal routes' allowlist.
fn is_host_or_empty(text: &str) -> bool {
    text.is_empty() || canonical_host(text.strip_suffix(':').unwrap_or(text)).is_some()
}

/// Returns the response to a request whose `Host` header is missing, repeated or invalid. API
/// Gateway rejects it before it applies any of its settings.
fn invalid_host(message: &str, request_id: &str) -> axum::response::Response {
    let body = json!({ "error": "invalid_host", "message": message, "request_id": request_id });
    let mut response = axum::response::Response::new(axum::body::Body::from(body.to_string()));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// Reads a body to its end, even if it is too large: a client that is cut off while it sends may
/// miss the response.
async fn read_body(mut body: axum::body::Body) -> Result<Vec<u8>, GatewayError> {
    let (mut bytes, mut size) = (Vec::new(), 0);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let data = frame.map_err(|_| GatewayError::BadRequestBody)?.into_data().unwrap_or_default();
        size += data.len();
        if size <= MAX_BODY_BYTES {
            bytes.extend_from_slice(&data);
        } else {
            bytes = Vec::new();
        }
    }
    if size <= MAX_BODY_BYTES { Ok(bytes) } else { Err(GatewayError::RequestTooLarge) }
}

fn query(uri: &Uri) -> HashMap<String, Vec<String>> {
    let mut parameters: HashMap<String, Vec<String>> = HashMap::new();
    let pairs: Vec<(String, String)> =
        uri.query().and_then(|query| serde_urlencoded::from_str(query).ok()).unwrap_or_default();
    for (name, value) in pairs {
        parameters.entry(name).or_default().push(value);
    }
    parameters
}

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use lambda_http::{
    Request, RequestExt, Response,
    aws_lambda_events::{apigw::ApiGatewayProxyRequestContext, query_map::QueryMap},
    request::RequestContext,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::time::timeout;

use super::{
    Access, ApiResponse, AuthorizationRequest, AuthorizerContext, Call, CallerIdentity, Error, FromPath, ResponseBody,
    Route, access,
    access::Signed,
    api_response::ApiResponseBody,
    call::RequestMeta,
    idempotency::IdempotencyKey,
    json::{self, Json},
    query,
    reader::{self, Texts},
    stream::StreamLog,
};
use crate::{
    app::App,
    auth,
    domain::{Id, finds_secret},
    entropy::uuid,
};

const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";
/// Headers of a stream that keep proxies from buffering it.
const UNBUFFERED: &[(&str, &str)] = &[("x-accel-buffering", "no")];
/// Maximum pause before the second attempt. It doubles before every later attempt.
const FIRST_MAX_PAUSE: Duration = Duration::from_millis(10);
/// Upper bound of the doubled pauses.
const MAX_PAUSE: Duration = Duration::from_millis(320);

/// Returns the response to a request. Never fails: every error has a response.
pub async fn serve<R: Route>(app: &App, request: Request) -> Response<ResponseBody> {
    let started = Instant::now();
    let context = gateway_context(&request);
    let meta = Arc::new(meta(app, &request, context));
    // The authorizer sees only one value of a repeated header, so its verdict does not count.
    let trusted = context.filter(|_| !is_repeated(request.headers(), &header::AUTHORIZATION));
    let caller = trusted.and_then(|context| AuthorizerContext::from_context(&context.authorizer.fields).ok());
    let key_ids = caller.as_ref().map(|caller| (caller.principal.organization_id, caller.principal.api_key_id));

    let outcome = if R::CORS.is_some() && !R::STREAMS && request.method() == Method::OPTIONS {
        Ok((StatusCode::NO_CONTENT, ApiResponseBody::Bytes(Vec::new())))
    } else {
        let caller = access::authorize_address(caller, meta.address());
        let deadline = app.deadlines.scale(R::DEADLINE);
        match timeout(deadline, authorize_and_run::<R>(app, &request, caller, &meta)).await {
            Ok(outcome) => outcome
                .inspect(|answer| {
                    let status = answer.status.as_u16();
                    debug_assert!(status == R::STATUS || R::FURTHER_STATUSES.contains(&status), "{}", R::NAME);
                    debug_assert!(R::STREAMS || matches!(answer.body, ApiResponseBody::Bytes(_)), "{}", R::NAME);
                })
                .map(|answer| (answer.status, answer.body))
                .map_err(|error| error.scrubbed(&meta)),
            Err(_) => Err(Error::TimedOut(deadline)),
        }
    };
    log::<R>(&meta, key_ids, &outcome, started);
    respond::<R>(outcome, &meta.request_id, started)
}

/// Checks credential, kind and scope, then query, body, idempotency key and path, and runs the
/// handler.
async fn authorize_and_run<R: Route>(
    app: &App,
    request: &Request,
    caller: Option<AuthorizerContext>,
    meta: &Arc<RequestMeta>,
) -> Result<ApiResponse<R::Output>, Error> {
    let variables = request.path_parameters_ref();
    let project = variables.and_then(|variables| variables.first("ref"));
    let signed = Some(Signed { headers: request.headers(), body: request.body().as_ref(), body_max: R::BODY_MAX });
    let caller = R::Access::authorize(AuthorizationRequest { app, caller, project, meta, signed }).await?;

    let query = query::read(request.query_string_parameters_ref())?;
    let json = json_body::<R>(request)?;
    let bearer = meta.bearer.as_ref().map(ExposeSecret::expose_secret);
    let texts = if R::ANY_TEXT { Texts::Any } else { Texts::Checked { bearer } };
    let body = reader::read("field", &json, texts)?;
    let idempotency = idempotency_key::<R>(request, R::Access::identity(&caller), meta, &json)?;
    let path = R::Path::from_path(variables.unwrap_or(&QueryMap::default())).ok_or(Error::NotFound)?;

    let call = Call { caller, path, query, body, now: app.clock.now(), meta: Arc::clone(meta), idempotency };
    let mut max_pause = FIRST_MAX_PAUSE;
    for _ in 1..R::MAX_ATTEMPTS {
        match R::handle(app, &call).await {
            Err(Error::WriteConflict) => tokio::time::sleep(random_pause(max_pause, app)).await,
            outcome => return outcome,
        }
        max_pause = MAX_PAUSE.min(max_pause * 2);
    }
    R::handle(app, &call).await
}

/// Returns a random pause up to `max_pause`, so that conflicting requests do not meet again.
fn random_pause(max_pause: Duration, app: &App) -> Duration {
    let mut random = [0];
    app.entropy.fill(&mut random);
    max_pause * u32::from(random[0]) / u32::from(u8::MAX)
}

fn json_body<R: Route>(request: &Request) -> Result<Json<'_>, Error> {
    let bytes = request.body().as_ref();
    let reads_none = matches!(*request.method(), Method::GET | Method::HEAD | Method::DELETE);
    let is_blank = bytes.len() <= R::BODY_MAX && bytes.trim_ascii().is_empty();
    if reads_none || (R::BODY_MAY_BE_EMPTY && is_blank) {
        return Ok(Json::Object(Vec::new()));
    }
    let mut encodings = request.headers().get_all(header::CONTENT_ENCODING).iter();
    // `identity`, even repeated, means no encoding.
    let is_none = |coding: &[u8]| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity");
    if !bytes.is_empty()
        && encodings
            .any(|listed| !listed.as_bytes().split(|byte| *byte == b',').all(|coding| is_none(coding.trim_ascii())))
    {
        return Err(Error::UnsupportedEncoding);
    }
    if bytes.len() > R::BODY_MAX {
        return Err(Error::BodyTooLarge { limit: R::BODY_MAX });
    }
    json::parse(bytes)
}

fn idempotency_key<R: Route>(
    request: &Request,
    identity: Option<&dyn CallerIdentity>,
    meta: &RequestMeta,
    body: &Json<'_>,
) -> Result<Option<IdempotencyKey>, Error> {
    match identity {
        Some(identity) if R::IDEMPOTENT => {
            let variables: BTreeMap<_, _> =
                request.path_parameters_ref().into_iter().flat_map(QueryMap::iter).collect();
            let target = format!("{} {variables:?}", R::NAME);
            IdempotencyKey::new(request.headers(), identity, meta, &target, body)
        }
        _ => Ok(None),
    }
}

fn gateway_context(request: &Request) -> Option<&ApiGatewayProxyRequestContext> {
    match request.request_context_ref() {
        Some(RequestContext::ApiGatewayV1(context)) => Some(context),
        _ => None,
    }
}

fn meta(app: &App, request: &Request, context: Option<&ApiGatewayProxyRequestContext>) -> RequestMeta {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let authorization =
        header(header::AUTHORIZATION).filter(|_| !is_repeated(request.headers(), &header::AUTHORIZATION));
    let bearer = authorization.and_then(auth::bearer).map(SecretString::from);
    let request_id = context.and_then(|context| context.request_id.clone()).filter(|id| is_plain(id));
    let user_agent = header(header::USER_AGENT);
    let mut meta = RequestMeta {
        request_id: request_id.unwrap_or_else(|| uuid(&*app.entropy)),
        ip_address: context.and_then(|context| context.identity.source_ip.clone()),
        host: context.and_then(|context| context.domain_name.clone()),
        api_id: context.and_then(|context| context.apiid.clone()),
        user_agent: None,
        last_event_id: request.headers().get("last-event-id").and_then(|id| id.to_str().ok()).map(ToOwned::to_owned),
        bearer,
        service: OnceLock::new(),
    };
    meta.user_agent = user_agent.map(|text| {
        let scrubbed = meta.scrub(text);
        // The scrubber does not decode, and a client may percent-encode a secret.
        let is_encoded = text.contains('%') && finds_secret(&scrubbed);
        if is_encoded { "[redacted]".to_owned() } else { scrubbed.chars().take(256).collect() }
    });
    meta
}

fn is_repeated(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get_all(name).iter().nth(1).is_some()
}

/// Returns whether the request id is safe for headers, logs and audit events: API Gateway lets
/// clients choose it.
fn is_plain(request_id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' || byte == b'=';
    !request_id.is_empty() && request_id.len() <= 128 && request_id.bytes().all(plain)
}

fn log<R: Route>(
    meta: &RequestMeta,
    key_ids: Option<(Id, Id)>,
    outcome: &Result<(StatusCode, ApiResponseBody), Error>,
    started: Instant,
) {
    let status = outcome.as_ref().map_or_else(Error::status, |(status, _)| *status).as_u16();
    let latency_ms = started.elapsed().as_secs_f64() * 1_000.0;
    let (organization_id, api_key_id) = key_ids.map(|(org, key)| (org.get(), key.get())).unzip();
    let request_id = meta.request_id.as_str();
    let (route, service) = (R::NAME, meta.service.get());
    let fault = outcome.as_ref().err().and_then(Error::fault);
    if let Some(fault) = fault.as_deref() {
        tracing::error!(request_id, route, status, organization_id, api_key_id, service, latency_ms, fault, "request");
    } else {
        tracing::info!(request_id, route, status, organization_id, api_key_id, service, latency_ms, "request");
    }
}

fn respond<R: Route>(
    outcome: Result<(StatusCode, ApiResponseBody), Error>,
    request_id: &str,
    started: Instant,
) -> Response<ResponseBody> {
    let (content_type, cache_control, further) = match &outcome {
        // Responses may hold secrets or short-lived state. A route may override this header.
        Ok((_, ApiResponseBody::Bytes(_))) => (R::CONTENT_TYPE, Some("no-store"), R::HEADERS),
        Ok((_, ApiResponseBody::Events(_))) => (EVENT_STREAM, Some("no-store, no-transform"), UNBUFFERED),
        // A cache may keep a 404 for a resource that is created later.
        Err(_) => ("application/json", Some("no-store"), &[][..]),
    };
    let retry_after = outcome.as_ref().err().and_then(Error::retry_after_seconds);
    let (status, body) = outcome.unwrap_or_else(|error| {
        let mut body = error.body();
        body["request_id"] = Value::from(request_id);
        (error.status(), ApiResponseBody::Bytes(body.to_string().into_bytes()))
    });
    let is_empty = matches!(&body, ApiResponseBody::Bytes(body) if body.is_empty());
    let mut response = Response::new(match body {
        ApiResponseBody::Bytes(body) => ResponseBody::complete(body),
        ApiResponseBody::Events(events) => {
            ResponseBody::stream(events, R::KEEP_ALIVE, StreamLog::new(R::NAME, request_id, started))
        }
    });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if !is_empty {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    if let Some(cache_control) = cache_control {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache_control));
    }
    for (name, value) in further {
        headers.insert(*name, HeaderValue::from_static(value));
    }
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert("x-request-id", id);
    }
    if status == StatusCode::UNAUTHORIZED {
        // API Gateway renames it to `x-amzn-remapped-www-authenticate`.
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(cors) = R::CORS.filter(|_| status != StatusCode::UNAUTHORIZED) {
        cors.insert(headers);
    } else if [StatusCode::UNAUTHORIZED, StatusCode::NOT_FOUND].contains(&status) {
        // The gateway's own 401 and 404 have this header. A difference would reveal that a key is
        // valid from another address, or that an internal route exists.
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    response
}

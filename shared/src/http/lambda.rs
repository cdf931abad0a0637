//! Runs routes as Lambda functions.

use std::{future::Future, pin::Pin, process::ExitCode, sync::Arc};

use http::{Method, Response};
use http_body_util::{BodyDataStream, BodyExt};
use lambda_http::{Body, Request, aws_lambda_events::apigw::ApiGatewayProxyResponse};
use lambda_runtime::{FunctionResponse, LambdaEvent, MetadataPrelude, StreamResponse, service_fn};

use super::{
    Access, AnyQuery, ApiResponse, AuthorizationRequest, Call, Cors, Error, GatewayEvent, NoBody, Public, ResponseBody,
    Route, serve,
};
use crate::{
    app::{App, Needs},
    config::{self, ConfigError, Secret},
    telemetry,
};

/// Runs a route as a Lambda function. Called by the function's `main`.
pub async fn run<R: Route>() -> ExitCode {
    RouteTable::only::<R>().run().await
}

/// Returns the response of a one-route function to an event of API Gateway.
pub async fn serve_event<R: Route>(app: &App, event: GatewayEvent) -> ApiGatewayProxyResponse {
    proxy_response(serve::<R>(app, event.into_request()).await).await
}

type Serving<'a> = Pin<Box<dyn Future<Output = Response<ResponseBody>> + Send + 'a>>;
type Serve = for<'a> fn(&'a App, Request) -> Serving<'a>;

/// The routes of a function, by method and path.
///
/// The template has an event for each entry, with the route's name in camel case and an `OPTIONS`
/// event with the suffix `Preflight` for each [`Preflight`]. The local runner mounts the table and
/// fails if the two differ.
#[derive(Debug)]
pub struct RouteTable {
    function: &'static str,
    routes: Vec<TableRoute>,
    /// Serves requests without an entry.
    fallback: Serve,
    secrets: Vec<Secret>,
    check_settings: fn() -> Result<(), ConfigError>,
    uses_store: bool,
    /// Whether a route of the table streams. The whole function does then.
    streams: bool,
    has_empty_responses: bool,
}

/// An entry of a [`RouteTable`].
#[derive(Debug)]
pub struct TableRoute {
    /// [`Route::NAME`]
    pub name: &'static str,
    pub method: Method,
    /// The path, with variables in braces.
    pub path: &'static str,
    serve: Serve,
}

impl TableRoute {
    /// Like [`serve()`] for this route.
    pub fn serve<'a>(&self, app: &'a App, request: Request) -> Serving<'a> {
        (self.serve)(app, request)
    }
}

impl RouteTable {
    /// Creates an empty table; `function` is the name of the function's folder.
    pub fn new(function: &'static str) -> Self {
        Self {
            function,
            routes: Vec::new(),
            fallback: serve_boxed::<Unlisted>,
            secrets: Vec::new(),
            check_settings: || Ok(()),
            uses_store: false,
            streams: false,
            has_empty_responses: false,
        }
    }

    /// Creates the table of a function with one route, which serves every request.
    fn only<R: Route>() -> Self {
        Self { fallback: serve_boxed::<R>, ..Self::new(R::NAME).with::<R>() }
    }

    /// Adds a route.
    #[must_use]
    pub fn route<R: Route>(self, method: Method, path: &'static str) -> Self {
        let mut table = self.with::<R>();
        table.routes.push(TableRoute { name: R::NAME, method, path, serve: serve_boxed::<R> });
        table
    }

    fn with<R: Route>(mut self) -> Self {
        for secret in [R::Access::SECRETS, R::SECRETS].concat() {
            if !self.secrets.contains(&secret) {
                self.secrets.push(secret);
            }
        }
        self.uses_store |= R::USES_STORE;
        self.streams |= R::STREAMS;
        self.has_empty_responses |= R::STATUS == 204;
        self
    }

    /// Checks further settings when the function starts.
    #[must_use]
    pub fn with_settings(self, check_settings: fn() -> Result<(), ConfigError>) -> Self {
        Self { check_settings, ..self }
    }

    /// Returns the name of the function.
    pub fn function(&self) -> &'static str {
        self.function
    }

    pub fn into_routes(self) -> Vec<TableRoute> {
        self.routes
    }

    /// Fails if the function streams and a route answers without a body: clients hang on an empty
    /// streamed response.
    pub fn check(&self) -> Result<(), String> {
        if self.streams && self.has_empty_responses {
            return Err(format!("{}: a function that streams cannot have a route with status 204", self.function));
        }
        Ok(())
    }

    /// Returns the response to an event of API Gateway. An event without an entry gets the response
    /// of an unknown path.
    pub async fn serve_event(&self, app: &App, event: GatewayEvent) -> Response<ResponseBody> {
        let (method, path) = (event.method(), event.resource().unwrap_or_default());
        let route = self.routes.iter().find(|route| route.method == method && route.path == path);
        let serve = route.map_or(self.fallback, |route| route.serve);
        serve(app, event.into_request()).await
    }

    /// Runs the function. Called by its `main`.
    pub async fn run(self) -> ExitCode {
        telemetry::exit_code(self.function, self.serve_events().await)
    }

    async fn serve_events(self) -> Result<(), lambda_runtime::Error> {
        telemetry::init(telemetry::Output::Stdout, "info")?;
        self.check()?;
        (self.check_settings)()?;
        let needs = Needs { secrets: self.secrets.clone(), store: self.uses_store };
        let app = App::deployed(self.function, needs).await?;
        let streams = self.streams && config::streams_responses()?;
        let function = Arc::new((self, app));
        lambda_runtime::run_concurrent(service_fn(move |event: LambdaEvent<GatewayEvent>| {
            let function = Arc::clone(&function);
            async move {
                let (table, app) = &*function;
                let response = table.serve_event(app, event.payload).await;
                Ok::<_, lambda_runtime::Error>(if streams {
                    streamed(response)
                } else {
                    FunctionResponse::BufferedResponse(proxy_response(response).await)
                })
            }
        }))
        .await
    }
}

/// Boxed, because the runtime moves its service's future several times.
fn serve_boxed<R: Route>(app: &App, request: Request) -> Serving<'_> {
    Box::pin(serve::<R>(app, request))
}

/// Answers the CORS preflights of data-plane routes. They belong to a function that does not
/// stream.
#[derive(Debug)]
pub struct Preflight;

impl Route for Preflight {
    const NAME: &'static str = "preflight";
    const CORS: Option<Cors> = Some(Cors::DATA_PLANE);
    const USES_STORE: bool = false;
    const STATUS: u16 = 204;
    type Access = Public;
    type Path = ();
    type Query = AnyQuery;
    type Body = NoBody;
    type Output = ();

    async fn handle(_: &App, _: &Call<Self>) -> Result<ApiResponse<()>, Error> {
        Ok(ApiResponse::no_content())
    }
}

/// Answers requests that a table does not list.
struct Unlisted;

impl Route for Unlisted {
    const NAME: &'static str = "unlisted";
    const USES_STORE: bool = false;
    type Access = Self;
    type Path = ();
    type Query = AnyQuery;
    type Body = NoBody;
    type Output = ();

    async fn handle(_: &App, _: &Call<Self>) -> Result<ApiResponse<()>, Error> {
        Err(Error::UnknownRoute)
    }
}

impl Access for Unlisted {
    type Caller = ();

    async fn authorize(_: AuthorizationRequest<'_>) -> Result<(), Error> {
        Err(Error::UnknownRoute)
    }
}

type LambdaResponse = FunctionResponse<ApiGatewayProxyResponse, BodyDataStream<ResponseBody>>;

/// Converts a response to the format of streaming functions: the head as JSON, eight NUL bytes and
/// the body.
fn streamed(response: Response<ResponseBody>) -> LambdaResponse {
    let (parts, body) = response.into_parts();
    let head = MetadataPrelude { status_code: parts.status, headers: parts.headers, cookies: Vec::new() };
    FunctionResponse::StreamingResponse(StreamResponse { metadata_prelude: head, stream: BodyDataStream::new(body) })
}

/// Converts a response to API Gateway's format for buffered functions.
async fn proxy_response(response: Response<ResponseBody>) -> ApiGatewayProxyResponse {
    let (parts, body) = response.into_parts();
    let Ok(body) = body.collect().await;
    let body = text_body(body.to_bytes().into());
    let mut answer = ApiGatewayProxyResponse::default();
    answer.status_code = parts.status.as_u16().into();
    answer.multi_value_headers = parts.headers;
    answer.is_base64_encoded = matches!(body, Body::Binary(_));
    answer.body = (!matches!(body, Body::Empty)).then_some(body);
    answer
}

/// Returns the body as text, because API Gateway would base64-encode bytes.
fn text_body(body: Vec<u8>) -> Body {
    match String::from_utf8(body) {
        Ok(text) if text.is_empty() => Body::Empty,
        Ok(text) => Body::Text(text),
        Err(bytes) => Body::Binary(bytes.into_bytes()),
    }
}

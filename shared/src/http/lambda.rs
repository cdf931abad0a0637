//! Runs routes as Lambda functions.

use std::process::ExitCode;

use http::Response;
use http_body_util::{BodyDataStream, BodyExt};
use lambda_http::{Body, aws_lambda_events::apigw::ApiGatewayProxyResponse};
use lambda_runtime::{FunctionResponse, LambdaEvent, MetadataPrelude, StreamResponse, service_fn};

use super::{Access, GatewayEvent, ResponseBody, Route, serve};
use crate::{
    app::{App, Needs},
    telemetry,
};

/// Runs a route as a Lambda function. Called by the function's `main`.
pub async fn run<R: Route>() -> ExitCode {
    telemetry::exit_code(R::NAME, serve_events::<R>().await)
}

async fn serve_events<R: Route>() -> Result<(), lambda_runtime::Error> {
    telemetry::init(telemetry::Output::Stdout, "info")?;
    let secrets = [R::Access::SECRETS, R::SECRETS].concat();
    let app = App::deployed(R::NAME, Needs { secrets, store: R::USES_STORE }).await?;
    lambda_runtime::run_concurrent(service_fn(move |event: LambdaEvent<GatewayEvent>| {
        let app = app.clone();
        async move {
            // Boxed: the runtime moves its service's future several times.
            let response = Box::pin(serve::<R>(&app, event.payload.into_request())).await;
            Ok::<_, lambda_runtime::Error>(if R::STREAMS { streamed(response) } else { buffered(response).await })
        }
    }))
    .await
}

type LambdaResponse = FunctionResponse<ApiGatewayProxyResponse, BodyDataStream<ResponseBody>>;

/// Returns the response to an event of API Gateway.
pub async fn serve_event<R: Route>(app: &App, event: GatewayEvent) -> ApiGatewayProxyResponse {
    proxy_response(serve::<R>(app, event.into_request()).await).await
}

async fn buffered(response: Response<ResponseBody>) -> LambdaResponse {
    FunctionResponse::BufferedResponse(proxy_response(response).await)
}

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

//! Connects the SDK to the store of the same process without a socket, with the requests and
//! responses of the HTTP server.

use aws_smithy_runtime_api::client::{
    http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use http::StatusCode;
use tokio::sync::{mpsc, oneshot};

use super::EmulatorServer;

/// A request to the store's thread.
pub(super) struct StoreRequest {
    request: HttpRequest,
    answer: oneshot::Sender<(StatusCode, String)>,
}

impl StoreRequest {
    /// Answers the request. Blocks while SQLite works, so only the store's thread may call it.
    pub(super) fn answer(self, server: &EmulatorServer) {
        let header = |name: &'static str| self.request.headers().get(name).unwrap_or_default();
        let body = self.request.body().bytes().unwrap_or_default();
        let answer = server.answer(header("authorization"), header("x-amz-target"), body);
        self.answer.send(answer).ok();
    }
}

#[derive(Debug, Clone)]
pub(super) struct InProcessClient(SharedHttpConnector);

impl InProcessClient {
    pub(super) fn new(store: mpsc::UnboundedSender<StoreRequest>) -> Self {
        Self(SharedHttpConnector::new(StoreHandle(store)))
    }
}

impl HttpClient for InProcessClient {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        self.0.clone()
    }
}

#[derive(Debug)]
struct StoreHandle(mpsc::UnboundedSender<StoreRequest>);

impl HttpConnector for StoreHandle {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (answer, answered) = oneshot::channel();
        let sent = self.0.send(StoreRequest { request, answer });
        HttpConnectorFuture::new(async move {
            let stopped = || ConnectorError::io("the embedded store has stopped".into());
            sent.map_err(|_| stopped())?;
            let (status, body) = answered.await.map_err(|_| stopped())?;
            let mut answer = http::Response::new(SdkBody::from(body));
            *answer.status_mut() = status;
            HttpResponse::try_from(answer).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

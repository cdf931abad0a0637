//! The SDK's way to the store of the same process: the requests and answers of the HTTP server, without a socket between.

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

/// A request on its way to the store's thread.
pub(super) struct Asked {
    request: HttpRequest,
    answer: oneshot::Sender<(StatusCode, String)>,
}

impl Asked {
    /// Blocks while SQLite works: for the store's thread only.
    pub(super) fn answer(self, server: &EmulatorServer) {
        let header = |name: &'static str| self.request.headers().get(name).unwrap_or_default();
        let body = self.request.body().bytes().unwrap_or_default();
        let answer = server.answer(header("authorization"), header("x-amz-target"), body);
        self.answer.send(answer).ok();
    }
}

/// An HTTP client for the SDK.
#[derive(Debug, Clone)]
pub(super) struct InProcess(SharedHttpConnector);

impl InProcess {
    pub(super) fn new(store: mpsc::UnboundedSender<Asked>) -> Self {
        Self(SharedHttpConnector::new(StoreHandle(store)))
    }
}

impl HttpClient for InProcess {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        self.0.clone()
    }
}

#[derive(Debug)]
struct StoreHandle(mpsc::UnboundedSender<Asked>);

impl HttpConnector for StoreHandle {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (answer, answered) = oneshot::channel();
        let sent = self.0.send(Asked { request, answer });
        HttpConnectorFuture::new(async move {
            let ended = || ConnectorError::io("the embedded store ended".into());
            sent.map_err(|_| ended())?;
            let (status, body) = answered.await.map_err(|_| ended())?;
            let mut answer = http::Response::new(SdkBody::from(body));
            *answer.status_mut() = status;
            HttpResponse::try_from(answer).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

//! Connects the SDK to the store of the same process without a socket, with the requests and
//! responses of the HTTP server.

use std::{fmt, sync::Arc};

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
    /// Sends the response to the request. Blocks while SQLite works, so only the store's thread may
    /// call it.
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
    /// `reader` serves plain reads on the caller's thread. It needs a store in which readers do not
    /// wait for writers.
    pub(super) fn new(store: mpsc::UnboundedSender<StoreRequest>, reader: Option<Arc<EmulatorServer>>) -> Self {
        Self(SharedHttpConnector::new(StoreHandle { store, reader }))
    }
}

impl HttpClient for InProcessClient {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        self.0.clone()
    }
}

struct StoreHandle {
    store: mpsc::UnboundedSender<StoreRequest>,
    reader: Option<Arc<EmulatorServer>>,
}

impl fmt::Debug for StoreHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreHandle")
    }
}

impl HttpConnector for StoreHandle {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        // A plain read takes less time than the two thread switches to the store's thread and back.
        if let Some(answer) = self.reader.as_ref().and_then(|reader| reader.try_read(&request)) {
            return HttpConnectorFuture::ready(response(answer));
        }
        let (answer, answered) = oneshot::channel();
        let sent = self.store.send(StoreRequest { request, answer });
        HttpConnectorFuture::new(async move {
            let stopped = || ConnectorError::io("the embedded store has stopped".into());
            sent.map_err(|_| stopped())?;
            response(answered.await.map_err(|_| stopped())?)
        })
    }
}

impl EmulatorServer {
    /// Returns the response to a plain read. `None` for every other request, while another thread
    /// reads, and if the read fails, for example because the database is locked.
    fn try_read(&self, request: &HttpRequest) -> Option<(StatusCode, String)> {
        let header = |name: &'static str| request.headers().get(name).unwrap_or_default();
        let (_, operation) = header("x-amz-target").rsplit_once('.')?;
        if !header("authorization").contains(&self.credential) {
            return None;
        }
        let answer = self.plain_reads.try_answer(operation, request.body().bytes()?)?;
        Some((StatusCode::OK, answer))
    }
}

fn response((status, body): (StatusCode, String)) -> Result<HttpResponse, ConnectorError> {
    let mut answer = http::Response::new(SdkBody::from(body));
    *answer.status_mut() = status;
    HttpResponse::try_from(answer).map_err(|error| ConnectorError::other(error.into(), None))
}

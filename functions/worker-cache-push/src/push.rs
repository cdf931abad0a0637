use std::{
    collections::BTreeSet,
    error::Error,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_smithy_http_client::{
    Connector,
    tls::{Provider, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::{http::HttpConnector, orchestrator::HttpRequest};
use aws_smithy_types::body::SdkBody;
use karta_shared::{
    domain::{DataPlane, Id},
    join_bounded::join_bounded,
    worker::Worker,
};
use serde_json::json;
use tokio::time::timeout;

use crate::CachePush;

const PATH: &str = "/v1/internal/cache/invalidate";
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Calls data planes with the HTTP client of the AWS SDK, which the function links anyway.
#[derive(Debug, Default)]
pub(crate) struct InvalidationClient {
    /// Built for the first call, because it reads the system's certificates, which may be missing
    /// in a run without data planes.
    connector: OnceLock<Connector>,
}

impl InvalidationClient {
    /// Asks a data plane to invalidate each of the organizations, and returns those that it
    /// confirmed. After a call without a response no further calls are made, so that the data plane
    /// cannot delay the run.
    pub(crate) async fn invalidate(self: Arc<Self>, plane: DataPlane, organizations: BTreeSet<Id>) -> BTreeSet<Id> {
        let unresponsive = Arc::new(AtomicBool::new(false));
        let calls = organizations.into_iter().map(|organization| {
            let (client, plane, unresponsive) = (Arc::clone(&self), plane.clone(), Arc::clone(&unresponsive));
            async move {
                let connector = client.connector.get_or_init(connector);
                let confirmed =
                    !unresponsive.load(Ordering::Relaxed) && call(connector, &plane, organization, &unresponsive).await;
                confirmed.then_some(organization)
            }
        });
        join_bounded(calls).await.into_iter().flatten().collect()
    }
}

/// Creates a connector without redirects, proxy and compression.
fn connector() -> Connector {
    Connector::builder()
        // A function is frozen between two runs, so a kept connection may be dead.
        .pool_max_idle_per_host(0)
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .build()
}

/// Returns whether the data plane confirmed. Only the status of its response is read.
async fn call(connector: &Connector, plane: &DataPlane, organization: Id, unresponsive: &AtomicBool) -> bool {
    let sent = timeout(RESPONSE_TIMEOUT, async {
        let response = connector.call(request(plane, organization)?).await?;
        Ok::<_, Box<dyn Error + Send + Sync>>(response.status())
    });
    let fault = match sent.await {
        Ok(Ok(status)) if status.is_success() => return true,
        Ok(Ok(status)) => format!("data plane returned {}", status.as_u16()),
        Ok(Err(error)) => {
            unresponsive.store(true, Ordering::Relaxed);
            describe(&*error)
        }
        Err(_) => {
            unresponsive.store(true, Ordering::Relaxed);
            format!("no response within {} s", RESPONSE_TIMEOUT.as_secs())
        }
    };
    let organization_id = organization.get();
    let data_plane = plane.name();
    tracing::warn!(worker = CachePush::NAME, data_plane, organization_id, fault, "data plane call failed");
    false
}

fn request(plane: &DataPlane, organization: Id) -> Result<HttpRequest, Box<dyn Error + Send + Sync>> {
    let mut request = HttpRequest::new(SdkBody::from(json!({ "organization_id": organization }).to_string()));
    request.set_method("POST")?;
    request.set_uri(format!("{}{PATH}", plane.url()))?;
    let headers = request.headers_mut();
    headers.try_insert("authorization", format!("Bearer {}", plane.expose_token()))?;
    headers.try_insert("content-type", "application/json")?;
    Ok(request)
}

fn describe(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| (**error).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

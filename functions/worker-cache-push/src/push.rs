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
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Calls data planes, with the HTTP client of the SDK, which the function links anyway.
#[derive(Debug, Default)]
pub(crate) struct InvalidationClient {
    /// Built for the first call: it reads the system's certificates, which a run without data planes may lack.
    client: OnceLock<Connector>,
}

impl InvalidationClient {
    /// Tells a data plane to forget each of the organizations, and returns those that it has confirmed. Once it has not answered it is left
    /// alone, so that it cannot hold up a run.
    pub(crate) async fn tell(self: Arc<Self>, plane: DataPlane, organizations: BTreeSet<Id>) -> BTreeSet<Id> {
        let silent = Arc::new(AtomicBool::new(false));
        let calls = organizations.into_iter().map(|organization| {
            let (caller, plane, silent) = (Arc::clone(&self), plane.clone(), Arc::clone(&silent));
            async move {
                let client = caller.client.get_or_init(client);
                let confirmed = !silent.load(Ordering::Relaxed) && call(client, &plane, organization, &silent).await;
                confirmed.then_some(organization)
            }
        });
        join_bounded(calls).await.into_iter().flatten().collect()
    }
}

/// Follows no redirect, and uses no proxy and no compression.
fn client() -> Connector {
    Connector::builder()
        // A function is frozen between two runs: a connection that was kept may be dead by then.
        .pool_max_idle_per_host(0)
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .build()
}

/// Whether the data plane confirmed. Of its answer only the status is read.
async fn call(client: &Connector, plane: &DataPlane, organization: Id, silent: &AtomicBool) -> bool {
    let sent = timeout(ANSWERED_WITHIN, async {
        let answer = client.call(request(plane, organization)?).await?;
        Ok::<_, Box<dyn Error + Send + Sync>>(answer.status())
    });
    let problem = match sent.await {
        Ok(Ok(status)) if status.is_success() => return true,
        Ok(Ok(status)) => format!("it answered {}", status.as_u16()),
        Ok(Err(error)) => {
            silent.store(true, Ordering::Relaxed);
            describe(&*error)
        }
        Err(_) => {
            silent.store(true, Ordering::Relaxed);
            format!("no answer within {} s", ANSWERED_WITHIN.as_secs())
        }
    };
    let organization_id = organization.get();
    tracing::warn!(worker = CachePush::NAME, data_plane = plane.name(), organization_id, %problem, "not told");
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

/// An error with its causes.
fn describe(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| (**error).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use karta_shared::{
    domain::{DataPlane, Id},
    together::together,
    worker::Worker,
};
use reqwest::{Client, redirect};
use serde_json::json;
use tokio::sync::OnceCell;

use crate::CachePush;

const PATH: &str = "/v1/internal/cache/invalidate";
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Calls data planes.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    /// Made with the first call: the system's certificates are read for it, which a run without data planes may lack.
    client: OnceCell<Client>,
}

impl Caller {
    /// Tells a data plane to forget each of the organizations, and returns those that it has confirmed. Once it has not answered it is left
    /// alone, so that it cannot hold up a run.
    pub(crate) async fn tell(&self, plane: &DataPlane, organizations: BTreeSet<Id>) -> BTreeSet<Id> {
        if organizations.is_empty() {
            return BTreeSet::new();
        }
        let client = match self.client.get_or_try_init(async || client()).await {
            Ok(client) => client,
            Err(error) => {
                let problem = describe(&error);
                tracing::error!(worker = CachePush::NAME, data_plane = plane.name(), %problem, "no HTTP client");
                return BTreeSet::new();
            }
        };
        let silent = Arc::new(AtomicBool::new(false));
        let calls = organizations.into_iter().map(|organization| {
            let (client, plane, silent) = (client.clone(), plane.clone(), Arc::clone(&silent));
            async move {
                let confirmed = !silent.load(Ordering::Relaxed) && call(&client, &plane, organization, &silent).await;
                confirmed.then_some(organization)
            }
        });
        together(calls).await.into_iter().flatten().collect()
    }
}

fn client() -> reqwest::Result<Client> {
    Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
        .referer(false)
        .timeout(ANSWERED_WITHIN)
        // A function is frozen between two runs: a connection that was kept may be dead by then.
        .pool_max_idle_per_host(0)
        .build()
}

/// Whether the data plane confirmed. Of its answer only the status is read.
async fn call(client: &Client, plane: &DataPlane, organization: Id, silent: &AtomicBool) -> bool {
    let sent = client
        .post(format!("{}{PATH}", plane.url()))
        .bearer_auth(plane.expose_token())
        .json(&json!({ "organization_id": organization }))
        .send()
        .await;
    let problem = match sent {
        Ok(answer) if answer.status().is_success() => return true,
        Ok(answer) => format!("it answered {}", answer.status().as_u16()),
        Err(error) => {
            silent.store(true, Ordering::Relaxed);
            describe(&error.without_url())
        }
    };
    let organization_id = organization.get();
    tracing::warn!(worker = CachePush::NAME, data_plane = plane.name(), organization_id, %problem, "not told");
    false
}

/// An error with its causes.
fn describe(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

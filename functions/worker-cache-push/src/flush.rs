use std::{fmt, sync::Arc, time::Duration};

use aws_sdk_apigateway::{Client, Config};
use karta_shared::{App, config::GatewayStage, fault, store::FlushStart, worker::Fault};
use tokio::time::sleep;

/// The cached verdicts of the gateway.
pub enum AuthorizerCache {
    /// The cache of a stage in API Gateway.
    Gateway { client: Client, stage: GatewayStage },
    /// The cache of the local runner, in this process.
    Local(Arc<dyn Fn() + Send + Sync>),
}

/// Minimum interval between flushes, across all workers of a stage.
const FLUSH_INTERVAL: Duration = Duration::from_secs(2);
/// Interval between attempts to start a flush, while another worker's flush is recent.
const START_INTERVAL: Duration = Duration::from_millis(200);
const MAX_START_ATTEMPTS: u32 = 16;

impl AuthorizerCache {
    pub fn gateway(config: impl Into<Config>, stage: GatewayStage) -> Self {
        Self::Gateway { client: Client::from_conf(config.into()), stage }
    }

    /// Deletes every cached verdict.
    pub async fn flush(&self) -> Result<(), Fault> {
        match self {
            Self::Gateway { client, stage } => {
                let GatewayStage { rest_api_id, stage } = stage;
                let sent = client.flush_stage_authorizers_cache().rest_api_id(rest_api_id).stage_name(stage).send();
                sent.await.map(drop).map_err(|error| fault::describe(&error).into())
            }
            Self::Local(clear) => {
                clear();
                Ok(())
            }
        }
    }

    /// Flushes as soon as no other flush is recent, or waits for a flush that another worker starts
    /// after this call. A flush that has already started does not count: the changes of this worker may
    /// be newer.
    pub(crate) async fn flush_or_wait(&self, app: &App) -> Result<(), Fault> {
        let mut begun_before = None;
        for _ in 0..MAX_START_ATTEMPTS {
            match app.store.begin_flush(self.stage(), app.clock.now(), FLUSH_INTERVAL).await? {
                FlushStart::Started(number) => {
                    self.flush().await?;
                    return Ok(app.store.end_flush(self.stage(), number).await?);
                }
                FlushStart::AlreadyStarted(flushes) if flushes.done > *begun_before.get_or_insert(flushes.begun) => {
                    return Ok(());
                }
                FlushStart::AlreadyStarted(_) => sleep(START_INTERVAL).await,
            }
        }
        Err("timed out waiting for the flush of another worker".into())
    }

    fn stage(&self) -> &str {
        match self {
            Self::Gateway { stage, .. } => &stage.stage,
            Self::Local(_) => "local",
        }
    }
}

impl fmt::Debug for AuthorizerCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuthorizerCache").field(&self.stage()).finish()
    }
}

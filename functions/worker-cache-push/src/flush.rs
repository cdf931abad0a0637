use std::{fmt, sync::Arc, time::Duration};

use aws_sdk_apigateway::{Client, Config};
use karta_shared::{App, config::GatewayStage, fault, store::FlushTurn, worker::Fault};
use tokio::time::sleep;

/// The verdicts that the gateway keeps.
pub enum AuthorizerCache {
    /// Of a stage in API Gateway.
    Gateway { client: Client, stage: GatewayStage },
    /// Of the local runner, in this process.
    Local(Arc<dyn Fn() + Send + Sync>),
}

/// How often all workers of a stage flush join_bounded at most.
const EVERY: Duration = Duration::from_secs(2);
/// How long a worker waits before it asks again whether it may.
const TURN_ASKED_EVERY: Duration = Duration::from_millis(200);
const TURN_ASKED_AT_MOST: u32 = 16;

impl AuthorizerCache {
    pub fn gateway(config: impl Into<Config>, stage: GatewayStage) -> Self {
        Self::Gateway { client: Client::from_conf(config.into()), stage }
    }

    /// Has every verdict forgotten.
    pub async fn flush(&self) -> Result<(), Fault> {
        match self {
            Self::Gateway { client, stage } => {
                let GatewayStage { rest_api_id, stage } = stage;
                let sent = client.flush_stage_authorizers_cache().rest_api_id(rest_api_id).stage_name(stage).send();
                sent.await.map(drop).map_err(|error| fault::describe(&error).into())
            }
            Self::Local(forget) => {
                forget();
                Ok(())
            }
        }
    }

    /// Flushes when it is this worker's turn, or waits for one that another worker begins meanwhile. One that was begun before does not
    /// count: what this worker knows of may have been written later.
    pub(crate) async fn flush_in_turn(&self, app: &App) -> Result<(), Fault> {
        let mut begun_before = None;
        for _ in 0..TURN_ASKED_AT_MOST {
            match app.store.begin_flush(self.stage(), app.clock.now(), EVERY).await? {
                FlushTurn::Ours(number) => {
                    self.flush().await?;
                    return Ok(app.store.end_flush(self.stage(), number).await?);
                }
                FlushTurn::Theirs(flushes) if flushes.done > *begun_before.get_or_insert(flushes.begun) => {
                    return Ok(());
                }
                FlushTurn::Theirs(_) => sleep(TURN_ASKED_EVERY).await,
            }
        }
        Err("other workers have begun to flush and not ended".into())
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

//! Rotates rings for Secrets Manager. Every rotation makes one move (adds or promotes a key).
//! Secrets Manager requests it in four steps, and may repeat any of them.
//!
//! A key is added one rotation before it is promoted, so that every process knows it before it is
//! used. A key leaves the ring only after everything made with it has ended.

mod secret;

use std::{collections::HashMap, process::ExitCode, sync::Arc, time::Duration};

use aws_sdk_secretsmanager::Client;
use karta_shared::{
    clock::{Clock, SystemClock},
    config::{self, Secret, SecretSource},
    domain::{Entropy, RingUse},
    entropy::OsEntropy,
    telemetry,
    worker::Fault,
};
use lambda_runtime::{LambdaEvent, service_fn};
use serde::Deserialize;

use self::secret::{SecretVersions, State};

/// The name of the function's folder, also used in logs.
pub const NAME: &str = "worker-secrets-rotation";

/// A request of Secrets Manager for one step.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request {
    pub step: RotationStep,
    pub secret_id: String,
    /// The id of the new version.
    pub client_request_token: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RotationStep {
    CreateSecret,
    SetSecret,
    TestSecret,
    FinishSecret,
}

pub struct SecretsRotation {
    client: Client,
    /// The use of each rotated ring, by the id of its secret.
    rings: HashMap<String, RingUse>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl SecretsRotation {
    pub fn new(client: Client, ids: HashMap<Secret, String>, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        let rings = ids.into_iter().filter_map(|(secret, id)| Some((id, secret.rotates_as()?))).collect();
        Self { client, rings, clock, entropy }
    }

    /// Performs one step. A repeated step changes nothing.
    pub async fn rotate(&self, request: &Request) -> Result<(), Fault> {
        let Request { step, secret_id, client_request_token: version } = request;
        let ring_use = *self.rings.get(secret_id).ok_or_else(|| {
            format!("secret {secret_id} is not a rotated ring: check the rotation settings of the stack")
        })?;
        let versions = SecretVersions { client: &self.client, secret_id };
        let rotated_at = match versions.state(version).await? {
            State::Current => return Ok(()),
            State::Pending { rotated_at } => rotated_at,
        };
        let (current, pending) = (versions.current().await?, versions.pending(version).await?);
        match (step, pending) {
            (RotationStep::CreateSecret, None) => {
                let now = self.clock.now();
                // A version that was set manually is current from its creation, and a rotated
                // version from the end of its rotation.
                let since = current.created_at.max(rotated_at);
                let age = current.created_at.and(since).map_or(Duration::ZERO, |at| now.since(at));
                let (next, moved) = current.ring.rotated(ring_use, age, now, self.random_text().into())?;
                versions.put(version, &next).await?;
                tracing::info!(worker = NAME, secret_id, ?moved, "next ring pending");
                Ok(())
            }
            // Processes fetch their rings, so no one has to be notified.
            (RotationStep::CreateSecret, Some(_)) | (RotationStep::SetSecret, _) => Ok(()),
            (RotationStep::TestSecret | RotationStep::FinishSecret, None) => {
                Err(format!("version {version} has no value").into())
            }
            (RotationStep::TestSecret, Some(next)) => Ok(current.permits(ring_use, &next)?),
            (RotationStep::FinishSecret, Some(next)) => {
                current.permits(ring_use, &next)?;
                versions.make_current(version, &current.id).await?;
                tracing::info!(worker = NAME, secret_id, current = %next.ring.current().0, "ring rotated");
                Ok(())
            }
        }
    }

    /// Returns 64 random hexadecimal digits (256 bits).
    fn random_text(&self) -> String {
        let mut halves = [[0; 16]; 2];
        for half in &mut halves {
            self.entropy.fill(half);
        }
        halves.map(|half| format!("{:032x}", u128::from_be_bytes(half))).concat()
    }
}

/// Runs the rotation as a Lambda function.
pub async fn run() -> ExitCode {
    let served = async {
        telemetry::init(telemetry::Output::Stdout, "info")?;
        let client = Client::new(&config::deployed_sdk()?);
        let ids = SecretSource::ids_from_env()?;
        let rotation = &SecretsRotation::new(client, ids, Arc::new(SystemClock), Arc::new(OsEntropy));
        let handler = move |event: LambdaEvent<Request>| async move {
            rotation.rotate(&event.payload).await.map_err(|fault| {
                tracing::error!(worker = NAME, secret_id = event.payload.secret_id, %fault, "ring rotation failed");
                lambda_runtime::Error::from("ring rotation failed")
            })
        };
        lambda_runtime::run(service_fn(handler)).await
    };
    telemetry::exit_code(NAME, served.await)
}

//! Rotates rings for Secrets Manager: every rotation takes a ring one move further, so that a key is known everywhere before anything is
//! made with it, and leaves only after everything made with it has ended.
//!
//! Secrets Manager asks in four steps, and may ask for any of them again.

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

/// The folder's name, and the function's in logs.
pub const NAME: &str = "worker-secrets-rotation";

/// A step, as Secrets Manager asks for it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request {
    pub step: RotationStep,
    pub secret_id: String,
    /// The id of the version that is to be made.
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
    /// What the rings are for that are rotated here, by the ids of their secrets.
    rings: HashMap<String, RingUse>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl SecretsRotation {
    pub fn new(client: Client, ids: HashMap<Secret, String>, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        let rings = ids.into_iter().filter_map(|(secret, id)| Some((id, secret.rotates_as()?))).collect();
        Self { client, rings, clock, entropy }
    }

    /// Does one step. Done once, it is done: asked for again it changes nothing.
    pub async fn rotate(&self, request: &Request) -> Result<(), Fault> {
        let Request { step, secret_id, client_request_token: version } = request;
        let of = *self.rings.get(secret_id).ok_or("the secret is none that is rotated here")?;
        let versions = SecretVersions { client: &self.client, secret_id };
        let rotated_at = match versions.state(version).await? {
            State::Current => return Ok(()),
            State::Pending { rotated_at } => rotated_at,
        };
        let (current, pending) = (versions.current().await?, versions.pending(version).await?);
        match (step, pending) {
            (RotationStep::CreateSecret, None) => {
                let now = self.clock.now();
                // A version that was put by hand is current from the start, one of a rotation from its end.
                let since = current.made_at.max(rotated_at);
                let age = current.made_at.and(since).map_or(Duration::ZERO, |at| now.since(at));
                let (next, moved) = current.ring.rotated(of, age, now, self.random_text().into())?;
                versions.put(version, &next).await?;
                tracing::info!(worker = NAME, secret_id, ?moved, "the next ring waits");
                Ok(())
            }
            // Whoever holds a ring fetches it: there is nobody to be told.
            (RotationStep::CreateSecret, Some(_)) | (RotationStep::SetSecret, _) => Ok(()),
            (RotationStep::TestSecret | RotationStep::FinishSecret, None) => Err("there is no next ring".into()),
            (RotationStep::TestSecret, Some(next)) => Ok(current.permits(of, &next)?),
            (RotationStep::FinishSecret, Some(next)) => {
                current.permits(of, &next)?;
                versions.make_current(version, &current.id).await?;
                tracing::info!(worker = NAME, secret_id, current = %next.ring.current().0, "rotated");
                Ok(())
            }
        }
    }

    /// 64 hexadecimal digits: 256 bits.
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
                tracing::error!(worker = NAME, secret_id = event.payload.secret_id, %fault, "not rotated");
                lambda_runtime::Error::from("not rotated")
            })
        };
        lambda_runtime::run(service_fn(handler)).await
    };
    telemetry::exit_code(NAME, served.await)
}

//! A fake Secrets Manager with versions, staging labels and the four steps of a rotation.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::State, response::IntoResponse};
use http::{HeaderMap, StatusCode};
use karta_shared::{
    clock::Clock,
    config,
    domain::{Keyring, Timestamp},
    worker::Fault,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use worker_secrets_rotation::{NAME, Request, RotationStep, SecretsRotation};

use crate::{calls::record_secret_call, harness::note_secret};

pub(crate) const STEPS: [RotationStep; 4] =
    [RotationStep::CreateSecret, RotationStep::SetSecret, RotationStep::TestSecret, RotationStep::FinishSecret];

#[derive(Debug, Default)]
struct Secret {
    /// Text and time of creation by version id. A version that a rotation has begun has no text
    /// yet.
    versions: BTreeMap<String, (Option<String>, Timestamp)>,
    /// The version that has each label.
    labels: BTreeMap<String, String>,
    rotated_at: Option<Timestamp>,
}

type Held = Arc<Mutex<BTreeMap<String, Secret>>>;

pub(crate) struct SecretsManager {
    held: Held,
    clock: Arc<dyn Clock>,
    pub(crate) url: String,
    pub(crate) client: aws_sdk_secretsmanager::Client,
    /// The client of the rotation function.
    pub(crate) rotating: aws_sdk_secretsmanager::Client,
    served: JoinHandle<()>,
}

impl SecretsManager {
    pub(crate) async fn start(clock: Arc<dyn Clock>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let held = Held::default();
        let router = Router::new().fallback(answer).with_state((Arc::clone(&held), Arc::clone(&clock)));
        let served = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let client = aws_sdk_secretsmanager::Client::new(&config::local_sdk(&endpoint, &"test".into()).await);
        let rotating = aws_sdk_secretsmanager::Client::new(&config::local_sdk(&endpoint, &NAME.into()).await);
        Self { held, clock, url: endpoint, client, rotating, served }
    }

    /// Writes a version that becomes current immediately, like a manual change.
    pub(crate) fn put(&self, secret: &str, version: &str, text: &str) {
        let mut held = self.held.lock().unwrap();
        let secret = held.entry(secret.to_owned()).or_default();
        secret.versions.insert(version.to_owned(), (Some(text.to_owned()), self.clock.now()));
        secret.label("AWSCURRENT", version);
    }

    /// Begins a rotation: adds a pending version without text.
    pub(crate) fn begin(&self, secret: &str, version: &str) {
        let mut held = self.held.lock().unwrap();
        let secret = held.get_mut(secret).unwrap();
        secret.versions.insert(version.to_owned(), (None, self.clock.now()));
        secret.label("AWSPENDING", version);
    }

    /// Rotates as Secrets Manager does, but requests every step twice.
    pub(crate) async fn rotate(&self, rotation: &SecretsRotation, secret: &str, version: &str) -> Result<(), Fault> {
        self.begin(secret, version);
        for step in STEPS.into_iter().flat_map(|step| [step, step]) {
            rotation.rotate(&step_request(step, secret, version)).await?;
        }
        self.held.lock().unwrap().get_mut(secret).unwrap().rotated_at = Some(self.clock.now());
        self.note_secrets(secret);
        Ok(())
    }

    pub(crate) fn current(&self, secret: &str) -> Value {
        let held = self.held.lock().unwrap();
        let secret = &held[secret];
        serde_json::from_str(secret.versions[&secret.labels["AWSCURRENT"]].0.as_ref().unwrap()).unwrap()
    }

    /// Returns the names of the current ring's keys, the current key first.
    pub(crate) fn kids(&self, secret: &str) -> Vec<String> {
        let ring: Keyring = serde_json::from_value(self.current(secret)).unwrap();
        [ring.current().0].into_iter().chain(ring.other_kids()).map(ToString::to_string).collect()
    }

    /// Notes the secrets of all versions for the check of the run's logs.
    pub(crate) fn note_secrets(&self, secret: &str) {
        for (text, _) in self.held.lock().unwrap()[secret].versions.values() {
            let members: BTreeMap<String, String> = serde_json::from_str(text.as_deref().unwrap_or("{}")).unwrap();
            members.iter().filter(|(name, _)| *name != "current").for_each(|(_, secret)| note_secret(secret));
        }
    }
}

impl Drop for SecretsManager {
    fn drop(&mut self) {
        self.served.abort();
    }
}

impl Secret {
    fn label(&mut self, label: &str, version: &str) {
        let before = self.labels.insert(label.to_owned(), version.to_owned());
        if let ("AWSCURRENT", Some(before)) = (label, before) {
            self.labels.insert("AWSPREVIOUS".to_owned(), before);
        }
    }
}

pub(crate) fn step_request(step: RotationStep, secret: &str, version: &str) -> Request {
    Request { step, secret_id: secret.to_owned(), client_request_token: version.to_owned() }
}

async fn answer(
    State((held, clock)): State<(Held, Arc<dyn Clock>)>,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let (_, operation) = headers["x-amz-target"].to_str().unwrap().rsplit_once('.').unwrap();
    let secret = request["SecretId"].as_str().unwrap();
    if headers["authorization"].to_str().unwrap().contains(&format!("Credential={NAME}/")) {
        record_secret_call(NAME, operation, secret);
    }
    let mut held = held.lock().unwrap();
    let secret = held.get_mut(secret);
    let outcome = match secret {
        Some(secret) => operate(secret, operation, &request, clock.now()),
        None => Err("ResourceNotFoundException"),
    };
    let (status, body) = match outcome {
        Ok(body) => (StatusCode::OK, body),
        Err(code) => (StatusCode::BAD_REQUEST, json!({ "__type": code })),
    };
    (status, [("content-type", "application/x-amz-json-1.1")], body.to_string())
}

fn operate(secret: &mut Secret, operation: &str, request: &Value, now: Timestamp) -> Result<Value, &'static str> {
    let text = |name: &str| request[name].as_str();
    #[expect(clippy::cast_precision_loss, reason = "a time of this century")]
    let seconds = |at: Timestamp| at.as_millis() as f64 / 1_000.0;
    match operation {
        "GetSecretValue" => {
            let label = text("VersionStage").or(text("VersionId").is_none().then_some("AWSCURRENT"));
            let labelled =
                label.map(|label| secret.labels.get(label).ok_or("ResourceNotFoundException")).transpose()?;
            let version = match (text("VersionId"), labelled) {
                (Some(asked), Some(labelled)) if asked != labelled => return Err("ResourceNotFoundException"),
                (Some(asked), _) => asked,
                (None, labelled) => labelled.unwrap(),
            };
            let (text, made_at) = secret.versions.get(version).ok_or("ResourceNotFoundException")?;
            let text = text.as_ref().ok_or("ResourceNotFoundException")?;
            Ok(json!({ "VersionId": version, "SecretString": text, "CreatedDate": seconds(*made_at) }))
        }
        "PutSecretValue" => {
            let (version, value) = (text("ClientRequestToken").unwrap(), text("SecretString").unwrap());
            if secret.versions.get(version).is_some_and(|(held, _)| held.as_ref().is_some_and(|held| held != value)) {
                return Err("ResourceExistsException");
            }
            secret.versions.insert(version.to_owned(), (Some(value.to_owned()), now));
            for label in request["VersionStages"].as_array().unwrap() {
                secret.label(label.as_str().unwrap(), version);
            }
            Ok(json!({ "VersionId": version }))
        }
        "DescribeSecret" => {
            let mut stages = BTreeMap::<_, Vec<_>>::new();
            for (label, version) in &secret.labels {
                stages.entry(version).or_default().push(label);
            }
            Ok(json!({ "VersionIdsToStages": stages, "LastRotatedDate": secret.rotated_at.map(seconds) }))
        }
        "UpdateSecretVersionStage" => {
            let label = text("VersionStage").unwrap();
            if secret.labels.get(label).map(String::as_str) != text("RemoveFromVersionId") {
                return Err("InvalidParameterException");
            }
            secret.label(label, text("MoveToVersionId").unwrap());
            Ok(json!({}))
        }
        _ => Err("InvalidRequestException"),
    }
}

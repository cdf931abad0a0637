use std::{collections::HashMap, sync::Arc};

use anyhow::Result;
use axum::{Router, body::Bytes, extract::State};
use http::{HeaderMap, HeaderValue, StatusCode};
use karta_shared::config::Secret;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

/// Id of a secret whose value is malformed.
pub(crate) const MALFORMED: &str = "karta/malformed";

pub(crate) const VERSION: &str = "1";

/// Secret values by secret id.
type Texts = HashMap<String, SecretString>;

/// Emulates the AWS services that functions call besides the store: Secrets Manager, and API
/// Gateway and Lambda, which accept every request.
pub(crate) struct Aws {
    pub(crate) url: String,
    served: JoinHandle<()>,
}

impl Aws {
    /// Serves these secrets under the ids that [`id`] returns for their names.
    pub(crate) async fn start(secrets: &HashMap<Secret, SecretString>) -> Result<Self> {
        let mut texts: Texts = secrets.iter().map(|(secret, text)| (id(secret.name()), text.clone())).collect();
        texts.insert(MALFORMED.to_owned(), "[]".into());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new().fallback(answer).with_state(Arc::new(texts));
        let served = tokio::spawn(async move {
            axum::serve(listener, router).await.ok();
        });
        Ok(Self { url, served })
    }
}

impl Drop for Aws {
    fn drop(&mut self) {
        self.served.abort();
    }
}

/// `session-signing` → `karta/session-signing`
pub(crate) fn id(name: &str) -> String {
    format!("karta/{name}")
}

async fn answer(State(texts): State<Arc<Texts>>, headers: HeaderMap, body: Bytes) -> (StatusCode, String) {
    match headers.get("x-amz-target").map(HeaderValue::as_bytes) {
        Some(b"secretsmanager.GetSecretValue") => {}
        Some(b"secretsmanager.DescribeSecret") => {
            return (StatusCode::OK, json!({ "VersionIdsToStages": { VERSION: ["AWSCURRENT"] } }).to_string());
        }
        _ => return (StatusCode::ACCEPTED, String::new()),
    }
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let id = request["SecretId"].as_str().unwrap_or_default();
    match texts.get(id) {
        Some(text) => (StatusCode::OK, json!({ "Name": id, "SecretString": text.expose_secret() }).to_string()),
        None => (StatusCode::BAD_REQUEST, json!({ "__type": "ResourceNotFoundException" }).to_string()),
    }
}

//! DynamoDB in this process: an emulator over SQLite, served on loopback and reached through the AWS SDK, so that the code that runs
//! here is the code that runs in AWS.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow};
use dynoxide::{
    Database,
    actions::{create_table::CreateTableRequest, update_time_to_live::UpdateTimeToLiveRequest},
};
use serde_json::{Value, json};
use tokio::{runtime, sync::oneshot, task};

use crate::template::{Table, Template};

/// The store's file in a data directory.
pub(crate) const STORE_FILE: &str = "store.db";
/// The properties of a table that the emulator takes over; the rest (backups, encryption, retention) means nothing here.
const TABLE_PROPERTIES: [&str; 4] = ["AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode"];

#[derive(Debug)]
pub struct Emulator {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Emulator {
    /// Opens the store in `folder`, or one in memory, with the template's tables under the names that `name` gives them.
    ///
    /// It is served on a thread of its own: SQLite does one thing at a time and blocks whoever waits for it, which must not be the
    /// threads that answer requests.
    pub fn start(folder: Option<&Path>, template: &Template, name: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let database = match folder {
            Some(folder) => {
                let path = folder.join(STORE_FILE);
                // SQLite gives its other files the mode of this one.
                let made = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
                made.with_context(|| format!("cannot make {}", path.display()))?;
                Database::new(&path.to_string_lossy())
                    .map_err(|error| anyhow!("cannot open {}: {error}", path.display()))?
            }
            None => Database::memory().map_err(|error| anyhow!("cannot open a store in memory: {error}"))?,
        };
        for (logical_id, table) in &template.tables {
            let name = name(logical_id).with_context(|| {
                format!("template.yaml lists the table {logical_id}, which this runner has no name for")
            })?;
            create_table(&database, &name, table)?;
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let served = thread::Builder::new().name("store".to_owned()).spawn(move || {
            let served = runtime.block_on(serve(listener, database, stopped));
            if let Err(error) = served {
                tracing::error!(error, "the embedded store ended");
            }
        })?;
        Ok(Self { address, stop, served })
    }

    /// The URL that the SDK is pointed at.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends the server after the requests that it is answering.
    pub async fn stop(self) {
        drop(self.stop);
        task::spawn_blocking(|| self.served.join()).await.ok();
    }
}

async fn serve(listener: TcpListener, database: Database, stopped: oneshot::Receiver<()>) -> Result<(), String> {
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| error.to_string())?;
    let stopped = async {
        stopped.await.ok();
    };
    dynoxide::server::serve_with_shutdown(listener, database, stopped).await
}

fn create_table(database: &Database, name: &str, table: &Table) -> Result<()> {
    let mut request = json!({ "TableName": name });
    for property in TABLE_PROPERTIES {
        if let Some(value) = table.0.get(property) {
            request[property] = value.clone();
        }
    }
    let request: CreateTableRequest = serde_json::from_value(request).with_context(|| format!("the table {name}"))?;
    match database.create_table(request) {
        Ok(_) => {}
        Err(dynoxide::DynoxideError::ResourceInUseException(_)) => return Ok(()),
        Err(error) => return Err(anyhow!("cannot create the table {name}: {error}")),
    }
    if let Some(Value::Object(ttl)) = table.0.get("TimeToLiveSpecification") {
        let request = json!({ "TableName": name, "TimeToLiveSpecification": ttl });
        let request: UpdateTimeToLiveRequest = serde_json::from_value(request).context("TimeToLiveSpecification")?;
        database.update_time_to_live(request).map_err(|error| anyhow!("cannot set the TTL of {name}: {error}"))?;
    }
    Ok(())
}

//! DynamoDB in this process: an emulator over SQLite, served on loopback and reached through the AWS SDK, so that the code that runs
//! here is the code that runs in AWS.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result, anyhow};
use dynoxide::{
    Database,
    actions::{create_table::CreateTableRequest, update_time_to_live::UpdateTimeToLiveRequest},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use crate::template::{Table, Template};

/// The properties of a table that the emulator takes over; the rest (backups, encryption, retention) means nothing here.
const TABLE_PROPERTIES: [&str; 4] = ["AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode"];

#[derive(Debug)]
pub struct Emulator {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), String>>,
}

impl Emulator {
    /// Opens the store in `folder`, or one in memory, with the template's tables under the names that `name` gives them.
    pub async fn start(
        folder: Option<&Path>,
        template: &Template,
        name: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let database = match folder {
            Some(folder) => {
                let path = folder.join("store.db");
                fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
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
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(dynoxide::server::serve_with_shutdown(listener, database, async {
            stopped.await.ok();
        }));
        Ok(Self { address, stop, served })
    }

    /// The URL that the SDK is pointed at.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends the server after the requests that it is answering.
    pub async fn stop(self) {
        drop(self.stop);
        self.served.await.ok();
    }
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

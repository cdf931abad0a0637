//! DynamoDB in this process: an emulator over SQLite, served on loopback and reached through the AWS SDK, so that the code that runs
//! here is the code that runs in AWS.
//!
//! The emulator's own server answers anybody, web pages included. This one serves the operations that are used here, to whoever
//! knows the access key that was drawn at the start.
//!
//! The SDK of the same process needs no socket ([`in_process`]), and plain reads need no decoded items ([`plain_reads`]).

mod in_process;
mod plain_reads;

use std::{
    fs,
    future::{self, IntoFuture},
    net::{SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow, bail};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    response::IntoResponse,
};
use dynoxide::{
    Database, DynoxideError,
    actions::{create_table::CreateTableRequest, update_time_to_live::UpdateTimeToLiveRequest},
    storage::Storage,
};
use http::{HeaderMap, StatusCode, header};
use karta_shared::{
    domain::Entropy,
    store::table::{Tables, shards},
};
use secrecy::SecretString;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    runtime,
    sync::{mpsc, oneshot, watch},
    task,
};

use self::{
    in_process::{Asked, InProcess},
    plain_reads::PlainReads,
};
use crate::{
    secrets::random_text,
    template::{Index, Table, Template},
};

/// The store's file in a data directory.
pub(crate) const STORE_FILE: &str = "store.db";
/// DynamoDB's own limit on a request, in bytes.
const REQUEST_MAX: usize = 16 * 1024 * 1024;
/// The properties of a table that the emulator takes over; the rest (backups, encryption, retention) means nothing here.
const TABLE_PROPERTIES: [&str; 4] = ["AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode"];

/// The operations that write.
const WRITES: [&str; 5] = ["BatchWriteItem", "DeleteItem", "PutItem", "TransactWriteItems", "UpdateItem"];

pub struct Emulator {
    address: SocketAddr,
    access_key: SecretString,
    database: Database,
    in_process: InProcess,
    tables: Tables,
    streams: WatchedWrites,
    indexes: WatchedWrites,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Emulator {
    /// Opens the store in `folder`, or one in memory, with the template's tables under these names. Writes to the outbox are made known, as
    /// its stream would.
    ///
    /// It is served on a thread of its own: SQLite does one thing at a time and blocks whoever waits for it, which must not be the
    /// threads that answer requests.
    pub fn start(folder: Option<&Path>, template: &Template, tables: &Tables, entropy: &dyn Entropy) -> Result<Self> {
        let path = if let Some(folder) = folder {
            let path = folder.join(STORE_FILE);
            // SQLite gives its other files the mode of this one.
            let made = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
            made.with_context(|| format!("cannot make {}", path.display()))?;
            path.to_string_lossy().into_owned()
        } else {
            // A database in memory has a name, and ends with its last connection.
            static OPENED: AtomicU64 = AtomicU64::new(0);
            format!("file:karta-{}?mode=memory&cache=shared", OPENED.fetch_add(1, Ordering::Relaxed))
        };
        let database = Database::new(&path).map_err(|error| anyhow!("cannot open {path}: {error}"))?;
        let reader = Storage::new(&path).map_err(|error| anyhow!("cannot open {path}: {error}"))?;
        let mut plain_reads = PlainReads::new(reader);
        for (logical_id, table) in &template.tables {
            let name = named(logical_id, tables)?;
            create_table(&database, name, table)?;
            plain_reads.include(name, &table.0);
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let access_key = random_text(entropy);
        let credential = format!("Credential={access_key}/");
        let (stop, stopped) = oneshot::channel();
        let functions = &template.functions;
        let streams = WatchedWrites::new(functions.iter().map(|function| function.reads_outbox.clone()));
        let indexes =
            WatchedWrites::new(functions.iter().flat_map(|function| &function.indexes).map(|it| it.prefixes.clone()));
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (in_process, asked) = mpsc::unbounded_channel();
        let shared = Arc::new(EmulatorServer {
            database: database.clone(),
            plain_reads,
            credential,
            streams: streams.clone(),
            indexes: indexes.clone(),
        });
        let served = thread::Builder::new().name("store".to_owned()).spawn(move || {
            if let Err(error) = runtime.block_on(serve(listener, shared, asked, stopped)) {
                tracing::error!(%error, "the embedded store ended");
            }
        })?;
        let (access_key, tables) = (access_key.into(), tables.clone());
        let in_process = InProcess::new(in_process);
        Ok(Self { address, access_key, database, in_process, tables, streams, indexes, stop, served })
    }

    /// An HTTP client for an SDK of this process, whatever endpoint the SDK is pointed at.
    pub fn http_client(&self) -> SharedHttpClient {
        SharedHttpClient::new(self.in_process.clone())
    }

    /// The URL that the SDK is pointed at.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes with every transaction on a partition with one of these prefixes. `None` without prefixes.
    pub fn outbox_written(&self, prefixes: &[String]) -> Option<watch::Receiver<()>> {
        self.streams.receiver(prefixes)
    }

    /// The index, for a worker that waits for its items.
    pub fn index(&self, index: &Index) -> Result<WatchedIndex> {
        Ok(WatchedIndex {
            database: self.database.clone(),
            table: named(&index.table, &self.tables)?.to_owned(),
            index: index.clone(),
            written: self.indexes.receiver(&index.prefixes).context("an index without prefixes")?,
        })
    }

    /// The access key id that opens it. There is no secret key: signatures are not judged.
    pub fn access_key(&self) -> &SecretString {
        &self.access_key
    }

    /// Ends the server after the requests that it is answering.
    pub async fn stop(self) {
        drop(self.stop);
        task::spawn_blocking(|| self.served.join()).await.ok();
    }
}

struct EmulatorServer {
    database: Database,
    plain_reads: PlainReads,
    /// What a signed request's `Authorization` must hold.
    credential: String,
    streams: WatchedWrites,
    indexes: WatchedWrites,
}

/// Notifies readers of writes, each of the prefixes of partition keys that it reads.
#[derive(Debug, Clone)]
struct WatchedWrites(Arc<[Watcher]>);

#[derive(Debug)]
struct Watcher {
    prefixes: Vec<String>,
    /// The prefixes as requests contain them.
    patterns: Vec<String>,
    sender: watch::Sender<()>,
}

impl WatchedWrites {
    fn new(readers: impl Iterator<Item = Vec<String>>) -> Self {
        let watchers = readers.filter(|prefixes| !prefixes.is_empty()).map(|prefixes| Watcher {
            patterns: prefixes.iter().map(|prefix| format!("\"{}#", prefix.trim_end_matches('#'))).collect(),
            prefixes,
            sender: watch::Sender::new(()),
        });
        Self(watchers.collect())
    }

    fn receiver(&self, prefixes: &[String]) -> Option<watch::Receiver<()>> {
        self.0.iter().find(|watcher| watcher.prefixes == prefixes).map(|watcher| watcher.sender.subscribe())
    }

    fn notify(&self, request: &str) {
        for Watcher { patterns, sender, .. } in &*self.0 {
            if patterns.iter().any(|pattern| request.contains(pattern)) {
                sender.send_replace(());
            }
        }
    }
}

/// A worker's partitions of an index.
#[derive(Clone)]
pub struct WatchedIndex {
    database: Database,
    table: String,
    index: Index,
    /// Changes with every write to these partitions, or to an item of the table that is or was in them.
    pub written: watch::Receiver<()>,
}

impl WatchedIndex {
    /// The lowest value of the attribute `by` in these partitions, whose key is the attribute `key`. Without `by`, whether they have any item:
    /// the value is then empty.
    pub async fn first(&self, key: &'static str, by: Option<&'static str>) -> Result<Option<String>> {
        let Self { database, table, index, .. } = self.clone();
        // SQLite blocks whoever waits for it.
        task::spawn_blocking(move || {
            let mut lowest: Option<String> = None;
            for partition in index.prefixes.iter().flat_map(|prefix| shards(prefix)) {
                let query = json!({
                    "TableName": table,
                    "IndexName": index.name,
                    "KeyConditionExpression": format!("{key} = :pk"),
                    "ExpressionAttributeValues": { ":pk": { "S": partition } },
                    "Limit": 1,
                });
                let answer =
                    run(&database, "Query", query.to_string().as_bytes()).map_err(|error| anyhow!("{error}"))?;
                let answer: Value = serde_json::from_str(&answer)?;
                for item in answer["Items"].as_array().into_iter().flatten() {
                    let value = by.and_then(|by| item[by]["S"].as_str()).unwrap_or_default();
                    lowest = Some(lowest.map_or_else(|| value.to_owned(), |lowest| lowest.min(value.to_owned())));
                }
            }
            anyhow::Ok(lowest)
        })
        .await?
    }
}

/// Answers over HTTP and from this process, until it is stopped and has answered what was asked before.
async fn serve(
    listener: TcpListener,
    server: Arc<EmulatorServer>,
    mut asked: mpsc::UnboundedReceiver<Asked>,
    stopped: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let stopped = async {
        stopped.await.ok();
    };
    let router =
        Router::new().fallback(answer).layer(DefaultBodyLimit::max(REQUEST_MAX)).with_state(Arc::clone(&server));
    let over_http = axum::serve(listener, router).with_graceful_shutdown(stopped).into_future();
    let in_process = async {
        while let Some(one) = asked.recv().await {
            one.answer(&server);
        }
        future::pending().await
    };
    let ended = tokio::select! {
        ended = over_http => ended,
        ended = in_process => ended,
    };
    asked.close();
    while let Ok(one) = asked.try_recv() {
        one.answer(&server);
    }
    ended
}

async fn answer(State(server): State<Arc<EmulatorServer>>, headers: HeaderMap, body: Bytes) -> impl IntoResponse {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (status, body) = server.answer(header("authorization"), header("x-amz-target"), &body);
    (status, [(header::CONTENT_TYPE, "application/x-amz-json-1.0")], body)
}

impl EmulatorServer {
    /// Blocks while SQLite works.
    fn answer(&self, authorization: &str, target: &str, body: &[u8]) -> (StatusCode, String) {
        if !authorization.contains(&self.credential) {
            return (StatusCode::BAD_REQUEST, json!({ "__type": "UnrecognizedClientException" }).to_string());
        }
        let (_, operation) = target.rsplit_once('.').unwrap_or_default();
        let answered = match self.plain_reads.answer(operation, body) {
            Ok(None) => run(&self.database, operation, body),
            Ok(Some(answer)) => Ok(answer),
            Err(error) => Err(error),
        };
        match answered {
            Ok(answer) => {
                if let (true, Ok(request)) = (WRITES.contains(&operation), str::from_utf8(body)) {
                    self.indexes.notify(request);
                    if operation == "TransactWriteItems" {
                        self.streams.notify(request);
                    }
                }
                (StatusCode::OK, answer)
            }
            Err(error) => {
                (StatusCode::from_u16(error.status_code()).unwrap_or(StatusCode::BAD_REQUEST), error.to_json())
            }
        }
    }
}

/// The operations that the store makes, and those that tests look behind it with.
fn run(database: &Database, operation: &str, body: &[u8]) -> Result<String, DynoxideError> {
    match operation {
        "BatchGetItem" => typed(body, |request| database.batch_get_item(request)),
        "BatchWriteItem" => typed(body, |request| database.batch_write_item(request)),
        "DeleteItem" => typed(body, |request| database.delete_item(request)),
        "GetItem" => typed(body, |request| database.get_item(request)),
        "PutItem" => typed(body, |request| database.put_item(request)),
        "Query" => typed(body, |request| database.query(request)),
        "Scan" => typed(body, |request| database.scan(request)),
        "TransactWriteItems" => typed(body, |request| database.transact_write_items(request)),
        "UpdateItem" => typed(body, |request| database.update_item(request)),
        other => Err(DynoxideError::ValidationException(format!("{other} is not served here"))),
    }
}

fn typed<Q: DeserializeOwned, A: Serialize>(
    body: &[u8],
    operation: impl FnOnce(Q) -> dynoxide::Result<A>,
) -> Result<String, DynoxideError> {
    let request =
        serde_json::from_slice(body).map_err(|error| DynoxideError::SerializationException(error.to_string()))?;
    let answer = operation(request)?;
    serde_json::to_string(&answer).map_err(|error| DynoxideError::InternalServerError(error.to_string()))
}

/// The name of a table by its logical id in the template.
fn named<'a>(logical_id: &str, tables: &'a Tables) -> Result<&'a str> {
    Ok(match logical_id {
        "KartaTable" => &tables.main,
        "CredentialsTable" => &tables.credentials,
        "OutboxTable" => &tables.outbox,
        "UsageTable" => &tables.usage,
        "AnchorsTable" => &tables.anchors,
        _ => bail!("template.yaml lists the table {logical_id}, which this runner has no name for"),
    })
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
        Err(DynoxideError::ResourceInUseException(_)) => return Ok(()),
        Err(error) => return Err(anyhow!("cannot create the table {name}: {error}")),
    }
    if let Some(Value::Object(ttl)) = table.0.get("TimeToLiveSpecification") {
        let request = json!({ "TableName": name, "TimeToLiveSpecification": ttl });
        let request: UpdateTimeToLiveRequest = serde_json::from_value(request).context("TimeToLiveSpecification")?;
        database.update_time_to_live(request).map_err(|error| anyhow!("cannot set the TTL of {name}: {error}"))?;
    }
    Ok(())
}

//! DynamoDB in this process: an emulator over SQLite that is called through the AWS SDK, so that
//! the same code runs here and in AWS.
//!
//! The emulator's own server accepts every caller, web pages included. This server listens on
//! loopback, serves only the operations that are used here, and requires the access key generated
//! at the start.
//!
//! The SDK of the same process calls the server without a socket ([`in_process`]). Reads that need
//! no decoded items return the stored text ([`plain_reads`]).

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
    in_process::{InProcessClient, StoreRequest},
    plain_reads::PlainReads,
};
use crate::{
    secrets::random_hex,
    template::{Index, Template, TemplateTable},
};

pub(crate) const STORE_FILE: &str = "store.db";
/// DynamoDB's limit on a request, in bytes.
const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;
/// Table properties that the emulator supports. The others (backups, encryption, retention) have no
/// effect here.
const TABLE_PROPERTIES: [&str; 4] = ["AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode"];

const WRITES: [&str; 5] = ["BatchWriteItem", "DeleteItem", "PutItem", "TransactWriteItems", "UpdateItem"];

pub struct Emulator {
    address: SocketAddr,
    access_key: SecretString,
    database: Database,
    in_process: InProcessClient,
    tables: Tables,
    streams: WatchedWrites,
    indexes: WatchedWrites,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Emulator {
    /// Opens the store in `folder`, or one in memory, creates the template's tables under these
    /// names, and serves the store on its own thread.
    ///
    /// SQLite runs one operation at a time and blocks its caller, so operations other than plain reads
    /// must not run on the threads that handle HTTP requests.
    pub fn start(folder: Option<&Path>, template: &Template, tables: &Tables, entropy: &dyn Entropy) -> Result<Self> {
        let path = if let Some(folder) = folder {
            let path = folder.join(STORE_FILE);
            // SQLite gives its other files the mode of this one.
            let opened = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
            opened.with_context(|| format!("cannot create {}", path.display()))?;
            path.to_string_lossy().into_owned()
        } else {
            // A named database in memory exists until its last connection closes.
            static OPENED: AtomicU64 = AtomicU64::new(0);
            format!("file:karta-{}?mode=memory&cache=shared", OPENED.fetch_add(1, Ordering::Relaxed))
        };
        let database = Database::new(&path).map_err(|error| anyhow!("cannot open {path}: {error}"))?;
        let plain_reads = Storage::new(&path).and_then(PlainReads::new);
        let mut plain_reads = plain_reads.map_err(|error| anyhow!("cannot open {path}: {error}"))?;
        for (logical_id, table) in &template.tables {
            let name = table_name(logical_id, tables)?;
            create_table(&database, name, table)?;
            plain_reads.include(name, &table.0);
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let access_key = random_hex(entropy);
        let credential = format!("Credential={access_key}/");
        let (stop, stopped) = oneshot::channel();
        let functions = &template.functions;
        let streams = WatchedWrites::new(functions.iter().map(|function| function.outbox_prefixes.clone()));
        let indexes =
            WatchedWrites::new(functions.iter().flat_map(|function| &function.indexes).map(|it| it.prefixes.clone()));
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (in_process, requests) = mpsc::unbounded_channel();
        let shared = Arc::new(EmulatorServer {
            database: database.clone(),
            plain_reads,
            credential,
            streams: streams.clone(),
            indexes: indexes.clone(),
        });
        // The write-ahead log of a file lets readers work beside a writer. A store in memory has
        // none, and its readers would fail.
        let reader = folder.map(|_| Arc::clone(&shared));
        let served = thread::Builder::new().name("store".to_owned()).spawn(move || {
            if let Err(fault) = runtime.block_on(serve(listener, shared, requests, stopped)) {
                tracing::error!(%fault, "embedded store failed");
            }
        })?;
        let (access_key, tables) = (access_key.into(), tables.clone());
        let in_process = InProcessClient::new(in_process, reader);
        Ok(Self { address, access_key, database, in_process, tables, streams, indexes, stop, served })
    }

    /// Returns an HTTP client for an SDK of this process. The client ignores the SDK's endpoint.
    pub fn http_client(&self) -> SharedHttpClient {
        SharedHttpClient::new(self.in_process.clone())
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns a receiver that changes with every transaction on a partition with one of these
    /// prefixes. `None` without prefixes.
    pub fn outbox_writes(&self, prefixes: &[String]) -> Option<watch::Receiver<()>> {
        self.streams.receiver(prefixes)
    }

    pub fn index(&self, index: &Index) -> Result<WatchedIndex> {
        Ok(WatchedIndex {
            database: self.database.clone(),
            table: table_name(&index.table, &self.tables)?.to_owned(),
            index: index.clone(),
            writes: self
                .indexes
                .receiver(&index.prefixes)
                .context("the index has no LeadingKeys: add them to the function's policy")?,
        })
    }

    /// Returns the access key id that requests must use. There is no secret key: signatures are not
    /// verified.
    pub fn access_key(&self) -> &SecretString {
        &self.access_key
    }

    /// Stops the server after its running requests.
    pub async fn stop(self) {
        drop(self.stop);
        task::spawn_blocking(|| self.served.join()).await.ok();
    }
}

struct EmulatorServer {
    database: Database,
    plain_reads: PlainReads,
    /// Must be part of a request's `Authorization` header.
    credential: String,
    streams: WatchedWrites,
    indexes: WatchedWrites,
}

/// Notifies each reader of writes to partitions whose keys have one of the reader's prefixes.
#[derive(Debug, Clone)]
struct WatchedWrites(Arc<[Watcher]>);

#[derive(Debug)]
struct Watcher {
    prefixes: Vec<String>,
    /// The prefixes as they appear in a request.
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

/// The partitions of an index that a worker queries.
#[derive(Clone)]
pub struct WatchedIndex {
    database: Database,
    table: String,
    index: Index,
    /// Changes with every write to these partitions, and to an item of the table that is or was in
    /// them.
    pub writes: watch::Receiver<()>,
}

impl WatchedIndex {
    /// Returns the lowest value of `attribute` in these partitions, or an empty text if `attribute`
    /// is `None`. Returns `None` if the partitions are empty. `key` is the index's partition key.
    pub async fn first(&self, key: &'static str, attribute: Option<&'static str>) -> Result<Option<String>> {
        let Self { database, table, index, .. } = self.clone();
        // SQLite blocks its thread.
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
                    let value = attribute.and_then(|name| item[name]["S"].as_str()).unwrap_or_default();
                    lowest = Some(lowest.map_or_else(|| value.to_owned(), |lowest| lowest.min(value.to_owned())));
                }
            }
            anyhow::Ok(lowest)
        })
        .await?
    }
}

/// Serves requests over HTTP and from this process until `stopped`, then the pending requests.
async fn serve(
    listener: TcpListener,
    server: Arc<EmulatorServer>,
    mut requests: mpsc::UnboundedReceiver<StoreRequest>,
    stopped: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let stopped = async {
        stopped.await.ok();
    };
    let router =
        Router::new().fallback(answer).layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES)).with_state(Arc::clone(&server));
    let over_http = axum::serve(listener, router).with_graceful_shutdown(stopped).into_future();
    let in_process = async {
        while let Some(request) = requests.recv().await {
            request.answer(&server);
        }
        future::pending().await
    };
    let ended = tokio::select! {
        ended = over_http => ended,
        ended = in_process => ended,
    };
    requests.close();
    while let Ok(request) = requests.try_recv() {
        request.answer(&server);
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
        let answer = self.plain_reads.answer(operation, body);
        let answered = answer.map_or_else(|| run(&self.database, operation, body), Ok);
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
        other => Err(DynoxideError::ValidationException(format!("{other} is not supported by the local store"))),
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

fn table_name<'a>(logical_id: &str, tables: &'a Tables) -> Result<&'a str> {
    Ok(match logical_id {
        "KartaTable" => &tables.main,
        "CredentialsTable" => &tables.credentials,
        "OutboxTable" => &tables.outbox,
        "UsageTable" => &tables.usage,
        "AnchorsTable" => &tables.anchors,
        "SessionsTable" => &tables.sessions,
        _ => bail!("template.yaml lists the unknown table {logical_id}"),
    })
}

fn create_table(database: &Database, name: &str, table: &TemplateTable) -> Result<()> {
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

//! A proxy between the SDK and the embedded store. It records every request and injects faults:
//!
//! ```ignore
//! let (server, proxy) = FaultProxy::start().await;
//! proxy.fail("Query", 2, StoreFault::Throttle); // the next two
//! proxy.fail("TransactWriteItems", ALWAYS, StoreFault::DropResponse); // all of them, until
//! proxy.heal();
//! proxy.fail("BatchGetItem", 1, StoreFault::HoldResponse); // the response waits until
//! proxy.held().await;
//! proxy.release();
//! assert!(proxy.seen().iter().all(|request| request.is_consistent()));
//! ```
//!
//! It supports the part of HTTP/1.1 that the SDK uses: bodies with a content length and persistent
//! connections.

use std::sync::{Arc, Mutex};

use karta_local::Options;
use karta_shared::clock::{Clock, SystemClock};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::harness::{TestServer, options};

/// Number of requests: all, until [`FaultProxy::heal`].
pub(crate) const ALWAYS: usize = usize::MAX;
/// Operation name that matches every operation.
pub(crate) const ANY: &str = "*";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreFault {
    /// Returns `ProvisionedThroughputExceededException`. The request does not reach the store.
    Throttle,
    /// Returns the exception of this name. The request does not reach the store.
    Exception(&'static str),
    /// Returns HTTP 500. The request does not reach the store.
    ServerError,
    /// The proxy never responds, and the request does not reach the store.
    Hang,
    /// The request waits for [`FaultProxy::release`] before it reaches the store.
    HoldRequest,
    /// Closes the connection. The request does not reach the store.
    Close,
    /// The store executes the request. The proxy closes the connection instead of responding.
    DropResponse,
    /// The store executes the request. The response waits for [`FaultProxy::release`].
    HoldResponse,
    /// Returns `TransactionCanceledException` with `code` for the member at index `at` and `None`
    /// for the others. The request does not reach the store.
    Cancel { code: &'static str, at: usize },
    /// Returns no items for a Query or a BatchGetItem. The request does not reach the store.
    FindNothing,
    /// Returns the last key of a BatchGetItem as unprocessed.
    LeaveUnread,
}

/// Permanent failures: missing permission, missing table, invalid credentials or invalid request.
pub(crate) const REFUSALS: [StoreFault; 4] = [
    StoreFault::Exception("AccessDeniedException"),
    StoreFault::Exception("ResourceNotFoundException"),
    StoreFault::Exception("UnrecognizedClientException"),
    StoreFault::Exception("ValidationException"),
];

pub(crate) struct FaultProxy {
    /// The URL that replaces the store's.
    pub(crate) url: String,
    client: reqwest::Client,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Seen>>,
    /// Number of faults that hold a request or a response and that [`FaultProxy::held`] has not
    /// reported.
    held: watch::Sender<usize>,
    released: watch::Sender<()>,
    /// Number of requests and responses that wait for [`FaultProxy::release`], or that reach the store
    /// after it.
    waiting: watch::Sender<usize>,
    /// Number of requests that the store has not answered.
    forwarding: watch::Sender<usize>,
}

struct Rule {
    operation: &'static str,
    /// Requests to forward before the first fault.
    through: usize,
    left: usize,
    fault: StoreFault,
}

/// A request to the store, faulted or not.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) operation: String,
    pub(crate) body: Value,
}

impl Seen {
    /// Returns the action, in the terms of IAM, on each table and partition.
    pub(crate) fn accesses(&self) -> Vec<Access> {
        let one = |action: &str, table: &Value, pk: &Value| Access {
            action: action.to_owned(),
            table: table.as_str().unwrap().to_owned(),
            partition: pk.as_str().unwrap().to_owned(),
        };
        let body = &self.body;
        match self.operation.as_str() {
            "BatchGetItem" => {
                let tables = body["RequestItems"].as_object().unwrap().iter();
                let keys = tables.flat_map(|(table, asked)| {
                    asked["Keys"].as_array().unwrap().iter().map(move |key| (json!(table), key))
                });
                keys.map(|(table, key)| one("BatchGetItem", &table, &key["pk"]["S"])).collect()
            }
            "TransactWriteItems" => {
                let members = body["TransactItems"].as_array().unwrap().iter();
                let members = members.flat_map(|member| member.as_object().unwrap());
                let member = |(kind, member): (&String, &Value)| {
                    let pk = if kind == "Put" { &member["Item"]["pk"]["S"] } else { &member["Key"]["pk"]["S"] };
                    one(&format!("{kind}Item"), &member["TableName"], pk)
                };
                members.map(member).collect()
            }
            "Query" => {
                let table = body["TableName"].as_str().unwrap();
                let index = body["IndexName"].as_str().map(|index| format!("/index/{index}")).unwrap_or_default();
                vec![one("Query", &json!(format!("{table}{index}")), &body["ExpressionAttributeValues"][":pk"]["S"])]
            }
            "PutItem" => vec![one("PutItem", &body["TableName"], &body["Item"]["pk"]["S"])],
            operation => vec![one(operation, &body["TableName"], &body["Key"]["pk"]["S"])],
        }
    }

    pub(crate) fn tables(&self) -> Vec<String> {
        self.accesses().into_iter().map(|access| access.table).collect()
    }

    pub(crate) fn partitions(&self) -> Vec<String> {
        self.accesses().into_iter().map(|access| access.partition).collect()
    }

    /// Returns whether all reads are strongly consistent. Writes always are.
    pub(crate) fn is_consistent(&self) -> bool {
        match self.operation.as_str() {
            "GetItem" | "Query" => self.body["ConsistentRead"] == true,
            "BatchGetItem" => {
                let tables = self.body["RequestItems"].as_object().unwrap();
                tables.values().all(|request| request["ConsistentRead"] == true)
            }
            "TransactWriteItems" | "UpdateItem" | "PutItem" | "DeleteItem" => true,
            _ => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Access {
    /// `GetItem`, `PutItem`…
    pub(crate) action: String,
    pub(crate) table: String,
    pub(crate) partition: String,
}

impl FaultProxy {
    /// A server on the machine's clock whose SDK talks to the store through a proxy.
    pub(crate) async fn start() -> (TestServer, Arc<Self>) {
        Self::start_with(Arc::new(SystemClock)).await
    }

    pub(crate) async fn start_with(clock: Arc<dyn Clock>) -> (TestServer, Arc<Self>) {
        Self::start_as(options(clock)).await
    }

    pub(crate) async fn start_as(options: Options) -> (TestServer, Arc<Self>) {
        let (proxy, listener) = Self::listen().await;
        let before_the_store = |store: &str| {
            tokio::spawn(Arc::clone(&proxy).serve(Arc::clone(&listener), store.to_owned()));
            proxy.url.clone()
        };
        let server = TestServer::start_as(options, Some(&before_the_store)).await;
        (server, proxy)
    }

    /// Starts a proxy before the store of a server, for other processes. The server does not use it.
    pub(crate) async fn before(server: &TestServer) -> Arc<Self> {
        let (proxy, listener) = Self::listen().await;
        tokio::spawn(Arc::clone(&proxy).serve(listener, server.runner.emulator.endpoint()));
        proxy
    }

    async fn listen() -> (Arc<Self>, Arc<TcpListener>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            client: reqwest::Client::new(),
            rules: Mutex::default(),
            seen: Mutex::default(),
            held: watch::Sender::new(0),
            released: watch::Sender::new(()),
            waiting: watch::Sender::new(0),
            forwarding: watch::Sender::new(0),
        };
        (Arc::new(proxy), Arc::new(listener))
    }

    /// Injects `fault` into the next `count` requests of `operation`, after the faults of earlier
    /// calls.
    pub(crate) fn fail(&self, operation: &'static str, count: usize, fault: StoreFault) {
        self.fail_after(operation, 0, count, fault);
    }

    /// Like [`fail`](Self::fail), after `through` forwarded requests.
    pub(crate) fn fail_after(&self, operation: &'static str, through: usize, count: usize, fault: StoreFault) {
        self.rules.lock().unwrap().push(Rule { operation, through, left: count, fault });
    }

    /// Removes all faults.
    pub(crate) fn heal(&self) {
        self.rules.lock().unwrap().clear();
    }

    /// Waits until a request or a response is held that no earlier call reported.
    pub(crate) async fn held(&self) {
        self.held.subscribe().wait_for(|held| *held > 0).await.unwrap();
        self.held.send_replace(0);
    }

    /// Forwards the held requests and sends the held responses.
    pub(crate) fn release(&self) {
        self.released.send_replace(());
    }

    /// Waits until the store has executed the requests that were held and released.
    pub(crate) async fn drained(&self) {
        self.waiting.subscribe().wait_for(|waiting| *waiting == 0).await.unwrap();
    }

    /// Waits until no request is on its way to the store, except those that are held.
    pub(crate) async fn quiet(&self) {
        self.forwarding.subscribe().wait_for(|forwarding| *forwarding == 0).await.unwrap();
    }

    /// Returns all requests since the start or the last call to [`forget`](Self::forget).
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn seen_of(&self, operation: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|request| request.operation == operation).collect()
    }

    pub(crate) fn forget(&self) {
        self.seen.lock().unwrap().clear();
        self.held.send_replace(0);
    }

    async fn serve(self: Arc<Self>, listener: Arc<TcpListener>, store: String) {
        while let Ok((stream, _)) = listener.accept().await {
            let (proxy, store) = (Arc::clone(&self), store.clone());
            tokio::spawn(async move { proxy.converse(stream, &store).await });
        }
    }

    /// Serves the requests of a connection. `None` closes it.
    async fn converse(&self, mut stream: TcpStream, store: &str) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut unread = Vec::new();
        loop {
            let request = Request::read(&mut stream, &mut unread).await?;
            let (status, body) = self.answer(request, store).await?;
            let head = format!(
                "HTTP/1.1 {status} -\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(&[head.as_bytes(), &body].concat()).await.ok()?;
        }
    }

    async fn answer(&self, request: Request, store: &str) -> Option<(u16, Vec<u8>)> {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let operation = request.operation().to_owned();
        self.seen.lock().unwrap().push(Seen { operation: operation.clone(), body: body.clone() });
        match self.fault_for(&operation) {
            None => self.forward(&request, request.body.clone(), store).await,
            Some(StoreFault::Throttle) => Some(exception("ProvisionedThroughputExceededException", &json!({}))),
            Some(StoreFault::Exception(name)) => Some(exception(name, &json!({}))),
            Some(StoreFault::ServerError) => Some((500, b"{}".to_vec())),
            Some(StoreFault::Hang) => {
                self.held.send_modify(|held| *held += 1);
                std::future::pending().await
            }
            Some(StoreFault::HoldRequest) => {
                let released = self.wait_for_release();
                self.held.send_modify(|held| *held += 1);
                released.await;
                let answer = self.forward(&request, request.body.clone(), store).await;
                self.waiting.send_modify(|waiting| *waiting -= 1);
                answer
            }
            Some(StoreFault::Close) => None,
            Some(StoreFault::DropResponse) => {
                self.forward(&request, request.body.clone(), store).await;
                None
            }
            Some(StoreFault::HoldResponse) => {
                let released = self.wait_for_release();
                let answer = self.forward(&request, request.body.clone(), store).await;
                self.held.send_modify(|held| *held += 1);
                released.await;
                self.waiting.send_modify(|waiting| *waiting -= 1);
                answer
            }
            Some(StoreFault::Cancel { code, at }) => {
                let members = body["TransactItems"].as_array().unwrap().len();
                let reasons = (0..members).map(|member| json!({ "Code": if member == at { code } else { "None" } }));
                let reasons: Vec<_> = reasons.collect();
                Some(exception("TransactionCanceledException", &json!({ "CancellationReasons": reasons })))
            }
            Some(StoreFault::FindNothing) => {
                Some((200, json!({ "Items": [], "Responses": {}, "Count": 0 }).to_string().into_bytes()))
            }
            Some(StoreFault::LeaveUnread) => self.leave_unread(&request, body, store).await,
        }
    }

    /// Returns a future that resolves at the next release, counted from this call.
    fn wait_for_release(&self) -> impl Future<Output = ()> + use<> {
        let mut released = self.released.subscribe();
        self.waiting.send_modify(|waiting| *waiting += 1);
        async move {
            released.changed().await.ok();
        }
    }

    fn fault_for(&self, operation: &str) -> Option<StoreFault> {
        let mut rules = self.rules.lock().unwrap();
        let matches = |rule: &&mut Rule| [operation, ANY].contains(&rule.operation) && rule.left > 0;
        let rule = rules.iter_mut().find(matches)?;
        if rule.through > 0 {
            rule.through -= 1;
            return None;
        }
        rule.left = if rule.left == ALWAYS { ALWAYS } else { rule.left - 1 };
        Some(rule.fault)
    }

    async fn forward(&self, request: &Request, body: Vec<u8>, store: &str) -> Option<(u16, Vec<u8>)> {
        let mut forwarded = self.client.post(store).body(body);
        for (name, value) in &request.headers {
            if name.starts_with("x-amz-") || ["authorization", "content-type"].contains(&name.as_str()) {
                forwarded = forwarded.header(name, value);
            }
        }
        self.forwarding.send_modify(|forwarding| *forwarding += 1);
        let answered = async {
            let answer = forwarded.send().await.ok()?;
            let status = answer.status().as_u16();
            Some((status, answer.bytes().await.ok()?.to_vec()))
        };
        let answer = answered.await;
        self.forwarding.send_modify(|forwarding| *forwarding -= 1);
        answer
    }

    async fn leave_unread(&self, request: &Request, mut body: Value, store: &str) -> Option<(u16, Vec<u8>)> {
        let (table, asked) = body["RequestItems"].as_object_mut().unwrap().iter_mut().next().unwrap();
        let table = table.clone();
        let left = asked["Keys"].as_array_mut().unwrap().pop().unwrap();
        let mut answer = if asked["Keys"].as_array().unwrap().is_empty() {
            json!({ "Responses": {} })
        } else {
            let (_, read) = self.forward(request, body.to_string().into_bytes(), store).await?;
            serde_json::from_slice(&read).unwrap()
        };
        answer["UnprocessedKeys"] = json!({ table: { "Keys": [left], "ConsistentRead": true } });
        Some((200, answer.to_string().into_bytes()))
    }
}

fn exception(name: &str, members: &Value) -> (u16, Vec<u8>) {
    let mut body = members.clone();
    body["__type"] = json!(format!("com.amazonaws.dynamodb.v20120810#{name}"));
    body["message"] = json!("a fault injected by a test");
    (400, body.to_string().into_bytes())
}

struct Request {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// Reads the next request of a connection, or `None` at its end. `unread` keeps bytes that were
    /// read beyond it.
    async fn read(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Option<Self> {
        let head = loop {
            match unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                Some(end) => break unread.drain(..end + 4).collect::<Vec<_>>(),
                None => more(stream, unread).await?,
            }
        };
        let head = String::from_utf8(head).ok()?;
        let headers = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let headers: Vec<_> =
            headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        let mut request = Self { headers, body: Vec::new() };
        let length = request.header("content-length").parse().ok()?;
        while unread.len() < length {
            more(stream, unread).await?;
        }
        request.body = unread.drain(..length).collect();
        Some(request)
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(held, _)| held == name).map_or("", |(_, value)| value)
    }

    /// `DynamoDB_20120810.GetItem` → `GetItem`
    fn operation(&self) -> &str {
        self.header("x-amz-target").rsplit('.').next().unwrap_or_default()
    }
}

async fn more(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Option<()> {
    match stream.read_buf(unread).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}

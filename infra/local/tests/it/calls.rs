//! Records the AWS calls of functions by IAM action, resource and partition. An interceptor in each
//! function's SDK writes each kind of call once to `target/run/calls/`. `rights.rs` compares the
//! calls with the policies in the template.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::Write,
    sync::{Arc, Mutex, OnceLock},
};

use aws_sdk_dynamodb::{
    config::{ConfigBag, Intercept, SharedInterceptor, interceptors::BeforeSerializationInterceptorContextRef},
    error::BoxError,
    operation::{
        batch_get_item::BatchGetItemInput, batch_write_item::BatchWriteItemInput, delete_item::DeleteItemInput,
        get_item::GetItemInput, put_item::PutItemInput, query::QueryInput,
        transact_write_items::TransactWriteItemsInput, update_item::UpdateItemInput,
    },
    types::{AttributeValue, DeleteRequest, PutRequest, TransactWriteItem},
};
use karta_local::Options;
use karta_shared::{app::CallObserver, clock::SystemClock, config::Secret, http::Route};
use serde::{Deserialize, Serialize};

use crate::{
    data_plane::Received,
    harness::{TestServer, options, run_file},
};

/// An access by one request. IAM allows it for all `keys` or denies it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) function: String,
    /// `dynamodb:Query`
    pub(crate) action: String,
    /// A table, `karta-outbox/index/due`, a secret's name, or an ARN.
    pub(crate) resource: String,
    /// The kinds of partitions of a table: `KEY#*`.
    pub(crate) keys: BTreeSet<String>,
}

/// Records the calls of functions.
#[derive(Clone, Default)]
pub(crate) struct Calls {
    seen: Arc<Mutex<BTreeSet<Call>>>,
    are_kept: bool,
}

impl Calls {
    /// Also writes the calls to `target/run/calls/`, for the check after the whole run.
    pub(crate) fn kept() -> Self {
        Self { are_kept: true, ..Self::default() }
    }

    pub(crate) fn seen(&self) -> BTreeSet<Call> {
        self.seen.lock().unwrap().clone()
    }

    fn note(&self, call: Call) {
        let mut seen = self.seen.lock().unwrap();
        if !seen.contains(&call) {
            if self.are_kept {
                record(&call);
            }
            seen.insert(call);
        }
    }
}

impl CallObserver for Calls {
    fn watch(&self, function: &'static str) -> SharedInterceptor {
        SharedInterceptor::new(Watch { function, calls: self.clone() })
    }

    fn fetched(&self, function: &'static str, secret: Secret) {
        self.note(Call {
            function: function.to_owned(),
            action: "secretsmanager:GetSecretValue".to_owned(),
            resource: secret.name().to_owned(),
            keys: BTreeSet::new(),
        });
    }
}

/// Records the requests of a function to a fake API Gateway or Lambda.
pub(crate) fn record_sent_requests(function: &str, requests: &[Received]) {
    for request in requests {
        let signed = request.headers["authorization"].to_str().unwrap();
        let service = signed.split("/us-east-1/").nth(1).and_then(|scope| scope.split('/').next()).unwrap();
        let (action, resource) = match service {
            // The actions of API Gateway are the HTTP methods.
            "apigateway" => {
                (format!("apigateway:{}", request.method), format!("arn:aws:apigateway:us-east-1::{}", request.path))
            }
            "lambda" => {
                let invoked = request.path.strip_prefix("/2015-03-31/functions/").unwrap();
                ("lambda:InvokeFunction".to_owned(), invoked.strip_suffix("/invocations").unwrap().to_owned())
            }
            other => panic!("{function} called {other}"),
        };
        record(&Call { function: function.to_owned(), action, resource, keys: BTreeSet::new() });
    }
}

/// Records a request of a function to the fake Secrets Manager. The access key names the function.
pub(crate) fn record_secret_call(function: &str, operation: &str, secret: &str) {
    record(&Call {
        function: function.to_owned(),
        action: format!("secretsmanager:{operation}"),
        resource: secret.to_owned(),
        keys: BTreeSet::new(),
    });
}

/// Writes a call to the file unless the file holds it already.
fn record(call: &Call) {
    static KEPT: OnceLock<Mutex<(BTreeSet<Call>, File)>> = OnceLock::new();
    let kept = KEPT.get_or_init(|| Mutex::new((BTreeSet::new(), run_file("calls", "jsonl"))));
    let (known, file) = &mut *kept.lock().unwrap();
    if known.insert(call.clone()) {
        writeln!(file, "{}", serde_json::to_string(call).unwrap()).unwrap();
    }
}

/// The interceptor in a function's SDK.
struct Watch {
    function: &'static str,
    calls: Calls,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Watch").field(&self.function).finish()
    }
}

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "calls"
    }

    fn read_before_execution(
        &self,
        context: &BeforeSerializationInterceptorContextRef<'_>,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        for ((action, resource), keys) in accesses(context) {
            let (function, action) = (self.function.to_owned(), format!("dynamodb:{action}"));
            self.calls.note(Call { function, action, resource, keys });
        }
        Ok(())
    }
}

/// Returns the kinds of accessed partitions by action and table. For an unlisted operation, the
/// action is `?`, which no policy allows.
fn accesses(
    context: &BeforeSerializationInterceptorContextRef<'_>,
) -> BTreeMap<(&'static str, String), BTreeSet<String>> {
    let input = context.input();
    let mut accesses = BTreeMap::<_, BTreeSet<_>>::new();
    let mut add = |action: &'static str, table: Option<&str>, pk: Option<&AttributeValue>| {
        let pk = pk.and_then(|pk| pk.as_s().ok());
        let keys = accesses.entry((action, table.unwrap_or("?").to_owned())).or_default();
        keys.insert(pk.map_or_else(|| "?".to_owned(), |pk| kind(pk)));
    };
    if let Some(get) = input.downcast_ref::<GetItemInput>() {
        add("GetItem", get.table_name(), get.key().and_then(pk));
    } else if let Some(put) = input.downcast_ref::<PutItemInput>() {
        add("PutItem", put.table_name(), put.item().and_then(pk));
    } else if let Some(update) = input.downcast_ref::<UpdateItemInput>() {
        add("UpdateItem", update.table_name(), update.key().and_then(pk));
    } else if let Some(delete) = input.downcast_ref::<DeleteItemInput>() {
        add("DeleteItem", delete.table_name(), delete.key().and_then(pk));
    } else if let Some(query) = input.downcast_ref::<QueryInput>() {
        let index = query.index_name().map(|index| format!("/index/{index}")).unwrap_or_default();
        let table = query.table_name().map(|table| format!("{table}{index}"));
        // Every key condition of the store uses this name.
        let pk = query.expression_attribute_values().and_then(|values| values.get(":pk"));
        add("Query", table.as_deref(), pk);
    } else if let Some(batch) = input.downcast_ref::<BatchGetItemInput>() {
        for (table, asked) in batch.request_items().into_iter().flatten() {
            asked.keys().iter().for_each(|key| add("BatchGetItem", Some(table), pk(key)));
        }
    } else if let Some(batch) = input.downcast_ref::<BatchWriteItemInput>() {
        for (table, writes) in batch.request_items().into_iter().flatten() {
            for write in writes {
                let deleted = write.delete_request().map(DeleteRequest::key);
                let key = deleted.or_else(|| write.put_request().map(PutRequest::item));
                add("BatchWriteItem", Some(table), key.and_then(pk));
            }
        }
    } else if let Some(transaction) = input.downcast_ref::<TransactWriteItemsInput>() {
        // IAM authorises a transaction by the actions of its members.
        for member in transaction.transact_items() {
            let (action, table, key) = member_access(member);
            add(action, Some(table), pk(key));
        }
    } else {
        add("?", None, None);
    }
    accesses
}

fn member_access(member: &TransactWriteItem) -> (&'static str, &str, &HashMap<String, AttributeValue>) {
    let put = member.put().map(|put| ("PutItem", put.table_name(), put.item()));
    let update = || member.update().map(|update| ("UpdateItem", update.table_name(), update.key()));
    let delete = || member.delete().map(|delete| ("DeleteItem", delete.table_name(), delete.key()));
    let check = || member.condition_check().map(|check| ("ConditionCheckItem", check.table_name(), check.key()));
    put.or_else(update).or_else(delete).or_else(check).unwrap()
}

fn pk(item: &HashMap<String, AttributeValue>) -> Option<&AttributeValue> {
    item.get("pk")
}

/// Returns the partition as policies name it: `KEY#7` → `KEY#*`, `ID#api_key#7` → `ID#api_key#*`.
fn kind(pk: &str) -> String {
    let mut parts = pk.split('#');
    match (parts.next(), parts.next()) {
        (Some("ID"), Some(of)) => format!("ID#{of}#*"),
        (first, _) => format!("{}#*", first.unwrap_or_default()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_recorded_by_iam_action_and_resource() {
    let calls = Calls::default();
    let options = Options { call_observer: Some(Arc::new(calls.clone())), ..options(Arc::new(SystemClock)) };
    let server = TestServer::start_as(options, None).await;
    let (key, _) = server.key(&["read"]).await;
    server.get("/v1/api_keys").send().await.expect(200);
    server.delete(&format!("/v1/api_keys/{key}")).send().await.expect(200);
    let whoami = server.runner.app.for_function(whoami::Whoami::NAME);
    whoami.store.audit_reader().audited().await.unwrap();
    let functions = ["authorizer", "api-keys-list", "api-keys-revoke", "whoami"];
    let seen = calls.seen().into_iter().filter(|call| functions.contains(&call.function.as_str()));
    let seen = seen.map(|call| format!("{} {} {} {:?}", call.function, call.action, call.resource, call.keys));
    insta::assert_snapshot!(seen.collect::<Vec<_>>().join("\n"), @r#"
    api-keys-list dynamodb:Query karta {"KEY#*"}
    api-keys-list dynamodb:Query karta {"USED#*"}
    api-keys-revoke dynamodb:BatchGetItem karta {"KEY#*", "ORG#*"}
    api-keys-revoke dynamodb:BatchGetItem karta {"KEY#*", "USED#*"}
    api-keys-revoke dynamodb:ConditionCheckItem karta {"KEY#*"}
    api-keys-revoke dynamodb:PutItem karta {"AUD#*", "KEY#*"}
    api-keys-revoke dynamodb:PutItem karta-outbox {"EVT#*", "PSH#*"}
    authorizer dynamodb:BatchGetItem karta {"BUD#*", "KEY#*", "ORG#*", "USED#*"}
    authorizer dynamodb:BatchGetItem karta-usage {"UMK#*", "UMO#*"}
    authorizer dynamodb:Query karta-credentials {"KP#*"}
    authorizer dynamodb:UpdateItem karta {"USED#*"}
    authorizer secretsmanager:GetSecretValue key-tag {}
    whoami dynamodb:? ? {"?"}
    "#);
}

//! Serves simple reads with the stored text of the items.
//!
//! The emulator stores every item as the JSON that DynamoDB returns. To read an item, it decodes
//! that text, copies the item and encodes it again, which filters, projections and capacity units
//! need. This module returns the stored text itself for a GetItem, BatchGetItem or Query
//! without any of these. [`PlainReads::answer`] returns `None` for every other request, for invalid
//! requests and for reads that fail. The emulator serves those.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use dynoxide::storage::{QueryParams, Storage};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// DynamoDB's limit on the items of a Query response, in bytes. An item's text is never shorter
/// than its size in DynamoDB. Also applied to a BatchGetItem, whose own limit is higher.
const MAX_RESPONSE_BYTES: usize = 1 << 20;
/// DynamoDB's limit on the keys of a BatchGetItem.
const MAX_BATCH_KEYS: usize = 100;
/// DynamoDB's limit on a sort key, in bytes. A partition key may be longer.
const MAX_KEY_BYTES: usize = 1_024;
/// How long a read waits for a lock of another connection. A plain read may run on a thread that
/// handles HTTP requests, so it does not wait: the emulator waits on its own thread.
const BUSY_TIMEOUT: Duration = Duration::ZERO;

pub(super) struct PlainReads {
    /// A second connection to the emulator's database, because the emulator does not expose its
    /// own.
    storage: Mutex<Storage>,
    tables: HashSet<String>,
}

impl PlainReads {
    pub(super) fn new(storage: Storage) -> dynoxide::Result<Self> {
        storage.conn().busy_timeout(BUSY_TIMEOUT)?;
        Ok(Self { storage: Mutex::new(storage), tables: HashSet::new() })
    }

    /// Adds a table if its keys are the strings `pk` and `sk`.
    pub(super) fn include(&mut self, table: &str, properties: &Value) {
        let key = |name: &str, kind: &str| json!({ "AttributeName": name, "KeyType": kind });
        let texts = properties["AttributeDefinitions"].as_array().into_iter().flatten();
        let texts = texts.filter(|attribute| attribute["AttributeType"] == "S");
        let texts: HashSet<_> = texts.filter_map(|attribute| attribute["AttributeName"].as_str()).collect();
        let keys = json!([key("pk", "HASH"), key("sk", "RANGE")]);
        if properties["KeySchema"] == keys && texts.is_superset(&HashSet::from(["pk", "sk"])) {
            self.tables.insert(table.to_owned());
        }
    }

    pub(super) fn answer(&self, operation: &str, body: &[u8]) -> Option<String> {
        let storage = self.storage.lock().unwrap_or_else(PoisonError::into_inner);
        self.answer_with(&storage, operation, body).ok().flatten()
    }

    /// Like [`answer`](Self::answer), but returns `None` if another thread is reading.
    pub(super) fn try_answer(&self, operation: &str, body: &[u8]) -> Option<String> {
        let storage = self.storage.try_lock().ok()?;
        self.answer_with(&storage, operation, body).ok().flatten()
    }

    fn answer_with(&self, storage: &Storage, operation: &str, body: &[u8]) -> dynoxide::Result<Option<String>> {
        match operation {
            "BatchGetItem" => read(body, |request: BatchGetItem| self.batch_get_item(storage, &request)),
            "GetItem" => read(body, |request: GetItem| self.get_item(storage, &request)),
            "Query" => read(body, |request: Query| self.query(storage, &request)),
            _ => Ok(None),
        }
    }

    fn get_item(&self, storage: &Storage, request: &GetItem) -> dynoxide::Result<Option<String>> {
        if !self.tables.contains(&request.table_name) || !request.key.is_valid() {
            return Ok(None);
        }
        Ok(Some(match item(storage, &request.table_name, &request.key)? {
            Some(item) => format!(r#"{{"Item":{item}}}"#),
            None => "{}".to_owned(),
        }))
    }

    fn batch_get_item(&self, storage: &Storage, request: &BatchGetItem) -> dynoxide::Result<Option<String>> {
        let mut seen = HashSet::new();
        for (table, wanted) in &request.request_items {
            let are_valid = wanted.keys.iter().all(|key| key.is_valid() && seen.insert((table, key)));
            if !self.tables.contains(table) || wanted.keys.is_empty() || !are_valid {
                return Ok(None);
            }
        }
        if seen.is_empty() || seen.len() > MAX_BATCH_KEYS {
            return Ok(None);
        }
        let mut answer = String::from(r#"{"Responses":{"#);
        for (index, (table, wanted)) in request.request_items.iter().enumerate() {
            answer.push_str(if index == 0 { "\"" } else { ",\"" });
            // The names of the known tables need no escapes.
            answer.push_str(table);
            answer.push_str("\":[");
            let mut is_first = true;
            for key in &wanted.keys {
                if let Some(item) = item(storage, table, key)? {
                    answer.push_str(if is_first { "" } else { "," });
                    answer.push_str(&item);
                    is_first = false;
                }
            }
            answer.push(']');
        }
        answer.push_str(r#"},"UnprocessedKeys":{}}"#);
        Ok((answer.len() <= MAX_RESPONSE_BYTES).then_some(answer))
    }

    fn query(&self, storage: &Storage, request: &Query) -> dynoxide::Result<Option<String>> {
        let Some((partition, bound)) = request.condition() else { return Ok(None) };
        if !self.tables.contains(&request.table_name) || request.limit == Some(0) {
            return Ok(None);
        }
        let condition = bound.map(|(operator, _)| format!("AND sk {operator} ?2"));
        let bound = bound.map(|(_, bound)| stored(bound));
        let bound = bound.as_deref();
        let params = QueryParams {
            sk_condition: condition.as_deref(),
            sk_params: bound.as_slice(),
            forward: request.scan_index_forward.unwrap_or(true),
            limit: request.limit,
            ..QueryParams::default()
        };
        let rows = storage.query_items(&request.table_name, &stored(partition), &params)?;
        let length: usize = rows.iter().map(|(_, _, item)| item.len() + 1).sum();
        if length > MAX_RESPONSE_BYTES {
            return Ok(None);
        }
        let items: Vec<&str> = rows.iter().map(|(_, _, item)| item.as_str()).collect();
        let count = rows.len();
        let last = rows.last().filter(|_| request.limit.is_some_and(|limit| count >= limit)).map(|(_, sort, _)| {
            let sort = sort.strip_prefix(TEXT).unwrap_or(sort);
            let key = json!({ "pk": { "S": partition }, "sk": { "S": sort } });
            format!(r#","LastEvaluatedKey":{key}"#)
        });
        Ok(Some(format!(
            r#"{{"Items":[{}],"Count":{count},"ScannedCount":{count}{}}}"#,
            items.join(","),
            last.unwrap_or_default()
        )))
    }
}

fn item(storage: &Storage, table: &str, key: &PrimaryKey) -> dynoxide::Result<Option<String>> {
    storage.get_item(table, &stored(&key.pk.0), &stored(&key.sk.0))
}

/// Prefix of a string key in the emulator's tables.
const TEXT: &str = "S:";

/// Returns a key as the emulator's tables store it.
fn stored(key: &str) -> String {
    format!("{TEXT}{key}")
}

fn read<Q: DeserializeOwned>(
    body: &[u8],
    answer: impl FnOnce(Q) -> dynoxide::Result<Option<String>>,
) -> dynoxide::Result<Option<String>> {
    serde_json::from_slice(body).map_or(Ok(None), answer)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct GetItem {
    table_name: String,
    key: PrimaryKey,
    #[serde(rename = "ConsistentRead")]
    _consistent_read: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct BatchGetItem {
    request_items: BTreeMap<String, RequestedTable>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RequestedTable {
    keys: Vec<PrimaryKey>,
    #[serde(rename = "ConsistentRead")]
    _consistent_read: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Query {
    table_name: String,
    key_condition_expression: String,
    expression_attribute_values: BTreeMap<String, Text>,
    scan_index_forward: Option<bool>,
    limit: Option<usize>,
    #[serde(rename = "ConsistentRead")]
    _consistent_read: Option<bool>,
}

#[derive(PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrimaryKey {
    pk: Text,
    sk: Text,
}

/// `{"S":"…"}`
#[derive(PartialEq, Eq, Hash, Deserialize)]
#[serde(from = "TextMember")]
struct Text(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextMember {
    #[serde(rename = "S")]
    text: String,
}

impl From<TextMember> for Text {
    fn from(member: TextMember) -> Self {
        Self(member.text)
    }
}

impl PrimaryKey {
    fn is_valid(&self) -> bool {
        self.pk.is_key() && self.sk.is_key()
    }
}

impl Text {
    fn is_key(&self) -> bool {
        (1..=MAX_KEY_BYTES).contains(&self.0.len())
    }
}

impl Query {
    /// Returns the partition, and the operator and value that bound the sort key. `None` unless the
    /// condition is `pk = :a` or `pk = :a AND sk < :b` (any comparison) and uses all given values.
    fn condition(&self) -> Option<(&str, Option<(&str, &str)>)> {
        let values = &self.expression_attribute_values;
        let value = |name: &str| values.get(name).filter(|value| value.is_key()).map(|value| value.0.as_str());
        let expression = self.key_condition_expression.as_str();
        let (partition, sort) = expression.split_once(" AND ").map_or((expression, None), |(pk, sk)| (pk, Some(sk)));
        let partition = value(partition.strip_prefix("pk = ")?)?;
        let bound = match sort {
            None => None,
            Some(sort) => {
                let (operator, name) = sort.strip_prefix("sk ")?.split_once(' ')?;
                let operator = ["=", "<", "<=", ">", ">="].into_iter().find(|known| *known == operator)?;
                Some((operator, value(name)?))
            }
        };
        (values.len() == 1 + usize::from(bound.is_some())).then_some((partition, bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain_reads() -> PlainReads {
        let mut plain_reads = PlainReads::new(Storage::memory().unwrap()).unwrap();
        let properties = json!({
            "AttributeDefinitions": [
                { "AttributeName": "pk", "AttributeType": "S" },
                { "AttributeName": "sk", "AttributeType": "S" },
            ],
            "KeySchema": [
                { "AttributeName": "pk", "KeyType": "HASH" },
                { "AttributeName": "sk", "KeyType": "RANGE" },
            ],
        });
        plain_reads.include("karta", &properties);
        plain_reads
    }

    #[test]
    fn failed_read_has_no_answer() {
        let plain_reads = plain_reads();
        let get = json!({ "TableName": "karta", "Key": { "pk": { "S": "a" }, "sk": { "S": "b" } } }).to_string();
        let storage = plain_reads.storage.lock().unwrap();
        assert!(plain_reads.answer_with(&storage, "GetItem", get.as_bytes()).is_err(), "the table does not exist");
        drop(storage);
        assert_eq!(plain_reads.answer("GetItem", get.as_bytes()), None);
        assert_eq!(plain_reads.try_answer("GetItem", get.as_bytes()), None);
    }

    #[test]
    fn reads_do_not_wait_for_locks() {
        let plain_reads = plain_reads();
        let storage = plain_reads.storage.lock().unwrap();
        let timeout = storage.conn().query_row("PRAGMA busy_timeout", [], |row| row.get::<_, i64>(0));
        assert_eq!(timeout.unwrap(), 0);
    }
}

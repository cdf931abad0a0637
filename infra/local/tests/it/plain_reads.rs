//! The embedded store serves the simplest form of a read directly from the stored text. A request
//! with `ReturnConsumedCapacity: NONE` has the same response but goes to the emulator. These tests
//! send every read in both forms and compare the responses.

use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::harness::TestServer;

const TABLE: &str = "karta-usage";

/// Sends an operation and returns status and body. Sorts the items of a batch.
async fn send(server: &TestServer, operation: &str, body: &Value) -> (u16, Value) {
    let access_key = server.runner.emulator.access_key().expose_secret();
    let answer = reqwest::Client::new()
        .post(server.runner.emulator.endpoint())
        .header("x-amz-target", format!("DynamoDB_20120810.{operation}"))
        .header("authorization", format!("AWS4-HMAC-SHA256 Credential={access_key}/20261121/us-east-1/dynamodb"))
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    let (status, mut body) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
    for items in
        body.get_mut("Responses").and_then(Value::as_object_mut).into_iter().flat_map(|tables| tables.values_mut())
    {
        items.as_array_mut().unwrap().sort_by_key(Value::to_string);
    }
    (status, body)
}

/// Sends a read in both forms, asserts equal responses and returns the response.
async fn same(server: &TestServer, operation: &str, body: Value) -> (u16, Value) {
    let mut other = body.clone();
    other["ReturnConsumedCapacity"] = json!("NONE");
    let plain = send(server, operation, &body).await;
    assert_eq!(plain, send(server, operation, &other).await, "{operation} {body}");
    plain
}

fn key(pk: &str, sk: &str) -> Value {
    json!({ "pk": { "S": pk }, "sk": { "S": sk } })
}

async fn put(server: &TestServer, pk: &str, sk: &str, attributes: Value) {
    let mut item = key(pk, sk);
    item.as_object_mut().unwrap().extend(attributes.as_object().unwrap().clone());
    assert_eq!(send(server, "PutItem", &json!({ "TableName": TABLE, "Item": item })).await.0, 200);
}

async fn server() -> TestServer {
    let server = TestServer::start().await;
    let texts = json!({ "quoted": { "S": "\"\\\u{8}\n\u{0}" }, "wide": { "S": "ä€😀\u{202e}" }, "empty": { "S": "" } });
    put(&server, "P#1", "a\"b\\c", texts).await;
    put(&server, "P#1", "b", json!({ "n": { "N": "-12.50" }, "yes": { "BOOL": true }, "no": { "NULL": true } })).await;
    let nested = json!({ "l": { "L": [{ "S": "x" }, { "M": { "y": { "L": [] } } }] }, "m": { "M": {} } });
    put(&server, "P#1", "c", nested).await;
    let sets = json!({ "ss": { "SS": ["b", "a"] }, "ns": { "NS": ["10", "9"] }, "b": { "B": "AP8=" } });
    put(&server, "P#1", "d", sets).await;
    put(&server, "P#1", "e", json!({})).await;
    put(&server, "P#2", "a", json!({ "other": { "S": "partition" } })).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_single_reads_answer_like_the_emulator() {
    let server = server().await;
    let get = |key: Value| json!({ "TableName": TABLE, "Key": key, "ConsistentRead": true });
    for sk in ["a\"b\\c", "b", "c", "d", "e"] {
        let (status, answer) = same(&server, "GetItem", get(key("P#1", sk))).await;
        assert_eq!((status, &answer["Item"]["sk"]["S"]), (200, &json!(sk)));
    }
    assert_eq!(same(&server, "GetItem", get(key("P#1", "none"))).await, (200, json!({})));
    for wrong in [
        key("P#1", ""),
        key("", "a"),
        key("P#1", &"x".repeat(1_025)),
        json!({ "pk": { "S": "P#1" } }),
        json!({ "pk": { "S": "P#1" }, "sk": { "N": "1" } }),
        json!({ "pk": { "S": "P#1" }, "sk": { "S": "a" }, "more": { "S": "a" } }),
    ] {
        assert_eq!(same(&server, "GetItem", get(wrong)).await.0, 400);
    }
    assert_eq!(same(&server, "GetItem", json!({ "TableName": "absent", "Key": key("P#1", "a") })).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_batch_reads_answer_like_the_emulator() {
    let server = server().await;
    let batch = |keys: &[Value]| json!({ "RequestItems": { TABLE: { "Keys": keys, "ConsistentRead": true } } });
    let all = [key("P#1", "a\"b\\c"), key("P#1", "d"), key("P#2", "a"), key("P#3", "none")];
    let (status, answer) = same(&server, "BatchGetItem", batch(&all)).await;
    assert_eq!((status, answer["Responses"][TABLE].as_array().unwrap().len()), (200, 3));
    let (_, answer) = same(&server, "BatchGetItem", batch(&all[3..])).await;
    assert_eq!(answer, json!({ "Responses": { TABLE: [] }, "UnprocessedKeys": {} }));
    let two = json!({ "RequestItems": {
        TABLE: { "Keys": [key("P#1", "e")] },
        "karta": { "Keys": [key(&format!("ORG#{}", server.organization_id), "META")] },
    } });
    let (_, answer) = same(&server, "BatchGetItem", two).await;
    assert_eq!(answer["Responses"]["karta"].as_array().unwrap().len(), 1);
    let many: Vec<_> = (0..101).map(|index| key("P#1", &index.to_string())).collect();
    for wrong in [batch(&[]), batch(&[all[0].clone(), all[0].clone()]), batch(&many), json!({ "RequestItems": {} })] {
        assert_eq!(same(&server, "BatchGetItem", wrong).await.0, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_queries_answer_like_the_emulator() {
    let server = server().await;
    let query = |condition: &str, values: &[(&str, &str)], more: Value| {
        let values: Value = values.iter().map(|(name, text)| ((*name).to_owned(), json!({ "S": text }))).collect();
        let mut query = json!({ "TableName": TABLE, "KeyConditionExpression": condition, "ConsistentRead": true });
        query["ExpressionAttributeValues"] = values;
        query.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        query
    };
    let (_, answer) = same(&server, "Query", query("pk = :p", &[(":p", "P#1")], json!({}))).await;
    assert_eq!((&answer["Count"], answer.get("LastEvaluatedKey")), (&json!(5), None));
    let (_, answer) = same(&server, "Query", query("pk = :p", &[(":p", "P#none")], json!({ "Limit": 1 }))).await;
    assert_eq!(answer, json!({ "Items": [], "Count": 0, "ScannedCount": 0 }));
    for operator in ["=", "<", "<=", ">", ">="] {
        for limit in [1, 2, 3, 5, 6] {
            for forward in [true, false] {
                let condition = format!("pk = :p AND sk {operator} :s");
                let more = json!({ "Limit": limit, "ScanIndexForward": forward });
                same(&server, "Query", query(&condition, &[(":p", "P#1"), (":s", "c")], more)).await;
            }
        }
    }
    let of = |condition| query(condition, &[(":p", "P#1"), (":s", "c")], json!({}));
    for other in ["sk < :s AND pk = :p", "pk = :p AND begins_with(sk, :s)", "pk = :p AND sk BETWEEN :s AND :s"] {
        assert_eq!(same(&server, "Query", of(other)).await.0, 200);
    }
    for wrong in
        ["pk = :p", "pk = :p AND sk < :none", "pk = :p AND sk <> :s", "pk < :p AND sk = :s", "pk = :p AND x = :s"]
    {
        assert_eq!(same(&server, "Query", of(wrong)).await.0, 400, "{wrong}");
    }
    for wrong in [json!({ "Limit": 0 }), json!({ "Limit": -1 }), json!({ "TableName": "absent" })] {
        assert_eq!(same(&server, "Query", query("pk = :p", &[(":p", "P#1")], wrong)).await.0, 400);
    }
    let continued = json!({ "Limit": 2, "ExclusiveStartKey": key("P#1", "b") });
    let (_, answer) = same(&server, "Query", query("pk = :p", &[(":p", "P#1")], continued)).await;
    assert_eq!(answer["LastEvaluatedKey"], key("P#1", "d"));
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_query_ends_at_one_megabyte() {
    let server = TestServer::start().await;
    for sk in ["a", "b", "c", "d"] {
        put(&server, "P#1", sk, json!({ "text": { "S": "x".repeat(300_000) } })).await;
    }
    let values = json!({ ":p": { "S": "P#1" } });
    let query = json!({ "TableName": TABLE, "KeyConditionExpression": "pk = :p", "ExpressionAttributeValues": values });
    let (_, answer) = same(&server, "Query", query).await;
    assert_eq!((&answer["Count"], &answer["LastEvaluatedKey"]), (&json!(3), &key("P#1", "c")));
}

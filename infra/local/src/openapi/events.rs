//! The schema of streams: server-sent events of a turn.

use std::collections::BTreeMap;

use karta_shared::domain::{MessageId, SessionId, StopReason, Timestamp, TurnError, TurnId};
use serde_json::{Value, json};
use utoipa::{PartialSchema, ToSchema};

pub(super) const MEDIA_TYPE: &str = "text/event-stream";

/// Returns the schema of a server-sent event of a stream.
pub(super) fn server_sent_event() -> Value {
    let mut event = object(json!({
        "id": { "type": "string", "description": "For `Last-Event-ID`: `<turn id>.<number>`." },
        "event": { "type": "string", "enum": ["text", "reasoning", "done", "error"] },
        "data": { "type": "string", "contentMediaType": "application/json", "contentSchema": reference("TurnEvent") },
    }));
    event["description"] =
        "An event of the stream. The last one is `done` or `error`. Comments keep the connection alive.".into();
    event
}

/// Returns the schemas of events by name.
pub(super) fn components() -> BTreeMap<String, Value> {
    let part = json!({
        "part": object(json!({ "id": text(), "type": reference("PartKind"), "text": text() })),
    });
    let done = json!({
        "message_id": reference(&MessageId::name()),
        "usage": reference("TurnUsage"),
        "stop_reason": reference(&StopReason::name()),
    });
    let error = json!({ "code": reference(&TurnError::name()), "message": text() });
    let kinds = [
        ("TurnPartEvent", json!(["text", "reasoning"]), "An increment of a part of the answer.", part),
        ("TurnDoneEvent", json!(["done"]), "The end of a turn with an answer.", done),
        ("TurnErrorEvent", json!(["error"]), "The end of a turn without an answer, or with a part of it.", error),
    ];
    let one_of = kinds.each_ref().map(|(name, ..)| reference(name));
    let mut components: BTreeMap<String, Value> =
        kinds.into_iter().map(|(name, types, meaning, data)| (name.to_owned(), event(&types, meaning, data))).collect();
    components.insert("TurnEvent".to_owned(), json!({ "oneOf": one_of }));
    components.extend([
        (SessionId::name().into(), json!(SessionId::schema())),
        (TurnId::name().into(), json!(TurnId::schema())),
        (MessageId::name().into(), json!(MessageId::schema())),
        (StopReason::name().into(), json!(StopReason::schema())),
        (Timestamp::name().into(), json!(Timestamp::schema())),
        (TurnError::name().into(), json!(TurnError::schema())),
    ]);
    components
}

fn event(types: &Value, meaning: &str, data: Value) -> Value {
    let mut event = object(json!({
        "type": { "type": "string", "enum": types },
        "session_id": reference(&SessionId::name()),
        "turn_id": reference(&TurnId::name()),
        "seq": { "type": "integer", "minimum": 1, "description": "Number of the event in its turn." },
        "timestamp": reference(&Timestamp::name()),
        "data": object(data),
    }));
    event["description"] = meaning.into();
    event
}

fn text() -> Value {
    json!({ "type": "string" })
}

#[expect(clippy::needless_pass_by_value, reason = "callers write the properties in place")]
fn object(properties: Value) -> Value {
    let required: Vec<_> = properties.as_object().into_iter().flat_map(|properties| properties.keys()).collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

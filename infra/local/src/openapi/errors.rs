//! The contract's errors, as every operation refers to them.

use serde_json::{Value, json};

/// How an error is called in the document, its status, when it is answered, and its body but for `request_id`.
fn table() -> [(&'static str, u16, &'static str, Value); 13] {
    let text = || json!({ "type": "string" });
    let word = |word: &str| json!({ "type": "string", "const": word });
    let told = |error: Value| json!({ "error": error, "message": text() });
    let mut invalid = told(json!({
        "type": "string",
        "enum": ["validation_failed", "byok_key_rejected", "idempotency_mismatch"],
    }));
    invalid["field"] = json!({ "type": "string", "description": "The parameter, header or field of the body." });
    [
        ("MalformedJson", 400, "The body is not JSON.", told(word("malformed_json"))),
        (
            "Unauthorized",
            401,
            "The credential is missing, malformed, unknown, revoked, expired, or used from outside its CIDRs: one answer for all. `message` says how to send one.",
            json!({ "detail": word("Unauthorized"), "message": text() }),
        ),
        (
            "BudgetExhausted",
            402,
            "The organization's or the key's budget is exhausted.",
            json!({
                "error": word("budget_exhausted"),
                "reason": text(),
                "cap": {
                    "type": ["string", "null"],
                    "enum": ["total_tokens", "input_tokens", "output_tokens", "cost_cents", null],
                    "description": "The cap that is reached; null where the subscription is the reason.",
                },
                "of": { "type": "string", "enum": ["organization", "api_key"], "description": "Owner of the exhausted budget." },
                "resets_at": {
                    "type": ["string", "null"],
                    "format": "date-time",
                    "description": "End of the UTC month, when the cap resets; null if the subscription is the reason.",
                },
            }),
        ),
        (
            "Forbidden",
            403,
            "The credential is valid, and does not suffice: a scope is missing, or the project is another one.",
            json!({ "detail": text() }),
        ),
        (
            "NotFound",
            404,
            "The resource does not exist or belongs to another organization. `error` is present only if no route has this path and method.",
            json!({ "detail": word("Not found") }),
        ),
        (
            "Conflict",
            409,
            "What is there does not allow it; `error` says why. `id` is the resource that it is about, where there is one.",
            told(json!({ "type": "string", "examples": ["slug_taken", "last_admin_key", "secret_already_revealed"] })),
        ),
        ("BodyTooLarge", 413, "The body is larger than 64 KiB.", told(word("body_too_large"))),
        (
            "UnsupportedEncoding",
            415,
            "The body has a `Content-Encoding`: send it as it is.",
            told(word("unsupported_encoding")),
        ),
        ("Invalid", 422, "Something in the request cannot be what it is: `message` says what would be right.", invalid),
        (
            "RateLimited",
            429,
            "Too many requests.",
            json!({ "error": word("rate_limited"), "retry_after_seconds": { "type": "integer", "minimum": 1 } }),
        ),
        ("Internal", 500, "A fault of ours.", json!({ "detail": word("Internal error") })),
        ("Unavailable", 503, "A dependency is down: try again.", json!({ "detail": text() })),
        ("TimedOut", 504, "No answer in time: try again.", json!({ "detail": text() })),
    ]
}

/// The response object's name for a status.
pub(super) fn reference(status: u16) -> Value {
    let (name, ..) = table().into_iter().find(|(_, of, ..)| *of == status).expect("a status of the table");
    json!({ "$ref": format!("#/components/responses/{name}") })
}

pub(super) fn responses() -> Value {
    let response = |(name, status, when, mut properties): (&str, u16, &str, Value)| {
        let mut required: Vec<_> =
            properties.as_object().into_iter().flat_map(|fields| fields.keys().cloned()).collect();
        required.push("request_id".to_owned());
        properties["request_id"] = json!({ "type": "string" });
        match status {
            404 => properties["error"] = json!({ "type": "string", "const": "unknown_route" }),
            409 => properties["id"] = json!({ "$ref": "#/components/schemas/Id" }),
            422 => properties["provider"] = json!({ "$ref": "#/components/schemas/Provider" }),
            _ => {}
        }
        let mut headers = request_id();
        if status == 401 {
            headers["WWW-Authenticate"] = json!({ "$ref": "#/components/headers/Challenge" });
        }
        if [429, 503, 504].contains(&status) {
            headers["Retry-After"] = json!({ "$ref": "#/components/headers/RetryAfter" });
        }
        let schema =
            json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false });
        let described = json!({
            "description": when,
            "headers": headers,
            "content": { "application/json": { "schema": schema } },
        });
        (name.to_owned(), described)
    };
    Value::Object(table().into_iter().map(response).collect())
}

/// The headers of every answer.
pub(super) fn request_id() -> Value {
    json!({ "x-request-id": { "$ref": "#/components/headers/RequestId" } })
}

pub(super) fn headers() -> Value {
    json!({
        "RequestId": {
            "description": "What to quote when something went wrong; every log line about the request carries it.",
            "required": true,
            "schema": { "type": "string", "minLength": 1 },
        },
        "Challenge": {
            "description": "The scheme of the credential. A 401 that a route answers itself, past the gateway, has it as `x-amzn-remapped-www-authenticate`.",
            "schema": { "type": "string", "const": "Bearer" },
        },
        "RetryAfter": {
            "description": "After how many seconds to try again.",
            "required": true,
            "schema": { "type": "integer", "minimum": 1 },
        },
    })
}

//! The error responses of the document, which the operations refer to.

use serde_json::{Value, json};

/// Returns each error's name in the document, its status, its description, and its body without
/// `request_id`.
fn errors() -> [(&'static str, u16, &'static str, Value); 13] {
    let text = || json!({ "type": "string" });
    let word = |word: &str| json!({ "type": "string", "const": word });
    let body = |error: Value| json!({ "error": error, "message": text() });
    let mut invalid = body(json!({
        "type": "string",
        "enum": ["validation_failed", "byok_key_rejected", "idempotency_mismatch"],
    }));
    invalid["field"] =
        json!({ "type": "string", "description": "The name of the body's field, the query parameter or the header." });
    [
        (
            "BadRequest",
            400,
            "The body is not JSON, or a header that is read once was sent twice.",
            body(json!({ "type": "string", "enum": ["malformed_json", "duplicate_header"] })),
        ),
        (
            "Unauthorized",
            401,
            "The credential is missing, malformed, unknown, revoked, expired, or used from outside its CIDRs. The response is the same in each case. `message` says how to send a credential.",
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
                    "description": "The cap that was reached; null if the subscription is the reason.",
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
            "The credential is valid but not sufficient: it lacks a scope or belongs to another project.",
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
            "The request conflicts with the current state; `error` says why. `id` is the resource in question, if there is one.",
            body(
                json!({ "type": "string", "examples": ["slug_taken", "last_admin_key", "secret_already_revealed", "turn_in_progress"] }),
            ),
        ),
        (
            "BodyTooLarge",
            413,
            "The body is larger than the route's limit, which `message` names.",
            body(word("body_too_large")),
        ),
        (
            "UnsupportedEncoding",
            415,
            "The body has a `Content-Encoding`: send it without an encoding.",
            body(word("unsupported_encoding")),
        ),
        ("Invalid", 422, "A field, query parameter or header is invalid: `message` says what is valid.", invalid),
        (
            "RateLimited",
            429,
            "Too many requests.",
            json!({ "error": word("rate_limited"), "retry_after_seconds": { "type": "integer", "minimum": 1 } }),
        ),
        ("Internal", 500, "A fault in the server.", json!({ "detail": word("Internal error") })),
        ("Unavailable", 503, "A dependency is unavailable: retry.", json!({ "detail": text() })),
        ("TimedOut", 504, "The request timed out: retry.", json!({ "detail": text() })),
    ]
}

pub(super) fn reference(status: u16) -> Value {
    let (name, ..) = errors()
        .into_iter()
        .find(|(_, known, ..)| *known == status)
        .expect("every status of an operation is in `errors`");
    json!({ "$ref": format!("#/components/responses/{name}") })
}

/// The further errors of routes that run a turn: status, name in the document, description, and the
/// codes of a turn whose answer is not streamed.
const TURN_ERRORS: [(u16, &str, &str, &[&str]); 8] = [
    (
        401,
        "TurnUnauthorized",
        "As for other routes, or the credential lost its access during the turn.",
        &["credential_revoked"],
    ),
    (402, "TurnBudgetExhausted", "The budget is exhausted, or was during the turn.", &["budget_exhausted"]),
    (409, "TurnConflict", "A turn is running in this session, or the turn was cancelled.", &["turn_cancelled"]),
    (
        422,
        "TurnInvalid",
        "The request is invalid, its model cannot be used, or the provider rejected it.",
        &["provider_rejected", "byok_key_rejected", "provider_credit_exhausted"],
    ),
    (429, "TurnRateLimited", "Too many requests, here or at the provider.", &["provider_rate_limited"]),
    (500, "TurnInternal", "A fault in the server.", &["interrupted", "internal"]),
    (502, "TurnProviderFailed", "The provider failed, or its answer ended early.", &["provider_error"]),
    (504, "TurnTimedOut", "The request, the provider or the turn timed out.", &["provider_timeout", "turn_deadline"]),
];

/// Returns the references by status for a route that runs a turn.
pub(super) fn turn_references() -> impl Iterator<Item = (String, Value)> {
    let reference = |name: &str| json!({ "$ref": format!("#/components/responses/{name}") });
    TURN_ERRORS.into_iter().map(move |(status, name, ..)| (status.to_string(), reference(name)))
}

pub(super) fn responses() -> Value {
    let usual = errors().map(|(name, status, when, properties)| {
        (name.to_owned(), response(status, when, &usual_schema(status, properties), "RetryAfter"))
    });
    let turn = TURN_ERRORS.map(|(status, name, when, codes)| {
        (name.to_owned(), response(status, when, &turn_schema(status, codes), "TurnRetryAfter"))
    });
    Value::Object(usual.into_iter().chain(turn).collect())
}

fn response(status: u16, when: &str, schema: &Value, retry_after: &str) -> Value {
    let mut headers = request_id();
    if status == 401 {
        headers["WWW-Authenticate"] = json!({ "$ref": "#/components/headers/Challenge" });
    }
    // The 402 of a turn has it while running turns hold the rest of a cap.
    if [429, 503, 504].contains(&status) || (status == 402 && retry_after == "TurnRetryAfter") {
        headers["Retry-After"] = json!({ "$ref": format!("#/components/headers/{retry_after}") });
    }
    json!({ "description": when, "headers": headers, "content": { "application/json": { "schema": schema } } })
}

/// Returns the schema of an error's body.
fn usual_schema(status: u16, properties: Value) -> Value {
    let mut schema = body_schema(properties);
    let properties = &mut schema["properties"];
    match status {
        404 => properties["error"] = json!({ "type": "string", "const": "unknown_route" }),
        409 => properties["id"] = json!({ "$ref": "#/components/schemas/Id" }),
        422 => properties["provider"] = json!({ "$ref": "#/components/schemas/Provider" }),
        _ => {}
    }
    schema
}

/// Returns the schema of an error's body on a route that runs a turn.
fn turn_schema(status: u16, codes: &[&str]) -> Value {
    let text = || json!({ "type": "string" });
    let body = |codes: &[&str]| json!({ "error": { "type": "string", "enum": codes }, "message": text() });
    let mut any_of = vec![body_schema(body(codes))];
    if let Some((_, _, _, properties)) = errors().into_iter().find(|(_, usual, ..)| *usual == status) {
        any_of.push(usual_schema(status, properties));
    }
    if status == 422 {
        let mut refused = body(&["model_not_allowed", "model_required", "model_unpriced"]);
        refused["field"] = json!({ "type": "string", "const": "model" });
        let mut refused = body_schema(refused);
        refused["properties"]["allowed"] =
            json!({ "type": "array", "items": text(), "description": "The models that the caller may name." });
        let mut full = body(&["session_full"]);
        full["field"] = json!({ "type": "string", "const": "text" });
        let mut keyless = body(&["no_model_key"]);
        keyless["provider"] = json!({ "$ref": "#/components/schemas/Provider" });
        any_of.extend([refused, body_schema(full), body_schema(keyless)]);
    }
    json!({ "anyOf": any_of })
}

/// Returns the schema of a body with these fields and `request_id`, all required.
fn body_schema(mut properties: Value) -> Value {
    properties["request_id"] = json!({ "type": "string" });
    let required: Vec<_> = properties.as_object().into_iter().flat_map(|fields| fields.keys().cloned()).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// Returns the headers of every response.
pub(super) fn request_id() -> Value {
    json!({ "x-request-id": { "$ref": "#/components/headers/RequestId" } })
}

pub(super) fn headers() -> Value {
    json!({
        "RequestId": {
            "description": "Identifies the request. Quote it in a report of a problem: every log line about the request contains it.",
            "required": true,
            "schema": { "type": "string", "minLength": 1 },
        },
        "Challenge": {
            "description": "The scheme of the credential. A 401 from a route instead of the gateway has this header as `x-amzn-remapped-www-authenticate`.",
            "schema": { "type": "string", "const": "Bearer" },
        },
        "RetryAfter": {
            "description": "Seconds to wait before a retry.",
            "required": true,
            "schema": { "type": "integer", "minimum": 1 },
        },
        "TurnRetryAfter": {
            "description": "Seconds to wait before a retry, if they are known.",
            "schema": { "type": "integer", "minimum": 1 },
        },
    })
}

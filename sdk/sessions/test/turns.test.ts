// Tests the codes with which a turn ends, in both forms, and the errors before a turn starts.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  KartaAuthError,
  KartaBadRequestError,
  KartaBudgetError,
  KartaConflictError,
  KartaError,
  KartaForbiddenError,
  KartaNotFoundError,
  KartaPayloadTooLargeError,
  KartaRateLimitError,
  KartaResponseError,
  KartaServerError,
  KartaUnavailableError,
  KartaValidationError,
  type TurnErrorCode,
} from "@karta/sessions";
import { SESSION, TOKEN, collect, failed, failure, json, scripted, streamed, text } from "./support.js";

const ENDS: Readonly<Record<TurnErrorCode, readonly [number, new (...args: never[]) => KartaError]>> = {
  provider_rejected: [422, KartaValidationError],
  byok_key_rejected: [422, KartaValidationError],
  provider_credit_exhausted: [422, KartaValidationError],
  provider_rate_limited: [429, KartaRateLimitError],
  provider_error: [502, KartaServerError],
  provider_timeout: [504, KartaUnavailableError],
  turn_deadline: [504, KartaUnavailableError],
  budget_exhausted: [402, KartaBudgetError],
  turn_cancelled: [409, KartaConflictError],
  credential_revoked: [401, KartaAuthError],
  interrupted: [500, KartaServerError],
  internal: [500, KartaServerError],
};

for (const [code, [status, type]] of Object.entries(ENDS)) {
  test(`${code} is one error in both forms`, async () => {
    const body = { error: code, message: "It failed.", request_id: "req_1" };
    const unary = scripted([json(status, body, { "x-request-id": "req_1", "retry-after": "7" })], { project: "my-app", sessionToken: () => TOKEN });
    const thrown = await failure(() => unary.sessions.send(SESSION, { text: "hi" }));
    // The same request would run another turn.
    assert.equal(unary.sent.length, 1);
    const stream = scripted([streamed([text(1, "Hel"), failed(2, code, "It failed.")])]).sessions.stream(SESSION, { text: "hi" });
    const events = await collect(stream);
    assert.deepEqual(events.map((event) => event.type), ["text", "error"]);
    assert.deepEqual(events.at(-1)?.data, { code, message: "It failed." });
    const streamedError = await failure(() => stream.text());
    for (const error of [thrown, streamedError]) {
      assert.ok(error instanceof type && error instanceof KartaError);
      assert.equal(error.constructor, type);
      assert.deepEqual([error.code, error.status, error.message], [code, status, `${status}: It failed.`]);
    }
    assert.deepEqual([(thrown as KartaError).requestId, (thrown as KartaError).retryAfter], ["req_1", 7]);
    assert.equal((streamedError as KartaError).requestId, "req_stream");
  });
}

test("an unknown end is a server error", async () => {
  for (const code of ["provider_tired", "constructor"]) {
    const stream = scripted([streamed([failed(1, code)])]).sessions.stream(SESSION, { text: "hi" });
    const error = await failure(() => stream.text());
    assert.ok(error instanceof KartaServerError && error.code === code && error.status === 500);
  }
});

test("each status throws its error class and details", async () => {
  const budget = { error: "budget_exhausted", reason: "key: monthly token cap reached", cap: "total_tokens", of: "api_key", resets_at: "2026-12-01T00:00:00.000Z" };
  const cases = [
    [400, KartaBadRequestError, { error: "malformed_json", message: "no JSON" }, "400: no JSON"],
    [401, KartaAuthError, { detail: "Unauthorized" }, "401: Unauthorized"],
    [402, KartaBudgetError, budget, "402: key: monthly token cap reached"],
    [403, KartaForbiddenError, { detail: "missing scope: write" }, "403: missing scope: write"],
    [404, KartaNotFoundError, { detail: "Not found" }, "404: Not found"],
    [409, KartaConflictError, { error: "turn_in_progress", message: "A turn is running" }, "409: A turn is running"],
    [409, KartaConflictError, { error: "no_active_release", message: "Deploy first" }, "409: Deploy first"],
    [413, KartaPayloadTooLargeError, { error: "body_too_large", message: "large" }, "413: large"],
    [415, KartaError, { error: "unsupported_encoding", message: "plain" }, "415: plain"],
    [418, KartaError, {}, "418: no reason given"],
    [422, KartaValidationError, { error: "validation_failed", message: "text is required", field: "text" }, "422: text is required"],
    [422, KartaValidationError, { error: "model_not_allowed", message: "Use one of: a" }, "422: Use one of: a"],
    [422, KartaValidationError, { error: "model_required", message: "Name a model" }, "422: Name a model"],
    [422, KartaValidationError, { error: "model_unpriced", message: "No price" }, "422: No price"],
    [422, KartaValidationError, { error: "no_model_key", message: "No key", provider: "openai" }, "422: No key"],
    [422, KartaValidationError, { error: "idempotency_mismatch", message: "Another body" }, "422: Another body"],
    [429, KartaRateLimitError, { error: "rate_limited", retry_after_seconds: 3 }, "429: rate_limited"],
    [500, KartaServerError, { detail: "Internal error" }, "500: Internal error"],
    [503, KartaUnavailableError, { detail: "down" }, "503: down"],
    [504, KartaUnavailableError, { detail: "late" }, "504: late"],
  ] as const;
  for (const [status, type, body, message] of cases) {
    for (const call of ["send", "stream"] as const) {
      const { sessions, sent } = scripted([json(status, body, { "x-request-id": "req_1" })], { maxRetries: 0 });
      const error = await failure(() => (call === "send" ? sessions.send(SESSION, { text: "hi" }) : sessions.stream(SESSION, { text: "hi" }).text()));
      assert.ok(error instanceof type && error instanceof KartaError && error instanceof Error, String(error));
      assert.equal(error.constructor, type);
      assert.deepEqual([error.name, error.message, error.status, error.requestId], [type.name, message, status, "req_1"]);
      assert.deepEqual(error.body, body);
      assert.equal(error.code, "error" in body ? body.error : undefined);
      assert.equal(error.retryAfter, status === 429 ? 3 : undefined);
      assert.equal(sent.length, 1);
      if (error instanceof KartaBudgetError) assert.deepEqual([error.cap, error.of, error.resetsAt, error.reason], [budget.cap, budget.of, budget.resets_at, budget.reason]);
      if (error instanceof KartaValidationError) assert.equal(error.field, "field" in body ? body.field : undefined);
    }
  }
});

test("responses of other servers are reported", async () => {
  const page = (status: number) => new Response("<html>Bad gateway</html>", { status, headers: { "content-type": "text/html" } });
  const of = (response: Response) => failure(() => scripted([response], { maxRetries: 0 }).sessions.get(SESSION));
  const success = await of(page(200));
  assert.ok(success instanceof KartaResponseError);
  assert.match(success.message, /content-type: text\/html.*baseUrl/);
  assert.equal(success.body, "<html>Bad gateway</html>");
  assert.ok((await of(page(502))) instanceof KartaServerError);
  assert.ok((await of(page(403))) instanceof KartaForbiddenError);
  for (const body of ["", "null", `"ok"`, "[]", "{"]) assert.ok((await of(new Response(body))) instanceof KartaResponseError, body);
  for (const status of [301, 307]) {
    const moved = await of(new Response(null, { status, headers: { location: "https://elsewhere.test/" } }));
    assert.ok(moved instanceof KartaResponseError);
    assert.match(moved.message, /redirect/);
  }
  const unary = await failure(() => scripted([json(200, { text: "hi" })]).sessions.stream(SESSION, { text: "hi" }).text());
  assert.ok(unary instanceof KartaResponseError);
});

test("Retry-After may be a date", async () => {
  const date = new Date(Date.now() + 20_000).toUTCString();
  const { sessions } = scripted([json(503, {}, { "retry-after": date })], { maxRetries: 0 });
  const error = (await failure(() => sessions.get(SESSION))) as KartaError;
  assert.ok(Number(error.retryAfter) > 15 && Number(error.retryAfter) <= 20, String(error.retryAfter));
});

import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { inspect } from "node:util";
import {
  Karta,
  KartaAbortError,
  KartaArgumentError,
  KartaAuthError,
  KartaBadRequestError,
  KartaBudgetError,
  KartaConflictError,
  KartaConnectionError,
  KartaError,
  KartaForbiddenError,
  KartaNotFoundError,
  KartaPayloadTooLargeError,
  KartaRateLimitError,
  KartaResponseError,
  KartaServerError,
  KartaTimeoutError,
  KartaUnavailableError,
  KartaValidationError,
  VERSION,
} from "@karta/sdk";
import * as sdk from "@karta/sdk";
import { API_KEY, failure, json, scripted, type Sent } from "./support.js";


/** A server that never responds. The request fails as with fetch when its signal is aborted. */
const hanging = ({ init }: { init: RequestInit }) =>
  new Promise<Response>((_, reject) => {
    init.signal?.addEventListener("abort", () => reject(new DOMException("This operation was aborted", "AbortError")));
  });

test("requests have key, user agent and JSON body", async () => {
  const { karta, sent } = scripted([json(201, { api_key: { id: 1 }, secret: "kt_live_x" })]);
  await karta.apiKeys.create("ci-runner", ["write"], { metadata: { team: "a" } });
  const [{ method, url, headers, body, init } = {} as never] = sent;
  assert.equal(method, "POST");
  assert.equal(url, "https://karta.test/v1/api_keys");
  assert.equal(headers.get("authorization"), `Bearer ${API_KEY}`);
  assert.equal(headers.get("content-type"), "application/json");
  assert.equal(headers.get("user-agent"), `karta-sdk-typescript/${VERSION}`);
  assert.deepEqual(body, { name: "ci-runner", scopes: ["write"], metadata: { team: "a" } });
  assert.equal(init.redirect, "manual");
});

test("each status throws its error class and details", async () => {
  const cases = [
    [400, KartaBadRequestError, { error: "malformed_json", message: "no JSON" }, "400: no JSON"],
    [401, KartaAuthError, { detail: "Unauthorized" }, "401: Unauthorized"],
    [401, KartaAuthError, { detail: "Unauthorized", message: "Send Authorization: Bearer <key>." }, "401: Send Authorization: Bearer <key>."],
    [
      402,
      KartaBudgetError,
      {
        error: "budget_exhausted",
        reason: "key: monthly token cap reached",
        cap: "total_tokens",
        of: "api_key",
        resets_at: "2026-12-01T00:00:00.000Z",
      },
      "402: key: monthly token cap reached",
    ],
    [403, KartaForbiddenError, { detail: "missing scope: admin" }, "403: missing scope: admin"],
    [404, KartaNotFoundError, { detail: "Not found" }, "404: Not found"],
    [404, KartaNotFoundError, { detail: "Not found", error: "unknown_route" }, "404: Not found"],
    [409, KartaConflictError, { error: "slug_taken", message: "taken" }, "409: taken"],
    [413, KartaPayloadTooLargeError, { error: "body_too_large", message: "large" }, "413: large"],
    [415, KartaError, { error: "unsupported_encoding", message: "plain" }, "415: plain"],
    [422, KartaValidationError, { error: "validation_failed", message: "Name is required", field: "name" }, "422: Name is required"],
    [429, KartaRateLimitError, { error: "rate_limited", retry_after_seconds: 3 }, "429: rate_limited"],
    [500, KartaServerError, { detail: "Internal error" }, "500: Internal error"],
    [503, KartaUnavailableError, { detail: "down" }, "503: down"],
    [504, KartaUnavailableError, { detail: "late" }, "504: late"],
    [418, KartaError, { detail: "teapot" }, "418: teapot"],
  ] as const;
  for (const [status, type, body, message] of cases) {
    const { karta } = scripted([json(status, body, { "x-request-id": "req_1" })], { maxRetries: 0 });
    const error = await failure(() => karta.whoami());
    assert.ok(error instanceof type && error instanceof KartaError && error instanceof Error);
    assert.equal(error.constructor, type);
    assert.equal(error.name, type.name);
    assert.equal(error.message, message);
    assert.equal(error.status, status);
    assert.deepEqual(error.body, body);
    assert.equal(error.code, "error" in body ? body.error : undefined);
    assert.equal(error.requestId, "req_1");
    if (error instanceof KartaBudgetError) {
      assert.deepEqual([error.cap, error.of, error.resetsAt], ["total_tokens", "api_key", "2026-12-01T00:00:00.000Z"]);
    }
  }
});

test("errors expose the fields of their bodies", async () => {
  const of = (status: number, body: unknown, headers = {}) => failure(() => scripted([json(status, body, headers)], { maxRetries: 0 }).karta.whoami());
  assert.equal(((await of(422, { field: "scopes[0]" })) as KartaValidationError).field, "scopes[0]");
  assert.equal(((await of(402, { reason: "subscription past_due" })) as KartaBudgetError).reason, "subscription past_due");
  const capped = (await of(402, { reason: "r", cap: "cost_cents", of: "api_key", resets_at: "2026-12-01T00:00:00.000Z" })) as KartaBudgetError;
  assert.deepEqual([capped.cap, capped.of, capped.resetsAt], ["cost_cents", "api_key", "2026-12-01T00:00:00.000Z"]);
  const unpaid = (await of(402, { reason: "subscription unpaid", cap: null, of: "organization", resets_at: null })) as KartaBudgetError;
  assert.deepEqual([unpaid.cap, unpaid.of, unpaid.resetsAt], [null, "organization", null]);
  const older = (await of(402, { reason: "r", cap: 7 })) as KartaBudgetError;
  assert.deepEqual([older.cap, older.of, older.resetsAt], [undefined, undefined, undefined]);
  assert.equal(((await of(429, { retry_after_seconds: 3 })) as KartaRateLimitError).retryAfter, 3);
  assert.equal(((await of(503, {}, { "retry-after": "2" })) as KartaUnavailableError).retryAfter, 2);
  assert.equal(((await of(404, { request_id: "req_2" })) as KartaError).requestId, "req_2");
});

test("a Retry-After date counts from the server's clock", async () => {
  const headers = { "retry-after": "Sun, 22 Nov 2026 07:00:10 GMT", date: "Sun, 22 Nov 2026 07:00:00 GMT" };
  const { karta, waits } = scripted([json(503, {}, headers), json(200, {})], { now: () => 0 });
  await karta.whoami();
  assert.deepEqual(waits, [10_250]);
});

test("retries use jitter and stop at maxRetries", async () => {
  for (const trouble of [json(429, {}), json(503, {}), json(504, {}), new TypeError("fetch failed")]) {
    const { karta, sent, waits } = scripted([trouble, trouble, json(200, { kind: "api_key" })]);
    assert.equal((await karta.whoami()).kind, "api_key");
    assert.deepEqual(waits, [250, 500]);
    assert.equal(sent.length, 3);
  }
  const { karta, sent, waits } = scripted([json(503, { detail: "down" })], { maxRetries: 7, random: () => 0.999 });
  assert.ok((await failure(() => karta.whoami())) instanceof KartaUnavailableError);
  assert.equal(sent.length, 8);
  assert.ok(Math.max(...waits) < 8_000);
  const impatient = scripted([json(503, {})]);
  await failure(() => impatient.karta.whoami({ maxRetries: 0 }));
  assert.equal(impatient.sent.length, 1);
});

test("Retry-After is followed for at most 30 seconds", async () => {
  const { karta, waits } = scripted([json(429, {}, { "retry-after": "7" }), json(429, {}, { "retry-after": "86400" }), json(200, {})]);
  await karta.whoami();
  assert.deepEqual(waits, [7_250, 30_500]);
});

test("other error statuses are not retried", async () => {
  for (const status of [400, 401, 402, 403, 404, 409, 413, 422, 500, 502]) {
    const { karta, sent } = scripted([json(status, {})]);
    await failure(() => karta.apiKeys.revoke(1));
    assert.equal(sent.length, 1, String(status));
  }
});

test("each create has one key over its retries", async () => {
  const { karta, sent } = scripted([new TypeError("fetch failed"), json(503, {}), json(201, {}), json(201, {})]);
  await karta.apiKeys.create("a", ["read"]);
  await karta.apiKeys.create("a", ["read"]);
  const keys = sent.map(({ headers }) => headers.get("idempotency-key"));
  assert.match(String(keys[0]), /^sdk-[0-9a-f]{32}$/);
  assert.deepEqual(keys.slice(0, 3), [keys[0], keys[0], keys[0]]);
  assert.notEqual(keys[3], keys[0]);
});

test("a create sends the caller's valid idempotency key", async () => {
  const { karta, sent } = scripted([json(201, {})]);
  for (const idempotencyKey of ["order 1", "~", "a".repeat(255)]) {
    await karta.projects.create({ slug: "a", name: "A" }, { idempotencyKey });
    assert.equal(sent.at(-1)?.headers.get("idempotency-key"), idempotencyKey);
  }
  const refused = ["", " ", " order-1", "order-1 ", "order-1\n", "\torder-1", "ä", "a\nb", "a\u007f", "a".repeat(256), 7, Number.NaN, {}] as string[];
  for (const idempotencyKey of refused) {
    for (const create of [
      () => karta.projects.create({ slug: "a", name: "A" }, { idempotencyKey }),
      () => karta.apiKeys.create("a", [], {}, { idempotencyKey }),
      () => karta.apiKeys.rotate(1, {}, { idempotencyKey }),
      () => karta.modelKeys.create("openai", "sk", null, { idempotencyKey }),
      () => karta.webhookEndpoints.create({ url: "https://a.test", event_types: ["*"] }, { idempotencyKey }),
      () => karta.webhookEndpoints.rotateSecret(1, {}, { idempotencyKey }),
      () => karta.deploys.create("a", { commit_sha: "abcdef0" }, { idempotencyKey }),
    ]) {
      const error = await failure(create);
      assert.ok(error instanceof KartaArgumentError && error.field === "idempotencyKey", JSON.stringify(idempotencyKey));
    }
  }
  assert.equal(sent.length, 3);
});

test("only creates have an idempotency key", async () => {
  const { karta, sent } = scripted([json(200, { agent_projects: [], next_cursor: null })]);
  await karta.apiKeys.create("a", ["read"]);
  await karta.apiKeys.rotate(1);
  await karta.modelKeys.create("openai", "sk-0123456789abcdefghij");
  await karta.webhookEndpoints.create({ url: "https://a.test", event_types: ["*"] });
  await karta.webhookEndpoints.rotateSecret(1);
  await karta.projects.create({ slug: "a", name: "A" });
  await karta.deploys.create("a", { commit_sha: "abcdef0" });
  assert.deepEqual(sent.map(({ headers }) => headers.has("idempotency-key")), Array(7).fill(true));
  sent.length = 0;
  await karta.apiKeys.update(1, { name: "b" });
  await karta.sessionTokens.mint("a");
  await karta.releases.rollback("a", 1);
  await karta.webhookEndpoints.test(1);
  await karta.budget.update({});
  await karta.apiKeys.revoke(1);
  await karta.projects.list();
  assert.deepEqual(sent.map(({ headers }) => headers.has("idempotency-key")), Array(7).fill(false));
});

test("calls that are not idempotent are never retried", async () => {
  const calls: ((karta: Karta) => Promise<unknown>)[] = [
    (karta) => karta.sessionTokens.mint("a"),
    (karta) => karta.apiKeys.update(1, { name: "b" }),
    (karta) => karta.projects.update("a", { name: "b" }),
    (karta) => karta.releases.rollback("a", 1),
    (karta) => karta.webhookEndpoints.test(1),
    (karta) => karta.webhookEndpoints.replay(1, 2),
    (karta) => karta.webhookEndpoints.recover(1, { since: "2026-11-22T00:00:00Z" }),
  ];
  for (const call of calls) {
    const { karta, sent } = scripted([new TypeError("fetch failed")], { maxRetries: 5 });
    assert.ok((await failure(() => call(karta))) instanceof KartaConnectionError);
    assert.equal(sent.length, 1);
  }
});

test("a connection error has the failure as cause", async () => {
  const cause = new TypeError("fetch failed");
  const error = await failure(() => scripted([cause], { maxRetries: 0 }).karta.whoami());
  assert.ok(error instanceof KartaConnectionError);
  assert.equal(error.cause, cause);
  assert.equal(error.status, undefined);
  assert.match(error.message, /https:\/\/karta\.test/);
});

test("a timeout is retried, then thrown", async () => {
  const { karta, sent } = scripted([hanging, json(200, {})], { timeout: 10 });
  await karta.whoami();
  assert.equal(sent.length, 2);
  const error = await failure(() => scripted([hanging]).karta.whoami({ timeout: 10, maxRetries: 0 }));
  assert.ok(error instanceof KartaTimeoutError && error instanceof KartaConnectionError);
  assert.match(error.message, /within 10 ms/);
});

test("a signal aborts a call at any time", async () => {
  const reason = new Error("the user left");
  const early = scripted([json(200, {})]);
  const before = await failure(() => early.karta.whoami({ signal: AbortSignal.abort(reason) }));
  assert.ok(before instanceof KartaAbortError && before.cause === reason);
  assert.equal(early.sent.length, 0);

  const during = new AbortController();
  const busy = scripted([hanging]);
  const call = failure(() => busy.karta.whoami({ signal: during.signal }));
  during.abort(reason);
  const error = await call;
  assert.ok(error instanceof KartaAbortError && error.cause === reason);
  assert.equal(busy.sent.length, 1);

  const started = Date.now();
  const responding = new AbortController();
  const abortAndRespond = () => {
    responding.abort(reason);
    return json(503, {}, { "retry-after": "20" });
  };
  assert.ok((await failure(() => scripted([abortAndRespond], { sleep: undefined }).karta.whoami({ signal: responding.signal }))) instanceof KartaAbortError);

  const waiting = new AbortController();
  const answer = () => {
    setTimeout(() => waiting.abort(reason), 5);
    return json(503, {}, { "retry-after": "20" });
  };
  const patient = scripted([answer], { sleep: undefined });
  assert.ok((await failure(() => patient.karta.whoami({ signal: waiting.signal }))) instanceof KartaAbortError);
  assert.ok(Date.now() - started < 5_000);
});

test("a fetch that ignores its signal is ended", async () => {
  const never = () => new Promise<never>(() => {});
  const slowBody = () => ({ ok: true, status: 200, type: "basic", headers: new Headers(), text: never }) as unknown as Response;
  for (const [deaf, what] of [[never, "no"], [slowBody, "incomplete"]] as const) {
    for (const call of [(karta: Karta) => karta.whoami(), (karta: Karta) => karta.apiKeys.list(), (karta: Karta) => karta.apiKeys.create("a", [])]) {
      const error = await failure(() => call(scripted([deaf], { timeout: 10, maxRetries: 0 }).karta));
      assert.ok(error instanceof KartaTimeoutError, String(error));
      assert.equal(error.message, `${what} response from https://karta.test within 10 ms`);
    }
    const reason = new Error("the user left");
    const controller = new AbortController();
    const call = failure(() => scripted([deaf]).karta.whoami({ signal: controller.signal }));
    setTimeout(() => controller.abort(reason), 5);
    const error = await call;
    assert.ok(error instanceof KartaAbortError && error.cause === reason, String(error));
  }
});

test("a replaced sleep that ignores its signal is ended", async () => {
  const controller = new AbortController();
  const sleep = () => (controller.abort(), new Promise<void>(() => {}));
  const error = await failure(() => scripted([json(503, {})], { sleep }).karta.whoami({ signal: controller.signal }));
  assert.ok(error instanceof KartaAbortError, String(error));
});

test("an incomplete response is a connection error", async () => {
  let asked = 0;
  const server = createServer((_, response) => {
    asked += 1;
    response.writeHead(200, { "content-type": "application/json", "content-length": "100" });
    response.write(`{"kind":`);
    setTimeout(() => response.destroy(), 5);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const karta = new Karta({ apiKey: API_KEY, baseUrl: `http://127.0.0.1:${port}`, sleep: async () => {} });
  const error = await failure(() => karta.whoami());
  server.close();
  assert.ok(error instanceof KartaConnectionError && error.cause instanceof Error);
  assert.equal(asked, 3);
});

test("a response that is not JSON is reported", async () => {
  const page = (status: number) => new Response("<html>Bad gateway</html>", { status, headers: { "content-type": "text/html" } });
  const of = (response: Response) => failure(() => scripted([response], { maxRetries: 0 }).karta.whoami());
  const success = await of(page(200));
  assert.ok(success instanceof KartaResponseError);
  assert.match(success.message, /not a JSON object \(content-type: text\/html\).*baseUrl/);
  assert.equal(success.body, "<html>Bad gateway</html>");
  assert.ok((await of(page(502))) instanceof KartaServerError);
  assert.ok((await of(page(503))) instanceof KartaUnavailableError);
  assert.ok((await of(page(403))) instanceof KartaForbiddenError);
  for (const text of ["", "null", `"ok"`, "{"]) assert.ok((await of(new Response(text))) instanceof KartaResponseError, text);
});

test("a redirect is not followed", async () => {
  for (const status of [301, 302, 307]) {
    const { karta, sent } = scripted([new Response(null, { status, headers: { location: "https://elsewhere.test/" } })]);
    const error = await failure(() => karta.whoami());
    assert.ok(error instanceof KartaResponseError);
    assert.match(error.message, /redirect/);
    assert.equal(sent.length, 1);
  }
});

test("secrets in a response are removed from errors", async () => {
  const secrets = [API_KEY, `Bearer ${API_KEY}`, "whsec_c2VjcmV0LXNlY3JldA==", "sk-ant-0123456789abcdef", "eyJhbGciOi.eyJvcmci.c2lnbmF0dXJl"];
  for (const secret of secrets) {
    for (const response of [json(422, { message: `got ${secret}`, nested: [secret] }), new Response(`echo: ${secret}`, { status: 502 })]) {
      const shown = inspect(await failure(() => scripted([response]).karta.apiKeys.get(1)), { depth: 9 });
      assert.ok(!shown.includes(secret) && shown.includes("[redacted]"), shown);
    }
  }
});

test("no error shows an echoed request", async () => {
  const echoed = ({ headers }: Sent) => Object.fromEntries(headers);
  const asText = (status: number) => (sent: Sent) => new Response(JSON.stringify(echoed(sent)).slice(1), { status });
  const asFields = (status: number) => (sent: Sent) => {
    const { authorization } = echoed(sent);
    const body = { message: authorization, headers: echoed(sent), nested: { [authorization ?? ""]: [[authorization]] } };
    return json(status, body, { "x-request-id": authorization ?? "" });
  };
  const asType = (sent: Sent) => new Response("<html>", { headers: { "content-type": echoed(sent).authorization ?? "" } });
  const escaped = () => new Response(`{"message":"${API_KEY.replace("_", "\\u005f")}"}`, { status: 422 });
  const deep = () => new Response(`{"error":${"[".repeat(9_999)}"${API_KEY}"${"]".repeat(9_999)}}`, { status: 400 });
  const statuses = [300, 400, 401, 402, 403, 404, 409, 413, 418, 422, 429, 500, 503, 504];
  const scripts = [...statuses.flatMap((status) => [asText(status), asFields(status)]), asText(200), asType, escaped, deep];
  const seen = new Set<string>();
  for (const script of scripts) {
    const error = await failure(() => scripted([script], { maxRetries: 0 }).karta.whoami());
    assert.ok(error instanceof KartaError);
    seen.add(error.name);
    const shown = inspect(error, { depth: 99 }) + JSON.stringify(error);
    assert.ok(!shown.includes(API_KEY) && !/Bearer (?!\[|<)/.test(shown), shown);
  }
  for (const list of [asFields(200), asText(200)]) {
    const error = await failure(() => scripted([list]).karta.apiKeys.list());
    assert.ok(error instanceof KartaResponseError);
    assert.ok(!inspect(error, { depth: 99 }).includes(API_KEY));
  }
  const withoutResponse = ["KartaAbortError", "KartaArgumentError", "KartaConnectionError", "KartaSignatureError", "KartaTimeoutError"];
  const classes = Object.keys(sdk).filter((name) => name.endsWith("Error") && !withoutResponse.includes(name));
  assert.deepEqual([...seen].sort(), classes.sort());
  for (const name of classes) {
    const Type = (sdk as unknown as Record<string, typeof KartaError>)[name]!;
    const error = new Type(`got ${API_KEY}`, { body: { secret: [API_KEY] }, requestId: API_KEY });
    assert.deepEqual([error.message, error.body, error.requestId], ["got [redacted]", { secret: ["[redacted]"] }, "[redacted]"], name);
  }
});

const PRIVATE_KEY = `-----BEGIN PRIVATE KEY-----\n${"MIIEvQIBADANBgkqhkiG9w0BAQEF/AASC+Bkcwgg5jAgEAAoIBAQC7VJTUt9Us8c\n".repeat(3)}q5s=\n-----END PRIVATE KEY-----\n`;
const BEDROCK = { access_key_id: "AKIAIOSFODNN7EXAMPLE", secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", session_token: "IQoJb3JpZ2luX2VjEPr//token==" };
const VERTEX = { type: "service_account", client_email: "a@b.iam.gserviceaccount.com", private_key: PRIVATE_KEY };
const ABSK = `ABSK${"QmVkcm9ja0FQSUtleS0xMjM0/NTY3ODkw+YWJjZGVm".repeat(2)}==`;
const ODD_TOKEN = "abc123def.ghi456jkl.mno789pqr";

/** Each call that sends a secret, and what no error may show of it. */
const SENDING: readonly [name: string, secrets: readonly string[], call: (karta: Karta) => unknown][] = [
  ["a bearer token", [ABSK], (karta) => karta.modelKeys.create("bedrock", ABSK)],
  ["a key in another format", ["gateway:p4ss word!"], (karta) => karta.modelKeys.create("openrouter", "gateway:p4ss word!")],
  ["fields", Object.values(BEDROCK), (karta) => karta.modelKeys.create("bedrock", BEDROCK as never)],
  ["fields as JSON", Object.values(BEDROCK), (karta) => karta.modelKeys.create("bedrock", JSON.stringify(BEDROCK))],
  ["fields as indented JSON", Object.values(VERTEX), (karta) => karta.modelKeys.create("vertex", JSON.stringify(VERTEX, null, 2))],
  ["nested fields", [PRIVATE_KEY], (karta) => karta.modelKeys.create("vertex", { keys: [{ private_key: PRIVATE_KEY }] } as never)],
  ["a private key", PRIVATE_KEY.split("\n").filter((line) => line.length > 20), (karta) => karta.modelKeys.create("vertex", VERTEX as never)],
  ["a webhook's URL", ["ann:pa55word", "t0ken-of-the-hook"], (karta) => karta.webhookEndpoints.create({ url: "https://ann:pa55word@a.test/?t=t0ken-of-the-hook", event_types: ["*"] })],
  ["a changed webhook's URL", ["pa55word"], (karta) => karta.webhookEndpoints.update(1, { url: "https://:pa55word@a.test" })],
  ["an endpoint's URL", ["pa55word"], (karta) => karta.projects.update("a", { endpoint_url: "https://ann:pa55word@a.test" })],
  ["an artifact's URL", ["5igned+by/ann=="], (karta) => karta.deploys.create("a", { commit_sha: "abcdef0", artifact_url: "https://a.test/b?sig=5igned+by/ann==" })],
  ["only the credential", [ODD_TOKEN], (karta) => karta.whoami()],
  ["only the credential, for a list", [ODD_TOKEN], (karta) => karta.apiKeys.list()],
];

/** Returns a text as it may be written in an echo. */
const SPELLINGS: Record<string, (text: string) => string> = {
  unchanged: (text) => text,
  "as JSON": (text) => JSON.stringify(text),
  "as JSON in JSON": (text) => JSON.stringify(JSON.stringify(text)),
  "as JSON with escaped slashes": (text) => JSON.stringify(text).replaceAll("/", "\\/"),
  "as JSON with escaped punctuation": (text) => JSON.stringify(text).replace(/[^\w" ]/g, (each) => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`),
  "as a query": (text) => new URLSearchParams({ text }).toString(),
  "as a query in a query": (text) => encodeURIComponent(encodeURIComponent(text)),
  "as HTML": (text) => text.replace(/[^\w\s]/g, (each) => `&#x${each.charCodeAt(0).toString(16)};`),
};

/** Returns the text without punctuation and escapes, so that a secret is found in any spelling. */
const bare = (text: string) => text.replace(/\\+u[\da-f]{4}|\\+[nrt]|%(?:25)*[\da-f]{2}|&#x[\da-f]+;|[^a-z\d]/gi, "");

test("no error shows a secret that the call sent", async () => {
  for (const [name, secrets, call] of SENDING) {
    for (const [spelling, spell] of Object.entries(SPELLINGS)) {
      const text = ({ headers, init }: Sent) => spell(`${headers.get("authorization")}\n${String(init.body)}`);
      const echoes: [string, (sent: Sent) => Response][] = [
        ["text", (sent) => new Response(`502: ${text(sent)}`, { status: 502 })],
        ["fields", (sent) => json(502, { message: text(sent), headers: Object.fromEntries(sent.headers), body: sent.body ?? null, [text(sent)]: [text(sent)] })],
        ["headers", (sent) => new Response("{}", { headers: { "x-request-id": encodeURI(text(sent)), "content-type": encodeURI(text(sent)) }, status: 422 })],
        ["a success", (sent) => json(200, { echo: [text(sent)] })],
        ["a broken success", (sent) => new Response(`{"body":${text(sent)}`)],
      ];
      for (const [form, echo] of echoes) {
        const { karta, sent } = scripted([echo], { apiKey: ODD_TOKEN, maxRetries: 0 });
        const error = await Promise.resolve(call(karta)).catch((thrown: unknown) => thrown);
        if (!(error instanceof KartaError)) continue;
        assert.equal(sent.length, 1);
        const shown = [error.message, error.requestId, JSON.stringify(error.body), inspect(error, { depth: 9, maxStringLength: null })].join(" ");
        for (const secret of [ODD_TOKEN, ...secrets]) assert.ok(!bare(shown).includes(bare(secret)), `${name}, ${form}, ${spelling}: ${secret} in ${shown}`);
      }
    }
  }
});

test("a secret whose end is cut off is removed", async () => {
  for (const [key, tail] of [[ABSK, 3], [JSON.stringify(BEDROCK), 25], [JSON.stringify(VERTEX), 40]] as const) {
    const cut = ({ init }: Sent) => new Response(`echo: ${String(init.body).slice(0, -tail)}`, { status: 502 });
    const error = await failure(() => scripted([cut], { maxRetries: 0 }).karta.modelKeys.create("bedrock", key));
    assert.ok(error instanceof KartaError);
    assert.match(String(error.body), /^echo: \{"provider":"bedrock","key":"\W*\[redacted]\W{0,4}n?$/);
  }
});

test("messages stay readable if a key is no secret", async () => {
  const body = { error: "byok_key_rejected", field: "key", message: "key looks like an OpenAI key: choose provider openai", provider: "anthropic" };
  for (const key of ["", "key", "a", "!!!", "sk-ant-0123456789abcdefghij"]) {
    const error = await failure(() => scripted([json(422, body)]).karta.modelKeys.create("anthropic", key));
    assert.ok(error instanceof KartaError);
    assert.deepEqual(error.body, body, key);
  }
});

test("invalid ids and slugs are rejected before sending", async () => {
  const { karta, sent } = scripted([json(200, {})]);
  const ids = [0, -1, 1.5, 2 ** 53, Number.NaN, Infinity, "7", "../budget", undefined, null, {}] as number[];
  for (const id of ids) {
    for (const call of [
      () => karta.apiKeys.get(id),
      () => karta.apiKeys.revoke(id),
      () => karta.modelKeys.revoke(id),
      () => karta.webhookEndpoints.delete(id),
      () => karta.webhookEndpoints.replay(1, id),
      () => karta.webhookEndpoints.deliveries(id),
      () => karta.releases.logs("a", id),
    ]) {
      const error = await failure(call);
      assert.ok(error instanceof KartaArgumentError, String(error));
    }
  }
  for (const slug of ["", "..", "a/b", "a?b", "A", "ä", "a".repeat(64), 7, undefined] as string[]) {
    for (const call of [() => karta.projects.get(slug), () => karta.releases.list(slug), () => karta.sessionTokens.mint(slug)]) {
      const error = await failure(call);
      assert.ok(error instanceof KartaArgumentError && error.field === "slug", String(error));
    }
  }
  assert.match(String(await failure(() => karta.apiKeys.get("7" as never))), /pass Number\(id\)/);
  assert.equal(sent.length, 0);
});

test("a missing user never creates an unbound token", async () => {
  const { karta, sent } = scripted([json(201, {})]);
  for (const field of ["userId", "user_id"]) {
    for (const user of [undefined, null]) {
      const error = await failure(() => karta.sessionTokens.mint("a", { [field]: user } as never));
      assert.ok(error instanceof KartaArgumentError && error.field === field, String(error));
    }
  }
  await karta.sessionTokens.mint("a", { userId: "u", ttlSeconds: 60 });
  await karta.sessionTokens.mint("a", { user_id: "u", ttl_seconds: 60 });
  await karta.sessionTokens.mint("a");
  assert.deepEqual(sent.map(({ body }) => body), [{ user_id: "u", ttl_seconds: 60 }, { user_id: "u", ttl_seconds: 60 }, {}]);
});

test("session tokens accept inherited and non-enumerable fields", async () => {
  class User {
    get userId() {
      return "ann";
    }
    get ttl_seconds() {
      return 60;
    }
  }
  class Private {
    #user = "ann";
    toJSON() {
      return { user_id: this.#user, ttl_seconds: 60 };
    }
  }
  const given: object[] = [
    new User(),
    Object.create({ user_id: "ann", ttlSeconds: 60 }),
    Object.defineProperties({}, { user_id: { value: "ann" }, ttl_seconds: { value: 60 } }),
    { user_id: "ann", ttl_seconds: 60, toJSON: () => ({}) },
    { userId: "ann", ttlSeconds: 60, toJSON: () => ({ user_id: "ann" }) },
    new Private(),
    { user_id: "ann", userId: "ann", ttl_seconds: 60, ttlSeconds: 60 },
    { user_id: "ann", ttl_seconds: undefined, ttlSeconds: 60 },
  ];
  const { karta, sent } = scripted([json(201, {})]);
  for (const params of given) await karta.sessionTokens.mint("a", params);
  assert.deepEqual(sent.map(({ body }) => body), given.map(() => ({ user_id: "ann", ttl_seconds: 60 })));
});

test("lost or contradictory session token fields are rejected", async () => {
  const { karta, sent } = scripted([json(201, {})]);
  const refused: [string, unknown][] = [
    ["userId", { user_id: "ann", userId: "bob" }],
    ["user_id", { user_id: "ann", toJSON: () => ({ user_id: "bob" }) }],
    ["ttlSeconds", { ttl_seconds: 60, ttlSeconds: 900 }],
    ["ttlSeconds", { ttl_seconds: null, ttlSeconds: 900 }],
    ["user_id", Object.create({ user_id: undefined })],
    ["userId", new (class { get userId() { return null; } })()],
    ["userId", new (class { get userId() { return Number.NaN; } })()],
    ["ttl_seconds", Object.create({ ttl_seconds: Number.NaN })],
    ["user_id", { toJSON: () => ({ user_id: undefined }) }],
    ["user_id", { toJSON: () => ({ user_id: null }) }],
    ["params", new (class { get user() { return "ann"; } })()],
    ["params", new (class extends Map<string, string> {})([["user_id", "ann"]])],
  ];
  for (const [field, params] of refused) {
    const error = await failure(() => karta.sessionTokens.mint("a", params as never));
    assert.ok(error instanceof KartaArgumentError && error.field === field, `${field}: ${String(error)}`);
  }
  assert.equal(sent.length, 0);
});

test("usage prints as text and stays plain data", async () => {
  const totals = { input_tokens: 1_000_000, output_tokens: 5, cache_read_tokens: 4, cache_write_tokens: 6, total_tokens: 1_000_015, cost_cents: 251 };
  const body = { period: "2026-11", totals, by_model: [], by_day: [], budget: {} };
  const usage = await scripted([json(200, body)]).karta.usage.summary();
  assert.equal(`Used ${usage} this period`, "Used 1,000,015 tokens ($2.51) this period");
  assert.deepEqual({ ...usage }, body);
  assert.equal(JSON.stringify(usage), JSON.stringify(body));
});

test("deleting an endpoint returns undefined", async () => {
  const { karta } = scripted([new Response(null, { status: 204 })]);
  assert.equal(await karta.webhookEndpoints.delete(1), undefined);
});

test("a finished call leaves no timer or listener", async () => {
  const timers = () => process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
  const before = timers();
  const signal = new AbortController().signal;
  let listeners = 0;
  const add = signal.addEventListener.bind(signal);
  const remove = signal.removeEventListener.bind(signal);
  signal.addEventListener = ((...args: Parameters<typeof add>) => ((listeners += 1), add(...args))) as typeof add;
  signal.removeEventListener = ((...args: Parameters<typeof remove>) => ((listeners -= 1), remove(...args))) as typeof remove;
  await scripted([json(503, {}), json(200, {})], { sleep: undefined, random: () => 0 }).karta.whoami({ signal });
  assert.deepEqual([listeners, timers()], [0, before]);
});

test("a call sends its object as it was at the call", async () => {
  const { karta, sent } = scripted([json(201, {})]);
  const params = { url: "", event_types: ["ping" as const] };
  const calls = [1, 2, 3].map((number) => karta.webhookEndpoints.create(Object.assign(params, { url: `https://example.com/${number}` })));
  await Promise.all(calls);
  assert.deepEqual(sent.map(({ init }) => JSON.parse(init.body as string).url), [1, 2, 3].map((number) => `https://example.com/${number}`));
});

// Tests every method against the fake server, and what requests contain, repeat and give up on.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { after, beforeEach, test } from "node:test";
import { inspect } from "node:util";
import {
  KartaAbortError,
  KartaArgumentError,
  KartaAuthError,
  KartaConflictError,
  KartaConnectionError,
  KartaNotFoundError,
  KartaResponseError,
  KartaSessions,
  KartaTimeoutError,
  KartaUnavailableError,
  VERSION,
  type KartaSessionsOptions,
  type Session,
} from "@karta/sessions";
import { FakeServer } from "./server.js";
import { API_KEY, SESSION, TEXT, TOKEN, USAGE, collect, failure, json, scripted, type Sent } from "./support.js";

const server = await FakeServer.start();
after(() => server.stop());
server.credentials.add(API_KEY).add(TOKEN);
beforeEach(() => void (server.seen.length = 0));

/** A server that never responds. The request fails as with fetch when its signal is aborted. */
const hanging = ({ init }: Sent) =>
  new Promise<Response>((_, reject) => {
    init.signal?.addEventListener("abort", () => reject(new DOMException("This operation was aborted", "AbortError")));
  });

const FAMILIES: readonly (readonly [string, KartaSessionsOptions, string])[] = [
  ["an API key, flat", { apiKey: API_KEY }, "/v1/sessions"],
  ["an API key, in a project", { apiKey: API_KEY, project: "my-app" }, "/v1/projects/my-app/sessions"],
  ["a session token", { sessionToken: TOKEN, project: "my-app" }, "/v1/projects/my-app/sessions"],
];

for (const [name, options, path] of FAMILIES) {
  test(`every method works with ${name}`, async () => {
    const sessions = new KartaSessions({ ...options, baseUrl: server.url });
    const session = await sessions.create({ metadata: { user_id: "ann", plan: "pro" } });
    assert.deepEqual([session.user_id, session.metadata.plan, session.project?.ref], ["ann", "pro", options.project]);
    const { id } = session;
    assert.deepEqual(await sessions.resume(id), session);
    assert.deepEqual(await sessions.resume(id, { metadata: { user_id: "ann" } }), session);
    assert.deepEqual(await sessions.get(id), session);
    assert.ok((await sessions.list({ userId: "ann" })).some((each) => each.id === id));

    const answer = await sessions.send(id, { text: "hi", model: "gpt-x", maxTokens: 100, thinking: true });
    assert.deepEqual([answer.text, answer.session_id, answer.usage, answer.stop_reason], [TEXT, id, USAGE, "end_turn"]);
    const stream = sessions.stream(id, { text: "again" });
    assert.equal(await stream.text(), TEXT);
    const followed = await collect(sessions.follow(id));
    assert.deepEqual(followed.map(({ id }) => id), [1, 2, 3, 4, 5, 6, 7].map((seq) => `${stream.turnId}.${seq}`));
    const rest = await collect(sessions.follow(id, { after: `${stream.turnId}.5` }));
    assert.deepEqual(rest.map(({ seq }) => seq), [6, 7]);
    const messages = await collect(sessions.messages(id));
    assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant", "user", "assistant"]);
    const error = await failure(() => sessions.cancel(id));
    assert.ok(error instanceof KartaConflictError && error.code === "no_turn_in_progress");
    assert.equal(await sessions.delete(id), undefined);
    assert.ok((await failure(() => sessions.get(id))) instanceof KartaNotFoundError);

    const requests = server.seen.map(({ method, path: at, body }) => [method, at.replaceAll(id, "ID").replace(path, "").replaceAll(String(stream.turnId), "TURN"), body]);
    assert.deepEqual(requests, [
      ["POST", "", { metadata: { user_id: "ann", plan: "pro" } }],
      ["POST", "", { session_id: "ID" }].map((each) => (typeof each === "object" ? { session_id: id } : each)),
      ["POST", "", { metadata: { user_id: "ann" }, session_id: id }],
      ["GET", "/ID", {}],
      ["GET", "?user_id=ann&limit=100", {}],
      ["POST", "/ID/messages", { text: "hi", model: "gpt-x", max_tokens: 100, thinking: true }],
      ["POST", "/ID/messages", { text: "again", stream: true }],
      ["GET", "/ID/stream", {}],
      ["GET", "/ID/stream?after=TURN.5", {}],
      ["GET", "/ID/messages?limit=100", {}],
      ["POST", "/ID/cancel", {}],
      ["DELETE", "/ID", {}],
      ["GET", "/ID", {}],
    ]);
    assert.ok(server.seen.every(({ headers }) => headers["user-agent"] === `karta-sessions/${VERSION}`));
  });
}

test("requests have credential, types and key", async () => {
  const { sessions, sent } = scripted([json(201, {})]);
  await sessions.create();
  const [{ method, headers, body, init } = {} as never] = sent;
  assert.deepEqual([method, headers.get("authorization"), headers.get("accept"), headers.get("content-type")], ["POST", `Bearer ${API_KEY}`, "application/json", "application/json"]);
  assert.deepEqual(body, {});
  assert.equal(init.redirect, "manual");
  await sessions.send(SESSION, { text: "hi" });
  assert.match(String(sent[1]?.headers.get("idempotency-key")), /^[0-9a-f]{32}$/);
  await sessions.resume(SESSION);
  await sessions.cancel(SESSION);
  await sessions.get(SESSION);
  assert.ok(!sent[4]?.headers.has("content-type"));
  // The server ignores a key of other calls.
  assert.deepEqual(sent.map(({ headers }) => headers.has("idempotency-key")), [false, true, false, false, false]);
});

test("a list has pages, a limit and a cursor", async () => {
  const sessions = new KartaSessions({ apiKey: API_KEY, baseUrl: server.url });
  const created: Session[] = [];
  for (let count = 0; count < 105; count++) created.unshift(await sessions.create({ metadata: { user_id: "list" } }));
  const ids = created.map(({ id }) => id);
  server.seen.length = 0;
  const list = sessions.list({ user_id: "list" });
  assert.equal(server.seen.length, 0);
  assert.deepEqual((await list).map(({ id }) => id), ids);
  assert.equal(server.seen.length, 2);
  for await (const { id } of list) if (id === ids[99]) break;
  assert.equal(server.seen.length, 3);
  const first = await sessions.list({ user_id: "list", limit: 3 }).page();
  assert.deepEqual([first.items.map(({ id }) => id), first.next_cursor], [ids.slice(0, 3), "3"]);
  const second = await sessions.list({ user_id: "list", limit: 3, cursor: first.next_cursor });
  assert.deepEqual(second.map(({ id }) => id), ids.slice(3, 6));
  assert.equal((await sessions.list({ limit: 102 })).length, 102);
});

test("short pages, repeated cursors and missing lists", async () => {
  const short = scripted([json(200, { messages: [], next_cursor: "a" }), json(200, { messages: [{ id: 1 }], next_cursor: null })]);
  assert.equal((await short.sessions.messages(SESSION)).length, 1);
  const circle = scripted([json(200, { messages: [{ id: 1 }], next_cursor: "a" })]);
  assert.ok((await failure(() => collect(circle.sessions.messages(SESSION)))) instanceof KartaResponseError);
  const error = await failure(() => scripted([json(200, { ok: true })]).sessions.list());
  assert.match(String(error), /no list "sessions"/);
  let asked = 0;
  const turning = () => json(200, { messages: [], next_cursor: ["a", "b"][asked++ % 2] });
  assert.ok((await failure(() => scripted([turning]).sessions.messages(SESSION))) instanceof KartaResponseError);
  assert.equal(asked, 3);
  for (const body of [{}, { next_cursor: 7 }]) {
    const invalid = await failure(() => scripted([json(200, { sessions: [], ...body })]).sessions.list());
    assert.match(String(invalid), /KartaResponseError: the response has no valid next_cursor/);
  }
  for (const read of [(sessions: KartaSessions) => sessions.list(), (sessions: KartaSessions) => sessions.get(SESSION)]) {
    assert.ok((await failure(() => read(scripted([new Response(null, { status: 204 })]).sessions))) instanceof KartaResponseError);
  }
});

test("invalid arguments are rejected before sending", async () => {
  const { sessions, sent } = scripted([json(200, {})]);
  const never = (value: unknown) => value as never;
  const cases: [string, () => unknown][] = [
    ["metadata", () => sessions.create({ metadata: never("a") })],
    ["metadata", () => sessions.create({ metadata: never(["a"]) })],
    ["metadata", () => sessions.create({ metadata: never(undefined) })],
    ["metadata", () => sessions.resume(SESSION, { metadata: never(undefined) })],
    ["metadata.user_id", () => sessions.create({ metadata: never({ user_id: undefined }) })],
    ["metadata.n", () => sessions.create({ metadata: never({ n: 1 }) })],
    ["metadata.user_id", () => sessions.resume(SESSION, { metadata: never({ user_id: null }) })],
    ["user_id", () => sessions.create(never({ user_id: "ann" }))],
    ["userId", () => sessions.list({ userId: never(undefined) })],
    ["user_id", () => sessions.list({ user_id: never(null) })],
    ["userId", () => sessions.list({ user_id: "ann", userId: "bob" })],
    ["limit", () => sessions.list({ limit: 0 })],
    ["limit", () => sessions.messages(SESSION, { limit: 1.5 })],
    ["limit", () => sessions.list({ limit: never(null) })],
    ["status", () => sessions.list(never({ status: "active" }))],
    ["status", () => sessions.list(never({ status: null }))],
    ["text", () => sessions.send(SESSION, never({}))],
    ["text", () => sessions.send(SESSION, never(undefined))],
    ["params", () => sessions.send(SESSION, never("hi"))],
    ["text", () => sessions.stream(SESSION, { text: never(7) })],
    ["stream", () => sessions.send(SESSION, never({ text: "hi", stream: true }))],
    ["model", () => sessions.send(SESSION, { text: "hi", model: never(7) })],
    ["max_tokens", () => sessions.send(SESSION, { text: "hi", max_tokens: Number.NaN })],
    ["max_tokens", () => sessions.send(SESSION, { text: "hi", maxTokens: 0 })],
    ["maxTokens", () => sessions.send(SESSION, { text: "hi", max_tokens: 1, maxTokens: 2 })],
    ["max_tokens", () => sessions.send(SESSION, { text: "hi", max_tokens: never(undefined) })],
    ["maxTokens", () => sessions.stream(SESSION, { text: "hi", max_tokens: 1, maxTokens: never(undefined) })],
    ["thinking", () => sessions.send(SESSION, { text: "hi", thinking: never("yes") })],
    ["after", () => sessions.follow(SESSION, { after: "turn_1" })],
    ["after", () => sessions.follow(SESSION, { after: never(7) })],
    ["after", () => sessions.follow(SESSION, { after: "../a.1" })],
    // Without effect on other calls, the key would promise a safe repetition.
    ["idempotencyKey", () => sessions.get(SESSION, never({ idempotencyKey: "a" }))],
    ["idempotencyKey", () => sessions.create({}, never({ idempotencyKey: "a" }))],
    ["idempotencyKey", () => sessions.resume(SESSION, {}, never({ idempotencyKey: "a" }))],
    ["idempotencyKey", () => sessions.list({}, never({ idempotencyKey: "a" }))],
    ["idempotencyKey", () => sessions.messages(SESSION, {}, never({ idempotencyKey: "a" }))],
    ["idempotencyKey", () => sessions.delete(SESSION, never({ idempotencyKey: "a" }))],
    ["idempotencyKey", () => sessions.cancel(SESSION, {}, never({ idempotencyKey: "a" }))],
    ["idempotencyKey", () => sessions.follow(SESSION, {}, never({ idempotencyKey: "a" }))],
    ["user_id", () => sessions.list({ user_id: "ann\ud800" })],
    ["userId", () => sessions.list({ userId: "\udc00" })],
    ["cursor", () => sessions.list({ cursor: "\ud83d" })],
    ["cursor", () => sessions.messages(SESSION, { cursor: "\ud83d" })],
    ["turn_id", () => sessions.cancel(SESSION, never({ turn_id: undefined }))],
  ];
  for (const id of ["", "..", "a/b", "a?b", "a.b", "ä", 7, undefined, null] as never[]) {
    for (const call of ["get", "delete", "messages", "resume", "cancel", "follow"] as const) cases.push(["sessionId", () => sessions[call](id)]);
    cases.push(["sessionId", () => sessions.send(id, { text: "hi" })], ["sessionId", () => sessions.stream(id, { text: "hi" })]);
  }
  for (const key of ["", " ", "a ", "a\n", "ä", "a".repeat(256), 7] as never[]) {
    const options = { idempotencyKey: key };
    cases.push(["idempotencyKey", () => sessions.send(SESSION, { text: "hi" }, options)], ["idempotencyKey", () => sessions.stream(SESSION, { text: "hi" }, options)]);
  }
  for (const [field, call] of cases) {
    const error = await failure(call);
    assert.ok(error instanceof KartaArgumentError && error.field === field, `${field}: ${String(error)}`);
  }
  assert.equal(sent.length, 0);
});

test("null parameters and options count as absent", async () => {
  const none = null as never;
  const { sessions, sent } = scripted([json(200, { sessions: [], messages: [], next_cursor: null })]);
  await sessions.create(none, none);
  await sessions.create({ metadata: null }, none);
  await sessions.resume(SESSION, none, none);
  await sessions.list(none, none);
  await sessions.messages(SESSION, { cursor: null }, none);
  await sessions.send(SESSION, { text: "hi", model: null, max_tokens: null, maxTokens: null, thinking: null }, none);
  assert.deepEqual(sent.map(({ body }) => body), [{}, {}, { session_id: SESSION }, undefined, undefined, { text: "hi" }]);
});

test("repeatable calls are retried, with one key each", async () => {
  for (const trouble of [json(429, {}), json(503, {}), json(504, {}), new TypeError("fetch failed")]) {
    for (const call of [
      (sessions: KartaSessions) => sessions.send(SESSION, { text: "hi" }),
      (sessions: KartaSessions) => sessions.get(SESSION),
      (sessions: KartaSessions) => sessions.delete(SESSION),
    ]) {
      const { sessions, sent, waits } = scripted([trouble, trouble, json(200, {})]);
      await call(sessions);
      assert.deepEqual(waits, [250, 500]);
      assert.equal(new Set(sent.map(({ headers }) => headers.get("idempotency-key"))).size, 1);
    }
  }
  const { sessions, sent } = scripted([json(200, {})]);
  await sessions.send(SESSION, { text: "hi" });
  await sessions.send(SESSION, { text: "hi" });
  await sessions.send(SESSION, { text: "hi" }, { idempotencyKey: "order 1" });
  const keys = sent.map(({ headers }) => headers.get("idempotency-key"));
  assert.notEqual(keys[0], keys[1]);
  assert.equal(keys[2], "order 1");
});

test("calls that are not idempotent are never retried", async () => {
  for (const trouble of [json(429, {}), json(503, {}), json(504, {}), new TypeError("fetch failed"), hanging]) {
    for (const call of [
      (sessions: KartaSessions) => sessions.create(),
      (sessions: KartaSessions) => sessions.resume(SESSION),
      (sessions: KartaSessions) => sessions.cancel(SESSION),
    ]) {
      const { sessions, sent } = scripted([trouble, json(202, {})], { maxRetries: 5, timeout: 20 });
      await failure(() => call(sessions));
      assert.equal(sent.length, 1, `${call}`);
    }
  }
});

test("other errors are not retried", async () => {
  for (const status of [400, 401, 402, 403, 404, 409, 413, 422, 500, 502]) {
    const { sessions, sent } = scripted([json(status, {})]);
    await failure(() => sessions.send(SESSION, { text: "hi" }));
    assert.equal(sent.length, 1, String(status));
  }
});

test("retries stop at maxRetries and respect Retry-After", async () => {
  const { sessions, sent, waits } = scripted([json(503, {}, { "retry-after": "7" }), json(503, {}, { "retry-after": "86400" }), json(503, {})], { maxRetries: 7, random: () => 0.999 });
  assert.ok((await failure(() => sessions.get(SESSION))) instanceof KartaUnavailableError);
  assert.equal(sent.length, 8);
  assert.deepEqual(waits.slice(0, 2), [7_000 + 499.5, 30_000 + 999]);
  assert.ok(Math.max(...waits.slice(2)) < 8_000);
  const once = scripted([json(503, {})]);
  await failure(() => once.sessions.get(SESSION, { maxRetries: 0 }));
  assert.equal(once.sent.length, 1);
});

test("timeouts are retried, then thrown", async () => {
  const { sessions, sent } = scripted([hanging, json(200, {})], { timeout: 100 });
  await sessions.get(SESSION);
  assert.equal(sent.length, 2);
  const slow = scripted([hanging], { timeout: 5, turnTimeout: 10, maxRetries: 0 });
  const messages = [
    await failure(() => slow.sessions.get(SESSION)),
    await failure(() => slow.sessions.send(SESSION, { text: "hi" })),
    await failure(() => slow.sessions.send(SESSION, { text: "hi" }, { timeout: 7 })),
    await failure(() => slow.sessions.stream(SESSION, { text: "hi" }).text()),
    await failure(() => slow.sessions.follow(SESSION, {}, { timeout: 8 }).text()),
  ].map((error) => (assert.ok(error instanceof KartaTimeoutError), error.message));
  assert.deepEqual(messages, [5, 10, 7, 5, 8].map((ms) => `no response from https://karta.test within ${ms} ms`));
});

test("a token function that does not return is named", async () => {
  const hangs = () => new Promise<string>(() => {});
  let asked = 0;
  const hangsLater = () => (asked++ === 0 ? TOKEN : hangs());
  for (const sessionToken of [hangs, hangsLater]) {
    asked = 0;
    const { sessions, sent } = scripted([json(401, { detail: "Unauthorized" })], { project: "my-app", sessionToken, timeout: 10, maxRetries: 0 });
    for (const call of [() => sessions.get(SESSION), () => sessions.list(), () => sessions.stream(SESSION, { text: "hi" }).text()]) {
      const error = await failure(call);
      assert.ok(error instanceof KartaTimeoutError, String(error));
      assert.equal(error.message, "the sessionToken function did not return within 10 ms");
    }
    assert.equal(sent.length, sessionToken === hangs ? 0 : 1);
  }
  // A connection that fails after the function returned is not the function's fault.
  const late = scripted([new TypeError("fetch failed")], { project: "my-app", sessionToken: () => TOKEN, maxRetries: 0 });
  assert.match(String(await failure(() => late.sessions.get(SESSION))), /no response from https:\/\/karta\.test/);
});

test("a turn that was not sent is not cancelled", async () => {
  let give = (_: string) => {};
  const first = new Promise<string>((resolve) => (give = resolve));
  const { sessions, sent } = scripted([json(202, {})], { project: "my-app", sessionToken: () => first, timeout: 10, maxRetries: 0 });
  const stream = sessions.stream(SESSION, { text: "hi" });
  assert.ok((await failure(() => stream.text())) instanceof KartaTimeoutError);
  give(TOKEN);
  // It would end the session's running turn, which is another one.
  await stream.cancel();
  assert.equal(sent.length, 0);
});

test("an incomplete response is a connection error", async () => {
  let asked = 0;
  const broken = createServer((_, response) => {
    asked += 1;
    response.writeHead(200, { "content-type": "application/json", "content-length": "100" });
    response.write(`{"id":`);
    setTimeout(() => response.destroy(), 5);
  });
  await new Promise<void>((resolve) => broken.listen(0, "127.0.0.1", resolve));
  const { port } = broken.address() as AddressInfo;
  const sessions = new KartaSessions({ apiKey: API_KEY, baseUrl: `http://127.0.0.1:${port}`, sleep: async () => {} });
  const error = await failure(() => sessions.get(SESSION));
  broken.close();
  assert.ok(error instanceof KartaConnectionError && error.cause instanceof Error);
  assert.match(error.message, /^incomplete response from http/);
  assert.equal(asked, 3);
});

test("a signal aborts a call at any time", async () => {
  const reason = new Error("the user left");
  const expect = (error: unknown) => assert.ok(error instanceof KartaAbortError && error.cause === reason, inspect(error));
  const early = scripted([json(200, {})]);
  expect(await failure(() => early.sessions.get(SESSION, { signal: AbortSignal.abort(reason) })));
  assert.equal(early.sent.length, 0);

  // Also if a replaced fetch ignores its signal, and while the token is fetched.
  const deaf = () => new Promise<Response>(() => {});
  const tokens = { project: "my-app", sessionToken: () => new Promise<string>(() => {}) };
  for (const { sessions } of [scripted([hanging]), scripted([deaf]), scripted([json(200, {})], tokens)]) {
    const during = new AbortController();
    const call = failure(() => sessions.get(SESSION, { signal: during.signal }));
    setTimeout(() => during.abort(reason), 2);
    expect(await call);
  }

  const waiting = new AbortController();
  const busy = () => {
    setTimeout(() => waiting.abort(reason), 2);
    return json(503, {}, { "retry-after": "20" });
  };
  expect(await failure(() => scripted([busy], { sleep: undefined }).sessions.get(SESSION, { signal: waiting.signal })));
});

test("a finished call leaves nothing at the signal", async () => {
  const { signal } = new AbortController();
  const add = signal.addEventListener.bind(signal);
  const remove = signal.removeEventListener.bind(signal);
  let listeners = 0;
  signal.addEventListener = (...args: Parameters<typeof add>) => (listeners++, add(...args));
  signal.removeEventListener = (...args: Parameters<typeof remove>) => (listeners--, remove(...args));
  const { sessions } = scripted([json(503, {}), json(200, {})], { sleep: undefined, random: () => 0 });
  await sessions.get(SESSION, { signal });
  assert.equal(listeners, 0);
});

test("a token provider is asked once, and after a 401", async () => {
  const second = TOKEN.replace("c2ln", "bmV3");
  const tokens = [TOKEN, second];
  let asked = 0;
  const sessionToken = async () => String(tokens[Math.min(asked++, 1)]);
  const answer = ({ headers }: Sent) => (headers.get("authorization") === `Bearer ${second}` ? json(200, { sessions: [], next_cursor: null }) : json(401, { detail: "Unauthorized" }));
  const { sessions, sent } = scripted([json(200, {}), json(200, {}), answer], { project: "my-app", sessionToken });
  await sessions.get(SESSION);
  await sessions.get(SESSION);
  assert.equal(asked, 1);
  // Calls whose token expired together share one new token.
  await Promise.all([sessions.get(SESSION), sessions.get(SESSION), sessions.send(SESSION, { text: "hi" }), sessions.list()]);
  assert.equal(asked, 2);
  const posts = sent.filter(({ method }) => method === "POST").map(({ headers }) => headers.get("idempotency-key"));
  assert.equal(new Set(posts).size, 1);
});

test("a second 401 is thrown", async () => {
  let asked = 0;
  const { sessions, sent } = scripted([json(401, { detail: "Unauthorized" })], { project: "my-app", sessionToken: () => (asked++, TOKEN) });
  assert.ok((await failure(() => sessions.get(SESSION))) instanceof KartaAuthError);
  assert.deepEqual([asked, sent.length], [2, 2]);
  const fixed = scripted([json(401, { detail: "Unauthorized" })], { project: "my-app", sessionToken: TOKEN });
  assert.ok((await failure(() => fixed.sessions.get(SESSION))) instanceof KartaAuthError);
  assert.equal(fixed.sent.length, 1);
});

test("a failing provider is reported and asked again", async () => {
  const cause = new Error("the backend is down");
  const values: unknown[] = [cause, API_KEY, undefined, TOKEN];
  const sessionToken = () => {
    const value = values.shift();
    if (value instanceof Error) throw value;
    return value as string;
  };
  const { sessions, sent } = scripted([json(200, {})], { project: "my-app", sessionToken });
  const error = await failure(() => sessions.get(SESSION));
  assert.ok(error instanceof KartaAuthError && error.cause === cause && error.status === undefined);
  for (let count = 0; count < 2; count++) {
    const invalid = await failure(() => sessions.get(SESSION));
    assert.ok(invalid instanceof KartaArgumentError && invalid.field === "sessionToken");
    assert.ok(!inspect(invalid).includes(API_KEY));
  }
  assert.equal(sent.length, 0);
  await sessions.get(SESSION);
});

test("secrets in a response are removed from errors", async () => {
  const odd = "a1.b2.c3";
  const secrets = [API_KEY, `Bearer ${API_KEY}`, "whsec_c2VjcmV0LXNlY3JldA==", "sk-ant-0123456789abcdef", TOKEN, "karta_service_0123456789", odd];
  for (const secret of secrets) {
    for (const response of [json(422, { message: `got ${secret}`, nested: [secret] }), new Response(`echo: ${secret}`, { status: 502 })]) {
      const { sessions } = scripted([response], { project: "my-app", sessionToken: odd });
      const shown = inspect(await failure(() => sessions.get(SESSION)), { depth: 9 });
      assert.ok(!shown.includes(secret) && shown.includes("[redacted]"), shown);
    }
  }
  // Also in a list, and in headers.
  const headers = { "x-request-id": odd, "content-type": `text/${odd}` };
  for (const response of [json(200, { echo: odd }), new Response("{", { headers }), json(200, { id: 1 }, headers)]) {
    const { sessions } = scripted([response], { project: "my-app", sessionToken: odd });
    for (const call of [() => sessions.list(), () => sessions.stream(SESSION, { text: "hi" }).text()]) {
      const shown = inspect(await failure(call), { depth: 9 });
      assert.ok(!shown.includes(odd), shown);
    }
  }
  // Also a token that was replaced before the response.
  const tokens = [odd, "d4.e5.f6"];
  const echo = json(401, { message: `${odd} d4.e5.f6` });
  const { sessions } = scripted([echo], { project: "my-app", sessionToken: () => String(tokens.shift()) });
  const shown = inspect(await failure(() => sessions.get(SESSION)));
  assert.ok(!shown.includes(odd) && !shown.includes("d4.e5.f6"), shown);
});


test("metadata of another form is not dropped", async () => {
  const { sessions, sent } = scripted([json(201, {})]);
  const withGetter = new (class {
    get user_id(): string {
      return "ann";
    }
  })();
  for (const metadata of [new Map([["user_id", "ann"]]), new URLSearchParams("user_id=ann"), withGetter, []]) {
    const error = await failure(() => sessions.create({ metadata: metadata as unknown as Record<string, string> }));
    assert.ok(error instanceof KartaArgumentError, String(error));
  }
  assert.equal(sent.length, 0);
  await sessions.create({ metadata: Object.assign(Object.create(null) as Record<string, string>, { user_id: "ann" }) });
  assert.equal(sent.length, 1);
});

test("a call sends its object as it was at the call", async () => {
  const { sessions, sent } = scripted([json(201, {})]);
  const metadata: Record<string, string> = {};
  const calls = ["alice", "bob"].map((user_id) => sessions.create({ metadata: Object.assign(metadata, { user_id }) }));
  delete metadata.user_id;
  await Promise.all(calls);
  assert.deepEqual(sent.map(({ init }) => JSON.parse(init.body as string)), [{ metadata: { user_id: "alice" } }, { metadata: { user_id: "bob" } }]);
});

test("a token function that hangs once is called again", async () => {
  let calls = 0;
  const sessionToken = () => (++calls === 1 ? new Promise<string>(() => {}) : TOKEN);
  const { sessions } = scripted([json(200, {})], { sessionToken, project: "my-app", timeout: 5, maxRetries: 0 });
  assert.ok((await failure(() => sessions.get(SESSION))) instanceof KartaTimeoutError);
  await sessions.get(SESSION);
  assert.equal(calls, 2);
});

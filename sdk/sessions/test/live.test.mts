// Runs the client against a real stack: a local runner in demo mode, which this test starts and
// stops, or the stack at LIVE_BASE_URL, with
//
// - LIVE_API_KEY: an API key with all scopes.
// - LIVE_PROVIDER, LIVE_PROVIDER_KEY and LIVE_MODEL. The key is stored in the organization.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import {
  KartaAbortError,
  KartaArgumentError,
  KartaAuthError,
  KartaBudgetError,
  KartaConflictError,
  KartaConnectionError,
  KartaForbiddenError,
  KartaNotFoundError,
  KartaSessions,
  KartaTimeoutError,
  KartaValidationError,
  type KartaError,
  type KartaSessionsOptions,
  type Session,
  type TurnEvent,
} from "@karta/sessions";
import { startRunner } from "./shared/runner.js";
import { collect, failure } from "./support.js";

const { baseUrl, apiKey, model } = process.env.LIVE_BASE_URL ? await givenStack() : await demo();
const project = `live-${randomUUID()}`;
const words = (count: number) => `Repeat: ${Array.from({ length: count }, (_, at) => `word${at}`).join(" ")}`;
/** Text whose answer takes longer than the test that asks for it. */
const LONG = words(500);
/** Limit of a test in milliseconds. A test that hangs must fail. */
const LIMIT = { timeout: 120_000 };

/**
 * Starts a runner whose scripted provider, in the place of OpenRouter, repeats each message word by
 * word. An API key may name only models that have a price.
 */
async function demo() {
  const runner = await startRunner({ KARTA_DEMO: "true" });
  after(runner.stop);
  return { baseUrl: runner.base_url, apiKey: runner.api_key, model: "openrouter/openai/gpt-4o" };
}

async function givenStack() {
  const stack = { baseUrl: setting("LIVE_BASE_URL"), apiKey: setting("LIVE_API_KEY"), model: setting("LIVE_MODEL") };
  await control("POST", "/model_keys", { provider: setting("LIVE_PROVIDER"), key: setting("LIVE_PROVIDER_KEY"), name: "live" }, stack);
  return stack;
}

function setting(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`set ${name}`);
  return value;
}

/** Calls the control plane. */
async function control(method: string, path: string, body: object, stack = { baseUrl, apiKey }): Promise<Record<string, unknown>> {
  const headers = { authorization: `Bearer ${stack.apiKey}`, "content-type": "application/json" };
  const response = await fetch(`${stack.baseUrl}/v1${path}`, { method, headers, body: JSON.stringify(body) });
  const text = await response.text();
  assert.ok(response.ok, `${method} ${path}: ${response.status} ${text}`);
  return JSON.parse(text) as Record<string, unknown>;
}

await control("POST", "/agent_projects", { slug: project, name: "Live" });
await control("PATCH", `/agent_projects/${project}`, { model_id: model });
await control("POST", `/agent_projects/${project}/deploys`, { commit_sha: "0123abc" });

/** Returns a client with an API key, by default the one that has all scopes. */
function backend(options: Partial<KartaSessionsOptions> = {}): KartaSessions {
  return new KartaSessions({ baseUrl, apiKey, ...options } as KartaSessionsOptions);
}

/** Returns a browser's client for a user, or for no user. */
function widget(user_id?: string, options: Partial<KartaSessionsOptions> = {}): KartaSessions {
  const sessionToken = async () => String((await control("POST", `/agent_projects/${project}/session_tokens`, user_id === undefined ? {} : { user_id })).token);
  return new KartaSessions({ baseUrl, project, sessionToken, ...options } as KartaSessionsOptions);
}

/** Returns a new API key. */
async function newKey(body: object): Promise<string> {
  return String((await control("POST", "/api_keys", { name: "live", ...body })).secret);
}

/** Returns the error of `call`, which must have the class and, if given, the code. */
async function fails<T extends KartaError>(call: () => unknown, type: new (...args: never[]) => T, code?: string): Promise<T> {
  const error = await failure(call);
  assert.ok(error instanceof type, String(error));
  if (code !== undefined) assert.equal(error.code, code);
  return error;
}

/** Waits until the session's turn runs. */
async function running(sessions: KartaSessions, { id }: Session): Promise<void> {
  while ((await sessions.get(id)).turn?.status !== "running") await new Promise((resolve) => setTimeout(resolve, 50));
}

/** Returns a fetch that breaks the first stream after `bytes` bytes. */
function breaking(bytes: number): typeof fetch {
  let broken = false;
  return async (url, init) => {
    const response = await fetch(url, init);
    if (broken || response.body === null || !response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
    broken = true;
    let left = bytes;
    const cut = new TransformStream<Uint8Array, Uint8Array>({
      transform(chunk, controller) {
        controller.enqueue(chunk.slice(0, left));
        if ((left -= chunk.length) < 0) controller.terminate();
      },
    });
    return new Response(response.body.pipeThrough(cut), { headers: response.headers });
  };
}

// A session token may name no model. The sessions of an API key without a project must name one.
const CREDENTIALS = [
  { name: "an API key", client: backend, choice: { model } },
  { name: "a session token", client: (options?: Partial<KartaSessionsOptions>) => widget("ann", options), choice: {} },
];

for (const { name, client, choice } of CREDENTIALS) {
  const sessions = client();

  test(`a turn of ${name} has one text everywhere`, LIMIT, async () => {
    const session = await sessions.create({ metadata: { purpose: "live" } });
    assert.deepEqual([session.metadata.purpose, session.turn], ["live", null]);
    assert.equal((await sessions.resume(session.id)).id, session.id);
    const answer = await sessions.send(session.id, { text: "Say hello.", ...choice });
    assert.equal(answer.messages.at(-1)?.text, answer.text);
    const stream = sessions.stream(session.id, { text: "Say hello to the whole world.", ...choice });
    const events = await collect(stream);
    assert.equal(events.at(-1)?.type, "done");
    assert.deepEqual(events.map(({ seq }) => seq), events.map((_, at) => at + 1));
    const streamed = await stream.text();
    const messages = await sessions.messages(session.id);
    assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant", "user", "assistant"]);
    assert.equal(messages.at(-1)?.text, streamed);
    assert.deepEqual(await collect(sessions.follow(session.id)), events);
    for (const [at, { id }] of events.slice(0, -1).entries()) {
      assert.deepEqual(await collect(sessions.follow(session.id, { after: id })), events.slice(at + 1));
    }
    const after = await sessions.get(session.id);
    assert.deepEqual([after.turn?.id, after.turn?.status], [stream.turnId, "completed"]);
    assert.ok((await sessions.list()).some(({ id }) => id === session.id));
    await sessions.delete(session.id);
    await fails(() => sessions.get(session.id), KartaNotFoundError);
    assert.ok(!(await sessions.list()).some(({ id }) => id === session.id));
  });

  test(`a broken stream of ${name} is resumed`, LIMIT, async () => {
    const session = await sessions.create();
    const cuts = [0, 1, 100, 300, 500, 1000, 1500];
    for (const bytes of cuts) {
      const events = await collect(client({ fetch: breaking(bytes) }).stream(session.id, { text: words(12), ...choice }));
      assert.deepEqual(events.map(({ seq }) => seq), events.map((_, at) => at + 1));
      assert.equal(events.at(-1)?.type, "done");
      assert.deepEqual(await collect(sessions.follow(session.id)), events);
    }
    assert.equal((await sessions.messages(session.id)).length, 2 * cuts.length);
  });

  test(`a turn of ${name} runs on after an abort`, LIMIT, async () => {
    const session = await sessions.create();
    const controller = new AbortController();
    const stream = sessions.stream(session.id, { text: words(12), ...choice }, { signal: controller.signal });
    const seen: TurnEvent[] = [];
    const error = await fails(async () => {
      for await (const event of stream) if (seen.push(event) === 1) controller.abort("enough");
    }, KartaAbortError);
    assert.equal(error.cause, "enough");
    assert.equal(seen.length, 1);
    const rest = await collect(sessions.follow(session.id, { after: stream.lastEventId }));
    assert.equal(rest.at(-1)?.type, "done");
    const started = new AbortController();
    const call = fails(() => sessions.send(session.id, { text: LONG, ...choice }, { signal: started.signal }), KartaAbortError);
    await running(sessions, session);
    started.abort();
    await call;
    assert.equal((await sessions.get(session.id)).turn?.status, "running");
    await sessions.cancel(session.id);
  });

  test(`${name} cancels a turn`, LIMIT, async () => {
    const [session, other] = [await sessions.create(), await sessions.create()];
    const call = fails(() => sessions.send(other.id, { text: LONG, ...choice }), KartaConflictError, "turn_cancelled");
    await running(sessions, other);
    assert.equal((await sessions.cancel(other.id)).id, other.id);
    const stream = sessions.stream(session.id, { text: LONG, ...choice });
    const events: TurnEvent[] = [];
    for await (const event of stream) {
      if (events.push(event) > 1) continue;
      await fails(() => sessions.send(session.id, { text: "hi", ...choice }), KartaConflictError, "turn_in_progress");
      await fails(() => sessions.delete(session.id), KartaConflictError, "turn_in_progress");
      await stream.cancel();
    }
    const end = events.at(-1);
    assert.ok(end?.type === "error" && end.data.code === "turn_cancelled", JSON.stringify(end));
    await fails(() => stream.text(), KartaConflictError, "turn_cancelled");
    assert.equal((await sessions.get(session.id)).turn?.status, "cancelled");
    await fails(() => sessions.cancel(session.id), KartaConflictError, "no_turn_in_progress");
    await call;
  });

  test(`a repeated key of ${name} is one turn`, LIMIT, async () => {
    const session = await sessions.create();
    const options = { idempotencyKey: randomUUID() };
    const answers = [await sessions.send(session.id, { text: "hi", ...choice }, options), await sessions.send(session.id, { text: "hi", ...choice }, options)];
    assert.deepEqual(answers[0], answers[1]);
    await fails(() => sessions.send(session.id, { text: "other", ...choice }, options), KartaValidationError, "idempotency_mismatch");
  });

  test(`errors of ${name} have their classes`, LIMIT, async () => {
    const session = await sessions.create();
    const turn = { text: "hi", ...choice };
    const invalid = await fails(() => sessions.send(session.id, { ...turn, text: "" }), KartaValidationError);
    assert.deepEqual([invalid.status, invalid.field], [422, "text"]);
    assert.ok(invalid.requestId);
    await fails(() => sessions.stream(session.id, { ...turn, max_tokens: 1e9 }).text(), KartaValidationError);
    await fails(() => sessions.send(session.id, { text: "hi", model: "openrouter/karta/unknown" }), KartaValidationError);
    const missing = `sess_${"0".repeat(32)}`;
    for (const call of [() => sessions.get(missing), () => sessions.send(missing, turn), () => sessions.stream(missing, turn).text(), () => sessions.resume(missing)]) {
      await fails(call, KartaNotFoundError);
    }
    await fails(() => sessions.follow(session.id).text(), KartaConflictError, "no_turn_in_progress");
    await fails(() => sessions.get("../api_keys"), KartaArgumentError);
    await fails(() => client({ baseUrl: "http://127.0.0.1:1", maxRetries: 0, ...("model" in choice ? {} : { sessionToken: "a.b.c" }) }).get(session.id), KartaConnectionError);
    await fails(() => sessions.send(session.id, { ...turn, text: LONG }, { timeout: 200, maxRetries: 0 }), KartaTimeoutError);
    await sessions.cancel(session.id);
  });
}

test("an API key without access gets typed errors", LIMIT, async () => {
  const auth = await fails(() => backend({ apiKey: `kt_live_${"0".repeat(32)}` }).list(), KartaAuthError);
  assert.equal(auth.status, 401);
  const reader = backend({ apiKey: await newKey({ scopes: ["read"] }) });
  assert.ok(Array.isArray(await reader.list()));
  const forbidden = await fails(() => reader.create(), KartaForbiddenError);
  assert.equal(forbidden.message, "403: missing scope: write");
  const poor = backend({ apiKey: await newKey({ scopes: ["read", "write"], budget: { total_tokens: 1 } }) });
  const { id } = await poor.create();
  // The turn that reaches a cap may pass it.
  await poor.send(id, { text: words(20), model });
  for (const call of [() => poor.create(), () => poor.send(id, { text: "hi", model }), () => poor.stream(id, { text: "hi", model }).text()]) {
    const spent = await fails(call, KartaBudgetError);
    assert.deepEqual([spent.status, spent.cap, spent.of], [402, "total_tokens", "api_key"]);
  }
});

test("a session token without access gets typed errors", LIMIT, async () => {
  await fails(() => widget("ann", { sessionToken: "a.b.c" }).create(), KartaAuthError);
  const other = `live-${randomUUID()}`;
  await control("POST", "/agent_projects", { slug: other, name: "Other" });
  await fails(() => widget("ann", { project: other }).create(), KartaForbiddenError);
  await fails(() => widget("ann").create({ metadata: { user_id: "bob" } }), KartaForbiddenError);
  await fails(() => backend({ project: other }).create(), KartaConflictError, "no_active_release");
});

test("a user reaches only their own sessions", LIMIT, async () => {
  const [ann, bob] = [widget(randomUUID()), widget(randomUUID())];
  const session = await ann.create();
  assert.equal(session.project?.ref, project);
  const text = await ann.stream(session.id, { text: "hi" }).text();
  assert.equal((await ann.messages(session.id)).at(-1)?.text, text);
  assert.deepEqual((await ann.list()).map(({ id }) => id), [session.id]);
  assert.deepEqual(await bob.list(), []);
  for (const call of [() => bob.get(session.id), () => bob.messages(session.id), () => bob.send(session.id, { text: "hi" }), () => bob.follow(session.id).text(), () => bob.cancel(session.id), () => bob.delete(session.id), () => widget().get(session.id)]) {
    await fails(call, KartaNotFoundError);
  }
  await ann.delete(session.id);
});

test("a preflight allows the client's headers", LIMIT, async () => {
  const headers = { origin: "https://app.test", "access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type,idempotency-key,last-event-id" };
  const response = await fetch(`${baseUrl}/v1/projects/${project}/sessions`, { method: "OPTIONS", headers });
  assert.ok(response.ok);
  assert.equal(response.headers.get("access-control-allow-origin"), "*");
  for (const name of headers["access-control-request-headers"].split(",")) {
    assert.ok(response.headers.get("access-control-allow-headers")?.toLowerCase().split(/, */).includes(name), name);
  }
  for (const method of ["GET", "POST", "DELETE"]) assert.ok(response.headers.get("access-control-allow-methods")?.includes(method));
});

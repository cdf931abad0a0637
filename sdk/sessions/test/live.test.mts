// Runs the client against a real stack. `npm run live` needs:
//
// - KARTA_BASE_URL and KARTA_API_KEY: the stack, and an API key with all scopes.
// - A provider for the stack, real or scripted (KARTA_PROVIDER_BASE_URLS of the local runner).
// - LIVE_PROVIDER, LIVE_PROVIDER_KEY and LIVE_MODEL, unless the provider is a
//   scripted OpenAI. The key is stored in the organization.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import { KartaAbortError, KartaConflictError, KartaError, KartaNotFoundError, KartaSessions, type TurnEvent } from "@karta/sessions";
import { collect, failure } from "./support.js";

const baseUrl = setting("KARTA_BASE_URL");
const apiKey = setting("KARTA_API_KEY");
const provider = setting("LIVE_PROVIDER", "openai");
const providerKey = setting("LIVE_PROVIDER_KEY", `sk-${randomUUID().replaceAll("-", "")}`);
const model = setting("LIVE_MODEL", "gpt-4o");
const project = `live-${randomUUID()}`;

function setting(name: string, fallback?: string): string {
  const value = process.env[name] || fallback;
  if (value === undefined) throw new Error(`set ${name}`);
  return value;
}

/** Calls the control plane. */
async function control(method: string, path: string, body: object): Promise<Record<string, unknown>> {
  const headers = { authorization: `Bearer ${apiKey}`, "content-type": "application/json" };
  const response = await fetch(`${baseUrl}/v1${path}`, { method, headers, body: JSON.stringify(body) });
  const text = await response.text();
  assert.ok(response.ok, `${method} ${path}: ${response.status} ${text}`);
  return JSON.parse(text) as Record<string, unknown>;
}

await control("POST", "/model_keys", { provider, key: providerKey, name: "live" });
await control("POST", "/agent_projects", { slug: project, name: "Live" });
await control("PATCH", `/agent_projects/${project}`, { model_id: model });
await control("POST", `/agent_projects/${project}/deploys`, { commit_sha: "0123abc" });

/** Returns a browser's client for a user, or for no user. */
function widget(user_id?: string): KartaSessions {
  const sessionToken = async () => String((await control("POST", `/agent_projects/${project}/session_tokens`, user_id === undefined ? {} : { user_id })).token);
  return new KartaSessions({ baseUrl, project, sessionToken });
}

const backend = new KartaSessions({ baseUrl, apiKey });

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

test("a turn of an API key has one text everywhere", async () => {
  const session = await backend.create({ metadata: { purpose: "live" } });
  assert.deepEqual([session.user_id, session.project, session.turn], [null, null, null]);
  const answer = await backend.send(session.id, { text: "Say hello.", model });
  assert.equal(answer.messages.at(-1)?.text, answer.text);
  const stream = backend.stream(session.id, { text: "Once more.", model });
  const events = await collect(stream);
  assert.equal(events.at(-1)?.type, "done");
  assert.deepEqual(events.map(({ seq }) => seq), events.map((_, at) => at + 1));
  const streamed = await stream.text();
  const messages = await backend.messages(session.id);
  assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant", "user", "assistant"]);
  assert.equal(messages.at(-1)?.text, streamed);
  assert.deepEqual(await collect(backend.follow(session.id)), events);
  for (const [at, { id }] of events.slice(0, -1).entries()) {
    assert.deepEqual(await collect(backend.follow(session.id, { after: id })), events.slice(at + 1));
  }
  assert.equal((await backend.get(session.id)).turn?.status, "completed");
  assert.ok((await backend.list()).some(({ id }) => id === session.id));
  assert.equal((await backend.resume(session.id)).id, session.id);
  await backend.delete(session.id);
  assert.ok((await failure(() => backend.get(session.id))) instanceof KartaNotFoundError);
});

test("a stream that breaks is resumed", async () => {
  const session = await backend.create();
  for (const bytes of [0, 1, 100, 300, 500, 1000, 1500]) {
    const broken = new KartaSessions({ baseUrl, apiKey, fetch: breaking(bytes) });
    const events = await collect(broken.stream(session.id, { text: "Count to twelve.", model }));
    assert.deepEqual(events.map(({ seq }) => seq), events.map((_, at) => at + 1));
    assert.equal(events.at(-1)?.type, "done");
    assert.deepEqual(await collect(backend.follow(session.id)), events);
  }
  assert.equal((await backend.messages(session.id)).length, 14);
});

test("a repeated key is one turn", async () => {
  const session = await backend.create();
  const options = { idempotencyKey: randomUUID() };
  const answers = [await backend.send(session.id, { text: "hi", model }, options), await backend.send(session.id, { text: "hi", model }, options)];
  assert.deepEqual(answers[0], answers[1]);
  const mismatch = await failure(() => backend.send(session.id, { text: "other", model }, options));
  assert.ok(mismatch instanceof KartaError && mismatch.status === 422 && mismatch.code === "idempotency_mismatch");
});

test("a user reaches only their own sessions", async () => {
  const [ann, bob] = [widget("ann"), widget("bob")];
  const session = await ann.create();
  assert.deepEqual([session.user_id, session.project?.ref], ["ann", project]);
  const text = await ann.stream(session.id, { text: "hi" }).text();
  assert.equal((await ann.messages(session.id)).at(-1)?.text, text);
  assert.deepEqual((await ann.list()).map(({ id }) => id), [session.id]);
  assert.deepEqual(await bob.list(), []);
  for (const call of [() => bob.get(session.id), () => bob.messages(session.id), () => bob.send(session.id, { text: "hi" }), () => bob.follow(session.id).text(), () => bob.cancel(session.id), () => bob.delete(session.id), () => widget().get(session.id)]) {
    assert.ok((await failure(call)) instanceof KartaNotFoundError);
  }
  await ann.delete(session.id);
});

test("a turn runs on after an abort", async () => {
  const session = await backend.create();
  const controller = new AbortController();
  const stream = backend.stream(session.id, { text: "hi", model }, { signal: controller.signal });
  const seen: TurnEvent[] = [];
  const error = await failure(async () => {
    for await (const event of stream) if (seen.push(event) === 1) controller.abort();
    throw new KartaAbortError("the turn ended first");
  });
  assert.ok(error instanceof KartaAbortError, String(error));
  const rest = await collect(backend.follow(session.id, { after: stream.lastEventId }));
  assert.equal(rest.at(-1)?.type, "done");
  const idle = await failure(() => backend.cancel(session.id));
  assert.ok(idle instanceof KartaConflictError && idle.code === "no_turn_in_progress");
});

test("a turn can be cancelled", async () => {
  const session = await backend.create();
  const stream = backend.stream(session.id, { text: "hi", model });
  for await (const _ of stream) await stream.cancel();
  // A fast provider may have ended the turn before.
  assert.ok(["cancelled", "completed"].includes(String((await backend.get(session.id)).turn?.status)));
});

test("a preflight allows the client's headers", async () => {
  const headers = { origin: "https://app.test", "access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type,idempotency-key,last-event-id" };
  const response = await fetch(`${baseUrl}/v1/projects/${project}/sessions`, { method: "OPTIONS", headers });
  assert.ok(response.ok);
  assert.equal(response.headers.get("access-control-allow-origin"), "*");
  for (const name of headers["access-control-request-headers"].split(",")) {
    assert.ok(response.headers.get("access-control-allow-headers")?.toLowerCase().split(/, */).includes(name), name);
  }
  for (const method of ["GET", "POST", "DELETE"]) assert.ok(response.headers.get("access-control-allow-methods")?.includes(method));
});

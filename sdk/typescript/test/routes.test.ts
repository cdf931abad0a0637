// Calls every public route of template.yaml with the client, against the real runner.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { after, test } from "node:test";
import {
  Karta,
  KartaAuthError,
  KartaBudgetError,
  KartaConflictError,
  KartaConnectionError,
  KartaForbiddenError,
  KartaNotFoundError,
  KartaValidationError,
  VERSION,
  verifyWebhook,
  type KartaEvent,
  type KartaOptions,
} from "@karta/sdk";
import { startRunner } from "./shared/runner.js";
import { failure } from "./support.js";

const runner = await startRunner({ KARTA_ALLOW_LOOPBACK_WEBHOOKS: "true" });
after(runner.stop);

const template = readFileSync(new URL("../../../../template.yaml", import.meta.url), "utf8");
/**
 * Routes that the client does not call: for data planes, operators, Stripe, load balancers and
 * readers, a route's second path, and those of the client of sessions.
 */
const NOT_CALLED = /^OPTIONS | \/v1\/internal\/| \/v1\/stripe\/|^POST \/agent_projects\/| \/healthz$| \/openapi\.json$| \/docs$| \/v1\/(projects\/\{ref\}\/)?sessions(\/|$)/;
const routes = [...template.matchAll(/^ +Method: ([A-Z]+)\n +Path: (\S+)$/gm)]
  .map(([, method, path]) => `${method} ${path}`)
  .filter((route) => !NOT_CALLED.test(route));
const called = new Set<string>();

/** Returns a client of the runner that records the routes that it calls. */
function client(options: Partial<KartaOptions> = {}): Karta {
  const recording: typeof fetch = (url, init) => {
    const request = `${init?.method} ${new URL(String(url)).pathname}`;
    const route = routes.find((each) => new RegExp(`^${each.replace(/\{\w+\}/g, "[^/]+")}$`).test(request));
    if (route !== undefined) called.add(route);
    return fetch(url, init);
  };
  return new Karta({ apiKey: runner.api_key, baseUrl: runner.base_url, fetch: recording, ...options });
}

const karta = client();

async function internal(path: string, body: object): Promise<void> {
  const headers = { authorization: `Bearer ${runner.service_token}`, "content-type": "application/json" };
  const answer = await fetch(`${runner.base_url}/v1/internal${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  assert.ok(answer.ok, `${path}: ${answer.status}`);
}

async function fails<T>(call: () => unknown, type: new (...args: never[]) => T): Promise<T> {
  const error = await failure(call);
  assert.ok(error instanceof type, String(error));
  return error;
}

test("a key passes its whole lifecycle", async () => {
  const { api_key, secret } = await karta.apiKeys.create("ci-runner", ["write"], { metadata: { team: "a" } });
  assert.match(secret, /^kt_live_[0-9A-Za-z]{32}$/);
  assert.deepEqual([api_key.name, api_key.scopes, api_key.metadata], ["ci-runner", ["write"], { team: "a" }]);
  assert.deepEqual((await karta.apiKeys.get(api_key.id)).api_key, api_key);
  assert.ok((await karta.apiKeys.list({ status: "active" })).some(({ id }) => id === api_key.id));
  assert.equal((await karta.apiKeys.update(api_key.id, { name: "ci" })).api_key.name, "ci");

  const rotated = await karta.apiKeys.rotate(api_key.id, { grace_seconds: 60 });
  assert.equal(rotated.replaces.id, api_key.id);
  assert.equal((await karta.apiKeys.get(api_key.id)).api_key.status, "rotating");
  const again = await fails(() => karta.apiKeys.rotate(api_key.id), KartaConflictError);
  assert.equal(again.code, "api_key_not_active");

  const { api_key: revoked } = await karta.apiKeys.revoke(rotated.api_key.id);
  assert.equal(revoked.status, "revoked");
  assert.deepEqual((await karta.apiKeys.revoke(rotated.api_key.id)).api_key, revoked);
});

test("repeated creates with one idempotency key are equal", async () => {
  const idempotencyKey = "order-1";
  const first = await karta.apiKeys.create("once", ["read"], {}, { idempotencyKey });
  assert.deepEqual(await karta.apiKeys.create("once", ["read"], {}, { idempotencyKey }), first);
  const other = await fails(() => karta.apiKeys.create("twice", ["read"], {}, { idempotencyKey }), KartaValidationError);
  assert.equal(other.code, "idempotency_mismatch");
});

test("a lost response creates no second key", async () => {
  let lost = 0;
  const lossy: typeof fetch = async (url, init) => {
    const answer = await fetch(url, init);
    if (lost++ > 0) return answer;
    await answer.arrayBuffer();
    throw new TypeError("the connection broke");
  };
  const { api_key } = await client({ fetch: lossy, random: () => 0 }).apiKeys.create("lost", ["read"]);
  const named = (await karta.apiKeys.list()).filter(({ name }) => name === "lost");
  assert.deepEqual(named, [api_key]);
});

test("errors have the API's messages and codes", async () => {
  const unknown = await fails(() => client({ apiKey: `kt_live_${"0".repeat(32)}` }).whoami(), KartaAuthError);
  assert.equal(unknown.status, 401);
  assert.match(unknown.message, /^401: Send Authorization: Bearer <key>\. /);
  const { secret } = await karta.apiKeys.create("reader", ["read"]);
  const forbidden = await fails(() => client({ apiKey: secret }).apiKeys.create("x", ["read"]), KartaForbiddenError);
  assert.equal(forbidden.message, "403: missing scope: admin");
  const missing = await fails(() => karta.apiKeys.get(1), KartaNotFoundError);
  assert.ok(missing.requestId);
  assert.equal((missing.body as { request_id: string }).request_id, missing.requestId);
  const bad = await fails(() => karta.apiKeys.create("", ["read"]), KartaValidationError);
  assert.equal(bad.field, "name");
  const { api_key_id } = await karta.whoami();
  assert.equal((await fails(() => karta.apiKeys.revoke(api_key_id), KartaConflictError)).code, "last_admin_key");
  await fails(() => client({ baseUrl: "http://127.0.0.1:1", maxRetries: 0 }).whoami(), KartaConnectionError);
});

test("a provider key is created, listed and revoked", async () => {
  const { model_key } = await karta.modelKeys.create("anthropic", "sk-ant-0123456789abcdefghij", "primary");
  assert.deepEqual([model_key.provider, model_key.name, model_key.tail], ["anthropic", "primary", "ghij"]);
  assert.deepEqual(await karta.modelKeys.list(), [model_key]);
  assert.ok((await karta.modelKeys.revoke(model_key.id)).model_key.revoked_at);
  const rejected = await fails(() => karta.modelKeys.create("openai", "sk-ant-0123456789abcdefghij"), KartaValidationError);
  assert.equal(rejected.code, "byok_key_rejected");
});

test("a project is created, read, listed and changed", async () => {
  const { agent_project } = await karta.projects.create({ slug: "my-app", name: "My app" });
  assert.deepEqual((await karta.projects.get("my-app")).agent_project, agent_project);
  assert.deepEqual(await karta.projects.list(), [agent_project]);
  const { agent_project: changed } = await karta.projects.update("my-app", { name: "Ours", model_id: "gpt-4o" });
  assert.deepEqual([changed.name, changed.model_id], ["Ours", "gpt-4o"]);
  assert.equal((await fails(() => karta.projects.create({ slug: "my-app", name: "x" }), KartaConflictError)).code, "slug_taken");
});

test("releases are deployed, listed and rolled back", async () => {
  const { release } = await karta.deploys.create("my-app", { commit_sha: "abcdef0" });
  assert.deepEqual([release.version, release.status], [1, "active"]);
  await karta.deploys.create("my-app", { commit_sha: "abcdef1" });
  assert.equal((await karta.releases.rollback("my-app", 1)).release.status, "active");
  assert.deepEqual((await karta.releases.list("my-app")).map(({ version, status }) => [version, status]), [[2, "superseded"], [1, "active"]]);
  await internal(`/releases/${release.id}/status`, { status: "active", build_log: "Fetching\nBuilding" });
  assert.deepEqual(await karta.releases.logs("my-app", 1), [{ line: 1, text: "Fetching" }, { line: 2, text: "Building" }]);
});

test("lists continue over pages", async () => {
  await karta.projects.create({ slug: "paged", name: "Paged" });
  const { release } = await karta.deploys.create("paged", { commit_sha: "abcdef0" });
  const lines = Array.from({ length: 250 }, (_, at) => ({ line: at + 1, text: `line ${at + 1}` }));
  await internal(`/releases/${release.id}/status`, { status: "active", build_log: lines.map(({ text }) => text).join("\n") });
  assert.deepEqual(await karta.releases.logs("paged", 1), lines);
  const seen: number[] = [];
  for await (const { line } of karta.releases.logs("paged", 1, { limit: 130 })) seen.push(line);
  assert.deepEqual(seen, lines.slice(0, 130).map(({ line }) => line));
  const { items, next_cursor } = await karta.releases.logs("paged", 1, { limit: 2 }).page();
  const next = await karta.releases.logs("paged", 1, { limit: 2, cursor: next_cursor }).page();
  assert.deepEqual([...items, ...next.items], lines.slice(0, 4));
  const foreign = await fails(() => karta.projects.list({ cursor: next_cursor }), KartaValidationError);
  assert.equal(foreign.field, "cursor");
});

test("a session token is limited to its project", async () => {
  await karta.projects.create({ slug: "other", name: "Other" });
  const minted = await karta.sessionTokens.mint("my-app", { userId: "user_1", ttlSeconds: 60 });
  assert.deepEqual([minted.expires_in, minted.project.slug, minted.sub], [60, "my-app", "user_1"]);
  const widget = client({ apiKey: minted.token });
  const principal = await widget.projects.whoami("my-app");
  assert.deepEqual([principal.kind, principal.sub, principal.project_slug], ["session", "user_1", "my-app"]);
  await fails(() => widget.projects.whoami("other"), KartaForbiddenError);
  await fails(() => widget.whoami(), KartaForbiddenError);
  assert.equal((await karta.sessionTokens.mint("my-app")).sub, null);
});

test("usage, budget and billing are read and enforced", async () => {
  const { organization_slug, api_key_id, scopes } = await karta.whoami();
  assert.deepEqual([organization_slug, scopes.length], ["acme", 3]);
  const before = await karta.budget.get();
  assert.equal(before.budget.total_tokens, null);
  await internal("/usage/events", {
    events: [{ api_key_id, kind: "input_tokens", quantity: 1200, model: "gpt-4o", occurred_at: new Date().toISOString(), client_event_id: "e1" }],
  });
  const usage = await karta.usage.summary();
  assert.equal(usage.totals.total_tokens, 1200);
  assert.match(`Used ${usage} this period`, /^Used 1,200 tokens \(\$\d+\.\d\d\) this period$/);
  const ours = (await karta.usage.keys()).find((each) => each.api_key_id === api_key_id);
  assert.equal(ours?.totals.total_tokens, 1200);
  assert.equal((await karta.usage.summary({ period: "2026-01" })).totals.total_tokens, 0);

  assert.equal((await karta.budget.update({ total_tokens: 1000 })).budget.total_tokens, 1000);
  const spent = await fails(() => karta.sessionTokens.mint("my-app"), KartaBudgetError);
  assert.equal(spent.reason, "monthly token cap reached");
  await karta.budget.update({});

  const billing = await karta.billing.status();
  assert.deepEqual([billing.plan, billing.status, billing.billing_configured], ["free", "active", false]);
});

test("audit events have the client's user agent", async () => {
  const events = await karta.auditEvents.list({ action: "agent_project.created", limit: 1 });
  assert.equal(events.length, 1);
  assert.equal(events[0]?.user_agent, `karta-sdk-typescript/${VERSION}`);
});

test("types have exactly the fields of responses", async () => {
  const fields = (of: object) => Object.keys(of).sort();
  const has = <T extends object>(answer: T | undefined, typed: Record<Exclude<keyof T, "toString">, true>) => {
    assert.deepEqual(fields(answer ?? {}), fields(typed));
  };
  const budget = { input_tokens: true, output_tokens: true, total_tokens: true, cost_cents: true, alert_percents: true } as const;
  const usage = { period: true, totals: true, by_model: true, by_day: true, unpriced: true, budget: true } as const;
  has((await karta.apiKeys.list({ limit: 1 }))[0], {
    id: true, name: true, prefix: true, scopes: true, status: true, created_at: true, created_by: true, last_used_at: true, expires_at: true,
    revoked_at: true, replaced_by: true, allowed_cidrs: true, budget: true, metadata: true,
  });
  has((await karta.modelKeys.list())[0], { id: true, provider: true, name: true, tail: true, created_at: true, revoked_at: true });
  has((await karta.projects.list())[0], { id: true, slug: true, name: true, current_version: true, model_id: true, endpoint_url: true, created_at: true });
  has((await karta.releases.list("my-app"))[0], {
    id: true, project_id: true, version: true, commit_sha: true, artifact_url: true, status: true, build_kind: true, image_ref: true,
    created_at: true, activated_at: true,
  });
  has(await karta.sessionTokens.mint("my-app"), { token: true, expires_at: true, expires_in: true, project: true, sub: true });
  has((await karta.budget.get()).budget, budget);
  has(await karta.usage.summary(), usage);
  const tally = {
    input_tokens: true, output_tokens: true, cache_read_tokens: true, cache_write_tokens: true, total_tokens: true, cost_cents: true,
  } as const;
  has((await karta.usage.summary()).totals, tally);
  has((await karta.usage.summary()).by_model[0], { ...tally, model: true });
  has((await karta.usage.summary()).by_day[0], { ...tally, date: true });
  has((await karta.usage.summary()).budget.spent_percent, { input_tokens: true, output_tokens: true, total_tokens: true, cost_cents: true });
  has((await karta.usage.summary()).budget, { ...budget, spent_percent: true, ok: true, reason: true });
  has((await karta.usage.keys())[0], { ...usage, api_key_id: true, name: true, prefix: true });
  has(await karta.billing.status(), {
    plan: true, status: true, billing_configured: true, current_period_start: true, current_period_end: true, cancel_at_period_end: true,
  });
  has((await karta.auditEvents.list({ limit: 1 }))[0], {
    id: true, at: true, actor: true, action: true, resource: true, changes: true, ip_address: true, user_agent: true, request_id: true, chain: true,
  });
  has(await karta.whoami(), {
    kind: true, organization_id: true, organization_slug: true, scopes: true, api_key_id: true, api_key_prefix: true, project_id: true,
    project_slug: true, sub: true, budget_ok: true, budget_reason: true,
  });
});

/** Starts a server on loopback that stores the requests that it receives. */
async function receiver() {
  const arrived: { headers: Record<string, string | string[] | undefined>; body: Buffer }[] = [];
  let wake = () => {};
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      arrived.push({ headers: request.headers, body: Buffer.concat(chunks) });
      response.end();
      wake();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  /** Waits for delivery number `at` and returns it. */
  const delivery = async (at: number) => {
    while (arrived.length <= at) await new Promise<void>((resolve) => (wake = resolve));
    return arrived[at] as (typeof arrived)[number];
  };
  return { url: `http://127.0.0.1:${port}/hook`, delivery, close: () => server.close() };
}

const hasWebhooks = (await fetch(`${runner.base_url}/v1/webhook_endpoints`, { headers: { authorization: `Bearer ${runner.api_key}` } })).status !== 404;

if (!hasWebhooks) {
  console.log("this runner has no webhook endpoints: GET /v1/webhook_endpoints is 404");
  test.todo("webhook endpoints: missing in this runner");
} else {
  test("a webhook endpoint is created, changed and deleted", async () => {
    const url = "https://example.com/karta-webhook";
    const { webhook_endpoint, secret } = await karta.webhookEndpoints.create({ url, event_types: ["invoice.paid"] });
    assert.match(secret, /^whsec_/);
    const fields = ["consecutive_failures", "created_at", "description", "disabled_reason", "enabled", "event_types", "id", "url"];
    assert.deepEqual(Object.keys(webhook_endpoint).sort(), fields);
    assert.deepEqual((await karta.webhookEndpoints.get(webhook_endpoint.id)).webhook_endpoint, webhook_endpoint);
    assert.deepEqual(await karta.webhookEndpoints.list(), [webhook_endpoint]);
    const changed = await karta.webhookEndpoints.update(webhook_endpoint.id, { event_types: ["*"], enabled: false });
    assert.deepEqual([changed.webhook_endpoint.event_types, changed.webhook_endpoint.enabled], [["*"], false]);
    assert.notEqual((await karta.webhookEndpoints.rotateSecret(webhook_endpoint.id, { grace_seconds: 0 })).secret, secret);
    assert.equal(await karta.webhookEndpoints.delete(webhook_endpoint.id), undefined);
    await fails(() => karta.webhookEndpoints.get(webhook_endpoint.id), KartaNotFoundError);
  });

  test("a delivery is verified, listed, replayed and recovered", { timeout: 60_000 }, async () => {
    const there = await receiver();
    try {
      const { webhook_endpoint, secret } = await karta.webhookEndpoints.create({ url: there.url, event_types: ["*"] });
      const { delivery: ping } = await karta.webhookEndpoints.test(webhook_endpoint.id);
      assert.deepEqual([ping.event_type, ping.status], ["ping", "pending"]);
      const { headers, body } = await there.delivery(0);
      const event: KartaEvent = await verifyWebhook(body, headers, secret);
      assert.equal(event.type, "ping");
      const { "karta-signature": _, ...standard } = headers;
      assert.deepEqual(await verifyWebhook(body, standard, secret), event);
      await assert.rejects(verifyWebhook(Buffer.concat([body, Buffer.from(" ")]), headers, secret));

      const [delivery] = await karta.webhookEndpoints.deliveries(webhook_endpoint.id);
      assert.deepEqual([delivery?.id, delivery?.event_id], [ping.id, event.id]);
      assert.equal((await karta.webhookEndpoints.replay(webhook_endpoint.id, ping.id)).delivery.id, ping.id);
      const again = await there.delivery(1);
      assert.deepEqual(await verifyWebhook(again.body, again.headers, secret), event);
      const since = new Date(Date.now() - 60_000).toISOString();
      const { recovery } = await karta.webhookEndpoints.recover(webhook_endpoint.id, { since });
      assert.deepEqual([recovery.webhook_endpoint_id, recovery.since], [webhook_endpoint.id, since]);
    } finally {
      there.close();
    }
  });
}

test("every public route of the template is called", () => {
  assert.ok(routes.length > 20, "no routes were found in the template");
  assert.deepEqual(routes.filter((route) => !called.has(route)), []);
});

// Passes values that JSON would drop or turn into `null` at every field of every method, and
// unknown names in the filters and options of every method. sdk/contract/agreement.ts lists the
// methods and the targets of their arguments, openapi.json the fields.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { runInNewContext } from "node:vm";
import { Karta, KartaArgumentError, type BudgetParams } from "@karta/sdk";
import { API_KEY, failure, json, scripted } from "./support.js";

interface Schema {
  $ref?: string;
  type?: string | string[];
  properties?: Record<string, Schema>;
  additionalProperties?: Schema | boolean;
  items?: Schema;
  anyOf?: Schema[];
  oneOf?: Schema[];
  allOf?: Schema[];
}
interface Parameter {
  $ref?: string;
  name: string;
  in: string;
  schema: Schema;
}
interface Operation {
  operationId?: string;
  parameters?: Parameter[];
  requestBody?: { content: { "application/json": { schema: Schema } } };
}
interface Document {
  paths: Record<string, Record<string, Operation> & { parameters?: Parameter[] }>;
  components: { schemas: Record<string, Schema>; parameters?: Record<string, Parameter> };
}

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");
const document = JSON.parse(read("../../openapi.json")) as Document;

/** Path of keys and indexes to a value in an argument. */
type Steps = readonly (string | number)[];
/** A string, number or boolean of a request: the part of the request and the path in it. */
interface Place {
  part: string;
  steps: Steps;
  type: string;
}

const SCALARS = ["string", "integer", "number", "boolean"];
const lastOf = (reference: string) => reference.split("/").at(-1) as string;

function placesIn(schema: Schema | undefined, part: string, steps: Steps = []): Place[] {
  if (schema === undefined) return [];
  if (schema.$ref !== undefined) return placesIn(document.components.schemas[lastOf(schema.$ref)], part, steps);
  const places = [schema.anyOf, schema.oneOf, schema.allOf].flatMap((choices) => choices ?? []).flatMap((choice) => placesIn(choice, part, steps));
  for (const type of [schema.type ?? []].flat()) if (SCALARS.includes(type)) places.push({ part, steps, type });
  for (const [name, field] of Object.entries(schema.properties ?? {})) places.push(...placesIn(field, part, [...steps, name]));
  if (typeof schema.additionalProperties === "object") places.push(...placesIn(schema.additionalProperties, part, [...steps, "any"]));
  places.push(...placesIn(schema.items, part, [...steps, 0]));
  return places;
}

/** The scalar values of each operation, by operation id. */
const operations = new Map<string, Place[]>();
/** Ids of the operations with an idempotency key. */
const creates = new Set<string>();
for (const { parameters: shared = [], ...methods } of Object.values(document.paths)) {
  for (const { operationId, parameters = [], requestBody } of Object.values(methods as Record<string, Operation>)) {
    if (operationId === undefined) continue;
    const named = [...shared, ...parameters].map((each) => (each.$ref === undefined ? each : document.components.parameters?.[lastOf(each.$ref)])) as Parameter[];
    if (named.some((each) => each.name === "Idempotency-Key")) creates.add(operationId);
    const places = named.filter((each) => each.in !== "header").flatMap((each) => placesIn(each.schema, each.in, [each.name]));
    operations.set(operationId, [...places, ...placesIn(requestBody?.content["application/json"].schema, "body")]);
  }
}

/** Methods of the lines in agreement.ts that name an alias instead of the method. */
const ALIASES: Record<string, string> = { Mint: "sessionTokens.mint", UsageKeys: "usage.keys" };

const lines = read("../contract/agreement.ts").match(/^interface ManagementCalls \{$.*?^\}$/ms)?.[0] ?? "";
/** Each method with its operation and the targets of its arguments. */
const methods = [...lines.matchAll(/^  (\w+): (?:Client(?:List)?<)?(Karta[\w"[\]]+|\w+)(?:, \[([^\]]*)\].*)?;$/gm)]
  .filter(([, operation]) => operations.has(operation as string))
  .map(([, operation, name, goTo]) => ({
    operation: operation as string,
    name: ALIASES[name as string] ?? [...(name as string).matchAll(/"(\w+)"/g)].map(([, part]) => part).join("."),
    goTo: goTo === undefined ? ["query"] : [...goTo.matchAll(/"([\w.]+)"/g)].map(([, place]) => place as string),
  }));

/** Calls the method `name` of `karta`. */
function call(karta: Karta, name: string, args: unknown[]): unknown {
  const [method = "", resource] = name.split(".").reverse();
  const owner = (resource === undefined ? karta : karta[resource as keyof Karta]) as unknown as Record<string, (...args: unknown[]) => unknown>;
  return owner[method]?.(...args);
}

const GOOD: Record<string, unknown> = { string: "a", integer: 1, number: 1, boolean: true };

/** Returns arguments for a method with `value` at `place`, and otherwise only what paths need. */
function argumentsFor(goTo: string[], place: Place, value: unknown): unknown[] {
  const path = [place.part, ...place.steps];
  return goTo.map((goal) => {
    const start = goal.split(".");
    if (start.every((step, at) => step === path[at])) return nested(path.slice(start.length), value);
    if (start[0] === "path") return /slug|ref/.test(goal) ? "a" : 1;
    return start.length === 1 ? {} : undefined;
  });
}

/** Returns arguments with which a method is sent. The call's options come after them. */
function argumentsOf(goTo: string[]): unknown[] {
  return argumentsFor(goTo, { part: "", steps: [], type: "" }, undefined);
}

function nested([step, ...steps]: Steps, value: unknown): unknown {
  if (step === undefined) return value;
  return typeof step === "number" ? [nested(steps, value)] : { [step]: nested(steps, value) };
}

/** The client's names of path parameters. */
const IN_PATHS: Record<string, string> = { delivery_id: "deliveryId", ref: "slug" };

function fieldOf({ part, steps }: Place): string {
  if (part === "path") return IN_PATHS[String(steps[0])] ?? String(steps[0]);
  return steps.map((step) => (typeof step === "number" ? `[${step}]` : `.${step}`)).join("").slice(1);
}

/** Values that JSON drops, turns into `null` or {}, or cannot serialize. */
const NOT_JSON: Record<string, unknown> = {
  NaN: Number("1,000"),
  Infinity: 5 / 0,
  "-Infinity": -5 / 0,
  "a bigint": 1n,
  "a function": () => 1,
  "a symbol": Symbol("1"),
  "a boxed NaN": Object(Number.NaN),
  "a boxed bigint": Object(1n),
  "a boxed number with a null valueOf": Object.assign(Object(1), { valueOf: () => null }),
  "a boxed string with a null valueOf": Object.assign(Object("a"), { valueOf: () => null }),
  "a boxed boolean with a null valueOf": Object.assign(Object(true), { valueOf: () => null }),
  "a boxed number with an undefined valueOf": Object.assign(Object(1), { valueOf: () => undefined }),
  "a boxed number of another realm": runInNewContext("Object.assign(Object(1), { valueOf: () => null })"),
  "toJSON to a boxed number": { toJSON: () => Object.assign(Object(1), { valueOf: () => null }) },
  "an invalid date": new Date("1,000"),
  "an invalid date of another realm": runInNewContext("new Date(NaN)"),
  "toJSON to null": { toJSON: () => null },
  "toJSON to undefined": { toJSON: () => undefined },
  "toJSON to NaN": { toJSON: () => Number.NaN },
  "toJSON that throws": {
    toJSON: () => {
      throw new RangeError("no");
    },
  },
  "a map": new Map([["a", 1]]),
  "a set of another realm": runInNewContext("new Set([1])"),
  "a promise": Promise.resolve(1),
};

function methodsOf(karta: Karta): string[] {
  const named = (of: object) => Object.getOwnPropertyNames(Object.getPrototypeOf(of)).filter((name) => !["constructor", "toString", "toJSON", "baseUrl"].includes(name));
  const resources = Object.entries(karta).flatMap(([resource, of]) => named(of as object).map((method) => `${resource}.${method}`));
  return [...named(karta), ...resources].sort();
}

test("agreement.ts lists every method", () => {
  assert.deepEqual(methods.map(({ name }) => name).sort(), methodsOf(new Karta({ apiKey: API_KEY })));
});

test("every field rejects values that JSON cannot hold", async () => {
  let tried = 0;
  for (const { operation, name, goTo } of methods) {
    for (const place of operations.get(operation) ?? []) {
      const field = fieldOf(place);
      const { karta, sent } = scripted([({ url }) => json(200, new Proxy({ url }, { get: () => undefined }))]);
      // The same call with a valid value is sent.
      await failure(async () => {
        await call(karta, name, argumentsFor(goTo, place, GOOD[place.type]));
        throw new Error("sent");
      });
      assert.equal(sent.length, 1, `${name} ${field}`);
      const inArray = place.steps.at(-1) === 0 ? { "undefined in an array": undefined } : {};
      for (const [what, value] of Object.entries({ ...NOT_JSON, ...inArray })) {
        const error = await failure(() => call(karta, name, argumentsFor(goTo, place, value)));
        assert.ok(error instanceof KartaArgumentError, `${name} ${field} with ${what}: ${String(error)}`);
        assert.equal(error.field, field, `${name} with ${what}`);
        assert.ok(error.message.startsWith(`${field} `), error.message);
        tried += 1;
      }
      assert.equal(sent.length, 1, `${name} ${field}`);
    }
  }
  assert.ok(tried > 1500, `only ${tried} were tried`);
});

test("a misspelt filter is rejected before sending", async () => {
  const { karta, sent } = scripted([json(200, {})]);
  const filters = "status, unused_days, expires_within_days, limit, cursor";
  const cases: [() => unknown, string][] = [
    [() => karta.apiKeys.list({ unusedDays: 90 } as never), `unusedDays is unknown: use unused_days. Known names: ${filters}`],
    [() => karta.apiKeys.list({ unused: 90 } as never).page(), `unused is unknown. Known names: ${filters}`],
    [() => karta.apiKeys.list("active" as never), `params must be an object, not a String. Known names: ${filters}`],
    [() => karta.apiKeys.list(["active"] as never), `params must be an object, not an Array. Known names: ${filters}`],
    [() => karta.usage.summary({ month: "2026-10" } as never), "month is unknown. Known names: period"],
    [() => karta.usage.summary("2026-10" as never), "params must be an object, not a String. Known names: period"],
  ];
  for (const [send, message] of cases) {
    const error = await failure(send);
    assert.ok(error instanceof KartaArgumentError, String(error));
    assert.equal(error.message, message);
  }
  assert.equal(sent.length, 0);
});

test("every method rejects unknown filters", async () => {
  const wrongTypes = ["active", "", 7, true, 1n, Symbol("a"), () => ({}), ["active"], new Map([["month", 1]]), new URLSearchParams("month=1"), Promise.resolve({}), new Date(0)];
  let tried = 0;
  for (const { operation, name, goTo } of methods) {
    const at = goTo.indexOf("query");
    if (at < 0) continue;
    const places = (operations.get(operation) ?? []).filter(({ part }) => part === "query");
    const known = [...new Set(places.map(({ steps }) => String(steps[0])))].sort();
    const { karta, sent } = scripted([json(200, {})]);
    const cases: [string, unknown][] = [
      ...known.map((each): [string, unknown] => [each.toUpperCase(), { [each.toUpperCase()]: 1 }]),
      ["month", { month: "2026-10" }],
      ["month", Object.create({ month: 1 })],
      ["month", Object.defineProperty({}, "month", { value: 1 })],
      ["month", new (class { get month() { return 1; } })()],
      ...wrongTypes.map((value): [string, unknown] => ["params", value]),
    ];
    for (const [field, params] of cases) {
      const error = await failure(() => call(karta, name, argumentsOf(goTo).map((each, index) => (index === at ? params : each))));
      assert.ok(error instanceof KartaArgumentError && error.field === field, `${name} ${field}: ${String(error)}`);
      const [fault, names = ""] = error.message.split(" Known names: ");
      assert.deepEqual(names.split(", ").sort(), known, name);
      if (known.includes(field.toLowerCase())) assert.equal(fault, `${field} is unknown: use ${field.toLowerCase()}.`);
      tried += 1;
    }
    assert.equal(sent.length, 0, name);
  }
  assert.ok(tried > 150, `only ${tried} were tried`);
});

test("every method rejects unknown call options", async () => {
  const { signal } = new AbortController();
  for (const { operation, name, goTo } of methods) {
    const { karta, sent } = scripted([json(200, {})]);
    const isCreate = creates.has(operation);
    const known = { signal, timeout: 1000, maxRetries: 0, ...(isCreate ? { idempotencyKey: "order-1" } : {}) };
    const cases: [string, unknown][] = [
      ["idempotency_key", { idempotency_key: "order-1" }],
      ["max_retries", { max_retries: 0 }],
      ["abortSignal", { abortSignal: undefined }],
      ["options", signal],
      ["options", "order-1"],
      ["options", [known]],
    ];
    // Without effect on other calls, the key would promise a safe repetition.
    if (!isCreate) cases.push(["idempotencyKey", { idempotencyKey: "order-1" }]);
    for (const [field, options] of cases) {
      const error = await failure(() => call(karta, name, [...argumentsOf(goTo), options]));
      assert.ok(error instanceof KartaArgumentError && error.field === field, `${name} ${field}: ${String(error)}`);
      const [fault, names] = error.message.split(" Known names: ");
      assert.equal(names, Object.keys(known).join(", "), name);
      if (field === "max_retries") assert.equal(fault, "max_retries is unknown: use maxRetries.");
    }
    assert.equal(sent.length, 0, name);
    await failure(async () => {
      await call(karta, name, [...argumentsOf(goTo), known]);
      throw new Error("sent");
    });
    assert.equal(sent.length, 1, name);
  }
  assert.equal(methods.filter(({ operation }) => creates.has(operation)).length, 7);
});

test("inherited filters and options are read", async () => {
  class Filters {
    get status() {
      return "active" as const;
    }
  }
  const { karta, sent } = scripted([json(503, {})]);
  await failure(() => karta.apiKeys.list(new Filters(), Object.create({ maxRetries: 0 })));
  assert.deepEqual(sent.map(({ url }) => url), ["https://karta.test/v1/api_keys?status=active&limit=100"]);
});

test("a second name or scopes is rejected", async () => {
  const { karta, sent } = scripted([json(201, {})]);
  for (const [field, params] of [["name", { name: "b" }], ["scopes", { scopes: ["admin"] }], ["scopes", { toJSON: () => ({ scopes: [] }) }]] as const) {
    const error = await failure(() => karta.apiKeys.create("a", ["read"], params as never));
    assert.ok(error instanceof KartaArgumentError && error.field === field, String(error));
  }
  assert.equal(sent.length, 0);
  await karta.apiKeys.create("a", ["read"], { name: "a", scopes: ["read"] } as never);
  assert.deepEqual(sent.map(({ body }) => body), [{ name: "a", scopes: ["read"] }]);
});

test("a failed calculation does not remove a cap", async () => {
  const { karta, sent } = scripted([json(200, {})]);
  const cap = await failure(() => karta.budget.update({ total_tokens: Number("1,000") }));
  assert.ok(cap instanceof KartaArgumentError);
  assert.equal(cap.message, "total_tokens must be a finite number, not NaN");
  const key = await failure(() => karta.apiKeys.create("ci-runner", ["write"], { budget: { cost_cents: 5 / 0 } }));
  assert.ok(key instanceof KartaArgumentError);
  assert.equal(key.message, "budget.cost_cents must be a finite number, not Infinity");
  const end = await failure(() => karta.apiKeys.update(1, { expires_at: new Date("tomorrow") as never }));
  assert.ok(end instanceof KartaArgumentError);
  assert.equal(end.message, "expires_at must be a valid date");
  assert.equal(sent.length, 0);
});

test("errors name the spelling that was used", async () => {
  const { karta, sent } = scripted([json(201, {})]);
  for (const field of ["ttlSeconds", "userId", "actor", "period"]) {
    const error = await failure(() =>
      field === "actor"
        ? karta.auditEvents.list({ actor: Number.NaN })
        : field === "period"
          ? karta.usage.summary({ period: new Date(Number.NaN) as never })
          : karta.sessionTokens.mint("a", { [field]: Number.NaN }),
    );
    assert.ok(error instanceof KartaArgumentError && error.field === field, String(error));
  }
  assert.equal(sent.length, 0);
});

test("arguments that are not plain objects are rejected", async () => {
  const { karta, sent } = scripted([json(200, {})]);
  for (const params of [new Map(), Promise.resolve({}), [1], 7, Number.NaN, () => ({}), null] as never[]) {
    for (const send of [
      () => karta.budget.update(params),
      () => karta.apiKeys.create("a", [], params),
      () => karta.apiKeys.update(1, params),
      () => karta.sessionTokens.mint("a", params),
    ]) {
      const error = await failure(send);
      assert.ok(error instanceof KartaArgumentError && error.field === "params", String(error));
    }
  }
  assert.equal(sent.length, 0);
});

test("other values are sent as JSON.stringify writes them", async () => {
  class Caps {
    cost_cents = 5;
    #hidden = 1;
    total(): number {
      return this.#hidden;
    }
  }
  const shared = { a: 1 };
  class Itself {
    b = 2;
    toJSON(): this {
      return this;
    }
  }
  const values = [
    { total_tokens: null, input_tokens: 0, output_tokens: -0, alert_percents: [] },
    { when: new Date(0), there: runInNewContext("new Date(1)"), boxed: [Object("a"), Object(1), Object(false)] },
    { caps: new Caps(), bare: Object.assign(Object.create(null), { c: 3 }), foreign: runInNewContext("({ d: [1, { e: null }] })") },
    { one: shared, other: [shared, shared], more: undefined, __proto__: { method: () => 1 } },
    JSON.parse(`{"__proto__": {"a": 1}, "constructor": 1, "": "ä\\ud800"}`),
    { decimal: { toJSON: () => "1.5" }, itself: new Itself() },
  ];
  for (const value of values) {
    const { karta, sent } = scripted([json(200, {})]);
    await karta.budget.update(value as BudgetParams);
    assert.equal(sent[0]?.init.body, JSON.stringify(value));
  }
});

test("undefined request fields are absent", async () => {
  const { karta, sent } = scripted([json(200, { api_keys: [], audit_events: [], deliveries: [], keys: [], next_cursor: null })]);
  await karta.apiKeys.create("a", ["read"], { metadata: undefined });
  await karta.apiKeys.create("a", ["read"], { name: undefined, scopes: undefined } as never);
  await karta.apiKeys.update(1, { name: undefined, metadata: { team: undefined } as never });
  await karta.projects.update("a", { name: undefined, model_id: undefined, endpoint_url: undefined });
  await karta.deploys.create("a", { commit_sha: "abcdef0", artifact_url: undefined });
  await karta.modelKeys.create("openai", "sk", undefined);
  assert.deepEqual(sent.map(({ body }) => body), [
    { name: "a", scopes: ["read"] },
    { name: "a", scopes: ["read"] },
    { metadata: {} },
    {},
    { commit_sha: "abcdef0" },
    { provider: "openai", key: "sk" },
  ]);
  sent.length = 0;
  const unknown: object = { month: undefined };
  await karta.apiKeys.list({ status: undefined, unused_days: undefined, limit: undefined, cursor: undefined, ...unknown });
  await karta.auditEvents.list({ actor: undefined, action: undefined, ...unknown }).page();
  await karta.webhookEndpoints.deliveries(1, { status: undefined, ...unknown });
  await karta.usage.keys({ period: undefined, ...unknown });
  await karta.usage.summary({ period: undefined, ...unknown });
  assert.deepEqual(sent.map(({ url }) => new URL(url).search), ["?limit=100", "?limit=100", "?limit=100", "?limit=100", ""]);
});

test("an undefined flag to activate a release is rejected", async () => {
  const { karta, sent } = scripted([]);
  const params = { commit_sha: "abcdef0", activate: undefined } as never;
  await assert.rejects(karta.deploys.create("a", params), { field: "activate" });
  assert.equal(sent.length, 0);
});

test("an actor's id is a positive integer", async () => {
  const { karta, sent } = scripted([]);
  for (const actor of [1.5, -1, 0, 2 ** 53, Infinity]) {
    await assert.rejects(karta.auditEvents.list({ actor }).page(), { field: "actor" });
  }
  assert.equal(sent.length, 0);
});

test("an undefined cap is rejected", async () => {
  const { karta, sent } = scripted([json(200, {})]);
  for (const cap of ["input_tokens", "output_tokens", "total_tokens", "cost_cents", "alert_percents"]) {
    const budgets = [{ [cap]: undefined }, { toJSON: () => ({ [cap]: undefined }) }, { [cap]: 5, toJSON: () => ({}) }, Object.create({ [cap]: 5, toJSON: () => ({}) })];
    for (const budget of budgets as never[]) {
      for (const [field, send] of [
        [cap, () => karta.budget.update(budget)],
        [`budget.${cap}`, () => karta.apiKeys.create("a", [], { budget })],
        [`budget.${cap}`, () => karta.apiKeys.update(1, { budget })],
      ] as const) {
        const error = await failure(send);
        assert.ok(error instanceof KartaArgumentError && error.field === field, `${field}: ${String(error)}`);
      }
    }
  }
  assert.equal(sent.length, 0);
  await karta.budget.update({ total_tokens: null });
  await karta.apiKeys.update(1, { name: undefined, budget: { cost_cents: 5 } });
  await karta.apiKeys.update(1, { metadata: { cost_cents: undefined } as never });
  assert.deepEqual(sent.map(({ body }) => body), [{ total_tokens: null }, { budget: { cost_cents: 5 } }, { metadata: {} }]);
});

/** The limits of each method: fields where `undefined` would remove, extend or keep a limit. */
const LIMITS: readonly [method: string, fields: readonly string[], call: (karta: Karta, params: never) => unknown][] = [
  ["apiKeys.create", ["expires_at", "allowed_cidrs", "budget"], (karta, params) => karta.apiKeys.create("a", ["read"], params)],
  ["apiKeys.update", ["expires_at", "allowed_cidrs", "budget", "scopes"], (karta, params) => karta.apiKeys.update(1, params)],
  ["apiKeys.rotate", ["grace_seconds"], (karta, params) => karta.apiKeys.rotate(1, params)],
  ["webhookEndpoints.rotateSecret", ["grace_seconds"], (karta, params) => karta.webhookEndpoints.rotateSecret(1, params)],
  ["sessionTokens.mint", ["ttl_seconds", "ttlSeconds"], (karta, params) => karta.sessionTokens.mint("a", params)],
];

test("an undefined limit is rejected", async () => {
  for (const [method, fields, call] of LIMITS) {
    const { karta, sent } = scripted([json(200, {})]);
    for (const field of fields) {
      const converted = { toJSON: () => ({ [field]: undefined }) };
      for (const params of [{ [field]: undefined }, ...(method === "sessionTokens.mint" ? [] : [converted])]) {
        const error = await failure(() => call(karta, params as never));
        assert.ok(error instanceof KartaArgumentError && error.field === field, `${method} ${field}: ${String(error)}`);
        assert.match(error.message, /must not be undefined: pass a value or omit the field$/);
      }
    }
    assert.equal(sent.length, 0);
    await call(karta, {} as never);
    for (const field of fields) await call(karta, { [field]: null } as never);
    assert.equal(sent.length, 1 + fields.length);
  }
});

test("toJSON must not drop a limit", async () => {
  for (const [method, fields, call] of LIMITS.filter(([name]) => name !== "sessionTokens.mint")) {
    const { karta, sent } = scripted([json(200, {})]);
    for (const field of fields) {
      const error = await failure(() => call(karta, { [field]: 5, toJSON: () => ({}) } as never));
      assert.ok(error instanceof KartaArgumentError && error.field === field, `${method} ${field}: ${String(error)}`);
    }
    assert.equal(sent.length, 0);
  }
});

test("toJSON must not drop a budget", async () => {
  const { karta, sent } = scripted([json(200, {})]);
  class Budgeted {
    budget = { cost_cents: 5 };
    toJSON() {
      return { metadata: {} };
    }
  }
  const hidden = Object.defineProperty({}, "budget", { value: { cost_cents: 5 } });
  const dropping: [string, object][] = [
    ["budget", new Budgeted()],
    ["budget", { budget: { cost_cents: 5 }, toJSON: () => ({}) }],
    ["budget", { budget: { cost_cents: 5 }, toJSON: () => ({ budget: undefined }) }],
    ["budget", { budget: {}, toJSON: () => ({}) }],
    ["budget", { budget: null, toJSON: () => ({}) }],
    ["budget", { budget: undefined, toJSON: () => ({}) }],
    ["budget", Object.assign(hidden, { toJSON: () => ({}) })],
    ["budget", Object.create({ budget: { cost_cents: 5 }, toJSON: () => ({}) })],
    ["budget.cost_cents", { budget: { cost_cents: 5 }, toJSON: () => ({ budget: {} }) }],
    ["budget.cost_cents", { budget: { cost_cents: 5 }, toJSON: () => ({ budget: null }) }],
    ["budget.cost_cents", { budget: { cost_cents: undefined }, toJSON: () => ({ budget: {} }) }],
    ["budget.alert_percents", { budget: { cost_cents: 5, alert_percents: [80] }, toJSON: () => ({ budget: { cost_cents: 5 } }) }],
    ["budget.cost_cents", { toJSON: () => ({ budget: { cost_cents: 5, toJSON: () => ({}) } }) }],
  ];
  for (const [at, [field, params]] of dropping.entries()) {
    for (const send of [() => karta.apiKeys.create("a", [], params), () => karta.apiKeys.update(1, params)]) {
      const error = await failure(send);
      assert.ok(error instanceof KartaArgumentError && error.field === field, `${at} ${field}: ${String(error)}`);
      assert.match(error.message, /must not be (dropped by a toJSON method|undefined: pass a value or omit the field)$/);
    }
  }
  const copying = { budget: { cost_cents: undefined }, toJSON() { return { budget: { ...this.budget } }; } };
  assert.match(String(await failure(() => karta.apiKeys.update(1, copying as never))), /budget\.cost_cents must not be undefined/);
  assert.equal(sent.length, 0);
  const kept: [object, object][] = [
    [{ toJSON: () => ({ budget: { cost_cents: 5 } }) }, { budget: { cost_cents: 5 } }],
    [{ budget: { cost_cents: 5 }, toJSON: () => ({ budget: { cost_cents: 7 } }) }, { budget: { cost_cents: 7 } }],
    [{ budget: { cost_cents: 5 }, toJSON: () => ({ budget: { cost_cents: null } }) }, { budget: { cost_cents: null } }],
    [{ budget: null, toJSON: () => ({ budget: null }) }, { budget: null }],
  ];
  for (const [params] of kept) await karta.apiKeys.update(1, params);
  assert.deepEqual(sent.map(({ body }) => body), kept.map(([, body]) => body));
});

test("objects that hide fields from JSON are rejected", async () => {
  class Caps {
    #cents = 5;
    get cost_cents() {
      return this.#cents;
    }
  }
  class Disguised extends Map {
    override get [Symbol.toStringTag]() {
      return "Object";
    }
  }
  const hiding: object[] = [
    new Caps(),
    new (class extends Caps {
      total_tokens = 1;
    })(),
    new (class extends Map {})(),
    new (class extends Set {})(),
    new Disguised(),
    Object.defineProperty(Promise.resolve(), Symbol.toStringTag, { value: "Object" }),
    Object.create({ cost_cents: 5 }),
    Object.create(Object.assign(Object.create(null), { cost_cents: 5 })),
    Object.defineProperty({}, "cost_cents", { value: 5 }),
    runInNewContext("new (class { get cost_cents() { return 5 } })()"),
  ];
  const { karta, sent } = scripted([json(200, {})]);
  for (const [at, value] of hiding.entries()) {
    for (const [field, send] of [
      ["params", () => karta.budget.update(value)],
      ["budget", () => karta.apiKeys.create("a", [], { budget: value })],
      ["budget", () => karta.apiKeys.update(1, { budget: value })],
      ["params", () => karta.apiKeys.create("a", [], value)],
      ["metadata", () => karta.apiKeys.update(1, { metadata: value as never })],
    ] as const) {
      const error = await failure(send);
      assert.ok(error instanceof KartaArgumentError && error.field === field, `${at} ${field}: ${String(error)}`);
    }
  }
  assert.equal(sent.length, 0);
});

test("bodies nest at most 64 levels", async () => {
  const nest = (levels: number): object => (levels === 1 ? {} : { a: nest(levels - 1) });
  const { karta, sent } = scripted([json(200, {})]);
  await karta.budget.update(nest(64));
  assert.equal(sent.length, 1);
  let endless: object = {};
  for (let level = 0; level < 100_000; level++) endless = level % 2 === 0 ? [endless] : { a: endless };
  const unfolding = { toJSON: (): object => ({ a: { ...unfolding } }) };
  for (const body of [nest(65), endless, unfolding]) {
    const error = await failure(() => karta.budget.update(body));
    assert.ok(error instanceof KartaArgumentError, String(error));
    assert.match(error.message, /must not be nested deeper than 64 levels$/);
  }
  assert.equal(sent.length, 1);
});

test("an argument that contains itself is rejected", async () => {
  const circle: Record<string, unknown> = {};
  circle.inner = [circle];
  const error = await failure(() => scripted([json(200, {})]).karta.budget.update(circle));
  assert.ok(error instanceof KartaArgumentError && error.field === "inner[0]", String(error));
});

test("queries accept only strings and numbers", async () => {
  const { karta, sent } = scripted([json(200, { api_keys: [], next_cursor: null })]);
  for (const status of [{}, [], ["active", null], ["active", ["revoked"]], "\ud800", "a\udc00b", ["active", "\ud83d"]]) {
    const error = await failure(() => karta.apiKeys.list({ status: status as never }));
    assert.ok(error instanceof KartaArgumentError && error.field === "status", String(error));
  }
  assert.equal(sent.length, 0);
  await karta.apiKeys.list({ status: "\u{1f600}" as never });
  assert.match(String(sent[0]?.url), /status=%F0%9F%98%80/);
  const cursor = await failure(() => karta.apiKeys.list({ cursor: "\ud800" }));
  assert.ok(cursor instanceof KartaArgumentError && cursor.field === "cursor", String(cursor));
});

test("null filters are rejected", async () => {
  const { karta, sent } = scripted([json(200, {})]);
  const none = null as never;
  const calls: [string, () => unknown][] = [
    ["status", () => karta.apiKeys.list({ status: none })],
    ["unused_days", () => karta.apiKeys.list({ unused_days: none })],
    ["expires_within_days", () => karta.apiKeys.list({ expires_within_days: none })],
    ["status", () => karta.webhookEndpoints.deliveries(1, { status: none })],
    ["period", () => karta.usage.summary({ period: none })],
    ["period", () => karta.usage.keys({ period: none })],
    ["actor", () => karta.auditEvents.list({ actor: none })],
    ["action", () => karta.auditEvents.list({ action: none })],
  ];
  for (const [field, call] of calls) {
    const error = await failure(call);
    assert.ok(error instanceof KartaArgumentError, String(error));
    assert.deepEqual([error.field, error.message], [field, `${field} must not be null: pass a value or omit it`]);
  }
  assert.equal(sent.length, 0);
});

test("only status accepts a list", async () => {
  const { karta, sent } = scripted([json(200, { api_keys: [], deliveries: [], next_cursor: null })]);
  const calls: [string, () => unknown][] = [
    ["actor", () => karta.auditEvents.list({ actor: ["a", "b"] as never })],
    ["action", () => karta.auditEvents.list({ action: ["api_key.created"] as never })],
    ["unused_days", () => karta.apiKeys.list({ unused_days: [1, 2] as never })],
    ["period", () => karta.usage.summary({ period: ["2026-11"] as never })],
  ];
  for (const [field, call] of calls) {
    const error = await failure(call);
    assert.ok(error instanceof KartaArgumentError, String(error));
    assert.deepEqual([error.field, error.message], [field, `${field} must have one value, not a list`]);
  }
  assert.equal(sent.length, 0);
  await karta.apiKeys.list({ status: ["active", "rotating"] });
  await karta.webhookEndpoints.deliveries(1, { status: ["failed"] });
  assert.equal(sent.length, 2);
});

test("null options and parameters count as absent", async () => {
  const none = null as never;
  const lists = { api_keys: [], audit_events: [], deliveries: [], keys: [], releases: [], next_cursor: null };
  const { karta, sent } = scripted([json(200, lists)]);
  await karta.apiKeys.get(1, none);
  await karta.apiKeys.revoke(1, none);
  await karta.apiKeys.update(1, {}, none);
  await karta.apiKeys.create("a", [], {}, none);
  await karta.budget.update({}, none);
  await karta.sessionTokens.mint("a", {}, none);
  await karta.apiKeys.list(none, none);
  await karta.apiKeys.list(none).page();
  await karta.auditEvents.list(none);
  await karta.releases.list("a", none);
  await karta.webhookEndpoints.deliveries(1, none);
  await karta.usage.keys(none);
  await karta.usage.summary(none);
  assert.equal(sent.length, 13);
});

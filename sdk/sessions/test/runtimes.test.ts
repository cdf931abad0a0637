// Tests browsers and their CORS rules, runtimes without streams or WebCrypto, and two copies of the
// package.
import assert from "node:assert/strict";
import { webcrypto } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { test } from "node:test";
import { createContext, runInContext } from "node:vm";
import { buildSync } from "esbuild";
import * as sdk from "@karta/sessions";
import { API_KEY, BASE_URL, FRAMES, SESSION, TEXT, TOKEN, collect, failure, json, streamed } from "./support.js";

type Sdk = typeof sdk;
type ErrorClass = new (...args: never[]) => sdk.KartaError;

const dist = new URL("../../dist/esm/", import.meta.url);
const bundle = buildSync({ entryPoints: [new URL("index.js", dist).pathname], bundle: true, minify: true, platform: "browser", format: "iife", globalName: "sdk", write: false, logLevel: "error" })
  .outputFiles[0]?.text;

/** Returns another copy of the package in a new realm with `globals` and the web's globals. */
function inRuntime(globals: object = {}): Sdk {
  const web = { URL, URLSearchParams, TextEncoder, TextDecoder, AbortController, crypto: webcrypto, setTimeout, clearTimeout };
  const context = Object.defineProperties({}, { ...Object.getOwnPropertyDescriptors(web), ...Object.getOwnPropertyDescriptors(globals) });
  return runInContext(`${bundle}; sdk`, createContext(context)) as Sdk;
}

/** Header names and methods that the preflight of contract A.1 allows, and the safelisted ones. */
const ALLOWED = ["authorization", "content-type", "last-event-id", "idempotency-key", "accept"];
const METHODS = ["GET", "POST", "DELETE"];
/** Headers of responses that scripts may read. */
const EXPOSED = ["x-request-id", "retry-after", "x-should-retry", "content-type"];

/** A browser's fetch: refuses requests that need more than the preflight allows. */
function browserFetch(answers: (() => Response)[]): typeof fetch {
  return async (_, init = {}) => {
    for (const name of new Headers(init.headers).keys()) assert.ok(ALLOWED.includes(name), `the preflight does not allow ${name}`);
    assert.ok(METHODS.includes(String(init.method)), `the preflight does not allow ${init.method}`);
    assert.ok(init.credentials === undefined && init.mode === undefined);
    const response = (answers.length > 1 ? answers.shift() : answers[0])?.() as Response;
    const get = response.headers.get.bind(response.headers);
    response.headers.get = (name) => (assert.ok(EXPOSED.includes(name.toLowerCase()), `scripts may not read ${name}`), get(name));
    return response;
  };
}

const insecure = { getRandomValues: (bytes: Uint8Array<ArrayBuffer>) => webcrypto.getRandomValues(bytes) };
const BROWSERS = { "a page": webcrypto, "a page without HTTPS": insecure };

for (const [name, webCrypto] of Object.entries(BROWSERS)) {
  test(`${name} passes CORS with every call`, async () => {
    const { KartaSessions } = inRuntime({ crypto: webCrypto, window: { document: {} }, navigator: { userAgent: "Mozilla/5.0" } });
    const lists = () => json(200, { sessions: [], messages: [], next_cursor: null });
    const client = (answers: (() => Response)[]) => new KartaSessions({ baseUrl: BASE_URL, project: "my-app", sessionToken: async () => TOKEN, fetch: browserFetch(answers), sleep: async () => {} });
    const sessions = client([lists]);
    await sessions.create();
    await sessions.resume(SESSION);
    await sessions.get(SESSION);
    await sessions.list();
    await sessions.delete(SESSION);
    await sessions.messages(SESSION);
    await sessions.send(SESSION, { text: "hi" });
    await sessions.cancel(SESSION);
    const resumed = client([streamed(FRAMES.slice(0, 3), "break"), () => json(401, {}), () => json(503, {}, { "retry-after": "1" }), streamed(FRAMES.slice(3))]);
    assert.equal(await resumed.stream(SESSION, { text: "hi" }).text(), TEXT);
    assert.equal(await client([streamed(FRAMES)]).follow(SESSION).text(), TEXT);
  });
}

test("the bundle for browsers imports nothing", () => {
  assert.doesNotMatch(String(bundle), /\brequire\(|from"|"node:/);
});

test("a runtime without streams reads whole responses", async () => {
  const whole = async () => {
    const response = streamed(FRAMES)();
    return { ok: true, status: 200, headers: response.headers, arrayBuffer: () => response.arrayBuffer() } as Response;
  };
  const sessions = new sdk.KartaSessions({ baseUrl: BASE_URL, apiKey: API_KEY, fetch: whole, idleTimeout: 1 });
  assert.equal((await collect(sessions.stream(SESSION, { text: "hi" }))).length, FRAMES.length);
});

test("Node.js 18 without WebCrypto makes keys", async () => {
  const kept = Object.getOwnPropertyDescriptor(globalThis, "crypto");
  let key: string | null = null;
  const sessions = new sdk.KartaSessions({ baseUrl: BASE_URL, apiKey: API_KEY, fetch: async (_, init) => ((key = new Headers(init?.headers).get("idempotency-key")), json(201, {})) });
  try {
    Object.defineProperty(globalThis, "crypto", { value: undefined, configurable: true });
    await sessions.send("sess_1", { text: "hi" });
  } finally {
    if (kept) Object.defineProperty(globalThis, "crypto", kept);
    else Reflect.deleteProperty(globalThis, "crypto");
  }
  assert.match(String(key), /^[0-9a-f]{32}$/);
});

test("each call looks up fetch and randomness", async () => {
  const kept = { fetch: globalThis.fetch, random: Math.random };
  const waits: number[] = [];
  const sessions = new sdk.KartaSessions({ baseUrl: BASE_URL, apiKey: API_KEY, sleep: async (ms) => void waits.push(ms) });
  const answers = [json(503, {}), json(200, { id: SESSION })];
  try {
    Math.random = () => 0.25;
    globalThis.fetch = async () => answers.shift() as Response;
    assert.equal((await sessions.get(SESSION)).id, SESSION);
    Reflect.deleteProperty(globalThis, "fetch");
    const missing = await failure(() => sessions.get(SESSION));
    assert.ok(missing instanceof sdk.KartaArgumentError && missing.field === "fetch");
  } finally {
    Object.assign(globalThis, { fetch: kept.fetch });
    Math.random = kept.random;
  }
  assert.deepEqual(waits, [125]);
});

test("the package avoids import.meta and foreign instanceof", () => {
  const files = readdirSync(dist, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".js"));
  assert.ok(files.length > 10);
  for (const name of files) {
    const code = readFileSync(new URL(name, dist), "utf8").replace(/\/\*.*?\*\/|\/\/.*$/gms, "");
    assert.doesNotMatch(code, /import\.meta/, name);
    assert.doesNotMatch(code, /instanceof (?!Karta)/, name);
    assert.doesNotMatch(code, /@karta\/sdk/, name);
  }
});

test("instanceof works across copies for every error class", () => {
  const copies = [sdk, createRequire(import.meta.url)("@karta/sessions") as Sdk, inRuntime()];
  const classesOf = (copy: Sdk) => Object.entries(copy).filter(([name]) => /^Karta\w*Error$/.test(name)) as [string, ErrorClass][];
  assert.equal(classesOf(sdk).length, 17);
  assert.equal(new Set(copies.map(({ KartaError }) => KartaError)).size, copies.length);
  for (const one of copies) {
    for (const [name, Made] of classesOf(one)) {
      const error = Reflect.construct(Made, ["field", "message", {}].slice(name === "KartaArgumentError" ? 0 : 1)) as sdk.KartaError;
      assert.equal(error.name, name);
      for (const other of copies) {
        for (const [asked, Asked] of classesOf(other)) {
          const ours = (one as unknown as Record<string, ErrorClass>)[asked] as ErrorClass;
          const expected = Made === ours || Object.prototype.isPrototypeOf.call(ours, Made);
          assert.equal(error instanceof Asked, expected, `${name} instanceof ${asked}`);
        }
      }
    }
  }
});

test("instanceof is false for everything else", () => {
  class Mine extends sdk.KartaConflictError {}
  const { KartaConflictError } = inRuntime();
  const mine = new Mine("mine");
  assert.ok(mine instanceof Mine && mine instanceof sdk.KartaConflictError && mine instanceof KartaConflictError);
  assert.equal(mine.name, "KartaConflictError");
  assert.ok(!(new sdk.KartaConflictError("ours") instanceof Mine));
  assert.ok(!(new KartaConflictError("ours") instanceof Mine));
  for (const value of [undefined, null, 7, "KartaError", {}, new Error("x"), { name: "KartaError" }, sdk.KartaError, Object.create(null), () => {}]) {
    assert.ok(!((value as unknown) instanceof sdk.KartaError), String(typeof value));
  }
});
